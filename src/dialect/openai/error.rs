//! Error bodies in every shape that hosts of this dialect send, classified once.

use serde_json::Value;

use crate::chat::{Failure, FailureClass};
use crate::dialect::{ErrorReply, plain_text, shorten};

/// Codes and types that mean money, whatever the status.
/// Source: OpenAI error code guide, read 2026-11-22.
const BILLING: &[&str] = &[
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
];

/// Codes and types that mean the model is not there; `1500` is Mistral's.
const MODEL_UNKNOWN: &[&str] = &["model_not_found", "DeploymentNotFound", "invalid_model", "1500", "model_decommissioned"];

/// The failure that an error reply means.
pub fn failure(reply: &ErrorReply<'_>) -> Failure {
    let mut failure = match serde_json::from_slice::<Value>(reply.body) {
        Ok(body) => read(&body),
        Err(_) => Failure::new(FailureClass::Server, plain_text(reply.body)),
    };
    let status = if is_too_long(reply.status, &failure) { 400 } else { reply.status };
    if status != reply.status {
        failure.code = Some("context_length_exceeded".into());
    }
    failure.class = classify(status, &failure);
    failure.status = Some(status);
    failure.retry_after = reply.retry_after;
    if failure.message.is_empty() {
        failure.message = format!("the provider answered with status {}", reply.status);
    }
    failure
}

/// The failure that an error object inside a successful reply or stream means; `None` when there is none.
pub fn failure_in_reply(body: &Value) -> Option<Failure> {
    let error = [body.get("error"), body.pointer("/x_groq/error")].into_iter().flatten().find(|error| is_truthy(error));
    let flat = body.get("object").and_then(Value::as_str) == Some("error");
    let mut failure = match error {
        Some(Value::String(text)) => Failure::new(FailureClass::Server, shorten(text)),
        Some(error) => read(error),
        None if flat => read(body),
        // Mistral's way to say that the generation failed.
        None if has_failed_choice(body) => Failure::new(FailureClass::Server, "the provider ended the reply with an error"),
        None => return None,
    };
    let status = failure.code.as_deref().and_then(|code| code.parse::<u16>().ok()).filter(|code| (400..600).contains(code));
    failure.class = classify(status.unwrap_or(500), &failure);
    Some(failure)
}

fn has_failed_choice(body: &Value) -> bool {
    let choices = body.get("choices").and_then(Value::as_array).into_iter().flatten();
    choices.into_iter().any(|choice| choice.get("finish_reason").and_then(Value::as_str) == Some("error"))
}

fn is_truthy(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false)) && value.as_str() != Some("")
}

/// Together refuses a prompt beyond the model's context with 403: it says nothing about the key.
fn is_too_long(status: u16, failure: &Failure) -> bool {
    let message = failure.message.to_ascii_lowercase();
    status == 403 && message.contains("token") && message.contains("context")
}

fn classify(status: u16, failure: &Failure) -> FailureClass {
    let says = |words: &[&str]| [&failure.code, &failure.kind].into_iter().flatten().any(|word| words.contains(&word.as_str()));
    match status {
        _ if says(BILLING) => FailureClass::Billing,
        400 | 403 | 404 if says(MODEL_UNKNOWN) => FailureClass::ModelUnknown,
        401 | 403 => FailureClass::Credential,
        402 => FailureClass::Billing,
        404 | 410 => FailureClass::ModelUnknown,
        // A conflict, a failed dependency and a request that the provider itself has ended: another try may do.
        408 | 409 | 424 | 499 => FailureClass::Server,
        // Mistral's words for want of capacity, which it means as 503.
        429 if failure.code.as_deref() == Some("3505") => FailureClass::Overloaded,
        429 => FailureClass::RateLimited,
        // 498 is Groq's capacity_exceeded, 529 the overload status of Anthropic and Together.
        498 | 503 | 529 => FailureClass::Overloaded,
        400..=499 => FailureClass::Caller,
        500..=599 => FailureClass::Server,
        _ => FailureClass::Malformed,
    }
}

/// Reads `{"error":{...}}`, `{"error":"text"}`, flat objects, `{"detail":...}` and `{"statusCode":..,"message":..}`.
fn read(body: &Value) -> Failure {
    let inner = body.get("error").unwrap_or(body);
    let text = |name: &str| match inner.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let message = match inner {
        Value::String(text) => text.clone(),
        _ => inner.get("message").or_else(|| inner.get("detail")).or_else(|| body.get("detail")).map(flatten).unwrap_or_default(),
    };
    let mut failure = Failure::new(FailureClass::Server, shorten(&message));
    failure.kind = text("type");
    failure.param = text("param");
    failure.code = text("code");
    failure
}

