//! Provider: owns one backend's client on one worker; admits jobs, starts attempts, enforces limits, retires.
//!
//! Work runs in spawned tasks that the flight table counts; handlers decide and return.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use actix::WeakAddr;
use actix::prelude::*;
use futures_util::FutureExt as _;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::pool::crash_failure;
use super::slots::{JobQueue, Slots, Up};
use super::view::View;
use super::{Bounce, Bounced, Crashed, Down, Job, JobParts, Outcome, PermitReturned, Retire, RetireReport};
use crate::attempt::{
    Cut, End, Fetcher, FlightGuard, FlightPlan, Flights, HttpClient, KEEP_ALIVE, Minter, Settled, Station, Tower, Transport,
    Verdict, panic_message, warm_up, work,
};
use crate::balance::{Permit, Probe, any_reachable};
use crate::chat::Usage;
use crate::dialect::Dialect;
use crate::error::GatewayError;
use crate::settings::Backend;
use crate::simulate::Simulator;

/// How often limits of live bodies are enforced.
const TICK: Duration = Duration::from_millis(100);
/// How often a queue looks for permits that other workers returned.
const QUEUE_TICK: Duration = Duration::from_millis(5);
/// How often a retired generation looks whether it is empty.
const RETIRE_TICK: Duration = Duration::from_millis(10);

/// One incarnation of a backend's provider on one worker.
pub struct Provider {
    station: Rc<Station>,
    slots: Rc<Slots>,
    generation: u32,
    flights: Rc<Flights>,
    queue: JobQueue,
    is_ticking: bool,
    is_pumping: bool,
    retired: Option<Retirement>,
}

struct Retirement {
    since: Instant,
    cut_at: Instant,
    in_flight: usize,
    completed_before: u64,
    failed_before: u64,
    cut_before: u64,
    moved: u64,
    moved_before: u64,
    report: Option<oneshot::Sender<RetireReport>>,
}

/// Sends what a flight reports to the actors concerned.
struct Messenger {
    slots: Rc<Slots>,
    provider: WeakAddr<Provider>,
}

impl Tower for Messenger {
    fn settled(&self, pool: u16, settled: Settled) {
        if let Some(pool) = self.slots.pool(usize::from(pool)) {
            pool.do_send(Outcome(settled));
        }
    }

    fn permit_returned(&self) {
        if let Some(provider) = self.provider.upgrade() {
            provider.do_send(PermitReturned);
        }
    }

    fn crashed(&self, reason: String) {
        if let Some(provider) = self.provider.upgrade() {
            provider.do_send(Crashed(reason));
        }
    }
}

impl Provider {
    /// Starts an incarnation on the present worker; `warm` opens a connection ahead of the first job.
    pub fn start_on(slots: &Rc<Slots>, index: usize, generation: u32, warm: bool) -> Up {
        let shared = &slots.shared.backends[index];
        let backend = Arc::clone(&slots.shared.settings.backends[index]);
        let codec = Dialect::codec(&backend);
        let transport = match &backend.simulated {
            Some(simulated) => Transport::Simulated(Simulator::new(simulated.clone(), Arc::clone(&shared.simulated))),
            None => {
                let headers = codec.headers(&backend);
                Transport::Http(Box::new(HttpClient::new(&backend, &shared.tls, headers, &shared.connections)))
            }
        };
        let budget = Rc::clone(&slots.providers[index].budget);
        let memory = Arc::clone(&shared.memory);
        let minter = Minter::of(&backend, &shared.tls);
        let held_limit = slots.shared.settings.server.max_body_in_flight;
        let fetcher = Fetcher::of(&backend, &shared.tls, &slots.shared.body_bytes, held_limit);
        let headroom = Arc::clone(&shared.headroom);
        let station =
            Rc::new(Station { backend, codec, transport, minter, fetcher, budget, memory: Arc::clone(&memory), headroom });
        if warm && matches!(station.transport, Transport::Http(_)) {
            actix_rt::spawn(warm_up(Rc::clone(&station)));
        }
        let queue = JobQueue::default();
        let mut flights = None;
        let addr = Self::create(|ctx| {
            let messenger = Messenger { slots: Rc::clone(slots), provider: ctx.address().downgrade() };
            let table =
                Flights::new(Box::new(messenger), memory, slots.shared.vitals(index), Rc::clone(&slots.providers[index].gaps));
            flights = Some(Rc::clone(&table));
            Self {
                station,
                slots: Rc::clone(slots),
                generation,
                flights: table,
                queue: Rc::clone(&queue),
                is_ticking: false,
                is_pumping: false,
                retired: None,
            }
        });
        let flights = flights.expect("set while the actor was created");
        Up { addr, generation, since: Instant::now(), flights, queue }
    }

