//! Strategies: each a pure function from the standing of a group's members to their order, best first, with the reason.

pub mod cost;
pub mod latency;
pub mod least_busy;
pub mod round_robin;
pub mod weighted;

use smallvec::SmallVec;

/// Scores this near to the best one are as good: the weights decide between them.
const TIE: f64 = 1.1;

/// What a strategy may know of a member.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Present weight.
    pub weight: f64,
    /// Requests in flight at the backend, over the whole process.
    pub in_flight: u32,
    /// Speed and unanswered requests.
    pub beat: super::Beat,
    /// What the request would cost there, in pico-dollars; `None` where a price is unknown.
    pub price: Option<f64>,
}

/// Why a member was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no other.
    Only,
    /// Its score is the best.
    Best,
    /// Its score is as good as the best one, and the weights decided.
    Tie,
    /// Nothing is known of it yet.
    Untried,
    /// It was not asked for a while: it may have recovered.
    Scout,
    /// It was its turn, by weight or in a row.
    Turn,
    /// Its circuit is half-open: this request decides.
    Probe,
    /// Every circuit is open; this one is the least bad.
    LastResort,
    /// The same conversation went there before.
    Affinity,
    /// No member could be asked.
    Nobody,
}

impl Why {
    /// Name for stories and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Best => "best",
            Self::Tie => "tie",
            Self::Untried => "untried",
            Self::Scout => "scout",
            Self::Turn => "turn",
            Self::Probe => "probe",
            Self::LastResort => "last-resort",
            Self::Affinity => "affinity",
            Self::Nobody => "nobody",
        }
    }
}

/// One member's place in an order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its place among the standings.
    pub place: usize,
    /// Lower is better; the unit is the strategy's own.
    pub score: f64,
    /// Why it stands where it stands.
    pub why: Why,
}

/// Members, best first.
pub type Order = SmallVec<[Ranked; 8]>;

/// Orders by score; among those within a tenth of the best one the weights decide, by `unit` drawn from 0..1.
fn by_score(standings: &[Standing], score: impl Fn(&Standing) -> f64, unit: f64) -> Order {
    let mut order: Order =
        standings.iter().enumerate().map(|(place, standing)| Ranked { place, score: score(standing), why: Why::Best }).collect();
    order.sort_unstable_by(|a, b| a.score.total_cmp(&b.score));
    let Some(best) = order.first().map(|ranked| ranked.score) else { return order };
    let near = order.iter().take_while(|ranked| ranked.score <= best * TIE).count();
    if near > 1 {
        let weights = order[..near].iter().map(|ranked| standings[ranked.place].weight);
        let drawn = draw(weights, unit);
        order[..=drawn].rotate_right(1);
        order[0].why = Why::Tie;
    }
    order
}

/// Draws a place by weight, `unit` being drawn uniformly from 0..1. Without any weight all places count the same.
pub fn draw(weights: impl ExactSizeIterator<Item = f64> + Clone, unit: f64) -> usize {
    let total: f64 = weights.clone().sum();
    let count = weights.len();
    let mut rest = unit * if total > 0.0 { total } else { count as f64 };
    let mut last = 0;
    for (place, weight) in weights.enumerate() {
        let share = if total > 0.0 { weight } else { 1.0 };
        if share <= 0.0 {
            continue;
        }
        if rest < share {
            return place;
        }
        rest -= share;
        // Rounding may leave a trace behind the last one.
        last = place;
    }
    last
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::balance::Beat;

    /// A member about which nothing is known.
    pub(crate) fn unknown(weight: f64) -> Standing {
        let beat = Beat {
            expected: None,
            usual_load: 0.0,
            sample_age: f64::INFINITY,
            idle: f64::INFINITY,
            waiting: 0,
            waited: 0.0,
            overtaken: 0,
        };
        Standing { weight, in_flight: 0, beat, price: None }
    }

    #[test]
    fn a_draw_follows_the_weights_and_passes_over_zeros() {
        let mut counts = [0; 3];
        for step in 0..1_000 {
            counts[draw([70.0, 0.0, 30.0].into_iter(), (f64::from(step) + 0.5) / 1_000.0)] += 1;
        }
        assert_eq!(counts, [700, 0, 300]);
        assert_eq!(draw([0.0, 0.0].into_iter(), 0.9), 1);
    }
}
