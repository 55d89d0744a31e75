//! The supervisor of one worker: starts and replaces its pool and provider actors, and fills the slots they are found by.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::prelude::*;
use tokio::time::Instant;

use crate::actors::director::Director;
use crate::actors::pool::Pool;
use crate::actors::provider::Provider;
use crate::actors::slots::{Shared, SlotState, Slots, take_jobs};
use crate::actors::standby::{self, Standby};
use crate::actors::{
    AskStories, Bounce, Bounced, Cancel, Down, Job, OpenStory, PoolDown, PoolState, ProviderState, ProviderUp, Register, Restart,
    Restarted, Retire, RetireReport, ShardState, ShardStories, Snapshot, Unqueue,
};
use crate::attempt::{Cut, Ended, FlightView};
use crate::balance::{CircuitState, Moment};
use crate::chat::FailureClass;
use crate::story::Story;

/// The actor.
pub struct Shard {
    slots: Rc<Slots>,
    standby: Standby,
}

impl Shard {
    /// Starts every actor of this worker and returns the slots they are found by.
    pub fn start_worker(shared: &Arc<Shared>, worker: usize, director: &Addr<Director>) -> Rc<Slots> {
        let slots = Slots::new(Arc::clone(shared), worker);
        for index in 0..slots.providers.len() {
            let up = Provider::start_on(&slots, index, 1, false);
            *slots.providers[index].state.borrow_mut() = SlotState::Up(up);
        }
        for index in 0..slots.pools.len() {
            *slots.pools[index].addr.borrow_mut() = Some(Pool::start_on(&slots, index));
        }
        let shard = Self { slots: Rc::clone(&slots), standby: Standby::of(&slots) }.start();
        *slots.shard.borrow_mut() = Some(shard.clone());
        director.do_send(Register { worker, shard });
        slots
    }

    /// Starts the next generation in its slot and wakes the jobs that wait for it.
    fn bring_up(&self, backend: usize, generation: u32, warm: bool) {
        let slot = &self.slots.providers[backend];
        let up = Provider::start_on(&self.slots, backend, generation, warm);
        let before = slot.state.replace(SlotState::Up(up));
        if let SlotState::Up(old) = before {
            slot.retiring.borrow_mut().push(Rc::clone(&old.flights));
        }
        slot.restarts.set(slot.restarts.get() + 1);
        for (index, plan) in self.slots.shared.settings.pools.iter().enumerate() {
            if plan.members.contains(&backend)
                && let Some(pool) = self.slots.pool(index)
            {
                pool.do_send(ProviderUp);
            }
        }
    }

    /// Answers jobs that are ended while they wait.
    fn refuse_all(&self, jobs: VecDeque<Job>, cut: Cut) -> usize {
        let count = jobs.len();
        for job in jobs {
            self.slots.refuse(job, |_| cut.error());
        }
        count
    }

    fn provider_state(&self, index: usize, limit: usize, now: Instant) -> ProviderState {
        let slot = &self.slots.providers[index];
        let moment = self.slots.shared.clock.at(now);
        let retiring = slot.retiring.borrow();
        let draining = retiring.iter().map(|flights| flights.len()).sum();
        let mut retiring: Vec<_> = retiring.iter().flat_map(|flights| flights.views(limit, moment)).collect();
        let mut state = ProviderState {
            state: "up",
            generation: 0,
            uptime_seconds: 0.0,
            in_flight: 0,
            draining,
            queued: 0,
            restarts: slot.restarts.get(),
            crashes: slot.crashed.get(),
            last_reason: slot.last_reason.borrow().clone(),
            next_start_seconds: None,
            flights: Vec::new(),
            gaps: slot.gaps.borrow().clone(),
        };
        match &*slot.state.borrow() {
            SlotState::Up(up) => {
                state.generation = up.generation;
                state.uptime_seconds = now.duration_since(up.since).as_secs_f64();
                state.in_flight = up.flights.len();
                state.queued = up.queue.borrow().len();
                state.flights = up.flights.views(limit, moment);
                state.flights.extend(up.queue.borrow().iter().take(limit).map(|job| waiting_view(job, "queued", moment)));
            }
            SlotState::Down { until, failed, .. } => {
                state.state = if *failed { "failed" } else { "backing-off" };
                state.next_start_seconds = Some(until.saturating_duration_since(now).as_secs_f64());
            }
        }
        state.flights.append(&mut retiring);
        state
    }
}

