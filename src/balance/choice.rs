//! Choice: which member of a pool a request goes to next, by the pool's tree, its circuits and its strategies.

use std::sync::Arc;

use smallvec::SmallVec;

use super::strategy::{Order, Standing, Why, cost, draw, latency, least_busy, round_robin, weighted};
use super::{Moment, Ranked, Scouts};
use crate::chat::FailureClass;
use crate::settings::{Child, Group, Node, Strategy};

/// In a larger group only so many members are compared for one request.
const COMPARED: usize = 16;
/// Multiples of it lie evenly in 0..1, wherever one stops.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// Whether a member may be asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Door {
    /// It may.
    Open,
    /// One request may, and decides whether it is well again.
    Probe,
    /// A circuit refuses it until then.
    Shut {
        /// Until when.
        until: Moment,
        /// Why.
        class: FailureClass,
    },
    /// It may not, for a reason of its own.
    Barred(Bar),
}

/// Why a member is not asked, other than by a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// It was tried for this request.
    Tried,
    /// All its permits are taken.
    Full,
    /// It is starting.
    Starting,
    /// It has crashed too often.
    Failed,
    /// An operator has taken it out.
    Drained,
    /// It does not have the model, or cannot say the request.
    Unfit,
}

impl Bar {
    /// Name for stories.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::Full => "full",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Drained => "drained",
            Self::Unfit => "unfit",
        }
    }
}

/// What a choice asks about the members.
pub trait Members {
    /// Whether this leaf may be asked.
    fn door(&self, leaf: usize) -> Door;
    /// Whether this leaf was tried for this request.
    fn was_tried(&self, leaf: usize) -> bool;
    /// What the strategies may know of it.
    fn standing(&self, leaf: usize) -> Standing;
    /// Present weight of a membership.
    fn weight(&self, child: &Child) -> f64;
    /// A weight that no member of a group exceeds.
    fn heaviest(&self, group: &Group) -> f64 {
        group.children.iter().map(|child| self.weight(child)).fold(0.0, f64::max)
    }
}

/// What a pool's strategies remember on one worker.
#[derive(Debug, Clone)]
pub struct Turns {
    /// By edge.
    gained: Vec<f64>,
    /// By group.
    turn: Vec<usize>,
    /// By group; shared by all workers.
    scouts: Arc<[Scouts]>,
}

impl Turns {
    /// Starts; `unit`, drawn from 0..1, keeps workers from going in step.
    pub fn new(scouts: Arc<[Scouts]>, edges: usize, unit: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number from 0 on")]
        let start = (unit * edges as f64) as usize;
        Self { gained: vec![0.0; edges], turn: vec![start; scouts.len()], scouts }
    }
}

/// A chosen member.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its leaf.
    pub leaf: usize,
    /// Why it.
    pub why: Why,
    /// Score of the chosen and of those it was compared with, best first, by leaf; only of the outermost group.
    pub compared: SmallVec<[(u16, f32); 2]>,
}

/// Chooses among the members that may be asked; `None` when there is none. `draw` yields numbers uniform in 0..1.
///
/// The first try of a request goes to a member whose circuit is half-open, if others could take over after it.
pub fn choose(group: &Group, members: &impl Members, turns: &mut Turns, unit: &mut impl FnMut() -> f64) -> Option<Choice> {
    if !group.fallback && any_leaf(group, &|leaf| members.was_tried(leaf)) {
        return None;
    }
    if group.children.len() > COMPARED {
        return choose_among_many(group, members, turns, unit);
    }
    let mut found: Found = SmallVec::new();
    let mut probe = None;
    for (place, child) in group.children.iter().enumerate() {
        match &child.node {
            Node::Leaf(leaf) => match members.door(*leaf) {
                Door::Open => found.push((place, *leaf)),
                // Without fallback it is one of the others.
                Door::Probe if group.fallback && members.weight(child) > 0.0 && probe.is_none() => probe = Some(*leaf),
                Door::Probe => found.push((place, *leaf)),
                Door::Shut { .. } | Door::Barred(_) => {}
            },
            Node::Group(inner) => found.extend(speaker(inner, members).map(|leaf| (place, leaf))),
        }
    }
    if let Some(leaf) = probe
        && (found.is_empty() || is_first_try(group, members))
    {
        return Some(only(leaf, Why::Probe));
    }
    rank(group, &found, members, turns, unit)
}

fn is_first_try(group: &Group, members: &impl Members) -> bool {
    !any_leaf(group, &|leaf| members.was_tried(leaf))
}

