//! One attempt, from its start until its one outcome is settled. The table of all is in [`super::flights`].
//!
//! A [`Flight`] is shared by the attempt's task or live body and the provider, all on one thread. Whatever path an
//! attempt ends on, its [`FlightGuard`] settles it: the permit returns, the pool gets one outcome.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::call::Call;
use super::end::{Cut, End, FailedTries, Settled};
use super::flights::{FlightPlan, FlightView, Flights};
use super::live::Upstream;
use super::token::Minter;
use super::vitals::Fell;
use crate::balance::{Moment, Permit, Probe, Sample};
use crate::chat::{Failure, FailureClass, Keepsake, Usage};
use crate::settings::Backend;
use crate::story::TryEnd;
use crate::telemetry::otlp;

/// One attempt. Its first fields are all that the events of a stream touch, and lie together for that.
#[repr(C)]
pub struct Flight {
    cut: Cell<Option<Cut>>,
    /// Whether somebody else takes the request over.
    is_moving: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    flights: Rc<Flights>,
    /// The upstream half of a live body.
    pub upstream: RefCell<Option<Upstream>>,
    /// Its place in the table.
    pub(super) place: Cell<usize>,
    /// Its place among the live ones.
    pub(super) live_place: Cell<Option<usize>>,
    /// The request.
    pub call: Arc<Call>,
    /// Who it goes to.
    pub backend: Arc<Backend>,
    /// What its access tokens come from, if it takes any.
    pub minter: Option<Rc<Minter>>,
    /// When the attempt started.
    pub started: Moment,
    /// Place of the present try in the request's trail.
    told: Cell<usize>,
    /// Leases, if this attempt decides about a circuit.
    probe: Cell<Option<Probe>>,
    first_content: Cell<Option<Moment>>,
    /// When the present try began.
    try_started: Cell<Moment>,
    /// Classes of the tries that failed and were followed by another one here.
    failed_tries: RefCell<FailedTries>,
    /// Span of the present try.
    span: RefCell<Span>,
    permit: Cell<Option<Permit>>,
    settled: Cell<Option<(End, Usage)>>,
    /// Requests in flight at the backend when it began; `None` where its time says nothing about the model.
    load: Option<u32>,
    /// The pool that sent the job.
    pub pool: u16,
    /// Place of the member in that pool.
    pub member: u16,
    /// Slot of the model that is asked for.
    slot: u16,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether it was started beside another one that is slow.
    is_hedge: bool,
    /// Whether its reply shows that the backend is well.
    is_proof: Cell<bool>,
    /// Why its reply was broken off, if it was.
    why_broken: Cell<Box<str>>,
    absorbed: Cell<bool>,
}

/// What is to be done about a live body now.
pub(super) enum Due {
    End(Cut),
    Comment,
}

impl Flight {
    /// Begins.
    pub(super) fn new(flights: &Rc<Flights>, plan: FlightPlan) -> Self {
        let now = flights.vitals.clock.now();
        let stream = plan.call.is_stream();
        // The time of what is passed through says nothing about the model.
        let load = plan.call.passthrough.is_none().then(|| flights.vitals.permits.used());
        if load.is_some() {
            flights.vitals.pulse(plan.slot).begin(stream, now);
        }
        Self {
            place: Cell::new(0),
            live_place: Cell::new(None),
            flights: Rc::clone(flights),
            call: plan.call,
            backend: plan.backend,
            minter: plan.minter,
            pool: plan.pool,
            member: plan.member,
            started: now,
            stream,
            is_hedge: plan.is_hedge,
            told: Cell::new(usize::MAX),
            slot: plan.slot,
            probe: Cell::new(Some(plan.probe)),
            is_proof: Cell::new(true),
            why_broken: Cell::default(),
            load,
            first_content: Cell::new(None),
            try_started: Cell::new(now),
            failed_tries: RefCell::default(),
            span: RefCell::new(Span::none()),
            absorbed: Cell::new(false),
            permit: Cell::new(Some(plan.permit)),
            settled: Cell::new(None),
            cut: Cell::new(None),
            is_moving: Cell::new(false),
            waker: RefCell::new(None),
            upstream: RefCell::new(None),
        }
    }

