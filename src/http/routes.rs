//! Which configured route a request takes.

use actix_web::HttpRequest;

use crate::chat::Endpoint;
use crate::error::GatewayError;
use crate::settings::{PathMatch, Route, Settings};

/// Paths that are served by model where no routes are configured.
const STANDARD: &[&str] = &["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// Where a request goes.
pub(super) struct Matched<'s> {
    /// The route; `None` on a standard path.
    pub route: Option<&'s Route>,
    /// What is asked for.
    pub endpoint: Endpoint,
}

/// Finds the route of a request.
///
/// # Errors
/// An unknown path, a method that the path's routes do not take, or a path that must not be passed on.
pub(super) fn find<'s>(settings: &'s Settings, request: &HttpRequest) -> Result<Matched<'s>, GatewayError> {
    let path = request.path();
    let method = request.method().as_str();
    let mut endpoint = Endpoint::of_path(path);
    let Some(routes) = &settings.routes else {
        if !STANDARD.contains(&path) {
            return Err(GatewayError::UnknownPath { path: shorten(path) });
        }
        return match method {
            "POST" => Ok(Matched { route: None, endpoint }),
            _ => Err(GatewayError::Method { method: method.to_owned(), allow: "POST".into() }),
        };
    };
    let mut allowed: Vec<&str> = Vec::new();
    for route in routes.iter().filter(|route| is_path(&route.path, path) && has_headers(route, request)) {
        if route.methods.iter().any(|known| known == method) {
            // Only a POST can be one of the API's own requests.
            if method != "POST" {
                endpoint = Endpoint::Passthrough;
            }
            if endpoint == Endpoint::Passthrough {
                check_path(path)?;
            }
            return Ok(Matched { route: Some(route), endpoint });
        }
        allowed.extend(route.methods.iter().map(String::as_str));
    }
    if allowed.is_empty() {
        return Err(GatewayError::UnknownPath { path: shorten(path) });
    }
    allowed.sort_unstable();
    allowed.dedup();
    Err(GatewayError::Method { method: method.to_owned(), allow: allowed.join(", ") })
}

fn shorten(path: &str) -> String {
    path.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

fn is_path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
    }
}

fn has_headers(route: &Route, request: &HttpRequest) -> bool {
    route
        .headers
        .iter()
        .all(|(name, wanted)| request.headers().get(name.as_str()).is_some_and(|value| value.as_bytes() == wanted.as_bytes()))
}

/// A path that is passed on must mean the same to everybody who reads it: no dot segments, no escapes of its own structure.
fn check_path(path: &str) -> Result<(), GatewayError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~:@!$&'()*+,;=".contains(&b);
    let clean =
        path.bytes().all(plain) && !path.contains("//") && !path.split('/').any(|segment| segment == "." || segment == "..");
    if clean { Ok(()) } else { Err(GatewayError::BadPath) }
}

/// The part of a path behind its version: `/files/f-1` of `/v1/files/f-1`.
pub(super) fn behind_version(path: &str) -> &str {
    match path.find("/v1/") {
        Some(at) => &path[at + 3..],
        None => path,
    }
}
