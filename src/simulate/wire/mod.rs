//! The wire formats of the simulated provider. Each reads what a request asks from its native form and writes down what
//! [`super::answer`] says; none decides what is said.

mod anthropic;
mod google;
mod openai;

use std::time::Duration;

use actix_http::header::{HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::chat::Endpoint;
use crate::settings::{Simulated, SimulatedDialect};

/// A request as it comes in.
pub(super) struct Asked<'a> {
    /// What is asked for, as the OpenAI dialect has it.
    pub endpoint: Endpoint,
    /// Path and query: where the other dialects say what is asked for.
    pub target: &'a str,
    /// Body.
    pub body: &'a [u8],
}

/// A composed reply.
pub(super) enum Composed {
    /// One JSON body.
    Whole(Bytes),
    /// Events of a stream, whatever ends it included.
    Events(Vec<Event>),
}

/// An event of a stream.
pub(super) struct Event {
    /// The event as it is sent.
    pub bytes: Bytes,
    /// Whether the time of a token passes before it.
    pub paced: bool,
}

/// What the answers of one request have in common.
pub(super) struct Turn<'a> {
    /// Behaviour.
    pub settings: &'a Simulated,
    /// Number of the request, from 1.
    pub number: u64,
}

/// An error to report.
pub(super) struct Trouble<'a> {
    /// Number of the request, from 1.
    pub number: u64,
    /// Status code.
    pub status: u16,
    /// The wait that the client is asked for.
    pub retry_after: Option<Duration>,
    /// What is wrong.
    pub message: &'a str,
}

/// One wire format.
pub(super) trait Wire {
    /// Whether a request is for an endpoint that the format defines; others are answered alike in all of them.
    fn knows(&self, asked: &Asked<'_>) -> bool;

    /// Composes the reply to a request.
    ///
    /// # Errors
    /// The request is not understood, and why.
    fn answer(&self, asked: &Asked<'_>, request: &Value, turn: &Turn<'_>) -> Result<Composed, &'static str>;

    /// The body of an error.
    fn error(&self, trouble: &Trouble<'_>) -> Value;

    /// An event of a stream.
    fn frame(&self, data: &Value) -> Bytes {
        crate::dialect::sse::event(data.to_string().as_bytes())
    }

    /// An event that breaks off within its JSON.
    fn malformed(&self) -> &'static [u8];

    /// The list of models.
    fn models(&self) -> Value;

    /// The header that identifies a reply.
    fn identity(&self, _number: u64) -> Option<(HeaderName, HeaderValue)> {
        None
    }

    /// Whether the header `Retry-After` says how long to wait.
    fn has_retry_header(&self) -> bool {
        true
    }
}

/// The wire format of a dialect.
pub(super) fn of(dialect: SimulatedDialect) -> &'static dyn Wire {
    match dialect {
        SimulatedDialect::OpenAi => &openai::OpenAi,
        SimulatedDialect::Anthropic => &anthropic::Anthropic,
        SimulatedDialect::Google => &google::Google,
    }
}

/// Composes the reply to a request.
///
/// # Errors
/// The request is not understood, and why.
pub(super) fn compose(wire: &dyn Wire, asked: &Asked<'_>, turn: &Turn<'_>) -> Result<Composed, &'static str> {
    if !wire.knows(asked) {
        return Ok(whole(&json!({ "object": "simulated", "request": turn.number })));
    }
    let request = serde_json::from_slice::<Value>(asked.body).map_err(|_| "the body is not JSON")?;
    wire.answer(asked, &request, turn)
}

fn whole(body: &Value) -> Composed {
    Composed::Whole(Bytes::from(body.to_string()))
}

/// The items of a list; none when it is absent.
fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A text among the fields of an object; empty when it is absent.
fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of a list of parts, each with a field `text`.
fn texts(parts: &[Value]) -> String {
    parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a request to a provider that answers in six words.
    pub(super) fn asked(dialect: SimulatedDialect, target: &str, request: &Value) -> Result<Composed, &'static str> {
        let settings = Simulated { tokens: 6, dialect, ..Simulated::default() };
        let body = request.to_string();
        let asked = Asked { endpoint: Endpoint::of_path(target), target, body: body.as_bytes() };
        compose(of(dialect), &asked, &Turn { settings: &settings, number: 1 })
    }

    /// A whole reply.
    pub(super) fn body(composed: Composed) -> Value {
        match composed {
            Composed::Whole(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Composed::Events(_) => panic!("a stream came"),
        }
    }

    /// The data of a stream's events that are JSON.
    pub(super) fn data(composed: Composed) -> Vec<Value> {
        let Composed::Events(events) = composed else { panic!("a whole reply came") };
        let data = |event: &Event| crate::dialect::sse::data(&event.bytes).map(|data| data.into_owned());
        events.iter().filter_map(data).filter_map(|data| serde_json::from_slice(&data).ok()).collect()
    }

    const DIALECTS: [SimulatedDialect; 3] = [SimulatedDialect::OpenAi, SimulatedDialect::Anthropic, SimulatedDialect::Google];

    #[test]
    fn every_dialect_says_the_same_words() {
        let question = "is anybody there";
        let messages = json!([{ "role": "user", "content": question }]);
        let requests = [
            ("/v1/chat/completions", json!({ "messages": messages }), "/choices/0/message/content"),
            ("/v1/messages", json!({ "messages": messages, "max_tokens": 9 }), "/content/0/text"),
            (
                "/v1beta/models/m:generateContent",
                json!({ "contents": [{ "role": "user", "parts": [{ "text": question }] }] }),
                "/candidates/0/content/parts/0/text",
            ),
        ];
        for (dialect, (target, request, place)) in DIALECTS.into_iter().zip(requests) {
            let answer = body(asked(dialect, target, &request).unwrap());
            assert_eq!(answer.pointer(place), Some(&json!("Simulated answer to: is anybody there")), "{answer}");
        }
    }

    #[test]
    fn every_dialect_has_errors_of_its_own() {
        let wait = Some(Duration::from_millis(1_500));
        let error = |dialect, status| of(dialect).error(&Trouble { number: 7, status, retry_after: wait, message: "no" });
        assert_eq!(error(SimulatedDialect::OpenAi, 429)["error"]["code"], "rate_limit_exceeded");
        let anthropic = error(SimulatedDialect::Anthropic, 529);
        let expected = json!({ "type": "overloaded_error", "message": "no" });
        assert_eq!((&anthropic["type"], &anthropic["error"]), (&json!("error"), &expected));
        let google = error(SimulatedDialect::Google, 429);
        assert_eq!(google["error"]["status"], "RESOURCE_EXHAUSTED");
        assert_eq!(google["error"]["details"][0]["retryDelay"], "1.5s");
        for dialect in DIALECTS {
            assert_eq!(of(dialect).has_retry_header(), dialect != SimulatedDialect::Google);
            let malformed = crate::dialect::sse::data(of(dialect).malformed()).unwrap();
            assert!(serde_json::from_slice::<Value>(&malformed).is_err());
        }
    }
}
