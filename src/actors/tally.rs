//! What one worker counts of pools and routes: plain numbers, added up over the workers when somebody looks.

use std::rc::Rc;

use super::slots::Slots;
use crate::balance::{Histogram, MemberStats, RetryBudget};
use crate::settings;
use crate::story::{Outcome, OutcomeCounts};

/// Hedges that are there without any traffic.
const HEDGE_FLOOR: f64 = 1.0;
/// Tokens of a typical answer before any was seen.
const TYPICAL_TOKENS: f64 = 200.0;

/// What is counted of the requests of one route, whatever became of them.
#[derive(Debug, Clone, Default)]
pub struct RouteStats {
    /// Requests taken.
    pub requests: u64,
    /// How they have ended.
    pub outcomes: OutcomeCounts,
    /// Of the failed ones, those that the client is to mend: status 4xx but for 429.
    pub client_errors: u64,
    /// Of the cancelled ones, those whose client left before any content had come.
    pub given_up: u64,
    /// Of the failed and truncated ones, how many of each class; there are few classes.
    pub classes: Vec<(&'static str, u64)>,
    /// Whole time of the requests that were served.
    pub duration: Histogram,
    /// Time to first content of the requests that had any.
    pub first_content: Histogram,
}

impl RouteStats {
    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        for (mine, theirs) in self.outcomes.iter_mut().zip(other.outcomes) {
            *mine += theirs;
        }
        self.client_errors += other.client_errors;
        self.given_up += other.given_up;
        for (class, count) in &other.classes {
            self.count_class(class, *count);
        }
        self.duration.merge(&other.duration);
        self.first_content.merge(&other.first_content);
    }

    /// Counts failures of a class.
    pub fn count_class(&mut self, class: &'static str, count: u64) {
        match self.classes.iter_mut().find(|(known, _)| *known == class) {
            Some((_, sum)) => *sum += count,
            None => self.classes.push((class, count)),
        }
    }

    /// A request of this route has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}

/// What a pool counts.
pub struct PoolStats {
    /// Requests taken, also those that no client has sent: test prompts and standby checks.
    pub requests: u64,
    /// Requests served although an earlier try had failed.
    pub absorbed: u64,
    /// Requests answered with an error.
    pub refused: u64,
    /// By place in the pool.
    pub members: Vec<MemberStats>,
    /// How its requests have ended.
    pub outcomes: OutcomeCounts,
    /// Requests that a second member was asked for, and those that it answered first.
    pub hedges: (u64, u64),
    /// Requests of conversations: kept with their member, sent elsewhere since it could not take them, new.
    pub conversations: [u64; 3],
    /// Tokens of a typical answer.
    pub typical_tokens: f64,
    /// Recent times to first content, of whole replies and of streams, where requests may be hedged.
    pub recent: [Histogram; 2],
    /// Requests that may be asked for twice.
    pub hedge_budget: RetryBudget,
}

/// A request that a pool is asked for: counted when it begins, and by its outcome when it ends. One that is dropped was left
/// by whoever had asked.
pub struct Counting {
    slots: Rc<Slots>,
    pool: usize,
    outcome: Outcome,
}

impl Counting {
    /// A request begins.
    pub fn begin(slots: &Rc<Slots>, pool: usize) -> Self {
        slots.pools[pool].stats.borrow_mut().requests += 1;
        Self { slots: Rc::clone(slots), pool, outcome: Outcome::Cancelled }
    }

    /// It has ended so.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.slots.pools[self.pool].stats.borrow_mut().outcomes[self.outcome as usize] += 1;
    }
}

impl PoolStats {
    /// Starts with nothing counted.
    pub fn new(plan: &settings::Pool, now: std::time::Instant) -> Self {
        let share = plan.hedge.as_ref().map_or(0.0, |hedge| hedge.share);
        Self {
            requests: 0,
            absorbed: 0,
            refused: 0,
            members: vec![MemberStats::default(); plan.members.len()],
            outcomes: OutcomeCounts::default(),
            hedges: (0, 0),
            conversations: [0; 3],
            typical_tokens: TYPICAL_TOKENS,
            recent: Default::default(),
            hedge_budget: RetryBudget::with(share, HEDGE_FLOOR, now),
        }
    }
}
