//! Pulse: how fast one model of a backend answers now, and what it has not answered yet. Atomics that all workers share,
//! so that each learns from the requests of all; a sample lost to a race is of no consequence.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;

/// Replies shorter than this say nothing about the time per token.
const FEW_TOKENS: u64 = 16;
/// Time after which a sample's weight in an average has fallen to about a third, whatever the rate of samples.
const MEMORY: f64 = 15.0;
/// Least and greatest weight of a new sample: an average of about a hundred under load, and never one sample alone.
const ALPHA: std::ops::RangeInclusive<f64> = 0.02..=0.5;
/// Weight of an answer in less than half of the average by a member that is asked rarely: it has recovered. Among many
/// answers a fast one means nothing.
const RECOVERY: f64 = 0.9;
/// Requests per second, by those that are unanswered and the time that an answer takes, up to which a member is asked
/// rarely: more than scouts are, far less than a share of the load. Pauses between answers would not tell, as slow answers
/// to earlier scouts come between.
const RARE: f64 = 2.0;
/// Weight of a new load that is above the usual one, and of one below: what a member has carried it can carry again.
const LOAD_ALPHA: (f64, f64) = (0.3, 0.02);
/// An answer this many times as fast as the mean age of what is unanswered has overtaken it.
const OVERTAKEN: f64 = 4.0;
/// A failure counts at least this many times what answers take, and so many seconds where there was none.
const PENALTY: (f64, f64) = (2.0, 1.0);
/// Tokens of an answer, where a failure is compared with what answers take.
const TYPICAL_TOKENS: f64 = 200.0;
/// Added to every moment in a sum of moments: a count and a sum that were read apart from each other show by it.
const OFFSET: u64 = 1 << 50;

/// A moving average.
#[derive(Debug, Default)]
struct Average {
    /// An `f32`'s bits, seconds; zero without samples.
    value: AtomicU32,
    /// When the last sample came.
    at: AtomicU64,
    /// Samples so far, as far as they matter.
    samples: AtomicU32,
}

impl Average {
    fn get(&self) -> Option<f64> {
        let bits = self.value.load(Ordering::Relaxed);
        (bits != 0).then(|| f64::from(f32::from_bits(bits)))
    }

    /// The weight of a sample that comes now.
    fn alpha(&self, now: Moment) -> f64 {
        let since = Moment::from_raw(self.at.load(Ordering::Relaxed)).map_or(0.0, |at| now.since(at).as_secs_f64());
        // The first few count the same: one slow answer at the start must not stay for long.
        let few = 1.0 / (f64::from(self.samples.load(Ordering::Relaxed)) + 1.0);
        (1.0 - (-since / MEMORY).exp()).max(few).clamp(*ALPHA.start(), *ALPHA.end())
    }

    fn add(&self, sample: f64, alpha: f64, now: Moment) {
        self.set(self.get().map_or(sample, |before| before + alpha * (sample - before)), now);
    }

    fn set(&self, value: f64, now: Moment) {
        self.put(value);
        self.count(now);
    }

    fn put(&self, value: f64) {
        #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
        let value = (value as f32).max(f32::MIN_POSITIVE);
        self.value.store(value.to_bits(), Ordering::Relaxed);
    }

    /// A sample has come.
    fn count(&self, now: Moment) {
        self.at.store(now.raw(), Ordering::Relaxed);
        let samples = self.samples.load(Ordering::Relaxed);
        self.samples.store(samples.saturating_add(1), Ordering::Relaxed);
    }
}

/// Requests without an answer: how many, and the sum of the moments at which they began.
#[derive(Debug, Default)]
struct Unanswered {
    count: AtomicU64,
    sum: AtomicU64,
    /// What began before has been overtaken and is not counted any more.
    overtaken: AtomicU64,
    /// How many of those are still without an answer.
    left_over: AtomicU32,
}

