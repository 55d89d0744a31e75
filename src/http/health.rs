//! Whether the process lives, and whether it can take requests: never whether all backends are healthy.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

use super::Gateway;

/// `GET /health`.
pub(super) async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// `GET /ready`.
pub(super) async fn ready(request: HttpRequest) -> HttpResponse {
    let draining = request.app_data::<Rc<Gateway>>().is_none_or(|gateway| gateway.shared.draining.load(Ordering::Relaxed));
    if draining {
        return HttpResponse::ServiceUnavailable().json(json!({ "status": "draining" }));
    }
    HttpResponse::Ok().json(json!({ "status": "ready" }))
}
