//! The message table: who sends what to whom, and what comes back.
//!
//! | message | from | to | answer |
//! |---|---|---|---|
//! | [`Dispatch`] | front end | [`pool::Pool`] | [`Reply`], sent by whoever ends the request |
//! | [`Job`] | pool | [`provider::Provider`] | none: the reply sender travels in it |
//! | [`Bounce`] | provider | pool | none |
//! | [`Outcome`] | a flight's end | pool | none |
//! | [`ProviderUp`] | shard | pool | none |
//! | [`PermitReturned`] | a flight's end | provider | none |
//! | [`Crashed`] | a caught panic | provider | none |
//! | [`Retire`] | shard | provider | none: a [`RetireReport`] when it has drained |
//! | [`Down`], [`PoolDown`] | provider, pool | [`crate::shard::Shard`] | none |
//! | [`Restart`], [`Snapshot`], [`Cancel`], [`Unqueue`], [`AskStories`] | [`director::Director`] | shard | [`Restarted`], [`ShardState`], flights ended, jobs moved, [`ShardStories`] |
//! | [`Register`] | shard | director | none |
//! | [`RestartBackend`], [`DrainBackend`], [`AskState`], [`FindStories`], [`CancelRequest`] | /admin | director | results |
//!
//! Requests stay on their worker; only what the director sends and gets crosses threads, and that is plain data.

mod choosing;
pub mod director;
mod hedge;
pub mod pool;
pub mod provider;
pub mod slots;
pub(crate) mod standby;
pub mod tally;
mod view;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::attempt::{Call, Cut, Ended, FlightView, Ledger, Reply, ReplySender, Settled};
use crate::balance::{Histogram, MemberStats, Moment};
use crate::chat::Failure;
use crate::story::OutcomeCounts;
use crate::story::{Story, Trace};

/// A request for a pool.
#[derive(Message)]
#[rtype(result = "Reply")]
pub struct Dispatch(pub Arc<Call>);

/// A request on its way to a provider, with everything that decides about it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Job(pub Box<JobParts>);

/// What a job carries.
pub struct JobParts {
    /// The request.
    pub call: Arc<Call>,
    /// What was tried.
    pub ledger: Ledger,
    /// Whom to answer.
    pub reply: ReplySender,
    /// The pool that took the request.
    pub pool: u16,
    /// Place of the chosen member in it.
    pub member: u16,
    /// When it was last looked at.
    pub now: Moment,
    /// Slot of the model that it is asked for.
    pub slot: u16,
    /// Whether it is asked although its circuit is open.
    pub last_resort: bool,
    /// Whether it runs beside another job of the same request that is slow.
    pub is_hedge: bool,
    /// Whom the jobs of a request that may have two of them have asked.
    pub race: Option<Arc<hedge::Asked>>,
    /// Whether the pool has no other member.
    pub only: bool,
}

/// A job that a provider gives back.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Bounce {
    /// The job.
    pub job: Job,
    /// Why.
    pub why: Bounced,
}

/// Why a job comes back.
pub enum Bounced {
    /// No permit is free, and it may not wait here.
    Saturated,
    /// This generation takes no jobs any more.
    Moved,
    /// It was tried without any content until this generation had to end.
    Drained,
    /// It has waited here, and another member has room by now.
    Elsewhere,
    /// A circuit refuses it.
    Shut,
    /// It was tried and failed.
    Failed(Failure),
}

/// How an attempt ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Outcome(pub Settled);

/// A provider of this worker takes jobs again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ProviderUp;

/// A permit was returned while jobs wait for one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PermitReturned;

/// A panic was caught in a task or body of this provider.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Crashed(pub String);

/// A provider is replaced: it finishes what it carries.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Retire {
    /// How long it may take.
    pub deadline: Duration,
    /// Where the report goes.
    pub report: Option<oneshot::Sender<RetireReport>>,
}

/// How a generation drained.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct RetireReport {
    /// Worker thread.
    pub worker: usize,
    /// Attempts it carried when it was replaced.
    pub in_flight_at_start: usize,
    /// Of these, those that ended by themselves.
    pub completed: u64,
    /// Of the completed ones, those that failed or broke.
    pub failed: u64,
    /// Waiting jobs, and at the deadline those without any content, that went to the new generation or another member.
    pub moved: u64,
    /// Attempts that the drain deadline ended.
    pub cut: u64,
    /// Seconds until the last one was gone.
    pub duration_seconds: f64,
}

