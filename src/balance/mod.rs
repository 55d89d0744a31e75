//! Plain values that decide about load: back-off, retry budget, selection, permits, statistics. No clock, no IO.

mod backoff;
mod budget;
mod crash;
mod permits;
mod select;
mod stats;

pub use backoff::{back_off, full_jitter};
pub use budget::RetryBudget;
pub use crash::CrashRecord;
pub use permits::{Permit, Permits};
pub use select::pick;
pub use stats::{Histogram, MemberStats};
