//! `cost`: the cheapest for this request by the catalogue's prices; a member whose price is unknown comes last.

use super::{Order, Standing, by_score};

/// Orders by what the request would cost; the weights decide between prices within a tenth.
pub fn order(standings: &[Standing], unit: f64) -> Order {
    by_score(standings, |standing| standing.price.filter(|_| standing.weight > 0.0).unwrap_or(f64::INFINITY), unit)
}

#[cfg(test)]
mod tests {
    use super::super::tests::unknown;
    use super::*;

    #[test]
    fn the_cheapest_comes_first_and_the_unknown_last() {
        let priced = |price: f64| Standing { price: Some(price), ..unknown(1.0) };
        let standings = [unknown(1.0), priced(2e9), priced(1e9)];
        let places: Vec<usize> = order(&standings, 0.5).iter().map(|ranked| ranked.place).collect();
        assert_eq!(places, [2, 1, 0]);
    }
}
