//! Health of one backend: its circuits and pulses by model, shared by all workers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use super::circuit::{Admission, Circuit, CircuitState, Lease, Transition};
use super::circuit_rules::{CircuitRules, is_hard};
use super::{Moment, Pulse};
use crate::chat::{FailureClass, Phase};

/// Name of the slot of all models that are not listed.
const OTHER: &str = "other";

/// One model of a backend.
#[derive(Debug)]
pub struct ModelSlot {
    /// Its id at the provider; `other` for all that are not listed.
    pub model: Box<str>,
    /// Whether it is asked.
    pub circuit: Circuit,
    /// How fast it answers.
    pub pulse: Pulse,
}

impl ModelSlot {
    /// Whether it stands for all models that are not listed.
    pub fn is_rest(&self) -> bool {
        *self.model == *OTHER
    }
}

/// A model that may be asked for. Its slot is made when it first is: most never are, and those that are then lie close together
/// in memory, on few pages, whatever the number of backends.
#[derive(Debug)]
struct Listed {
    model: Box<str>,
    slot: OnceLock<Box<ModelSlot>>,
}

impl Listed {
    fn new(model: String) -> Self {
        Self { model: model.into(), slot: OnceLock::new() }
    }

    fn slot(&self) -> &ModelSlot {
        let new = || ModelSlot { model: self.model.clone(), circuit: Circuit::default(), pulse: Pulse::default() };
        self.slot.get_or_init(|| Box::new(new()))
    }
}

/// What a transition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole backend.
    Backend,
    /// One model of it, by its slot.
    Model(u16),
}

/// Transitions that one outcome has caused; nearly always none.
pub type Transitions = SmallVec<[(Scope, Transition); 1]>;

/// Leases that a probe holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probe {
    backend: Option<Lease>,
    slot: Option<Lease>,
}

/// Why a backend's circuits let a request not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When to ask again.
    pub until: Moment,
    /// Why.
    pub class: FailureClass,
}

/// A failed try, as far as circuits care.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    /// What it was.
    pub class: FailureClass,
    /// Whether anything may have reached the provider.
    pub sent: bool,
    /// When the try began.
    pub began: Moment,
    /// What the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether content had come before.
    pub is_cut: bool,
}

/// Circuits and pulses of one backend.
#[derive(Debug)]
pub struct Health {
    rules: CircuitRules,
    /// The backend's own circuit.
    pub circuit: Circuit,
    /// By model, sorted; the last is for all others.
    models: Box<[Listed]>,
    served: AtomicU64,
    failed: AtomicU64,
    /// When content has come last.
    answered: AtomicU64,
    /// Requests left without any content since content has come.
    given_up: AtomicU32,
}

impl Health {
    /// Starts with every circuit closed and nothing measured.
    pub fn new(rules: CircuitRules, models: impl IntoIterator<Item = String>) -> Self {
        let mut models: Vec<String> = models.into_iter().filter(|model| model != OTHER).collect();
        models.sort_unstable();
        models.dedup();
        Self {
            rules,
            circuit: Circuit::default(),
            models: models.into_iter().chain([OTHER.to_owned()]).map(Listed::new).collect(),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            given_up: AtomicU32::new(0),
        }
    }

    /// The slot of a model. A right guess saves the search, whose every step is at another place of memory.
    pub fn slot_of(&self, model: &str, guess: u16) -> u16 {
        if self.models.get(usize::from(guess)).is_some_and(|listed| *listed.model == *model) {
            return guess;
        }
        let listed = self.listed();
        let place = listed.binary_search_by(|listed| (*listed.model).cmp(model)).unwrap_or(listed.len());
        u16::try_from(place).unwrap_or(u16::MAX)
    }

    /// All models but the last, which stands for the others.
    fn listed(&self) -> &[Listed] {
        &self.models[..self.models.len() - 1]
    }

    /// The id of a slot's model; `None` for the one of all others.
    pub fn model(&self, slot: u16) -> Option<&str> {
        self.listed().get(usize::from(slot)).map(|listed| &*listed.model)
    }

    /// What is known of a model.
    pub fn slot(&self, slot: u16) -> &ModelSlot {
        self.models[usize::from(slot).min(self.models.len() - 1)].slot()
    }

