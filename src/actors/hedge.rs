//! Hedge: when no first content has come by the pool's own p95, a second member is asked beside the first. The first
//! content wins, the other try is cancelled as if its client had left.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
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
    core.stats().borrow_mut().hedge_budget.earn();
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

/// Takes the place of a request's caller: returns the sender for the first job and where it says which member has it.
pub(super) fn start(core: &Rc<Core>, call: &Arc<Call>, reply: ReplySender, patience: Duration) -> (ReplySender, Arc<AtomicU16>) {
    let (sender, first) = oneshot::channel();
    let at = Arc::new(AtomicU16::new(u16::MAX));
    let race = Race { core: Rc::clone(core), call: Arc::clone(call), at: Arc::clone(&at) };
    actix_rt::spawn(race.run(first, reply, patience));
    (sender, at)
}

struct Race {
    core: Rc<Core>,
    call: Arc<Call>,
    /// Who has the first job.
    at: Arc<AtomicU16>,
}

impl Race {
    /// A caller that leaves, or the end of the race, drops the receivers: the tries behind them are cancelled.
    async fn run(self, mut first: Receiver<Reply>, mut reply: ReplySender, patience: Duration) {
        let answer = {
            let racing = self.race(&mut first, patience);
            let mut racing = std::pin::pin!(racing);
            poll_fn(|cx| match racing.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
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

    async fn race(&self, first: &mut Receiver<Reply>, patience: Duration) -> Reply {
        if let Ok(answer) = tokio::time::timeout(patience, &mut *first).await {
            return received(answer);
        }
        let Some(mut second) = self.ask_another() else { return received(first.await) };
        let (winner, is_second) = poll_fn(|cx| {
            if let Poll::Ready(answer) = first.poll_unpin(cx) {
                return Poll::Ready((received(answer), false));
            }
            second.poll_unpin(cx).map(|answer| (received(answer), true))
        })
        .await;
        let (answer, is_second) = match (winner, is_second) {
            (Ok(answer), is_second) => (Ok(answer), is_second),
            // One has failed: the other decides, and what it says when it fails too is told.
            (Err(_), true) => (received(first.await), false),
            (Err(error), false) => match received(second.await) {
                Ok(answer) => (Ok(answer), true),
                Err(_) => (Err(error), false),
            },
        };
        if is_second && answer.is_ok() {
            self.core.stats().borrow_mut().hedges.1 += 1;
        }
        answer
    }

    /// Gives a second job to the best of the other members, if one is well and the budget allows it.
    fn ask_another(&self) -> Option<Receiver<Reply>> {
        let (reply, second) = oneshot::channel();
        let ledger = Ledger {
            tried: [self.at.load(Ordering::Relaxed)].into_iter().collect(),
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
            race: Some(Arc::default()),
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

fn received(answer: Result<Reply, oneshot::error::RecvError>) -> Reply {
    // Only a job that was lost with its actor has no answer.
    answer.unwrap_or(Err(GatewayError::Internal))
}
