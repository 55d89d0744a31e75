//! Errors of Google's APIs, by status or inside a stream, in an object or in a list of one, classified once.

use std::time::Duration;

use serde_json::Value;

use crate::chat::{Failure, FailureClass};
use crate::dialect::{ErrorReply, blames_a_file, own_words, plain_text, shorten};

/// The failure that an error reply means.
pub fn failure(reply: &ErrorReply<'_>) -> Failure {
    let tree: Value = serde_json::from_slice(reply.body).unwrap_or(Value::Null);
    let mut failure = match error_in(&tree) {
        Some(error) => classify(reply.status, error),
        None => Failure::new(class_of(reply.status, ""), plain_text(reply.body)),
    };
    failure.status = Some(told(reply.status, failure.class));
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
    failure.status = Some(told(status, failure.class));
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

/// The status by which others know it: 499 is Google's for a call that it gave up, and a file that the key does not reach is
/// no fault of the client's own key.
fn told(status: u16, class: FailureClass) -> u16 {
    match (status, class) {
        (408 | 499, _) => 504,
        (403, FailureClass::Caller) => 400,
        _ => status,
    }
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
    let is_bad_key =
        details().any(|detail| detail["reason"] == "API_KEY_INVALID") || own_words(message).contains("api key not valid");
    let quotas = || {
        let violations = details().flat_map(|detail| detail["violations"].as_array().into_iter().flatten());
        violations.filter_map(|violation| violation["quotaId"].as_str()).filter(|quota| quota.contains("PerDay"))
    };
    let is_files = matches!((status, name), (400, "FAILED_PRECONDITION") | (403 | 404, _)) && blames_a_file(message);
    let class = match status {
        400 if is_bad_key => FailureClass::Credential,
        _ if is_files => FailureClass::Caller,
        // The quota of a day is used up like money: nothing that waits for seconds helps.
        429 if quotas().any(|quota| !quota.contains("PerModel")) => FailureClass::Billing,
        _ => class_of(status, name),
    };
    let mut failure = Failure::new(class, shorten(message));
    failure.retry_after = details().find_map(|detail| delay(detail["retryDelay"].as_str()?));
    if status == 429 && class == FailureClass::RateLimited && quotas().next().is_some() {
        // That of one model is up to the model.
        failure.retry_after = Some(failure.retry_after.unwrap_or_default().max(USED_UP));
        failure.code = Some("insufficient_quota".into());
    }
    let text = message.to_lowercase();
    if status == 400 && (text.contains("input token count exceeds") || text.contains("exceeds the maximum number of tokens")) {
        failure.code = Some("context_length_exceeded".into());
    }
    failure
}

/// How long a model is left alone whose quota of the day is used up.
const USED_UP: Duration = Duration::from_secs(3_600);
/// Longest delay that is believed.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A delay such as `21.5s`.
fn delay(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds.ceil()).ok().map(|delay| delay.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(status: u16, name: &str, message: &str, details: &Value) -> Failure {
        let body = json!({ "error": { "code": status, "status": name, "message": message, "details": details } }).to_string();
        failure(&ErrorReply { status, retry_after: None, body: body.as_bytes() })
    }

    #[test]
    fn what_one_request_refers_to_speaks_against_nobody() {
        let none = json!([]);
        for (status, name, message, class, told) in [
            (404, "NOT_FOUND", "The object gs://b/x.png was not found.", FailureClass::Caller, 404),
            (403, "PERMISSION_DENIED", "You do not have permission to access the File abc.", FailureClass::Caller, 400),
            (403, "PERMISSION_DENIED", "denied: 'storage.objects.get'", FailureClass::Caller, 400),
            (400, "FAILED_PRECONDITION", "The File abc is not in an ACTIVE state.", FailureClass::Caller, 400),
            (400, "FAILED_PRECONDITION", "Gemini is not free in your country.", FailureClass::Billing, 400),
            (404, "NOT_FOUND", "models/gemini-x is not found for API version v1beta.", FailureClass::ModelUnknown, 404),
            (403, "PERMISSION_DENIED", "Your API key was reported as leaked.", FailureClass::Credential, 403),
            (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", FailureClass::Credential, 400),
            (400, "INVALID_ARGUMENT", "Decoding failed for \"API key not valid\"", FailureClass::Caller, 400),
        ] {
            let found = read(status, name, message, &none);
            assert_eq!((found.class, found.status), (class, Some(told)), "{message}");
        }
    }

    #[test]
    fn a_days_quota_of_one_model_is_that_models_and_no_delay_is_endless() {
        let quota = |id: &str, delay: &str| json!([{ "violations": [{ "quotaId": id }] }, { "retryDelay": delay }]);
        let found = read(429, "RESOURCE_EXHAUSTED", "quota", &quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "20s"));
        assert_eq!((found.class, found.retry_after), (FailureClass::RateLimited, Some(USED_UP)));
        let found = read(429, "RESOURCE_EXHAUSTED", "quota", &quota("RequestsPerDayPerProject", "20s"));
        assert_eq!(found.class, FailureClass::Billing);
        for endless in ["864000000s", "1e18s"] {
            let found = read(429, "RESOURCE_EXHAUSTED", "quota", &quota("RequestsPerMinute", endless));
            assert_eq!((found.class, found.retry_after), (FailureClass::RateLimited, Some(LONGEST)));
        }
    }
}
