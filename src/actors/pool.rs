//! Pool: takes requests, ranks members, falls back, parks, and keeps the members' latency and error statistics.
//!
//! It never does IO. A job is tail-forwarded: the provider answers the front end directly, and only failures come back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::dev::{MessageResponse, OneshotSender};
use actix::prelude::*;
use tokio::time::Instant;

use super::slots::{SlotState, Slots};
use super::{Bounce, Bounced, Dispatch, Job, JobParts, Outcome, PoolDown, ProviderUp};
use crate::attempt::{Call, End, Ledger, Reply, Settled, panic_message};
use crate::balance::pick;
use crate::chat::{Failure, FailureClass};
use crate::dialect::Dialect;
use crate::error::GatewayError;
use crate::settings;

/// How often parked jobs are looked at for callers that left or waited too long.
const PARKING_TICK: Duration = Duration::from_millis(20);
/// How often a job may meet a generation that was just replaced.
const MOVES: u32 = 32;

/// The actor: a shell around the pool's core.
pub struct Pool {
    core: Rc<Core>,
}

/// What the pool is, reachable from its handlers and from the response that holds the caller's sender.
struct Core {
    plan: Arc<settings::Pool>,
    slots: Rc<Slots>,
    is_broken: Cell<bool>,
    is_watching: Cell<bool>,
}

impl Pool {
    /// Starts the pool with this index on the present worker.
    pub fn start_on(slots: &Rc<Slots>, index: usize) -> Addr<Self> {
        let core = Core {
            plan: Arc::clone(&slots.shared.settings.pools[index]),
            slots: Rc::clone(slots),
            is_broken: Cell::new(false),
            is_watching: Cell::new(false),
        };
        Self { core: Rc::new(core) }.start()
    }
}

impl Actor for Pool {
    type Context = Context<Self>;
}

/// Hands the caller's reply sender on with the job.
pub struct TailForward {
    core: Rc<Core>,
    call: Arc<Call>,
}

impl Handler<Dispatch> for Pool {
    type Result = TailForward;

    fn handle(&mut self, message: Dispatch, _: &mut Context<Self>) -> TailForward {
        TailForward { core: Rc::clone(&self.core), call: message.0 }
    }
}

impl MessageResponse<Pool, Dispatch> for TailForward {
    fn handle(self, ctx: &mut Context<Pool>, reply: Option<OneshotSender<Reply>>) {
        let Some(reply) = reply else { return };
        let plan = &self.core.plan;
        self.core.slots.pools[plan.index].stats.borrow_mut().requests += 1;
        let ledger = Ledger { max_attempts: plan.max_attempts, ..Ledger::default() };
        let index = u16::try_from(plan.index).unwrap_or(u16::MAX);
        let parts = JobParts { call: self.call, ledger, reply, pool: index, member: 0, only: plan.members.len() == 1 };
        self.core.guard(ctx, || self.core.place(Job(Box::new(parts))));
    }
}

impl Handler<Bounce> for Pool {
    type Result = ();

    fn handle(&mut self, bounce: Bounce, ctx: &mut Context<Self>) {
        let core = Rc::clone(&self.core);
        core.guard(ctx, || core.take_back(bounce));
    }
}

impl Handler<Outcome> for Pool {
    type Result = ();

    fn handle(&mut self, Outcome(settled): Outcome, ctx: &mut Context<Self>) {
        let core = Rc::clone(&self.core);
        core.guard(ctx, || core.count_outcome(&settled));
    }
}

impl Handler<ProviderUp> for Pool {
    type Result = ();

    fn handle(&mut self, _: ProviderUp, ctx: &mut Context<Self>) {
        let waiting = std::mem::take(&mut *self.core.parked().borrow_mut());
        let core = Rc::clone(&self.core);
        core.guard(ctx, || waiting.into_iter().for_each(|job| core.place(job)));
    }
}

