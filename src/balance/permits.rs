//! Permits of one backend for the whole process: one atomic, a guard per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The permits of one backend, shared by every worker and generation.
#[derive(Debug)]
pub struct Permits {
    limit: Option<u32>,
    used: AtomicU32,
}

/// One permit; returns itself when dropped, on whatever path.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Permits {
    /// Starts with all permits free; without a limit they are only counted.
    pub fn new(limit: Option<u32>) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU32::new(0) })
    }

    /// Takes a permit if one is free.
    pub fn try_take(self: &Arc<Self>) -> Option<Permit> {
        match self.limit {
            None => drop(self.used.fetch_add(1, Ordering::Relaxed)),
            Some(limit) => {
                let took = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < limit).then_some(used + 1));
                took.ok()?;
            }
        }
        Some(Permit(Arc::clone(self)))
    }

    /// Permits in use.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Permits that are free now; `u32::MAX` without a limit.
    pub fn free(&self) -> u32 {
        self.limit().map_or(u32::MAX, |limit| limit.saturating_sub(self.used()))
    }

    /// The limit, if there is one.
    pub fn limit(&self) -> Option<u32> {
        self.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn permits_sum_to_zero_and_never_pass_the_limit(limit in 1u32..8, steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let permits = Permits::new(Some(limit));
            let mut held = Vec::new();
            for take in steps {
                if take {
                    let taken = permits.try_take();
                    prop_assert_eq!(taken.is_some(), u32::try_from(held.len()).unwrap() < limit);
                    held.extend(taken);
                } else {
                    held.pop();
                }
                prop_assert_eq!(permits.used() as usize, held.len());
            }
            drop(held);
            prop_assert_eq!(permits.used(), 0);
        }
    }

    #[test]
    fn racing_threads_never_pass_the_limit() {
        let permits = Permits::new(Some(3));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let permit = permits.try_take();
                        assert!(permits.used() <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(permits.used(), 0);
    }
}
