//! How an attempt ends: the one outcome of each, and why the gateway itself may end it.

use std::time::Duration;

use smallvec::SmallVec;

use crate::chat::{FailureClass, Phase, Usage};
use crate::error::GatewayError;
use crate::story::Outcome;

/// Why the gateway itself ends a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The drain deadline of a replaced generation.
    Drain,
    /// An operator.
    Operator,
    /// The end of the process.
    Shutdown,
    /// The total limit of a stream.
    Total,
    /// The provider was silent for too long.
    Idle,
    /// The client did not read for too long.
    Stall,
}

impl Cut {
    /// The error for a request that has no reply yet.
    pub fn error(self) -> GatewayError {
        GatewayError::Cut { by: self.words(), is_final: self == Self::Operator }
    }

    /// How a flight ends by it.
    pub fn end(self) -> End {
        match self {
            Self::Drain | Self::Operator | Self::Shutdown => End::Cut,
            Self::Stall => End::Cancelled,
            Self::Total => End::Truncated(FailureClass::Timeout(Phase::Total)),
            Self::Idle => End::Truncated(FailureClass::Timeout(Phase::Idle)),
        }
    }

    /// What the client is told.
    pub fn words(self) -> &'static str {
        match self {
            Self::Drain => "the drain deadline of its backend",
            Self::Operator => "an operator",
            Self::Shutdown => "the gateway's shutdown",
            Self::Total => "the time limit for streams",
            Self::Idle => "the provider's silence",
            Self::Stall => "the client's pause in reading",
        }
    }
}

/// How many requests the gateway has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Whose clients see it.
    pub cut: usize,
    /// That somebody else takes over.
    pub moved: usize,
}

impl std::ops::AddAssign for Ended {
    fn add_assign(&mut self, more: Self) {
        self.cut += more.cut;
        self.moved += more.moved;
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The reply was delivered whole.
    Served,
    /// It failed before first content.
    Failed(FailureClass),
    /// The client left.
    Cancelled,
    /// The stream broke after first content.
    Truncated(FailureClass),
    /// A drain deadline or an operator ended it.
    Cut,
}

impl End {
    /// The outcome without its reason.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Served => Outcome::Served,
            Self::Failed(_) => Outcome::Failed,
            Self::Cancelled => Outcome::Cancelled,
            Self::Truncated(_) => Outcome::Truncated,
            Self::Cut => Outcome::Cut,
        }
    }
}

/// The one outcome of an attempt, as its pool gets it.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Place of the member in its pool.
    pub member: u16,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// How it ended.
    pub end: End,
    /// From the last try's start to its first content (whole replies: to the reply).
    pub first_content: Option<Duration>,
    /// From the attempt's start to its end.
    pub duration: Duration,
    /// Tokens, reported or estimated.
    pub usage: Option<Usage>,
    /// Whether earlier tries of the request had failed.
    pub absorbed: bool,
    /// Whether somebody else takes the request over.
    pub moved: bool,
    /// Classes of the tries at this member that were followed by another one.
    pub failed_tries: FailedTries,
}

/// Classes of failed tries; nearly always none.
pub(super) type FailedTries = SmallVec<[FailureClass; 2]>;
