//! Headroom: what a provider says, in the headers of its replies, that it may still be asked. The last word counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Clock;
use crate::balance::Moment;

/// Stands for what was never said.
const UNSAID: u64 = u64::MAX;

/// What one provider said last; shared by all workers.
#[derive(Debug)]
pub struct Headroom {
    said: [AtomicU64; 4],
    at: AtomicU64,
    clock: Clock,
}

/// One provider's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Requests that are left, and how many there may be.
    pub requests: (Option<u64>, Option<u64>),
    /// Tokens that are left, and how many there may be.
    pub tokens: (Option<u64>, Option<u64>),
    /// When it said so.
    pub at: Moment,
}

impl Headroom {
    /// Starts with nothing said.
    pub fn new(clock: Clock) -> Self {
        Self { said: std::array::from_fn(|_| AtomicU64::new(UNSAID)), at: AtomicU64::new(0), clock }
    }

    /// Takes in a header under OpenAI's name, such as `x-ratelimit-remaining-requests`; anything else is let pass.
    pub fn note(&self, name: &str, value: &str) {
        let place = match name.strip_prefix("x-ratelimit-") {
            Some("remaining-requests") => 0,
            Some("limit-requests") => 1,
            Some("remaining-tokens") => 2,
            Some("limit-tokens") => 3,
            Some(_) | None => return,
        };
        if let Ok(number) = value.trim().parse::<u64>() {
            self.said[place].store(number, Ordering::Relaxed);
            self.at.store(self.clock.now().raw(), Ordering::Relaxed);
        }
    }

    /// What was said last; `None` before the first word.
    pub fn said(&self) -> Option<Said> {
        let at = Moment::from_raw(self.at.load(Ordering::Relaxed))?;
        let number = |place: usize| Some(self.said[place].load(Ordering::Relaxed)).filter(|number| *number != UNSAID);
        Some(Said { requests: (number(0), number(1)), tokens: (number(2), number(3)), at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_other_headers_are_let_pass() {
        let headroom = Headroom::new(Clock::start());
        headroom.note("x-ratelimit-reset-requests", "1s");
        headroom.note("x-request-id", "7");
        headroom.note("x-ratelimit-limit-tokens", "many");
        assert_eq!(headroom.said(), None);
        headroom.note("x-ratelimit-remaining-requests", "9");
        headroom.note("x-ratelimit-remaining-requests", " 8");
        headroom.note("x-ratelimit-limit-tokens", "1000");
        let said = headroom.said().unwrap();
        assert_eq!((said.requests, said.tokens), ((Some(8), None), (None, Some(1000))));
    }
}
