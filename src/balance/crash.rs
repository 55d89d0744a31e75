//! How often an actor has crashed, and when its next generation may start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Window over which crashes are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Wait before the first restart.
const BASE: Duration = Duration::from_millis(20);
/// Longest wait before a restart.
const CAP: Duration = Duration::from_secs(2);

/// Crashes of one actor within the last minute.
#[derive(Debug, Default)]
pub struct CrashRecord {
    recent: VecDeque<Instant>,
}

impl CrashRecord {
    /// Notes a crash and says how long to wait before the next start; `Err` with the wait when the cap is passed.
    ///
    /// # Errors
    /// The actor has crashed more than `cap` times within a minute: it counts as failed until the window has room.
    pub fn note(&mut self, now: Instant, cap: usize) -> Result<Duration, Duration> {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        if self.recent.len() > cap {
            return Err(WINDOW);
        }
        let in_a_row = self.recent.iter().rev().take_while(|at| now.duration_since(**at) < Duration::from_secs(5)).count();
        let doublings = u32::try_from(in_a_row.saturating_sub(1)).unwrap_or(u32::MAX);
        Ok(super::full_jitter(BASE, CAP, doublings, 1.0))
    }

    /// Forgets everything, as after an operator's restart.
    pub fn clear(&mut self) {
        self.recent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_and_the_cap_is_kept() {
        let start = tokio::time::Instant::now().into_std();
        let mut record = CrashRecord::default();
        assert_eq!(record.note(start, 3), Ok(Duration::from_millis(20)));
        assert_eq!(record.note(start, 3), Ok(Duration::from_millis(40)));
        assert_eq!(record.note(start, 3), Ok(Duration::from_millis(80)));
        assert!(record.note(start, 3).is_err());
        assert_eq!(record.note(start + Duration::from_secs(61), 3), Ok(Duration::from_millis(20)));
    }
}
