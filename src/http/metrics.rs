//! `GET /metrics`: for whoever may look at /admin, by token or, where none is configured, from this machine.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse};

use super::admin::{Refused, enter};
use crate::monitor::AskMetrics;

/// The page for Prometheus.
pub(super) async fn show(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let page = gateway.monitor.send(AskMetrics).await.map_err(|_| Refused::internal())?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(page))
}