impl Unanswered {
    fn begin(&self, at: Moment) {
        self.sum.fetch_add(OFFSET.wrapping_add(at.raw()), Ordering::AcqRel);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn end(&self, began: Moment) {
        if began.raw() < self.overtaken.load(Ordering::Acquire) {
            let _ = self.left_over.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
            return;
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.sum.fetch_sub(OFFSET.wrapping_add(began.raw()), Ordering::AcqRel);
    }

    /// An answer came after `took`. What has waited much longer, on average, has been overtaken: it says how the model was,
    /// not how it is. A count that a race has put wrong ends here too. Returns how many there were, and the mean age of
    /// the overtaken.
    fn overtake(&self, took: f64, now: Moment) -> (u32, Option<f64>) {
        let found = self.try_look(now);
        let (count, mean) = found.unwrap_or((0, 0.0));
        let is_overtaken = count > 0 && mean > took * OVERTAKEN;
        if is_overtaken || found.is_none() {
            self.overtaken.store(now.raw(), Ordering::Release);
            self.count.store(0, Ordering::Release);
            self.sum.store(0, Ordering::Release);
            if is_overtaken {
                self.left_over.fetch_add(count, Ordering::Relaxed);
            } else {
                self.left_over.store(0, Ordering::Relaxed);
            }
        }
        (count, is_overtaken.then_some(mean))
    }

    /// How many there are, and their mean age in seconds.
    fn look(&self, now: Moment) -> (u32, f64) {
        self.try_look(now).unwrap_or((0, 0.0))
    }

    fn try_look(&self, now: Moment) -> Option<(u32, f64)> {
        for _ in 0..4 {
            let count = self.count.load(Ordering::Acquire);
            let sum = self.sum.load(Ordering::Acquire);
            let ages = count.wrapping_mul(OFFSET.wrapping_add(now.raw())).wrapping_sub(sum);
            // Read between two writes of another worker, it is off by whole offsets.
            if ages < OFFSET / 2 {
                let mean = if count == 0 { 0.0 } else { ages as f64 / count as f64 / 1e6 };
                return Some((u32::try_from(count).ok()?, mean));
            }
        }
        None
    }
}
/// What is known of one model of a backend.
#[derive(Debug, Default)]
pub struct Pulse {
    first: Average,
    token: Average,
    /// What failures have added to the time that is expected: apart from it, since they say nothing of what answers take and
    /// must not add up to anything. Any answer takes from it.
    trouble: Average,
    /// Requests in flight when the samples' requests began, rather the many than the few.
    load: Average,
    streams: Unanswered,
    wholes: Unanswered,
    chosen: AtomicU64,
    /// When the request began whose answer ended the latest hang.
    recovered: AtomicU64,
}

/// An answer's timing.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Whether it was a stream.
    pub stream: bool,
    /// To the first content; for a whole reply, to its end.
    pub took: Duration,
    /// From the first content to the end of a stream.
    pub rest: Option<Duration>,
    /// Output tokens.
    pub tokens: u64,
    /// Requests in flight at the backend when it began.
    pub load: u32,
}

/// What a pulse says at some moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beat {
    /// Seconds an answer is expected to take; `None` before the first sample.
    pub expected: Option<f64>,
    /// Requests in flight when the samples behind it began, on average.
    pub usual_load: f64,
    /// Seconds since the last sample.
    pub sample_age: f64,
    /// Seconds since it was last chosen; infinite before.
    pub idle: f64,
    /// Requests of this kind without an answer that no later one has overtaken.
    pub waiting: u32,
    /// Their mean age in seconds.
    pub waited: f64,
    /// Requests of this kind without an answer that a later one has overtaken.
    pub overtaken: u32,
}

impl Pulse {
    /// A request was sent.
    pub fn begin(&self, stream: bool, now: Moment) {
        self.kind(stream).begin(now);
    }

    /// A request that began then has its answer, or will have none.
    pub fn end(&self, stream: bool, began: Moment) {
        self.kind(stream).end(began);
    }

    /// A member was chosen.
    pub fn choose(&self, now: Moment) {
        self.chosen.store(now.raw(), Ordering::Relaxed);
    }

