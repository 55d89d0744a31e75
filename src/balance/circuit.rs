//! Circuit: whether a backend, or one model of it, is asked at all. Atomics that all workers share, so that what one
//! worker finds out protects every request; no clock, no lock.
//!
//! **Closed** lets requests pass. **Open** refuses them until a moment that failures only ever push further away.
//! **Half-open**, once that moment has passed, lets one probe pass in the whole process, by a lease that expires.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;
use super::circuit_rules::{CircuitRules, Effect, is_hard};
use crate::chat::FailureClass;

/// Probes of a circuit that is asked because nothing else is left are at least this far apart.
const PROBE_PACE: Duration = Duration::from_secs(1);

/// State of a circuit at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Requests pass.
    Closed,
    /// None passes until then.
    Open {
        /// When one may probe.
        until: Moment,
        /// Why.
        class: FailureClass,
    },
    /// One probe may pass.
    HalfOpen {
        /// Why it was open.
        class: FailureClass,
        /// Whether a probe is out.
        probing: bool,
        /// Since when one may probe.
        since: Moment,
    },
}

impl CircuitState {
    /// Name for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        }
    }
}

/// What a circuit says to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may pass.
    Pass,
    /// It may pass as the probe that decides.
    Probe(Lease),
    /// It may not, until then.
    Refused {
        /// When to ask again.
        until: Moment,
        /// Why.
        class: FailureClass,
    },
}

/// The right to probe; given back when the probe has ended without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(u64);

/// A circuit that has opened, or has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It opened.
    Opened {
        /// Until when.
        until: Moment,
        /// Why.
        class: FailureClass,
        /// Failures in a row at that moment.
        streak: u32,
        /// Times it opened without recovering in between.
        trips: u32,
    },
    /// It closed.
    Closed {
        /// Why it was open.
        class: FailureClass,
        /// Since when.
        since: Option<Moment>,
    },
}

/// One circuit.
#[derive(Debug, Default)]
pub struct Circuit {
    /// When the cool-down ends; zero while closed.
    until: AtomicU64,
    /// When it opened.
    opened: AtomicU64,
    /// When the present probe's lease ends; zero without one.
    lease: AtomicU64,
    /// When the last probe began.
    probed: AtomicU64,
    /// When it closed.
    closed: AtomicU64,
    /// Failures in a row.
    streak: AtomicU32,
    /// Times it opened without recovering in between.
    trips: AtomicU32,
    /// Times it has opened since the process started.
    openings: AtomicU32,
    /// Place of the class in [`FailureClass::ALL`].
    class: AtomicU8,
    /// Whether a reply was cut since one came to its end: then content alone proves nothing.
    is_cut: AtomicBool,
    window: [AtomicU64; 2],
}

impl Circuit {
    /// Its state.
    pub fn state(&self, now: Moment) -> CircuitState {
        match Moment::from_raw(self.until.load(Ordering::Acquire)) {
            None => CircuitState::Closed,
            Some(until) if now < until => CircuitState::Open { until, class: self.class() },
            Some(until) => {
                let probing = self.lease.load(Ordering::Acquire) > now.raw();
                CircuitState::HalfOpen { class: self.class(), probing, since: until }
            }
        }
    }

    /// Since when it is not closed.
    pub fn opened_at(&self) -> Option<Moment> {
        Moment::from_raw(self.opened.load(Ordering::Relaxed)).filter(|_| self.until.load(Ordering::Relaxed) != 0)
    }

    /// Failures in a row.
    pub fn streak(&self) -> u32 {
        self.streak.load(Ordering::Relaxed)
    }

    /// Times it has opened, or has failed its probe, since the process started.
    pub fn openings(&self) -> u32 {
        self.openings.load(Ordering::Relaxed)
    }

    /// Asks to pass. A probe holds its lease at most for `lease`; `last_resort` says that nothing else is left to ask.
    pub fn admit(&self, now: Moment, lease: Duration, last_resort: bool) -> Admission {
        match self.state(now) {
            CircuitState::Closed => Admission::Pass,
            CircuitState::HalfOpen { class, .. } => match self.take_lease(now, lease) {
                Ok(lease) => Admission::Probe(lease),
                Err(_) if last_resort && !is_hard(class) => Admission::Pass,
                Err(until) => Admission::Refused { until, class },
            },
            CircuitState::Open { class, .. } if last_resort && !is_hard(class) => Admission::Pass,
            CircuitState::Open { until, class } if last_resort => {
                let paced = Moment::from_raw(self.probed.load(Ordering::Acquire)).is_none_or(|at| now.since(at) >= PROBE_PACE);
                match paced.then(|| self.take_lease(now, lease)) {
                    Some(Ok(lease)) => Admission::Probe(lease),
                    Some(Err(_)) | None => Admission::Refused { until, class },
                }
            }
            CircuitState::Open { until, class } => Admission::Refused { until, class },
        }
    }

