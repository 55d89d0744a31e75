//! Choosing: which member of its pool a job is sent to, whom to ask when every circuit is open, and what is told of it.

use std::time::Duration;

use smallvec::SmallVec;

use super::JobParts;
use super::pool::Core;
use super::view::{PassedOver, View, place};
use crate::attempt::Call;
use crate::balance::{Affinity, Choice, Door, Members as _, Moment, Shut, Why, choose, last_resort};
use crate::chat::{Failure, FailureClass};
use crate::settings;
use crate::story::Chosen;

impl Core {
    /// The members as a job sees them.
    pub(super) fn view<'a>(&'a self, parts: &'a JobParts) -> View<'a> {
        View::new(&self.slots, &self.plan, parts)
    }

    /// The place of the member that is asked next; `None` where nobody can be. Told in the request's story.
    pub(super) fn choose(&self, parts: &mut JobParts) -> Option<usize> {
        let view = self.view(parts);
        let mut turns = self.slots.pools[self.plan.index].turns.borrow_mut();
        let choice = match self.keep_together(parts, &view) {
            Some(choice) => choice,
            None => match choose(&self.plan.tree, &view, &mut turns, &mut fastrand::f64) {
                Some(choice) => choice,
                None => {
                    self.tell_nobody(&parts.call, view, parts.now);
                    return None;
                }
            },
        };
        // A second job beside a slow one does not move the conversation.
        if let (Some(key), Some(table), false) = (parts.call.conversation, self.affinity(), parts.is_hedge) {
            table.remember(key, choice.leaf, view.now);
        }
        let slot = view.model_slot(choice.leaf);
        let limit = if choice.why == Why::Probe { view.time_to_probe(choice.leaf) } else { None };
        if let Some(member) = self.stats().borrow_mut().members.get_mut(choice.leaf) {
            member.chosen += 1;
        }
        let shared = &self.slots.shared;
        shared.backends[self.plan.members[choice.leaf]].health.slot(slot).pulse.choose(view.now);
        if self.slots.tells_stories() {
            self.tell(&parts.call, &choice, &view.into_passed_over(), parts.now);
        }
        parts.slot = slot;
        parts.ledger.limit = limit;
        parts.last_resort = false;
        Some(choice.leaf)
    }

    fn affinity(&self) -> Option<&Affinity> {
        self.slots.shared.pools[self.plan.index].affinity.as_ref()
    }

    /// The member that the request's conversation went to before, if it is well and not overloaded. A slow member's
    /// conversations are not asked there a second time at once.
    fn keep_together(&self, parts: &JobParts, view: &View<'_>) -> Option<Choice> {
        let key = parts.call.conversation.filter(|_| parts.ledger.tried.is_empty() && !parts.is_hedge)?;
        let known = self.affinity()?.find(key, view.now).filter(|leaf| *leaf < self.plan.members.len());
        let kept =
            known.filter(|leaf| view.door(*leaf) == Door::Open && view.weight_of(*leaf) > 0.0 && !view.is_overloaded(*leaf));
        let counted = match (known, kept) {
            (Some(_), Some(_)) => 0,
            (Some(_), None) => 1,
            (None, _) => 2,
        };
        self.stats().borrow_mut().conversations[counted] += 1;
        Some(Choice { leaf: kept?, why: Why::Affinity, compared: SmallVec::new() })
    }

    /// Keeps a choice for the request's story.
    fn tell(&self, call: &Call, choice: &Choice, passed_over: &PassedOver, now: Moment) {
        let index = |leaf: u16| {
            let member = self.plan.members.get(usize::from(leaf));
            member.and_then(|index| u16::try_from(*index).ok()).unwrap_or(u16::MAX)
        };
        call.trail.chose(Chosen {
            at: call.age(now),
            backend: index(place(choice.leaf)),
            why: choice.why,
            compared: choice.compared.iter().map(|(leaf, score)| (index(*leaf), *score)).collect(),
            passed_over: passed_over.iter().map(|(leaf, door)| (index(*leaf), *door)).collect(),
        });
    }

    /// Keeps for the request's story that no member could be asked, and why.
    fn tell_nobody(&self, call: &Call, view: View<'_>, now: Moment) {
        if self.slots.tells_stories() {
            let choice = Choice { leaf: usize::MAX, why: Why::Nobody, compared: SmallVec::new() };
            self.tell(call, &choice, &view.into_passed_over(), now);
        }
    }

    /// With every circuit open: whom to ask nevertheless, or what to answer in their place.
    pub(super) fn last_resort(&self, parts: &mut JobParts) -> Option<Resort> {
        let view = self.view(parts);
        let Shut { leaf, until, class } = last_resort(&self.plan.tree, &view)?;
        let backend = &self.slots.shared.settings.backends[self.plan.members[leaf]];
        let slot = view.model_slot(leaf);
        if parts.ledger.refused {
            return Some(Resort::Answer(shut_failure(backend, class, until.since(parts.now))));
        }
        if self.slots.tells_stories() {
            let choice = Choice { leaf, why: Why::LastResort, compared: SmallVec::new() };
            self.tell(&parts.call, &choice, &view.into_passed_over(), parts.now);
        }
        parts.slot = slot;
        parts.ledger.limit = None;
        Some(Resort::Ask(leaf))
    }
}

/// What becomes of a request when every circuit is open.
pub(super) enum Resort {
    /// This member is asked nevertheless.
    Ask(usize),
    /// The circuit answers in the provider's place.
    Answer(Failure),
}

/// What an open circuit answers: the class that opened it, and how long it still is.
fn shut_failure(backend: &settings::Backend, class: FailureClass, wait: Duration) -> Failure {
    let why = match class {
        FailureClass::RateLimited => "its provider limits the rate of requests",
        FailureClass::Billing => "its account is out of money or quota",
        FailureClass::Credential => "its provider refused the configured credential",
        FailureClass::ModelUnknown => "its provider does not have the model",
        FailureClass::Caller
        | FailureClass::Unsupported
        | FailureClass::Overloaded
        | FailureClass::Server
        | FailureClass::Socket
        | FailureClass::Timeout(_)
        | FailureClass::Malformed
        | FailureClass::Crashed => "it has failed repeatedly",
    };
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let message = format!("backend `{}` is not asked for another {seconds} s: {why}", backend.name);
    Failure {
        backend: Some(backend.name.clone()),
        retry_after: Some(wait.max(Duration::from_secs(1))),
        ..Failure::new(class, message)
    }
}
