//! Vitals: where attempts report what they saw of a backend's health, and what is announced of it.

use std::sync::Arc;
use std::time::Duration;

use super::Clock;
use crate::balance::{Health, Moment, Permits, Pulse, Scope, Transition, Transitions, Trouble, is_hard};
use crate::chat::{Failure, FailureClass};
use crate::journal::Journal;
use crate::settings::Backend;
use crate::words::in_a_row;

/// What the attempts of one backend share over all workers and generations.
#[derive(Clone)]
pub struct Vitals {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Its circuits and averages.
    pub health: Arc<Health>,
    /// Its permits.
    pub permits: Arc<Permits>,
    /// Where transitions are told.
    pub journal: Arc<Journal>,
    /// Moments of instants.
    pub clock: Clock,
}

/// How far a try had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fell {
    /// Nothing had reached the provider.
    Unsent,
    /// No content had come.
    Unanswered,
    /// Content had come.
    AfterContent,
}

impl Vitals {
    /// How fast a model answers.
    pub fn pulse(&self, slot: u16) -> &Pulse {
        &self.health.slot(slot).pulse
    }

    /// A request that began then has brought content.
    pub fn recovered(&self, slot: u16, began: Moment, now: Moment) {
        self.announce(&self.health.recovered(slot, began, now), now);
    }

    /// A request that began then has come to its end.
    pub fn completed(&self, slot: u16, began: Moment, now: Moment) {
        self.announce(&self.health.completed(slot, began, now), now);
    }

    /// A try that began then has failed, before any content had come or after it.
    pub fn failed(&self, slot: u16, failure: &Failure, how: Fell, began: Moment, now: Moment) {
        let (sent, is_cut) = (how != Fell::Unsent, how == Fell::AfterContent);
        let trouble = Trouble { class: failure.class, sent, began, retry_after: failure.retry_after, is_cut };
        self.announce(&self.health.failed(slot, &trouble, now), now);
        if is_slow(failure.class) {
            self.pulse(slot).failed(now.since(trouble.began), now);
        }
    }

    fn announce(&self, transitions: &Transitions, now: Moment) {
        for (scope, transition) in transitions {
            let model = match scope {
                Scope::Backend => None,
                Scope::Model(slot) => Some(&*self.health.slot(*slot).model),
            };
            let backend = &*self.backend.name;
            let words = words(transition, now);
            match transition {
                Transition::Opened { .. } => {
                    tracing::warn!(backend, model, reason = %words, "circuit opened");
                    self.journal.note("circuit-open", Some(backend), model, words);
                }
                Transition::Closed { .. } => {
                    tracing::info!(backend, model, reason = %words, "circuit closed");
                    self.journal.note("circuit-closed", Some(backend), model, words);
                }
            }
        }
    }
}

/// Whether a failure speaks against the speed of a backend. Others say nothing about it.
fn is_slow(class: FailureClass) -> bool {
    match class {
        FailureClass::Overloaded
        | FailureClass::Server
        | FailureClass::Socket
        | FailureClass::Timeout(_)
        | FailureClass::Malformed => true,
        FailureClass::Caller
        | FailureClass::Unsupported
        | FailureClass::ModelUnknown
        | FailureClass::Credential
        | FailureClass::Billing
        | FailureClass::RateLimited
        | FailureClass::Crashed => false,
    }
}

fn words(transition: &Transition, now: Moment) -> String {
    match transition {
        Transition::Opened { until, class, streak, trips } => {
            let wait = rounded(until.since(now));
            let again = if *trips > 1 { format!(", {trips} times without recovering") } else { String::new() };
            // The others are asked where nobody else can serve.
            let what = if is_hard(*class) { "not asked" } else { "asked only as a last resort" };
            format!("{}{again}: {what} for {wait}", in_a_row(*class, *streak))
        }
        Transition::Closed { class, since } => {
            let lasted = since.map(|since| rounded(nearest(now.since(since))));
            let lasted = lasted.map_or_else(String::new, |lasted| format!(" after {lasted}"));
            format!("answers again{lasted}, was {}", class.word())
        }
    }
}

/// What has passed is not told as longer than it was.
fn nearest(time: Duration) -> Duration {
    if time < Duration::from_secs(1) { time } else { Duration::from_secs((time + Duration::from_millis(500)).as_secs()) }
}

fn rounded(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{} ms", time.as_millis());
    }
    humantime::format_duration(Duration::from_secs(time.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX))).to_string()
}
