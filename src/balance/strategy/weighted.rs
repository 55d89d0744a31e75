//! `weighted`: by share, spread smoothly: with weights 3 and 1 every fourth request goes to the second member.

use super::{Order, Ranked, Standing, Why};

/// Every member gains its weight; the one that has gained most is chosen and pays the total. `gained` holds what each
/// has gained before.
pub fn order(standings: &[Standing], gained: &mut [f64]) -> Order {
    let total: f64 = standings.iter().map(|standing| standing.weight).sum();
    // Weights of zero mean "only when nothing else is left": then all count the same.
    let share = |standing: &Standing| if total > 0.0 { standing.weight } else { 1.0 };
    let mut order: Order = standings
        .iter()
        .zip(gained.iter_mut())
        .enumerate()
        .map(|(place, (standing, gained))| {
            *gained += share(standing);
            let score = if share(standing) > 0.0 { -*gained } else { f64::INFINITY };
            Ranked { place, score, why: Why::Turn }
        })
        .collect();
    order.sort_by(|a, b| a.score.total_cmp(&b.score));
    if let Some(chosen) = order.first() {
        gained[chosen.place] -= if total > 0.0 { total } else { standings.len() as f64 };
    }
    order
}

#[cfg(test)]
mod tests {
    use super::super::tests::unknown;
    use super::*;

    #[test]
    fn shares_are_exact_and_spread_smoothly() {
        let standings = [unknown(3.0), unknown(1.0), unknown(0.0)];
        let mut gained = [0.0; 3];
        let chosen: Vec<usize> = (0..8).map(|_| order(&standings, &mut gained)[0].place).collect();
        assert_eq!(chosen, [0, 0, 1, 0, 0, 0, 1, 0]);
        let zeros = [unknown(0.0), unknown(0.0)];
        let mut gained = [0.0; 2];
        let chosen: Vec<usize> = (0..4).map(|_| order(&zeros, &mut gained)[0].place).collect();
        assert_eq!(chosen, [0, 1, 0, 1]);
    }
}