    /// The models that have been asked for, the others last.
    pub fn slots(&self) -> impl Iterator<Item = &ModelSlot> {
        self.models.iter().filter_map(|listed| listed.slot.get().map(|slot| &**slot))
    }

    /// Whether a model has a slot of its own, or it is the name of the one for all others.
    pub fn has_slot(&self, model: &str) -> bool {
        self.models.iter().any(|listed| *listed.model == *model)
    }

    /// Times that any of its circuits has opened or failed its probe.
    pub fn openings(&self) -> u64 {
        let circuits = self.slots().map(|slot| &slot.circuit).chain([&self.circuit]);
        circuits.map(|circuit| u64::from(circuit.openings())).sum()
    }

    /// When a request was last served, and when one last failed.
    pub fn last(&self) -> (Option<Moment>, Option<Moment>) {
        (Moment::from_raw(self.served.load(Ordering::Relaxed)), Moment::from_raw(self.failed.load(Ordering::Relaxed)))
    }

    /// When the last content has come, whether its request was served to the end or not.
    pub fn last_answer(&self) -> Option<Moment> {
        Moment::from_raw(self.answered.load(Ordering::Relaxed))
    }

    /// It has answered.
    pub fn note_answer(&self, now: Moment) {
        self.answered.store(now.raw(), Ordering::Relaxed);
        if self.given_up() > 0 {
            self.given_up.store(0, Ordering::Relaxed);
        }
    }

    /// Requests in a row whose clients have left before any content had come.
    pub fn given_up(&self) -> u32 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// A client has left before any content had come.
    pub fn note_given_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// State of both circuits together, as [`Self::admit`] sees it: an open one refuses, a known reason before a soft one, the
    /// longer before the shorter; and a probe must be free in each that is half-open.
    pub fn state(&self, slot: u16, now: Moment) -> CircuitState {
        use CircuitState::{Closed, HalfOpen, Open};
        match (self.circuit.state(now), self.slot(slot).circuit.state(now)) {
            (Closed, state) | (state, Closed) => state,
            (Open { until, class }, Open { until: other, class: own }) => {
                let is_own = (is_hard(own), other) > (is_hard(class), until);
                if is_own { Open { until: other, class: own } } else { Open { until, class } }
            }
            (HalfOpen { class, probing, since }, HalfOpen { class: own, probing: also, since: later }) => {
                HalfOpen { class: if is_hard(own) { own } else { class }, probing: probing || also, since: since.max(later) }
            }
            (Open { until, class }, HalfOpen { .. }) | (HalfOpen { .. }, Open { until, class }) => Open { until, class },
        }
    }

    /// Asks both circuits to pass.
    ///
    /// # Errors
    /// [`Refused`] by the circuit that refuses.
    pub fn admit(&self, slot: u16, now: Moment, lease: Duration, last_resort: bool) -> Result<Probe, Refused> {
        let mut probe = Probe::default();
        match self.circuit.admit(now, lease, last_resort) {
            Admission::Pass => {}
            Admission::Probe(lease) => probe.backend = Some(lease),
            Admission::Refused { until, class } => return Err(Refused { until, class }),
        }
        match self.slot(slot).circuit.admit(now, lease, last_resort) {
            Admission::Pass => {}
            Admission::Probe(lease) => probe.slot = Some(lease),
            Admission::Refused { until, class } => {
                self.release(slot, probe);
                return Err(Refused { until, class });
            }
        }
        Ok(probe)
    }

    /// Gives a probe's leases back; harmless after its verdict.
    pub fn release(&self, slot: u16, probe: Probe) {
        if let Some(lease) = probe.backend {
            self.circuit.release(lease);
        }
        if let Some(lease) = probe.slot {
            self.slot(slot).circuit.release(lease);
        }
    }

    /// Counts a request that was served to its end.
    pub fn succeeded(&self, slot: u16, now: Moment) {
        self.served.store(now.raw(), Ordering::Relaxed);
        self.circuit.succeeded(&self.rules, now);
        self.slot(slot).circuit.succeeded(&self.rules, now);
    }