/// Children that may be asked: each with its place in the group and the leaf that stands for it.
type Found = SmallVec<[(usize, usize); 8]>;

/// The leaf that stands for a group while its parent ranks it: the fastest that may be asked.
fn speaker(group: &Group, members: &impl Members) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    visit(group, members, &mut |leaf| {
        if matches!(members.door(leaf), Door::Open | Door::Probe) {
            let expected = members.standing(leaf).beat.expected.unwrap_or(0.0);
            if best.is_none_or(|(fastest, _)| expected < fastest) {
                best = Some((expected, leaf));
            }
        }
    });
    best.map(|(_, leaf)| leaf)
}

/// The chosen child's leaf, or the choice within the chosen child.
fn descend(child: &Child, why: Why, members: &impl Members, turns: &mut Turns, unit: &mut impl FnMut() -> f64) -> Option<Choice> {
    match &child.node {
        Node::Leaf(leaf) => Some(only(*leaf, why)),
        Node::Group(inner) => choose(inner, members, turns, unit),
    }
}

fn only(leaf: usize, why: Why) -> Choice {
    Choice { leaf, why, compared: SmallVec::new() }
}

/// Draws a member of a large group by weight. A member drawn blindly is taken as often as its weight is part of the
/// heaviest: nearly always one of the first is, and the others need not be looked at.
fn draw_one(group: &Group, members: &impl Members, unit: &mut impl FnMut() -> f64) -> usize {
    let heaviest = members.heaviest(group);
    for _ in 0..COMPARED {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place from 0 on")]
        let place = ((unit() * group.children.len() as f64) as usize).min(group.children.len() - 1);
        if unit() * heaviest < members.weight(&group.children[place]) {
            return place;
        }
    }
    draw(group.children.iter().map(|child| members.weight(child)), unit())
}

/// The next member of a large group by weight: they pass in a row, each gains its part of the heaviest weight, and is
/// chosen when its gains make a whole. So shares are smooth, equal members take turns, and as few connections as can be
/// are in use at each. `None` when none of the first few comes up.
fn next_by_weight(group: &Group, members: &impl Members, turns: &mut Turns) -> Option<usize> {
    let heaviest = members.heaviest(group);
    if heaviest <= 0.0 {
        return None;
    }
    let size = group.children.len();
    for _ in 0..COMPARED {
        let place = turns.turn[group.id] % size;
        turns.turn[group.id] = (place + 1) % size;
        let child = &group.children[place];
        let gained = &mut turns.gained[child.edge];
        *gained += members.weight(child) / heaviest;
        // Members of the same small weight do not all come up in the same round.
        let head_start = (child.edge as f64 * GOLDEN).fract();
        if *gained + head_start >= 1.0 {
            *gained -= 1.0;
            return Some(place);
        }
    }
    None
}

/// Of a large group a few members are drawn and compared, so that a choice costs the same whatever the size.
fn choose_among_many(group: &Group, members: &impl Members, turns: &mut Turns, unit: &mut impl FnMut() -> f64) -> Option<Choice> {
    let usable = |child: &Child| match &child.node {
        Node::Leaf(leaf) => matches!(members.door(*leaf), Door::Open | Door::Probe).then_some(*leaf),
        Node::Group(inner) => speaker(inner, members),
    };
    let mut found: Found = SmallVec::new();
    match group.strategy {
        Strategy::Weighted => {
            // Nearly always the one in turn may be asked. What would have been another's is spread over all.
            let in_turn = next_by_weight(group, members, turns);
            let place = in_turn.filter(|place| usable(&group.children[*place]).is_some()).or_else(|| {
                let mut drawn = std::iter::repeat_with(|| draw_one(group, members, unit)).take(COMPARED);
                drawn.find(|place| usable(&group.children[*place]).is_some())
            });
            let place = place.or_else(|| {
                let places: SmallVec<[usize; 8]> =
                    (0..group.children.len()).filter(|place| usable(&group.children[*place]).is_some()).collect();
                let weights = places.iter().map(|place| members.weight(&group.children[*place]));
                places.get(draw(weights, unit())).copied()
            });
            return descend(&group.children[place?], Why::Turn, members, turns, unit);
        }
        Strategy::Latency | Strategy::LeastBusy => {
            for _ in 0..COMPARED {
                let place = draw_one(group, members, unit);
                if !found.iter().any(|(known, _)| *known == place)
                    && let Some(leaf) = usable(&group.children[place])
                {
                    if group.fallback && members.door(leaf) == Door::Probe && is_first_try(group, members) {
                        return Some(only(leaf, Why::Probe));
                    }
                    found.push((place, leaf));
                }
            }
        }
        Strategy::RoundRobin => {
            let size = group.children.len();
            for step in 0..size {
                let place = (turns.turn[group.id] + step) % size;
                let child = &group.children[place];
                if members.weight(child) > 0.0 && usable(child).is_some() {
                    turns.turn[group.id] = (place + 1) % size;
                    return descend(child, Why::Turn, members, turns, unit);
                }
            }
        }
        Strategy::Cost => {}
    }
    if found.is_empty() {
        let all = group.children.iter().enumerate();
        found.extend(all.filter_map(|(place, child)| Some((place, usable(child)?))));
    }
    rank(group, &found, members, turns, unit)
}

