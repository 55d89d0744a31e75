//! Report: the state that operators see, made of what the workers have counted and of what they share.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::books::Books;
use super::history::Past;
use super::state::{
    Backend, Circuit, Condition, Configuration, Conversations, HeadroomState, Hedges, InFlight, Member, Model, Outcomes,
    PermitState, Pool, Quantiles, Recent, Route, Share, State, Totals, WorkerPool, WorkerProvider,
};
use super::verdict::Finding;
use crate::actors::slots::Shared;
use crate::actors::{PoolState, ProviderState, ShardState};
use crate::attempt::FlightView;
use crate::balance::{self, CircuitState, Histogram, MemberStats, ModelSlot, Moment};
use crate::chat::FailureClass;
use crate::dialect::Dialect;
use crate::settings::{self, Child, Group, Node, Settings, Strategy};

/// What counts as recent.
pub(super) const RECENT: Duration = Duration::from_secs(300);
/// What shares of the traffic are told of.
pub(super) const LATELY: Duration = Duration::from_secs(60);
/// What a report is made of.
pub(super) struct Sources<'a> {
    pub(super) shared: &'a Shared,
    /// What each worker has said last.
    pub(super) shards: &'a [&'a ShardState],
    pub(super) books: &'a Books,
    pub(super) past: &'a Past,
    pub(super) now: Moment,
    /// Unix time at which the process started.
    pub(super) started_at: f64,
}

