//! The operator's API as types: everything that /admin shows, and what `stagedoor top` and the metrics are made of.
//!
//! Times are in seconds; what is `null` is not known.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::actors::ProviderState;
use crate::attempt::FlightView;
use crate::journal::Event;

/// The gateway as it is now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct State {
    /// Unix time of this state.
    pub at: f64,
    /// Whether clients are being served, in a word and in a sentence.
    pub verdict: Verdict,
    /// Version of the gateway.
    pub version: &'static str,
    /// How it was built.
    pub build: &'static str,
    /// What it was configured with.
    pub configuration: Configuration,
    /// Unix time at which the process started: another process has another.
    pub started_at: f64,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// Whether the process is about to end and takes no new connections.
    pub draining: bool,
    /// Requests between their head and the end of their answer.
    pub open_requests: u64,
    /// Open client connections.
    pub connections: u64,
    /// Bytes of request bodies that are held.
    pub body_bytes: u64,
    /// Most bytes of request bodies that may be held.
    pub body_limit_bytes: u64,
    /// Resident memory of the process.
    pub memory_bytes: Option<u64>,
    /// All workers.
    pub workers: Vec<usize>,
    /// Workers that have not answered in time: what is told of them is old.
    pub late_workers: Vec<usize>,
    /// Backends, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// Pools: the configured ones, then a pool of one for each backend.
    pub pools: Vec<Pool>,
    /// Routes; the first, without a name, counts what no configured route took.
    pub routes: Vec<Route>,
    /// What has happened, oldest first; at most 1,000. Not in the stream of states, where each is an event of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub events: Vec<Event>,
}

/// Whether clients are being served.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Verdict {
    /// The answer.
    pub level: Level,
    /// The same as a sentence.
    pub words: String,
    /// Backends that take no requests now, or fail.
    pub backends_down: usize,
    /// All backends.
    pub backends: usize,
    /// Seconds that the following numbers are of: five minutes, or less after a start.
    pub window_seconds: f64,
    /// Requests that have ended, without those that clients left or were to mend.
    pub requests: u64,
    /// Of these, the ones that failed, broke or were cut.
    pub failed: u64,
    /// `failed` of `requests`; `null` without requests.
    pub error_rate: Option<f64>,
    /// Requests whose clients left before any content had come; not in `requests`.
    pub given_up: u64,
    /// Requests that failed and that their clients are to mend; not in `requests`.
    pub client_errors: u64,
    /// Requests that were served although a first try had failed.
    pub absorbed: u64,
    /// Requests per second over the last minute.
    pub requests_per_second: f64,
}

/// How it stands, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Clients are served.
    Serving,
    /// Nothing has been asked for that could tell: nothing is known.
    Unknown,
    /// Clients are served, but something is ill.
    Degraded,
    /// The process is about to end.
    Draining,
    /// Clients see errors, or give up waiting.
    Failing,
    /// No backend can take a request.
    Down,
}

impl Level {
    /// The word used in the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Unknown => "unknown",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Failing => "failing",
            Self::Down => "down",
        }
    }
}

/// What the gateway was configured with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Configuration {
    /// File, or another origin.
    pub source: String,
    /// SHA-256 of the merged document, before variables are put in.
    pub sha256: String,
}

