//! What a pool remembers about a member: counts by class, averages, and histograms that add exactly.

use std::time::Duration;

use crate::chat::FailureClass;

const BUCKETS: usize = 96;
/// Lower bound of the first bucket in microseconds.
const FIRST: f64 = 100.0;
/// Buckets per doubling, of equal width within it.
const PER_DOUBLING: usize = 4;

/// Durations in buckets, four per doubling from 0.1 ms to about 1,700 s.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, sum: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let bucket = bucket_of(duration);
        self.counts[bucket] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    /// Durations counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Halves every count, so that newer durations weigh more.
    pub fn fade(&mut self) {
        for count in self.counts.iter_mut() {
            *count /= 2;
        }
        self.total = self.counts.iter().sum();
        self.sum /= 2;
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// What was counted after `earlier`, a former state of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts.clone();
        for (mine, before) in counts.iter_mut().zip(earlier.counts.iter()) {
            *mine = mine.saturating_sub(*before);
        }
        Self { counts, total: self.total.saturating_sub(earlier.total), sum: self.sum.saturating_sub(earlier.sum) }
    }

    /// The duration below which the given share lies (its bucket's upper bound); `None` when nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.total as f64 * share).ceil().max(1.0);
        let mut seen = 0.0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += *count as f64;
            if seen >= wanted {
                return Some(upper_bound(bucket));
            }
        }
        None
    }

    /// By doublings: an upper bound in seconds, and how many durations lie below it. What is longer than the last bound is in
    /// [`Self::total`] only.
    pub fn doublings(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut below = 0;
        // What is longer than the last bound was counted in the last bucket.
        self.counts.chunks(PER_DOUBLING).take(BUCKETS / PER_DOUBLING - 1).enumerate().map(move |(octave, counts)| {
            below += counts.iter().sum::<u64>();
            (upper_bound((octave + 1) * PER_DOUBLING - 1).as_secs_f64(), below)
        })
    }
}

/// The exponent and the first two bits behind the point of a floating-point number are the bucket's number.
#[expect(clippy::cast_possible_truncation, reason = "clamped to the buckets")]
fn bucket_of(duration: Duration) -> usize {
    // Not `as_micros`: numbers of 128 bits are slow to convert.
    let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()));
    let scaled = (micros as f64 / FIRST).max(1.0);
    let place = (scaled.to_bits() >> 50) - (1.0f64.to_bits() >> 50);
    place.min(BUCKETS as u64 - 1) as usize
}

fn upper_bound(bucket: usize) -> Duration {
    let within = (bucket % PER_DOUBLING + 1) as f64 / PER_DOUBLING as f64;
    let doublings = (bucket / PER_DOUBLING) as f64;
    Duration::from_secs_f64(FIRST * doublings.exp2() * (1.0 + within) / 1e6)
}

/// Statistics of one member of a pool on one worker.
#[derive(Debug, Clone, Default)]
pub struct MemberStats {
    /// Times that it was chosen, whatever came of it.
    pub chosen: u64,
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
    /// Of these, those whose request somebody else has taken over.
    pub moved: u64,
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

    /// Tries that failed and streams that broke.
    pub fn failed_tries(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Of these, those that speak against the backend.
    pub fn ill_tries(&self) -> u64 {
        FailureClass::ALL.iter().zip(self.failures).filter(|(class, _)| class.is_backends()).map(|(_, count)| count).sum()
    }

    /// Attempts that failed before first content.
    pub fn failed(&self) -> u64 {
        self.failed_tries().saturating_sub(self.truncated + self.retried)
    }

    /// Takes a time to first content in.
    pub fn answered(&mut self, after: Duration) {
        self.first_content.add(after);
        self.latency = Some(match self.latency {
            None => after,
            Some(before) => before.mul_f64(1.0 - ALPHA) + after.mul_f64(ALPHA),
        });
    }

    /// What was counted after `earlier`, a former state of the same statistics; the average is the present one.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut failures = self.failures;
        for (mine, before) in failures.iter_mut().zip(earlier.failures) {
            *mine = mine.saturating_sub(before);
        }
        Self {
            chosen: self.chosen.saturating_sub(earlier.chosen),
            attempts: self.attempts.saturating_sub(earlier.attempts),
            served: self.served.saturating_sub(earlier.served),
            retried: self.retried.saturating_sub(earlier.retried),
            cancelled: self.cancelled.saturating_sub(earlier.cancelled),
            truncated: self.truncated.saturating_sub(earlier.truncated),
            cut: self.cut.saturating_sub(earlier.cut),
            moved: self.moved.saturating_sub(earlier.moved),
            failures,
            bounced: self.bounced.saturating_sub(earlier.bounced),
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_sub(earlier.completion_tokens),
            cached_tokens: self.cached_tokens.saturating_sub(earlier.cached_tokens),
            latency: self.latency,
            first_content: self.first_content.since(&earlier.first_content),
            duration: self.duration.since(&earlier.duration),
        }
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
        self.chosen += other.chosen;
        self.attempts += other.attempts;
        self.served += other.served;
        self.retried += other.retried;
        self.cancelled += other.cancelled;
        self.truncated += other.truncated;
        self.cut += other.cut;
        self.moved += other.moved;
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
        assert_eq!(histogram.sum(), Duration::from_micros(500_500_000));
        assert!(histogram.doublings().any(|(bound, below)| (bound, below) == (0.4096, 409)));
        let before = histogram.clone();
        histogram.add(Duration::from_secs(9));
        assert_eq!((histogram.since(&before).total(), histogram.since(&before).sum()), (1, Duration::from_secs(9)));
    }

    #[test]
    fn a_bucket_holds_more_than_a_month_of_chunks() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_millis(1));
        for _ in 0..40 {
            let same = histogram.clone();
            histogram.merge(&same);
        }
        assert_eq!(histogram.total(), 1 << 40);
        assert_eq!(histogram.doublings().last().map(|(_, below)| below), Some(1 << 40));
    }

    #[test]
    fn a_duration_lies_below_the_upper_bound_of_its_bucket_and_not_below_the_one_before() {
        for micros in [0, 99, 100, 101, 124, 125, 126, 150, 199, 200, 250, 12_345, 999_999, 60_000_000, 1_500_000_000] {
            let bucket = bucket_of(Duration::from_micros(micros));
            assert!(Duration::from_micros(micros) < upper_bound(bucket), "{micros}");
            assert!(bucket == 0 || Duration::from_micros(micros) >= upper_bound(bucket - 1), "{micros}");
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }
}