impl Sources<'_> {
    /// The whole state; `since` says how long each backend has been in its condition, as found.
    pub(super) fn state(&self, findings: Vec<Finding>, since: &[Moment], late_workers: Vec<usize>) -> State {
        let shared = self.shared;
        let settings = &shared.settings;
        let verdict = self.verdict(&findings);
        let uptime = self.now.since(Moment::after(Duration::ZERO)).as_secs_f64();
        let shares = self.shares();
        let backends = findings.into_iter().enumerate().zip(shares).map(|((index, finding), shares)| {
            let since = self.now.since(since[index]).as_secs_f64();
            self.backend(index, finding, since, shares)
        });
        State {
            at: crate::unix_time::unix_time().as_secs_f64(),
            verdict,
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            configuration: Configuration { source: settings.source.clone(), sha256: settings.fingerprint.clone() },
            started_at: self.started_at,
            uptime_seconds: uptime,
            draining: shared.draining.load(Ordering::Relaxed),
            open_requests: shared.open_requests.load(Ordering::Relaxed),
            connections: shared.connections.load(Ordering::Relaxed),
            body_bytes: shared.body_bytes.load(Ordering::Relaxed),
            body_limit_bytes: settings.server.max_body_in_flight,
            memory_bytes: super::memory_bytes(),
            workers: self.shards.iter().map(|shard| shard.worker).collect(),
            late_workers,
            backends: backends.collect(),
            pools: settings.pools.iter().map(|plan| self.pool(plan)).collect(),
            routes: self.routes(),
            events: Vec::new(),
        }
    }

    /// Requests in flight, longest first, at most so many.
    pub(super) fn in_flight(&self, limit: usize) -> Vec<InFlight> {
        let settings = &self.shared.settings;
        let of = |worker: usize, backend: Option<usize>, view: &FlightView| InFlight {
            worker,
            pool: settings.pools.get(usize::from(view.pool)).map(|pool| pool.name.to_string()),
            backend: backend.map(|index| settings.backends[index].name.to_string()),
            flight: view.clone(),
        };
        let mut flights = Vec::new();
        for shard in self.shards {
            for (index, provider) in shard.providers.iter().enumerate() {
                flights.extend(provider.flights.iter().map(|view| of(shard.worker, Some(index), view)));
            }
            for pool in &shard.pools {
                flights.extend(pool.waiting.iter().map(|view| of(shard.worker, None, view)));
            }
        }
        flights.sort_by(|a, b| b.flight.age_seconds.total_cmp(&a.flight.age_seconds));
        flights.truncate(limit);
        flights
    }

    pub(super) fn providers(&self, index: usize) -> impl Iterator<Item = (usize, &ProviderState)> {
        self.shards.iter().map(move |shard| (shard.worker, &shard.providers[index]))
    }

    fn backend(&self, index: usize, finding: Finding, since: f64, shares: Vec<Share>) -> Backend {
        let backend = &self.shared.settings.backends[index];
        let shared = &self.shared.backends[index];
        let now = self.now;
        let ago = |at: Option<Moment>| at.map(|at| now.since(at).as_secs_f64());
        let sum = |count: fn(&ProviderState) -> u64| self.providers(index).map(|(_, state)| count(state)).sum::<u64>();
        let circuit = circuit(&shared.health.circuit, now);
        let drained = shared.drained.load(Ordering::Relaxed);
        let exact = if drained {
            ago(Moment::from_raw(shared.drained_at.load(Ordering::Relaxed)))
        } else {
            let is_shut = matches!(finding.condition, Condition::Open | Condition::HalfOpen);
            let opened = shared.health.slots().filter_map(|slot| slot.circuit.opened_at()).min();
            circuit.since_seconds.or_else(|| ago(opened)).filter(|_| is_shut)
        };
        Backend {
            name: backend.name.to_string(),
            kind: backend.kind.word(),
            dialect: Dialect::of(backend).word(),
            host: backend.host(),
            key: backend.credential.as_ref().and_then(settings::Secret::tail),
            condition: finding.condition,
            reason: finding.reason,
            since_seconds: exact.unwrap_or(since),
            until_seconds: finding.until,
            drained,
            circuit,
            circuit_openings: shared.health.openings(),
            models: shared.health.slots().filter_map(|slot| model(slot, now)).collect(),
            last_served_seconds_ago: ago(shared.health.last().0),
            last_failed_seconds_ago: ago(shared.health.last().1),
            generation: self.providers(index).map(|(_, state)| state.generation).max(),
            in_flight: sum(|state| state.in_flight as u64),
            draining: sum(|state| state.draining as u64),
            queued: sum(|state| state.queued as u64),
            permits: PermitState { limit: shared.permits.limit(), used: shared.permits.used() },
            connections: shared.connections.load(Ordering::Relaxed),
            headroom: shared.headroom.said().map(|said| HeadroomState {
                requests_left: said.requests.0,
                requests_limit: said.requests.1,
                tokens_left: said.tokens.0,
                tokens_limit: said.tokens.1,
                seconds_ago: now.since(said.at).as_secs_f64(),
            }),
            restarts: u64::from(shared.generation.load(Ordering::Relaxed)).saturating_sub(1),
            crashes: sum(|state| state.crashes),
            last_reason: self.last_reason(index),
            shares,
            recent: self.told_recent(index),
            totals: totals(&self.books.backends[index]),
            providers: self.providers(index).map(|(worker, state)| worker_provider(worker, state)).collect(),
        }
    }

    fn told_recent(&self, index: usize) -> Recent {
        let (stats, span) = self.recent(index);
        let seconds = span.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds.max(1.0);
        Recent {
            window_seconds: seconds,
            attempts: stats.attempts,
            tries: stats.attempts + stats.retried,
            served: stats.served,
            failures: failures(&stats),
            first_content_seconds: quantiles(&stats.first_content),
            attempts_per_second: rate(stats.attempts),
            tokens_per_second: rate(stats.completion_tokens),
        }
    }

    /// By backend: its part in every configured pool that has it.
    fn shares(&self) -> Vec<Vec<Share>> {
        let mut shares: Vec<Vec<Share>> = self.shared.settings.backends.iter().map(|_| Vec::new()).collect();
        let before = self.past.before(LATELY, self.now).map(|(books, _)| books);
        for plan in self.shared.settings.pools.iter().filter(|plan| !plan.implicit) {
            let counts = &self.books.members[plan.index];
            let lately = |leaf: usize| counts[leaf].saturating_sub(before.map_or(0, |books| books.members[plan.index][leaf]));
            let all: u64 = (0..counts.len()).map(lately).sum();
            let mut expected = vec![0.0; counts.len()];
            self.expect(plan, &plan.tree, 1.0, &mut expected);
            // A backend may be in a pool more than once.
            let mut by_backend: BTreeMap<usize, (u64, f64, f64)> = BTreeMap::new();
            for (leaf, backend) in plan.members.iter().enumerate() {
                let weight = plan.child_of(leaf).map_or(0.0, |child| self.weight(plan, child));
                let sums = by_backend.entry(*backend).or_default();
                *sums = (sums.0 + lately(leaf), sums.1 + expected[leaf], sums.2 + weight);
            }
            for (backend, (attempts, expected, weight)) in by_backend {
                let now = (all > 0).then(|| attempts as f64 / all as f64);
                shares[backend].push(Share { pool: plan.name.to_string(), now, expected, weight });
            }
        }
        shares
    }

    fn weight(&self, plan: &settings::Pool, child: &Child) -> f64 {
        self.shared.pools[plan.index].weight(child.edge)
    }

    /// Splits a share among a group's members as its strategy would with equal members.
    fn expect(&self, plan: &settings::Pool, group: &Group, share: f64, expected: &mut [f64]) {
        let weight = |child: &Child| match group.strategy {
            Strategy::Weighted | Strategy::Latency => self.weight(plan, child),
            Strategy::RoundRobin | Strategy::LeastBusy | Strategy::Cost => 1.0,
        };
        let all: f64 = group.children.iter().map(weight).sum();
        for child in &group.children {
            let part = if all > 0.0 { share * weight(child) / all } else { share / group.children.len() as f64 };
            match &child.node {
                Node::Leaf(leaf) => expected[*leaf] += part,
                Node::Group(inner) => self.expect(plan, inner, part, expected),
            }
        }
    }

    fn pool(&self, plan: &settings::Pool) -> Pool {
        let settings: &Settings = &self.shared.settings;
        let states: Vec<&PoolState> = self.shards.iter().map(|shard| &shard.pools[plan.index]).collect();
        let sum = |count: fn(&PoolState) -> u64| states.iter().map(|state| count(state)).sum::<u64>();
        let mut outcomes = [0; 5];
        for state in &states {
            for (sum, count) in outcomes.iter_mut().zip(state.outcomes) {
                *sum += count;
            }
        }
        let members = plan.members.iter().enumerate().map(|(place, backend)| {
            let mut merged = MemberStats::default();
            for state in &states {
                merged.merge(&state.members[place]);
            }
            let weight = plan.child_of(place).map(|child| self.weight(plan, child));
            member(&settings.backends[*backend].name, weight, &merged)
        });
        Pool {
            name: plan.name.to_string(),
            implicit: plan.implicit,
            strategy: plan.tree.strategy.word(),
            fallback: plan.tree.fallback,
            requests: sum(|state| state.requests),
            absorbed: sum(|state| state.absorbed),
            refused: sum(|state| state.refused),
            outcomes: outcomes.into(),
            parked: sum(|state| state.parked as u64),
            restarts: sum(|state| u64::from(state.restarts)),
            members: members.collect(),
            workers: self
                .shards
                .iter()
                .zip(&states)
                .map(|(shard, state)| WorkerPool {
                    worker: shard.worker,
                    requests: state.requests,
                    parked: state.parked,
                    restarts: state.restarts,
                })
                .collect(),
            hedges: plan
                .hedge
                .is_some()
                .then(|| Hedges { started: sum(|state| state.hedges.0), won: sum(|state| state.hedges.1) }),
            conversations: plan.affinity.is_some().then(|| Conversations {
                kept: sum(|state| state.conversations[0]),
                moved: sum(|state| state.conversations[1]),
                new: sum(|state| state.conversations[2]),
            }),
        }
    }

    fn routes(&self) -> Vec<Route> {
        let names = self.shared.settings.routes.iter().flatten().map(|route| Some(route.name.to_string()));
        std::iter::once(None)
            .chain(names)
            .zip(&self.books.routes)
            .map(|(name, stats)| Route {
                name,
                requests: stats.requests,
                outcomes: Outcomes::from(stats.outcomes),
                client_errors: stats.client_errors,
                given_up: stats.given_up,
                failures: stats.classes.iter().copied().collect(),
                first_content_seconds: quantiles(&stats.first_content),
                duration_seconds: quantiles(&stats.duration),
            })
            .collect()
    }
}