    /// A request that began then has brought content: what was open is well again.
    pub fn recovered(&self, slot: u16, began: Moment, now: Moment) -> Transitions {
        self.note_answer(now);
        self.of_both(slot, |circuit| circuit.recovered(began, now))
    }

    /// A request that began then has come to its end: what replies that were cut had opened is well again too.
    pub fn completed(&self, slot: u16, began: Moment, now: Moment) -> Transitions {
        self.of_both(slot, |circuit| circuit.completed(began, now))
    }

    fn of_both(&self, slot: u16, step: impl Fn(&Circuit) -> Option<Transition>) -> Transitions {
        let own = step(&self.circuit).map(|transition| (Scope::Backend, transition));
        let models = step(&self.slot(slot).circuit).map(|transition| (Scope::Model(slot), transition));
        own.into_iter().chain(models).collect()
    }

    /// Counts a failed try.
    pub fn failed(&self, slot: u16, trouble: &Trouble, now: Moment) -> Transitions {
        if trouble.class.is_backends() {
            self.failed.store(now.raw(), Ordering::Relaxed);
        }
        let mut transitions = Transitions::new();
        let Trouble { class, sent, began, retry_after, is_cut } = *trouble;
        let is_connection = matches!(class, FailureClass::Timeout(Phase::Connect)) || (class == FailureClass::Socket && !sent);
        let concerns_backend = matches!(class, FailureClass::Credential | FailureClass::Billing) || is_connection;
        if concerns_backend {
            transitions
                .extend(self.circuit.failed(class, began, retry_after, &self.rules, now).map(|step| (Scope::Backend, step)));
            return transitions;
        }
        let is_other = usize::from(slot) >= self.listed().len();
        if class == FailureClass::ModelUnknown && is_other {
            return transitions;
        }
        if is_cut {
            self.slot(slot).circuit.note_cut();
        }
        let Some(step) = self.slot(slot).circuit.failed(class, began, retry_after, &self.rules, now) else {
            return transitions;
        };
        transitions.push((Scope::Model(slot), step));
        // Two models in trouble at once speak against the backend; limits of rate are each model's own.
        if !is_hard(class)
            && let Transition::Opened { until, class, streak, trips } = step
            && let Some(other) = self.other_open(slot, now)
            && let Some(step) = self.circuit.open_until(until.min(other), class, streak, trips, now)
        {
            if is_cut {
                self.circuit.note_cut();
            }
            transitions.push((Scope::Backend, step));
        }
        transitions
    }

    /// Closes every circuit, or one model's and the backend's, and forgets what was measured; says how many were not closed.
    pub fn reset(&self, model: Option<&str>, now: Moment) -> usize {
        self.given_up.store(0, Ordering::Relaxed);
        let chosen = self.slots().filter(|slot| model.is_none_or(|model| *slot.model == *model));
        let closed = chosen
            .map(|slot| {
                slot.pulse.reset();
                usize::from(slot.circuit.reset(now))
            })
            .sum::<usize>();
        closed + usize::from(self.circuit.reset(now))
    }

