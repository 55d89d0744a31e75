//! What providers want back with a tool call, kept for clients that do not send it back themselves. Bounded by bytes and
//! age; a miss costs quality, never a request.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::chat::Keepsake;

/// Bytes kept for one backend on one worker.
const MAX_BYTES: usize = 8 << 20;
/// How long something is kept.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// One worker's memory for one backend; outlives generations.
#[derive(Debug, Default)]
pub struct Memory {
    kept: HashMap<Rc<str>, Rc<str>>,
    /// The oldest first.
    order: VecDeque<(Rc<str>, Instant)>,
    bytes: usize,
}

impl Memory {
    /// Keeps what came with a call.
    pub fn keep(&mut self, keepsake: &Keepsake, now: Instant) {
        let size = keepsake.call.len() + keepsake.state.len();
        if size > MAX_BYTES {
            return;
        }
        let call: Rc<str> = keepsake.call.as_str().into();
        if let Some(before) = self.kept.insert(Rc::clone(&call), keepsake.state.as_str().into()) {
            self.bytes -= call.len() + before.len();
            self.order.retain(|(known, _)| *known != call);
        }
        self.bytes += size;
        self.order.push_back((call, now));
        while let Some((oldest, since)) = self.order.front() {
            if self.bytes <= MAX_BYTES && now.duration_since(*since) < MAX_AGE {
                break;
            }
            if let Some(state) = self.kept.remove(oldest) {
                self.bytes -= oldest.len() + state.len();
            }
            self.order.pop_front();
        }
    }

    /// What was kept for a call.
    pub fn recall(&self, call: &str) -> Option<Rc<str>> {
        self.kept.get(call).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn the_oldest_goes_first_and_nothing_grows_without_bound() {
        let now = Instant::now();
        let mut memory = Memory::default();
        let keepsake = |number: usize| Keepsake { call: format!("call-{number}"), state: "x".repeat(1 << 20) };
        for number in 0..20 {
            memory.keep(&keepsake(number), now);
            memory.keep(&keepsake(number), now);
        }
        assert!(memory.bytes <= MAX_BYTES && memory.kept.len() == memory.order.len());
        assert!(memory.recall("call-0").is_none() && memory.recall("call-19").is_some());
        memory.keep(&Keepsake { call: "late".into(), state: "y".into() }, now + MAX_AGE);
        assert!(memory.recall("call-19").is_none() && memory.recall("late").is_some());
        assert_eq!(memory.bytes, 5);
    }
}