pub(super) fn circuit(circuit: &balance::Circuit, now: Moment) -> Circuit {
    let state = circuit.state(now);
    let (class, until) = match state {
        CircuitState::Closed => (None, None),
        CircuitState::Open { until, class } => (Some(class), Some(until.since(now).as_secs_f64())),
        CircuitState::HalfOpen { class, .. } => (Some(class), None),
    };
    Circuit {
        state: state.word(),
        class: class.map(FailureClass::word),
        until_seconds: until,
        since_seconds: circuit.opened_at().map(|at| now.since(at).as_secs_f64()),
        failures_in_a_row: circuit.streak(),
    }
}

/// Whether a model has been asked for, or its circuit is not closed.
pub(super) fn is_known(slot: &ModelSlot, now: Moment) -> bool {
    slot.pulse.averages() != (None, None) || slot.circuit.state(now) != CircuitState::Closed
}

/// When a model is asked again.
pub(super) fn next_ask(slot: &ModelSlot, now: Moment) -> Moment {
    match slot.circuit.state(now) {
        CircuitState::Open { until, .. } => until,
        CircuitState::Closed | CircuitState::HalfOpen { .. } => now,
    }
}

fn model(slot: &ModelSlot, now: Moment) -> Option<Model> {
    if !is_known(slot, now) {
        return None;
    }
    let (first, token) = slot.pulse.averages();
    Some(Model {
        model: slot.model.to_string(),
        circuit: circuit(&slot.circuit, now),
        first_content_seconds: first,
        seconds_per_token: token,
    })
}

