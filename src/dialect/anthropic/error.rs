//! Errors of the Messages API, by status or inside a stream, classified once.

use serde::Deserialize;

use crate::chat::{Failure, FailureClass};
use crate::dialect::{ErrorReply, blames_a_file, own_words, plain_text, shorten};

#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Inner,
}

#[derive(Default, Deserialize)]
struct Inner {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    error_code: Option<String>,
}

/// The failure that an error reply means.
pub fn failure(reply: &ErrorReply<'_>) -> Failure {
    let inner = match serde_json::from_slice::<Body>(reply.body) {
        Ok(body) => body.error,
        // The edge in front of the API answers in its own words.
        Err(_) => Inner { message: plain_text(reply.body), ..Inner::default() },
    };
    let mut failure = classify(reply.status, inner);
    failure.status = Some(reply.status);
    failure.retry_after = reply.retry_after;
    if failure.message.is_empty() {
        failure.message = format!("the provider answered with status {}", reply.status);
    }
    failure
}

/// The failure that an error event inside a stream, or an error in a reply with status 200, means.
pub(super) fn failure_of(event: &[u8]) -> Failure {
    let inner = serde_json::from_slice::<Body>(event).unwrap_or_default().error;
    let status = match inner.kind.as_str() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    };
    let mut failure = classify(status, inner);
    failure.status = Some(status);
    if failure.message.is_empty() {
        failure.message = "the provider reported an error without words".into();
    }
    failure
}

/// The failure in a reply with status 200 that should have been a stream; `None` when it holds no error.
pub fn failure_in(body: &[u8]) -> Option<Failure> {
    let tree: serde_json::Value = serde_json::from_slice(body).ok()?;
    (tree["type"] == "error").then(|| failure_of(body))
}

/// `anthropic-ratelimit-tokens-reset` and its like under OpenAI's names; a time becomes the wait until then.
pub fn rate_limit(name: &str, value: &str, now: u64) -> Option<(String, String)> {
    let (what, kind) = name.strip_prefix("anthropic-ratelimit-")?.rsplit_once('-')?;
    if !matches!(what, "requests" | "tokens") || !matches!(kind, "limit" | "remaining" | "reset") {
        return None;
    }
    let value = match kind {
        "reset" => {
            let until = humantime::parse_rfc3339_weak(value).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            format!("{}s", until.as_secs().saturating_sub(now))
        }
        _ => value.to_owned(),
    };
    Some((format!("x-ratelimit-{kind}-{what}"), value))
}

fn classify(status: u16, inner: Inner) -> Failure {
    let code = inner.details.and_then(|details| details.error_code);
    let text = own_words(&inner.message);
    let is_spent = code.as_deref().is_some_and(|code| code.contains("spend_limit"))
        || (matches!(status, 400 | 403 | 429) && (text.contains("credit balance is too low") || text.contains("spend limit")));
    let too_long = matches!(status, 400 | 413)
        && ["prompt is too long", "exceed context limit", "context window"].iter().any(|words| text.contains(words));
    let class = match status {
        _ if is_spent || inner.kind == "billing_error" => FailureClass::Billing,
        403 | 404 if blames_a_file(&inner.message) => FailureClass::Caller,
        // A key may have some models and not others.
        403 if text.contains("model") => FailureClass::ModelUnknown,
        401 | 403 => FailureClass::Credential,
        402 => FailureClass::Billing,
        404 => FailureClass::ModelUnknown,
        408 | 409 => FailureClass::Server,
        429 => FailureClass::RateLimited,
        503 | 529 => FailureClass::Overloaded,
        400..=499 => FailureClass::Caller,
        500..=599 => FailureClass::Server,
        _ => FailureClass::Malformed,
    };
    let mut failure = Failure::new(class, shorten(&inner.message));
    failure.kind = Some(inner.kind).filter(|kind| !kind.is_empty());
    failure.code = match class {
        // Clients know one word for it.
        FailureClass::Billing => None,
        _ if too_long => Some("context_length_exceeded".into()),
        _ => code,
    };
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_request_asks_for_takes_nobody_else_anything_away() {
        for (status, kind, message, class) in [
            (404, "not_found_error", "File not found: file_011", FailureClass::Caller),
            (404, "not_found_error", "model: claude-x", FailureClass::ModelUnknown),
            (403, "permission_error", "Your key has no access to the model claude-x", FailureClass::ModelUnknown),
            (403, "permission_error", "Your organization is not allowed", FailureClass::Credential),
            (400, "invalid_request_error", "Your credit balance is too low", FailureClass::Billing),
            (400, "invalid_request_error", "Tool 'spend limit' not found in provided tools", FailureClass::Caller),
        ] {
            let body = serde_json::json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string();
            let found = failure(&ErrorReply { status, retry_after: None, body: body.as_bytes() });
            assert_eq!(found.class, class, "{message}");
        }
    }
}