/// One backend.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Backend {
    /// Unique name.
    pub name: String,
    /// `openai`, `anthropic`, `azure-openai`, `google`, `meta`, `mistral` or `simulated`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its wire format.
    pub dialect: &'static str,
    /// Host that it is reached at; `null` if it is simulated.
    pub host: Option<String>,
    /// Last four characters of its key.
    pub key: Option<String>,
    /// How it is.
    pub condition: Condition,
    /// Why, in words.
    pub reason: String,
    /// Seconds since its condition has been this one.
    pub since_seconds: f64,
    /// Seconds until it is asked again, where that is known.
    pub until_seconds: Option<f64>,
    /// Whether an operator has taken it out.
    pub drained: bool,
    /// Its own circuit.
    pub circuit: Circuit,
    /// Times that its circuit or one of its models' has opened or failed its probe.
    pub circuit_openings: u64,
    /// Models that have been asked for, and those whose circuit is not closed.
    pub models: Vec<Model>,
    /// Seconds since a request was last served.
    pub last_served_seconds_ago: Option<f64>,
    /// Seconds since a try last failed.
    pub last_failed_seconds_ago: Option<f64>,
    /// Present incarnation of its providers.
    pub generation: Option<u32>,
    /// Attempts that its present providers carry.
    pub in_flight: u64,
    /// Attempts that replaced providers still carry.
    pub draining: u64,
    /// Requests that wait for a permit.
    pub queued: u64,
    /// Requests that it may carry at once.
    pub permits: PermitState,
    /// Open connections to it.
    pub connections: u64,
    /// What its provider said last about its limits.
    pub headroom: Option<HeadroomState>,
    /// Restarts; one by an operator counts once, however many workers there are.
    pub restarts: u64,
    /// Of these, those after a panic.
    pub crashes: u64,
    /// Why the last restart happened.
    pub last_reason: Option<String>,
    /// Its part in each configured pool that has it.
    pub shares: Vec<Share>,
    /// The last five minutes.
    pub recent: Recent,
    /// Since the process started, over all pools.
    pub totals: Totals,
    /// Its provider on each worker.
    pub providers: Vec<WorkerProvider>,
}

/// How a backend is. What is not known is not called well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has served within five minutes.
    Well,
    /// Nothing has been asked of it for five minutes.
    Unknown,
    /// Some of its models, or many of its requests, fail.
    Ailing,
    /// Its providers start again after a crash.
    Starting,
    /// One request is let through to see whether it answers again.
    HalfOpen,
    /// An operator has taken it out.
    Drained,
    /// Its circuit is open: it is not asked.
    Open,
    /// It has crashed too often.
    Failed,
}

impl Condition {
    /// The word used in the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Unknown => "unknown",
            Self::Ailing => "ailing",
            Self::Starting => "starting",
            Self::HalfOpen => "half-open",
            Self::Drained => "drained",
            Self::Open => "open",
            Self::Failed => "failed",
        }
    }

    /// Whether it takes no requests now.
    pub fn is_down(self) -> bool {
        match self {
            // The next request is let through.
            Self::Well | Self::Unknown | Self::Ailing | Self::HalfOpen => false,
            Self::Starting | Self::Drained | Self::Open | Self::Failed => true,
        }
    }
}

/// A circuit.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Circuit {
    /// `closed`, `open` or `half-open`.
    pub state: &'static str,
    /// Class of the failure that has opened it.
    pub class: Option<&'static str>,
    /// Seconds until it is asked again.
    pub until_seconds: Option<f64>,
    /// Seconds since it has opened.
    pub since_seconds: Option<f64>,
    /// Failures without a success between them.
    pub failures_in_a_row: u32,
}

/// A model of a backend.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Model {
    /// Its id at the provider; `other` stands for all that are not listed.
    pub model: String,
    /// Its circuit.
    #[serde(flatten)]
    pub circuit: Circuit,
    /// Moving average of the time to first content.
    pub first_content_seconds: Option<f64>,
    /// Moving average of the time per output token.
    pub seconds_per_token: Option<f64>,
}

/// Requests that a backend may carry at once.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PermitState {
    /// `null` where there is no limit.
    pub limit: Option<u32>,
    /// Taken now.
    pub used: u32,
}

/// What a provider said last, in the headers of its replies, about its rate limits.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HeadroomState {
    /// Requests that are left.
    pub requests_left: Option<u64>,
    /// Requests that there may be.
    pub requests_limit: Option<u64>,
    /// Tokens that are left.
    pub tokens_left: Option<u64>,
    /// Tokens that there may be.
    pub tokens_limit: Option<u64>,
    /// Seconds since it said so.
    pub seconds_ago: f64,
}