fn worker_provider(worker: usize, state: &ProviderState) -> WorkerProvider {
    WorkerProvider { worker, provider: state.without_flights() }
}

fn member(backend: &str, weight: Option<f64>, stats: &MemberStats) -> Member {
    Member {
        backend: backend.to_owned(),
        weight,
        totals: totals(stats),
        latency_seconds: stats.latency.map(|latency| latency.as_secs_f64()),
        first_content_seconds: quantiles(&stats.first_content),
        duration_seconds: quantiles(&stats.duration),
        cache_hit_ratio: (stats.prompt_tokens > 0).then(|| stats.cached_tokens as f64 / stats.prompt_tokens as f64),
    }
}

fn totals(stats: &MemberStats) -> Totals {
    Totals {
        attempts: stats.attempts,
        served: stats.served,
        failed: stats.failed(),
        cancelled: stats.cancelled,
        truncated: stats.truncated,
        cut: stats.cut,
        retried: stats.retried,
        moved: stats.moved,
        bounced: stats.bounced,
        failures: failures(stats),
        prompt_tokens: stats.prompt_tokens,
        completion_tokens: stats.completion_tokens,
        cached_tokens: stats.cached_tokens,
    }
}

fn failures(stats: &MemberStats) -> BTreeMap<&'static str, u64> {
    let classes = FailureClass::ALL.iter().zip(stats.failures).filter(|(_, count)| *count > 0);
    classes.map(|(class, count)| (class.word(), count)).collect()
}

fn quantiles(histogram: &Histogram) -> Quantiles {
    let quantile = |share| histogram.quantile(share).map(|time| time.as_secs_f64());
    Quantiles { p50: quantile(0.5), p99: quantile(0.99) }
}
