//! Plain values that decide about load: back-off, retry budget, selection, permits, statistics. No clock, no IO.

mod affinity;
mod backoff;
mod budget;
mod choice;
mod circuit;
mod circuit_rules;
mod crash;
mod health;
mod moment;
mod permits;
mod pulse;
mod stats;
pub mod strategy;

pub use affinity::Affinity;
pub use backoff::{back_off, full_jitter};
pub use budget::RetryBudget;
pub use choice::{Bar, Choice, Door, Members, Shut, Turns, any_reachable, choose, last_resort};
pub use circuit::{Admission, Circuit, CircuitState, Lease, Transition};
pub use circuit_rules::{CircuitRules, is_hard};
pub use crash::CrashRecord;
pub use health::{Health, ModelSlot, Probe, Refused, Scope, Transitions, Trouble};
pub use moment::Moment;
pub use permits::{Permit, Permits};
pub use pulse::{Beat, Pulse, Sample};
pub use stats::{Histogram, MemberStats};
pub use strategy::latency::Scouts;
pub use strategy::{Order, Ranked, Standing, Why};
