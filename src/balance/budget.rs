//! The retry budget of one backend on one worker: a share of recent requests, with a floor.

use std::time::{Duration, Instant};

/// Tokens earned by each request.
const SHARE: f64 = 0.2;
/// Tokens that are there without any traffic.
const FLOOR: f64 = 10.0;
/// Tokens by which the floor refills each second.
const REFILL: f64 = 1.0;
/// Most tokens that traffic can save up.
const EARNED_CAP: f64 = 100.0;
/// Seconds after which half of the earned tokens are forgotten: "recent".
const HALF_LIFE: f64 = 10.0;
/// Earning looks at the clock's advance in such steps.
const STEP: Duration = Duration::from_secs(1);

/// A bucket of retries, or of other requests beside those that clients send.
#[derive(Debug)]
pub struct RetryBudget {
    share: f64,
    most: f64,
    floor: f64,
    earned: f64,
    at: Instant,
}

impl RetryBudget {
    /// Starts with the floor.
    pub fn new(now: Instant) -> Self {
        Self::with(SHARE, FLOOR, now)
    }

    /// One of another share and floor; the floor refills within ten seconds.
    pub fn with(share: f64, floor: f64, now: Instant) -> Self {
        Self { share, most: floor, floor, earned: 0.0, at: now }
    }

    /// Counts a request.
    pub fn earn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.at) >= STEP {
            self.pass(now);
        }
        self.earned = (self.earned + self.share).min(EARNED_CAP);
    }

    /// Takes a token for a retry, if there is one.
    pub fn spend(&mut self, now: Instant) -> bool {
        self.pass(now);
        let bucket = if self.earned >= 1.0 { &mut self.earned } else { &mut self.floor };
        if *bucket < 1.0 {
            return false;
        }
        *bucket -= 1.0;
        true
    }

    /// Time has passed: the floor refills, and what was earned is forgotten by and by.
    fn pass(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.floor = (self.floor + elapsed * REFILL * self.most / FLOOR).min(self.most);
        self.earned *= 0.5f64.powf(elapsed / HALF_LIFE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn retries_stay_within_the_share_and_the_floor(steps in prop::collection::vec((0u64..200, any::<bool>()), 1..400)) {
            let start = tokio::time::Instant::now().into_std();
            let mut budget = RetryBudget::new(start);
            let (mut now, mut requests, mut retries) = (start, 0u32, 0u32);
            for (millis, is_request) in steps {
                now += Duration::from_millis(millis);
                if is_request {
                    budget.earn(now);
                    requests += 1;
                } else if budget.spend(now) {
                    retries += 1;
                }
            }
            let seconds = now.duration_since(start).as_secs_f64();
            prop_assert!(f64::from(retries) <= f64::from(requests) * SHARE + FLOOR + seconds * REFILL + 1e-6);
        }
    }

    #[test]
    fn recent_requests_have_earned_their_share_however_long_nothing_was_retried() {
        let start = tokio::time::Instant::now().into_std();
        for quiet in [0, 10, 3_600] {
            let mut budget = RetryBudget::new(start);
            let mut now = start + Duration::from_secs(quiet);
            for _ in 0..6_000 {
                now += Duration::from_millis(10);
                budget.earn(now);
            }
            let retries = (0..200).filter(|_| budget.spend(now)).count();
            assert!((100..=110).contains(&retries), "{retries} after {quiet} s");
            // Long after it is worth no more than the floor.
            assert_eq!((0..200).filter(|_| budget.spend(now + Duration::from_secs(600))).count(), 10);
        }
    }

    #[test]
    fn the_floor_refills_by_one_each_second() {
        let start = tokio::time::Instant::now().into_std();
        let mut budget = RetryBudget::new(start);
        assert!((0..10).all(|_| budget.spend(start)));
        assert!(!budget.spend(start));
        assert!(budget.spend(start + Duration::from_millis(1_001)));
        assert!(!budget.spend(start + Duration::from_millis(1_500)));
    }
}