    fn other_open(&self, slot: u16, now: Moment) -> Option<Moment> {
        let own = self.slot(slot);
        self.slots().filter(|slot| !std::ptr::eq(*slot, own)).find_map(|slot| match slot.circuit.state(now) {
            CircuitState::Open { until, class } if !is_hard(class) => Some(until),
            CircuitState::Open { .. } | CircuitState::HalfOpen { .. } | CircuitState::Closed => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Moment {
        Moment::after(Duration::from_millis(millis))
    }

    fn trouble(class: FailureClass, sent: bool, millis: u64) -> Trouble {
        Trouble { class, sent, began: at(millis), retry_after: None, is_cut: false }
    }

    fn health() -> Health {
        Health::new(CircuitRules::default(), ["b".to_owned(), "a".to_owned()])
    }

    #[test]
    fn a_models_trouble_is_its_own_until_a_second_model_shares_it() {
        let health = health();
        let (a, b, other) = (health.slot_of("a", 0), health.slot_of("b", 0), health.slot_of("z", 7));
        assert_eq!((a, b, other), (0, 1, 2));
        health.failed(a, &trouble(FailureClass::Overloaded, true, 0), at(0));
        assert!(health.admit(a, at(1), LEASE, false).is_err());
        assert!(health.admit(b, at(1), LEASE, false).is_ok());
        let steps = health.failed(b, &trouble(FailureClass::Overloaded, true, 1), at(1));
        assert_eq!(steps.len(), 2);
        assert!(health.admit(other, at(2), LEASE, false).is_err(), "the backend is out");
        // The shorter of the two cool-downs has passed: one probe for the backend.
        let probe = health.admit(other, at(2_001), LEASE, false).unwrap();
        assert!(health.admit(other, at(2_002), LEASE, false).is_err());
        health.release(other, probe);
        assert!(health.admit(other, at(2_003), LEASE, false).is_ok());
        assert_eq!(health.recovered(other, at(2_003), at(2_004)).len(), 1);
        assert!(health.admit(other, at(2_005), LEASE, false).is_ok());
        assert!(matches!(health.state(b, at(2_005)), CircuitState::HalfOpen { .. }), "what was open by itself is not closed");
    }

    #[test]
    fn limits_of_rate_never_speak_against_other_models() {
        let health = health();
        for slot in [0, 1] {
            assert_eq!(health.failed(slot, &trouble(FailureClass::RateLimited, true, 0), at(0)).len(), 1);
        }
        assert!(health.admit(2, at(1), LEASE, false).is_ok());
    }

    #[test]
    fn what_the_state_promises_the_circuits_keep() {
        let classes = [FailureClass::RateLimited, FailureClass::Overloaded];
        for (backend, slot) in classes.iter().flat_map(|a| classes.iter().map(move |b| (*a, *b))) {
            for (now, last_resort) in [(1_000, false), (1_000, true), (3_000, false), (3_000, true), (9_000, false)] {
                let health = health();
                health.circuit.failed(backend, at(0), None, &CircuitRules::default(), at(0));
                health.slot(0).circuit.failed(slot, at(0), None, &CircuitRules::default(), at(0));
                let is_promised = match health.state(0, at(now)) {
                    CircuitState::Closed | CircuitState::HalfOpen { probing: false, .. } => true,
                    CircuitState::Open { class, .. } | CircuitState::HalfOpen { class, .. } => {
                        last_resort && (!is_hard(class) || now >= 1_000)
                    }
                };
                assert_eq!(health.admit(0, at(now), LEASE, last_resort).is_ok(), is_promised, "{backend:?} {slot:?} {now}");
            }
        }
    }

    #[test]
    fn credentials_and_connections_concern_the_whole_backend() {
        let first = health();
        first.failed(0, &trouble(FailureClass::Credential, true, 0), at(0));
        assert!(first.admit(1, at(1), LEASE, false).is_err());
        let second = health();
        for _ in 0..5 {
            second.failed(0, &trouble(FailureClass::Socket, false, 0), at(0));
        }
        assert!(second.admit(1, at(1), LEASE, false).is_err());
        let third = health();
        for _ in 0..5 {
            third.failed(0, &trouble(FailureClass::Socket, true, 0), at(0));
        }
        assert!(third.admit(0, at(1), LEASE, false).is_err() && third.admit(1, at(1), LEASE, false).is_ok());
    }

    #[test]
    fn a_guess_never_changes_which_slot_it_is() {
        let health = health();
        for (model, slot) in [("a", 0), ("b", 1), ("z", 2), ("other", 2), ("", 2)] {
            for guess in [0, 1, 2, 3, u16::MAX] {
                assert_eq!(health.slot_of(model, guess), slot, "{model} {guess}");
                assert_eq!(health.model(slot), (slot < 2).then_some(model));
            }
        }
    }

    #[test]
    fn a_model_that_is_not_listed_is_never_shut_as_unknown() {
        let health = health();
        let other = health.slot_of("z", 0);
        assert!(health.failed(other, &trouble(FailureClass::ModelUnknown, true, 0), at(0)).is_empty());
        assert_eq!(health.failed(0, &trouble(FailureClass::ModelUnknown, true, 0), at(0)).len(), 1);
        assert_eq!(health.reset(None, at(1)), 1);
        assert_eq!(health.state(0, at(1)), CircuitState::Closed);
    }
}
