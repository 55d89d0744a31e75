//! The operator's view of single requests: what is in flight, what has ended, and the story of each.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Problem, Refused, enter, not_found, refuse, report};
use crate::actors::{AskStories, FindStories, ShardStories};
use crate::http::Gateway;
use crate::monitor::{Requests, Told, newest};
use crate::story::Outcome;

/// Stories in one answer when no other number is asked for, and the most.
const LISTED: (usize, usize) = (100, 10_000);
/// Requests in flight in one answer.
const FLIGHTS: usize = 1_000;

/// Options of the list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListOptions {
    /// Most requests that have ended; default 100, at most 10,000.
    #[param(minimum = 0, maximum = 10_000)]
    limit: Option<usize>,
    /// Only those that have ended so: `served`, `failed`, `cancelled`, `truncated`, `cut`, or `absorbed`.
    #[param(pattern = "^(served|failed|cancelled|truncated|cut|absorbed)$")]
    outcome: Option<String>,
}

/// Requests in flight, longest first, and those that have ended, the last one first.
#[utoipa::path(
    get, path = "/admin/api/requests", tag = "requests", params(ListOptions),
    responses((status = 200, body = Requests), (status = 400, body = Problem), (status = 401, body = Problem))
)]
pub(super) async fn list(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let options = match web::Query::<ListOptions>::from_query(request.query_string()) {
        Ok(options) if options.outcome.as_deref().is_none_or(is_outcome) => options.into_inner(),
        _ => {
            let words = format!(
                "the options are `limit`, a number, and `outcome`: {}, absorbed",
                Outcome::ALL.map(Outcome::word).join(", ")
            );
            return Err(refuse(StatusCode::BAD_REQUEST, &words, "invalid_value"));
        }
    };
    let limit = options.limit.unwrap_or(LISTED.0).min(LISTED.1);
    let found = find(&gateway, AskStories { id: None, outcome: options.outcome, limit }).await;
    let in_flight = report(&gateway, FLIGHTS).await?.in_flight.clone();
    Ok(HttpResponse::Ok().json(Requests { in_flight, recent: newest(&found, limit) }))
}

fn is_outcome(word: &str) -> bool {
    word == "absorbed" || Outcome::ALL.iter().any(|outcome| outcome.word() == word)
}

/// A request's story, in flight or ended. A client may have used an id more than once: the newest is told.
#[utoipa::path(
    get, path = "/admin/api/requests/{id}", tag = "requests", params(("id" = String, Path, description = "the request's id")),
    responses((status = 200, body = Told), (status = 401, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn one(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let gateway = enter(&request, false).await?.gateway;
    let id: String = request.match_info().get("id").unwrap_or_default().chars().take(128).collect();
    let found = find(&gateway, AskStories { id: Some(id.clone()), outcome: None, limit: 1 }).await;
    let settings = &gateway.shared.settings;
    if let Some((worker, open)) = found.iter().find_map(|shard| Some((shard.worker, shard.open.first()?))) {
        return Ok(HttpResponse::Ok().json(Told::open(worker, open, settings)));
    }
    let ended = found.iter().flat_map(|shard| shard.ended.iter().map(|story| (shard.worker, story)));
    match ended.max_by_key(|(_, story)| story.at) {
        Some((worker, story)) => Ok(HttpResponse::Ok().json(Told::ended(worker, story, settings))),
        None => Err(not_found(&format!("no request with the id `{id}` is in flight or remembered"))),
    }
}

async fn find(gateway: &Gateway, ask: AskStories) -> Vec<ShardStories> {
    gateway.director.send(FindStories(ask)).await.unwrap_or_default()
}
