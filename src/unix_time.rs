//! The wall clock, for what is told to people and other services; how long things take is measured by `tokio::time`.

use std::time::{Duration, SystemTime};

/// Time since 1970; zero on a machine whose clock is set before that.
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
