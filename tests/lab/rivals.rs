//! The rules of other gateways and balancers, each with its state per worker, as they keep it.
//!
//! All of them have the gateway's own retry and fallback loop. In place of circuits they have the cool-down that such
//! gateways have: a member that failed three times in a row is out for five seconds on that worker; with all members out,
//! all are asked. A failure is no sample to them, so that a fast one never looks fast; a timeout is one, with the time that
//! was waited.

use std::collections::VecDeque;

use stagedoor::balance::Moment;
use stagedoor::chat::FailureClass;

use super::policy::{Ask, Pass, Pick, Policy, Times};
use super::world::Fault;

/// Failures in a row that put a member out, and for how long.
const FAILURES: u32 = 3;
const OUT: f64 = 5.0;
/// Samples that [`Rule::LastTen`] and [`Rule::P90`] keep.
const TEN: usize = 10;
const RECENT: usize = 50;
/// Weight of a new sample in [`Rule::Ewma`].
const ALPHA: f64 = 0.2;
/// Seconds over which [`Rule::PeakEwma`] forgets, and the cost of a member without samples that has requests.
const DECAY: f64 = 10.0;
const PENALTY: f64 = 1e9;

/// How a rival chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    Random,
    RoundRobin,
    /// By weights that an operator would have set from the nominal speeds.
    Weighted,
    /// Fewest in flight on this worker.
    LeastBusy,
    /// Lowest mean of the last ten samples.
    LastTen,
    /// Lowest 90th percentile of the last fifty samples.
    P90,
    /// Lowest moving average.
    Ewma,
    /// Of two drawn at random, the lower decaying peak average times requests without an answer.
    PeakEwma,
    /// Knows every member's present distribution and load, not the draws; has no need of a cool-down.
    Oracle,
}

impl Rule {
    pub(crate) const ALL: [Self; 9] = [
        Self::Random,
        Self::RoundRobin,
        Self::Weighted,
        Self::LeastBusy,
        Self::LastTen,
        Self::P90,
        Self::Ewma,
        Self::PeakEwma,
        Self::Oracle,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::LeastBusy => "least-busy",
            Self::LastTen => "last-ten",
            Self::P90 => "lowest-p90",
            Self::Ewma => "ewma",
            Self::PeakEwma => "p2c-peak-ewma",
            Self::Oracle => "oracle",
        }
    }
}

/// What a worker has seen of a member.
#[derive(Debug, Clone, Default)]
struct Seen {
    in_flight: u32,
    unanswered: u32,
    recent: VecDeque<f64>,
    /// Mean or percentile of them, or the moving average; `None` without samples.
    speed: Option<f64>,
    peak: f64,
    peak_at: f64,
    failures: u32,
    out_until: f64,
}

/// A rival.
pub(crate) struct Rival {
    rule: Rule,
    weights: Vec<f64>,
    workers: Vec<Vec<Seen>>,
    turn: Vec<usize>,
}

impl Rival {
    pub(crate) fn new(rule: Rule, weights: Vec<f64>, workers: usize, random: &mut fastrand::Rng) -> Self {
        let seen = vec![vec![Seen::default(); weights.len()]; workers];
        let turn = (0..workers).map(|_| random.usize(..weights.len())).collect();
        Self { rule, weights, workers: seen, turn }
    }
}

fn seconds(now: Moment) -> f64 {
    now.since(Moment::after(std::time::Duration::ZERO)).as_secs_f64()
}

/// The one with the lowest score; among equals, one at random.
fn lowest(usable: &[usize], random: &mut fastrand::Rng, score: impl Fn(usize) -> f64) -> usize {
    let best = usable.iter().map(|leaf| score(*leaf)).fold(f64::INFINITY, f64::min);
    let equals: Vec<usize> = usable.iter().copied().filter(|leaf| score(*leaf) <= best).collect();
    equals[random.usize(..equals.len())]
}

impl Seen {
    fn sample(&mut self, rule: Rule, took: f64, now: f64) {
        match rule {
            Rule::LastTen | Rule::P90 => {
                let kept = if rule == Rule::LastTen { TEN } else { RECENT };
                self.recent.push_back(took);
                if self.recent.len() > kept {
                    self.recent.pop_front();
                }
                self.speed = Some(if rule == Rule::LastTen {
                    self.recent.iter().sum::<f64>() / self.recent.len() as f64
                } else {
                    let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
                    sorted.sort_unstable_by(f64::total_cmp);
                    sorted[(sorted.len() * 9 / 10).min(sorted.len() - 1)]
                });
            }
            Rule::Ewma => self.speed = Some(self.speed.map_or(took, |before| before + ALPHA * (took - before))),
            Rule::PeakEwma => {
                let before = self.peak_now(now);
                let keep = (-(now - self.peak_at) / DECAY).exp();
                self.peak = if took > before { took } else { self.peak * keep + took * (1.0 - keep) };
                self.peak_at = now;
            }
            Rule::Random | Rule::RoundRobin | Rule::Weighted | Rule::LeastBusy | Rule::Oracle => {}
        }
    }

