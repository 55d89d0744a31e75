//! `latency`: the fastest responding member, without herding.
//!
//! A member's score is the time an answer is expected to take there: its average, raised by the load it carries beyond
//! the load at which that average was measured, and raised by the age of what it has not answered yet.

use super::{Order, Standing, Why, by_score};

/// Requests that a member is thought to carry without getting slower, when loads are compared.
const SLACK: f64 = 4.0;
/// Seconds after which a member that was not asked is asked again, to see whether it has recovered.
const SCOUT_AFTER: f64 = 1.0;
/// At most one request in this many is a scout.
const SCOUT_PACE: u32 = 100;

/// What the strategy remembers of one group on one worker.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Requests since the last scout.
    since_scout: u32,
}

/// Orders by score; the weights decide between near-equals, by `unit` drawn from 0..1.
pub fn order(standings: &[Standing], state: &mut State, unit: f64) -> Order {
    let fastest = standings.iter().filter_map(|standing| standing.beat.expected).fold(f64::INFINITY, f64::min);
    let fastest = if fastest.is_finite() { fastest } else { 1.0 };
    let mut order = by_score(standings, |standing| score(standing, fastest), unit);
    state.since_scout = state.since_scout.saturating_add(1);
    for ranked in &mut order {
        if standings[ranked.place].beat.expected.is_none() {
            ranked.why = Why::Untried;
        }
    }
    if state.since_scout >= SCOUT_PACE
        && let Some(place) = order.iter().skip(1).position(|ranked| may_scout(&standings[ranked.place]))
    {
        state.since_scout = 0;
        order[..=place + 1].rotate_right(1);
        order[0].why = Why::Scout;
    }
    order
}

fn may_scout(standing: &Standing) -> bool {
    standing.weight > 0.0 && standing.beat.idle >= SCOUT_AFTER
}

fn score(standing: &Standing, fastest: f64) -> f64 {
    if standing.weight <= 0.0 {
        return f64::INFINITY;
    }
    let beat = &standing.beat;
    // Of whom nothing is known is thought to be as fast as the fastest, for one request at a time.
    let expected = beat.expected.unwrap_or(fastest);
    let load = (SLACK + f64::from(standing.in_flight)) / (SLACK + beat.usual_load);
    let unanswered = if beat.waiting > 0 { beat.waited * 2.0 } else { 0.0 };
    expected.max(unanswered) * load.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::unknown;
    use super::*;
    use crate::balance::Beat;

    fn known(expected: f64) -> Standing {
        let usual = unknown(1.0);
        Standing { beat: Beat { expected: Some(expected), sample_age: 0.1, idle: 0.1, ..usual.beat }, ..usual }
    }

    fn first(standings: &[Standing]) -> usize {
        order(standings, &mut State::default(), 0.5)[0].place
    }

    #[test]
    fn the_faster_one_comes_first_and_an_unknown_one_is_tried_early() {
        assert_eq!(first(&[known(2.0), known(1.0)]), 1);
        let order = order(&[known(2.0), unknown(1.0), known(1.9)], &mut State::default(), 0.99);
        assert!(order.iter().any(|ranked| ranked.place == 1 && ranked.why == Why::Untried));
    }

    #[test]
    fn load_and_unanswered_requests_speak_against_a_member() {
        let loaded = Standing { in_flight: 40, ..known(1.0) };
        assert_eq!(first(&[loaded, known(1.5)]), 1);
        let hanging = known(1.0);
        let hanging = Standing { beat: Beat { waiting: 3, waited: 1.5, ..hanging.beat }, ..hanging };
        assert_eq!(first(&[hanging, known(2.0)]), 1);
    }
}
