//! Answers and errors as HTTP, and the one line that is logged for each request.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream as _};
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep};
use tracing::Span;

use super::Gateway;
use crate::actors::slots::{Counting, OpenRequest};
use crate::attempt::{Answer, AnswerBody, COMMENT, Call, End, LiveBody, Reply};
use crate::chat::{FailureClass, Usage};
use crate::dialect::openai::error_event;
use crate::error::GatewayError;
use crate::settings::{Backend, Route};
use crate::story::{Story, is_absorbed};
use crate::telemetry::{Ended, Meters, otlp};

const X_BACKEND: HeaderName = HeaderName::from_static("x-stagedoor-backend");
const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-stagedoor-attempts");
const X_DROPPED: HeaderName = HeaderName::from_static("x-stagedoor-dropped");
const X_FAILED: HeaderName = HeaderName::from_static("x-stagedoor-failed");
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Bytes of a large whole reply that are handed to the connection at once.
const PIECE: usize = 32 << 10;

/// What is known about a request when it ends; writes the span's fields and the access-log line when dropped.
pub(super) struct RequestLog {
    gateway: Rc<Gateway>,
    span: Span,
    started: Instant,
    /// Name of the caller's key.
    pub caller: Option<Arc<str>>,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// Name of the pool.
    pub pool: Option<Arc<str>>,
    /// What was asked for.
    pub operation: Option<&'static str>,
    status: u16,
    outcome: &'static str,
    class: Option<&'static str>,
    /// Whether it failed by what the client is to mend.
    is_clients: bool,
    backend: Option<Arc<str>>,
    served_by: Option<Arc<Backend>>,
    model: Option<Box<str>>,
    attempts: u32,
    first_content: Option<Duration>,
    usage: Option<Usage>,
    dropped: SmallVec<[Box<str>; 4]>,
    call: Option<Arc<Call>>,
    /// Its place in the statistics of its pool, once it has one.
    counting: Option<Counting>,
    /// Place of its route in the statistics, once it has one.
    route_place: Option<usize>,
    /// Place among the open requests.
    open: Option<usize>,
}

impl RequestLog {
    /// Starts; the request counts as open until this is dropped.
    pub(super) fn new(gateway: &Rc<Gateway>, span: Span) -> Self {
        gateway.shared.open_requests.fetch_add(1, Ordering::Relaxed);
        Self {
            gateway: Rc::clone(gateway),
            span,
            started: Instant::now(),
            caller: None,
            route: None,
            pool: None,
            operation: None,
            status: 0,
            outcome: "cancelled",
            class: None,
            is_clients: false,
            backend: None,
            served_by: None,
            model: None,
            attempts: 0,
            first_content: None,
            usage: None,
            dropped: SmallVec::new(),
            call: None,
            counting: None,
            route_place: None,
            open: None,
        }
    }

    /// The request is one that a route takes; `None` stands for the paths that are always there.
    pub(super) fn routed(&mut self, route: Option<&Route>) {
        self.route = route.map(|route| Arc::clone(&route.name));
        let place = route.map_or(0, |route| route.index + 1);
        self.route_place = Some(place);
        if let Some(route) = self.gateway.slots.routes.borrow_mut().get_mut(place) {
            route.requests += 1;
        }
    }

    /// The request is read: from now on it has a story.
    pub(super) fn opened(&mut self, call: &Arc<Call>, pool: usize) {
        let slots = &self.gateway.slots;
        self.counting = Some(Counting::begin(slots, pool));
        if slots.tells_stories()
            && let Some(pool) = &self.pool
        {
            let (route, caller) = (self.route.clone(), self.caller.clone());
            let open = OpenRequest { call: Arc::clone(call), pool: Arc::clone(pool), route, caller };
            self.open = Some(slots.open.borrow_mut().insert(open));
        }
        self.call = Some(Arc::clone(call));
    }

    /// The request's root span.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    fn answered(&mut self, answer: &mut Answer) {
        self.status = answer.status.as_u16();
        self.backend = Some(Arc::clone(&answer.backend.name));
        self.served_by = Some(Arc::clone(&answer.backend));
        self.model = Some(std::mem::take(&mut answer.model));
        self.attempts = answer.attempts;
        self.first_content = Some(answer.first_content);
        self.usage = answer.usage;
    }

    /// `meant` is the status of an error whose stream had begun with another one.
    fn failed(&mut self, error: &GatewayError, status: u16, meant: u16) {
        self.status = status;
        self.is_clients = is_clients(meant);
        self.outcome = "failed";
        self.class = Some(error.class());
        if let GatewayError::Upstream(failure) = error {
            self.backend.clone_from(&failure.backend);
            self.attempts = failure.attempts;
        }
    }

    /// What the request cost in US dollars, where every price it needs is known.
    fn cost(&self, usage: &Usage) -> Option<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.served_by.as_ref()?.cost(self.model.as_deref()?, usage, now)
    }

    fn ended(&mut self, end: End, usage: Usage) {
        self.outcome = end.word();
        self.usage = Some(usage);
        if let End::Failed(class) | End::Truncated(class) = end {
            self.class = Some(class.word());
        }
    }
}

