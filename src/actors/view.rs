//! What a choice sees of a pool's members for one request: doors, standings and weights, read from the worker's slots and
//! from what all workers share.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::JobParts;
use super::hedge::Asked;
use super::slots::{SlotState, Slots};
use crate::attempt::{Call, Ledger};
use crate::balance::{Bar, CircuitState, Door, Members, Moment, Standing};
use crate::chat::Usage;
use crate::dialect::Dialect;
use crate::settings::{Child, Group, Pool, Strategy};
use crate::unix_time::unix_time;

/// Members that were passed over, for the request's story.
pub(super) type PassedOver = Vec<(u16, Door)>;

/// Members of whom a choice remembers what it has looked up, at most.
const KNOWN: usize = 8;
/// Members that are told as passed over for one choice.
const TOLD: usize = 32;
/// A member is late when its unanswered requests are older than this many times what is expected of it.
const LATE: f64 = 3.0;
/// What a probe is given at least, unless its own limits are shorter: what has only been slow is not to look ill.
const TIME_TO_PROBE: Duration = Duration::from_secs(10);
/// So long a half-open member waits for a request that others could take over after it; then any may probe it.
const PROBE_OVERDUE: Duration = Duration::from_secs(10);
/// Requests that a conversation's member may carry beyond twice as many as the others.
const SPARE: u64 = 8;

/// A pool as one request finds it.
pub(super) struct View<'a> {
    slots: &'a Slots,
    plan: &'a Pool,
    call: &'a Call,
    ledger: &'a Ledger,
    pub(super) now: Moment,
    typical_tokens: f64,
    /// Whether it may be the request that decides about a circuit: only one that others could take over.
    may_probe: bool,
    is_hedge: bool,
    race: Option<&'a Asked>,
    /// Leaves whose model slots were found, and the slots: each leaf in its place, until another takes it.
    found: [Cell<Option<(usize, u16)>>; KNOWN],
    passed_over: RefCell<PassedOver>,
}

impl<'a> View<'a> {
    pub(super) fn new(slots: &'a Slots, plan: &'a Pool, parts: &'a JobParts) -> Self {
        let (call, ledger, now) = (&*parts.call, &parts.ledger, parts.now);
        let may_probe = call.repeatable && !parts.is_hedge && ledger.max_attempts > ledger.attempts + 1;
        let typical_tokens = slots.pools[plan.index].stats.borrow().typical_tokens;
        Self {
            slots,
            plan,
            call,
            ledger,
            now,
            typical_tokens,
            may_probe,
            is_hedge: parts.is_hedge,
            race: parts.race.as_deref(),
            found: Default::default(),
            passed_over: RefCell::default(),
        }
    }