/// A provider has crashed and stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Down {
    /// Index of the backend.
    pub backend: usize,
    /// Which incarnation.
    pub generation: u32,
    /// The panic's message.
    pub reason: String,
}

/// A pool has crashed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PoolDown {
    /// Index of the pool.
    pub pool: usize,
    /// The panic's message.
    pub reason: String,
}

/// Replace a backend's provider on this worker.
#[derive(Message)]
#[rtype(result = "Restarted")]
pub struct Restart {
    /// Index of the backend.
    pub backend: usize,
    /// The next incarnation's number.
    pub generation: u32,
    /// How long the old one may finish.
    pub deadline: Option<Duration>,
    /// Where its report goes.
    pub report: oneshot::Sender<RetireReport>,
}

/// A worker takes new jobs on the next generation.
#[derive(Debug, MessageResponse)]
pub struct Restarted {
    /// Attempts the old generation still carries.
    pub in_flight: usize,
}

/// Ask a worker for its state.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "ShardState")]
pub struct Snapshot {
    /// Most requests in flight that are told one by one, of each provider and pool.
    pub flights: usize,
}

/// One worker's state.
#[derive(Debug, MessageResponse)]
pub struct ShardState {
    /// Worker thread.
    pub worker: usize,
    /// By backend index.
    pub providers: Vec<ProviderState>,
    /// By pool index.
    pub pools: Vec<PoolState>,
    /// By route index + 1.
    pub routes: Vec<tally::RouteStats>,
}

/// One provider on one worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderState {
    /// `up`, `backing-off` or `failed`.
    pub state: &'static str,
    /// Incarnation; 0 while none is up.
    pub generation: u32,
    /// Seconds since this incarnation started.
    pub uptime_seconds: f64,
    /// Attempts it carries.
    pub in_flight: usize,
    /// Attempts that older incarnations still carry.
    pub draining: usize,
    /// Jobs that wait for a permit.
    pub queued: usize,
    /// Starts after the first.
    pub restarts: u64,
    /// Of these, those after a panic.
    pub crashes: u64,
    /// Why the last restart happened.
    pub last_reason: Option<String>,
    /// Seconds until the next start, while it is not up.
    pub next_start_seconds: Option<f64>,
    /// What it carries.
    #[serde(skip)]
    pub flights: Vec<FlightView>,
    /// Pauses between the pieces of its streams.
    #[serde(skip)]
    pub gaps: Histogram,
}

impl ProviderState {
    /// The same without what it carries.
    pub fn without_flights(&self) -> Self {
        Self { last_reason: self.last_reason.clone(), flights: Vec::new(), gaps: Histogram::default(), ..*self }
    }
}

/// One pool on one worker.
#[derive(Debug, Clone, Default)]
pub struct PoolState {
    /// Requests taken.
    pub requests: u64,
    /// Requests served although an earlier try had failed.
    pub absorbed: u64,
    /// Requests answered with an error.
    pub refused: u64,
    /// How its requests have ended.
    pub outcomes: OutcomeCounts,
    /// Requests that a second member was asked for, and those that it answered first.
    pub hedges: (u64, u64),
    /// Requests of conversations: kept with their member, sent elsewhere, new.
    pub conversations: [u64; 3],
    /// Jobs that wait for a member to start.
    pub parked: usize,
    /// The same, one by one.
    pub waiting: Vec<FlightView>,
    /// Restarts after a panic.
    pub restarts: u32,
    /// By place in the pool.
    pub members: Vec<MemberStats>,
}

/// End the flights of one request, or of all.
#[derive(Message, Clone)]
#[rtype(result = "Ended")]
pub struct Cancel {
    /// The request's id; `None` means every request.
    pub id: Option<String>,
    /// Index of the backend; `None` means every backend.
    pub backend: Option<usize>,
    /// On whose account.
    pub cut: Cut,
}

