//! `GET /v1/models`: pools, backends, and the models they are configured with.

use std::collections::BTreeMap;
use std::rc::Rc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::reply;
use super::{Gateway, auth};
use crate::error::GatewayError;
use crate::settings::Settings;

/// Lists every name that a request may put in `model`.
pub(super) async fn list(request: HttpRequest) -> HttpResponse {
    match known(&request) {
        Ok(models) => HttpResponse::Ok().json(json!({ "object": "list", "data": models.values().collect::<Vec<_>>() })),
        Err(error) => reply::error(&error),
    }
}

/// Describes one of them.
pub(super) async fn one(request: HttpRequest, id: web::Path<String>) -> HttpResponse {
    match known(&request) {
        Ok(models) => match models.get(id.as_str()) {
            Some(model) => HttpResponse::Ok().json(model),
            None => reply::error(&GatewayError::UnknownModel {
                model: id.chars().filter(|letter| !letter.is_control()).take(200).collect(),
            }),
        },
        Err(error) => reply::error(&error),
    }
}

fn known(request: &HttpRequest) -> Result<BTreeMap<String, Value>, GatewayError> {
    let gateway = request.app_data::<Rc<Gateway>>().ok_or(GatewayError::Internal)?;
    let settings = &gateway.shared.settings;
    auth::client(request, settings)?;
    Ok(models(settings))
}

fn models(settings: &Settings) -> BTreeMap<String, Value> {
    let entry = |id: &str, owner: &str| (id.to_owned(), json!({ "id": id, "object": "model", "created": 0, "owned_by": owner }));
    let mut models = BTreeMap::new();
    for backend in &settings.backends {
        let owner = backend.kind.word();
        for model in backend.aliases.keys().map(String::as_str).chain(backend.default_model.as_deref()) {
            let (id, described) = entry(model, owner);
            models.entry(id).or_insert(described);
            models.extend([entry(&format!("{}/{model}", backend.name), owner)]);
        }
    }
    for pool in &settings.pools {
        let owner = if pool.implicit { settings.backends[pool.members[0]].kind.word() } else { "stagedoor" };
        models.extend([entry(&pool.name, owner)]);
    }
    models
}
