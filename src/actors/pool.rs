//! Pool: takes requests, ranks members, falls back, parks, and keeps the members' latency and error statistics.
//!
//! It never does IO. A job is tail-forwarded: the provider answers the front end directly, and only failures come back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::dev::{MessageResponse, OneshotSender};
use actix::prelude::*;
use tokio::time::Instant;

use super::choosing::Resort;
use super::hedge;
use super::slots::{SlotState, Slots};
use super::tally::PoolStats;
use super::{Bounce, Bounced, Dispatch, Job, JobParts, Outcome, PoolDown, ProviderUp};
use crate::attempt::{Call, End, Ledger, Reply, ReplySender, Settled, panic_message};
use crate::balance::{Door, Members as _, Moment, any_reachable};
use crate::chat::{Failure, FailureClass};
use crate::dialect::Dialect;
use crate::error::GatewayError;
use crate::settings;

/// How often parked jobs are looked at for callers that left or waited too long.
const PARKING_TICK: Duration = Duration::from_millis(20);
/// Weight of a new answer in the tokens of a typical one.
const TYPICAL_ALPHA: f64 = 0.05;
/// How often a job may meet a generation that was just replaced.
const MOVES: u32 = 32;

/// The actor: a shell around the pool's core.
pub struct Pool {
    core: Rc<Core>,
}