/// A backend's part in a pool.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Share {
    /// The pool.
    pub pool: String,
    /// Its part of the pool's attempts over the last minute; `null` without any.
    pub now: Option<f64>,
    /// The part that its present weight stands for.
    pub expected: f64,
    /// Its present weight.
    pub weight: f64,
}

/// The last five minutes of a backend, or less after a start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Recent {
    /// Seconds that the numbers are of.
    pub window_seconds: f64,
    /// Attempts that have ended.
    pub attempts: u64,
    /// Their tries: an attempt may have several.
    pub tries: u64,
    /// Of the attempts, the ones served.
    pub served: u64,
    /// Tries that failed, streams that broke.
    pub failures: BTreeMap<&'static str, u64>,
    /// Time to first content.
    pub first_content_seconds: Quantiles,
    /// Attempts that ended, per second.
    pub attempts_per_second: f64,
    /// Output tokens per second, over all requests.
    pub tokens_per_second: f64,
}

/// What lies below which duration.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Quantiles {
    /// Half of them.
    pub p50: Option<f64>,
    /// 99 of 100.
    pub p99: Option<f64>,
}

/// What was counted of attempts. `attempts` = `served` + `failed` + `cancelled` + `truncated` + `cut`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Totals {
    /// Attempts that have ended: one for each time a request was given to the backend.
    pub attempts: u64,
    /// Attempts whose reply was delivered whole.
    pub served: u64,
    /// Attempts that failed before first content.
    pub failed: u64,
    /// Attempts whose client left, or which another try outran.
    pub cancelled: u64,
    /// Streams that broke after first content.
    pub truncated: u64,
    /// Replies that a drain deadline or an operator ended.
    pub cut: u64,
    /// Of these, those whose request went to another member or the next generation.
    pub moved: u64,
    /// Tries that failed and were followed by another one within the same attempt.
    pub retried: u64,
    /// Requests that were given back untried, since every permit was taken.
    pub bounced: u64,
    /// Tries that failed and streams that broke, by class: `failed` + `truncated` + `retried` in all.
    pub failures: BTreeMap<&'static str, u64>,
    /// Input tokens, reported or estimated.
    pub prompt_tokens: u64,
    /// Output tokens, reported or estimated.
    pub completion_tokens: u64,
    /// Input tokens that the provider read from its cache.
    pub cached_tokens: u64,
}

/// A provider on one worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkerProvider {
    /// Worker thread.
    pub worker: usize,
    /// The provider.
    #[serde(flatten)]
    pub provider: ProviderState,
}

/// One pool.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Pool {
    /// Unique name.
    pub name: String,
    /// Whether it is the pool of one that every backend has.
    pub implicit: bool,
    /// `latency`, `weighted`, `round-robin`, `least-busy` or `cost`.
    pub strategy: &'static str,
    /// Whether another member is tried when one fails.
    pub fallback: bool,
    /// Requests taken: the sum of `outcomes` + those that are open. A pool of one also counts test prompts and standby checks.
    pub requests: u64,
    /// Requests served although an earlier try had failed.
    pub absorbed: u64,
    /// Requests answered with an error.
    pub refused: u64,
    /// How its requests have ended; those that are open are missing.
    pub outcomes: Outcomes,
    /// Requests that wait for a member to start.
    pub parked: u64,
    /// Restarts after a panic.
    pub restarts: u64,
    /// Its members, nested pools resolved.
    pub members: Vec<Member>,
    /// The pool on each worker.
    pub workers: Vec<WorkerPool>,
    /// What hedging did, where the pool hedges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedges: Option<Hedges>,
    /// What became of conversations, where the pool keeps them together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversations: Option<Conversations>,
}

/// How requests have ended.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Outcomes {
    /// Answered whole.
    pub served: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Left by the client.
    pub cancelled: u64,
    /// Broken after first content.
    pub truncated: u64,
    /// Ended by a drain deadline or an operator.
    pub cut: u64,
}

impl Outcomes {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.served + self.failed + self.cancelled + self.truncated + self.cut
    }
}

