//! Figures of runs, and how policies compare over paired seeds.

use super::gateway::{BIN, Outcome};
use super::scenarios::{Ailing, Scenario};

/// Share of its usual choices at which a member counts as left, and as returned to.
const LEFT: f64 = 0.2;
const RETURNED: f64 = 0.5;
/// Smallest equal share, in requests in flight, that the greatest is compared with: below it one request more is a crowd.
const COUNTED_SHARE: f64 = 2.0;

/// Figures of one run.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) failed: u32,
    pub(crate) absorbed: u32,
    pub(crate) lost: u32,
    pub(crate) shares: Vec<f64>,
    /// Seconds until the ailing member was left; until it had its share again after it was open again.
    pub(crate) left: Option<f64>,
    pub(crate) returned: Option<f64>,
    /// Greatest mean in flight of a member in one second, against the equal share.
    pub(crate) crowd: f64,
}

impl Figures {
    pub(crate) fn of(scenario: &Scenario, mut outcome: Outcome) -> Self {
        outcome.times.sort_unstable_by(f64::total_cmp);
        let quantile = |of: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
            let place = (outcome.times.len() as f64 * of) as usize;
            outcome.times[place.min(outcome.times.len() - 1)]
        };
        let served: u32 = outcome.served.iter().sum();
        let ailing = scenario.ailing.as_ref();
        Self {
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
            failed: outcome.failed,
            absorbed: outcome.absorbed,
            lost: outcome.lost,
            shares: outcome.served.iter().map(|count| f64::from(*count) / f64::from(served.max(1))).collect(),
            left: ailing.map(|ailing| time_to(&outcome, ailing, ailing.from, |now, usual| now <= (usual * LEFT).max(1.0))),
            returned: ailing.map(|ailing| {
                let from = outcome.open_again.unwrap_or(scenario.seconds);
                time_to(&outcome, ailing, from, |now, usual| now >= usual * RETURNED)
            }),
            crowd: crowd(&outcome),
        }
    }
}

/// Seconds from `from` until the choices of the ailing member within one second are as wanted.
fn time_to(outcome: &Outcome, ailing: &Ailing, from: f64, wanted: impl Fn(f64, f64) -> bool) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bins")]
    let bins = |seconds: f64| (seconds / BIN).round() as usize;
    let chosen = &outcome.chosen[ailing.member];
    let count = |from: usize, to: usize| chosen.get(from..to).map(|bins| bins.iter().map(|bin| f64::from(*bin)).sum::<f64>());
    let usual = count(bins(ailing.from - 10.0), bins(ailing.from)).unwrap_or(0.0) / 10.0;
    let first = bins(from);
    let found = (first..).map_while(|bin| count(bin, bin + bins(1.0))).position(|now| wanted(now, usual));
    found.map_or(f64::INFINITY, |steps| steps as f64 * BIN)
}

fn crowd(outcome: &Outcome) -> f64 {
    let seconds = outcome.carried[0].len();
    let members = outcome.carried.len() as f64;
    let mut greatest = 0.0f64;
    for second in 0..seconds.saturating_sub(1) {
        let share = outcome.carried.iter().map(|carried| carried[second]).sum::<f64>() / members;
        if share >= COUNTED_SHARE {
            let most = outcome.carried.iter().map(|carried| carried[second]).fold(0.0, f64::max);
            greatest = greatest.max(most / share);
        }
    }
    greatest
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Geometric mean of the ratio of two paired samples, with its interval by Student's t.
pub(crate) fn ratio(mine: &[f64], theirs: &[f64]) -> Interval {
    let logs: Vec<f64> = mine.iter().zip(theirs).map(|(mine, theirs)| (mine / theirs).ln()).collect();
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let half = t_of(logs.len()) * (variance / count).sqrt();
    Interval { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() }
}

/// The 97.5 % point of Student's t for so many pairs.
fn t_of(pairs: usize) -> f64 {
    const POINTS: [f64; 20] = [
        12.706, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093,
    ];
    POINTS.get(pairs.saturating_sub(1)).copied().unwrap_or(2.09)
}

pub(crate) fn mean(of: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = of.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / f64::max(count, 1.0)
}
