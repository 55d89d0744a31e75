//! Stories as operators see them: what became of single requests and why.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use utoipa::ToSchema;

use super::state::InFlight;
use crate::actors::{OpenStory, ShardStories};
use crate::balance::Door;
use crate::chat::Usage;
use crate::settings::Settings;
use crate::story::{self, Outcome, Story, Trace, TryEnd};

/// Requests in flight, and those that have ended.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Requests {
    /// Longest first, at most 1,000.
    pub in_flight: Vec<InFlight>,
    /// Those that have ended, the last one first.
    pub recent: Vec<Ended>,
}

/// A request that has ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Ended {
    /// Worker thread.
    pub worker: usize,
    /// Its id.
    pub id: String,
    /// Unix time at which it was taken.
    pub at: f64,
    /// How long it took.
    pub duration_seconds: f64,
    /// Name of the caller's key.
    pub caller: Option<String>,
    /// Its route.
    pub route: Option<String>,
    /// Its pool.
    pub pool: Option<String>,
    /// `chat`, `embeddings`, ...
    pub operation: Option<&'static str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// HTTP status.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it was served although a try had failed.
    pub absorbed: bool,
    /// Class of its failure.
    pub class: Option<&'static str>,
    /// Who served it, or failed last.
    pub backend: Option<String>,
    /// The model that was asked for upstream.
    pub model: Option<String>,
    /// Tries made.
    pub attempts: u32,
    /// To the first content.
    pub first_content_seconds: Option<f64>,
    /// Tokens.
    pub usage: Option<Usage>,
}

/// The story of one request.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Told {
    /// It has no end yet.
    InFlight(Open),
    /// It has ended.
    Ended(Whole),
}

/// The story of a request in flight.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Open {
    /// Worker thread.
    pub worker: usize,
    /// Its id.
    pub id: String,
    /// Seconds since it was taken.
    pub age_seconds: f64,
    /// Its pool.
    pub pool: String,
    /// Its route.
    pub route: Option<String>,
    /// Name of the caller's key.
    pub caller: Option<String>,
    /// What was asked for.
    pub operation: &'static str,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// What has happened.
    #[serde(flatten)]
    pub steps: Steps,
}

/// The story of a request that has ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Whole {
    /// What became of it.
    #[serde(flatten)]
    pub ended: Ended,
    /// Request fields that were left out for the backend.
    pub dropped: Vec<String>,
    /// What has happened.
    #[serde(flatten)]
    pub steps: Steps,
}

/// What has happened to a request. Times are in seconds since it was taken.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Steps {
    /// Choices of a member, in order.
    pub choices: Vec<Choice>,
    /// Tries, in order.
    pub tries: Vec<Try>,
}

/// A choice of a member.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Choice {
    /// When.
    pub at_seconds: f64,
    /// The chosen backend; `null` where none could be asked.
    pub backend: Option<String>,
    /// Why it.
    pub why: &'static str,
    /// The members it was compared with, itself among them, best first.
    pub compared: Vec<Compared>,
    /// Members that were not asked, and why not.
    pub passed_over: Vec<PassedOver>,
}

/// A member that was compared.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Compared {
    /// Which backend.
    pub backend: Option<String>,
    /// Its score, the lower the better; `null` where it had none.
    pub score: Option<f32>,
}

/// A member that was not asked.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PassedOver {
    /// Which backend.
    pub backend: Option<String>,
    /// Why not.
    pub reason: String,
}

/// One try at a backend.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Try {
    /// Which backend.
    pub backend: Option<String>,
    /// Whether it was started beside another one that was slow.
    pub hedge: bool,
    /// When it began.
    pub began_seconds: f64,
    /// When the reply's head had come.
    pub head_seconds: Option<f64>,
    /// When the first content had come.
    pub first_content_seconds: Option<f64>,
    /// When it ended.
    pub ended_seconds: Option<f64>,
    /// `open`, `served`, `failed`, `cancelled`, `truncated` or `cut`.
    pub outcome: &'static str,
    /// Class of its failure.
    pub class: Option<&'static str>,
    /// The failure in words.
    pub reason: Option<String>,
    /// Input tokens.
    pub prompt_tokens: Option<u64>,
    /// Output tokens.
    pub completion_tokens: Option<u64>,
}