impl RequestLog {
    /// The failed tries in short, as `backend:class`; `None` when there was none.
    fn tried(&self) -> Option<String> {
        let failures = self.call.as_ref()?.trail.failures();
        let backends = &self.gateway.shared.settings.backends;
        let short = |(index, class): &(u16, FailureClass)| {
            backends.get(usize::from(*index)).map(|backend| format!("{}:{}", backend.name, class.word()))
        };
        let all: Vec<String> = failures.iter().filter_map(short).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Adds the request to the statistics of its route.
    fn count(&self, duration: Duration) {
        let mut routes = self.gateway.slots.routes.borrow_mut();
        let Some(route) = routes.get_mut(self.route_place.unwrap_or(0)) else { return };
        // What was refused before it had a route is counted here only.
        route.requests += u64::from(self.route_place.is_none());
        route.ended(self.outcome);
        if self.outcome == "served" {
            route.duration.add(duration);
        }
        if let Some(after) = self.first_content {
            route.first_content.add(after);
        }
        if let Some(class) = self.class {
            route.count_class(class, 1);
            route.client_errors += u64::from(self.is_clients);
        }
    }

    /// Records what only traces show; after the access-log line, which so looks the same with and without them.
    fn trace(&self, usage: &Usage) {
        let is_absorbed = self.call.as_ref().is_some_and(|call| is_absorbed(self.outcome, &call.trail));
        tracing::record_all!(
            self.span,
            absorbed = is_absorbed,
            usage_estimated = usage.estimated,
            "gen_ai.request.stream" = self.call.as_ref().is_some_and(|call| call.is_stream()),
            "gen_ai.usage.cache_read.input_tokens" = usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens" = usage.reasoning_tokens,
        );
        if self.model.is_none()
            && let Some(model) = self.asked_model()
        {
            self.span.record("gen_ai.request.model", model);
        }
    }

    fn measure(&self, meters: &Meters, operation: &'static str, duration: Duration) {
        meters.record(&Ended {
            operation,
            stream: self.call.as_ref().is_some_and(|call| call.is_stream()),
            backend: self.backend.as_deref(),
            pool: self.pool.as_deref(),
            model: self.model.as_deref().or_else(|| self.asked_model()),
            outcome: self.outcome,
            class: self.class,
            duration,
            first_content: self.first_content,
            usage: self.usage,
        });
    }

    /// The model that the client named, where it is no longer than a model's name.
    fn asked_model(&self) -> Option<&str> {
        self.call.as_ref()?.requested_model().filter(|model| model.len() <= 128)
    }

    /// What remains of the request.
    fn story(&mut self, duration: Duration) -> Option<Story> {
        let call = self.call.take()?;
        Some(Story {
            id: Arc::clone(&call.id),
            at: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            caller: self.caller.take(),
            route: self.route.take(),
            pool: self.pool.take(),
            operation: self.operation,
            stream: call.is_stream(),
            status: self.status,
            outcome: self.outcome,
            class: self.class,
            backend: self.backend.take(),
            model: self.model.take(),
            attempts: self.attempts,
            first_content: self.first_content,
            usage: self.usage,
            dropped: std::mem::take(&mut self.dropped),
            trail: Arc::clone(&call.trail),
        })
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.gateway.shared.open_requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(counting) = self.counting.take() {
            counting.end(self.outcome);
        }
        let duration = self.started.elapsed();
        self.count(duration);
        let usage = self.usage.unwrap_or_default();
        let is_logged = self.gateway.shared.settings.telemetry.access_log;
        let cost = if is_logged { self.cost(&usage) } else { None };
        let first_content = self.first_content.map(|after| after.as_secs_f64());
        tracing::record_all!(
            self.span,
            caller = self.caller.as_deref(),
            route = self.route.as_deref(),
            pool = self.pool.as_deref(),
            status = self.status,
            outcome = self.outcome,
            class = self.class,
            backend = self.backend.as_deref(),
            "gen_ai.operation.name" = self.operation,
            "gen_ai.request.model" = self.model.as_deref(),
            "gen_ai.usage.input_tokens" = usage.prompt_tokens,
            "gen_ai.usage.output_tokens" = usage.completion_tokens,
            cost_usd = cost.as_deref(),
            attempts = self.attempts,
            first_content_seconds = first_content,
        );
        if is_logged {
            let seconds = duration.as_secs_f64();
            let tried = self.tried();
            self.span.in_scope(|| tracing::info!(target: "access", seconds, usage_estimated = usage.estimated, tried, "request"));
        }
        if otlp::traces() {
            self.trace(&usage);
        }
        if let (Some(meters), Some(operation)) = (otlp::meters(), self.operation) {
            self.measure(meters, operation, duration);
        }
        if let Some(open) = self.open {
            let gateway = Rc::clone(&self.gateway);
            gateway.slots.open.borrow_mut().try_remove(open);
            if let Some(story) = self.story(duration) {
                gateway.slots.stories.borrow_mut().add(story);
            }
        }
    }
}

/// Whether a status says that the client is to mend its request. Too many requests may be the fault of others.
fn is_clients(status: u16) -> bool {
    (400..500).contains(&status) && status != 429
}

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
    if let GatewayError::Method { allow, .. } = error {
        response.insert_header((header::ALLOW, allow.as_str()));
    }
    if let GatewayError::Upstream(failure) = error
        && let Some(backend) = &failure.backend
    {
        response.insert_header((X_BACKEND, &**backend));
        response.insert_header((X_ATTEMPTS, HeaderValue::from(failure.attempts)));
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
            log.outcome = "served";
            response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
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
                            log.outcome = "served";
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