fn rank(
    group: &Group,
    found: &Found,
    members: &impl Members,
    turns: &mut Turns,
    unit: &mut impl FnMut() -> f64,
) -> Option<Choice> {
    if let [] | [_] = found.as_slice() {
        return found.first().and_then(|(place, _)| descend(&group.children[*place], Why::Only, members, turns, unit));
    }
    let standings: SmallVec<[Standing; 8]> = found
        .iter()
        .map(|(place, leaf)| Standing { weight: members.weight(&group.children[*place]), ..members.standing(*leaf) })
        .collect();
    let order: Order = match group.strategy {
        Strategy::Latency => latency::order(&standings, &turns.scouts[group.id], unit()),
        Strategy::LeastBusy => least_busy::order(&standings, unit()),
        Strategy::Cost => cost::order(&standings, unit()),
        Strategy::RoundRobin => {
            let places: SmallVec<[usize; 8]> = found.iter().map(|(place, _)| *place).collect();
            round_robin::order(&standings, &places, group.children.len(), &mut turns.turn[group.id])
        }
        Strategy::Weighted => {
            let edges: SmallVec<[usize; 8]> = found.iter().map(|(place, _)| group.children[*place].edge).collect();
            let mut gained: SmallVec<[f64; 8]> = edges.iter().map(|edge| turns.gained[*edge]).collect();
            let order = weighted::order(&standings, &mut gained);
            for (edge, gained) in edges.iter().zip(gained) {
                turns.gained[*edge] = gained;
            }
            order
        }
    };
    let best = order.first()?;
    #[expect(clippy::cast_possible_truncation, reason = "scores are shown, leaves are few")]
    let note = |ranked: &Ranked| (found[ranked.place].1 as u16, ranked.score as f32);
    let choice = descend(&group.children[found[best.place].0], best.why, members, turns, unit)?;
    Some(Choice { compared: order.iter().take(COMPARED).map(note).collect(), ..choice })
}

/// A member whose circuit is open, and what the circuit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shut {
    /// Its leaf.
    pub leaf: usize,
    /// Until when.
    pub until: Moment,
    /// Why.
    pub class: FailureClass,
}

/// With every circuit open: the member whose circuit was opened by a class that is worth a try and ends soonest; without
/// one, the member whose refusal ends soonest.
pub fn last_resort(group: &Group, members: &impl Members) -> Option<Shut> {
    let mut best: Option<Shut> = None;
    visit(group, members, &mut |leaf| {
        if let Door::Shut { until, class } = members.door(leaf)
            && best.is_none_or(|best| (super::is_hard(class), until) < (super::is_hard(best.class), best.until))
        {
            best = Some(Shut { leaf, until, class });
        }
    });
    best
}

/// Whether a leaf that this request may still be given to is of this kind.
pub fn any_reachable(group: &Group, members: &impl Members, is: impl Fn(usize) -> bool) -> bool {
    let mut found = false;
    visit(group, members, &mut |leaf| found |= is(leaf));
    found
}

/// Visits the leaves that this request may still be given to.
fn visit(group: &Group, members: &impl Members, see: &mut dyn FnMut(usize)) {
    if !group.fallback && any_leaf(group, &|leaf| members.was_tried(leaf)) {
        return;
    }
    for child in &group.children {
        match &child.node {
            Node::Leaf(leaf) if !members.was_tried(*leaf) => see(*leaf),
            Node::Leaf(_) => {}
            Node::Group(inner) => visit(inner, members, see),
        }
    }
}

fn any_leaf(group: &Group, is: &impl Fn(usize) -> bool) -> bool {
    group.children.iter().any(|child| match &child.node {
        Node::Leaf(leaf) => is(*leaf),
        Node::Group(inner) => any_leaf(inner, is),
    })
}