    fn bounce(&self, job: Job, why: Bounced) {
        if let Some(pool) = self.slots.pool(usize::from(job.0.pool)) {
            pool.do_send(Bounce { job, why });
        }
    }

    /// Admits a job, lets it wait, or gives it back. The job is taken out of its cell once it is in other hands.
    fn admit(&mut self, cell: &mut Option<Job>, ctx: &mut Context<Self>) {
        let shared = &self.slots.shared.backends[self.station.backend.index];
        let is_insistent = cell.as_ref().is_some_and(|job| job.0.call.insistent);
        if self.retired.is_some() || (shared.drained.load(Ordering::Relaxed) && !is_insistent) {
            if let Some(job) = cell.take() {
                self.bounce(job, Bounced::Moved);
            }
            return;
        }
        self.station.transport.on_admit();
        let permits = &shared.permits;
        // Those who wait already come first.
        let permit = if self.queue.borrow().is_empty() { permits.try_take() } else { None };
        let Some(job) = cell.take() else { return };
        match permit {
            Some(permit) => self.launch(job, permit, ctx),
            None if job.0.ledger.may_queue && self.queue.borrow().len() < self.station.backend.max_queue => {
                let mut job = job;
                job.0.ledger.queued_at.get_or_insert_with(Instant::now);
                self.queue.borrow_mut().push_back(job);
                self.note_queue();
                self.pump_later(ctx);
            }
            None => self.bounce(job, Bounced::Saturated),
        }
    }

    fn launch(&mut self, mut job: Job, permit: Permit, ctx: &mut Context<Self>) {
        // Its wait is over; another one, elsewhere, begins anew.
        job.0.ledger.queued_at = None;
        let parts = &job.0;
        let backend = &self.station.backend;
        let now = parts.now;
        let health = &self.slots.shared.backends[backend.index].health;
        let probe = match health.admit(parts.slot, now, lease(backend), parts.last_resort) {
            Ok(probe) => probe,
            Err(_) if parts.call.insistent => Probe::default(),
            Err(_) => return self.bounce(job, Bounced::Shut),
        };
        let may_go_live = parts.call.is_stream() || parts.call.passthrough.is_some();
        let flight = self.flights.enter(FlightPlan {
            call: Arc::clone(&parts.call),
            backend: Arc::clone(&self.station.backend),
            minter: self.station.minter.clone(),
            pool: parts.pool,
            member: parts.member,
            slot: parts.slot,
            probe,
            is_hedge: parts.is_hedge,
            permit,
        });
        // The runtime moves a task about several times until it has its place, and again when it is done.
        actix_rt::spawn(Box::pin(carry(Rc::clone(&self.station), Rc::clone(&self.slots), job, flight)));
        if may_go_live {
            self.tick_later(ctx);
        }
    }