/// What the pool is, reachable from its handlers and from the response that holds the caller's sender.
pub(super) struct Core {
    pub(super) plan: Arc<settings::Pool>,
    pub(super) slots: Rc<Slots>,
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

impl Drop for Pool {
    /// Reports a panic that slipped through.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.core.go_down("the actor ended by a panic outside its handlers".to_owned());
        }
    }
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
        let core = Rc::clone(&self.core);
        self.core.guard(ctx, || core.begin(self.call, reply));
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
            self.go_down(reason);
        }
        self.watch_parked(ctx);
    }

    fn go_down(&self, reason: String) {
        if !self.is_broken.replace(true) {
            self.slots.tell_shard(PoolDown { pool: self.plan.index, reason });
        }
    }

    /// Makes a job of a call.
    fn begin(self: &Rc<Self>, call: Arc<Call>, reply: ReplySender) {
        let (reply, race) = match hedge::patience(self, &call) {
            None => (reply, None),
            Some(patience) => {
                let (reply, asked) = hedge::start(self, &call, reply, patience);
                (reply, Some(asked))
            }
        };
        let plan = &self.plan;
        self.place(Job(Box::new(JobParts {
            now: call.began,
            call,
            ledger: Ledger { max_attempts: plan.max_attempts, ..Ledger::default() },
            reply,
            pool: u16::try_from(plan.index).unwrap_or(u16::MAX),
            member: 0,
            slot: 0,
            last_resort: false,
            is_hedge: false,
            race,
            only: plan.members.len() == 1,
        })));
    }

    pub(super) fn stats(&self) -> &RefCell<PoolStats> {
        &self.slots.pools[self.plan.index].stats
    }

    pub(super) fn now(&self) -> Moment {
        self.slots.shared.clock.now()
    }

    /// Places a second job beside a slow one: only at a member that is well, and if `allowed`.
    pub(super) fn place_hedge(&self, mut parts: JobParts, allowed: impl FnOnce(&mut PoolStats) -> bool) -> bool {
        let view = self.view(&parts);
        let is_well = any_reachable(&self.plan.tree, &view, |leaf| view.door(leaf) == Door::Open);
        if !is_well || !allowed(&mut self.stats().borrow_mut()) {
            return false;
        }
        match self.choose(&mut parts) {
            Some(member) => self.send(Job(Box::new(parts)), member),
            None => return false,
        }
        true
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
        // What could not be said in its dialect was not asked of it.
        if settled.end == End::Failed(FailureClass::Unsupported) {
            return;
        }
        if let Some(after) = settled.first_content {
            hedge::note(self, settled.stream, after);
        }
        let mut stats = self.stats().borrow_mut();
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
            End::Cut => {
                member.cut += 1;
                member.moved += u64::from(settled.moved);
            }
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
        if let Some(usage) = settled.usage.filter(|usage| usage.completion_tokens > 0) {
            stats.typical_tokens += TYPICAL_ALPHA * (usage.completion_tokens as f64 - stats.typical_tokens);
        }
        let Some(member) = stats.members.get_mut(usize::from(settled.member)) else { return };
        if let Some(usage) = settled.usage {
            member.prompt_tokens = member.prompt_tokens.saturating_add(usage.prompt_tokens);
            member.cached_tokens = member.cached_tokens.saturating_add(usage.cached_tokens);
            member.completion_tokens = member.completion_tokens.saturating_add(usage.completion_tokens);
        }
    }

    /// Sends a job to the best member, or parks it, or answers it.
    fn place(&self, mut job: Job) {
        let parts = &mut job.0;
        if parts.reply.is_closed() {
            return;
        }
        let now = Instant::now();
        if now >= parts.call.deadline {
            return self.refuse(job, GatewayError::Deadline);
        }
        parts.now = self.slots.shared.clock.at(now);
        if parts.call.passthrough.is_some() && self.plan.members.len() > 1 {
            return self.refuse(job, GatewayError::PassthroughPool { pool: Arc::clone(&self.plan.name) });
        }
        if let Some(member) = self.choose(parts) {
            return self.send(job, member);
        }
        // Everybody else has failed, is full or starting: wait for a permit where one will be free.
        if parts.is_hedge {
            let error = self.last_word(parts, None);
            return self.refuse(job, error);
        }
        if let Some(member) = parts.ledger.saturated.get(parts.ledger.queue_turn).copied() {
            parts.ledger.may_queue = true;
            parts.slot = self.view(parts).model_slot(usize::from(member));
            return self.send(job, usize::from(member));
        }
        let shut = match self.last_resort(parts) {
            Some(Resort::Ask(member)) => {
                parts.last_resort = true;
                return self.send(job, member);
            }
            Some(Resort::Answer(failure)) => Some(failure),
            None => None,
        };
        if self.may_still_start(parts) {
            return self.park(job);
        }
        let error = self.last_word(parts, shut);
        self.refuse(job, error);
    }

    /// Whether a member that could serve is starting or backing off.
    fn may_still_start(&self, parts: &JobParts) -> bool {
        let view = self.view(parts);
        any_reachable(&self.plan.tree, &view, |leaf| {
            let state = &self.slots.providers[self.plan.members[leaf]].state;
            matches!(*state.borrow(), SlotState::Down { failed: false, .. }) && view.is_fit(leaf)
        })
    }

    fn send(&self, mut job: Job, member: usize) {
        job.0.member = u16::try_from(member).unwrap_or(u16::MAX);
        job.0.ledger.may_queue |= job.0.only;
        if let Some(asked) = &job.0.race {
            asked.add(member);
        }
        let slot = &self.slots.providers[self.plan.members[member]];
        if let SlotState::Up(up) = &*slot.state.borrow() {
            return up.addr.do_send(job);
        }
        let pool = Arc::clone(&self.plan.name);
        self.refuse(job, GatewayError::NoBackend { pool, reason: "its backend is starting".into() });
    }

    fn take_back(&self, Bounce { mut job, why }: Bounce) {
        let parts = &mut job.0;
        let member = parts.member;
        match why {
            Bounced::Moved => {
                parts.ledger.moves += 1;
                parts.ledger.forget_queues();
                self.unask(parts);
                if parts.ledger.moves > MOVES {
                    return self.refuse(job, GatewayError::Internal);
                }
            }
            Bounced::Drained => {
                parts.ledger.forget_queues();
                self.unask(parts);
                // The others come first; where nobody else is well, the next generation.
                parts.ledger.tried.push(member);
                let view = self.view(parts);
                let is_anybody_well = any_reachable(&self.plan.tree, &view, |leaf| view.door(leaf) == Door::Open);
                drop(view);
                if !is_anybody_well {
                    parts.ledger.tried.pop();
                }
            }
            Bounced::Elsewhere => {
                parts.ledger.forget_queues();
                self.unask(parts);
            }
            Bounced::Saturated => {
                self.count(member, |stats| stats.bounced += 1);
                self.unask(parts);
                if parts.ledger.may_queue {
                    parts.ledger.queue_turn += 1;
                    if parts.ledger.queue_turn >= parts.ledger.saturated.len() {
                        let backend =
                            Arc::clone(&self.slots.shared.settings.backends[self.plan.members[usize::from(member)]].name);
                        let error = worst_or(parts, GatewayError::Saturated { backend, waited: false });
                        return self.refuse(job, error);
                    }
                    return self.place(job);
                }
                parts.ledger.saturated.push(member);
            }
            // Another request was quicker, or another worker has just found out.
            Bounced::Shut => {
                parts.ledger.moves += 1;
                parts.ledger.refused |= parts.last_resort || parts.ledger.moves > MOVES;
                parts.ledger.forget_queues();
                parts.ledger.shut.push(member);
                self.unask(parts);
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
                    && (parts.call.repeatable || !parts.ledger.sent)
                    && parts.ledger.attempts < parts.ledger.max_attempts
                    && (is_passed_over || is_first || self.spend_retry(member));
                if !may_go_on {
                    let error = self.last_word(parts, None);
                    return self.refuse(job, error);
                }
            }
        }
        self.place(job);
    }

    /// A member that has given a job back untried may be asked by the other job of its race, and by this one again.
    fn unask(&self, parts: &JobParts) {
        if let Some(asked) = &parts.race {
            asked.remove(usize::from(parts.member));
        }
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

    /// The most telling error of a request that nobody serves; `shut` is what an open circuit says.
    fn last_word(&self, parts: &mut JobParts, shut: Option<Failure>) -> GatewayError {
        if let Some(failure) = shut {
            parts.ledger.note(failure);
        }
        if parts.ledger.worst.is_some() {
            return worst_or(parts, GatewayError::Internal);
        }
        let (call, shared) = (&parts.call, &self.slots.shared);
        let mut members = self.plan.members.iter().map(|index| &shared.settings.backends[*index]);
        if call.passthrough.is_some()
            && let Some(backend) = members.find(|backend| !Dialect::of(backend).passes_bytes())
        {
            return GatewayError::Untranslated { backend: backend.name.clone(), dialect: Dialect::of(backend).word() };
        }
        let view = self.view(parts);
        let mut fit = (0..self.plan.members.len()).filter(|member| view.is_fit(*member)).peekable();
        if fit.peek().is_none() {
            return match call.requested_model().filter(|model| !model.is_empty()) {
                Some(model) => GatewayError::UnknownModel { model: model.to_owned() },
                None => GatewayError::NoModel { name: self.plan.name.to_string() },
            };
        }
        let is_drained = |member: usize| shared.backends[self.plan.members[member]].drained.load(Ordering::Relaxed);
        let reason = if fit.all(is_drained) { "an operator has drained it" } else { "every backend has failed" };
        GatewayError::NoBackend { pool: Arc::clone(&self.plan.name), reason: reason.into() }
    }

    fn refuse(&self, job: Job, error: GatewayError) {
        // A race is counted as a whole.
        if job.0.race.is_none() {
            self.stats().borrow_mut().refused += 1;
        }
        // A caller that has left needs no answer.
        let _ = job.0.reply.send(Err(error));
    }

    fn park(&self, mut job: Job) {
        let parking = &self.plan.parking;
        if self.parked().borrow().len() >= parking.max_jobs {
            let pool = Arc::clone(&self.plan.name);
            let reason = "every backend is starting and too many requests wait already".into();
            let error = worst_or(&mut job.0, GatewayError::NoBackend { pool, reason });
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
                let reason = "every backend is starting".into();
                let error = worst_or(&mut job.0, GatewayError::NoBackend { pool, reason });
                self.refuse(job, error);
            } else {
                self.place(job);
            }
        }
    }
}

/// The most telling failure so far, else this error.
fn worst_or(parts: &mut JobParts, error: GatewayError) -> GatewayError {
    let attempts = parts.ledger.attempts;
    let worst = parts.ledger.worst.take();
    worst.map_or(error, |worst| GatewayError::Upstream(Box::new(Failure { attempts, ..*worst })))
}

/// The failure of a job that its provider lost to a panic.
pub fn crash_failure(backend: &settings::Backend) -> Failure {
    Failure {
        backend: Some(backend.name.clone()),
        ..Failure::new(crate::chat::FailureClass::Crashed, "an internal fault ended the attempt")
    }
}
