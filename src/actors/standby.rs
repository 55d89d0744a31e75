//! Standby: members that had no traffic for a while are checked by the cheapest call there is, so that a dead fallback is
//! known before it is needed. One worker does it for the process.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::Dispatch;
use super::slots::{SlotState, Slots};
use super::tally::Counting;
use crate::attempt::{Call, Reply};
use crate::balance::CircuitState;
use crate::chat::FailureClass;
use crate::error::GatewayError;
use crate::settings::Backend;
use crate::story::Outcome;

/// How often members are looked at.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Longest wait for a check's answer.
const LIMIT: Duration = Duration::from_secs(60);

/// The backends that are checked: index, how long they may be without traffic, and what their last check said.
pub(crate) struct Standby {
    watched: Vec<Watched>,
}

struct Watched {
    backend: usize,
    interval: Duration,
    last: Option<Instant>,
    was_well: Rc<Cell<Option<bool>>>,
    /// Whether a check is under way.
    is_busy: Rc<Cell<bool>>,
}

impl Standby {
    /// The members of every pool that wants it.
    pub(crate) fn of(slots: &Slots) -> Self {
        let settings = &slots.shared.settings;
        let interval = |backend: usize| {
            settings.pools.iter().filter(|pool| pool.members.contains(&backend)).filter_map(|pool| pool.standby).min()
        };
        let watched = (0..settings.backends.len())
            .filter_map(|backend| {
                Some(Watched {
                    backend,
                    interval: interval(backend)?,
                    last: None,
                    was_well: Rc::default(),
                    is_busy: Rc::default(),
                })
            })
            .collect();
        Self { watched }
    }

    /// Whether there is nothing to do, ever.
    pub(crate) fn is_idle(&self) -> bool {
        self.watched.is_empty()
    }

    /// Starts the checks that are due.
    pub(crate) fn look(&mut self, slots: &Rc<Slots>) {
        let now = Instant::now();
        for watched in &mut self.watched {
            let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.duration_since(at) < watched.interval);
            if watched.is_busy.get()
                || is_recent(watched.last)
                || has_traffic(slots, watched.backend, watched.interval)
                || !may_ask(slots, watched.backend)
            {
                continue;
            }
            watched.last = Some(now);
            watched.is_busy.set(true);
            let checking = check(Rc::clone(slots), watched.backend, Rc::clone(&watched.was_well));
            let is_busy = Rc::clone(&watched.is_busy);
            actix_rt::spawn(async move {
                checking.await;
                is_busy.set(false);
            });
        }
    }
}

fn has_traffic(slots: &Slots, backend: usize, interval: Duration) -> bool {
    let now = slots.shared.clock.now();
    let (served, failed) = slots.shared.backends[backend].health.last();
    served.into_iter().chain(failed).any(|at| now.since(at) < interval)
}

/// An open circuit, of the backend or of the model that is asked for, is asked again when its time has come, and a drained
/// backend not at all.
fn may_ask(slots: &Slots, backend: usize) -> bool {
    let shared = &slots.shared.backends[backend];
    let settings = &slots.shared.settings.backends[backend];
    let slot = shared.health.slot_of(settings.native_model(Some(settings.usual_model()), true).unwrap_or_default(), 0);
    let is_open = matches!(shared.health.state(slot, slots.shared.clock.now()), CircuitState::Open { .. });
    let is_up = matches!(*slots.providers[backend].state.borrow(), SlotState::Up(_));
    is_up && !is_open && !shared.drained.load(Ordering::Relaxed)
}

/// One request of one token, by the pool of one that every backend has.
async fn check(slots: Rc<Slots>, index: usize, was_well: Rc<Cell<Option<bool>>>) {
    let backend = Arc::clone(&slots.shared.settings.backends[index]);
    let Some(pool) = slots.shared.settings.pools.iter().find(|pool| pool.implicit && pool.members == [index]) else { return };
    let Some(call) = call(&slots, &backend) else { return };
    let Some(sending) = slots.pool(pool.index).map(|address| address.send(Dispatch(call))) else { return };
    let begun = Instant::now();
    let counting = Counting::begin(&slots, pool.index);
    let reply = sending.await;
    counting.end(if matches!(reply, Ok(Ok(_))) { Outcome::Served } else { Outcome::Failed });
    let Ok(reply) = reply else { return };
    let (is_well, words) = match verdict(&reply) {
        Ok(()) => {
            let health = &slots.shared.backends[index].health;
            health.note_answer(slots.shared.clock.now());
            (true, format!("answers, after {} ms", begun.elapsed().as_millis()))
        }
        Err(reason) => (false, reason),
    };
    if was_well.replace(Some(is_well)) != Some(is_well) {
        let kind = if is_well { "standby-well" } else { "standby-ill" };
        tracing::info!(backend = %backend.name, is_well, reason = %words, "standby checked");
        slots.shared.journal.note(kind, Some(&backend.name), None, words);
    }
}

/// A provider that finds fault with the request is there and takes the key: that is what is asked.
fn verdict(reply: &Reply) -> Result<(), String> {
    match reply {
        Ok(_) => Ok(()),
        Err(GatewayError::Upstream(failure)) if failure.class == FailureClass::Caller => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn call(slots: &Slots, backend: &Backend) -> Option<Arc<Call>> {
    let model = backend.usual_model();
    let body = json!({ "model": model, "max_tokens": 1, "messages": [{ "role": "user", "content": "." }] });
    slots.shared.own_call(format!("standby-{}", backend.name), &body, LIMIT, false)
}