    /// The id a member is asked for; `None` when it cannot serve the request.
    fn model(&self, leaf: usize) -> Option<&'a str> {
        let backend = &self.slots.shared.settings.backends[self.plan.members[leaf]];
        if self.call.passthrough.is_some() {
            return Dialect::of(backend).passes_bytes().then_some("");
        }
        backend.native_model(self.call.requested_model(), self.plan.members.len() == 1)
    }

    /// Whether a member could serve the request at all.
    pub(super) fn is_fit(&self, leaf: usize) -> bool {
        self.model(leaf).is_some()
    }

    /// The slot of the model that a member is asked for.
    pub(super) fn model_slot(&self, leaf: usize) -> u16 {
        match self.known_slot(leaf) {
            Some(slot) => slot,
            None => self.find_slot(leaf, self.model(leaf).unwrap_or_default()),
        }
    }

    fn known_slot(&self, leaf: usize) -> Option<u16> {
        self.found[leaf % KNOWN].get().filter(|(known, _)| *known == leaf).map(|(_, slot)| slot)
    }

    fn find_slot(&self, leaf: usize, model: &str) -> u16 {
        let index = self.plan.members[leaf];
        let last = &self.slots.providers[index].last_slot;
        let slot = self.slots.shared.backends[index].health.slot_of(model, last.get());
        last.set(slot);
        self.found[leaf % KNOWN].set(Some((leaf, slot)));
        slot
    }

    /// Those that were not asked, and why.
    pub(super) fn into_passed_over(self) -> PassedOver {
        self.passed_over.into_inner()
    }

    /// Whether a member carries much more than the others, or leaves its requests without an answer.
    pub(super) fn is_overloaded(&self, leaf: usize) -> bool {
        let busy = |leaf: usize| u64::from(self.slots.shared.backends[self.plan.members[leaf]].permits.used());
        let members = self.plan.members.len();
        let others: u64 = (0..members).filter(|other| *other != leaf).map(busy).sum();
        let mean = others / (members as u64 - 1).max(1);
        let beat = self.standing(leaf).beat;
        let is_late = beat.waiting > 0 && beat.waited > beat.expected.unwrap_or(1.0) * LATE + 1.0;
        busy(leaf) > mean * 2 + SPARE || is_late
    }

    fn may_probe(&self, leaf: usize, since: Moment) -> bool {
        if self.ledger.shut.contains(&place(leaf)) {
            return false;
        }
        let is_overdue = self.now.since(since) >= PROBE_OVERDUE && !self.is_hedge;
        (self.may_probe && self.leaves_time(leaf)) || is_overdue
    }

    /// Whether half of the time that is left is enough for a try at this member.
    fn leaves_time(&self, leaf: usize) -> bool {
        let backend = &self.slots.shared.settings.backends[self.plan.members[leaf]];
        self.time_left() / 2 >= backend.timeouts.first_content.min(TIME_TO_PROBE)
    }

    fn time_left(&self) -> Duration {
        self.call.deadline.saturating_duration_since(self.call.started).saturating_sub(self.call.age(self.now))
    }

    /// How long a probe may take, so that another member has as much time after it; `None` where nobody could take over.
    pub(super) fn time_to_probe(&self, leaf: usize) -> Option<Duration> {
        let could_take_over = |other| other != leaf && self.look(other, false) == Door::Open;
        let is_safe = self.may_probe && self.leaves_time(leaf) && (0..self.plan.members.len()).any(could_take_over);
        is_safe.then(|| self.time_left() / 2)
    }

    /// Present weight of a member, by its first place in the tree.
    pub(super) fn weight_of(&self, leaf: usize) -> f64 {
        self.plan.child_of(leaf).map_or(0.0, |child| self.weight(child))
    }

    /// Whether a member would take the request at once, if it was full before or not.
    pub(super) fn has_room(&self, leaf: usize) -> bool {
        self.slots.shared.backends[self.plan.members[leaf]].permits.free() > 0 && self.look(leaf, false) == Door::Open
    }

    fn look(&self, leaf: usize, is_full: bool) -> Door {
        if self.was_tried(leaf) {
            return Door::Barred(Bar::Tried);
        }
        let index = self.plan.members[leaf];
        let shared = &self.slots.shared.backends[index];
        if shared.drained.load(Ordering::Relaxed) && !self.call.insistent {
            return Door::Barred(Bar::Drained);
        }
        match &*self.slots.providers[index].state.borrow() {
            SlotState::Up(_) => {}
            SlotState::Down { failed: true, .. } => return Door::Barred(Bar::Failed),
            SlotState::Down { failed: false, .. } => return Door::Barred(Bar::Starting),
        }
        let known = self.known_slot(leaf);
        let Some(slot) = known.or_else(|| Some(self.find_slot(leaf, self.model(leaf)?))) else { return Door::Barred(Bar::Unfit) };
        if is_full {
            return Door::Barred(Bar::Full);
        }
        match shared.health.state(slot, self.now) {
            _ if self.call.insistent => Door::Open,
            CircuitState::Closed => Door::Open,
            CircuitState::HalfOpen { probing: false, since, .. } if self.may_probe(leaf, since) => Door::Probe,
            CircuitState::HalfOpen { class, .. } => Door::Shut { until: self.now, class },
            CircuitState::Open { until, class } => Door::Shut { until, class },
        }
    }

    /// What the request would cost there, as far as that is known before it is answered.
    fn price(&self, leaf: usize) -> Option<f64> {
        let backend = &self.slots.shared.settings.backends[self.plan.members[leaf]];
        let price = backend.catalogue.model(backend.vendor, self.model(leaf)?)?.price.as_ref()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens")]
        let usage = Usage::estimate(self.call.body.len(), self.typical_tokens as u64);
        let now = unix_time().as_secs();
        price.cost(&usage, now).map(|pico| pico as f64)
    }
}

impl Members for View<'_> {
    fn door(&self, leaf: usize) -> Door {
        let door = self.look(leaf, self.ledger.saturated.contains(&place(leaf)));
        if door != Door::Open && self.slots.tells_stories() {
            let mut passed_over = self.passed_over.borrow_mut();
            if passed_over.len() < TOLD && !passed_over.iter().any(|(known, _)| *known == place(leaf)) {
                passed_over.push((place(leaf), door));
            }
        }
        door
    }

    fn was_tried(&self, leaf: usize) -> bool {
        self.ledger.tried.contains(&place(leaf)) || self.race.is_some_and(|asked| asked.holds(leaf))
    }

    fn standing(&self, leaf: usize) -> Standing {
        let shared = &self.slots.shared.backends[self.plan.members[leaf]];
        let pulse = &shared.health.slot(self.model_slot(leaf)).pulse;
        Standing {
            weight: 1.0,
            in_flight: shared.permits.used(),
            beat: pulse.beat(self.call.is_stream(), self.typical_tokens, self.now),
            price: if self.plan.uses(Strategy::Cost) { self.price(leaf) } else { None },
        }
    }

    fn weight(&self, child: &Child) -> f64 {
        self.slots.shared.pools[self.plan.index].weight(child.edge)
    }

    fn heaviest(&self, _: &Group) -> f64 {
        self.slots.shared.pools[self.plan.index].heaviest()
    }
}

/// A leaf as it is kept in a ledger.
pub(super) fn place(leaf: usize) -> u16 {
    u16::try_from(leaf).unwrap_or(u16::MAX)
}
