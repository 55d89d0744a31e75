//! What each class of failure does to a circuit, and for how long.

use std::time::Duration;

use serde::Deserialize;

use crate::chat::{FailureClass, Phase};

/// When circuits open, and for how long: the `circuit` key.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitRules {
    /// Failures in a row.
    pub failures: u32,
    /// Share of failures within the window.
    pub failure_share: f64,
    /// Fewest requests within the window for the share to count.
    pub min_requests: u32,
    /// The window.
    pub window: Duration,
    /// First cool-down after counted failures; it doubles.
    pub cool_down: Duration,
    /// Longest of these.
    pub max_cool_down: Duration,
    /// First cool-down of a rate limit that says no time; it doubles.
    pub rate_limited: Duration,
    /// Longest of these.
    pub max_rate_limited: Duration,
    /// First cool-down of an overloaded provider; it doubles.
    pub overloaded: Duration,
    /// Longest of these.
    pub max_overloaded: Duration,
    /// Cool-down of a refused credential.
    pub credential: Duration,
    /// Cool-down of an account without money or quota.
    pub billing: Duration,
    /// Cool-down of a model that the backend does not have.
    pub model_unknown: Duration,
}

impl Default for CircuitRules {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            failures: 5,
            failure_share: 0.5,
            min_requests: 10,
            window: seconds(30),
            cool_down: seconds(5),
            max_cool_down: seconds(120),
            rate_limited: seconds(5),
            max_rate_limited: seconds(60),
            overloaded: seconds(2),
            max_overloaded: seconds(60),
            credential: seconds(300),
            billing: seconds(3_600),
            model_unknown: seconds(600),
        }
    }
}

/// What a class of failure does to a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Untouched,
    /// It counts; enough of them open the circuit.
    Counts,
    /// It opens the circuit at once, for a time that doubles up to a limit unless the provider names one.
    Opens { first: Duration, limit: Duration },
    /// It opens the circuit at once, for this time or a longer one that the provider names.
    OpensFor(Duration),
}

impl CircuitRules {
    /// What this class does.
    pub(super) fn effect(&self, class: FailureClass) -> Effect {
        match class {
            FailureClass::Caller | FailureClass::Unsupported | FailureClass::Crashed => Effect::Untouched,
            FailureClass::ModelUnknown => Effect::OpensFor(self.model_unknown),
            FailureClass::Credential => Effect::OpensFor(self.credential),
            FailureClass::Billing => Effect::OpensFor(self.billing),
            FailureClass::RateLimited => Effect::Opens { first: self.rate_limited, limit: self.max_rate_limited },
            FailureClass::Overloaded => Effect::Opens { first: self.overloaded, limit: self.max_overloaded },
            FailureClass::Server
            | FailureClass::Socket
            | FailureClass::Malformed
            | FailureClass::Timeout(Phase::Connect | Phase::Head | Phase::FirstContent | Phase::Idle | Phase::Total) => {
                Effect::Counts
            }
        }
    }
}

/// Whether a circuit that is open by this class admits only probes when nothing else is left to ask, since asking is
/// known to be in vain; the others are asked then, least bad first.
pub fn is_hard(class: FailureClass) -> bool {
    matches!(class, FailureClass::RateLimited | FailureClass::Billing | FailureClass::Credential | FailureClass::ModelUnknown)
}