    /// One timer for all live bodies. It begins with the first request whose reply may be passed on, and rests once no request
    /// is in flight.
    fn tick_later(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.is_ticking, true) {
            return;
        }
        ctx.run_later(TICK, |provider, ctx| {
            provider.is_ticking = false;
            provider.guard(ctx, |provider, _| provider.flights.enforce(Instant::now()));
            if !provider.flights.is_empty() {
                provider.tick_later(ctx);
            }
        });
    }

    fn note_queue(&self) {
        self.flights.has_queue.set(!self.queue.borrow().is_empty());
    }

    fn pump_later(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.is_pumping, true) {
            return;
        }
        ctx.run_later(QUEUE_TICK, |provider, ctx| {
            provider.is_pumping = false;
            provider.guard(ctx, Self::pump);
        });
    }

    /// Starts waiting jobs while there are permits; drops those whose callers left or whose deadline passed.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let limit = self.station.backend.queue_timeout;
        let is_late = |job: &Job| job.0.ledger.queued_at.is_some_and(|at| now.duration_since(at) >= limit);
        let is_waiting = |job: &Job| !job.0.reply.is_closed() && now < job.0.call.deadline && !is_late(job);
        let waiting = std::mem::take(&mut *self.queue.borrow_mut());
        let (mut waiting, gone): (VecDeque<Job>, VecDeque<Job>) = waiting.into_iter().partition(is_waiting);
        for job in gone {
            let backend = Arc::clone(&self.station.backend.name);
            let error = if now < job.0.call.deadline {
                GatewayError::Saturated { backend, waited: true }
            } else {
                GatewayError::Deadline
            };
            self.slots.refuse(job, |worst| worst.map_or(error, GatewayError::Upstream));
        }
        let permits = Arc::clone(&self.slots.shared.backends[self.station.backend.index].permits);
        while !waiting.is_empty()
            && let Some(permit) = permits.try_take()
            && let Some(mut job) = waiting.pop_front()
        {
            job.0.now = self.slots.shared.clock.at(now);
            self.launch(job, permit, ctx);
        }
        *self.queue.borrow_mut() = self.send_elsewhere(waiting);
        self.note_queue();
        if self.flights.has_queue.get() {
            self.pump_later(ctx);
        }
    }

    /// Gives jobs back that another member of their pool has room for by now; the others go on waiting.
    fn send_elsewhere(&self, waiting: VecDeque<Job>) -> VecDeque<Job> {
        let settings = &self.slots.shared.settings;
        // By pool, so that no more are given back than there is room.
        let mut room: SmallVec<[(u16, u64); 1]> = SmallVec::new();
        let (leaving, staying): (VecDeque<Job>, VecDeque<Job>) = waiting.into_iter().partition(|Job(parts)| {
            let plan = &settings.pools[usize::from(parts.pool)];
            let known = room.iter().position(|(pool, _)| *pool == parts.pool).unwrap_or_else(|| {
                let free = |index: &usize| u64::from(self.slots.shared.backends[*index].permits.free());
                room.push((parts.pool, plan.members.iter().map(free).sum()));
                room.len() - 1
            });
            let view = View::new(&self.slots, plan, parts);
            let is_leaving = room[known].1 > 0 && any_reachable(&plan.tree, &view, |leaf| view.has_room(leaf));
            room[known].1 -= u64::from(is_leaving);
            is_leaving
        });
        for job in leaving {
            self.bounce(job, Bounced::Elsewhere);
        }
        staying
    }

    /// Takes no more jobs; what waits goes to the next generation, what flies may finish.
    fn retire(&mut self, deadline: Duration, report: Option<oneshot::Sender<RetireReport>>, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut *self.queue.borrow_mut());
        self.note_queue();
        let moved = waiting.len() as u64;
        for job in waiting {
            self.bounce(job, Bounced::Moved);
        }
        if let Some(retirement) = &mut self.retired {
            // It crashed while an operator restarted it, who waits for the report.
            retirement.cut_at = retirement.cut_at.min(now + deadline);
            retirement.moved += moved;
            retirement.report = report.or_else(|| retirement.report.take());
            return;
        }
        self.retired = Some(Retirement {
            since: now,
            cut_at: now + deadline,
            in_flight: self.flights.len(),
            completed_before: self.flights.completed.get(),
            failed_before: self.flights.failed.get(),
            cut_before: self.flights.cut.get(),
            moved,
            moved_before: self.flights.moved.get(),
            report,
        });
        // Not at once: the jobs that are in the mailbox already must be given back first.
        ctx.run_later(RETIRE_TICK, Self::leave_when_empty);
    }

    fn leave_when_empty(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let Some(retirement) = &mut self.retired else {
            return;
        };
        if now >= retirement.cut_at {
            self.flights.cut_all(Cut::Drain, None);
        }
        if !self.flights.is_empty() {
            ctx.run_later(RETIRE_TICK, Self::leave_when_empty);
            return;
        }
        if let Some(report) = retirement.report.take() {
            let handed_on = self.flights.moved.get() - retirement.moved_before;
            // The director may have stopped waiting.
            let _ = report.send(RetireReport {
                worker: self.slots.worker,
                in_flight_at_start: retirement.in_flight,
                completed: self.flights.completed.get() - retirement.completed_before,
                failed: self.flights.failed.get() - retirement.failed_before,
                moved: retirement.moved + handed_on,
                cut: (self.flights.cut.get() - retirement.cut_before).saturating_sub(handed_on),
                duration_seconds: now.duration_since(retirement.since).as_secs_f64(),
            });
        }
        self.slots.providers[self.station.backend.index]
            .retiring
            .borrow_mut()
            .retain(|flights| !Rc::ptr_eq(flights, &self.flights));
        ctx.stop();
    }

    fn go_down(&self, reason: String) {
        let backend = self.station.backend.index;
        self.slots.take_down(backend, self.generation);
        self.slots.tell_shard(Down { backend, generation: self.generation, reason });
    }

    /// Runs what this actor has to do; after a panic in it the next generation starts, and this one finishes what flies.
    fn guard(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Self, &mut Context<Self>)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self, ctx))) {
            self.crash(panic_message(&*panic), ctx);
        }
    }

    fn crash(&mut self, reason: String, ctx: &mut Context<Self>) {
        if self.retired.is_none() {
            tracing::error!(backend = %self.station.backend.name, generation = self.generation, reason, "provider crashed");
            self.go_down(reason);
            self.retire(self.station.backend.drain_timeout, None, ctx);
        }
    }
}