    /// Takes an answer's first content in.
    pub fn answered(&self, sample: &Sample, now: Moment) {
        let took = sample.took.as_secs_f64();
        let (waiting, overtaken) = self.kind(sample.stream).overtake(took, now);
        // Those that were overtaken have mostly begun after the last answer: all hung, not only some.
        if overtaken.is_some_and(|mean| self.silence(now) * 2.0 >= mean) {
            self.recovered.store((now - sample.took).raw(), Ordering::Relaxed);
        }
        self.carried(f64::from(sample.load), now);
        // The tokens of a whole reply take their time too; where no stream has told the time to first content, all of it
        // counts as time per token.
        let (average, sampled) = if sample.stream {
            (&self.first, took)
        } else if sample.tokens >= FEW_TOKENS {
            let first = self.first.get().unwrap_or(0.0);
            (&self.token, (took - first).max(took * 0.1) / sample.tokens as f64)
        } else {
            (&self.first, (took - self.token.get().unwrap_or(0.0) * sample.tokens as f64).max(took * 0.1))
        };
        let expected = self.expected(sample.stream, sample.tokens as f64);
        let has_recovered = self.is_rare(sample, waiting) && expected.is_some_and(|expected| took < expected / 2.0);
        let alpha = if has_recovered { RECOVERY } else { average.alpha(now) };
        average.add(sampled, alpha, now);
        if let Some(trouble) = self.trouble.get() {
            self.trouble.put(trouble * (1.0 - alpha));
        }
    }

    /// Takes the end of a stream in.
    pub fn finished(&self, sample: &Sample, now: Moment) {
        if let Some(rest) = sample.rest
            && sample.tokens >= FEW_TOKENS
        {
            let (waiting, _) = self.kind(sample.stream).look(now);
            let sampled = rest.as_secs_f64() / sample.tokens as f64;
            let has_recovered = self.is_rare(sample, waiting) && self.token.get().is_some_and(|before| sampled < before / 2.0);
            self.token.add(sampled, if has_recovered { RECOVERY } else { self.token.alpha(now) }, now);
        }
    }

    /// Takes a failure in: never as a fast sample, however soon it came.
    pub fn failed(&self, after: Duration, now: Moment) {
        if self.has_recovered_since(now - after) {
            return;
        }
        let usual = self.first.get().or_else(|| self.token.get().map(|token| token * TYPICAL_TOKENS));
        let least = usual.map_or(PENALTY.1, |usual| usual * (PENALTY.0 - 1.0));
        let penalty = (after.as_secs_f64() - usual.unwrap_or(0.0)).max(least);
        // It weighs as an answer would, and answers after it as after an answer.
        let average = if self.first.get().is_some() || self.token.get().is_none() { &self.first } else { &self.token };
        let alpha = if usual.is_some() { average.alpha(now) } else { 1.0 };
        let before = self.trouble.get().unwrap_or(0.0);
        self.trouble.put(before + alpha * (penalty - before));
        average.count(now);
    }

    /// A request was given up before it had an answer: it would have taken longer than that.
    pub fn given_up(&self, stream: bool, after: Duration, now: Moment) {
        if !stream || self.has_recovered_since(now - after) {
            return;
        }
        let after = after.as_secs_f64();
        if self.expected(stream, 0.0).is_some_and(|expected| after > expected) {
            self.first.add(after, self.first.alpha(now), now);
        }
    }

    /// Whether what began then hung, and the member has answered since: that says how it was, not how it is.
    fn has_recovered_since(&self, began: Moment) -> bool {
        began.raw() < self.recovered.load(Ordering::Relaxed)
    }

    /// Whether so few are unanswered that the member cannot have been asked more than rarely.
    fn is_rare(&self, sample: &Sample, waiting: u32) -> bool {
        let expected = self.expected(sample.stream, sample.tokens as f64).unwrap_or(0.0);
        f64::from(waiting) <= expected * RARE
    }

    /// Takes the load of an answered request in.
    fn carried(&self, load: f64, now: Moment) {
        let usual = self.load.get().map_or(load, |usual| {
            let alpha = if load > usual { LOAD_ALPHA.0 } else { LOAD_ALPHA.1 };
            usual + alpha * (load - usual)
        });
        self.load.set(usual, now);
    }