    /// As an operator sees it.
    pub(super) fn view(&self, now: Moment) -> FlightView {
        let first_content = self.first_content.get();
        let content_events = self.upstream.borrow().as_ref().map_or(0, Upstream::content_events);
        let seconds = first_content.map(|at| now.since(at).as_secs_f64()).filter(|seconds| *seconds >= 0.1);
        FlightView {
            attempt: self.call.trail.tries(),
            content_events,
            content_events_per_second: seconds.map(|seconds| content_events as f64 / seconds),
            ..FlightView::waiting(&self.call, self.pool, if first_content.is_some() { "streaming" } else { "waiting" }, now)
        }
    }

    /// What is to be done about it now, if its reply is being passed on.
    pub(super) fn due(&self, now: Instant) -> Option<Due> {
        let mut cell = self.upstream.borrow_mut();
        let upstream = cell.as_mut()?;
        match upstream.overdue(now, &self.backend) {
            Some(cut) => Some(Due::End(cut)),
            None => upstream.wants_comment(now, &self.backend).then_some(Due::Comment),
        }
    }

    /// A piece of its stream has come so long after the one before.
    pub fn note_gap(&self, gap: Duration) {
        self.flights.gaps.borrow_mut().add(gap);
    }

    /// Begins a try.
    pub fn begin_try(&self, span: Span) {
        let now = self.now();
        self.try_started.set(now);
        *self.span.borrow_mut() = span;
        let backend = u16::try_from(self.backend.index).unwrap_or(u16::MAX);
        self.told.set(self.call.trail.begin(backend, self.is_hedge, self.call.age(now)));
    }

    /// The reply's head has come.
    pub fn note_head(&self) {
        let at = self.call.age(self.now());
        self.call.trail.amend(self.told.get(), |told| told.head = Some(at));
    }

    fn note_end(&self, now: Moment, end: TryEnd, usage: Option<Usage>) {
        let at = self.call.age(now);
        self.call.trail.amend(self.told.get(), |told| {
            // A failed try was told with its reason already.
            if told.end.is_none() {
                told.end = Some((at, end));
                told.tokens = usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
            }
        });
    }

    /// Keeps why its reply is about to be broken off, for the story and the log.
    pub fn note_broken(&self, class: FailureClass, reason: &str) {
        self.within_span(|| tracing::info!(target: "attempt", class = class.word(), reason, "reply broken off"));
        self.why_broken.set(reason.into());
    }

    /// Runs something within the present try's span.
    pub fn within_span(&self, work: impl FnOnce()) {
        self.span.borrow().in_scope(work);
    }

    /// Tells the request's story of a failed try.
    pub fn tell_failure(&self, failure: &Failure) {
        self.note_end(self.now(), TryEnd::Failed(failure.class, failure.unquoted().into()), None);
    }

    /// Reports a failed try to the backend's circuits and averages.
    /// A failure by a limit of the caller's own speaks against nobody.
    pub fn report(&self, failure: &Failure, sent: bool) {
        let now = self.now();
        self.tell_failure(failure);
        let is_callers = matches!(failure.class, FailureClass::Timeout(_)) && Instant::now() >= self.call.deadline;
        if !is_callers && !failure.is_excused {
            let how = if sent { Fell::Unanswered } else { Fell::Unsent };
            self.flights.vitals.failed(self.slot, failure, how, self.try_started.get(), now);
        }
    }

    /// Counts a try that failed and is followed by another one here.
    pub fn note_failed_try(&self, class: FailureClass) {
        if otlp::traces() {
            tracing::record_all!(self.span.borrow(), outcome = "failed", class = class.word());
        }
        self.failed_tries.borrow_mut().push(class);
    }

    /// How the flight ended, if it has.
    pub fn ending(&self) -> Option<(End, Usage)> {
        self.settled.get()
    }

    /// Keeps what the provider wants back with its tool calls.
    pub fn keep(&self, keepsakes: &[Keepsake]) {
        if !keepsakes.is_empty() {
            self.flights.memory.keep(keepsakes, Instant::now());
        }
    }

    /// Notes the first content, and whether earlier tries of the request had failed.
    pub fn note_first_content(&self) {
        let now = self.now();
        self.end_wait();
        self.first_content.set(Some(now));
        self.absorbed.set(self.call.trail.first_content(self.told.get(), self.call.age(now)));
        let vitals = &self.flights.vitals;
        if self.is_proof.get() {
            vitals.recovered(self.slot, self.try_started.get(), now);
        }
        if let Some(sample) = self.sample(now, 0).filter(|sample| sample.stream) {
            vitals.pulse(self.slot).answered(&sample, now);
        }
    }

