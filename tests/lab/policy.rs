//! What the laboratory compares: a policy chooses members and hears how it went. [`Ours`] is the pool's own code.

use std::sync::Arc;
use std::time::Duration;

use stagedoor::balance::{
    Bar, CircuitRules, CircuitState, Door, Health, Members, Moment, Permit, Permits, Probe, Sample, Scouts, Standing, Transition,
    Trouble, Turns, choose, last_resort,
};
use stagedoor::chat::FailureClass;
use stagedoor::settings::{Child, Group, Node, Strategy};

use super::world::{FIRST_CONTENT_LIMIT, Fault, Member};

/// A request as a policy sees it when it chooses.
pub(crate) struct Ask<'a> {
    pub(crate) worker: usize,
    /// Members that failed it before, one bit each.
    pub(crate) tried: u32,
    /// Whether a circuit has refused it as a last resort.
    pub(crate) refused: bool,
    pub(crate) now: Moment,
    /// Seconds, the same moment.
    pub(crate) seconds: f64,
    /// The members and their load: only for the oracle.
    pub(crate) world: &'a [Member],
    pub(crate) in_flight: &'a [u32],
}

impl Ask<'_> {
    pub(crate) fn was_tried(&self, leaf: usize) -> bool {
        self.tried & (1 << leaf) != 0
    }
}

/// Whom to ask.
pub(crate) struct Pick {
    pub(crate) leaf: usize,
    pub(crate) last_resort: bool,
}

/// What an admitted attempt holds.
#[derive(Default)]
pub(crate) struct Pass {
    pub(crate) probe: Probe,
    permit: Option<Permit>,
    load: u32,
}

/// A rule for choosing members.
pub(crate) trait Policy {
    /// Chooses; `None` when nobody is left to ask. `random` is the policy's own.
    fn choose(&mut self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Option<Pick>;
    /// Admits the chosen member's attempt, or refuses it.
    fn admit(&mut self, worker: usize, pick: &Pick, now: Moment) -> Option<Pass>;
    /// First content came: of a try that began then, in an attempt that started then.
    fn answered(&mut self, worker: usize, leaf: usize, pass: &Pass, times: Times, now: Moment);
    /// A try failed.
    fn failed(&mut self, worker: usize, leaf: usize, fault: &Fault, times: Times, now: Moment);
    /// The attempt is over; `served` to its end, or failed.
    fn ended(&mut self, worker: usize, leaf: usize, pass: Pass, served: bool, times: Times, now: Moment);
    /// Whether it keeps a member from being asked.
    fn is_shut(&self, leaf: usize, now: Moment) -> bool;
}

/// When an attempt and its present try began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) started: Moment,
    pub(crate) try_started: Moment,
}

/// The gateway's own code: `choose`, circuits, pulses and permits, shared by workers as in the process.
pub(crate) struct Ours {
    group: Group,
    members: Vec<(Health, Arc<Permits>)>,
    turns: Vec<Turns>,
}

/// The only listed model.
const MODEL: u16 = 0;
/// Output tokens of a typical answer.
const TYPICAL_TOKENS: f64 = 100.0;

impl Ours {
    pub(crate) fn new(weights: &[f64], workers: usize, random: &mut fastrand::Rng) -> Self {
        let children =
            weights.iter().enumerate().map(|(leaf, weight)| Child { edge: leaf, weight: *weight, node: Node::Leaf(leaf) });
        let group =
            Group { pool: "pool".into(), id: 0, strategy: Strategy::Latency, fallback: true, children: children.collect() };
        let member = || (Health::new(CircuitRules::default(), ["model".to_owned()]), Permits::new(None));
        let members = weights.iter().map(|_| member()).collect();
        let scouts = Scouts::of(1);
        let turns = (0..workers).map(|_| Turns::new(Arc::clone(&scouts), weights.len(), random.f64())).collect();
        Self { group, members, turns }
    }
}