impl From<Outcomes> for [u64; 5] {
    fn from(told: Outcomes) -> Self {
        [told.served, told.failed, told.cancelled, told.truncated, told.cut]
    }
}

impl From<[u64; 5]> for Outcomes {
    fn from([served, failed, cancelled, truncated, cut]: [u64; 5]) -> Self {
        Self { served, failed, cancelled, truncated, cut }
    }
}

/// A member of a pool.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Member {
    /// Which backend.
    pub backend: String,
    /// Its present weight.
    pub weight: Option<f64>,
    /// What was counted of its attempts for this pool.
    #[serde(flatten)]
    pub totals: Totals,
    /// Moving average of the time to first content.
    pub latency_seconds: Option<f64>,
    /// Time to first content, since the process started.
    pub first_content_seconds: Quantiles,
    /// Time of whole attempts, since the process started.
    pub duration_seconds: Quantiles,
    /// Part of the input tokens that the provider read from its cache.
    pub cache_hit_ratio: Option<f64>,
}

/// A pool on one worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkerPool {
    /// Worker thread.
    pub worker: usize,
    /// Requests taken.
    pub requests: u64,
    /// Requests that wait for a member to start.
    pub parked: usize,
    /// Restarts after a panic.
    pub restarts: u32,
}

/// What hedging did.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Hedges {
    /// Requests that a second member was asked for.
    pub started: u64,
    /// Of these, those that it answered first.
    pub won: u64,
}

/// What became of requests that belong to a conversation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Conversations {
    /// Sent to the conversation's member.
    pub kept: u64,
    /// Sent elsewhere, since that member could not take it.
    pub moved: u64,
    /// The first of its conversation.
    pub new: u64,
}

/// What was counted of a route. `requests` = the sum of `outcomes` + those that are open.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Route {
    /// Its name; `null` for what no configured route took.
    pub name: Option<String>,
    /// Requests taken.
    pub requests: u64,
    /// How they have ended.
    pub outcomes: Outcomes,
    /// Of the failed ones, those that the client is to mend.
    pub client_errors: u64,
    /// Of the cancelled ones, those whose client left before any content had come.
    pub given_up: u64,
    /// Failed and broken ones by class.
    pub failures: BTreeMap<&'static str, u64>,
    /// Time to first content, since the process started.
    pub first_content_seconds: Quantiles,
    /// Whole time of those that were served, since the process started.
    pub duration_seconds: Quantiles,
}

/// A request in flight.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InFlight {
    /// Worker thread.
    pub worker: usize,
    /// Its pool.
    pub pool: Option<String>,
    /// The backend that has it; `null` while it waits for one to start.
    pub backend: Option<String>,
    /// The request itself.
    #[serde(flatten)]
    pub flight: FlightView,
}

/// The last hour in steps, oldest first; `null` where nothing was measured.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct History {
    /// Seconds of one step.
    pub step_seconds: f64,
    /// Unix time at which the last step ended.
    pub ends_at: f64,
    /// Steps that there are, at most 120.
    pub steps: usize,
    /// Requests that ended, without those that clients left or were to mend.
    pub requests: Vec<u64>,
    /// Of these, the ones that failed, broke or were cut.
    pub failed: Vec<u64>,
    /// Requests served although an earlier try had failed.
    pub absorbed: Vec<u64>,
    /// By backend, in the order of the configuration.
    pub backends: Vec<BackendHistory>,
}

/// The last hour of a backend.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct BackendHistory {
    /// Which backend.
    pub name: String,
    /// Attempts that were served.
    pub served: Vec<u32>,
    /// Tries that failed and streams that broke by no fault of the client.
    pub failed: Vec<u32>,
    /// Median time to first content.
    pub first_content_p50: Vec<Option<f32>>,
    /// 99th percentile of it.
    pub first_content_p99: Vec<Option<f32>>,
    /// Output tokens per second, over all requests.
    pub tokens_per_second: Vec<f32>,
}