    fn take_lease(&self, now: Moment, lease: Duration) -> Result<Lease, Moment> {
        let ends = (now + lease).raw();
        let taken = self.lease.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| (held <= now.raw()).then_some(ends));
        match taken {
            Ok(_) => {
                self.probed.store(now.raw(), Ordering::Release);
                Ok(Lease(ends))
            }
            Err(held) => Err(Moment::from_raw(held).unwrap_or(now)),
        }
    }

    /// Gives a lease back, so that another request may probe at once.
    pub fn release(&self, lease: Lease) {
        // A lease that has expired may be another's by now.
        let _ = self.lease.compare_exchange(lease.0, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Counts a request that was served.
    pub fn succeeded(&self, rules: &CircuitRules, now: Moment) {
        self.count(false, rules, now);
        if self.streak.load(Ordering::Relaxed) != 0 {
            self.streak.store(0, Ordering::Relaxed);
            self.is_cut.store(false, Ordering::Relaxed);
        }
    }

    /// A try that is about to be counted as failed had brought content before.
    pub fn note_cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Closes the circuit if it is not closed: a request that began then has brought content. Where replies have been cut, one
    /// must come to its end first.
    pub fn recovered(&self, began: Moment, now: Moment) -> Option<Transition> {
        if self.is_cut.load(Ordering::Relaxed) { None } else { self.completed(began, now) }
    }

    /// Closes the circuit if it is not closed: a request that began then has come to its end. One that began before the
    /// circuit opened says nothing about its recovery.
    pub fn completed(&self, began: Moment, now: Moment) -> Option<Transition> {
        let until = self.until.load(Ordering::Acquire);
        let opened = self.opened.load(Ordering::Relaxed);
        if until == 0 || began.raw() < opened {
            return None;
        }
        // Unless a failure has extended it meanwhile.
        self.until.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.forget(now);
        Some(Transition::Closed { class: self.class(), since: Moment::from_raw(opened) })
    }

    /// Counts a request that began then and failed; `retry_after` is what the provider asks to wait.
    pub fn failed(
        &self,
        class: FailureClass,
        began: Moment,
        retry_after: Option<Duration>,
        rules: &CircuitRules,
        now: Moment,
    ) -> Option<Transition> {
        let effect = rules.effect(class);
        if effect == Effect::Untouched {
            return None;
        }
        let until = Moment::from_raw(self.until.load(Ordering::Acquire));
        // What began before the circuit opened, or before it closed again, is part of a trouble that is known.
        let last_change = self.opened.load(Ordering::Relaxed).max(self.closed.load(Ordering::Relaxed));
        let is_straggler = began.raw() < last_change;
        let (streak, share) = if is_straggler {
            (self.streak(), false)
        } else {
            (self.streak.fetch_add(1, Ordering::Relaxed).saturating_add(1), self.count(true, rules, now))
        };
        let hint = retry_after.filter(|wait| !wait.is_zero());
        let (first, limit, hint) = match effect {
            Effect::Opens { first, limit } if !is_straggler || hint.is_some() => (first, limit, hint),
            Effect::OpensFor(time) if !is_straggler => (time, time, hint.map(|wait| wait.max(time))),
            Effect::Counts if !is_straggler && (until.is_some() || streak >= rules.failures || share) => {
                (rules.cool_down, rules.max_cool_down, None)
            }
            Effect::Opens { .. } | Effect::OpensFor(_) | Effect::Counts | Effect::Untouched => return None,
        };
        // Only what was closed, or was asked after its cool-down, has got worse: a request that is sent all the same while it
        // is open does not double anything.
        let is_relapse = !is_straggler && until.is_none_or(|until| now >= until);
        let trips = if is_relapse { self.trip(until.is_some()) } else { self.trips.load(Ordering::Relaxed).max(1) };
        let doubled = first.saturating_mul(1u32.checked_shl((trips - 1).min(31)).unwrap_or(u32::MAX)).min(limit.max(first));
        self.open_until(now + hint.unwrap_or(doubled), class, streak, trips, now)
    }

    /// Opens the circuit, or keeps it open, until then; it is never shortened.
    pub fn open_until(&self, until: Moment, class: FailureClass, streak: u32, trips: u32, now: Moment) -> Option<Transition> {
        let before = self.until.fetch_max(until.raw(), Ordering::AcqRel);
        if before >= until.raw() {
            return None;
        }
        let place = FailureClass::ALL.iter().position(|known| *known == class).and_then(|place| u8::try_from(place).ok());
        let known = self.class.swap(place.unwrap_or(0), Ordering::AcqRel);
        if before == 0 {
            self.opened.store(now.raw(), Ordering::Relaxed);
        }
        // What has just failed is not probed at once.
        self.probed.store(now.raw(), Ordering::Release);
        // That it stays open for longer is no news.
        let is_news = before <= now.raw() || Some(known) != place;
        if !is_news {
            return None;
        }
        self.openings.fetch_add(1, Ordering::Relaxed);
        Some(Transition::Opened { until, class, streak, trips })
    }

    /// Closes it, whatever it was: an operator's act.
    pub fn reset(&self, now: Moment) -> bool {
        let was = self.until.swap(0, Ordering::AcqRel);
        self.trips.store(0, Ordering::Relaxed);
        self.forget(now);
        was != 0
    }

    /// Doubling begins anew once a probe has found the provider well: by the laboratory, keeping it for one that fails again
    /// soon leaves too much to the others.
    fn trip(&self, was_open: bool) -> u32 {
        let before = if was_open { self.trips.load(Ordering::Relaxed) } else { 0 };
        self.trips.store(before.saturating_add(1), Ordering::Relaxed);
        before.saturating_add(1)
    }

    fn forget(&self, now: Moment) {
        self.lease.store(0, Ordering::Release);
        self.streak.store(0, Ordering::Relaxed);
        self.is_cut.store(false, Ordering::Relaxed);
        self.closed.store(now.raw(), Ordering::Relaxed);
        for half in &self.window {
            half.store(0, Ordering::Relaxed);
        }
    }

    fn class(&self) -> FailureClass {
        FailureClass::ALL.get(usize::from(self.class.load(Ordering::Acquire))).copied().unwrap_or(FailureClass::Server)
    }

    /// Counts in the window, which is kept as two halves; says whether failures have the share that opens.
    fn count(&self, is_failure: bool, rules: &CircuitRules, now: Moment) -> bool {
        let half = u64::try_from(rules.window.as_micros() / 2).unwrap_or(u64::MAX).max(1);
        let number = now.raw() / half + 1;
        let place = usize::from(number % 2 == 1);
        let add = 1 + (u64::from(is_failure) << COUNT_BITS);
        // Number of the half, failures, requests: a half of another number has expired.
        let add_to = |held: u64| {
            let held =
                if held >> (2 * COUNT_BITS) == number & NUMBER_MASK { held } else { (number & NUMBER_MASK) << (2 * COUNT_BITS) };
            (held & COUNT_MASK < COUNT_MASK).then_some(held + add)
        };
        let _ = self.window[place].fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_to);
        if !is_failure {
            return false;
        }
        let (mut failures, mut requests) = (0, 0);
        for half in &self.window {
            let held = half.load(Ordering::Relaxed);
            let age = number.wrapping_sub(held >> (2 * COUNT_BITS)) & NUMBER_MASK;
            if age <= 1 {
                failures += (held >> COUNT_BITS) & COUNT_MASK;
                requests += held & COUNT_MASK;
            }
        }
        requests >= u64::from(rules.min_requests) && failures as f64 >= requests as f64 * rules.failure_share
    }
}

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_MASK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn at(millis: u64) -> Moment {
        Moment::after(Duration::from_millis(millis))
    }

    fn fail(circuit: &Circuit, class: FailureClass, wait: Option<Duration>, millis: u64) -> Option<Transition> {
        circuit.failed(class, at(millis), wait, &CircuitRules::default(), at(millis))
    }

    fn open_at(circuit: &Circuit, millis: u64) -> bool {
        matches!(circuit.state(at(millis)), CircuitState::Open { .. })
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_probe_passes_after_the_cool_down() {
        let circuit = Circuit::default();
        for _ in 0..4 {
            assert_eq!(fail(&circuit, FailureClass::Server, None, 0), None);
        }
        assert_eq!(circuit.admit(at(0), LEASE, false), Admission::Pass);
        assert!(fail(&circuit, FailureClass::Server, None, 0).is_some());
        assert!(matches!(circuit.admit(at(4_999), LEASE, false), Admission::Refused { .. }));
        let Admission::Probe(lease) = circuit.admit(at(5_001), LEASE, false) else { panic!("a probe passes") };
        assert!(matches!(circuit.admit(at(5_002), LEASE, false), Admission::Refused { .. }), "and no second one");
        circuit.release(lease);
        assert!(matches!(circuit.admit(at(5_003), LEASE, false), Admission::Probe(_)));
        assert!(matches!(circuit.admit(at(65_004), LEASE, false), Admission::Probe(_)), "a lost lease expires");
        assert!(circuit.recovered(at(65_004), at(65_100)).is_some());
        assert_eq!(circuit.state(at(65_100)), CircuitState::Closed);
    }

    #[test]
    fn a_failed_probe_doubles_the_cool_down_up_to_its_limit() {
        let circuit = Circuit::default();
        let mut now = 0;
        for _ in 0..5 {
            fail(&circuit, FailureClass::Server, None, now);
        }
        for expected in [5_000, 10_000, 20_000, 40_000, 80_000, 120_000, 120_000] {
            let CircuitState::Open { until, .. } = circuit.state(at(now)) else { panic!("open") };
            assert_eq!(until, at(now + expected));
            now += expected + 1;
            let Admission::Probe(lease) = circuit.admit(at(now), LEASE, false) else { panic!("a probe passes") };
            fail(&circuit, FailureClass::Server, None, now);
            circuit.release(lease);
        }
    }

    #[test]
    fn requests_that_are_sent_all_the_same_extend_it_without_doubling_and_without_news() {
        let circuit = Circuit::default();
        for _ in 0..5 {
            fail(&circuit, FailureClass::Server, None, 0);
        }
        for now in 1..50 {
            assert_eq!(fail(&circuit, FailureClass::Server, None, now), None);
        }
        assert_eq!(circuit.state(at(50)), CircuitState::Open { until: at(5_049), class: FailureClass::Server });
    }

    #[test]
    fn what_began_before_it_closed_again_does_not_open_it() {
        let (circuit, rules) = (Circuit::default(), CircuitRules::default());
        for _ in 0..5 {
            fail(&circuit, FailureClass::Server, None, 1_000);
        }
        circuit.recovered(at(6_001), at(6_100));
        for _ in 0..20 {
            assert_eq!(circuit.failed(FailureClass::Server, at(900), None, &rules, at(6_200)), None);
        }
        assert_eq!(circuit.state(at(6_200)), CircuitState::Closed);
    }

    #[test]
    fn a_providers_hint_counts_where_it_may_know_better() {
        let wait = |seconds| Some(Duration::from_secs(seconds));
        for (class, hint, expected) in [
            (FailureClass::RateLimited, wait(0), 5_000),
            (FailureClass::RateLimited, wait(1), 1_000),
            (FailureClass::Overloaded, wait(30), 30_000),
            (FailureClass::Billing, wait(20), 3_600_000),
            (FailureClass::Credential, wait(1), 300_000),
        ] {
            let circuit = Circuit::default();
            fail(&circuit, class, hint, 0);
            assert_eq!(circuit.state(at(1)), CircuitState::Open { until: at(expected), class }, "{class:?} {hint:?}");
        }
    }

    #[test]
    fn half_of_ten_failures_within_the_window_open_it() {
        let rules = CircuitRules::default();
        let circuit = Circuit::default();
        for step in 0..9 {
            if step % 2 == 0 {
                assert_eq!(fail(&circuit, FailureClass::Malformed, None, step), None);
            } else {
                circuit.succeeded(&rules, at(step));
            }
        }
        assert!(fail(&circuit, FailureClass::Malformed, None, 10).is_some());
        let old = Circuit::default();
        for step in 0..9 {
            fail(&old, FailureClass::Malformed, None, step * 20_000);
            old.succeeded(&rules, at(step * 20_000));
        }
        assert!(!open_at(&old, 160_001), "what is older than the window does not count");
    }

    #[test]
    fn a_rate_limit_opens_at_once_for_the_time_it_names_and_is_only_extended() {
        let circuit = Circuit::default();
        fail(&circuit, FailureClass::RateLimited, Some(Duration::from_secs(30)), 0);
        fail(&circuit, FailureClass::RateLimited, Some(Duration::from_secs(10)), 1_000);
        fail(&circuit, FailureClass::Overloaded, None, 2_000);
        assert_eq!(circuit.state(at(3_000)), CircuitState::Open { until: at(30_000), class: FailureClass::RateLimited });
        fail(&circuit, FailureClass::RateLimited, Some(Duration::from_secs(60)), 3_000);
        assert!(open_at(&circuit, 62_999) && !open_at(&circuit, 63_000));
    }

    #[test]
    fn a_success_that_began_before_it_opened_does_not_close_it() {
        let circuit = Circuit::default();
        fail(&circuit, FailureClass::RateLimited, None, 1_000);
        assert_eq!(circuit.recovered(at(500), at(1_500)), None);
        assert!(open_at(&circuit, 1_500));
    }

    #[test]
    fn with_nothing_else_left_soft_classes_pass_and_hard_ones_probe_once_a_second() {
        let soft = Circuit::default();
        fail(&soft, FailureClass::Overloaded, None, 0);
        assert_eq!(soft.admit(at(1), LEASE, true), Admission::Pass);
        let hard = Circuit::default();
        fail(&hard, FailureClass::RateLimited, Some(Duration::from_secs(20)), 0);
        assert!(matches!(hard.admit(at(1), LEASE, true), Admission::Refused { .. }), "not within a second");
        let Admission::Probe(lease) = hard.admit(at(1_001), LEASE, true) else { panic!("then one probes") };
        assert!(matches!(hard.admit(at(3_000), LEASE, true), Admission::Refused { .. }), "and no second one beside it");
        hard.release(lease);
        assert!(matches!(hard.admit(at(3_000), LEASE, true), Admission::Probe(_)));
    }

    #[test]
    fn a_callers_mistake_leaves_it_untouched() {
        let circuit = Circuit::default();
        for _ in 0..100 {
            assert_eq!(fail(&circuit, FailureClass::Caller, None, 0), None);
        }
        assert_eq!((circuit.state(at(0)), circuit.streak()), (CircuitState::Closed, 0));
    }

    #[test]
    fn racing_threads_get_one_probe() {
        let circuit = Circuit::default();
        fail(&circuit, FailureClass::Overloaded, None, 0);
        let probes = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if matches!(circuit.admit(at(10_000), LEASE, false), Admission::Probe(_)) {
                            probes.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(probes.load(Ordering::Relaxed), 1);
    }

    proptest! {
        /// Whatever happens, also to requests that are under way or sent all the same: an open circuit's end never comes nearer
        /// while it is open, and it admits nothing; a half-open one admits a probe, and no second one.
        #[test]
        fn an_open_circuit_is_only_ever_extended(
            steps in prop::collection::vec((0u64..4_000, 0usize..16, any::<bool>(), prop::option::of(0u64..100), 0u64..6_000), 1..200),
        ) {
            let rules = CircuitRules::default();
            let circuit = Circuit::default();
            let mut now = 10_000;
            for (pause, class, fails, wait, ago) in steps {
                now += pause;
                let before = circuit.state(at(now));
                let admit = || circuit.admit(at(now), Duration::from_secs(2), false);
                match (before, admit()) {
                    (CircuitState::Closed, Admission::Pass) => {}
                    (CircuitState::HalfOpen { probing: false, .. }, Admission::Probe(_)) => {
                        let is_alone = matches!(admit(), Admission::Refused { .. });
                        prop_assert!(is_alone);
                    }
                    (CircuitState::Open { until: end, .. }, Admission::Refused { until, .. }) => prop_assert_eq!(end, until),
                    (CircuitState::HalfOpen { probing: true, .. }, Admission::Refused { until, .. }) => prop_assert!(until > at(now)),
                    other => prop_assert!(false, "{:?}", other),
                }
                // What ends now may have begun before the circuit opened.
                let began = at(now - ago);
                if fails {
                    circuit.failed(FailureClass::ALL[class], began, wait.map(Duration::from_secs), &rules, at(now));
                } else {
                    circuit.succeeded(&rules, at(now));
                    if matches!(before, CircuitState::HalfOpen { .. }) {
                        circuit.recovered(at(now), at(now));
                    }
                }
                if let CircuitState::Open { until: end, .. } = before {
                    let is_kept = matches!(circuit.state(at(now)), CircuitState::Open { until, .. } if until >= end);
                    prop_assert!(is_kept, "{:?} {:?}", before, circuit.state(at(now)));
                }
            }
        }
    }
}
