//! `latency`: the fastest responding member, without herding.
//!
//! A member's score is the time an answer is expected to take there: its average, raised by what it has not answered for
//! longer than that. Requests go where the load is least for the score, so that members of near-equal scores carry the same
//! and slower ones far less; these are asked once in a while all the same, to see whether they have become faster. The
//! constants are first choices that were adjusted together in the laboratory (`tests/lab`), not each one alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;

use super::{Order, Ranked, Standing, Why, draw};

/// Scores this near to the best one are as good: the averages of equal members differ by about a tenth at any moment.
const NEAR: f64 = 1.2;
/// Beyond that a member is given a load that falls with this power of its score: steep enough to leave the slow ones out,
/// flat enough that members which seem slower by chance go on being measured, and that a busy group does not swing.
const STEEP: i32 = 5;
/// Unanswered requests that weigh as much as the average does: so many that one slow answer is borne with, so few that a
/// member that has stopped answering is left within about twice its usual time.
const DOUBT: f64 = 4.0;
/// Requests that any member is thought to carry without getting slower.
const SLACK: f64 = 24.0;
/// Beyond the load at which it was measured a member is thought to take longer by this power of it: answers come too late
/// to tell, and without it the fastest of a busy group is flooded and deserted in turns.
const RESTRAINT: i32 = 3;
/// At most one request in this many is a scout to a member that is left out: so few that the 99th percentile does not
/// feel it, so many that at a hundred requests per second a recovered one is found within a second or two.
const SCOUT_PACE: u32 = 125;
/// Scouts that a group can save up while there is nobody to look for.
const SCOUTS_SAVED: u32 = 4;
/// Seconds after which a member that was not asked is asked again.
const SCOUT_AFTER: f64 = 1.0;

/// Scouts that one group may send. All workers share them: so many workers, each with its own, send them at random moments,
/// now many and now none for seconds.
#[derive(Debug)]
pub struct Scouts {
    /// Requests that no scout has been sent for.
    earned: AtomicU32,
}

impl Default for Scouts {
    fn default() -> Self {
        Self { earned: AtomicU32::new(SCOUT_PACE) }
    }
}

impl Scouts {
    /// One for each of so many groups.
    pub fn of(groups: usize) -> Arc<[Self]> {
        (0..groups).map(|_| Self::default()).collect()
    }

    /// Counts a request. With as many saved as may be, as there are while nobody is left out, it only reads.
    fn earn(&self) {
        if self.earned.load(Ordering::Relaxed) < SCOUT_PACE * SCOUTS_SAVED {
            self.earned.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let rest = |earned: u32| earned.checked_sub(SCOUT_PACE);
        self.earned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }
}

/// Orders by load for the score; the weights share near-equals out and decide between idle ones, by `unit` drawn from 0..1.
pub fn order(standings: &[Standing], scouts: &Scouts, unit: f64) -> Order {
    let fastest = standings.iter().filter_map(|standing| standing.beat.expected).fold(f64::INFINITY, f64::min);
    let fastest = if fastest.is_finite() { fastest } else { 1.0 };
    let scores: SmallVec<[f64; 8]> = standings.iter().map(|standing| score(standing, fastest)).collect();
    let best = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let heaviest = standings.iter().map(|standing| standing.weight).fold(0.0, f64::max);
    let burden = |ranked: &Ranked| burden(&standings[ranked.place], heaviest, ranked.score, best);
    let why = |standing: &Standing| if standing.beat.expected.is_none() { Why::Untried } else { Why::Best };
    let ranked = |(place, standing)| Ranked { place, score: scores[place], why: why(standing) };
    let mut order: Order = standings.iter().enumerate().map(ranked).collect();
    order.sort_unstable_by(|a, b| burden(a).total_cmp(&burden(b)));
    let Some(least) = order.first().map(burden) else { return order };
    let equals = order.iter().take_while(|ranked| burden(ranked) <= least).count();
    if equals > 1 {
        let chosen = draw(order[..equals].iter().map(|ranked| standings[ranked.place].weight), unit);
        order[..=chosen].rotate_right(1);
        if order[0].why == Why::Best {
            order[0].why = Why::Tie;
        }
    }
    scouts.earn();
    if let Some(place) = forgotten(standings, &order)
        && scouts.spend()
    {
        order[..=place].rotate_right(1);
        if order[0].why != Why::Untried {
            order[0].why = Why::Scout;
        }
    }
    order
}

/// The member that was not asked for longest, if one has not been asked for long.
fn forgotten(standings: &[Standing], order: &[Ranked]) -> Option<usize> {
    let standing = |place: usize| &standings[order[place].place];
    let may = |place: &usize| standing(*place).weight > 0.0 && standing(*place).beat.idle >= SCOUT_AFTER;
    (1..order.len()).filter(may).max_by(|a, b| standing(*a).beat.idle.total_cmp(&standing(*b).beat.idle))
}

/// What a member would carry with one more request, for its weight and the more the slower it is. A weight of zero is only
/// for when nothing else is left.
fn burden(standing: &Standing, heaviest: f64, score: f64, best: f64) -> f64 {
    if score.is_infinite() {
        return f64::INFINITY;
    }
    let slower = (score / best / NEAR).max(1.0);
    // The slack counts the same for all: idle ones are equals whatever their weights, which then decide by lot.
    (load(standing) / standing.weight * heaviest + SLACK) * slower.powi(STEEP)
}

/// What a member carries. Requests that hang on after it has recovered are no work to it: with them it would look fully
/// loaded until they time out.
fn load(standing: &Standing) -> f64 {
    f64::from(standing.in_flight.saturating_sub(standing.beat.overtaken))
}

fn score(standing: &Standing, fastest: f64) -> f64 {
    if standing.weight <= 0.0 {
        return f64::INFINITY;
    }
    let beat = &standing.beat;
    // Of whom nothing is known is thought to be as fast as the fastest.
    let expected = beat.expected.unwrap_or(fastest);
    let overdue = (beat.waited - expected).max(0.0) * f64::from(beat.waiting);
    // Measured at that load; with more it will be slower, before its answers can tell.
    let growth = (SLACK + load(standing)) / (SLACK + beat.usual_load);
    (expected + overdue / DOUBT) * growth.max(1.0).powi(RESTRAINT)
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
        order(standings, &Scouts::default(), 0.5)[0].place
    }

