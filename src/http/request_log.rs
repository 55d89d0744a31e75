//! What is known of a request from its beginning to its end: the one line that is logged for it, its span's fields, its story
//! and its place in the statistics.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::Span;

use super::Gateway;
use crate::actors::slots::OpenRequest;
use crate::actors::tally::Counting;
use crate::attempt::{Answer, Call, End};
use crate::chat::{FailureClass, Usage};
use crate::error::GatewayError;
use crate::settings::{Backend, Route};
use crate::story::{Outcome, Story, is_absorbed};
use crate::telemetry::{Ended, Meters, otlp};
use crate::unix_time::unix_time;

/// What is known about a request when it ends; writes the span's fields and the access-log line when dropped.
pub(super) struct RequestLog {
    pub(super) gateway: Rc<Gateway>,
    span: Span,
    started: Instant,
    /// Name of the caller's key.
    pub(super) caller: Option<Arc<str>>,
    /// Name of the route.
    pub(super) route: Option<Arc<str>>,
    /// Name of the pool.
    pub(super) pool: Option<Arc<str>>,
    /// What was asked for.
    pub(super) operation: Option<&'static str>,
    pub(super) status: u16,
    pub(super) outcome: Outcome,
    class: Option<&'static str>,
    /// Whether it failed by what the client is to mend.
    is_clients: bool,
    backend: Option<Arc<str>>,
    served_by: Option<Arc<Backend>>,
    model: Option<Box<str>>,
    attempts: u32,
    first_content: Option<Duration>,
    usage: Option<Usage>,
    pub(super) dropped: SmallVec<[Box<str>; 4]>,
    call: Option<Arc<Call>>,
    /// Its id, if it was refused before it was read.
    refused: Option<Arc<str>>,
    /// Its place in the statistics of its pool, once it has one.
    counting: Option<Counting>,
    /// Place of its route in the statistics, once it has one.
    route_place: Option<usize>,
    /// Whether it is one of those that the statistics of routes are about.
    is_counted: bool,
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
            outcome: Outcome::Cancelled,
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
            refused: None,
            counting: None,
            route_place: None,
            is_counted: true,
            open: None,
        }
    }

    /// Starts for a request that the gateway answers by itself: it is logged, and counts among no others.
    pub(super) fn uncounted(gateway: &Rc<Gateway>, span: Span) -> Self {
        let mut log = Self::new(gateway, span);
        log.is_counted = false;
        log
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

    /// The request is refused before it is read. Of a caller that is let in that is told as well.
    pub(super) fn refused(&mut self, id: Arc<str>) {
        self.refused = Some(id).filter(|_| self.route_place.is_some() && self.gateway.slots.tells_stories());
    }

    /// The request's root span.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(super) fn answered(&mut self, answer: &mut Answer) {
        self.status = answer.status.as_u16();
        self.backend = Some(Arc::clone(&answer.backend.name));
        self.served_by = Some(Arc::clone(&answer.backend));
        self.model = Some(std::mem::take(&mut answer.model));
        self.attempts = answer.attempts;
        self.first_content = Some(answer.first_content);
        self.usage = answer.usage;
    }

    /// `meant` is the status of an error whose stream had begun with another one.
    pub(super) fn failed(&mut self, error: &GatewayError, status: u16, meant: u16) {
        self.status = status;
        self.is_clients = is_clients(meant);
        self.outcome = Outcome::Failed;
        self.class = Some(error.class());
        if let GatewayError::Upstream(failure) = error {
            self.backend.clone_from(&failure.backend);
            self.attempts = failure.attempts;
        }
        self.note_tries();
    }

    /// Takes over from the story what an ending without an answer does not say: how often it was tried, and where last.
    fn note_tries(&mut self) {
        let Some(call) = self.call.as_ref().filter(|_| self.attempts == 0) else { return };
        let Some((tries, backend)) = call.trail.last_try() else { return };
        self.attempts = u32::try_from(tries).unwrap_or(u32::MAX);
        if self.backend.is_none() {
            self.backend =
                self.gateway.shared.settings.backends.get(usize::from(backend)).map(|backend| Arc::clone(&backend.name));
        }
        // As it is counted for its backend.
        if self.outcome == Outcome::Cancelled && self.usage.is_none() && call.touched.load(Ordering::Relaxed) {
            self.usage = Some(Usage::estimate(call.body.len(), 0));
        }
    }

    /// Tries made, and who was asked last, if anybody was.
    pub(super) fn asked(&self) -> Option<(u32, &Arc<str>)> {
        Some((self.attempts, self.backend.as_ref()?)).filter(|(attempts, _)| *attempts > 0)
    }

    /// What the request cost in US dollars, where every price it needs is known.
    fn cost(&self, usage: &Usage) -> Option<String> {
        let now = unix_time().as_secs();
        self.served_by.as_ref()?.cost(self.model.as_deref()?, usage, now)
    }

    pub(super) fn ended(&mut self, end: End, usage: Usage) {
        self.outcome = end.outcome();
        self.usage = Some(usage);
        if let End::Failed(class) | End::Truncated(class) = end {
            self.class = Some(class.word());
        }
    }
}