/// What one request sees of the members, as the pool's view does.
struct View<'a> {
    ask: &'a Ask<'a>,
    members: &'a [(Health, Arc<Permits>)],
}

impl Members for View<'_> {
    fn door(&self, leaf: usize) -> Door {
        if self.was_tried(leaf) {
            return Door::Barred(Bar::Tried);
        }
        match self.members[leaf].0.state(MODEL, self.ask.now) {
            CircuitState::Closed => Door::Open,
            CircuitState::HalfOpen { probing: false, .. } => Door::Probe,
            CircuitState::HalfOpen { class, .. } => Door::Shut { until: self.ask.now, class },
            CircuitState::Open { until, class } => Door::Shut { until, class },
        }
    }

    fn was_tried(&self, leaf: usize) -> bool {
        self.ask.was_tried(leaf)
    }

    fn standing(&self, leaf: usize) -> Standing {
        let (health, permits) = &self.members[leaf];
        let beat = health.slot(MODEL).pulse.beat(true, TYPICAL_TOKENS, self.ask.now);
        Standing { weight: 1.0, in_flight: permits.used(), beat, price: None }
    }

    fn weight(&self, child: &Child) -> f64 {
        child.weight
    }
}

impl Policy for Ours {
    fn choose(&mut self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Option<Pick> {
        let view = View { ask, members: &self.members };
        if let Some(choice) = choose(&self.group, &view, &mut self.turns[ask.worker], &mut || random.f64()) {
            self.members[choice.leaf].0.slot(MODEL).pulse.choose(ask.now);
            return Some(Pick { leaf: choice.leaf, last_resort: false });
        }
        let shut = last_resort(&self.group, &view)?;
        (!ask.refused).then_some(Pick { leaf: shut.leaf, last_resort: true })
    }

    fn admit(&mut self, _: usize, pick: &Pick, now: Moment) -> Option<Pass> {
        let (health, permits) = &self.members[pick.leaf];
        let permit = permits.try_take();
        let lease = Duration::from_secs_f64(FIRST_CONTENT_LIMIT + 5.0);
        let probe = health.admit(MODEL, now, lease, pick.last_resort).ok()?;
        health.slot(MODEL).pulse.begin(true, now);
        Some(Pass { probe, permit, load: permits.used() })
    }

    fn answered(&mut self, _: usize, leaf: usize, pass: &Pass, times: Times, now: Moment) {
        let health = &self.members[leaf].0;
        let pulse = &health.slot(MODEL).pulse;
        pulse.end(true, times.started);
        health.recovered(MODEL, times.try_started, now);
        let took = now.since(times.try_started);
        pulse.answered(&Sample { stream: true, took, rest: None, tokens: 0, load: pass.load }, now);
    }

    fn failed(&mut self, _: usize, leaf: usize, fault: &Fault, times: Times, now: Moment) {
        let health = &self.members[leaf].0;
        let retry_after = fault.retry_after.map(Duration::from_secs_f64);
        let trouble = Trouble { class: fault.class, sent: fault.sent, began: times.try_started, retry_after, is_cut: false };
        let _: Vec<(_, Transition)> = health.failed(MODEL, &trouble, now).into_iter().collect();
        if fault.class != FailureClass::RateLimited {
            health.slot(MODEL).pulse.failed(now.since(times.try_started), now);
        }
    }

    fn ended(&mut self, _: usize, leaf: usize, pass: Pass, served: bool, times: Times, now: Moment) {
        let health = &self.members[leaf].0;
        health.release(MODEL, pass.probe);
        drop(pass.permit);
        if served {
            health.succeeded(MODEL, now);
        } else {
            health.slot(MODEL).pulse.end(true, times.started);
        }
    }

    fn is_shut(&self, leaf: usize, now: Moment) -> bool {
        self.members[leaf].0.state(MODEL, now) != CircuitState::Closed
    }
}
