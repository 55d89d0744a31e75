//! Pools as planned: members by place, the tree of pools within pools, and what speaks against it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::document::Entry;
use super::plan::{DEFAULT_DEADLINE, DEFAULT_MAX_ATTEMPTS, NO_TIME, unknown_name};
use super::walk::Findings;
use super::{Backend, BackendType, Child, Group, Node, Pool, Strategy};

pub(super) fn pools(
    entries: &[Entry],
    backends: &[Arc<Backend>],
    declared: &HashSet<&str>,
    findings: &mut Findings,
) -> Vec<Arc<Pool>> {
    let by_name: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let mut pools = Vec::new();
    for entry in entries {
        let mut members = Vec::new();
        let mut trail = vec![entry.name.as_str()];
        let names = Names { by_name: &by_name, backends, declared };
        let mut size = Size::default();
        let tree = group(entry, &names, &mut members, &mut size, &mut trail, findings);
        if members.is_empty() {
            // Members that are lost or unknown have been told.
            let lost =
                entry.backends.iter().any(|member| declared.contains(&*member.name) || !by_name.contains_key(&*member.name));
            if !lost {
                findings.problem(&format!("backends[{}].backends", entry.name), "the pool has no member");
                continue;
            }
            findings.notes.push(format!("pool `{}` is left out: every member of it is", entry.name));
            continue;
        }
        check_extras(entry, findings);
        note_mixture(entry, &members, backends, findings);
        pools.push(Arc::new(Pool {
            index: pools.len(),
            name: entry.name.as_str().into(),
            tree,
            members,
            groups: size.groups,
            weights: size.weights,
            deadline: entry.deadline.unwrap_or(DEFAULT_DEADLINE),
            max_attempts: entry.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS),
            parking: entry.parking.clone(),
            hedge: entry.hedge.clone(),
            affinity: entry.affinity.clone(),
            standby: entry.standby.as_ref().map(|standby| standby.interval),
            implicit: false,
        }));
    }
    for backend in backends {
        pools.push(Arc::new(Pool {
            index: pools.len(),
            name: Arc::clone(&backend.name),
            tree: Group {
                pool: Arc::clone(&backend.name),
                id: 0,
                strategy: Strategy::Weighted,
                fallback: false,
                children: vec![Child { edge: 0, weight: 1.0, node: Node::Leaf(0) }],
            },
            members: vec![backend.index],
            groups: 1,
            weights: vec![1.0],
            deadline: DEFAULT_DEADLINE,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            parking: super::Parking::default(),
            hedge: None,
            affinity: None,
            standby: None,
            implicit: true,
        }));
    }
    pools
}

fn check_extras(entry: &Entry, findings: &mut Findings) {
    let path = format!("backends[{}]", entry.name);
    if let Some(affinity) = &entry.affinity {
        if actix_http::header::HeaderName::try_from(affinity.header.as_str()).is_err() {
            findings.problem(&format!("{path}.affinity.header"), "this is not a valid header name");
        }
        // Longer ones could not be told from those that have expired.
        if affinity.expiry > Duration::from_secs(30 * 86_400) {
            findings.problem(&format!("{path}.affinity.expiry"), "at most 30d");
        }
    }
    if entry.deadline.is_some_and(|deadline| deadline.is_zero()) {
        findings.problem(&format!("{path}.deadline"), NO_TIME);
    }
    if entry.hedge.is_some() && entry.fallback == Some(false) {
        findings.notes.push(format!("pool `{}`: without fallback no second member is asked, so nothing is hedged", entry.name));
    }
    if entry.standby.as_ref().is_some_and(|standby| standby.interval < Duration::from_secs(1)) {
        findings.problem(&format!("{path}.standby.interval"), "at least 1s");
    }
}

fn note_mixture(entry: &Entry, members: &[usize], backends: &[Arc<Backend>], findings: &mut Findings) {
    let simulated = members.iter().filter(|member| backends[**member].kind == BackendType::Simulated).count();
    if simulated > 0 && simulated < members.len() {
        findings.notes.push(format!("pool `{}` mixes simulated and real members: some answers will be invented", entry.name));
    }
}

/// What a pool does with its requests it does where it is asked itself.
fn note_own(inner: &Entry, outer: &Entry, findings: &mut Findings) {
    let own = [
        ("affinity", inner.affinity.is_some()),
        ("hedge", inner.hedge.is_some()),
        ("deadline", inner.deadline.is_some()),
        ("maxAttempts", inner.max_attempts.is_some()),
    ];
    let named: Vec<&str> = own.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
    let note = format!(
        "pool `{}`: its {} count for requests to itself, not for those it gets as a member of `{}`, which has its own",
        inner.name,
        named.join(", "),
        outer.name
    );
    if !named.is_empty() && !findings.notes.contains(&note) {
        findings.notes.push(note);
    }
}

/// What a member's name can mean.
struct Names<'n, 'e> {
    by_name: &'n HashMap<&'e str, &'e Entry>,
    backends: &'n [Arc<Backend>],
    declared: &'n HashSet<&'n str>,
}

/// Numbers given out while a tree is built.
#[derive(Default)]
struct Size {
    groups: usize,
    weights: Vec<f64>,
}

impl Size {
    fn child(&mut self, weight: f64, node: Node) -> Child {
        self.weights.push(weight);
        Child { edge: self.weights.len() - 1, weight, node }
    }
}

fn group<'e>(
    entry: &'e Entry,
    names: &Names<'_, 'e>,
    members: &mut Vec<usize>,
    size: &mut Size,
    trail: &mut Vec<&'e str>,
    findings: &mut Findings,
) -> Group {
    let path = format!("backends[{}].backends", entry.name);
    let id = size.groups;
    size.groups += 1;
    let mut children = Vec::new();
    let mut seen = HashSet::new();
    for member in &entry.backends {
        let name = member.name.as_str();
        let place = format!("{path}[{name}]");
        if !seen.insert(name) {
            findings.problem(&place, "this member is listed twice; add up the weights instead");
            continue;
        }
        let weight = member.weight.unwrap_or(1.0);
        if let Some(backend) = names.backends.iter().find(|backend| &*backend.name == name) {
            let leaf = members.iter().position(|index| *index == backend.index).unwrap_or_else(|| {
                members.push(backend.index);
                members.len() - 1
            });
            children.push(size.child(weight, Node::Leaf(leaf)));
        } else if trail.contains(&name) {
            findings.problem(&place, format!("the pool contains itself: {} -> {name}", trail.join(" -> ")));
        } else if let Some(inner) = names.by_name.get(name) {
            note_own(inner, entry, findings);
            trail.push(name);
            let inner = group(inner, names, members, size, trail, findings);
            children.push(size.child(weight, Node::Group(inner)));
            trail.pop();
        } else if !names.declared.contains(name) {
            let mut known: Vec<&str> = names.backends.iter().map(|b| &*b.name).chain(names.by_name.keys().copied()).collect();
            known.sort_unstable();
            findings.problem(&place, unknown_name(name, &known));
        }
    }
    Group {
        pool: entry.name.as_str().into(),
        id,
        strategy: entry.strategy.as_deref().and_then(Strategy::from_word).unwrap_or(Strategy::Latency),
        fallback: entry.fallback.unwrap_or(true),
        children,
    }
}
