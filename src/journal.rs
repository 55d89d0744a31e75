//! Journal: what has happened to backends and what operators did, newest last. Bounded; written only when something
//! changes, never on the path of a usual request.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use utoipa::ToSchema;

use crate::unix_time::unix_time;

/// Events that are kept.
const KEPT: usize = 1_000;

/// One event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Event {
    /// Its number, from 1.
    pub id: u64,
    /// Unix time in seconds.
    pub at: f64,
    /// `circuit-open`, `circuit-closed`, `act`, ...
    pub kind: &'static str,
    /// The backend it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The model it is about, if not the whole backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What happened, in words.
    pub words: String,
}

/// The events of this process.
#[derive(Debug, Default)]
pub struct Journal {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Event>,
}

impl Journal {
    /// Adds an event.
    pub fn note(&self, kind: &'static str, backend: Option<&str>, model: Option<&str>, words: String) {
        let at = unix_time().as_secs_f64();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let event =
            Event { id: kept.last, at, kind, backend: backend.map(str::to_owned), model: model.map(str::to_owned), words };
        kept.events.push_back(event);
        if kept.events.len() > KEPT {
            kept.events.pop_front();
        }
    }

    /// Events with a number above this one, oldest first. A number that was never given is another process's: all are told.
    pub fn after(&self, id: u64) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let id = if id > kept.last { 0 } else { id };
        kept.events.iter().filter(|event| event.id > id).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_make_room() {
        let journal = Journal::default();
        for number in 0..KEPT + 5 {
            journal.note("act", Some("b"), None, number.to_string());
        }
        let events = journal.after(0);
        assert_eq!((events.len(), events[0].id), (KEPT, 6));
        assert_eq!(journal.after(KEPT as u64 + 4).len(), 1);
        assert_eq!(journal.after(KEPT as u64 + 5).len(), 0);
        assert_eq!(journal.after(KEPT as u64 + 6).len(), KEPT);
    }
}
