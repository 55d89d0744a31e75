//! The operator's API: the live tree, what is in flight, restart and cancel.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Gateway, auth, reply};
use crate::actors::{AskState, Cancel, CancelRequest, RestartBackend, ShardState};
use crate::attempt::Cut;
use crate::balance::MemberStats;
use crate::chat::FailureClass;
use crate::dialect::Dialect;
use crate::error::GatewayError;
use crate::settings::parse_duration;

fn enter(request: &HttpRequest, is_act: bool) -> Result<Rc<Gateway>, HttpResponse> {
    let gateway = request.app_data::<Rc<Gateway>>().map(Rc::clone).ok_or_else(|| reply::error(&GatewayError::Internal))?;
    auth::operator(request, &gateway.shared.settings, is_act).map_err(|error| reply::error(&error))?;
    Ok(gateway)
}

async fn shards(gateway: &Gateway) -> Vec<Result<ShardState, usize>> {
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
    }))
}

fn backends(gateway: &Gateway, shards: &[ShardState]) -> Vec<Value> {
    let shared = &gateway.shared;
    let describe = |(index, backend): (usize, &std::sync::Arc<crate::settings::Backend>)| {
        let workers: Vec<_> = shards.iter().map(|shard| (shard.worker, &shard.providers[index])).collect();
        let sum =
            |count: &dyn Fn(&crate::actors::ProviderState) -> u64| workers.iter().map(|(_, state)| count(state)).sum::<u64>();
        let permits = &shared.backends[index].permits;
        json!({
            "name": &*backend.name,
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

fn with_worker(worker: usize, state: &impl serde::Serialize) -> Value {
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
                member(&settings.backends[*backend].name, &merged)
            })
            .collect();
        let sum = |count: &dyn Fn(&crate::actors::PoolState) -> u64| states.iter().map(|state| count(state)).sum::<u64>();
        json!({
            "name": &*plan.name,
            "implicit": plan.implicit,
            "strategy": plan.tree.strategy.word(),
            "fallback": plan.tree.fallback,
            "requests": sum(&|state| state.requests),
            "absorbed": sum(&|state| state.absorbed),
            "refused": sum(&|state| state.refused),
            "parked": sum(&|state| state.parked as u64),
            "restarts": sum(&|state| u64::from(state.restarts)),
            "members": members,
            "workers": shards.iter().map(|shard| json!({
                "worker": shard.worker,
                "requests": shard.pools[plan.index].requests,
                "parked": shard.pools[plan.index].parked,
                "restarts": shard.pools[plan.index].restarts,
            })).collect::<Vec<_>>(),
        })
    };
    settings.pools.iter().map(describe).collect()
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
    })
}

/// `GET /admin/api/requests`: what is in flight, longest first.
pub(super) async fn requests(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, false) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let settings = &gateway.shared.settings;
    let mut flights: Vec<(f64, Value)> = Vec::new();
    for shard in shards(&gateway).await.into_iter().flatten() {
        for (index, provider) in shard.providers.iter().enumerate() {
            for flight in &provider.flights {
                let mut described = with_worker(shard.worker, flight);
                described["backend"] = json!(&*settings.backends[index].name);
                flights.push((flight.age_seconds, described));
            }
        }
        for (index, pool) in shard.pools.iter().enumerate() {
            for job in &pool.waiting {
                let mut described = with_worker(shard.worker, job);
                described["pool"] = json!(&*settings.pools[index].name);
                flights.push((job.age_seconds, described));
            }
        }
    }
    flights.sort_by(|a, b| b.0.total_cmp(&a.0));
    HttpResponse::Ok().json(json!({ "in_flight": flights.into_iter().map(|(_, flight)| flight).collect::<Vec<_>>() }))
}

/// `DELETE /admin/api/requests/{id}`: ends a request.
pub(super) async fn cancel(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, true) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let id: String = request.match_info().get("id").unwrap_or_default().chars().take(128).collect();
    let ended = gateway.director.send(CancelRequest(Cancel { id: Some(id.clone()), cut: Cut::Operator })).await.unwrap_or(0);
    tracing::info!(target: "audit", act = "cancel", request = %id, ended, "operator's act");
    if ended == 0 {
        return not_found(&format!("no request with the id `{id}` is in flight"));
    }
    HttpResponse::Ok().json(json!({ "id": id, "ended": ended }))
}

/// Options of a restart.
#[derive(Deserialize)]
pub(super) struct RestartOptions {
    deadline: Option<String>,
    wait: Option<String>,
}

/// `POST /admin/api/backends/{name}/restart`.
pub(crate) async fn restart(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, true) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let name = request.match_info().get("name").unwrap_or_default();
    let Some(backend) = gateway.shared.settings.backends.iter().find(|backend| *backend.name == *name) else {
        return not_found(&format!("there is no backend with the name `{}`", name.chars().take(64).collect::<String>()));
    };
    let Ok(options) = web::Query::<RestartOptions>::from_query(request.query_string()) else {
        return refuse(StatusCode::BAD_REQUEST, "the options are `deadline` and `wait`, each once", "invalid_value");
    };
    let deadline = match options.deadline.as_deref().map(parse_duration).transpose() {
        Ok(deadline) => deadline,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, &format!("`deadline`: {reason}"), "invalid_value"),
    };
    let wait = options.wait.as_deref().is_some_and(|wait| matches!(wait, "1" | "true"));
    let act = RestartBackend { backend: backend.index, deadline, wait };
    match gateway.director.send(act).await {
        Ok(Ok(report)) => {
            tracing::info!(target: "audit", act = "restart", backend = %backend.name, id = %report.id, generation = report.generation, "operator's act");
            let status = if wait { StatusCode::OK } else { StatusCode::ACCEPTED };
            HttpResponse::build(status).json(report)
        }
        Ok(Err(())) | Err(_) => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "a worker did not take the restart; ask again", "worker_gone")
        }
    }
}

fn not_found(message: &str) -> HttpResponse {
    refuse(StatusCode::NOT_FOUND, message, "not_found")
}

fn refuse(status: StatusCode, message: &str, code: &str) -> HttpResponse {
    HttpResponse::build(status)
        .json(json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": code } }))
}