    /// What it says now, for a stream or for a whole reply of so many tokens.
    pub fn beat(&self, stream: bool, typical_tokens: f64, now: Moment) -> Beat {
        let kind = self.kind(stream);
        let (waiting, waited) = kind.look(now);
        Beat {
            expected: self.expected(stream, typical_tokens),
            usual_load: self.load.get().unwrap_or(0.0),
            sample_age: self.silence(now),
            idle: ago(&self.chosen, now),
            waiting,
            waited,
            overtaken: kind.left_over.load(Ordering::Relaxed),
        }
    }

    /// Seconds that an answer takes, by those that have come alone.
    pub fn usual(&self, stream: bool, tokens: f64) -> Option<f64> {
        let rest = if stream { Some(0.0) } else { self.token.get().map(|token| token * tokens) };
        match (self.first.get(), rest) {
            (Some(first), rest) => Some(first + rest.unwrap_or(0.0)),
            // Only whole replies so far: the time per token is all that is known.
            (None, Some(rest)) if !stream => Some(rest),
            (None, _) => self.token.get().map(|token| token * FEW_TOKENS as f64),
        }
    }

    fn expected(&self, stream: bool, tokens: f64) -> Option<f64> {
        let usual = self.usual(stream, tokens);
        match self.trouble.get() {
            None => usual,
            Some(trouble) => Some(usual.unwrap_or(0.0) + trouble),
        }
    }

    /// Seconds since the last answer.
    fn silence(&self, now: Moment) -> f64 {
        ago(&self.load.at, now)
    }

    /// Forgets what was measured; what is in flight stays counted.
    pub fn reset(&self) {
        for average in [&self.first, &self.token, &self.load, &self.trouble] {
            average.value.store(0, Ordering::Relaxed);
            average.at.store(0, Ordering::Relaxed);
            average.samples.store(0, Ordering::Relaxed);
        }
        self.chosen.store(0, Ordering::Relaxed);
    }

    /// Seconds to first content and per token, as far as they are known.
    pub fn averages(&self) -> (Option<f64>, Option<f64>) {
        (self.first.get(), self.token.get())
    }

    fn kind(&self, stream: bool) -> &Unanswered {
        if stream { &self.streams } else { &self.wholes }
    }
}