/// Text of a message that may be an object or a list of validation details.
fn flatten(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(flatten).collect::<Vec<_>>().join("; "),
        Value::Object(entry) => {
            if let Some(detail) = entry.get("detail").or_else(|| entry.get("message")) {
                return flatten(detail);
            }
            let place = entry.get("loc").and_then(Value::as_array).map(|parts| {
                parts
                    .iter()
                    .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                    .collect::<Vec<_>>()
                    .join(".")
            });
            match (place, entry.get("msg").and_then(Value::as_str)) {
                (Some(place), Some(reason)) => format!("{place}: {reason}"),
                (None, Some(reason)) => reason.to_owned(),
                _ => value.to_string(),
            }
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_shape_is_classified() {
        let cases: &[(u16, &str, FailureClass, &str)] = &[
            (
                400,
                r#"{"error":{"message":"bad","type":"invalid_request_error","param":"messages","code":null}}"#,
                FailureClass::Caller,
                "bad",
            ),
            (404, r#"{"error":{"message":"no","code":"model_not_found"}}"#, FailureClass::ModelUnknown, "no"),
            (
                400,
                r#"{"object":"error","message":"Invalid model: x","type":"invalid_model","code":"1500"}"#,
                FailureClass::ModelUnknown,
                "Invalid model: x",
            ),
            (401, r#"{"detail":"Unauthorized"}"#, FailureClass::Credential, "Unauthorized"),
            (401, r#"{"statusCode":401,"message":"denied"}"#, FailureClass::Credential, "denied"),
            (401, r#"{"error":"Unauthorized"}"#, FailureClass::Credential, "Unauthorized"),
            (
                429,
                r#"{"error":{"message":"pay","type":"insufficient_quota","code":"credit_balance_exhausted"}}"#,
                FailureClass::Billing,
                "pay",
            ),
            (429, r#"{"message":"Requests rate limit exceeded"}"#, FailureClass::RateLimited, "Requests rate limit exceeded"),
            (
                429,
                r#"{"object":"error","message":"Service tier capacity exceeded for this model.","code":"3505"}"#,
                FailureClass::Overloaded,
                "Service tier capacity exceeded for this model.",
            ),
            (
                422,
                r#"{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","user"],"msg":"Extra inputs are not permitted"}]},"code":null}"#,
                FailureClass::Caller,
                "body.user: Extra inputs are not permitted",
            ),
            (400, r#"{"error":{"message":"m","type":"BadRequestError","param":null,"code":400}}"#, FailureClass::Caller, "m"),
            (498, r#"{"error":{"message":"busy"}}"#, FailureClass::Overloaded, "busy"),
            (403, r#"{"error":{"message":"token count above context"}}"#, FailureClass::Caller, "token count above context"),
            (403, r#"{"error":{"message":"no access","code":"model_not_found"}}"#, FailureClass::ModelUnknown, "no access"),
            (403, r#"{"error":{"message":"the token is not allowed"}}"#, FailureClass::Credential, "the token is not allowed"),
            (409, r#"{"error":{"message":"conflict"}}"#, FailureClass::Server, "conflict"),
            (410, r#"{"error":{"message":"gone"}}"#, FailureClass::ModelUnknown, "gone"),
            (424, r#"{"error":{"message":"dependency"}}"#, FailureClass::Server, "dependency"),
            (502, "<html>bad gateway</html>", FailureClass::Server, "the provider answered with status 502"),
            (529, "overloaded", FailureClass::Overloaded, "overloaded"),
            (302, "", FailureClass::Malformed, "the provider answered with status 302"),
        ];
        for (status, body, class, message) in cases {
            let found = failure(&ErrorReply { status: *status, retry_after: None, body: body.as_bytes() });
            assert_eq!(found.class, *class, "{body}");
            assert_eq!(found.message, *message, "{body}");
        }
    }

    #[test]
    fn an_error_inside_a_reply_is_found_and_null_is_none() {
        for text in [
            r#"{"error":{"message":"x"}}"#,
            r#"{"error":"x"}"#,
            r#"{"object":"error","message":"x"}"#,
            r#"{"choices":[],"x_groq":{"error":"x"}}"#,
            r#"{"choices":[],"error":null,"x_groq":{"error":"x"}}"#,
        ] {
            assert_eq!(failure_in_reply(&serde_json::from_str(text).unwrap()).unwrap().message, "x", "{text}");
        }
        assert!(failure_in_reply(&serde_json::json!({ "error": null, "choices": [] })).is_none());
    }
}
