//! The operator's test prompt: one real request to one backend, whatever its circuits say, with raw timings.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::acts::Act;
use super::{Problem, Refused, object, refuse, whole};
use crate::actors::Dispatch;
use crate::actors::slots::Slots;
use crate::actors::tally::Counting;
use crate::attempt::{Answer, AnswerBody, Call, End, LiveBody};
use crate::chat::Usage;
use crate::http::Gateway;
use crate::monitor::Steps;
use crate::settings::Backend;
use crate::story::Outcome;

/// What is asked when the operator says nothing else.
const PROMPT: &str = "Say hello in five words.";
/// Longest wait for the whole answer.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of the answer's text that are shown.
const SHOWN: usize = 4 << 10;

/// A test prompt.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TestPrompt {
    /// What to ask.
    prompt: String,
    /// Model to ask for; without it, the backend's own.
    #[schema(pattern = "^[ -~]{1,256}$")]
    model: Option<String>,
    /// Whether to ask for a stream.
    stream: bool,
}

impl Default for TestPrompt {
    fn default() -> Self {
        Self { prompt: PROMPT.to_owned(), model: None, stream: true }
    }
}

/// What became of a test prompt.
#[derive(Serialize, ToSchema)]
struct TestResult {
    /// Which backend.
    backend: String,
    /// Id of the request.
    id: String,
    /// How it ended.
    outcome: Outcome,
    /// Status that a client would have got.
    status: u16,
    /// Why it failed.
    error: Option<String>,
    /// The model that was asked for upstream.
    model: Option<String>,
    /// Seconds to the first content.
    first_content_seconds: Option<f64>,
    /// Seconds to the end.
    total_seconds: f64,
    /// Output tokens per second after the first content.
    tokens_per_second: Option<f64>,
    /// Tokens.
    usage: Option<Usage>,
    /// The beginning of the answer's text.
    text: String,
    /// What happened.
    #[serde(flatten)]
    steps: Steps,
}

/// Sends a real request to one backend, even if it is drained or its circuit is open, and tells how long each phase took.
/// The provider may charge for it.
#[utoipa::path(
    post, path = "/admin/api/backends/{name}/test", tag = "acts", params(("name" = String, Path, description = "the backend")), request_body = Option<TestPrompt>,
    responses((status = 200, body = TestResult, description = "the result, also of a request that failed"), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 413, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn test(request: HttpRequest, body: Result<web::Bytes, actix_web::Error>) -> Result<HttpResponse, Refused> {
    let act = Act::begin(&request).await?;
    let body = whole(body)?;
    let prompt = match body.is_empty() {
        true => None,
        false if body.trim_ascii() == b"null" => None,
        false => object(&body).map(Some).map_err(|error| {
            let words = format!("the body is an object with `prompt`, `model` and `stream`: {error}");
            refuse(StatusCode::BAD_REQUEST, &words, "invalid_value")
        })?,
    };
    let prompt: TestPrompt = prompt.unwrap_or_default();
    // Whoever does not wait for the result has asked all the same.
    act.note(
        "test-requested",
        &json!({ "model": prompt.model.as_deref().map(|model| model.chars().take(64).collect::<String>()) }),
    );
    let result = ask(&act.visitor.gateway, &act.backend, &prompt).await?;
    let seconds = |time: Option<f64>| time.map(|time| (time * 1e3).round() / 1e3);
    act.note(
        "test",
        &json!({
            "outcome": result.outcome.word(),
            "first_content_seconds": seconds(result.first_content_seconds),
            "total_seconds": seconds(Some(result.total_seconds)),
            "error": result.error,
        }),
    );
    Ok(HttpResponse::Ok().json(result))
}

async fn ask(gateway: &Gateway, backend: &Backend, prompt: &TestPrompt) -> Result<TestResult, Refused> {
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the backend's pool is starting; ask again", "worker_gone");
    let slots = &gateway.slots;
    let pools = &gateway.shared.settings.pools;
    let pool = pools.iter().find(|pool| pool.implicit && pool.members == [backend.index]).ok_or_else(gone)?;
    let address = slots.pool(pool.index).ok_or_else(gone)?.clone();
    let call = call(slots, backend, prompt)
        .ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "`prompt` or `model` cannot be sent", "invalid_value"))?;
    let begun = Instant::now();
    let mut result = TestResult {
        backend: backend.name.to_string(),
        id: call.id.to_string(),
        outcome: Outcome::Failed,
        status: 200,
        error: None,
        model: None,
        first_content_seconds: None,
        total_seconds: 0.0,
        tokens_per_second: None,
        usage: None,
        text: String::new(),
        steps: Steps::default(),
    };
    let counting = Counting::begin(slots, pool.index);
    match address.send(Dispatch(Arc::clone(&call))).await {
        Err(_) => {
            counting.end(Outcome::Failed);
            return Err(gone());
        }
        Ok(Ok(answer)) => take(*answer, &mut result).await,
        Ok(Err(error)) => {
            let form = error.form();
            (result.status, result.error) = (form.status, Some(form.message));
        }
    }
    result.total_seconds = begun.elapsed().as_secs_f64();
    let rest = result.first_content_seconds.map(|first| result.total_seconds - first).filter(|rest| *rest > 0.01);
    result.tokens_per_second = match (rest, result.usage) {
        (Some(rest), Some(usage)) if prompt.stream => Some(usage.completion_tokens as f64 / rest),
        _ => None,
    };
    result.steps = Steps::of(&call.trail.trace(), "open", &gateway.shared.settings);
    counting.end(result.outcome);
    Ok(result)
}

/// The request: an operator's own, which asks the backend whatever is known of it.
fn call(slots: &Slots, backend: &Backend, prompt: &TestPrompt) -> Option<Arc<Call>> {
    let model = prompt.model.as_deref().unwrap_or_else(|| backend.usual_model());
    let body = json!({ "model": model, "stream": prompt.stream, "messages": [{ "role": "user", "content": prompt.prompt }] });
    slots.shared.own_call(format!("test-{:016x}", fastrand::u64(..)), &body, LIMIT, true)
}

/// Reads the answer to its end.
async fn take(answer: Answer, result: &mut TestResult) {
    result.model = Some(answer.model.to_string());
    result.first_content_seconds = Some(answer.first_content.as_secs_f64());
    result.status = answer.status.as_u16();
    result.usage = answer.usage;
    match answer.body {
        AnswerBody::Full(bytes) => {
            result.outcome = Outcome::Served;
            let whole: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            result.text = shown(whole["choices"][0]["message"]["content"].as_str().unwrap_or_default());
        }
        AnswerBody::Live(live) => read(live.take(), result).await,
    }
}

async fn read(mut live: LiveBody, result: &mut TestResult) {
    let mut bytes = Vec::new();
    while let Some(Ok(piece)) = live.next().await {
        // What is beyond is not shown, but read, for its time and its tokens.
        if bytes.len() < 16 * SHOWN {
            bytes.extend_from_slice(&piece);
        }
    }
    let (end, usage) = live.ending();
    (result.outcome, result.usage) = (end.outcome(), Some(usage));
    if let End::Truncated(class) | End::Failed(class) = end {
        result.error = Some(class.word().to_owned());
    }
    let text = String::from_utf8_lossy(&bytes);
    let chunks = text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let words: String = chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    result.text = shown(&words);
}

fn shown(text: &str) -> String {
    let end = (0..=SHOWN.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}
