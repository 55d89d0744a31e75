//! `least-busy`: fewest requests in flight at the backend, over the whole process.

use super::{Order, Standing, by_score};

/// Orders by requests in flight; the weights decide between equals.
pub fn order(standings: &[Standing], unit: f64) -> Order {
    // One more than there are, so that a tenth has a meaning for idle members too.
    by_score(standings, |standing| if standing.weight > 0.0 { f64::from(standing.in_flight) + 1.0 } else { f64::INFINITY }, unit)
}

#[cfg(test)]
mod tests {
    use super::super::tests::unknown;
    use super::*;

    #[test]
    fn the_one_with_the_fewest_requests_comes_first() {
        let standings = [Standing { in_flight: 4, ..unknown(9.0) }, Standing { in_flight: 2, ..unknown(1.0) }, unknown(0.0)];
        let places: Vec<usize> = order(&standings, 0.0).iter().map(|ranked| ranked.place).collect();
        assert_eq!(places, [1, 0, 2]);
    }
}