/// A worker reports for duty.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Register {
    /// Worker thread.
    pub worker: usize,
    /// Its supervisor.
    pub shard: Addr<crate::shard::Shard>,
}

/// Restart a backend everywhere.
#[derive(Message)]
#[rtype(result = "Result<RestartReport, ()>")]
pub struct RestartBackend {
    /// Index of the backend.
    pub backend: usize,
    /// Drain deadline of the old generation.
    pub deadline: Option<Duration>,
    /// Whether to await the whole report.
    pub wait: bool,
    /// Who has asked, for the audit line of its end.
    pub by: String,
}

/// What became of a restart.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RestartReport {
    /// Number of the act.
    pub id: String,
    /// Which backend.
    pub backend: String,
    /// The new incarnation.
    pub generation: u32,
    /// Attempts the old one carried when it was replaced.
    pub in_flight_at_start: usize,
    /// What became of the old one, where that was awaited; told beside this.
    #[serde(skip)]
    pub drained: Option<DrainReport>,
}

/// How the old generation drained on every worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DrainReport {
    /// Attempts that ended by themselves.
    pub completed: u64,
    /// Of these, those that failed or broke.
    pub failed: u64,
    /// Waiting jobs, and at the deadline those without any content, that went to the new generation or another member.
    pub moved: u64,
    /// Attempts that the deadline ended.
    pub cut: u64,
    /// Seconds until the last one was gone.
    pub duration_seconds: f64,
    /// By worker.
    pub workers: Vec<RetireReport>,
}

/// Give the jobs that wait for a backend back to their pools.
#[derive(Message)]
#[rtype(result = "u64")]
pub struct Unqueue {
    /// Index of the backend.
    pub backend: usize,
}

/// Take a backend out everywhere: it gets no more requests, what it carries may finish.
#[derive(Message)]
#[rtype(result = "DrainedBackend")]
pub struct DrainBackend {
    /// Index of the backend.
    pub backend: usize,
    /// When what is left is cut; `None` never cuts.
    pub deadline: Option<Duration>,
    /// Whether to await the end of what it carries.
    pub wait: bool,
    /// Who has asked, for the audit line of its end.
    pub by: String,
}

/// What became of a drain.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct DrainedBackend {
    /// Number of the act.
    pub id: String,
    /// Which backend.
    pub backend: String,
    /// Requests it carried when it was taken out.
    pub in_flight_at_start: u32,
    /// Requests it carries still.
    pub in_flight: u32,
    /// Waiting jobs, and at the deadline those without any content, that were given to other members.
    pub moved: u64,
    /// Requests that the deadline ended.
    pub cut: usize,
    /// Seconds until now.
    pub duration_seconds: f64,
}

/// Ask a worker for stories.
#[derive(Debug, Clone, Message)]
#[rtype(result = "ShardStories")]
pub struct AskStories {
    /// Only of requests with this id, those in flight too.
    pub id: Option<String>,
    /// Only with this outcome, or `absorbed`.
    pub outcome: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// One worker's stories.
#[derive(Debug, Default, MessageResponse)]
pub struct ShardStories {
    /// Worker thread.
    pub worker: usize,
    /// Requests in flight, where an id was asked for.
    pub open: Vec<OpenStory>,
    /// Requests that have ended, newest first.
    pub ended: Vec<Arc<Story>>,
}

/// A request in flight.
#[derive(Debug)]
pub struct OpenStory {
    /// Its id.
    pub id: Arc<str>,
    /// Since it was taken.
    pub age: Duration,
    /// Name of its pool.
    pub pool: Arc<str>,
    /// Name of its route.
    pub route: Option<Arc<str>>,
    /// Name of the caller's key.
    pub caller: Option<Arc<str>>,
    /// What was asked for.
    pub operation: &'static str,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// What has happened.
    pub trace: Trace,
}

/// Ask every worker for stories.
#[derive(Message)]
#[rtype(result = "Vec<ShardStories>")]
pub struct FindStories(pub AskStories);

/// Ask for the state of every worker.
#[derive(Message)]
#[rtype(result = "Vec<Result<ShardState, usize>>")]
pub struct AskState(pub Snapshot);

/// End one request or all, wherever they run.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct CancelRequest(pub Cancel);
