//! Answers and errors as HTTP.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream as _};
use tokio::time::{Instant, Sleep};

use super::request_log::RequestLog;
use crate::attempt::{AnswerBody, COMMENT, LiveBody, Reply};
use crate::dialect::openai::error_event;
use crate::error::GatewayError;
use crate::story::Outcome;

const X_BACKEND: HeaderName = HeaderName::from_static("x-stagedoor-backend");
const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-stagedoor-attempts");
const X_DROPPED: HeaderName = HeaderName::from_static("x-stagedoor-dropped");
const X_FAILED: HeaderName = HeaderName::from_static("x-stagedoor-failed");
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How to show who one is.
pub(super) const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

/// Bytes of a large whole reply that are handed to the connection at once.
const PIECE: usize = 32 << 10;

/// The HTTP form of an error.
pub(super) fn error(error: &GatewayError) -> HttpResponse {
    let form = error.form();
    let status = StatusCode::from_u16(form.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    if let Some(wait) = form.retry_after {
        // Rounded up: a client that comes early is refused again.
        response.insert_header((header::RETRY_AFTER, wait.as_millis().div_ceil(1_000).to_string()));
    }
    if form.is_final {
        response.insert_header((X_SHOULD_RETRY, HeaderValue::from_static("false")));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.insert_header((header::WWW_AUTHENTICATE, BEARER));
    }
    if let GatewayError::Method { allow, .. } = error {
        response.insert_header((header::ALLOW, allow.as_str()));
    }
    if let GatewayError::Upstream(failure) = error
        && let Some(backend) = &failure.backend
    {
        response.insert_header((X_BACKEND, &**backend));
        response.insert_header((X_ATTEMPTS, HeaderValue::from(failure.attempts)));
        for (name, value) in &failure.headers {
            response.insert_header((name.as_str(), value.as_str()));
        }
    }
    response.json(form.body())
}

/// The answer to a path that does not exist.
pub(super) async fn unknown_path(request: HttpRequest) -> HttpResponse {
    error(&GatewayError::UnknownPath { path: request.path().chars().filter(|letter| !letter.is_control()).take(200).collect() })
}

/// The answer to a wrong method where only GET is right.
pub(crate) async fn only_get(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "GET")
}

/// The answer to a wrong method where something is read.
pub(crate) async fn only_read(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "GET, HEAD")
}

/// The answer to a wrong method where only POST is right.
pub(crate) async fn only_post(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "POST")
}

/// The answer to a wrong method where only GET and DELETE are right.
pub(crate) async fn only_get_or_delete(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "GET, DELETE")
}

/// The answer to a wrong method where a session is looked at, begun and ended.
pub(crate) async fn only_session(request: HttpRequest) -> HttpResponse {
    wrong_method(&request, "GET, POST, DELETE")
}

/// A header's text; empty where there is none.
pub(super) fn text<'r>(request: &'r HttpRequest, name: &str) -> &'r str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn wrong_method(request: &HttpRequest, allow: &str) -> HttpResponse {
    error(&GatewayError::Method { method: request.method().to_string(), allow: allow.to_owned() })
}