    fn peak_now(&self, now: f64) -> f64 {
        self.peak * (-(now - self.peak_at) / DECAY).exp()
    }

    fn cost(&self, now: f64) -> f64 {
        let peak = self.peak_now(now);
        if peak <= 0.0 && self.unanswered > 0 {
            PENALTY + f64::from(self.unanswered)
        } else {
            peak * f64::from(self.unanswered + 1)
        }
    }
}

impl Policy for Rival {
    fn choose(&mut self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Option<Pick> {
        let seen = &self.workers[ask.worker];
        let mut usable: Vec<usize> =
            (0..seen.len()).filter(|leaf| !ask.was_tried(*leaf) && seen[*leaf].out_until <= ask.seconds).collect();
        if usable.is_empty() {
            usable = (0..seen.len()).filter(|leaf| !ask.was_tried(*leaf)).collect();
        }
        if usable.is_empty() {
            return None;
        }
        let leaf = match self.rule {
            Rule::Random => usable[random.usize(..usable.len())],
            Rule::RoundRobin => {
                let turn = &mut self.turn[ask.worker];
                let leaf = *usable.iter().min_by_key(|leaf| (**leaf + seen.len() - *turn) % seen.len())?;
                *turn = (leaf + 1) % seen.len();
                leaf
            }
            Rule::Weighted => {
                let total: f64 = usable.iter().map(|leaf| self.weights[*leaf]).sum();
                let mut rest = random.f64() * total;
                let drawn = usable.iter().copied().find(|leaf| {
                    rest -= self.weights[*leaf];
                    rest < 0.0
                });
                drawn.unwrap_or(usable[0])
            }
            Rule::LeastBusy => lowest(&usable, random, |leaf| f64::from(seen[leaf].in_flight)),
            // Who has no sample yet counts as the fastest.
            Rule::LastTen | Rule::P90 | Rule::Ewma => lowest(&usable, random, |leaf| seen[leaf].speed.unwrap_or(0.0)),
            Rule::PeakEwma => {
                let first = usable.swap_remove(random.usize(..usable.len()));
                let second = if usable.is_empty() { first } else { usable[random.usize(..usable.len())] };
                if seen[second].cost(ask.seconds) < seen[first].cost(ask.seconds) { second } else { first }
            }
            Rule::Oracle => lowest(&usable, random, |leaf| ask.world[leaf].expected(ask.seconds, ask.in_flight[leaf])),
        };
        Some(Pick { leaf, last_resort: false })
    }

    fn admit(&mut self, worker: usize, pick: &Pick, _: Moment) -> Option<Pass> {
        let seen = &mut self.workers[worker][pick.leaf];
        seen.in_flight += 1;
        seen.unanswered += 1;
        Some(Pass::default())
    }

    fn answered(&mut self, worker: usize, leaf: usize, _: &Pass, times: Times, now: Moment) {
        let seen = &mut self.workers[worker][leaf];
        seen.unanswered -= 1;
        seen.failures = 0;
        seen.sample(self.rule, now.since(times.try_started).as_secs_f64(), seconds(now));
    }

    fn failed(&mut self, worker: usize, leaf: usize, fault: &Fault, times: Times, now: Moment) {
        let seen = &mut self.workers[worker][leaf];
        if matches!(fault.class, FailureClass::Timeout(_)) {
            seen.sample(self.rule, now.since(times.try_started).as_secs_f64(), seconds(now));
        }
        seen.failures += 1;
        if seen.failures >= FAILURES && self.rule != Rule::Oracle {
            seen.failures = 0;
            seen.out_until = seconds(now) + OUT;
        }
    }

    fn ended(&mut self, worker: usize, leaf: usize, _: Pass, served: bool, _: Times, _: Moment) {
        let seen = &mut self.workers[worker][leaf];
        seen.in_flight -= 1;
        if !served {
            seen.unanswered -= 1;
        }
    }

    fn is_shut(&self, _: usize, _: Moment) -> bool {
        false
    }
}
