//! Director: one per process; knows every worker's shard; restarts backends, gathers state.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::slots::Shared;
use super::{
    AskState, Cancel, CancelRequest, DrainBackend, DrainReport, DrainedBackend, FindStories, Register, Restart, RestartBackend,
    RestartReport, ShardState, ShardStories, Unqueue,
};
use crate::attempt::{Cut, Ended};
use crate::journal::Journal;
use crate::shard::Shard;

/// How long a worker may take to answer for its state.
const SNAPSHOT_LIMIT: Duration = Duration::from_millis(250);

/// How often a drain looks whether the backend is empty.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// The actor.
pub struct Director {
    shared: Arc<Shared>,
    shards: Vec<(usize, Addr<Shard>)>,
    acts: u64,
}

impl Director {
    /// Prepares the director; workers register when they start.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, shards: Vec::new(), acts: 0 }
    }
}

impl Actor for Director {
    type Context = Context<Self>;
}

impl Handler<Register> for Director {
    type Result = ();

    fn handle(&mut self, message: Register, _: &mut Context<Self>) {
        self.shards.retain(|(worker, _)| *worker != message.worker);
        self.shards.push((message.worker, message.shard));
        self.shards.sort_by_key(|(worker, _)| *worker);
    }
}

impl Handler<AskState> for Director {
    type Result = ResponseFuture<Vec<Result<ShardState, usize>>>;

    fn handle(&mut self, AskState(ask): AskState, _: &mut Context<Self>) -> Self::Result {
        let questions: Vec<_> = self.shards.iter().map(|(worker, shard)| (*worker, shard.send(ask))).collect();
        Box::pin(join_all(questions.into_iter().map(|(worker, question)| async move {
            match timeout(SNAPSHOT_LIMIT, question).await {
                Ok(Ok(state)) => Ok(state),
                Ok(Err(_)) | Err(_) => Err(worker),
            }
        })))
    }
}

impl Handler<CancelRequest> for Director {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, message: CancelRequest, _: &mut Context<Self>) -> Self::Result {
        let questions: Vec<_> = self.shards.iter().map(|(_, shard)| shard.send(message.0.clone())).collect();
        Box::pin(async move { join_all(questions).await.into_iter().flatten().map(|ended| ended.cut).sum() })
    }
}

impl Handler<FindStories> for Director {
    type Result = ResponseFuture<Vec<ShardStories>>;

    fn handle(&mut self, FindStories(ask): FindStories, _: &mut Context<Self>) -> Self::Result {
        let questions: Vec<_> = self.shards.iter().map(|(_, shard)| timeout(SNAPSHOT_LIMIT, shard.send(ask.clone()))).collect();
        Box::pin(async move { join_all(questions).await.into_iter().flatten().flatten().collect() })
    }
}

impl Handler<DrainBackend> for Director {
    type Result = ResponseFuture<DrainedBackend>;

    fn handle(&mut self, act: DrainBackend, _: &mut Context<Self>) -> Self::Result {
        self.acts += 1;
        let (id, shared, shards) = (format!("drain-{}", self.acts), Arc::clone(&self.shared), self.shards.clone());
        Box::pin(async move {
            let start = Instant::now();
            let backend = &shared.backends[act.backend];
            let is_first = !backend.drained.swap(true, Ordering::Relaxed);
            if is_first {
                backend.drained_at.store(shared.clock.now().raw(), Ordering::Relaxed);
            }
            let mut report = DrainedBackend {
                id,
                backend: shared.settings.backends[act.backend].name.to_string(),
                in_flight_at_start: backend.permits.used(),
                ..DrainedBackend::default()
            };
            let asked = shards.iter().map(|(_, shard)| shard.send(Unqueue { backend: act.backend }));
            report.moved = join_all(asked).await.into_iter().flatten().sum();
            let ends = act.deadline.map(|deadline| start + deadline);
            let emptying = until_drained(Arc::clone(&shared), shards, act.backend, ends, report.clone(), act.by);
            if act.wait {
                let ended = emptying.await;
                report.cut = ended.cut;
                report.moved += ended.moved as u64;
            } else if is_first || act.deadline.is_some() {
                actix_rt::spawn(emptying);
            }
            report.in_flight = backend.permits.used();
            report.duration_seconds = start.elapsed().as_secs_f64();
            report
        })
    }
}