impl Actor for Shard {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // One worker checks for all.
        if self.slots.worker == 0 && !self.standby.is_idle() {
            ctx.run_interval(standby::TICK, |shard, _| shard.standby.look(&shard.slots));
        }
    }
}

impl Handler<Down> for Shard {
    type Result = ();

    fn handle(&mut self, down: Down, ctx: &mut Context<Self>) {
        let slot = &self.slots.providers[down.backend];
        let backend = &self.slots.shared.settings.backends[down.backend];
        let crashed = |state: &SlotState| matches!(state, SlotState::Down { generation, .. } if *generation == down.generation);
        if !crashed(&slot.state.borrow()) {
            // It was replaced already.
            return;
        }
        slot.crashed.set(slot.crashed.get() + 1);
        let now = Instant::now();
        let noted = slot.crashes.borrow_mut().note(now.into_std(), backend.restarts_per_minute);
        let (wait, failed) = match noted {
            Ok(wait) => (wait, false),
            Err(wait) => (wait, true),
        };
        if failed {
            tracing::error!(backend = %backend.name, reason = %down.reason, "backend failed: too many crashes within a minute");
            // What crashes here crashes elsewhere: the other workers ask others first.
            let clock = self.slots.shared.clock;
            let circuit = &self.slots.shared.backends[down.backend].health.circuit;
            circuit.open_until(clock.at(now + wait), FailureClass::Crashed, 0, 1, clock.at(now));
        }
        let reason = if failed {
            format!("too many crashes within a minute, last: {}", down.reason)
        } else {
            format!("crash: {}", down.reason)
        };
        let kind = if failed { "backend-failed" } else { "crash" };
        self.slots.shared.journal.note(kind, Some(&backend.name), None, format!("worker {}: {reason}", self.slots.worker));
        *slot.last_reason.borrow_mut() = Some(reason);
        *slot.state.borrow_mut() = SlotState::Down { until: now + wait, failed, generation: down.generation };
        let (index, crashed) = (down.backend, down.generation);
        ctx.run_later(wait, move |shard, _| {
            // An operator may have restarted it meanwhile.
            let state = &shard.slots.providers[index].state;
            let waits = matches!(*state.borrow(), SlotState::Down { generation, .. } if generation == crashed);
            if waits {
                let generation = shard.slots.shared.backends[index].generation.fetch_add(1, Ordering::Relaxed) + 1;
                shard.bring_up(index, generation, false);
            }
        });
    }
}

impl Handler<PoolDown> for Shard {
    type Result = ();

    fn handle(&mut self, down: PoolDown, _: &mut Context<Self>) {
        let name = &self.slots.shared.settings.pools[down.pool].name;
        let words = format!("worker {}: pool `{name}` crashed: {}", self.slots.worker, down.reason);
        self.slots.shared.journal.note("crash", None, None, words);
        let slot = &self.slots.pools[down.pool];
        slot.restarts.set(slot.restarts.get() + 1);
        *slot.addr.borrow_mut() = Some(Pool::start_on(&self.slots, down.pool));
    }
}

impl Handler<Restart> for Shard {
    type Result = Restarted;

    fn handle(&mut self, act: Restart, _: &mut Context<Self>) -> Restarted {
        let slot = &self.slots.providers[act.backend];
        let old = match &*slot.state.borrow() {
            SlotState::Up(up) => Some((up.addr.clone(), up.flights.len())),
            SlotState::Down { .. } => None,
        };
        slot.crashes.borrow_mut().clear();
        let (circuit, now) = (&self.slots.shared.backends[act.backend].health.circuit, self.slots.shared.clock.now());
        if matches!(
            circuit.state(now),
            CircuitState::Open { class: FailureClass::Crashed, .. } | CircuitState::HalfOpen { class: FailureClass::Crashed, .. }
        ) {
            circuit.reset(now);
        }
        *slot.last_reason.borrow_mut() = Some("an operator's restart".into());
        self.bring_up(act.backend, act.generation, true);
        match old {
            Some((addr, in_flight)) => {
                let deadline = act.deadline.unwrap_or(self.slots.shared.settings.backends[act.backend].drain_timeout);
                addr.do_send(Retire { deadline, report: Some(act.report) });
                Restarted { in_flight }
            }
            None => {
                let _ = act.report.send(RetireReport { worker: self.slots.worker, ..RetireReport::default() });
                Restarted { in_flight: 0 }
            }
        }
    }
}