impl Actor for Provider {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(KEEP_ALIVE, |provider, ctx| {
            provider.guard(ctx, |provider, _| provider.station.transport.close_idle());
        });
    }
}

impl Drop for Provider {
    /// Reports a panic that slipped through, such as one in a timer.
    fn drop(&mut self) {
        if std::thread::panicking() && self.retired.is_none() {
            let reason = "the actor ended by a panic outside its handlers".to_owned();
            self.go_down(reason);
        }
    }
}

impl Handler<Job> for Provider {
    type Result = ();

    fn handle(&mut self, job: Job, ctx: &mut Context<Self>) {
        let mut cell = Some(job);
        self.guard(ctx, |provider, ctx| provider.admit(&mut cell, ctx));
        // After a panic, and nothing was sent: the next generation may take it.
        if let Some(job) = cell {
            self.bounce(job, Bounced::Moved);
        }
    }
}

impl Handler<PermitReturned> for Provider {
    type Result = ();

    fn handle(&mut self, _: PermitReturned, ctx: &mut Context<Self>) {
        self.guard(ctx, Self::pump);
    }
}

impl Handler<Crashed> for Provider {
    type Result = ();

    fn handle(&mut self, Crashed(reason): Crashed, ctx: &mut Context<Self>) {
        self.crash(reason, ctx);
    }
}

impl Handler<Retire> for Provider {
    type Result = ();

    fn handle(&mut self, message: Retire, ctx: &mut Context<Self>) {
        self.guard(ctx, |provider, ctx| provider.retire(message.deadline, message.report, ctx));
    }
}

/// How long a probe may keep others from probing: as long as it may wait for its first content.
fn lease(backend: &Backend) -> Duration {
    backend.timeouts.first_content.max(backend.timeouts.attempt) + backend.timeouts.connect
}

enum Landing {
    Done(Verdict),
    Panicked(String),
    CallerLeft,
    CutBy(Cut),
}

/// Carries one job from admission to its answer or back to its pool.
async fn carry(station: Rc<Station>, slots: Rc<Slots>, mut job: Job, flight: FlightGuard) {
    let watched = flight.watch();
    let mut flight = Some(flight);
    let landing = {
        let JobParts { call, ledger, reply, only, slot, .. } = &mut *job.0;
        // The pool has found the model: where it is a listed one, its slot says which.
        let model = slots.shared.backends[station.backend.index].health.model(*slot);
        let asked = || station.backend.native_model(call.requested_model(), *only || call.passthrough.is_some());
        let work = work(&station, call, model.or_else(asked).unwrap_or_default(), ledger, &mut flight);
        let mut work = std::pin::pin!(AssertUnwindSafe(work).catch_unwind());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(match done {
                    Ok(verdict) => Landing::Done(verdict),
                    Err(panic) => Landing::Panicked(panic_message(&*panic)),
                });
            }
            if reply.poll_closed(cx).is_ready() {
                return Poll::Ready(Landing::CallerLeft);
            }
            watched.poll_cut(cx).map(Landing::CutBy)
        })
        .await
    };
    let failure = match landing {
        Landing::Done(Verdict::Answer(answer)) => {
            // A caller that left in this instant drops the answer, and with it the flight.
            let _ = job.0.reply.send(Ok(answer));
            return;
        }
        Landing::CallerLeft => {
            // What was sent may have cost tokens already.
            let sent = job.0.call.touched.load(Ordering::Relaxed);
            watched.settle(End::Cancelled, sent.then(|| Usage::estimate(job.0.call.body.len(), 0)));
            return;
        }
        Landing::CutBy(cut) => {
            match slots.pool(usize::from(job.0.pool)) {
                Some(pool) if watched.is_moving() => {
                    watched.move_on();
                    pool.do_send(Bounce { job, why: Bounced::Drained });
                }
                Some(_) | None => {
                    watched.settle(End::Cut, None);
                    let _ = job.0.reply.send(Err(cut.error()));
                }
            }
            return;
        }
        Landing::Done(Verdict::Failed(failure)) => failure,
        Landing::Panicked(reason) => {
            watched.crashed(reason);
            crash_failure(&station.backend)
        }
    };
    watched.settle(End::Failed(failure.class), None);
    if let Some(pool) = slots.pool(usize::from(job.0.pool)) {
        pool.do_send(Bounce { job, why: Bounced::Failed(failure) });
    }
}
