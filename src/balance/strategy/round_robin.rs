//! `round-robin`: in turn, whatever the weights; a weight of zero still means "only when nothing else is left".

use super::{Order, Ranked, Standing, Why};

/// The members from `turn` on, which moves to the next one. `places` says where each standing sits in the whole group, so
/// that a member that is out does not give its turn to its neighbour alone.
pub fn order(standings: &[Standing], places: &[usize], size: usize, turn: &mut usize) -> Order {
    let distance = |place: usize| (places[place] + size - *turn % size.max(1)) % size.max(1);
    let mut order: Order = standings
        .iter()
        .enumerate()
        .map(|(place, standing)| {
            let last = if standing.weight > 0.0 { 0.0 } else { size as f64 };
            Ranked { place, score: distance(place) as f64 + last, why: Why::Turn }
        })
        .collect();
    order.sort_by(|a, b| a.score.total_cmp(&b.score));
    if let Some(chosen) = order.first() {
        *turn = (places[chosen.place] + 1) % size.max(1);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::super::tests::unknown;
    use super::*;

    #[test]
    fn each_has_its_turn_and_a_gap_is_passed_over() {
        let all = [unknown(5.0), unknown(1.0), unknown(1.0)];
        let mut turn = 0;
        let chosen: Vec<usize> = (0..4).map(|_| order(&all, &[0, 1, 2], 3, &mut turn)[0].place).collect();
        assert_eq!(chosen, [0, 1, 2, 0]);
        let chosen: Vec<usize> = (0..3).map(|_| order(&all[..2], &[0, 2], 3, &mut turn)[0].place).collect();
        assert_eq!(chosen, [1, 0, 1]);
    }
}
