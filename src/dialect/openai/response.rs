//! Whole replies: checked to be JSON and of the right shape, read for usage, repaired only where the type needs it.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use super::normal::Normaliser;
use super::quirks::Quirks;
use super::{embeddings, failure_in_reply};
use crate::chat::{Endpoint, Failure, FailureClass, Lexer, Usage};
use crate::dialect::{Ask, Whole};

/// The parts of a reply that the gateway reads; everything else passes unread.
#[derive(Deserialize)]
struct Peek<'a> {
    choices: Option<Vec<IgnoredAny>>,
    data: Option<IgnoredAny>,
    usage: Option<Usage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Checks and, where needed, repairs a whole reply.
///
/// # Errors
/// `Malformed`, or the failure that an error object means.
pub fn decode(quirks: &Quirks, ask: &Ask<'_>, body: Bytes) -> Result<Whole, Failure> {
    let peek: Peek<'_> = serde_json::from_slice(&body).map_err(|error| malformed(&body, &error))?;
    let complete = match ask.endpoint {
        Endpoint::Chat | Endpoint::Completions => peek.choices.as_ref().is_some_and(|choices| !choices.is_empty()),
        Endpoint::Embeddings => peek.data.is_some(),
        Endpoint::Passthrough => true,
    };
    if peek.error.is_some() || !complete {
        let tree: Value = serde_json::from_slice(&body).map_err(|error| malformed(&body, &error))?;
        if let Some(failure) = failure_in_reply(&tree) {
            return Err(failure);
        }
        if !complete {
            return Err(Failure::new(FailureClass::Malformed, "the provider's reply has no result in it"));
        }
    }
    let usage = peek.usage;
    match ask.endpoint {
        Endpoint::Embeddings => Ok(whole(embeddings::reencode(ask, body)?, usage)),
        Endpoint::Chat | Endpoint::Completions if quirks.normalise => {
            let tree: Value = serde_json::from_slice(&body).map_err(|error| malformed(&body, &error))?;
            if let Some(failure) = failure_in_reply(&tree) {
                return Err(failure);
            }
            let repaired = Normaliser::new(ask).whole(tree);
            let usage = usage.or_else(|| repaired.get("usage").and_then(|usage| Usage::deserialize(usage).ok()));
            let body = serde_json::to_vec(&repaired).map(Bytes::from).map_err(|error| malformed(&[], &error))?;
            Ok(whole(body, usage))
        }
        Endpoint::Chat | Endpoint::Completions | Endpoint::Passthrough => Ok(whole(body, usage)),
    }
}

fn whole(body: Bytes, usage: Option<Usage>) -> Whole {
    Whole { body, usage, keepsakes: Vec::new() }
}

fn malformed(body: &[u8], error: &serde_json::Error) -> Failure {
    let what = if error.is_eof() { "the provider's reply was cut before its end" } else { "the provider's reply is not JSON" };
    Failure::new(FailureClass::Malformed, format!("{what} ({} bytes)", body.len()))
}

/// The last usage object in the tail of a reply that was passed through unread.
pub fn usage_in_tail(tail: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Tokens {
        #[serde(alias = "input_tokens", default)]
        prompt_tokens: u64,
        #[serde(alias = "output_tokens", default)]
        completion_tokens: u64,
    }
    let at = memchr::memmem::rfind(tail, b"\"usage\":{").map(|at| at + 8).or_else(|| {
        let at = memchr::memmem::rfind(tail, b"\"usage\": {")?;
        Some(at + 9)
    })?;
    let place = Lexer::new(&tail[at..]).value().ok()?;
    let tokens: Tokens = serde_json::from_slice(&tail[at..][place]).ok()?;
    Some(Usage { prompt_tokens: tokens.prompt_tokens, completion_tokens: tokens.completion_tokens, ..Usage::default() })
}
