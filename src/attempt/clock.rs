//! Clock: turns instants into moments that fit an atomic.

use tokio::time::Instant;

use crate::balance::Moment;

/// The process's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The moment of an instant.
    pub fn at(self, instant: Instant) -> Moment {
        Moment::after(instant.saturating_duration_since(self.0))
    }

    /// The present moment.
    pub fn now(self) -> Moment {
        self.at(Instant::now())
    }
}
