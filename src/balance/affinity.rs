//! Affinity: which member a conversation went to last, in a table of fixed size that all workers share without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;

/// Conversations that are remembered; where two fall on one place, the later one stays.
const PLACES: usize = 1 << 16;
const LEAF_BITS: u32 = 12;
const TIME_BITS: u32 = 28;
/// Unit of the times that are kept, in microseconds: 0.1 s, so that they last for 310 days before they come round.
const UNIT: u64 = 100_000;

/// The table: each entry packs a tag of the conversation's key, the time it expires, and the member's leaf.
#[derive(Debug)]
pub struct Affinity {
    expiry: Duration,
    entries: Box<[AtomicU64]>,
}

impl Affinity {
    /// Starts empty; an entry expires so long after its last use.
    pub fn new(expiry: Duration) -> Self {
        Self { expiry, entries: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The member that the conversation went to last.
    pub fn find(&self, key: u64, now: Moment) -> Option<usize> {
        let entry = self.place(key).load(Ordering::Relaxed);
        let until = (entry >> LEAF_BITS) & mask(TIME_BITS);
        let is_fresh = until.wrapping_sub(now.raw() / UNIT) & mask(TIME_BITS) < 1 << (TIME_BITS - 1);
        let is_its_own = entry != 0 && entry >> (LEAF_BITS + TIME_BITS) == tag(key);
        (is_its_own && is_fresh).then(|| usize::try_from(entry & mask(LEAF_BITS)).unwrap_or(0))
    }

    /// Remembers the member that the conversation goes to now. Pools of thousands of members are remembered in part.
    pub fn remember(&self, key: u64, leaf: usize, now: Moment) {
        let Ok(leaf) = u64::try_from(leaf) else { return };
        if leaf <= mask(LEAF_BITS) {
            let until = ((now + self.expiry).raw() / UNIT) & mask(TIME_BITS);
            let entry = tag(key) << (LEAF_BITS + TIME_BITS) | until << LEAF_BITS | leaf;
            self.place(key).store(entry, Ordering::Relaxed);
        }
    }

    fn place(&self, key: u64) -> &AtomicU64 {
        &self.entries[usize::try_from(key).unwrap_or(0) & (PLACES - 1)]
    }
}

/// The part of a key that its place does not tell; never zero.
fn tag(key: u64) -> u64 {
    (key >> (LEAF_BITS + TIME_BITS)) | 1
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_conversation_stays_with_its_member_until_it_expires() {
        let table = Affinity::new(Duration::from_secs(300));
        let (one, other) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_def0);
        assert_eq!(table.find(one, at(0)), None);
        table.remember(one, 2, at(0));
        assert_eq!(table.find(one, at(299)), Some(2));
        assert_eq!(table.find(other, at(1)), None, "another one on the same place");
        assert_eq!(table.find(one, at(301)), None);
        table.remember(one, 0, at(301));
        assert_eq!(table.find(one, at(302)), Some(0));
    }
}
