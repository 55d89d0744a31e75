//! Requests on paths that pass through: JSON is held and its model rewritten, anything else is streamed.

use std::sync::Mutex;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::web;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use send_wrapper::SendWrapper;

use super::body;
use super::routes::behind_version;
use crate::actors::slots::Shared;
use crate::attempt::{BodyHold, BodyTooLong, Passthrough, PayloadStream, StreamedBody};
use crate::chat::{Scan, Shape, scan};
use crate::error::GatewayError;
use crate::settings::format_size;

/// Client headers that go upstream; credentials, cookies and hop-by-hop headers are not among them.
const FORWARDED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::ACCEPT,
    header::RANGE,
    header::IF_NONE_MATCH,
    HeaderName::from_static("openai-beta"),
];

/// What is passed through, with the held body and its scan.
pub(super) struct Taken {
    /// For the attempt.
    pub passthrough: Box<Passthrough>,
    /// Held body; empty when it is streamed.
    pub body: Bytes,
    /// Its bytes in the total.
    pub hold: BodyHold,
    /// Its model and places.
    pub scan: Scan,
}

/// Takes a request in.
///
/// # Errors
/// A body that cannot be read, or JSON that is none.
pub(super) async fn take(request: &HttpRequest, payload: web::Payload, shared: &Shared) -> Result<Taken, GatewayError> {
    let headers =
        FORWARDED.iter().filter_map(|name| Some((name.clone(), request.headers().get(name)?.clone()))).collect::<Vec<_>>();
    let path = behind_version(request.path());
    let query = request.query_string();
    let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let method = request.method().clone();
    let length = body::content_length(request);
    let has_body = length.is_some_and(|length| length > 0) || request.headers().contains_key(header::TRANSFER_ENCODING);
    let is_json = request.headers().contains_key(header::CONTENT_TYPE) && body::is_json(request);

    let mut taken = Taken {
        passthrough: Box::new(Passthrough { method, path, headers, stream: None }),
        body: Bytes::new(),
        hold: BodyHold::new(&shared.body_bytes),
        scan: Scan::default(),
    };
    if has_body && is_json {
        (taken.body, taken.hold) = body::read(request, payload, shared).await?;
        taken.scan = scan(&taken.body, Shape::Free)?;
    } else if has_body {
        if length.is_some_and(|length| length > shared.settings.server.max_body) {
            return Err(GatewayError::BodyTooLarge { limit: format_size(shared.settings.server.max_body) });
        }
        let (mut seen, limit) = (0, shared.settings.server.max_body);
        let bytes = payload.map_err(|error| std::io::Error::other(error.to_string())).and_then(move |chunk| {
            seen += chunk.len() as u64;
            std::future::ready(if seen > limit { Err(std::io::Error::other(BodyTooLong(limit))) } else { Ok(chunk) })
        });
        let stream = PayloadStream(Box::pin(bytes));
        taken.passthrough.stream = Some(StreamedBody { length, payload: Mutex::new(Some(SendWrapper::new(stream))) });
    }
    if taken.passthrough.headers.is_empty() {
        taken.passthrough.headers.push((header::ACCEPT, HeaderValue::from_static("*/*")));
    }
    Ok(taken)
}
