//! The operator's API: access, and the live tree with everything it counts.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};

use super::{Gateway, auth, reply};
use crate::actors::slots::{OUTCOMES, SharedBackend};
use crate::actors::{AskState, ShardState};
use crate::balance::{Circuit, CircuitState, MemberStats, ModelSlot, Moment};
use crate::chat::FailureClass;
use crate::dialect::Dialect;
use crate::error::GatewayError;
use crate::settings::Pool;

pub(super) fn enter(request: &HttpRequest, is_act: bool) -> Result<Rc<Gateway>, HttpResponse> {
    let gateway = request.app_data::<Rc<Gateway>>().map(Rc::clone).ok_or_else(|| reply::error(&GatewayError::Internal))?;
    auth::operator(request, &gateway.shared.settings, is_act).map_err(|error| reply::error(&error))?;
    Ok(gateway)
}

pub(super) async fn shards(gateway: &Gateway) -> Vec<Result<ShardState, usize>> {
    gateway.director.send(AskState).await.unwrap_or_default()
}

/// `GET /admin/api/state`.
pub(super) async fn state(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, false) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let answers = shards(&gateway).await;
    let late: Vec<usize> = answers.iter().filter_map(|answer| answer.as_ref().err().copied()).collect();
    let shards: Vec<ShardState> = answers.into_iter().flatten().collect();
    let shared = &gateway.shared;
    HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": gateway.started.elapsed().as_secs_f64(),
        "draining": shared.draining.load(Ordering::Relaxed),
        "open_requests": shared.open_requests.load(Ordering::Relaxed),
        "body_bytes": shared.body_bytes.load(Ordering::Relaxed),
        "workers": shards.iter().map(|shard| shard.worker).collect::<Vec<_>>(),
        "late_workers": late,
        "backends": backends(&gateway, &shards),
        "pools": pools(&gateway, &shards),
        "events": shared.journal.after(0),
    }))
}

fn backends(gateway: &Gateway, shards: &[ShardState]) -> Vec<Value> {
    let shared = &gateway.shared;
    let describe = |(index, backend): (usize, &std::sync::Arc<crate::settings::Backend>)| {
        let workers: Vec<_> = shards.iter().map(|shard| (shard.worker, &shard.providers[index])).collect();
        let sum =
            |count: &dyn Fn(&crate::actors::ProviderState) -> u64| workers.iter().map(|(_, state)| count(state)).sum::<u64>();
        let permits = &shared.backends[index].permits;
        let health = &shared.backends[index].health;
        let now = shared.clock.now();
        let ago = |at: Option<Moment>| at.map(|at| now.since(at).as_secs_f64());
        json!({
            "name": &*backend.name,
            "condition": condition(&shared.backends[index], &workers, now),
            "drained": shared.backends[index].drained.load(Ordering::Relaxed),
            "circuit": circuit(&health.circuit, now),
            "models": health.slots().iter().filter_map(|slot| model(slot, now)).collect::<Vec<_>>(),
            "last_served_seconds_ago": ago(health.last().0),
            "last_failed_seconds_ago": ago(health.last().1),
            "type": backend.kind.word(),
            "dialect": Dialect::of(backend).word(),
            "generation": workers.iter().map(|(_, state)| state.generation).max(),
            "in_flight": sum(&|state| state.in_flight as u64),
            "draining": sum(&|state| state.draining as u64),
            "queued": sum(&|state| state.queued as u64),
            "permits": { "limit": permits.limit(), "used": permits.used() },
            "restarts": sum(&|state| state.restarts),
            "crashes": sum(&|state| state.crashes),
            "last_reason": workers.iter().find_map(|(_, state)| state.last_reason.clone()),
            "providers": workers.iter().map(|(worker, state)| with_worker(*worker, state)).collect::<Vec<_>>(),
        })
    };
    shared.settings.backends.iter().enumerate().map(describe).collect()
}

/// How a backend is, in one word; what is not known is not called well.
fn condition(shared: &SharedBackend, workers: &[(usize, &crate::actors::ProviderState)], now: Moment) -> &'static str {
    const RECENT: Duration = Duration::from_secs(300);
    let all = |word: &str| !workers.is_empty() && workers.iter().all(|(_, provider)| provider.state == word);
    let health = &shared.health;
    let some_open = health.slots().iter().any(|slot| slot.circuit.state(now) != CircuitState::Closed);
    let recently = |at: Option<Moment>| at.is_some_and(|at| now.since(at) < RECENT);
    match health.circuit.state(now) {
        _ if shared.drained.load(Ordering::Relaxed) => "drained",
        _ if all("failed") => "failed",
        _ if all("backing-off") => "starting",
        CircuitState::Open { .. } => "open",
        CircuitState::HalfOpen { .. } => "half-open",
        CircuitState::Closed if some_open => "ailing",
        CircuitState::Closed if recently(health.last().0) => "well",
        CircuitState::Closed if recently(health.last().1) => "ailing",
        CircuitState::Closed => "unknown",
    }
}

fn circuit(circuit: &Circuit, now: Moment) -> Value {
    let state = circuit.state(now);
    let (class, until) = match state {
        CircuitState::Closed => (None, None),
        CircuitState::Open { until, class } => (Some(class), Some(until.since(now).as_secs_f64())),
        CircuitState::HalfOpen { class, .. } => (Some(class), None),
    };
    json!({
        "state": state.word(),
        "class": class.map(FailureClass::word),
        "until_seconds": until,
        "since_seconds": circuit.opened_at().map(|at| now.since(at).as_secs_f64()),
        "failures_in_a_row": circuit.streak(),
    })
}