impl Handler<Cancel> for Shard {
    type Result = MessageResult<Cancel>;

    fn handle(&mut self, Cancel { id, backend, cut }: Cancel, _: &mut Context<Self>) -> Self::Result {
        let id = id.as_deref();
        let mut ended = Ended::default();
        for (_, slot) in self.slots.providers.iter().enumerate().filter(|(index, _)| backend.is_none_or(|own| own == *index)) {
            if let SlotState::Up(up) = &*slot.state.borrow() {
                ended += up.flights.cut_all(cut, id);
                ended.cut += self.refuse_all(take_jobs(&up.queue, id), cut);
            }
            let retiring = slot.retiring.borrow().clone();
            retiring.iter().for_each(|flights| ended += flights.cut_all(cut, id));
        }
        if backend.is_none() {
            ended.cut += self.slots.pools.iter().map(|slot| self.refuse_all(take_jobs(&slot.parked, id), cut)).sum::<usize>();
        }
        MessageResult(ended)
    }
}

impl Handler<Unqueue> for Shard {
    type Result = u64;

    fn handle(&mut self, act: Unqueue, _: &mut Context<Self>) -> u64 {
        let state = self.slots.providers[act.backend].state.borrow();
        let SlotState::Up(up) = &*state else { return 0 };
        let jobs = take_jobs(&up.queue, None);
        let moved = jobs.len() as u64;
        for job in jobs {
            if let Some(pool) = self.slots.pool(usize::from(job.0.pool)) {
                pool.do_send(Bounce { job, why: Bounced::Moved });
            }
        }
        moved
    }
}

impl Handler<AskStories> for Shard {
    type Result = ShardStories;

    fn handle(&mut self, ask: AskStories, _: &mut Context<Self>) -> ShardStories {
        let now = Instant::now();
        let is_asked = |id: &str| ask.id.as_ref().is_some_and(|asked| asked == id);
        let open = self.slots.open.borrow();
        let open = open.iter().filter(|(_, open)| is_asked(&open.call.id)).map(|(_, open)| OpenStory {
            id: Arc::clone(&open.call.id),
            age: open.call.age(self.slots.shared.clock.at(now)),
            pool: Arc::clone(&open.pool),
            route: open.route.clone(),
            caller: open.caller.clone(),
            operation: open.call.endpoint.word(),
            stream: open.call.is_stream(),
            trace: open.call.trail.trace(),
        });
        let matches = |story: &Story| {
            ask.id.as_ref().is_none_or(|id| **id == *story.id)
                && ask.outcome.as_deref().is_none_or(|outcome| match outcome {
                    "absorbed" => story.is_absorbed(),
                    other => story.outcome.word() == other,
                })
        };
        let ended = self.slots.stories.borrow().newest(ask.limit, matches);
        ShardStories { worker: self.slots.worker, open: open.collect(), ended }
    }
}

fn waiting_view(job: &Job, phase: &'static str, now: Moment) -> FlightView {
    FlightView::waiting(&job.0.call, job.0.pool, phase, now)
}

impl Handler<Snapshot> for Shard {
    type Result = ShardState;

    fn handle(&mut self, Snapshot { flights: limit }: Snapshot, _: &mut Context<Self>) -> ShardState {
        let now = Instant::now();
        let moment = self.slots.shared.clock.at(now);
        let pools = self.slots.pools.iter().map(|slot| {
            let stats = slot.stats.borrow();
            PoolState {
                requests: stats.requests,
                absorbed: stats.absorbed,
                refused: stats.refused,
                outcomes: stats.outcomes,
                hedges: stats.hedges,
                conversations: stats.conversations,
                parked: slot.parked.borrow().len(),
                waiting: slot.parked.borrow().iter().take(limit).map(|job| waiting_view(job, "parked", moment)).collect(),
                restarts: slot.restarts.get(),
                members: stats.members.clone(),
            }
        });
        ShardState {
            worker: self.slots.worker,
            providers: (0..self.slots.providers.len()).map(|index| self.provider_state(index, limit, now)).collect(),
            pools: pools.collect(),
            routes: self.slots.routes.borrow().clone(),
        }
    }
}