    fn now(&self) -> Moment {
        self.flights.vitals.clock.now()
    }

    /// It is no longer without an answer.
    fn end_wait(&self) {
        if self.load.is_some() && self.first_content.get().is_none() {
            self.flights.vitals.pulse(self.slot).end(self.stream, self.started);
        }
    }

    /// What its time says about the model.
    fn sample(&self, now: Moment, tokens: u64) -> Option<Sample> {
        let first = self.first_content.get()?;
        Some(Sample {
            stream: self.stream,
            took: first.since(self.try_started.get()),
            rest: self.stream.then(|| now.since(first)),
            tokens,
            load: self.load?,
        })
    }

    /// Tells the backend's circuits and averages how it ended. Failed tries were reported one by one.
    fn conclude(&self, end: End, usage: Option<Usage>, now: Moment) {
        let vitals = &self.flights.vitals;
        let told = match end {
            End::Served => TryEnd::Served,
            End::Failed(class) => TryEnd::Failed(class, "".into()),
            End::Cancelled => TryEnd::Cancelled,
            End::Truncated(class) => TryEnd::Truncated(class, self.why_broken.take()),
            End::Cut => TryEnd::Cut,
        };
        self.note_end(now, told, usage);
        if let Some(probe) = self.probe.take() {
            vitals.health.release(self.slot, probe);
        }
        match end {
            End::Served => {
                if self.is_proof.get() {
                    vitals.completed(self.slot, self.try_started.get(), now);
                    vitals.health.succeeded(self.slot, now);
                }
                let tokens = usage.filter(|usage| !usage.estimated).map_or(0, |usage| usage.completion_tokens);
                match self.sample(now, tokens) {
                    Some(sample) if sample.stream => vitals.pulse(self.slot).finished(&sample, now),
                    Some(sample) => vitals.pulse(self.slot).answered(&sample, now),
                    None => {}
                }
            }
            End::Truncated(class) => {
                vitals.failed(self.slot, &Failure::new(class, ""), Fell::AfterContent, self.try_started.get(), now);
            }
            End::Cancelled if self.first_content.get().is_none() => {
                // Where the first member was quicker, nobody has waited for this one.
                if !self.is_hedge {
                    vitals.health.note_given_up();
                }
                if self.load.is_some() {
                    vitals.pulse(self.slot).given_up(self.stream, now.since(self.try_started.get()), now);
                }
            }
            End::Failed(_) | End::Cancelled | End::Cut => {}
        }
    }

    /// Whether this attempt decides about a circuit.
    pub fn is_probe(&self) -> bool {
        self.probe.get().is_some_and(|probe| probe != Probe::default())
    }

    /// The reply that is passed through has a status that speaks neither for nor against the backend, or against it.
    pub fn note_refusal(&self, failure: Option<&Failure>) {
        self.is_proof.set(false);
        if let Some(failure) = failure {
            self.flights.vitals.failed(self.slot, failure, Fell::Unanswered, self.try_started.get(), self.now());
        }
    }

    /// Ready once the gateway itself ends this flight.
    pub fn poll_cut(&self, cx: &std::task::Context<'_>) -> Poll<Cut> {
        match self.cut.get() {
            Some(cut) => Poll::Ready(cut),
            None => {
                self.register(cx);
                Poll::Pending
            }
        }
    }

    /// Why the gateway ended this flight, if it did.
    pub fn cut(&self) -> Option<Cut> {
        self.cut.get()
    }

