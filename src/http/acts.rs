//! The operator's acts on backends: restart, drain, resume, reset, weight; and the cancelling of requests. Each answers
//! with its result and leaves an audit line.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Gateway;
use super::admin::{enter, not_found, refuse};
use crate::actors::{Cancel, CancelRequest, DrainBackend, RestartBackend};
use crate::attempt::Cut;
use crate::settings::{Backend, Child, Node, parse_duration};

/// An act on one backend.
struct Act {
    gateway: Rc<Gateway>,
    backend: Arc<Backend>,
}

impl Act {
    /// Lets the operator in and finds the backend.
    fn begin(request: &HttpRequest) -> Result<Self, HttpResponse> {
        let gateway = enter(request, true)?;
        let name = request.match_info().get("name").unwrap_or_default();
        match gateway.shared.settings.backends.iter().find(|backend| *backend.name == *name) {
            Some(backend) => Ok(Self { backend: Arc::clone(backend), gateway }),
            None => {
                let name: String = name.chars().take(64).collect();
                Err(not_found(&format!("there is no backend with the name `{name}`")))
            }
        }
    }

    /// The audit line.
    fn note(&self, act: &'static str, result: &Value) {
        let backend = &*self.backend.name;
        let by = if self.gateway.shared.settings.admin_token.is_some() { "token" } else { "loopback" };
        tracing::info!(target: "audit", act, backend, by, %result, "operator's act");
        self.gateway.shared.journal.note("act", Some(backend), None, format!("{act} by {by}: {result}"));
    }
}

fn options<T: DeserializeOwned>(request: &HttpRequest, words: &str) -> Result<T, HttpResponse> {
    web::Query::<T>::from_query(request.query_string())
        .map(web::Query::into_inner)
        .map_err(|_| refuse(StatusCode::BAD_REQUEST, words, "invalid_value"))
}

fn duration(name: &str, text: Option<&str>) -> Result<Option<Duration>, HttpResponse> {
    let parsed = text.map(parse_duration).transpose();
    parsed.map_err(|reason| refuse(StatusCode::BAD_REQUEST, &format!("`{name}`: {reason}"), "invalid_value"))
}

/// Turns an act's two ways to end into one.
fn answer(result: Result<HttpResponse, HttpResponse>) -> HttpResponse {
    result.unwrap_or_else(|refusal| refusal)
}

/// Options of a restart and of a drain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    deadline: Option<String>,
    wait: Option<String>,
}

impl Waiting {
    const WORDS: &str = "the options are `deadline` and `wait`, each once";

    fn is_on(&self) -> bool {
        self.wait.as_deref().is_some_and(|wait| matches!(wait, "1" | "true"))
    }
}

/// `POST /admin/api/backends/{name}/restart`.
pub(super) async fn restart(request: HttpRequest) -> HttpResponse {
    let restart = async {
        let act = Act::begin(&request)?;
        let options: Waiting = options(&request, Waiting::WORDS)?;
        let deadline = duration("deadline", options.deadline.as_deref())?;
        let wait = options.is_on();
        act.note("restart-requested", &json!({ "deadline": options.deadline }));
        let sent = act.gateway.director.send(RestartBackend { backend: act.backend.index, deadline, wait }).await;
        let Ok(Ok(report)) = sent else { return Err(worker_gone()) };
        act.note("restart", &json!({ "id": report.id, "generation": report.generation }));
        let status = if wait { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok(HttpResponse::build(status).json(report))
    };
    answer(restart.await)
}

/// `POST /admin/api/backends/{name}/drain`: takes the backend out; what it carries may finish.
pub(super) async fn drain(request: HttpRequest) -> HttpResponse {
    let drain = async {
        let act = Act::begin(&request)?;
        let options: Waiting = options(&request, Waiting::WORDS)?;
        let deadline = duration("deadline", options.deadline.as_deref())?;
        let wait = options.is_on();
        act.note("drain-requested", &json!({ "deadline": options.deadline }));
        let sent = act.gateway.director.send(DrainBackend { backend: act.backend.index, deadline, wait }).await;
        let Ok(report) = sent else { return Err(worker_gone()) };
        act.note("drain", &json!(report));
        let status = if report.in_flight == 0 { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok(HttpResponse::build(status).json(report))
    };
    answer(drain.await)
}

/// No options.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// `POST /admin/api/backends/{name}/resume`: takes a drained backend in again.
pub(super) async fn resume(request: HttpRequest) -> HttpResponse {
    let resume = || {
        let act = Act::begin(&request)?;
        let Nothing {} = options(&request, "this act takes no options")?;
        let was_drained = act.gateway.shared.backends[act.backend.index].drained.swap(false, Ordering::Relaxed);
        let result = json!({ "backend": &*act.backend.name, "was_drained": was_drained });
        act.note("resume", &result);
        Ok(HttpResponse::Ok().json(result))
    };
    answer(resume())
}

/// Options of a reset.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetOptions {
    model: Option<String>,
}

/// `POST /admin/api/backends/{name}/reset`: closes the backend's circuits and forgets its averages.
pub(super) async fn reset(request: HttpRequest) -> HttpResponse {
    let reset = || {
        let act = Act::begin(&request)?;
        let options: ResetOptions = options(&request, "the option is `model`, once")?;
        let shared = &act.gateway.shared;
        let health = &shared.backends[act.backend.index].health;
        if let Some(model) = &options.model
            && !health.slots().iter().any(|slot| *slot.model == **model)
        {
            let model: String = model.chars().take(64).collect();
            return Err(not_found(&format!("backend `{}` has no circuit for the model `{model}`", act.backend.name)));
        }
        let closed = health.reset(options.model.as_deref(), shared.clock.now());
        let result = json!({ "backend": &*act.backend.name, "model": options.model, "closed": closed });
        act.note("reset", &result);
        Ok(HttpResponse::Ok().json(result))
    };
    answer(reset())
}

/// Options of a new weight.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightOptions {
    weight: f64,
    pool: Option<String>,
}

