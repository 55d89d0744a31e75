//! The Anthropic Messages dialect: typed translation both ways, driven by the catalogue's rules for each model.
//!
//! Sources: Anthropic API reference and SDK types (Python 2.12.0), read 2026-11-22.

mod content;
mod error;
mod fields;
mod messages;
mod request;
mod response;
mod schema;
mod stream;
mod thinking;
mod tools;

pub use error::{failure, failure_in, rate_limit};
pub use fields::LOSSY;
pub use request::encode;
pub use response::decode;
pub use stream::Events;

use crate::chat::Endpoint;
use crate::settings::Backend;

/// The address of the Messages API, or of what is fetched to open a connection.
pub fn url(backend: &Backend, endpoint: Endpoint, path: &str) -> String {
    match endpoint {
        Endpoint::Passthrough => format!("{}/v1{path}", backend.base),
        Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => format!("{}/v1/messages", backend.base),
    }
}

/// Headers that every request carries.
pub fn headers(backend: &Backend) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    if let Some(key) = &backend.credential {
        headers.push(("x-api-key".into(), key.expose().to_owned()));
    }
    headers.push(("anthropic-version".into(), backend.translation.version.clone()));
    if !backend.translation.betas.is_empty() {
        headers.push((BETA.into(), backend.translation.betas.join(",")));
    }
    headers
}

const BETA: &str = "anthropic-beta";
