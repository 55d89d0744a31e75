//! Monitor: one per process; asks the workers what they have counted, keeps the last hour of it, and makes the state that
//! operators see. Once a second while anybody watches, else every half minute. Requests never wait for it.

mod books;
mod history;
mod metrics;
mod report;
pub mod state;
mod stories;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::watch;

use crate::actors::director::Director;
use crate::actors::slots::Shared;
use crate::actors::{AskState, AskStories, FindStories, ShardState, Snapshot};
use crate::balance::Moment;
use crate::telemetry;
use crate::unix_time::unix_time;
use crate::words::several;
use books::Books;
use history::Past;
use report::Sources;
use state::{Condition, InFlight};
pub use state::{History, State};
pub use stories::{Requests, Steps, Told, newest};
use verdict::Finding;

/// How often watchers are told.
const TICK: Duration = Duration::from_secs(1);
/// Requests in flight that watchers are told of.
const WATCHED_FLIGHTS: usize = 100;
/// Ended requests that watchers are told of.
const WATCHED_STORIES: usize = 100;
/// How often it may be told that requests are refused for want of room, and how long after the first of them.
const SHED_PAUSE: Duration = Duration::from_secs(60);
const SHED_WAIT: Duration = Duration::from_secs(3);

/// The actor.
pub struct Monitor {
    shared: Arc<Shared>,
    director: Addr<Director>,
    /// What each worker has said last.
    shards: BTreeMap<usize, ShardState>,
    past: Past,
    /// By backend: its condition, and since when.
    conditions: Vec<(Condition, Moment)>,
    shed: Shed,
    /// Log lines that were lost.
    lost: Shed,
    ticks: Ticks,
    is_asking: bool,
    /// Unix time at which the process started.
    started_at: f64,
}

/// Where watchers wait for ticks.
#[derive(Clone)]
pub struct Ticks(Arc<watch::Sender<Tick>>);

impl Ticks {
    /// One more watcher; `None` if so many watch already.
    pub fn watch(&self, most: usize) -> Option<watch::Receiver<Tick>> {
        (self.0.receiver_count() < most).then(|| self.0.subscribe())
    }
}

/// What was lost for want of room: how much was told of, when last, and since when there is more.
#[derive(Default)]
struct Shed {
    count: u64,
    told_at: Option<Moment>,
    since: Option<Moment>,
}

impl Shed {
    /// How much more there is, if it is to be told now: a burst as one, and not every burst.
    fn due(&mut self, count: u64, now: Moment) -> Option<u64> {
        let more = count.saturating_sub(self.count);
        if more == 0 {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let is_due = now.since(since) >= SHED_WAIT && self.told_at.is_none_or(|at| now.since(at) >= SHED_PAUSE);
        is_due.then(|| {
            *self = Self { count, told_at: Some(now), since: None };
            more
        })
    }
}

/// What watchers are told once a second; each gets the newest one when it can take it.
#[derive(Debug, Clone, Default)]
pub struct Tick {
    /// An event with the state, written once for all of them.
    pub state: Bytes,
    /// An event with the requests in flight and the last ones that have ended.
    pub requests: Bytes,
}

/// Ask for what watchers are told now.
#[derive(Message)]
#[rtype(result = "Tick")]
pub struct AskTick;

/// Ask for the state as it is now.
#[derive(Message)]
#[rtype(result = "Arc<Report>")]
pub struct AskReport {
    /// Most requests in flight that are told one by one.
    pub flights: usize,
}

/// The state, and what goes with it.
#[derive(Debug)]
pub struct Report {
    /// The state.
    pub state: State,
    /// Requests in flight, longest first.
    pub in_flight: Vec<InFlight>,
}

/// Ask for the page of metrics.
#[derive(Message)]
#[rtype(result = "Bytes")]
pub struct AskMetrics;

/// Ask for the last hour.
#[derive(Message)]
#[rtype(result = "History")]
pub struct AskHistory;

impl Monitor {
    /// Prepares the monitor, and where its ticks are seen.
    pub fn new(shared: Arc<Shared>, director: Addr<Director>) -> (Self, Ticks) {
        let ticks = Ticks(Arc::new(watch::Sender::new(Tick::default())));
        let now = shared.clock.now();
        let backends = shared.settings.backends.len();
        let monitor = Self {
            past: Past::new(Books::of(&shared.settings, &[]), now),
            shared,
            director,
            shards: BTreeMap::new(),
            conditions: vec![(Condition::Unknown, now); backends],
            shed: Shed::default(),
            lost: Shed::default(),
            ticks: ticks.clone(),
            is_asking: false,
            started_at: unix_time().as_secs_f64() - now.since(Moment::after(Duration::ZERO)).as_secs_f64(),
        };
        (monitor, ticks)
    }

    /// Asks every worker; what they say is taken in and made into a report.
    fn ask(&self, flights: usize) -> impl ActorFuture<Self, Output = Report> + use<> {
        let asked = self.director.send(AskState(Snapshot { flights }));
        asked.into_actor(self).map(move |answers, monitor, _| monitor.take_in(answers.unwrap_or_default(), flights))
    }

