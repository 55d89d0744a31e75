//! The operator's acts on backends: restart, drain, resume, reset, weight; and the cancelling of requests. Each answers
//! with its result and leaves an audit line: who, what, and with which result.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::access::Visitor;
use super::{Problem, Refused, enter, not_found, refuse};
use crate::actors::slots::Shared;
use crate::actors::{Cancel, CancelRequest, DrainBackend, DrainReport, DrainedBackend, RestartBackend, RestartReport};
use crate::attempt::Cut;
use crate::settings::{Backend, Child, Group, Node, parse_duration};

/// An act on one backend.
pub(super) struct Act {
    pub(super) visitor: Visitor,
    pub(super) backend: Arc<Backend>,
}

impl Act {
    /// Lets the operator in and finds the backend.
    pub(super) async fn begin(request: &HttpRequest) -> Result<Self, Refused> {
        let visitor = enter(request, true).await?;
        let name = request.match_info().get("name").unwrap_or_default();
        match visitor.gateway.shared.settings.backends.iter().find(|backend| *backend.name == *name) {
            Some(backend) => Ok(Self { backend: Arc::clone(backend), visitor }),
            None => {
                let name: String = name.chars().take(64).collect();
                let is_pool = visitor.gateway.shared.settings.pools.iter().any(|pool| *pool.name == *name);
                let hint = if is_pool { ": it is a pool; act on its members" } else { "" };
                Err(not_found(&format!("there is no backend with the name `{name}`{hint}")))
            }
        }
    }

    fn shared(&self) -> &Shared {
        &self.visitor.gateway.shared
    }

    /// The audit line.
    pub(super) fn note(&self, act: &'static str, result: &impl Serialize) {
        let backend = &*self.backend.name;
        let (by, result) = (self.visitor.who(), json!(result));
        tracing::info!(target: "audit", act, backend, by, %result, "operator's act");
        self.shared().journal.note("act", Some(backend), None, format!("{act} by {by}{}", in_words(&result)));
    }
}

/// A result as text that people read.
fn in_words(result: &Value) -> String {
    let Value::Object(fields) = result else { return format!(": {result}") };
    let told = fields.iter().filter(|(name, value)| !value.is_null() && !matches!(name.as_str(), "backend" | "workers"));
    let told: Vec<String> = told
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect();
    if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) }
}

fn options<T: DeserializeOwned>(request: &HttpRequest, words: &str) -> Result<T, Refused> {
    web::Query::<T>::from_query(request.query_string())
        .map(web::Query::into_inner)
        .map_err(|_| refuse(StatusCode::BAD_REQUEST, words, "invalid_value"))
}

fn duration(name: &str, text: Option<&str>) -> Result<Option<Duration>, Refused> {
    let parsed = text.map(parse_duration).transpose();
    parsed.map_err(|reason| refuse(StatusCode::BAD_REQUEST, &format!("`{name}`: {reason}"), "invalid_value"))
}

/// Options of a restart and of a drain.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// How long what is in flight may take, such as `30s`.
    #[param(pattern = "^[0-9]{1,6}(ms|s|m)$")]
    deadline: Option<String>,
    /// Whether to answer only when the backend carries nothing any more.
    #[param(inline)]
    wait: Option<Switch>,
}

/// On or off.
#[derive(Deserialize, ToSchema)]
enum Switch {
    #[serde(rename = "1", alias = "true")]
    On,
    #[serde(rename = "0", alias = "false")]
    Off,
}

impl Waiting {
    const WORDS: &str = "the options are `deadline`, such as 30s, and `wait`, 1 or 0, each once";

    fn is_on(&self) -> bool {
        matches!(self.wait, Some(Switch::On))
    }
}

/// What became of a restart whose end was awaited.
#[derive(Serialize, ToSchema)]
struct DrainedRestart {
    /// How it began.
    #[serde(flatten)]
    begun: RestartReport,
    /// What became of what the old providers carried.
    #[serde(flatten)]
    drained: DrainReport,
}

