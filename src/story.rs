//! Stories: what became of each request and why. A [`Trail`] is written along the way, a [`Story`] is what remains of it
//! when the request has ended; each worker keeps a bounded number of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use smallvec::SmallVec;
use utoipa::ToSchema;

use crate::balance::{Door, Why};
use crate::chat::{FailureClass, Usage};

/// Tries of one request that are told; requests have few.
const TOLD_TRIES: usize = 16;

/// What has happened to a request so far. A request stays on its worker, so its lock is never waited for.
#[derive(Debug, Default)]
pub struct Trail(Mutex<Trace>);

/// The steps of a request.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Choices of a member, in order.
    pub choices: SmallVec<[Chosen; 1]>,
    /// Tries, in order.
    pub tries: SmallVec<[Try; 1]>,
}

/// A choice of a member. Times are since the request was taken.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// When.
    pub at: Duration,
    /// Index of the chosen backend.
    pub backend: u16,
    /// Why it.
    pub why: Why,
    /// The members it was compared with, itself among them, best first: index of the backend and score.
    pub compared: SmallVec<[(u16, f32); 2]>,
    /// Members that were not asked: index of the backend and why not.
    pub passed_over: Vec<(u16, Door)>,
}

/// One try at a backend. Times are since the request was taken.
#[derive(Debug, Clone)]
pub struct Try {
    /// Index of the backend.
    pub backend: u16,
    /// Whether it was started beside another one that was slow.
    pub is_hedge: bool,
    /// When it began.
    pub began: Duration,
    /// When the reply's head had come.
    pub head: Option<Duration>,
    /// When the first content had come.
    pub first_content: Option<Duration>,
    /// When it ended, and how.
    pub end: Option<(Duration, TryEnd)>,
    /// Input and output tokens, where it had a reply.
    pub tokens: Option<(u64, u64)>,
}

/// How a try ended.
#[derive(Debug, Clone)]
pub enum TryEnd {
    /// The reply was delivered whole.
    Served,
    /// It failed.
    Failed(FailureClass, Box<str>),
    /// The client left, or another try was quicker.
    Cancelled,
    /// The stream broke after first content.
    Truncated(FailureClass, Box<str>),
    /// A drain deadline or an operator ended it.
    Cut,
}

impl Trail {
    /// Adds a choice. That nobody could be asked is told once in a row, as it is now: who waits looks often.
    pub fn chose(&self, chosen: Chosen) {
        let mut trace = self.lock();
        if chosen.why == Why::Nobody && trace.choices.last().is_some_and(|last| last.why == Why::Nobody) {
            trace.choices.pop();
        }
        if trace.choices.len() < TOLD_TRIES {
            trace.choices.push(chosen);
        }
    }

    /// Adds a try; returns its place, for [`Self::amend`].
    pub fn begin(&self, backend: u16, is_hedge: bool, began: Duration) -> usize {
        let mut trace = self.lock();
        if trace.tries.len() < TOLD_TRIES {
            trace.tries.push(Try { backend, is_hedge, began, head: None, first_content: None, end: None, tokens: None });
            return trace.tries.len() - 1;
        }
        usize::MAX
    }

    /// Changes a try.
    pub fn amend(&self, place: usize, change: impl FnOnce(&mut Try)) {
        if let Some(told) = self.lock().tries.get_mut(place) {
            change(told);
        }
    }

    /// Notes when a try has brought its first content; says whether another one has failed before.
    pub fn first_content(&self, place: usize, at: Duration) -> bool {
        let mut trace = self.lock();
        if let Some(told) = trace.tries.get_mut(place) {
            told.first_content = Some(at);
        }
        trace.tries.len() > 1 && trace.tries.iter().any(|told| matches!(told.end, Some((_, TryEnd::Failed(..) | TryEnd::Cut))))
    }

    /// How many tries there have been.
    pub fn tries(&self) -> usize {
        self.lock().tries.len()
    }

    /// How many tries there have been, and at which backend the last one was.
    pub fn last_try(&self) -> Option<(usize, u16)> {
        let trace = self.lock();
        trace.tries.last().map(|told| (trace.tries.len(), told.backend))
    }

    /// The steps so far.
    pub fn trace(&self) -> Trace {
        self.lock().clone()
    }

    /// Failed tries in short: `backend index, class`.
    pub fn failures(&self) -> SmallVec<[(u16, FailureClass); 2]> {
        let failed = |told: &Try| match &told.end {
            Some((_, TryEnd::Failed(class, _))) => Some((told.backend, *class)),
            _ => None,
        };
        self.lock().tries.iter().filter_map(failed).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a request can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was answered whole.
    Served,
    /// It was answered with an error.
    Failed,
    /// Its client left.
    Cancelled,
    /// Its stream broke after first content.
    Truncated,
    /// A drain deadline or an operator ended it.
    Cut,
}

impl Outcome {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 5] = [Self::Served, Self::Failed, Self::Cancelled, Self::Truncated, Self::Cut];

    /// Name for logs, metrics and stories.
    pub fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Truncated => "truncated",
            Self::Cut => "cut",
        }
    }
}

/// How many requests have ended in each way, in the order of [`Outcome::ALL`]: the ones that are open are missing.
pub type OutcomeCounts = [u64; Outcome::ALL.len()];

/// Whether a request was served although a try had failed.
pub fn is_absorbed(outcome: Outcome, trail: &Trail) -> bool {
    outcome == Outcome::Served && !trail.failures().is_empty()
}

