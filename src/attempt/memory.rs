//! What providers want back with a tool call, kept for clients that do not send it back themselves. Bounded by bytes and
//! age; a miss costs quality, never a request.
//!
//! A client's next request may arrive at any worker, so the process shares it: readers take the present version, writers
//! put the next one in its place, and nobody waits for anybody.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::chat::Keepsake;

/// Bytes kept for one backend.
const MAX_BYTES: usize = 16 << 20;
/// How long something is kept.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// The memory for one backend; outlives generations.
#[derive(Debug, Default)]
pub struct Memory(ArcSwap<Kept>);

/// One version; versions share what they have in common.
#[derive(Debug, Clone, Default)]
struct Kept {
    states: imbl::HashMap<Arc<str>, (Arc<str>, Instant)>,
    /// The oldest first.
    order: imbl::Vector<(Arc<str>, Instant)>,
    bytes: usize,
}

impl Memory {
    /// Keeps what came with calls.
    pub fn keep(&self, keepsakes: &[Keepsake], now: Instant) {
        self.0.rcu(|kept| {
            let mut next = Kept::clone(kept);
            for keepsake in keepsakes {
                next.add(keepsake, now);
            }
            next
        });
    }

    /// What was kept for a call.
    pub fn recall(&self, call: &str, now: Instant) -> Option<Arc<str>> {
        let kept = self.0.load();
        let (state, since) = kept.states.get(call)?;
        (now.duration_since(*since) < MAX_AGE).then(|| Arc::clone(state))
    }
}

impl Kept {
    fn add(&mut self, keepsake: &Keepsake, now: Instant) {
        let size = keepsake.call.len() + keepsake.state.len();
        if size > MAX_BYTES {
            return;
        }
        let call: Arc<str> = keepsake.call.as_str().into();
        if let Some((before, _)) = self.states.insert(Arc::clone(&call), (keepsake.state.as_str().into(), now)) {
            self.bytes -= call.len() + before.len();
            self.order.retain(|(known, _)| *known != call);
        }
        self.bytes += size;
        self.order.push_back((call, now));
        while let Some((oldest, since)) = self.order.front() {
            if self.bytes <= MAX_BYTES && now.duration_since(*since) < MAX_AGE {
                break;
            }
            if let Some((state, _)) = self.states.remove(oldest) {
                self.bytes -= oldest.len() + state.len();
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn the_oldest_goes_first_and_nothing_grows_without_bound() {
        let now = Instant::now();
        let memory = Memory::default();
        let keepsake = |number: usize| Keepsake { call: format!("call-{number}"), state: "x".repeat(1 << 20) };
        for number in 0..20 {
            memory.keep(&[keepsake(number), keepsake(number)], now);
        }
        let kept = memory.0.load();
        assert!(kept.bytes <= MAX_BYTES && kept.states.len() == kept.order.len());
        assert!(memory.recall("call-0", now).is_none() && memory.recall("call-19", now).is_some());
        assert!(memory.recall("call-19", now + MAX_AGE).is_none());
        memory.keep(&[Keepsake { call: "late".into(), state: "y".into() }], now + MAX_AGE);
        assert!(memory.recall("call-19", now).is_none() && memory.recall("late", now + MAX_AGE).is_some());
        assert_eq!(memory.0.load().bytes, 5);
    }
}