impl RequestLog {
    /// The failed tries in short, as `backend:class`; `None` when there was none.
    pub(super) fn tried(&self) -> Option<String> {
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
        let place = self.is_counted.then(|| self.route_place.unwrap_or(0));
        let Some(route) = place.and_then(|place| routes.get_mut(place)) else { return };
        // What was refused before it had a route is counted here only.
        route.requests += u64::from(self.route_place.is_none());
        route.ended(self.outcome);
        if self.outcome == Outcome::Served {
            route.duration.add(duration);
        }
        match self.first_content {
            Some(after) => route.first_content.add(after),
            None => route.given_up += u64::from(self.outcome == Outcome::Cancelled),
        }
        if let Some(class) = self.class {
            route.count_class(class, 1);
            route.client_errors += u64::from(self.is_clients);
        }
    }

    /// Puts what is known at the end on the request's span.
    fn record(&self, usage: &Usage, cost: Option<&str>) {
        tracing::record_all!(
            self.span,
            caller = self.caller.as_deref(),
            route = self.route.as_deref(),
            pool = self.pool.as_deref(),
            status = self.status,
            outcome = self.outcome.word(),
            class = self.class,
            backend = self.backend.as_deref(),
            "gen_ai.operation.name" = self.operation,
            "gen_ai.request.model" = self.model.as_deref(),
            "gen_ai.usage.input_tokens" = usage.prompt_tokens,
            "gen_ai.usage.output_tokens" = usage.completion_tokens,
            cost_usd = cost,
            attempts = self.attempts,
            first_content_seconds = self.first_content.map(|after| after.as_secs_f64()),
        );
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
        let (id, stream, trail) = match (self.call.take(), self.refused.take()) {
            (Some(call), _) => (Arc::clone(&call.id), call.is_stream(), Arc::clone(&call.trail)),
            (None, refused) => (refused?, false, Arc::default()),
        };
        Some(Story {
            id,
            at: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            caller: self.caller.take(),
            route: self.route.take(),
            pool: self.pool.take(),
            operation: self.operation,
            stream,
            status: self.status,
            outcome: self.outcome,
            class: self.class,
            backend: self.backend.take(),
            model: self.model.take(),
            attempts: self.attempts,
            first_content: self.first_content,
            usage: self.usage,
            dropped: std::mem::take(&mut self.dropped),
            trail,
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
        self.note_tries();
        self.count(duration);
        let usage = self.usage.unwrap_or_default();
        let is_logged = self.gateway.shared.settings.telemetry.access_log;
        // Nobody else sees what the span holds at its end.
        if is_logged || otlp::traces() {
            let cost = if is_logged { self.cost(&usage) } else { None };
            self.record(&usage, cost.as_deref());
        }
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
        if self.open.is_none() && self.refused.is_none() {
            return;
        }
        let gateway = Rc::clone(&self.gateway);
        if let Some(open) = self.open {
            gateway.slots.open.borrow_mut().try_remove(open);
        }
        if let Some(story) = self.story(duration) {
            gateway.slots.stories.borrow_mut().add(story);
        }
    }
}

/// Whether a status says that the client is to mend its request. Too many requests may be the fault of others.
fn is_clients(status: u16) -> bool {
    (400..500).contains(&status) && status != 429
}
