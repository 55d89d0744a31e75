//! The script: which fault befalls which request, and how long things take. Deterministic by seed and request number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::settings::{self, Simulated};

/// Draws a plan for each request.
pub struct Script {
    /// Settings of the backend.
    pub settings: Simulated,
    /// Requests sent, and jobs admitted.
    numbers: Arc<[AtomicU64; 2]>,
}

/// What happens to one request.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Number of the request, from 1.
    pub number: u64,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Time to the first token.
    pub first_token: Duration,
    gap: Duration,
    jitter: f64,
    seed: u64,
}

/// A fault as it is carried out; numbers are places of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    ConnectRefused,
    Reset,
    Status(u16, Option<Duration>),
    SlowHead(Duration),
    Stall(u64),
    Cut(u64),
    Malformed(u64),
    ErrorEvent(u64),
    PanicTask,
    PanicBody(u64),
}

impl Script {
    /// Starts.
    pub fn new(settings: Simulated, numbers: Arc<[AtomicU64; 2]>) -> Self {
        Self { settings, numbers }
    }

    /// The plan for the next request.
    pub fn next(&self) -> Plan {
        let number = self.numbers[0].fetch_add(1, Ordering::Relaxed) + 1;
        let seed = self.settings.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let jitter = self.settings.jitter;
        Plan {
            number,
            fault: self.faults().find(|(place, fault)| self.befalls(*place, fault, number)).and_then(|(_, told)| fault(told)),
            first_token: vary(self.settings.first_token, jitter, seed, 0),
            gap: Duration::from_secs_f64(1.0 / self.settings.tokens_per_second),
            jitter,
            seed,
        }
    }

    /// Whether the fault `panic-handler` befalls the next job.
    pub fn panics_on_admission(&self) -> bool {
        let number = self.numbers[1].fetch_add(1, Ordering::Relaxed) + 1;
        self.faults().any(|(place, fault)| fault.kind == "panic-handler" && self.befalls(place, fault, number))
    }

    /// The faults with their places in the list.
    fn faults(&self) -> impl Iterator<Item = (u64, &settings::Fault)> {
        (0..).zip(&self.settings.faults)
    }

    /// Each fault of the list is drawn for by itself.
    fn befalls(&self, place: u64, fault: &settings::Fault, number: u64) -> bool {
        fault.requests.contains(&number)
            || (fault.probability > 0.0
                && unit(self.settings.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93), place) < fault.probability)
    }
}

impl Plan {
    /// The pause before an event.
    pub fn gap(&self, place: u64) -> Duration {
        vary(self.gap, self.jitter, self.seed, place)
    }
}

fn fault(fault: &settings::Fault) -> Option<Fault> {
    let event = fault.event.unwrap_or(1);
    match fault.kind.as_str() {
        "connect-refused" => Some(Fault::ConnectRefused),
        "reset" => Some(Fault::Reset),
        "status" => Some(Fault::Status(fault.status.unwrap_or(500), fault.retry_after)),
        "slow-head" => Some(Fault::SlowHead(fault.after.unwrap_or(Duration::from_secs(10)))),
        "stall" => Some(Fault::Stall(event)),
        "cut" => Some(Fault::Cut(event)),
        "malformed" => Some(Fault::Malformed(event)),
        "error-event" => Some(Fault::ErrorEvent(event)),
        "panic-task" => Some(Fault::PanicTask),
        "panic-body" => Some(Fault::PanicBody(event)),
        // Carried out on admission.
        _ => None,
    }
}

fn vary(duration: Duration, jitter: f64, seed: u64, place: u64) -> Duration {
    duration.mul_f64(1.0 + jitter * (2.0 * unit(seed, place) - 1.0))
}

/// A number in 0..1 from a seed and a place.
fn unit(seed: u64, place: u64) -> f64 {
    fastrand::Rng::with_seed(seed.wrapping_add(place.wrapping_mul(0xbf58_476d_1ce4_e5b9))).f64()
}