/// A model that has been asked for, or whose circuit is not closed.
fn model(slot: &ModelSlot, now: Moment) -> Option<Value> {
    let (first, token) = slot.pulse.averages();
    let is_closed = slot.circuit.state(now) == CircuitState::Closed;
    if first.is_none() && token.is_none() && is_closed {
        return None;
    }
    let mut described = circuit(&slot.circuit, now);
    described["model"] = json!(&*slot.model);
    described["first_content_seconds"] = json!(first);
    described["seconds_per_token"] = json!(token);
    Some(described)
}

pub(super) fn with_worker(worker: usize, state: &impl serde::Serialize) -> Value {
    let mut described = serde_json::to_value(state).unwrap_or(Value::Null);
    described["worker"] = json!(worker);
    described
}

fn pools(gateway: &Gateway, shards: &[ShardState]) -> Vec<Value> {
    let settings = &gateway.shared.settings;
    let describe = |plan: &std::sync::Arc<crate::settings::Pool>| {
        let states: Vec<_> = shards.iter().map(|shard| &shard.pools[plan.index]).collect();
        let members: Vec<Value> = plan
            .members
            .iter()
            .enumerate()
            .map(|(place, backend)| {
                let mut merged = MemberStats::default();
                for state in &states {
                    merged.merge(&state.members[place]);
                }
                let mut described = member(&settings.backends[*backend].name, &merged);
                described["weight"] =
                    json!(plan.child_of(place).map(|child| gateway.shared.pools[plan.index].weight(child.edge)));
                described
            })
            .collect();
        let sum = |count: &dyn Fn(&crate::actors::PoolState) -> u64| states.iter().map(|state| count(state)).sum::<u64>();
        let mut described = json!({
            "name": &*plan.name,
            "implicit": plan.implicit,
            "strategy": plan.tree.strategy.word(),
            "fallback": plan.tree.fallback,
            "requests": sum(&|state| state.requests),
            "absorbed": sum(&|state| state.absorbed),
            "refused": sum(&|state| state.refused),
            "outcomes": outcomes(&states),
            "parked": sum(&|state| state.parked as u64),
            "restarts": sum(&|state| u64::from(state.restarts)),
            "members": members,
            "workers": shards.iter().map(|shard| json!({
                "worker": shard.worker,
                "requests": shard.pools[plan.index].requests,
                "parked": shard.pools[plan.index].parked,
                "restarts": shard.pools[plan.index].restarts,
            })).collect::<Vec<_>>(),
        });
        if let Value::Object(fields) = &mut described {
            fields.append(&mut extras(plan, &states));
        }
        described
    };
    settings.pools.iter().map(describe).collect()
}

/// How a pool's requests have ended so far; those that are open are missing.
fn outcomes(states: &[&crate::actors::PoolState]) -> Value {
    let sums = OUTCOMES.iter().enumerate().map(|(place, word)| {
        let sum: u64 = states.iter().map(|state| state.outcomes[place]).sum();
        ((*word).to_owned(), json!(sum))
    });
    Value::Object(sums.collect())
}

/// What hedging and affinity did, where a pool has them.
fn extras(plan: &Pool, states: &[&crate::actors::PoolState]) -> Map<String, Value> {
    let mut extras = Map::new();
    if plan.hedge.is_some() {
        let sum = |count: fn(&(u64, u64)) -> u64| states.iter().map(|state| count(&state.hedges)).sum::<u64>();
        extras.insert("hedges".into(), json!({ "started": sum(|hedges| hedges.0), "won": sum(|hedges| hedges.1) }));
    }
    if plan.affinity.is_some() {
        let sum = |place: usize| states.iter().map(|state| state.conversations[place]).sum::<u64>();
        extras.insert("conversations".into(), json!({ "kept": sum(0), "moved": sum(1), "new": sum(2) }));
    }
    extras
}

fn member(backend: &str, stats: &MemberStats) -> Value {
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    let failures: Map<String, Value> = FailureClass::ALL
        .iter()
        .zip(stats.failures)
        .filter(|(_, count)| *count > 0)
        .map(|(class, count)| (class.word().to_owned(), json!(count)))
        .collect();
    json!({
        "backend": backend,
        "attempts": stats.attempts,
        "served": stats.served,
        "retried": stats.retried,
        "cancelled": stats.cancelled,
        "truncated": stats.truncated,
        "cut": stats.cut,
        "bounced": stats.bounced,
        "failures": failures,
        "latency_seconds": seconds(stats.latency),
        "first_content_seconds": { "p50": seconds(stats.first_content.quantile(0.5)), "p99": seconds(stats.first_content.quantile(0.99)) },
        "duration_seconds": { "p50": seconds(stats.duration.quantile(0.5)), "p99": seconds(stats.duration.quantile(0.99)) },
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "cached_tokens": stats.cached_tokens,
        "cache_hit_ratio": (stats.prompt_tokens > 0).then(|| stats.cached_tokens as f64 / stats.prompt_tokens as f64),
    })
}

pub(super) fn not_found(message: &str) -> HttpResponse {
    refuse(StatusCode::NOT_FOUND, message, "not_found")
}

pub(super) fn refuse(status: StatusCode, message: &str, code: &str) -> HttpResponse {
    HttpResponse::build(status)
        .json(json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": code } }))
}