/// The newest of what the workers remember, at most so many.
pub fn newest(found: &[ShardStories], limit: usize) -> Vec<Ended> {
    let mut recent: Vec<(usize, &Arc<Story>)> =
        found.iter().flat_map(|shard| shard.ended.iter().map(|story| (shard.worker, story))).collect();
    recent.sort_by_key(|(_, story)| std::cmp::Reverse(story.ended()));
    recent.truncate(limit);
    recent.into_iter().map(|(worker, story)| Ended::of(worker, story)).collect()
}

impl Ended {
    fn of(worker: usize, story: &Story) -> Self {
        let text = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
        Self {
            worker,
            id: story.id.to_string(),
            at: story.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            duration_seconds: story.duration.as_secs_f64(),
            caller: text(&story.caller),
            route: text(&story.route),
            pool: text(&story.pool),
            operation: story.operation,
            stream: story.stream,
            status: story.status,
            outcome: story.outcome,
            absorbed: story.is_absorbed(),
            class: story.class,
            backend: text(&story.backend),
            model: story.model.as_deref().map(str::to_owned),
            attempts: story.attempts,
            first_content_seconds: seconds(story.first_content),
            usage: story.usage,
        }
    }
}

impl Told {
    /// The story of a request in flight.
    pub fn open(worker: usize, open: &OpenStory, settings: &Settings) -> Self {
        Self::InFlight(Open {
            worker,
            id: open.id.to_string(),
            age_seconds: open.age.as_secs_f64(),
            pool: open.pool.to_string(),
            route: open.route.as_deref().map(str::to_owned),
            caller: open.caller.as_deref().map(str::to_owned),
            operation: open.operation,
            stream: open.stream,
            steps: Steps::of(&open.trace, "open", settings),
        })
    }

    /// The story of a request that has ended.
    pub fn ended(worker: usize, story: &Story, settings: &Settings) -> Self {
        Self::Ended(Whole {
            ended: Ended::of(worker, story),
            dropped: story.dropped.iter().map(|field| field.to_string()).collect(),
            // A try that lost a race may not have noticed yet.
            steps: Steps::of(&story.trail.trace(), "cancelled", settings),
        })
    }
}

impl Steps {
    /// `unended` is the outcome of a try that has not ended.
    pub fn of(trace: &Trace, unended: &'static str, settings: &Settings) -> Self {
        Self {
            choices: trace.choices.iter().map(|choice| chosen(choice, settings)).collect(),
            tries: trace.tries.iter().map(|tried| one_try(tried, unended, settings)).collect(),
        }
    }
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

fn name(index: u16, settings: &Settings) -> Option<String> {
    settings.backends.get(usize::from(index)).map(|backend| backend.name.to_string())
}

fn chosen(choice: &story::Chosen, settings: &Settings) -> Choice {
    let compared = choice
        .compared
        .iter()
        .map(|(index, score)| Compared { backend: name(*index, settings), score: score.is_finite().then_some(*score) });
    let passed_over =
        choice.passed_over.iter().map(|(index, door)| PassedOver { backend: name(*index, settings), reason: reason(door) });
    Choice {
        at_seconds: choice.at.as_secs_f64(),
        backend: name(choice.backend, settings),
        why: choice.why.word(),
        compared: compared.collect(),
        passed_over: passed_over.collect(),
    }
}

fn reason(door: &Door) -> String {
    match door {
        Door::Open => "open".to_owned(),
        Door::Probe => "half-open".to_owned(),
        Door::Shut { class, .. } => format!("circuit open: {}", class.word()),
        Door::Barred(bar) => bar.word().to_owned(),
    }
}

fn one_try(told: &story::Try, unended: &'static str, settings: &Settings) -> Try {
    let (outcome, class, reason) = match told.end.as_ref().map(|(_, end)| end) {
        None => (unended, None, None),
        Some(TryEnd::Served) => ("served", None, None),
        Some(TryEnd::Failed(class, reason)) => ("failed", Some(class.word()), Some(reason.to_string())),
        Some(TryEnd::Cancelled) => ("cancelled", None, None),
        Some(TryEnd::Truncated(class, reason)) => ("truncated", Some(class.word()), Some(reason.to_string())),
        Some(TryEnd::Cut) => ("cut", None, None),
    };
    Try {
        backend: name(told.backend, settings),
        hedge: told.is_hedge,
        began_seconds: told.began.as_secs_f64(),
        head_seconds: seconds(told.head),
        first_content_seconds: seconds(told.first_content),
        ended_seconds: told.end.as_ref().map(|(at, _)| at.as_secs_f64()),
        outcome,
        class,
        reason,
        prompt_tokens: told.tokens.map(|(input, _)| input),
        completion_tokens: told.tokens.map(|(_, output)| output),
    }
}
