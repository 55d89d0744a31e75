//! Which member of a pool comes next: weighted choice over the pool's tree.
//!
//! A member is drawn by weight and kept if it is eligible; only when the draw misses are the eligible ones gathered. So
//! the usual choice costs the same with one member and with hundreds.

use crate::settings::{Group, Node};

/// Picks a leaf among the eligible ones, `unit` being drawn uniformly from 0..1; `None` when there is none.
///
/// `tried` says which leaves were tried before: a group without fallback is closed once one of its leaves was.
pub fn pick(group: &Group, eligible: &impl Fn(usize) -> bool, tried: &impl Fn(usize) -> bool, unit: f64) -> Option<usize> {
    if !group.fallback && any_leaf(group, tried) {
        return None;
    }
    draw(group, unit, |_| true).and_then(|(node, unit)| descend(node, eligible, tried, unit)).or_else(|| {
        let usable = |node: &Node| descend(node, eligible, tried, 0.5).is_some();
        draw(group, unit, usable).and_then(|(node, unit)| descend(node, eligible, tried, unit))
    })
}

fn descend(node: &Node, eligible: &impl Fn(usize) -> bool, tried: &impl Fn(usize) -> bool, unit: f64) -> Option<usize> {
    match node {
        Node::Leaf(leaf) => (eligible(*leaf) && !tried(*leaf)).then_some(*leaf),
        Node::Group(inner) => pick(inner, eligible, tried, unit),
    }
}

/// Draws a child by weight among those admitted; also returns what remains of the randomness, spread over 0..1 again.
fn draw(group: &Group, unit: f64, admitted: impl Fn(&Node) -> bool) -> Option<(&Node, f64)> {
    if let [(_, only)] = group.children.as_slice() {
        return admitted(only).then_some((only, unit));
    }
    let open = || group.children.iter().filter(|(_, node)| admitted(node));
    let total: f64 = open().map(|(weight, _)| weight).sum();
    // Weights of zero mean "only when nothing else is left": then all count the same.
    let share = |weight: f64| {
        if total > 0.0 { weight / total } else { 1.0 / open().count().max(1) as f64 }
    };
    let mut rest = unit;
    let mut last = None;
    for (weight, node) in open() {
        let share = share(*weight);
        if share > 0.0 {
            if rest < share {
                return Some((node, rest / share));
            }
            last = Some((node, 0.5));
        }
        rest -= share;
    }
    // Rounding may leave a trace of the unit behind the last child.
    last
}

fn any_leaf(group: &Group, is: &impl Fn(usize) -> bool) -> bool {
    group.children.iter().any(|(_, node)| match node {
        Node::Leaf(leaf) => is(*leaf),
        Node::Group(inner) => any_leaf(inner, is),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Strategy;

    fn group(fallback: bool, children: Vec<(f64, Node)>) -> Group {
        Group { strategy: Strategy::Weighted, fallback, children }
    }

    fn shares(group: &Group, eligible: &impl Fn(usize) -> bool) -> Vec<f64> {
        let mut counts = vec![0.0; 4];
        for step in 0..10_000 {
            if let Some(leaf) = pick(group, eligible, &|_| false, (f64::from(step) + 0.5) / 10_000.0) {
                counts[leaf] += 1e-4;
            }
        }
        counts
    }

    #[test]
    fn shares_follow_weights_and_pass_to_the_others_when_a_member_is_out() {
        let tree = group(true, vec![(70.0, Node::Leaf(0)), (30.0, Node::Leaf(1)), (0.0, Node::Leaf(2))]);
        let all = shares(&tree, &|_| true);
        assert!((all[0] - 0.7).abs() < 0.01 && (all[1] - 0.3).abs() < 0.01 && all[2] == 0.0);
        assert!((shares(&tree, &|leaf| leaf != 0)[1] - 1.0).abs() < 0.01);
        assert!((shares(&tree, &|leaf| leaf == 2)[2] - 1.0).abs() < 0.01);
        assert_eq!(pick(&tree, &|_| false, &|_| false, 0.3), None);
    }

    #[test]
    fn a_nested_pool_shares_its_weight_and_keeps_its_own_fallback_rule() {
        let inner = group(false, vec![(1.0, Node::Leaf(1)), (1.0, Node::Leaf(2))]);
        let tree = group(true, vec![(1.0, Node::Leaf(0)), (1.0, Node::Group(inner))]);
        let all = shares(&tree, &|_| true);
        assert!((all[0] - 0.5).abs() < 0.01 && (all[1] - 0.25).abs() < 0.01 && (all[2] - 0.25).abs() < 0.01);
        // Leaf 1 was tried: its group has no fallback, so leaf 2 is closed and leaf 0 remains.
        assert_eq!(pick(&tree, &|_| true, &|leaf| leaf == 1, 0.9), Some(0));
    }
}