/// `POST /admin/api/backends/{name}/weight`: sets its weight in one pool, or in all that have it, until the process ends.
pub(super) async fn weight(request: HttpRequest) -> HttpResponse {
    let weight = || {
        let act = Act::begin(&request)?;
        let words = "the options are `weight`, a number, and `pool`, each once";
        let WeightOptions { weight, pool } = options(&request, words)?;
        if !(0.0..=1e6).contains(&weight) {
            return Err(refuse(StatusCode::BAD_REQUEST, "`weight`: a number from 0 to 1000000", "invalid_value"));
        }
        let shared = &act.gateway.shared;
        let mut changed = Vec::new();
        for plan in shared.settings.pools.iter().filter(|plan| !plan.implicit) {
            if pool.as_ref().is_some_and(|name| **name != *plan.name) {
                continue;
            }
            for edge in edges(&plan.tree.children, &plan.members, act.backend.index) {
                let before = shared.pools[plan.index].set_weight(edge, weight);
                changed.push(json!({ "pool": &*plan.name, "before": before, "weight": weight }));
            }
        }
        if changed.is_empty() {
            return Err(not_found(&format!("backend `{}` is in no such pool", act.backend.name)));
        }
        let result = json!({ "backend": &*act.backend.name, "changed": changed });
        act.note("weight", &result);
        Ok(HttpResponse::Ok().json(result))
    };
    answer(weight())
}

/// The memberships of a backend in a tree.
fn edges(children: &[Child], members: &[usize], backend: usize) -> Vec<usize> {
    let of = |child: &Child| match &child.node {
        Node::Leaf(leaf) if members[*leaf] == backend => vec![child.edge],
        Node::Leaf(_) => Vec::new(),
        Node::Group(inner) => edges(&inner.children, members, backend),
    };
    children.iter().flat_map(of).collect()
}

/// `DELETE /admin/api/requests/{id}`: ends a request.
pub(super) async fn cancel(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, true) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let id = request.match_info().get("id").unwrap_or_default();
    let id: String = id.chars().filter(|letter| !letter.is_control()).take(128).collect();
    let cancel = Cancel { id: Some(id.clone()), backend: None, cut: Cut::Operator };
    let ended = gateway.director.send(CancelRequest(cancel)).await.unwrap_or(0);
    tracing::info!(target: "audit", act = "cancel", request = %id, ended, "operator's act");
    gateway.shared.journal.note("act", None, None, format!("cancel of request {id}: {ended} ended"));
    if ended == 0 {
        return not_found(&format!("no request with the id `{id}` is in flight"));
    }
    HttpResponse::Ok().json(json!({ "id": id, "ended": ended }))
}

fn worker_gone() -> HttpResponse {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "a worker did not take the act; ask again", "worker_gone")
}