    fn take_in(&mut self, answers: Vec<Result<ShardState, usize>>, flights: usize) -> Report {
        let mut late = Vec::new();
        for answer in answers {
            match answer {
                Ok(shard) => drop(self.shards.insert(shard.worker, shard)),
                Err(worker) => late.push(worker),
            }
        }
        let now = self.shared.clock.now();
        let shards: Vec<&ShardState> = self.shards.values().collect();
        let books = Books::of(&self.shared.settings, &shards);
        let sources =
            Sources { shared: &self.shared, shards: &shards, books: &books, past: &self.past, now, started_at: self.started_at };
        let findings = sources.findings();
        note_changes(&mut self.conditions, &findings, now);
        let since: Vec<Moment> = self.conditions.iter().map(|(_, since)| *since).collect();
        let state = sources.state(findings, &since, late);
        let in_flight = sources.in_flight(flights);
        self.note_shed(books.gateway.shed, now);
        self.note_lost(telemetry::lost_lines(), now);
        if self.past.is_due(now) {
            self.past.add(books, now, unix_time().as_secs_f64());
        }
        Report { state, in_flight }
    }

    /// Notes conditions that have changed, by what all workers share and what each has said last: cheap enough for every tick.
    fn note_conditions(&mut self) {
        let now = self.shared.clock.now();
        let shards: Vec<&ShardState> = self.shards.values().collect();
        let books = Books::of(&self.shared.settings, &shards);
        let sources =
            Sources { shared: &self.shared, shards: &shards, books: &books, past: &self.past, now, started_at: self.started_at };
        note_changes(&mut self.conditions, &sources.findings(), now);
    }

    /// A state as metrics.
    fn metrics(&self, state: &State) -> Bytes {
        let settings = &*self.shared.settings;
        let shards: Vec<&ShardState> = self.shards.values().collect();
        let books = Books::of(settings, &shards);
        metrics::Sources { settings, state, shards: &shards, books: &books }.page().into()
    }

    /// Tells the journal when requests are refused for want of room, but not each time.
    fn note_shed(&mut self, count: u64, now: Moment) {
        if let Some(more) = self.shed.due(count, now) {
            let were = if more == 1 { "was" } else { "were" };
            let words = format!("{} {were} refused for want of room", several(more, "request"));
            self.shared.journal.note("shed", None, None, words);
        }
    }

    /// Tells the journal when log lines are lost, but not each time.
    fn note_lost(&mut self, count: u64, now: Moment) {
        if let Some(more) = self.lost.due(count, now) {
            let words = format!("{} lost: whoever reads the log is too slow", several(more, "log line"));
            self.shared.journal.note("log-lost", None, None, words);
        }
    }

    /// Looks, if anybody watches or a frame is due.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        let is_watched = self.ticks.0.receiver_count() > 0;
        if self.is_asking {
            return;
        }
        if !(is_watched || self.past.is_due(self.shared.clock.now())) {
            return self.note_conditions();
        }
        self.is_asking = true;
        if !is_watched {
            ctx.spawn(self.ask(0).map(|_, monitor, _| monitor.is_asking = false));
            return;
        }
        ctx.spawn(self.look().map(|tick, monitor, _| {
            monitor.is_asking = false;
            monitor.ticks.0.send_replace(tick);
        }));
    }

    /// Makes a tick.
    fn look(&mut self) -> impl ActorFuture<Self, Output = Tick> + use<> {
        let ask = AskStories { id: None, outcome: None, limit: WATCHED_STORIES };
        let found = self.director.send(FindStories(ask)).into_actor(self);
        let report = self.ask(WATCHED_FLIGHTS);
        report.then(|report, _, _| {
            found.map(move |found, _, _| {
                let recent = newest(&found.unwrap_or_default(), WATCHED_STORIES);
                let requests = Requests { in_flight: report.in_flight, recent };
                Tick { state: event("state", &report.state), requests: event("requests", &requests) }
            })
        })
    }
}

/// Keeps since when each backend has been in its condition.
fn note_changes(conditions: &mut [(Condition, Moment)], findings: &[Finding], now: Moment) {
    for (known, finding) in conditions.iter_mut().zip(findings) {
        if known.0 != finding.condition {
            *known = (finding.condition, now);
        }
    }
}

/// A server-sent event.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut written = format!("event: {name}\ndata: ").into_bytes();
    // Neither of them holds what JSON cannot.
    let _ = serde_json::to_writer(&mut written, data);
    written.extend_from_slice(b"\n\n");
    written.into()
}

impl Actor for Monitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, Self::tick);
    }
}

impl Handler<AskReport> for Monitor {
    type Result = ResponseActFuture<Self, Arc<Report>>;

    fn handle(&mut self, AskReport { flights }: AskReport, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ask(flights).map(|report, _, _| Arc::new(report)))
    }
}

impl Handler<AskTick> for Monitor {
    type Result = ResponseActFuture<Self, Tick>;

    fn handle(&mut self, _: AskTick, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.look())
    }
}

impl Handler<AskMetrics> for Monitor {
    type Result = ResponseActFuture<Self, Bytes>;

    fn handle(&mut self, _: AskMetrics, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.ask(0).map(|report, monitor, _| monitor.metrics(&report.state)))
    }
}

impl Handler<AskHistory> for Monitor {
    type Result = MessageResult<AskHistory>;

    fn handle(&mut self, _: AskHistory, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.past.told(self.shared.settings.backends.iter().map(|backend| &*backend.name)))
    }
}

/// Resident memory of this process, where the system tells it.
fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_of_as_one() {
        let at = |seconds| Moment::after(Duration::from_secs(seconds));
        let mut shed = Shed::default();
        assert_eq!([(0, 0), (1, 1), (90, 2)].map(|(count, second)| shed.due(count, at(second))), [None; 3]);
        assert_eq!(shed.due(200, at(4)), Some(200));
        assert_eq!([(200, 5), (300, 30), (400, 60)].map(|(count, second)| shed.due(count, at(second))), [None; 3]);
        assert_eq!(shed.due(500, at(64)), Some(300));
    }
}