#[cfg(test)]
mod tests {
    use super::super::strategy::tests::unknown;
    use super::*;
    use crate::settings;

    /// Members with these doors; equal in all else.
    struct Doors(Vec<Door>);

    impl Members for Doors {
        fn door(&self, leaf: usize) -> Door {
            self.0[leaf]
        }

        fn was_tried(&self, leaf: usize) -> bool {
            self.0[leaf] == Door::Barred(Bar::Tried)
        }

        fn standing(&self, _: usize) -> Standing {
            unknown(1.0)
        }

        fn weight(&self, child: &Child) -> f64 {
            child.weight
        }
    }

    fn pool(strategy: &str, weights: &[f64]) -> std::sync::Arc<settings::Pool> {
        let backends: String = (0..weights.len()).map(|n| format!("  - {{ name: b{n}, type: simulated }}\n")).collect();
        let members: Vec<String> = weights.iter().enumerate().map(|(n, w)| format!("{{ name: b{n}, weight: {w} }}")).collect();
        let text = format!(
            "backends:\n{backends}  - {{ name: p, type: pool, strategy: {strategy}, backends: [ {} ] }}\n",
            members.join(", ")
        );
        settings::from_text("test", &text, &std::collections::BTreeMap::new()).unwrap().pools[0].clone()
    }

    fn shares(pool: &settings::Pool, doors: &Doors) -> Vec<f64> {
        let mut turns = Turns::new(Scouts::of(pool.groups), pool.weights.len(), 0.0);
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = vec![0.0; doors.0.len()];
        for _ in 0..10_000 {
            if let Some(choice) = choose(&pool.tree, doors, &mut turns, &mut || random.f64()) {
                counts[choice.leaf] += 1e-4;
            }
        }
        counts
    }

