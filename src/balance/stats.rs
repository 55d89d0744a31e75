//! What a pool remembers about a member: counts by class, averages, and log-bucket histograms that add exactly.

use std::time::Duration;

use crate::chat::FailureClass;

const BUCKETS: usize = 96;
/// Lower bound of the first bucket in microseconds.
const FIRST: f64 = 100.0;
/// Buckets per doubling.
const PER_DOUBLING: f64 = 4.0;

/// Durations in logarithmic buckets, four per doubling from 0.1 ms to about 1,700 s.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let micros = duration.as_secs_f64() * 1e6;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the buckets")]
        let bucket = ((micros / FIRST).max(1.0).log2() * PER_DOUBLING).clamp(0.0, (BUCKETS - 1) as f64) as usize;
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
        self.total += 1;
    }

    /// Durations counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Halves every count, so that newer durations weigh more.
    pub fn fade(&mut self) {
        for count in self.counts.iter_mut() {
            *count /= 2;
        }
        self.total = self.counts.iter().map(|count| u64::from(*count)).sum();
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine = mine.saturating_add(*theirs);
        }
        self.total += other.total;
    }

    /// The duration below which the given share lies (its bucket's upper bound); `None` when nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.total as f64 * share).ceil().max(1.0);
        let mut seen = 0.0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= wanted {
                return Some(Duration::from_secs_f64(FIRST * 2f64.powf((bucket + 1) as f64 / PER_DOUBLING) / 1e6));
            }
        }
        None
    }
}

/// Statistics of one member of a pool on one worker.
#[derive(Debug, Clone, Default)]
pub struct MemberStats {
    /// Attempts settled.
    pub attempts: u64,
    /// Attempts whose reply was served.
    pub served: u64,
    /// Tries that failed and were followed by another one at the same member; counted in the failures too.
    pub retried: u64,
    /// Attempts that the client left.
    pub cancelled: u64,
    /// Streams that broke after first content.
    pub truncated: u64,
    /// Replies ended by a drain deadline or an operator.
    pub cut: u64,
    /// Failed attempts by class, in the order of [`FailureClass::ALL`].
    pub failures: [u64; FailureClass::ALL.len()],
    /// Jobs given back without an attempt because every permit was taken.
    pub bounced: u64,
    /// Input tokens, reported or estimated.
    pub prompt_tokens: u64,
    /// Output tokens, reported or estimated.
    pub completion_tokens: u64,
    /// Input tokens that the provider read from its cache.
    pub cached_tokens: u64,
    /// Moving average of the time to first content (whole replies: to the reply).
    pub latency: Option<Duration>,
    /// Time to first content.
    pub first_content: Histogram,
    /// Time of the whole attempt.
    pub duration: Histogram,
}

/// Weight of a new sample in the moving average.
const ALPHA: f64 = 0.2;

impl MemberStats {
    /// Counts a failure.
    pub fn fail(&mut self, class: FailureClass) {
        if let Some(place) = FailureClass::ALL.iter().position(|known| *known == class) {
            self.failures[place] += 1;
        }
    }

    /// Takes a time to first content in.
    pub fn answered(&mut self, after: Duration) {
        self.first_content.add(after);
        self.latency = Some(match self.latency {
            None => after,
            Some(before) => before.mul_f64(1.0 - ALPHA) + after.mul_f64(ALPHA),
        });
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        let weight = |stats: &Self| stats.first_content.total as f64;
        self.latency = match (self.latency, other.latency) {
            (Some(mine), Some(theirs)) => {
                let (a, b) = (weight(self), weight(other));
                Some(Duration::from_secs_f64((mine.as_secs_f64() * a + theirs.as_secs_f64() * b) / (a + b).max(1.0)))
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.attempts += other.attempts;
        self.served += other.served;
        self.retried += other.retried;
        self.cancelled += other.cancelled;
        self.truncated += other.truncated;
        self.cut += other.cut;
        self.bounced += other.bounced;
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        for (mine, theirs) in self.failures.iter_mut().zip(other.failures) {
            *mine += theirs;
        }
        self.first_content.merge(&other.first_content);
        self.duration.merge(&other.duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_a_bucket_of_the_truth() {
        let mut histogram = Histogram::default();
        for millis in 1..=1_000 {
            histogram.add(Duration::from_millis(millis));
        }
        let p50 = histogram.quantile(0.5).unwrap().as_secs_f64();
        let p99 = histogram.quantile(0.99).unwrap().as_secs_f64();
        assert!((0.5..0.6).contains(&p50), "{p50}");
        assert!((0.99..1.2).contains(&p99), "{p99}");
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
