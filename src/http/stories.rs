//! The operator's view of single requests: what is in flight, what has ended, and the story of each.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Gateway;
use super::admin::{enter, not_found, refuse, shards, with_worker};
use crate::actors::slots::OUTCOMES;
use crate::actors::{AskStories, FindStories, ShardStories};
use crate::balance::Door;
use crate::settings::Settings;
use crate::story::{Chosen, Story, Trace, Try, TryEnd};

/// Stories in one answer when no other number is asked for, and the most.
const LISTED: (usize, usize) = (100, 10_000);

/// Options of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOptions {
    limit: Option<usize>,
    outcome: Option<String>,
}

/// `GET /admin/api/requests`: what is in flight, longest first, and what has ended, newest first.
pub(super) async fn list(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, false) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let options = match web::Query::<ListOptions>::from_query(request.query_string()) {
        Ok(options) if options.outcome.as_deref().is_none_or(is_outcome) => options.into_inner(),
        _ => {
            let words = format!("the options are `limit`, a number, and `outcome`: {}, absorbed", OUTCOMES.join(", "));
            return refuse(StatusCode::BAD_REQUEST, &words, "invalid_value");
        }
    };
    let limit = options.limit.unwrap_or(LISTED.0).min(LISTED.1);
    let ask = AskStories { id: None, outcome: options.outcome, limit };
    let found = find(&gateway, ask).await;
    let mut recent: Vec<_> = found.iter().flat_map(|shard| shard.ended.iter().map(|story| (shard.worker, story))).collect();
    recent.sort_by_key(|(_, story)| std::cmp::Reverse(story.at));
    recent.truncate(limit);
    let recent: Vec<Value> = recent.into_iter().map(|(worker, story)| with_worker(worker, &summary(story))).collect();
    HttpResponse::Ok().json(json!({ "in_flight": in_flight(&gateway).await, "recent": recent }))
}

fn is_outcome(word: &str) -> bool {
    word == "absorbed" || OUTCOMES.contains(&word)
}

async fn in_flight(gateway: &Gateway) -> Vec<Value> {
    let settings = &gateway.shared.settings;
    let mut flights: Vec<(f64, Value)> = Vec::new();
    for shard in shards(gateway).await.into_iter().flatten() {
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
    flights.into_iter().map(|(_, flight)| flight).collect()
}

/// `GET /admin/api/requests/{id}`: a request's story, in flight or ended. A client may have used an id more than once:
/// the newest is told.
pub(super) async fn one(request: HttpRequest) -> HttpResponse {
    let gateway = match enter(&request, false) {
        Ok(gateway) => gateway,
        Err(refusal) => return refusal,
    };
    let id: String = request.match_info().get("id").unwrap_or_default().chars().take(128).collect();
    let found = find(&gateway, AskStories { id: Some(id.clone()), outcome: None, limit: 1 }).await;
    let settings = &gateway.shared.settings;
    for shard in &found {
        if let Some(open) = shard.open.first() {
            let mut told = json!({
                "id": open.id,
                "state": "in-flight",
                "age_seconds": open.age.as_secs_f64(),
                "pool": open.pool,
                "route": open.route,
                "caller": open.caller,
                "operation": open.operation,
                "stream": open.stream,
            });
            tell(&mut told, &open.trace, "open", settings);
            return HttpResponse::Ok().json(with_worker(shard.worker, &told));
        }
    }
    let newest = found.iter().flat_map(|shard| shard.ended.iter().map(|story| (shard.worker, story)));
    match newest.max_by_key(|(_, story)| story.at) {
        Some((worker, story)) => {
            let mut told = summary(story);
            told["state"] = json!("ended");
            told["dropped"] = json!(story.dropped);
            // A try that lost a race may not have noticed yet.
            tell(&mut told, &story.trail.trace(), "cancelled", settings);
            HttpResponse::Ok().json(with_worker(worker, &told))
        }
        None => not_found(&format!("no request with the id `{id}` is in flight or remembered")),
    }
}

async fn find(gateway: &Rc<Gateway>, ask: AskStories) -> Vec<ShardStories> {
    gateway.director.send(FindStories(ask)).await.unwrap_or_default()
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

fn summary(story: &Story) -> Value {
    json!({
        "id": &*story.id,
        "at": story.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        "duration_seconds": story.duration.as_secs_f64(),
        "caller": story.caller,
        "route": story.route,
        "pool": story.pool,
        "operation": story.operation,
        "stream": story.stream,
        "status": story.status,
        "outcome": story.outcome,
        "absorbed": story.is_absorbed(),
        "class": story.class,
        "backend": story.backend,
        "model": story.model,
        "attempts": story.attempts,
        "first_content_seconds": seconds(story.first_content),
        "usage": story.usage,
    })
}

/// `unended` is the outcome of a try that has not ended.
fn tell(told: &mut Value, trace: &Trace, unended: &str, settings: &Settings) {
    told["choices"] = trace.choices.iter().map(|choice| chosen(choice, settings)).collect();
    told["tries"] = trace.tries.iter().map(|tried| one_try(tried, unended, settings)).collect();
}

fn name(index: u16, settings: &Settings) -> Option<&str> {
    settings.backends.get(usize::from(index)).map(|backend| &*backend.name)
}

fn chosen(choice: &Chosen, settings: &Settings) -> Value {
    let compared: Vec<Value> = choice
        .compared
        .iter()
        .map(|(index, score)| json!({ "backend": name(*index, settings), "score": score.is_finite().then_some(score) }))
        .collect();
    let passed_over: Vec<Value> = choice
        .passed_over
        .iter()
        .map(|(index, door)| json!({ "backend": name(*index, settings), "reason": reason(door) }))
        .collect();
    json!({
        "at_seconds": choice.at.as_secs_f64(),
        "backend": name(choice.backend, settings),
        "why": choice.why.word(),
        "compared": compared,
        "passed_over": passed_over,
    })
}

fn reason(door: &Door) -> String {
    match door {
        Door::Open => "open".to_owned(),
        Door::Probe => "half-open".to_owned(),
        Door::Shut { class, .. } => format!("circuit open: {}", class.word()),
        Door::Barred(bar) => bar.word().to_owned(),
    }
}

fn one_try(told: &Try, unended: &str, settings: &Settings) -> Value {
    let (outcome, class, reason) = match told.end.as_ref().map(|(_, end)| end) {
        None => (unended, None, None),
        Some(TryEnd::Served) => ("served", None, None),
        Some(TryEnd::Failed(class, reason)) => ("failed", Some(class.word()), Some(reason)),
        Some(TryEnd::Cancelled) => ("cancelled", None, None),
        Some(TryEnd::Truncated(class)) => ("truncated", Some(class.word()), None),
        Some(TryEnd::Cut) => ("cut", None, None),
    };
    json!({
        "backend": name(told.backend, settings),
        "hedge": told.is_hedge,
        "began_seconds": told.began.as_secs_f64(),
        "head_seconds": seconds(told.head),
        "first_content_seconds": seconds(told.first_content),
        "ended_seconds": told.end.as_ref().map(|(at, _)| at.as_secs_f64()),
        "outcome": outcome,
        "class": class,
        "reason": reason,
        "prompt_tokens": told.tokens.map(|(input, _)| input),
        "completion_tokens": told.tokens.map(|(_, output)| output),
    })
}