    #[test]
    fn the_faster_one_comes_first_and_an_unknown_one_is_tried_early() {
        assert_eq!(first(&[known(2.0), known(1.0)]), 1);
        let order = order(&[known(2.0), unknown(1.0), known(1.9)], &Scouts::default(), 0.99);
        assert!(order.iter().any(|ranked| ranked.place == 1 && ranked.why == Why::Untried));
    }

    #[test]
    fn load_and_unanswered_requests_speak_against_a_member() {
        let loaded = Standing { in_flight: 40, ..known(1.0) };
        assert_eq!(first(&[loaded, known(1.5)]), 1);
        let hanging = known(1.0);
        let hanging = Standing { beat: Beat { waiting: 8, waited: 2.5, ..hanging.beat }, ..hanging };
        assert_eq!(first(&[hanging, known(2.0)]), 1);
    }

    #[test]
    fn near_equals_carry_the_same_and_much_slower_ones_nothing() {
        let busy = |expected, in_flight| Standing { in_flight, ..known(expected) };
        assert_eq!(first(&[busy(1.0, 9), busy(1.1, 8), busy(1.1, 9)]), 1);
        assert_eq!(first(&[busy(1.0, 20), busy(10.0, 0)]), 0);
        assert_eq!(first(&[busy(1.0, 20), Standing { weight: 0.0, ..busy(0.1, 0) }]), 0);
    }

    #[test]
    fn one_late_answer_is_borne_with_and_many_are_not() {
        let waiting = |waiting| Standing { beat: Beat { waiting, waited: 1.5, ..known(1.0).beat }, ..known(1.0) };
        assert_eq!(order(&[waiting(1), known(1.1)], &Scouts::default(), 0.0)[0].place, 0);
        assert_eq!(first(&[waiting(20), known(2.0)]), 1);
    }

    #[test]
    fn what_hangs_on_after_a_recovery_is_no_load() {
        let loaded = Standing { in_flight: 80, ..known(1.0) };
        let recovered = Standing { beat: Beat { overtaken: 70, ..loaded.beat }, ..loaded };
        assert_eq!(first(&[loaded, recovered]), 1);
    }

    #[test]
    fn a_slow_member_is_scouted_once_in_a_while() {
        let forgotten = Standing { beat: Beat { idle: 2.0, ..known(9.0).beat }, ..known(9.0) };
        let scouts = Scouts::default();
        let sent = (0..1_000).filter(|_| order(&[known(1.0), forgotten], &scouts, 0.5)[0].why == Why::Scout).count();
        assert!((8..=9).contains(&sent), "{sent}");
        let saved = Scouts::default();
        (0..10_000).for_each(|_| saved.earn());
        assert_eq!((0..10).filter(|_| saved.spend()).count(), 4);
    }
}
