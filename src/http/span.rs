//! The root span of a request, and its id.

use std::future::Future;
use std::sync::Arc;

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Version};
use actix_web::{Error, HttpMessage, HttpRequest};
use tracing::Span;
use tracing::field::Empty;
use tracing_actix_web::RootSpanBuilder;

use crate::telemetry::otlp;

/// Longest request id that is taken over from a client.
const ID_LIMIT: usize = 128;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id: the client's, if sane, else ours.
#[derive(Clone)]
pub(super) struct RequestId(pub Arc<str>);

/// Builds the root span; its fields are recorded when the request has ended.
pub struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let id = request_id(request.headers().get(&X_REQUEST_ID));
        let _trace = otlp::join_trace(|name| request.headers().get(name)?.to_str().ok());
        let span = tracing::info_span!(
            "request",
            request_id = &*id,
            method = request.method().as_str(),
            path = request.path(),
            caller = Empty,
            route = Empty,
            pool = Empty,
            status = Empty,
            outcome = Empty,
            class = Empty,
            backend = Empty,
            "gen_ai.operation.name" = Empty,
            "gen_ai.request.model" = Empty,
            "gen_ai.usage.input_tokens" = Empty,
            "gen_ai.usage.output_tokens" = Empty,
            cost_usd = Empty,
            attempts = Empty,
            first_content_seconds = Empty,
            // Only traces show these.
            absorbed = Empty,
            usage_estimated = Empty,
            "gen_ai.request.stream" = Empty,
            "gen_ai.usage.cache_read.input_tokens" = Empty,
            "gen_ai.usage.reasoning.output_tokens" = Empty,
        );
        request.extensions_mut().insert(RequestId(id));
        span
    }

    fn on_request_end<B: MessageBody>(_: Span, _: &Result<ServiceResponse<B>, Error>) {}
}

fn request_id(given: Option<&HeaderValue>) -> Arc<str> {
    let sane = |id: &&str| {
        !id.is_empty() && id.len() <= ID_LIMIT && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    match given.and_then(|value| value.to_str().ok()).filter(sane) {
        Some(id) => id.into(),
        None => fresh_id(),
    }
}

/// `req_` and 32 random hexadecimal digits.
fn fresh_id() -> Arc<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut id = *b"req_00000000000000000000000000000000";
    for (pair, byte) in id[4..].as_chunks_mut::<2>().0.iter_mut().zip(fastrand::u128(..).to_le_bytes()) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    std::str::from_utf8(&id).unwrap_or_default().into()
}

/// The id of a request.
pub(super) fn id_of(request: &HttpRequest) -> Arc<str> {
    request.extensions().get::<RequestId>().map_or_else(|| request_id(None), |id| Arc::clone(&id.0))
}

/// Puts the request's id on every reply, and frames it so that a client of HTTP/1.0 can read it.
///
/// # Errors
/// What the service itself returns.
pub fn finish_reply<S, B>(
    request: ServiceRequest,
    service: &S,
) -> impl Future<Output = Result<ServiceResponse<B>, Error>> + use<S, B>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let id = request.extensions().get::<RequestId>().cloned();
    let answer = service.call(request);
    async move {
        let mut response = answer.await?;
        if let Some(value) = id.and_then(|id| HeaderValue::from_str(&id.0).ok()) {
            response.headers_mut().insert(X_REQUEST_ID, value);
        }
        if response.request().version() < Version::HTTP_11 && response.response().body().size() == BodySize::Stream {
            let head = response.response_mut().head_mut();
            // It knows no chunks: the end of the connection is the end of the body.
            head.no_chunking(true);
            head.set_connection_type(ConnectionType::Close);
        }
        Ok(response)
    }
}