    /// Remembers whom to wake.
    pub fn register(&self, cx: &std::task::Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Wakes whoever holds it.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether somebody else takes the request over that the gateway has ended here.
    pub fn is_moving(&self) -> bool {
        self.is_moving.get()
    }

    /// Ends here, and goes to somebody else.
    pub fn move_on(&self) {
        self.settle(End::Cut, None);
        self.flights.moved.set(self.flights.moved.get() + 1);
    }

    /// Drops the upstream half, settles and wakes whoever holds the other half. At a drain deadline a request without any
    /// content goes to somebody else, if it may be asked again.
    pub(super) fn end_by(&self, cut: Cut) {
        self.cut.set(Some(cut));
        let is_waiting = self.upstream.borrow().is_none();
        self.is_moving.set(cut == Cut::Drain && is_waiting && !self.call.is_gone(self.call.touched.load(Ordering::Relaxed)));
        if let End::Truncated(class) = cut.end() {
            self.note_broken(class, cut.words());
        }
        let upstream = self.upstream.borrow_mut().take();
        if let Some(upstream) = upstream {
            self.settle(cut.end(), Some(upstream.usage_or_estimate()));
        }
        self.wake();
    }

    /// Tells the provider about a panic in a task or body.
    pub fn crashed(&self, reason: String) {
        self.flights.tower.crashed(reason);
    }

    /// Settles the outcome, once: later calls do nothing.
    pub fn settle(&self, end: End, usage: Option<Usage>) {
        if self.settled.get().is_some() {
            return;
        }
        let usage = usage.filter(Usage::is_plausible);
        self.settled.set(Some((end, usage.unwrap_or_default())));
        let now = self.now();
        self.end_wait();
        self.conclude(end, usage, now);
        drop(self.permit.take());
        self.flights.leave(self, end);
        let first_content = self.first_content.get().map(|at| at.since(self.try_started.get()));
        if otlp::traces() {
            self.trace(end, usage, first_content);
        }
        self.flights.tower.settled(
            self.pool,
            Settled {
                member: self.member,
                stream: self.stream,
                end,
                first_content,
                duration: now.since(self.started),
                usage,
                absorbed: self.absorbed.get(),
                moved: end == End::Cut && self.is_moving.get(),
                failed_tries: std::mem::take(&mut *self.failed_tries.borrow_mut()),
            },
        );
        if self.flights.has_queue.get() {
            self.flights.tower.permit_returned();
        }
    }
}

impl Flight {
    /// Puts the outcome on the span of the last try, which only traces show: no line is written in it any more.
    fn trace(&self, end: End, usage: Option<Usage>, first_content: Option<Duration>) {
        let class = match end {
            End::Failed(class) | End::Truncated(class) => Some(class.word()),
            End::Served | End::Cancelled | End::Cut => None,
        };
        tracing::record_all!(
            self.span.borrow(),
            outcome = end.outcome().word(),
            class = class,
            first_content_seconds = first_content.map(|after| after.as_secs_f64()),
            "gen_ai.usage.input_tokens" = usage.map(|usage| usage.prompt_tokens),
            "gen_ai.usage.output_tokens" = usage.map(|usage| usage.completion_tokens),
            absorbed = self.absorbed.get(),
            usage_estimated = usage.is_some_and(|usage| usage.estimated),
            "gen_ai.operation.name" = self.call.endpoint.word(),
            "gen_ai.request.stream" = self.stream,
        );
    }

    /// Puts the status of the reply on the present try's span.
    pub fn trace_status(&self, status: u16) {
        self.span.borrow().record("status", status);
    }

    /// Puts a failure on the present try's span, also where it is followed by another try and counts for nothing.
    pub fn trace_failure(&self, failure: &Failure) {
        tracing::record_all!(
            self.span.borrow(),
            outcome = "failed",
            class = failure.class.word(),
            status = failure.status,
            "gen_ai.operation.name" = self.call.endpoint.word(),
            "gen_ai.request.stream" = self.stream,
        );
    }
}

/// Settles its flight as cancelled unless it was settled before.
pub struct FlightGuard(Rc<Flight>);

impl FlightGuard {
    pub(super) fn new(flight: Rc<Flight>) -> Self {
        Self(flight)
    }

    /// Its reply is passed on from here.
    pub fn go_live(&self, upstream: Upstream) {
        *self.0.upstream.borrow_mut() = Some(upstream);
        self.0.flights.note_live(&self.0);
    }

    /// A second handle, for whoever watches the flight.
    pub fn watch(&self) -> Rc<Flight> {
        Rc::clone(&self.0)
    }
}

impl std::ops::Deref for FlightGuard {
    type Target = Flight;

    fn deref(&self) -> &Flight {
        &self.0
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        let upstream = self.0.upstream.borrow_mut().take();
        let usage = upstream.as_ref().map(Upstream::usage_or_estimate);
        self.0.settle(End::Cancelled, usage);
        // Dropping the upstream half closes its connection: the provider stops generating.
        drop(upstream);
    }
}