/// Waits until a drained backend carries nothing, and tells the journal and the log; says what the deadline has ended.
async fn until_drained(
    shared: Arc<Shared>,
    shards: Vec<(usize, Addr<Shard>)>,
    index: usize,
    ends: Option<Instant>,
    report: DrainedBackend,
    by: String,
) -> Ended {
    let start = Instant::now();
    let ended = until_empty(Arc::clone(&shared), shards, index, ends).await;
    // It may have been taken in again meanwhile.
    if shared.backends[index].drained.load(Ordering::Relaxed) {
        let DrainedBackend { id, backend, in_flight_at_start, moved, .. } = report;
        let seconds = start.elapsed().as_secs_f64();
        let (moved, cut) = (moved + ended.moved as u64, ended.cut);
        let words = format!("{id}: {in_flight_at_start} in flight -> 0, {moved} moved, {cut} cut, {seconds:.1} s");
        tracing::info!(target: "audit", act = "drain-completed", backend, by, result = words, "operator's act");
        shared.journal.note("drained", Some(&backend), None, words);
    }
    ended
}

/// Waits until a drained backend carries nothing, or is taken in again; ends what is left at the deadline.
async fn until_empty(shared: Arc<Shared>, shards: Vec<(usize, Addr<Shard>)>, index: usize, deadline: Option<Instant>) -> Ended {
    let backend = &shared.backends[index];
    let mut ended = Ended::default();
    while backend.permits.used() > 0 && backend.drained.load(Ordering::Relaxed) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let cancel = Cancel { id: None, backend: Some(index), cut: Cut::Drain };
            let asked = shards.iter().map(|(_, shard)| shard.send(cancel.clone()));
            join_all(asked).await.into_iter().flatten().for_each(|more| ended += more);
        }
        tokio::time::sleep(DRAIN_TICK).await;
    }
    ended
}

impl Handler<RestartBackend> for Director {
    type Result = ResponseFuture<Result<RestartReport, ()>>;

    fn handle(&mut self, act: RestartBackend, _: &mut Context<Self>) -> Self::Result {
        self.acts += 1;
        let id = format!("restart-{}", self.acts);
        let generation = self.shared.backends[act.backend].generation.fetch_add(1, Ordering::Relaxed) + 1;
        let backend = self.shared.settings.backends[act.backend].name.to_string();
        tracing::info!(%backend, generation, act = %id, "restart requested");
        let journal = Arc::clone(&self.shared.journal);
        let mut starts = Vec::new();
        let mut reports = Vec::new();
        for (_, shard) in &self.shards {
            let (sender, report) = oneshot::channel();
            starts.push(shard.send(Restart { backend: act.backend, generation, deadline: act.deadline, report: sender }));
            reports.push(report);
        }
        Box::pin(async move {
            let started = join_all(starts).await;
            let in_flight_at_start = started.iter().flatten().map(|restarted| restarted.in_flight).sum();
            if started.iter().any(Result::is_err) {
                return Err(());
            }
            let mut report = RestartReport { id, backend, generation, in_flight_at_start, drained: None };
            let drained = drain_report(reports, report.clone(), journal, act.by);
            if act.wait {
                report.drained = Some(drained.await);
            } else {
                actix_rt::spawn(drained);
            }
            Ok(report)
        })
    }
}

async fn drain_report(
    reports: Vec<oneshot::Receiver<super::RetireReport>>,
    act: RestartReport,
    journal: Arc<Journal>,
    by: String,
) -> DrainReport {
    let workers: Vec<_> = join_all(reports).await.into_iter().flatten().collect();
    let report = DrainReport {
        completed: workers.iter().map(|worker| worker.completed).sum(),
        failed: workers.iter().map(|worker| worker.failed).sum(),
        moved: workers.iter().map(|worker| worker.moved).sum(),
        cut: workers.iter().map(|worker| worker.cut).sum(),
        duration_seconds: workers.iter().map(|worker| worker.duration_seconds).fold(0.0, f64::max),
        workers,
    };
    let words = format!(
        "{}: generation {} replaced its predecessor: {} in flight -> 0, {} failed, {} moved, {} cut, {:.1} s",
        act.id, act.generation, act.in_flight_at_start, report.failed, report.moved, report.cut, report.duration_seconds
    );
    // Also where whoever has asked did not wait for it.
    tracing::info!(target: "audit", act = "restart-completed", backend = act.backend, by, result = words, "operator's act");
    journal.note("restarted", Some(&act.backend), None, words);
    report
}