/// Turns a reply into HTTP; the log goes with the body and is written at its end.
pub(super) fn respond(reply: Reply, mut log: RequestLog) -> HttpResponse {
    let mut answer = match reply {
        Ok(answer) => answer,
        Err(failure) => {
            let mut response = error(&failure);
            let status = response.status().as_u16();
            log.failed(&failure, status, status);
            if let Some((attempts, backend)) = log.asked()
                && !response.headers().contains_key(X_ATTEMPTS)
                && let Ok(name) = HeaderValue::from_str(backend)
            {
                response.headers_mut().insert(X_BACKEND, name);
                response.headers_mut().insert(X_ATTEMPTS, HeaderValue::from(attempts));
            }
            if let Some(tried) = log.tried().and_then(|tried| HeaderValue::try_from(tried).ok()) {
                response.headers_mut().insert(X_FAILED, tried);
            }
            return response;
        }
    };
    log.answered(&mut answer);
    let mut response = HttpResponse::build(answer.status);
    let mut length = None;
    for (name, value) in answer.headers {
        if name == header::CONTENT_LENGTH {
            length = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
        } else {
            response.insert_header((name, value));
        }
    }
    response.insert_header((X_BACKEND, answer.backend.name_header.clone()));
    // Nearly every answer takes one.
    let attempts = if answer.attempts == 1 { HeaderValue::from_static("1") } else { HeaderValue::from(answer.attempts) };
    response.insert_header((X_ATTEMPTS, attempts));
    // Names of fields come from the client: a few of them say enough.
    let is_plain = |name: &&str| name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_graphic());
    log.dropped = std::mem::take(&mut answer.dropped).into_iter().filter(|name| is_plain(&&**name)).take(32).collect();
    if !log.dropped.is_empty()
        && let Ok(dropped) = HeaderValue::from_str(&log.dropped.join(", "))
    {
        response.insert_header((X_DROPPED, dropped));
    }
    // Only a request that was tried more than once has a failure to tell.
    if answer.attempts > 1
        && let Some(tried) = log.tried().and_then(|tried| HeaderValue::try_from(tried).ok())
    {
        response.insert_header((X_FAILED, tried));
    }
    if log.gateway.shared.draining.load(Ordering::Relaxed) {
        response.force_close();
    }
    match answer.body {
        AnswerBody::Full(bytes) => {
            log.outcome = Outcome::Served;
            if !bytes.is_empty() {
                response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
            }
            if bytes.len() <= 2 * PIECE {
                return response.body(bytes);
            }
            // In pieces, so that the request counts as open until nearly all of it is on its way.
            let length = Some(bytes.len() as u64);
            response.body(ClientBody { state: State::Rest(bytes), log: Some(log), keep_alive: None, length })
        }
        AnswerBody::Live(live) => {
            let live = live.take();
            if live.is_events() {
                stream_headers(&mut response);
            }
            response.body(ClientBody { state: State::Live(live), log: Some(log), keep_alive: None, length })
        }
    }
}

/// Commits a stream before anything has come: comments keep it alive while the reply is still awaited.
pub(super) fn commit_early(reply: Pin<Box<dyn Future<Output = Reply>>>, silence: Duration, mut log: RequestLog) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    stream_headers(&mut response);
    log.status = 200;
    let keep_alive = Some((silence, Box::pin(tokio::time::sleep(Duration::ZERO))));
    response.body(ClientBody { state: State::Awaited(reply), log: Some(log), keep_alive, length: None })
}

fn stream_headers(response: &mut actix_web::HttpResponseBuilder) {
    response
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")))
        .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .insert_header((X_ACCEL_BUFFERING, HeaderValue::from_static("no")));
}

/// A body that the client pulls.
struct ClientBody {
    state: State,
    log: Option<RequestLog>,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
    length: Option<u64>,
}

enum State {
    Awaited(Pin<Box<dyn Future<Output = Reply>>>),
    Live(LiveBody),
    Rest(Bytes),
}

impl ClientBody {
    fn arrived(&mut self, reply: Reply) {
        self.keep_alive = None;
        self.state = match reply {
            Ok(mut answer) => {
                if let Some(log) = &mut self.log {
                    log.answered(&mut answer);
                }
                match answer.body {
                    AnswerBody::Live(live) => State::Live(live.take()),
                    AnswerBody::Full(bytes) => {
                        if let Some(log) = &mut self.log {
                            log.outcome = Outcome::Served;
                        }
                        State::Rest(bytes)
                    }
                }
            }
            Err(failure) => {
                let form = failure.form();
                if let Some(log) = &mut self.log {
                    log.failed(&failure, 200, form.status);
                }
                State::Rest(error_event(&form.message, &form.kind, form.code.as_deref().unwrap_or("error")))
            }
        };
    }
}

impl MessageBody for ClientBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let body = &mut *self;
        loop {
            match &mut body.state {
                State::Awaited(reply) => match reply.poll_unpin(cx) {
                    Poll::Ready(reply) => body.arrived(reply),
                    Poll::Pending => {
                        let Some((silence, timer)) = &mut body.keep_alive else {
                            return Poll::Pending;
                        };
                        std::task::ready!(timer.as_mut().poll(cx));
                        timer.as_mut().reset(Instant::now() + *silence);
                        return Poll::Ready(Some(Ok(Bytes::from_static(COMMENT))));
                    }
                },
                State::Live(live) => {
                    return Pin::new(live).poll_next(cx).map(|step| step.map(|chunk| chunk.map_err(Into::into)));
                }
                State::Rest(rest) => {
                    let piece = rest.split_to(rest.len().min(PIECE));
                    return Poll::Ready((!piece.is_empty()).then_some(Ok(piece)));
                }
            }
        }
    }

    fn boxed(self) -> BoxBody
    where
        Self: Sized + 'static,
    {
        BoxBody::new(self)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let (State::Live(live), Some(log)) = (&self.state, &mut self.log) {
            let (end, usage) = live.ending();
            log.ended(end, usage);
        }
    }
}