    #[test]
    fn shares_follow_weights_and_pass_to_the_others_when_a_member_is_out() {
        let pool = pool("weighted", &[70.0, 30.0, 0.0]);
        let near = |got: &[f64], wanted: [f64; 3]| got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.01);
        let out = Door::Barred(Bar::Starting);
        assert!(near(&shares(&pool, &Doors(vec![Door::Open; 3])), [0.7, 0.3, 0.0]));
        assert!(near(&shares(&pool, &Doors(vec![out, Door::Open, Door::Open])), [0.0, 1.0, 0.0]));
        assert!(near(&shares(&pool, &Doors(vec![out, out, Door::Open])), [0.0, 0.0, 1.0]));
        assert!(near(&shares(&pool, &Doors(vec![out, out, out])), [0.0, 0.0, 0.0]));
    }

    #[test]
    fn every_strategy_spreads_equal_members_evenly_in_small_groups_and_large_ones() {
        for strategy in ["latency", "weighted", "round-robin", "least-busy", "cost"] {
            for size in [3_u8, 40] {
                let pool = pool(strategy, &vec![1.0; usize::from(size)]);
                let counts = shares(&pool, &Doors(vec![Door::Open; usize::from(size)]));
                let fair = 1.0 / f64::from(size);
                assert!(counts.iter().all(|share| (share / fair - 1.0).abs() < 0.35), "{strategy} {size}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_large_group_is_shared_by_weight_too() {
        let mut weights = vec![1.0; 40];
        (weights[3], weights[7]) = (20.0, 0.0);
        let counts = shares(&pool("weighted", &weights), &Doors(vec![Door::Open; 40]));
        assert!((counts[3] - 20.0 / 58.0).abs() < 0.02 && counts[7] == 0.0, "{counts:?}");
        assert!((counts[0] - 1.0 / 58.0).abs() < 0.006, "{counts:?}");
    }

    /// Choices in a row from a weighted pool.
    fn row(weights: &[f64], doors: &Doors, length: usize) -> Vec<usize> {
        let pool = pool("weighted", weights);
        let mut turns = Turns::new(Scouts::of(pool.groups), pool.weights.len(), 0.3);
        let mut random = fastrand::Rng::with_seed(11);
        let mut unit = || random.f64();
        (0..length).map(|_| choose(&pool.tree, doors, &mut turns, &mut unit).unwrap().leaf).collect()
    }

    #[test]
    fn equal_members_of_a_large_weighted_group_take_turns() {
        let row = row(&[2.0; 40], &Doors(vec![Door::Open; 40]), 400);
        for forty in row.windows(40) {
            let mut seen = forty.to_vec();
            seen.sort_unstable();
            assert_eq!(seen, (0..40).collect::<Vec<_>>());
        }
    }

    #[test]
    fn light_members_of_a_large_group_come_up_apart() {
        let mut weights = vec![1.0; 40];
        weights[0] = 13.0;
        let row = row(&weights, &Doors(vec![Door::Open; 40]), 5_200);
        // A quarter of the requests is the heavy one's; the longest wait for it says how smoothly.
        let places: Vec<usize> = (0..row.len()).filter(|at| row[*at] == 0).collect();
        let longest = places.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!((places.len() as f64 / 1_300.0 - 1.0).abs() < 0.05 && longest <= Some(8), "{} {longest:?}", places.len());
    }

    #[test]
    fn the_share_of_an_absent_member_of_a_large_group_goes_to_all_others() {
        let mut doors = vec![Door::Open; 40];
        doors[10..30].fill(Door::Barred(Bar::Starting));
        let counts = shares(&pool("weighted", &[1.0; 40]), &Doors(doors.clone()));
        for (leaf, share) in counts.iter().enumerate() {
            let fair = if doors[leaf] == Door::Open { 1.0 / 20.0 } else { 0.0 };
            assert!((share - fair).abs() < 0.01, "{leaf}: {counts:?}");
        }
        // Nothing but a light member is left.
        let mut weights = vec![1_000.0; 40];
        weights[39] = 1.0;
        let mut doors = vec![Door::Barred(Bar::Tried); 40];
        doors[39] = Door::Open;
        assert_eq!(row(&weights, &Doors(doors), 3), [39; 3]);
    }

    #[test]
    fn a_first_try_probes_a_half_open_member_and_a_second_one_prefers_a_closed_one() {
        let pool = pool("weighted", &[1.0, 1.0, 1.0]);
        let mut turns = Turns::new(Scouts::of(pool.groups), pool.weights.len(), 0.0);
        let mut chosen = |doors: Vec<Door>| choose(&pool.tree, &Doors(doors), &mut turns, &mut || 0.5).map(|c| (c.leaf, c.why));
        assert_eq!(chosen(vec![Door::Open, Door::Probe, Door::Open]), Some((1, Why::Probe)));
        let tried = Door::Barred(Bar::Tried);
        assert!(matches!(chosen(vec![tried, Door::Probe, Door::Open]), Some((2, _))));
        assert_eq!(chosen(vec![tried, Door::Probe, tried]), Some((1, Why::Probe)));
    }

    #[test]
    fn the_last_resort_is_the_least_bad_soft_circuit_and_else_the_soonest_hard_one() {
        let pool = pool("weighted", &[1.0, 1.0, 1.0]);
        let shut = |millis, class| Door::Shut { until: Moment::after(std::time::Duration::from_millis(millis)), class };
        let doors = [shut(9, FailureClass::Server), shut(5, FailureClass::Overloaded), shut(1, FailureClass::Billing)];
        let leaf = |doors: &[Door]| last_resort(&pool.tree, &Doors(doors.to_vec())).map(|shut| shut.leaf);
        assert_eq!(leaf(&doors), Some(1));
        let doors = [shut(9, FailureClass::Credential), shut(5, FailureClass::RateLimited), Door::Barred(Bar::Tried)];
        assert_eq!(leaf(&doors), Some(1));
        assert_eq!(leaf(&[Door::Barred(Bar::Tried); 3]), None);
    }

    #[test]
    fn a_nested_pool_shares_its_weight_and_keeps_its_own_fallback_rule() {
        let text = "backends:\n  - { name: a, type: simulated }\n  - { name: b, type: simulated }\n  - { name: c, type: simulated }\n  \
            - { name: p, type: pool, strategy: weighted, backends: [ { name: a }, { name: q } ] }\n  \
            - { name: q, type: pool, strategy: weighted, fallback: false, backends: [ { name: b }, { name: c } ] }\n";
        let settings = settings::from_text("test", text, &std::collections::BTreeMap::new()).unwrap();
        let pool = &settings.pools[0];
        let all = shares(pool, &Doors(vec![Door::Open; 3]));
        assert!((all[0] - 0.5).abs() < 0.01 && (all[1] - 0.25).abs() < 0.01 && (all[2] - 0.25).abs() < 0.01, "{all:?}");
        // One of the inner pool was tried: it has no fallback, so only the outer member remains.
        let after = shares(pool, &Doors(vec![Door::Open, Door::Barred(Bar::Tried), Door::Open]));
        assert!((after[0] - 1.0).abs() < 0.01, "{after:?}");
    }
}