/// Seconds since a moment in an atomic; infinite for never.
fn ago(at: &AtomicU64, now: Moment) -> f64 {
    Moment::from_raw(at.load(Ordering::Relaxed)).map_or(f64::INFINITY, |at| now.since(at).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after(Duration::from_millis(millis))
    }

    fn stream(millis: u64) -> Sample {
        Sample { stream: true, took: Duration::from_millis(millis), rest: None, tokens: 0, load: 1 }
    }

    #[test]
    fn a_stream_is_scored_by_first_content_and_a_whole_reply_by_its_tokens_too() {
        let pulse = Pulse::default();
        assert_eq!(pulse.beat(true, 100.0, at(0)).expected, None);
        pulse.answered(&stream(500), at(0));
        pulse.finished(&Sample { rest: Some(Duration::from_secs(1)), tokens: 100, ..stream(500) }, at(1_000));
        let near = |value: Option<f64>, wanted: f64| (value.unwrap() - wanted).abs() < 1e-6;
        assert!(near(pulse.beat(true, 100.0, at(1_000)).expected, 0.5));
        assert!(near(pulse.beat(false, 200.0, at(1_000)).expected, 2.5));
    }

    #[test]
    fn unanswered_requests_are_known_by_number_and_age() {
        let pulse = Pulse::default();
        pulse.begin(true, at(0));
        pulse.begin(true, at(1_000));
        let beat = pulse.beat(true, 0.0, at(2_000));
        assert_eq!(beat.waiting, 2);
        assert!((beat.waited - 1.5).abs() < 1e-6);
        pulse.end(true, at(0));
        pulse.end(true, at(1_000));
        assert_eq!(pulse.beat(true, 0.0, at(2_000)).waiting, 0);
    }

    #[test]
    fn a_failure_is_never_a_fast_sample() {
        let pulse = Pulse::default();
        pulse.answered(&stream(800), at(0));
        pulse.failed(Duration::from_millis(1), at(5_000));
        assert!(pulse.beat(true, 0.0, at(5_000)).expected.unwrap() > 0.9);
        assert_eq!(pulse.averages().0, Some(f64::from(0.8f32)), "it says nothing of what answers take");
        let unknown = Pulse::default();
        unknown.failed(Duration::from_millis(1), at(0));
        assert!(unknown.beat(true, 0.0, at(0)).expected.unwrap() >= 1.0);
    }

    #[test]
    fn failures_do_not_add_up_and_answers_of_either_kind_end_their_effect() {
        for stream in [true, false] {
            let pulse = Pulse::default();
            let answer = Sample { stream, tokens: if stream { 0 } else { 40 }, ..self::stream(500) };
            let expected = |now| pulse.beat(stream, 40.0, now).expected.unwrap();
            (0..50).for_each(|step| pulse.answered(&answer, at(step * 20)));
            let before = expected(at(1_000));
            (0..50_000).for_each(|step| pulse.failed(Duration::from_millis(1), at(1_000 + step)));
            let ill = expected(at(51_000));
            assert!(ill > before * 1.2 && ill < before * 6.0, "{stream}: {before} {ill}");
            (0..300).for_each(|step| pulse.answered(&answer, at(51_000 + step * 20)));
            let after = expected(at(57_000));
            assert!((after / before - 1.0).abs() < 0.05, "{stream}: {before} {ill} {after}");
        }
    }

    #[test]
    fn what_an_answer_has_overtaken_by_far_is_not_counted_any_more() {
        let pulse = Pulse::default();
        for _ in 0..3 {
            pulse.begin(true, at(0));
        }
        pulse.begin(true, at(29_500));
        pulse.answered(&stream(500), at(30_000));
        let overtaken = |now| (pulse.beat(true, 0.0, now).waiting, pulse.beat(true, 0.0, now).overtaken);
        assert_eq!(overtaken(at(30_000)), (0, 4));
        pulse.end(true, at(0));
        assert_eq!(overtaken(at(30_000)), (0, 3));
        pulse.begin(true, at(31_000));
        assert_eq!(pulse.beat(true, 0.0, at(32_000)).waiting, 1);
    }

    #[test]
    fn a_fast_answer_of_a_rarely_asked_member_is_believed_and_one_among_many_is_not() {
        let after = |waiting| {
            let pulse = Pulse::default();
            for step in 0..100 {
                pulse.answered(&stream(5_000), at(step * 10));
            }
            (0..waiting).for_each(|_| pulse.begin(true, at(0)));
            pulse.answered(&stream(500), at(1_000));
            pulse.beat(true, 0.0, at(1_000)).expected.unwrap()
        };
        assert!(after(500) > 4.5 && after(4) < 1.0, "{} {}", after(500), after(4));
    }

    #[test]
    fn what_ends_in_vain_after_a_hang_is_over_says_nothing_and_among_answers_it_does() {
        let after = |answers: std::ops::Range<u64>| {
            let pulse = Pulse::default();
            pulse.answered(&stream(500), at(500));
            (0..20).for_each(|_| pulse.begin(true, at(1_000)));
            answers.for_each(|half| pulse.answered(&stream(500), at(half * 500)));
            (0..20).for_each(|_| pulse.failed(Duration::from_secs(60), at(61_000)));
            pulse.beat(true, 0.0, at(61_000)).expected.unwrap()
        };
        assert!(after(80..82) < 1.0 && after(3..82) > 5.0, "{} {}", after(80..82), after(3..82));
    }

    #[test]
    fn many_threads_leave_the_counters_at_zero() {
        let pulse = Pulse::default();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let pulse = &pulse;
                scope.spawn(move || {
                    for step in 0..5_000 {
                        pulse.begin(true, at(thread * 7 + step));
                        let (count, mean) = pulse.streams.look(at(10_000));
                        assert!(count <= 4 && mean <= 10.0, "{count} {mean}");
                        pulse.end(true, at(thread * 7 + step));
                    }
                });
            }
        });
        assert_eq!(pulse.streams.look(at(10_000)), (0, 0.0));
    }
}
