//! Exponential back-off with full jitter.

use std::time::Duration;

/// First step of a back-off between tries.
const BASE: Duration = Duration::from_millis(100);
/// Longest step of a back-off between tries.
const CAP: Duration = Duration::from_secs(4);

/// The delay before try `tries + 1`, where `unit` is drawn uniformly from 0..1.
pub fn back_off(tries: u32, unit: f64) -> Duration {
    full_jitter(BASE, CAP, tries.saturating_sub(1), unit)
}

/// `unit` times `base` doubled `doublings` times, at most `cap`.
pub fn full_jitter(base: Duration, cap: Duration, doublings: u32, unit: f64) -> Duration {
    let step = base.saturating_mul(1u32.checked_shl(doublings.min(31)).unwrap_or(u32::MAX)).min(cap);
    step.mul_f64(unit.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_back_off_stays_within_its_bounds(tries in any::<u32>(), unit in 0.0f64..1.0) {
            prop_assert!(back_off(tries, unit) <= CAP);
            prop_assert!(back_off(tries, 0.0).is_zero());
        }

        #[test]
        fn steps_never_shrink(tries in 1u32..64) {
            prop_assert!(back_off(tries + 1, 1.0) >= back_off(tries, 1.0));
        }
    }
}