/// Replaces a backend's providers; what the old ones carry may finish.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/restart", tag = "acts", params(("name" = String, Path, description = "the backend"), Waiting),
    responses((status = 200, body = DrainedRestart, description = "with `wait`: the old providers are gone"), (status = 202, body = RestartReport, description = "the new providers take requests, the old ones finish"), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn restart(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let options: Waiting = options(&request, Waiting::WORDS)?;
    let deadline = duration("deadline", options.deadline.as_deref())?;
    let wait = options.is_on();
    act.note("restart-requested", &json!({ "deadline": options.deadline }));
    let sent = act
        .visitor
        .gateway
        .director
        .send(RestartBackend { backend: act.backend.index, deadline, wait, by: act.visitor.who() })
        .await;
    let Ok(Ok(mut begun)) = sent else { return Err(worker_gone()) };
    let Some(drained) = begun.drained.take() else {
        act.note("restart", &begun);
        return Ok(HttpResponse::Accepted().json(begun));
    };
    let whole = DrainedRestart { begun, drained };
    act.note("restart", &whole);
    Ok(HttpResponse::Ok().json(whole))
}

/// Takes a backend out; what it carries may finish.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/drain", tag = "acts", params(("name" = String, Path, description = "the backend"), Waiting),
    responses((status = 200, body = DrainedBackend, description = "it carries nothing"), (status = 202, body = DrainedBackend, description = "it still carries requests"), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn drain(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let options: Waiting = options(&request, Waiting::WORDS)?;
    let deadline = duration("deadline", options.deadline.as_deref())?;
    let wait = options.is_on();
    act.note("drain-requested", &json!({ "deadline": options.deadline }));
    let sent = act
        .visitor
        .gateway
        .director
        .send(DrainBackend { backend: act.backend.index, deadline, wait, by: act.visitor.who() })
        .await;
    let Ok(report) = sent else { return Err(worker_gone()) };
    act.note("drain", &report);
    let status = if report.in_flight == 0 { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(HttpResponse::build(status).json(report))
}

/// No options.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What became of the wish to take a backend in again.
#[derive(Serialize, ToSchema)]
struct Resumed {
    /// Which backend.
    backend: String,
    /// Whether it was out.
    was_drained: bool,
}

/// Takes a drained backend in again.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/resume", tag = "acts", params(("name" = String, Path, description = "the backend")),
    responses((status = 200, body = Resumed), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn resume(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let Nothing {} = options(&request, "this act takes no options")?;
    let was_drained = act.shared().backends[act.backend.index].drained.swap(false, Ordering::Relaxed);
    let result = Resumed { backend: act.backend.name.to_string(), was_drained };
    act.note("resume", &result);
    Ok(HttpResponse::Ok().json(result))
}

/// Options of a reset.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ResetOptions {
    /// Only this model's circuit; without it, all of the backend's.
    model: Option<String>,
}

/// What became of a reset.
#[derive(Serialize, ToSchema)]
struct ResetResult {
    /// Which backend.
    backend: String,
    /// Which model, if only one.
    model: Option<String>,
    /// Circuits that were not closed before.
    closed: usize,
}

/// Closes a backend's circuits and forgets its averages.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/reset", tag = "acts", params(("name" = String, Path, description = "the backend"), ResetOptions),
    responses((status = 200, body = ResetResult), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn reset(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let options: ResetOptions = options(&request, "the option is `model`, once")?;
    let shared = act.shared();
    let health = &shared.backends[act.backend.index].health;
    if let Some(model) = &options.model
        && !health.has_slot(model)
    {
        let model: String = model.chars().take(64).collect();
        return Err(not_found(&format!("backend `{}` has no circuit for the model `{model}`", act.backend.name)));
    }
    let closed = health.reset(options.model.as_deref(), shared.clock.now());
    let result = ResetResult { backend: act.backend.name.to_string(), model: options.model, closed };
    act.note("reset", &result);
    Ok(HttpResponse::Ok().json(result))
}

/// Options of a new weight.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WeightOptions {
    /// The new weight.
    #[param(minimum = 0, maximum = 1_000_000)]
    weight: f64,
    /// Only in this pool; without it, in every configured pool that has the backend.
    pool: Option<String>,
}

/// What became of a new weight.
#[derive(Serialize, ToSchema)]
struct WeightResult {
    /// Which backend.
    backend: String,
    /// Where, and what it was.
    changed: Vec<ChangedWeight>,
}

/// A weight that was changed.
#[derive(Serialize, ToSchema)]
struct ChangedWeight {
    /// Which pool.
    pool: String,
    /// What it was.
    before: f64,
    /// What it is.
    weight: f64,
}

/// Sets a backend's weight in one pool, or in all that have it, until the process ends.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/weight", tag = "acts", params(("name" = String, Path, description = "the backend"), WeightOptions),
    responses((status = 200, body = WeightResult), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn weight(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let words = "the options are `weight`, a number, and `pool`, each once";
    let WeightOptions { weight, pool } = options(&request, words)?;
    if !(0.0..=1e6).contains(&weight) {
        return Err(refuse(StatusCode::BAD_REQUEST, "`weight`: a number from 0 to 1000000", "invalid_value"));
    }
    let shared = act.shared();
    // A pool that is a member of others is changed in these, too.
    let mut changed: Vec<ChangedWeight> = Vec::new();
    let mut known = Vec::new();
    for plan in shared.settings.pools.iter().filter(|plan| !plan.implicit) {
        for (owner, edge) in edges(&plan.tree, &plan.members, act.backend.index) {
            known.push(owner);
            if pool.as_ref().is_some_and(|name| **name != **owner) {
                continue;
            }
            let before = shared.pools[plan.index].set_weight(edge, weight);
            if !changed.iter().any(|told| *told.pool == **owner) {
                changed.push(ChangedWeight { pool: owner.to_string(), before, weight });
            }
        }
    }
    if changed.is_empty() {
        known.sort();
        known.dedup();
        let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        let pools = if known.is_empty() { "in no pool".to_owned() } else { format!("in {} only", known.join(", ")) };
        return Err(not_found(&format!("backend `{}` is {pools}", act.backend.name)));
    }
    let result = WeightResult { backend: act.backend.name.to_string(), changed };
    act.note("weight", &result);
    Ok(HttpResponse::Ok().json(result))
}

/// The memberships of a backend in a tree, each with the pool that it is in.
fn edges<'t>(group: &'t Group, members: &[usize], backend: usize) -> Vec<(&'t Arc<str>, usize)> {
    let of = |child: &'t Child| match &child.node {
        Node::Leaf(leaf) if members[*leaf] == backend => vec![(&group.pool, child.edge)],
        Node::Leaf(_) => Vec::new(),
        Node::Group(inner) => edges(inner, members, backend),
    };
    group.children.iter().flat_map(of).collect()
}

/// What became of the wish to end a request.
#[derive(Serialize, ToSchema)]
struct CancelResult {
    /// Its id.
    id: String,
    /// Attempts that were ended.
    ended: usize,
}

/// Ends a request.
#[utoipa::path(
    delete, path = "/admin/api/requests/{id}", tag = "acts", params(("id" = String, Path, description = "the request's id")),
    responses((status = 200, body = CancelResult), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn cancel(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let visitor = enter(&request, true).await?;
    let id = request.match_info().get("id").unwrap_or_default();
    let id: String = id.chars().filter(|letter| !letter.is_control()).take(128).collect();
    let cancel = Cancel { id: Some(id.clone()), backend: None, cut: Cut::Operator };
    let ended = visitor.gateway.director.send(CancelRequest(cancel)).await.unwrap_or(0);
    let by = visitor.who();
    tracing::info!(target: "audit", act = "cancel", cancelled = %id, by, ended, "operator's act");
    visitor.gateway.shared.journal.note("act", None, None, format!("cancel of request {id} by {by}: {ended} ended"));
    if ended == 0 {
        return Err(not_found(&format!("no request with the id `{id}` is in flight")));
    }
    Ok(HttpResponse::Ok().json(CancelResult { id, ended }))
}

fn worker_gone() -> Refused {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "a worker did not take the act; ask again", "worker_gone")
}
