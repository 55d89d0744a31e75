//! The Google dialect, `generateContent` of the Gemini API and of Vertex AI: typed translation both ways, driven by the
//! catalogue's rules for each model.
//!
//! Sources: Gemini API reference, Vertex AI reference and SDK types (google-genai Python 3.4.0), read 2026-11-22.

mod address;
mod contents;
mod embeddings;
mod error;
mod fields;
mod request;
mod response;
mod schema;
mod tools;

pub use address::{headers, url};
pub use contents::image_urls;
pub use error::{failure, failure_in};
pub use fields::LOSSY;
pub use response::Events;

use bytes::Bytes;

use super::{Ask, Encoded, Whole};
use crate::chat::request::unsupported;
use crate::chat::{Endpoint, Failure};

/// The request in Google's form.
///
/// # Errors
/// `Caller` for what no provider could read, `Unsupported` for what this model or dialect cannot carry.
pub fn encode(ask: &Ask<'_>) -> Result<Encoded, Failure> {
    address::check_model(ask.model)?;
    match ask.endpoint {
        Endpoint::Chat => request::encode(ask),
        Endpoint::Embeddings => embeddings::encode(ask),
        Endpoint::Completions => Err(unsupported("prompt", "Google has no text completions; use chat completions".into())),
        Endpoint::Passthrough => {
            Err(unsupported("path", "only chat completions and embeddings are translated for Google".into()))
        }
    }
}

/// Translates a whole reply, or the replies to all parts of a request for embeddings.
///
/// # Errors
/// `Malformed`, or the failure that an error object means.
pub fn decode(ask: &Ask<'_>, bodies: &[Bytes]) -> Result<Whole, Failure> {
    match (ask.endpoint, bodies) {
        (Endpoint::Embeddings, _) => embeddings::decode(ask, bodies),
        (_, bodies) => response::decode(ask, bodies.first().unwrap_or(&Bytes::new())),
    }
}
