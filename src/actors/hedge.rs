//! Hedge: when no first content has come by the pool's own p95, a second member is asked beside the first. The first
//! content wins, the other try is cancelled as if its client had left.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::oneshot::{self, Receiver};
use tokio::time::Instant;

use super::JobParts;
use super::pool::Core;
use crate::attempt::{Call, Ledger, Reply, ReplySender};
use crate::error::GatewayError;

/// Fewest recent replies from which the wait is known.
const FEW: u64 = 20;
/// Recent replies beyond this are faded.
const RECENT: u64 = 500;

/// How long to wait before a second member is asked; `None` where the request is not hedged.
pub(super) fn patience(core: &Core, call: &Call) -> Option<Duration> {
    let hedge = core.plan.hedge.as_ref()?;
    if core.plan.members.len() < 2 || call.passthrough.is_some() || !call.repeatable {
        return None;
    }
    core.stats().borrow_mut().hedge_budget.earn(Instant::now().into_std());
    if !hedge.after.is_zero() {
        return Some(hedge.after);
    }
    let stats = core.stats().borrow();
    let recent = &stats.recent[usize::from(call.is_stream())];
    recent.quantile(0.95).filter(|_| recent.total() >= FEW)
}

/// Takes a time to first content in.
pub(super) fn note(core: &Core, stream: bool, after: Duration) {
    if core.plan.hedge.is_some() {
        let recent = &mut core.stats().borrow_mut().recent[usize::from(stream)];
        recent.add(after);
        if recent.total() >= RECENT {
            recent.fade();
        }
    }
}

/// The members that the jobs of one race have asked; those beyond the 64th are not told apart from members never asked.
#[derive(Debug, Default)]
pub struct Asked(AtomicU64);

impl Asked {
    fn bit(leaf: usize) -> u64 {
        u32::try_from(leaf).ok().and_then(|leaf| 1u64.checked_shl(leaf)).unwrap_or(0)
    }

    /// Whether the member was asked.
    pub(super) fn holds(&self, leaf: usize) -> bool {
        self.0.load(Ordering::Relaxed) & Self::bit(leaf) != 0
    }

    pub(super) fn add(&self, leaf: usize) {
        self.0.fetch_or(Self::bit(leaf), Ordering::Relaxed);
    }

    pub(super) fn remove(&self, leaf: usize) {
        self.0.fetch_and(!Self::bit(leaf), Ordering::Relaxed);
    }
}

/// Takes the place of a request's caller: returns the sender for the first job, and whom both jobs have asked.
pub(super) fn start(core: &Rc<Core>, call: &Arc<Call>, reply: ReplySender, patience: Duration) -> (ReplySender, Arc<Asked>) {
    let (sender, first) = oneshot::channel();
    let asked = Arc::new(Asked::default());
    let race = Race { core: Rc::clone(core), call: Arc::clone(call), asked: Arc::clone(&asked) };
    actix_rt::spawn(race.run(first, reply, patience));
    (sender, asked)
}

struct Race {
    core: Rc<Core>,
    call: Arc<Call>,
    asked: Arc<Asked>,
}

impl Race {
    /// A caller that leaves, or the end of the race, drops the receivers: the tries behind them are cancelled.
    async fn run(self, mut first: Receiver<Reply>, mut reply: ReplySender, patience: Duration) {
        let answer = {
            let racing = self.race(&mut first, patience);
            let mut racing = std::pin::pin!(racing);
            poll_fn(|cx| match racing.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer),
                Poll::Pending => reply.poll_closed(cx).map(|()| None),
            })
            .await
        };
        if let Some(answer) = answer {
            if answer.is_err() {
                self.core.stats().borrow_mut().refused += 1;
            }
            // A caller that left in this instant drops the answer.
            let _ = reply.send(answer);
        }
    }

    /// The first good answer; `None` when a job was lost with its actor: then the front end may ask again.
    async fn race(&self, first: &mut Receiver<Reply>, patience: Duration) -> Option<Reply> {
        if let Ok(answer) = tokio::time::timeout(patience, &mut *first).await {
            return answer.ok();
        }
        let Some(mut second) = self.ask_another() else { return first.await.ok() };
        let (winner, is_second) = poll_fn(|cx| {
            if let Poll::Ready(answer) = first.poll_unpin(cx) {
                return Poll::Ready((answer, false));
            }
            second.poll_unpin(cx).map(|answer| (answer, true))
        })
        .await;
        let (answer, is_second) = match (winner, is_second) {
            (Ok(Ok(answer)), is_second) => (Ok(answer), is_second),
            // One has failed: the other decides, and where both fail the first is told.
            (_, true) => (first.await.ok()?, false),
            (failed, false) => match second.await {
                Ok(Ok(answer)) => (Ok(answer), true),
                Ok(Err(_)) | Err(_) => (failed.ok()?, false),
            },
        };
        if is_second && answer.is_ok() {
            self.core.stats().borrow_mut().hedges.1 += 1;
            // The first would have taken longer than this.
            note(&self.core, self.call.is_stream(), self.call.age(self.core.now()));
        }
        Some(self.with_all_tries(answer))
    }

    /// Each job knows its own tries only.
    fn with_all_tries(&self, mut answer: Reply) -> Reply {
        let tries = u32::try_from(self.call.trail.tries()).unwrap_or(u32::MAX);
        match &mut answer {
            Ok(answer) => answer.attempts = answer.attempts.max(tries),
            Err(GatewayError::Upstream(failure)) => failure.attempts = failure.attempts.max(tries),
            Err(_) => {}
        }
        answer
    }

    /// Gives a second job to the best of the other members, if one is well and the budget allows it.
    fn ask_another(&self) -> Option<Receiver<Reply>> {
        let (reply, second) = oneshot::channel();
        let ledger = Ledger {
            attempts: 1,
            // One try, no retry and no third member.
            max_attempts: 2,
            ..Ledger::default()
        };
        let parts = JobParts {
            now: self.core.now(),
            call: Arc::clone(&self.call),
            ledger,
            reply,
            pool: u16::try_from(self.core.plan.index).unwrap_or(u16::MAX),
            member: 0,
            slot: 0,
            last_resort: false,
            is_hedge: true,
            race: Some(Arc::clone(&self.asked)),
            only: false,
        };
        let now = Instant::now();
        if !self.core.place_hedge(parts, |stats| stats.hedge_budget.spend(now.into_std())) {
            return None;
        }
        self.core.stats().borrow_mut().hedges.0 += 1;
        Some(second)
    }
}