impl Core {
    /// Runs a handler's work; after a panic in it the shard puts the next pool in this one's place, which serves only what
    /// is in its mailbox already. Statistics and parked jobs pass on.
    fn guard(self: &Rc<Self>, ctx: &mut Context<Pool>, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let reason = panic_message(&*panic);
            tracing::error!(pool = %self.plan.name, reason, "pool crashed");
            if !self.is_broken.replace(true) {
                self.slots.tell_shard(PoolDown { pool: self.plan.index, reason });
            }
        }
        self.watch_parked(ctx);
    }

    fn parked(&self) -> &RefCell<VecDeque<Job>> {
        &self.slots.pools[self.plan.index].parked
    }

    /// Looks at the parked jobs again while there are any.
    fn watch_parked(self: &Rc<Self>, ctx: &mut Context<Pool>) {
        if !self.is_broken.get() && !self.parked().borrow().is_empty() && !self.is_watching.replace(true) {
            let core = Rc::clone(self);
            ctx.run_later(PARKING_TICK, move |_, ctx| {
                core.is_watching.set(false);
                core.guard(ctx, || core.sweep());
            });
        }
    }

    fn count_outcome(&self, settled: &Settled) {
        let mut stats = self.slots.pools[self.plan.index].stats.borrow_mut();
        stats.absorbed += u64::from(settled.absorbed && settled.end == End::Served);
        let Some(member) = stats.members.get_mut(usize::from(settled.member)) else { return };
        member.attempts += 1;
        for class in &settled.failed_tries {
            member.retried += 1;
            member.fail(*class);
        }
        match settled.end {
            End::Served => member.served += 1,
            End::Cancelled => member.cancelled += 1,
            End::Cut => member.cut += 1,
            End::Failed(class) => member.fail(class),
            End::Truncated(class) => {
                member.truncated += 1;
                member.fail(class);
            }
        }
        if let Some(after) = settled.first_content {
            member.answered(after);
        }
        member.duration.add(settled.duration);
        if let Some(usage) = settled.usage {
            member.prompt_tokens = member.prompt_tokens.saturating_add(usage.prompt_tokens);
            member.completion_tokens = member.completion_tokens.saturating_add(usage.completion_tokens);
        }
    }

    /// Sends a job to the best member, or parks it, or answers it.
    fn place(&self, mut job: Job) {
        let parts = &mut job.0;
        if parts.reply.is_closed() {
            return;
        }
        if Instant::now() >= parts.call.deadline {
            return self.refuse(job, GatewayError::Deadline);
        }
        if parts.call.passthrough.is_some() && self.plan.members.len() > 1 {
            return self.refuse(job, GatewayError::PassthroughPool { pool: Arc::clone(&self.plan.name) });
        }
        if let Some(member) = self.choose(&parts.call, &parts.ledger) {
            return self.send(job, member);
        }
        // Everybody else has failed, is full or starting: wait for a permit where one will be free.
        if let Some(member) = parts.ledger.saturated.first().copied().filter(|_| !parts.ledger.may_queue) {
            parts.ledger.may_queue = true;
            return self.send(job, usize::from(member));
        }
        if self.may_still_start(&parts.call, &parts.ledger) {
            return self.park(job);
        }
        let error = self.last_word(&parts.call, &mut parts.ledger);
        self.refuse(job, error);
    }

    fn choose(&self, call: &Call, ledger: &Ledger) -> Option<usize> {
        let place = |member: usize| u16::try_from(member).unwrap_or(u16::MAX);
        let eligible = |member: usize| {
            !ledger.saturated.contains(&place(member))
                && matches!(*self.slots.providers[self.plan.members[member]].state.borrow(), SlotState::Up(_))
                && self.can_serve(member, call)
        };
        pick(&self.plan.tree, &eligible, &|member| ledger.tried.contains(&place(member)), fastrand::f64())
    }

    fn can_serve(&self, member: usize, call: &Call) -> bool {
        let backend = &self.slots.shared.settings.backends[self.plan.members[member]];
        if call.passthrough.is_some() {
            return Dialect::of(backend).passes_bytes();
        }
        backend.native_model(call.requested_model(), self.plan.members.len() == 1).is_some()
    }

    /// Whether a member that could serve is starting or backing off.
    fn may_still_start(&self, call: &Call, ledger: &Ledger) -> bool {
        let starting = |member: &usize| {
            matches!(*self.slots.providers[self.plan.members[*member]].state.borrow(), SlotState::Down { failed: false, .. })
                && self.can_serve(*member, call)
        };
        let allowed = |member: usize| starting(&member);
        let tried = |member: usize| ledger.tried.iter().any(|place| usize::from(*place) == member);
        pick(&self.plan.tree, &allowed, &tried, 0.5).is_some()
    }

    fn send(&self, mut job: Job, member: usize) {
        job.0.member = u16::try_from(member).unwrap_or(u16::MAX);
        job.0.ledger.may_queue |= job.0.only;
        let slot = &self.slots.providers[self.plan.members[member]];
        let addr = match &*slot.state.borrow() {
            SlotState::Up(up) => up.addr.clone(),
            SlotState::Down { .. } => {
                let pool = Arc::clone(&self.plan.name);
                return self.refuse(job, GatewayError::NoBackend { pool, reason: "its backend is starting".into() });
            }
        };
        addr.do_send(job);
    }

    fn take_back(&self, Bounce { mut job, why }: Bounce) {
        let parts = &mut job.0;
        let member = parts.member;
        match why {
            Bounced::Moved => {
                parts.ledger.moves += 1;
                // Where it waited it waits no longer: every member is asked again.
                parts.ledger.saturated.clear();
                parts.ledger.may_queue = false;
                if parts.ledger.moves > MOVES {
                    return self.refuse(job, GatewayError::Internal);
                }
            }
            Bounced::Saturated => {
                self.count(member, |stats| stats.bounced += 1);
                if parts.ledger.may_queue {
                    let backend = self.slots.shared.settings.backends[self.plan.members[usize::from(member)]].name.clone();
                    let error = parts.ledger.worst.take().map_or(GatewayError::Saturated { backend }, GatewayError::Upstream);
                    return self.refuse(job, error);
                }
                parts.ledger.saturated.push(member);
            }
            Bounced::Failed(failure) => {
                let verdict = failure.class.verdict();
                // A member that cannot carry the request was asked nothing, so passing it over costs nothing.
                let is_passed_over = failure.class == FailureClass::Unsupported;
                let is_first = parts.ledger.tried.len() == usize::from(parts.ledger.passed_over);
                parts.ledger.passed_over += u16::from(is_passed_over);
                parts.ledger.tried.push(member);
                parts.ledger.note(failure);
                let may_go_on = verdict.next_member
                    && parts.ledger.attempts < parts.ledger.max_attempts
                    && (is_passed_over || is_first || self.spend_retry(member));
                if !may_go_on {
                    let error = self.last_word(&parts.call, &mut parts.ledger);
                    return self.refuse(job, error);
                }
            }
        }
        self.place(job);
    }

    /// Takes a token of the failed member's retry budget; the first fallback of a request is free.
    fn spend_retry(&self, member: u16) -> bool {
        let slot = &self.slots.providers[self.plan.members[usize::from(member)]];
        slot.budget.borrow_mut().spend(Instant::now().into_std())
    }

    fn count(&self, member: u16, change: impl FnOnce(&mut crate::balance::MemberStats)) {
        if let Some(stats) = self.slots.pools[self.plan.index].stats.borrow_mut().members.get_mut(usize::from(member)) {
            change(stats);
        }
    }

    /// The most telling error of a request that nobody serves.
    fn last_word(&self, call: &Call, ledger: &mut Ledger) -> GatewayError {
        if let Some(mut worst) = ledger.worst.take() {
            worst.attempts = ledger.attempts;
            return GatewayError::Upstream(worst);
        }
        let backends = &self.slots.shared.settings.backends;
        let mut members = self.plan.members.iter().map(|index| &backends[*index]);
        if call.passthrough.is_some()
            && let Some(backend) = members.find(|backend| !Dialect::of(backend).passes_bytes())
        {
            return GatewayError::Untranslated { backend: backend.name.clone(), dialect: Dialect::of(backend).word() };
        }
        if !(0..self.plan.members.len()).any(|member| self.can_serve(member, call)) {
            return GatewayError::UnknownModel { model: call.requested_model().unwrap_or_default().to_owned() };
        }
        GatewayError::NoBackend { pool: Arc::clone(&self.plan.name), reason: "every backend has failed".into() }
    }

    fn refuse(&self, job: Job, error: GatewayError) {
        self.slots.pools[self.plan.index].stats.borrow_mut().refused += 1;
        // A caller that has left needs no answer.
        let _ = job.0.reply.send(Err(error));
    }

    fn park(&self, mut job: Job) {
        let parking = &self.plan.parking;
        if self.parked().borrow().len() >= parking.max_jobs {
            let pool = Arc::clone(&self.plan.name);
            let error = match job.0.ledger.worst.take() {
                Some(worst) => GatewayError::Upstream(worst),
                None => GatewayError::NoBackend {
                    pool,
                    reason: "every backend is starting and too many requests wait already".into(),
                },
            };
            return self.refuse(job, error);
        }
        job.0.ledger.parked_at.get_or_insert_with(Instant::now);
        self.parked().borrow_mut().push_back(job);
    }

    /// Drops parked jobs whose callers left, answers those that waited too long, and places what can be placed.
    fn sweep(&self) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut *self.parked().borrow_mut());
        for job in waiting {
            let since = job.0.ledger.parked_at.unwrap_or(now);
            if !job.0.reply.is_closed() && now.duration_since(since) >= self.plan.parking.max_wait {
                let pool = Arc::clone(&self.plan.name);
                let mut job = job;
                let error = match job.0.ledger.worst.take() {
                    Some(worst) => GatewayError::Upstream(worst),
                    None => GatewayError::NoBackend { pool, reason: "every backend is starting".into() },
                };
                self.refuse(job, error);
            } else {
                self.place(job);
            }
        }
    }
}

/// The failure of a job that its provider lost to a panic.
pub fn crash_failure(backend: &settings::Backend) -> Failure {
    Failure {
        backend: Some(backend.name.clone()),
        ..Failure::new(crate::chat::FailureClass::Crashed, "an internal fault ended the attempt")
    }
}