/// What is told of a request that has ended.
#[derive(Debug, Clone)]
pub struct Story {
    /// Its id.
    pub id: Arc<str>,
    /// When it was taken.
    pub at: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Name of the caller's key.
    pub caller: Option<Arc<str>>,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// Name of the pool.
    pub pool: Option<Arc<str>>,
    /// What was asked for.
    pub operation: Option<&'static str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// HTTP status.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Class of its failure.
    pub class: Option<&'static str>,
    /// Who served it, or failed last.
    pub backend: Option<Arc<str>>,
    /// The model that was asked for upstream.
    pub model: Option<Box<str>>,
    /// Tries made.
    pub attempts: u32,
    /// To the first content.
    pub first_content: Option<Duration>,
    /// Tokens.
    pub usage: Option<Usage>,
    /// Request fields that were left out for the backend.
    pub dropped: SmallVec<[Box<str>; 4]>,
    /// The steps.
    pub trail: Arc<Trail>,
}

impl Story {
    /// When it ended.
    pub fn ended(&self) -> SystemTime {
        self.at + self.duration
    }

    /// Whether it was served although a try had failed.
    pub fn is_absorbed(&self) -> bool {
        is_absorbed(self.outcome, &self.trail)
    }

    /// Whether an operator will look for it: kept apart, so that usual requests do not push it out.
    pub fn is_notable(&self) -> bool {
        self.outcome != Outcome::Served || self.attempts > 1
    }
}

/// Of so many stories one is kept for requests that went smoothly. They come thick, and the memory of all of them passes
/// through the processor's cache: with a half of 4,000 a request costs 2.5 % more.
const SMOOTH: usize = 8;

/// The last stories of one worker.
#[derive(Debug, Default)]
pub struct Stories {
    kept: usize,
    usual: VecDeque<Arc<Story>>,
    notable: VecDeque<Arc<Story>>,
}

impl Stories {
    /// Keeps at most so many, one in eight of them for what went smoothly; one of either kind at least.
    pub fn new(kept: usize) -> Self {
        Self { kept, ..Self::default() }
    }

    /// Whether any is kept.
    pub fn is_on(&self) -> bool {
        self.kept > 0
    }

    /// Adds a story; the oldest makes room.
    pub fn add(&mut self, story: Story) {
        let smooth = self.kept.div_ceil(SMOOTH);
        let notable = (self.kept - smooth).max(1);
        let (ring, room) = if story.is_notable() { (&mut self.notable, notable) } else { (&mut self.usual, smooth) };
        if ring.len() >= room {
            ring.pop_front();
        }
        if self.kept > 0 {
            ring.push_back(Arc::new(story));
        }
    }

    /// The stories that ended last and match, the last one first.
    pub fn newest(&self, limit: usize, matches: impl Fn(&Story) -> bool) -> Vec<Arc<Story>> {
        let of = |ring: &VecDeque<Arc<Story>>| -> Vec<Arc<Story>> {
            ring.iter().rev().filter(|story| matches(story)).take(limit).cloned().collect()
        };
        let mut all = of(&self.usual);
        all.append(&mut of(&self.notable));
        all.sort_by_key(|story| std::cmp::Reverse(story.ended()));
        all.truncate(limit);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(number: u64, outcome: Outcome) -> Story {
        Story {
            id: number.to_string().into(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(number),
            duration: Duration::ZERO,
            caller: None,
            route: None,
            pool: None,
            operation: None,
            stream: false,
            status: 200,
            outcome,
            class: None,
            backend: None,
            model: None,
            attempts: 1,
            first_content: None,
            usage: None,
            dropped: SmallVec::new(),
            trail: Arc::default(),
        }
    }

    #[test]
    fn usual_requests_do_not_push_out_the_notable_ones() {
        let mut stories = Stories::new(40);
        for number in 0..40 {
            stories.add(story(number, Outcome::Failed));
        }
        for number in 40..100 {
            stories.add(story(number, Outcome::Served));
        }
        let kept = stories.newest(100, |_| true);
        assert_eq!(kept.len(), 40);
        let places = [0, 4, 5, 39].map(|place| &*kept[place].id);
        assert_eq!(places, ["99", "95", "39", "5"]);
        assert_eq!(stories.newest(2, |story| story.outcome == Outcome::Served).len(), 2);
    }

    #[test]
    fn where_few_are_kept_there_is_one_of_either_kind() {
        let mut stories = Stories::new(1);
        for (number, outcome) in [(1, Outcome::Failed), (2, Outcome::Served), (3, Outcome::Failed), (4, Outcome::Served)] {
            stories.add(story(number, outcome));
        }
        let kept: Vec<String> = stories.newest(9, |_| true).iter().map(|story| story.id.to_string()).collect();
        assert_eq!(kept, ["4", "3"]);
    }

    #[test]
    fn none_is_kept_where_none_is_wanted() {
        let mut stories = Stories::new(0);
        stories.add(story(1, Outcome::Failed));
        assert!(stories.newest(9, |_| true).is_empty());
    }

    #[test]
    fn a_request_with_many_tries_is_told_in_part() {
        let trail = Trail::default();
        for number in 0..100 {
            let place = trail.begin(number, false, Duration::ZERO);
            trail.amend(place, |told| told.end = Some((Duration::ZERO, TryEnd::Failed(FailureClass::Server, "x".into()))));
        }
        assert_eq!(trail.failures().len(), TOLD_TRIES);
    }
}
