//! Errors of Google's APIs, by status or inside a stream, in an object or in a list of one, classified once.

use std::time::Duration;

use serde_json::Value;

use crate::chat::{Failure, FailureClass};
use crate::dialect::{ErrorReply, plain_text, shorten};

/// The failure that an error reply means.
pub fn failure(reply: &ErrorReply<'_>) -> Failure {
    let tree: Value = serde_json::from_slice(reply.body).unwrap_or(Value::Null);
    let mut failure = match error_in(&tree) {
        Some(error) => classify(reply.status, error),
        None => Failure::new(class_of(reply.status, ""), plain_text(reply.body)),
    };
    failure.status = Some(told(reply.status));
    failure.retry_after = reply.retry_after.or(failure.retry_after);
    if failure.message.is_empty() {
        failure.message = format!("the provider answered with status {}", reply.status);
    }
    failure
}

/// The failure that an error object inside a stream, or in a reply with status 200, means; `None` when there is none.
pub fn failure_in(body: &[u8]) -> Option<Failure> {
    let tree: Value = serde_json::from_slice(body).ok()?;
    let error = error_in(&tree)?;
    let status = status_of(error);
    let mut failure = classify(status, error);
    failure.status = Some(told(status));
    Some(failure)
}

/// The error object; bodies may be a list that holds one.
fn error_in(tree: &Value) -> Option<&Value> {
    let body = tree.as_array().and_then(|list| list.first()).unwrap_or(tree);
    body.get("error").filter(|error| error.is_object() || error.is_string())
}

/// The status that an error means, from its number or its name; both may be missing, and the number may be a text.
fn status_of(error: &Value) -> u16 {
    let number = error["code"].as_u64().or_else(|| error["code"].as_str().and_then(|text| text.parse().ok()));
    if let Some(number) = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number >= 300) {
        return number;
    }
    match error["status"].as_str().or_else(|| error["code"].as_str()).unwrap_or_default() {
        "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => 400,
        "UNAUTHENTICATED" => 401,
        "PERMISSION_DENIED" => 403,
        "NOT_FOUND" => 404,
        "RESOURCE_EXHAUSTED" => 429,
        "UNAVAILABLE" => 503,
        "DEADLINE_EXCEEDED" | "CANCELLED" => 504,
        _ => 500,
    }
}

/// The status by which others know it: 499 is Google's for a call that it gave up.
fn told(status: u16) -> u16 {
    if matches!(status, 408 | 499) { 504 } else { status }
}

fn class_of(status: u16, name: &str) -> FailureClass {
    match status {
        400 if name == "FAILED_PRECONDITION" => FailureClass::Billing,
        401 | 403 => FailureClass::Credential,
        402 => FailureClass::Billing,
        404 => FailureClass::ModelUnknown,
        408 | 499 => FailureClass::Server,
        429 => FailureClass::RateLimited,
        503 => FailureClass::Overloaded,
        400..=498 => FailureClass::Caller,
        500..=599 => FailureClass::Server,
        _ => FailureClass::Malformed,
    }
}

fn classify(status: u16, error: &Value) -> Failure {
    let name = error["status"].as_str().unwrap_or_default();
    let message = error["message"].as_str().or_else(|| error.as_str()).unwrap_or_default();
    let details = || error["details"].as_array().into_iter().flatten();
    let is_bad_key = details().any(|detail| detail["reason"] == "API_KEY_INVALID") || message.contains("API key not valid");
    let is_daily = details()
        .flat_map(|detail| detail["violations"].as_array().into_iter().flatten())
        .any(|violation| violation["quotaId"].as_str().is_some_and(|quota| quota.contains("PerDay")));
    let class = match status {
        400 if is_bad_key => FailureClass::Credential,
        // The quota of a day is used up like money: nothing that waits for seconds helps.
        429 if is_daily => FailureClass::Billing,
        _ => class_of(status, name),
    };
    let mut failure = Failure::new(class, shorten(message));
    failure.retry_after = details().find_map(|detail| delay(detail["retryDelay"].as_str()?));
    let text = message.to_lowercase();
    if status == 400 && (text.contains("input token count exceeds") || text.contains("exceeds the maximum number of tokens")) {
        failure.code = Some("context_length_exceeded".into());
    }
    failure
}

/// A delay such as `21.5s`.
fn delay(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds.ceil()).ok()
}
