//! `GET /v1/models`: pools, backends, and the models they are configured with or known to have.

use std::collections::BTreeMap;
use std::rc::Rc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tracing::Span;

use super::request_log::RequestLog;
use super::{Gateway, auth, reply};
use crate::error::GatewayError;
use crate::settings::{Backend, BackendType, Settings};
use crate::story::Outcome;

/// Lists every name that a request may put in `model`.
pub(super) async fn list(request: HttpRequest) -> HttpResponse {
    answer(&request, |models| Ok(json!({ "object": "list", "data": models.values().collect::<Vec<_>>() })))
}

/// Describes one of them.
pub(super) async fn one(request: HttpRequest, id: web::Path<String>) -> HttpResponse {
    answer(&request, |models| match models.remove(id.as_str()) {
        Some(model) => Ok(model),
        None => Err(GatewayError::UnknownModel { model: id.chars().filter(|letter| !letter.is_control()).take(200).collect() }),
    })
}

/// What is said of the models to a caller that may call; logged as any request is.
fn answer(request: &HttpRequest, say: impl FnOnce(&mut BTreeMap<String, Value>) -> Result<Value, GatewayError>) -> HttpResponse {
    let Some(gateway) = request.app_data::<Rc<Gateway>>() else { return reply::error(&GatewayError::Internal) };
    let settings = &gateway.shared.settings;
    let mut log = RequestLog::uncounted(gateway, Span::current());
    let said = auth::client(request, settings).and_then(|caller| {
        log.caller = caller;
        say(&mut models(settings))
    });
    match said {
        Ok(said) => {
            (log.status, log.outcome) = (200, Outcome::Served);
            HttpResponse::Ok().json(said)
        }
        Err(error) => reply::respond(Err(error), log),
    }
}

fn models(settings: &Settings) -> BTreeMap<String, Value> {
    let entry = |id: &str, owner: &str| (id.to_owned(), json!({ "id": id, "object": "model", "created": 0, "owned_by": owner }));
    let mut models = BTreeMap::new();
    for backend in &settings.backends {
        let owner = backend.kind.word();
        let configured = backend.aliases.keys().map(String::as_str).chain(backend.default_model.as_deref());
        for model in configured {
            let (id, described) = described(backend, model, model);
            models.entry(id).or_insert(described);
            models.extend([self::described(backend, model, &format!("{}/{model}", backend.name))]);
        }
        for model in known_to_have(backend) {
            // Without its backend's name a model is known where no other backend could take it.
            let (pool, _) = settings.by_model(model);
            if settings.pools[pool].implicit && settings.pools[pool].members == [backend.index] {
                let (id, described) = described(backend, model, model);
                models.entry(id).or_insert(described);
            }
            let (id, described) = described(backend, model, &format!("{}/{model}", backend.name));
            models.entry(id).or_insert(described);
        }
        models.extend([entry(&backend.name, owner)]);
    }
    for pool in settings.pools.iter().filter(|pool| !pool.implicit) {
        models.extend([entry(&pool.name, "stagedoor")]);
    }
    models
}

/// Models that the catalogue says a vendor's own endpoint has; other hosts have what they have.
fn known_to_have(backend: &Backend) -> Vec<&str> {
    match backend.kind {
        BackendType::OpenAi | BackendType::Anthropic | BackendType::Google | BackendType::Mistral => {
            backend.catalogue.live(backend.vendor)
        }
        BackendType::Azure | BackendType::Meta | BackendType::Simulated => Vec::new(),
    }
}

/// A model under one of its names, with what the catalogue knows of it; what is unknown is null.
fn described(backend: &Backend, model: &str, id: &str) -> (String, Value) {
    let native = backend.aliases.get(model).map_or(model, String::as_str);
    let facts = backend.catalogue.model(backend.vendor, native);
    let entry = json!({
        "id": id,
        "object": "model",
        "created": 0,
        "owned_by": backend.kind.word(),
        "context_window": facts.and_then(|facts| facts.context_tokens),
        "max_output_tokens": facts.and_then(|facts| facts.max_output_tokens),
        "shutdown_date": facts.and_then(|facts| facts.ends.as_deref()),
    });
    (id.to_owned(), entry)
}
