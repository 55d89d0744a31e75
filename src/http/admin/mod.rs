//! /admin: the page, the API that it uses, and who may use it. Everything here is off the path of requests.

mod access;
mod acts;
mod events;
mod openapi;
mod page;
mod probe;
mod session;
mod stories;

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::{Gateway, act, get, only, read, reply};
use crate::monitor::{AskHistory, AskReport, History, Report, State};

pub(crate) use access::Guesses;
pub(super) use access::enter;
pub(crate) use session::EndedSessions;
/// What the page may do: nothing but what comes with the gateway.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The routes below /admin.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    let headers = DefaultHeaders::new()
        .add((header::CONTENT_SECURITY_POLICY, POLICY))
        .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .add((header::X_FRAME_OPTIONS, "DENY"))
        .add((header::REFERRER_POLICY, "no-referrer"))
        .add(("cross-origin-opener-policy", "same-origin"))
        .add(("cross-origin-resource-policy", "same-origin"))
        .add((header::CACHE_CONTROL, "no-store"));
    config.service(
        page::files(web::scope("/admin"))
            .wrap(headers)
            .service(read("", page::html))
            .service(read("/", page::html))
            .service(
                web::scope("/api")
                    .service(get("/openapi.json").route(web::get().to(openapi::show)))
                    .service(
                        only("/session", reply::only_session)
                            .route(web::get().to(session::show))
                            .route(web::post().to(session::begin))
                            .route(web::delete().to(session::end)),
                    )
                    .service(get("/state").route(web::get().to(state)))
                    .service(get("/history").route(web::get().to(history)))
                    .service(get("/events").route(web::get().to(events::stream)))
                    .service(get("/requests").route(web::get().to(stories::list)))
                    .service(
                        only("/requests/{id}", reply::only_get_or_delete)
                            .route(web::get().to(stories::one))
                            .route(web::delete().to(acts::cancel)),
                    )
                    .service(act("/backends/{name}/restart").route(web::post().to(acts::restart)))
                    .service(act("/backends/{name}/drain").route(web::post().to(acts::drain)))
                    .service(act("/backends/{name}/resume").route(web::post().to(acts::resume)))
                    .service(act("/backends/{name}/reset").route(web::post().to(acts::reset)))
                    .service(act("/backends/{name}/weight").route(web::post().to(acts::weight)))
                    .service(act("/backends/{name}/test").route(web::post().to(probe::test)))
                    // A scope does not take over the one that it is in.
                    .default_service(web::to(reply::unknown_path)),
            )
            .default_service(web::to(reply::unknown_path)),
    );
}

/// The gateway as it is now.
#[utoipa::path(get, path = "/admin/api/state", tag = "state", responses((status = 200, body = State), (status = 401, body = Problem)))]
async fn state(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let mut state = report(&gateway, 0).await?.state.clone();
    state.events = gateway.shared.journal.after(0);
    Ok(HttpResponse::Ok().json(state))
}

/// The last hour in steps of half a minute.
#[utoipa::path(get, path = "/admin/api/history", tag = "state", responses((status = 200, body = History), (status = 401, body = Problem)))]
async fn history(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let history = gateway.monitor.send(AskHistory).await.map_err(|_| Refused::internal())?;
    Ok(HttpResponse::Ok().json(history))
}

/// What the monitor knows now, with so many requests in flight.
async fn report(gateway: &Gateway, flights: usize) -> Result<Arc<Report>, Refused> {
    gateway.monitor.send(AskReport { flights }).await.map_err(|_| Refused::internal())
}

/// Why an operator's request is not answered.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    message: String,
    code: &'static str,
    retry_after: Option<Duration>,
}

impl Refused {
    fn new(status: StatusCode, message: &str, code: &'static str) -> Self {
        Self { status, message: message.to_owned(), code, retry_after: None }
    }

    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "an internal fault ended the request", "internal_error")
    }

    fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(wait) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, wait.as_secs().saturating_add(1).to_string()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, reply::BEARER));
        }
        let kind = if self.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        response.json(Problem { error: Words { message: self.message.clone(), kind, param: None, code: self.code } })
    }
}

/// The body of a refusal, in the form of the OpenAI API.
#[derive(Serialize, ToSchema)]
struct Problem {
    error: Words,
}

/// Why.
#[derive(Serialize, ToSchema)]
#[schema(as = ProblemWords)]
struct Words {
    /// In words.
    message: String,
    /// Kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Always null.
    param: Option<String>,
    /// In a word.
    code: &'static str,
}

/// Reads a JSON object; serde alone would take a list for one.
fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body)?;
    serde_json::from_value(fields.into())
}

/// A body as far as it may be sent.
///
/// # Errors
/// One that is too large or breaks off.
fn whole(body: Result<web::Bytes, actix_web::Error>) -> Result<web::Bytes, Refused> {
    body.map_err(|error| match error.as_response_error().status_code() {
        StatusCode::PAYLOAD_TOO_LARGE => refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", "body_too_large"),
        _ => refuse(StatusCode::BAD_REQUEST, "the body could not be read", "incomplete_body"),
    })
}

fn not_found(message: &str) -> Refused {
    refuse(StatusCode::NOT_FOUND, message, "not_found")
}

fn refuse(status: StatusCode, message: &str, code: &'static str) -> Refused {
    Refused::new(status, message, code)
}
