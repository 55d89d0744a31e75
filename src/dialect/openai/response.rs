//! Whole replies: checked to be JSON and of the right shape, read for usage, repaired only where the type needs it.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::normal::Normaliser;
use super::quirks::Quirks;
use super::{embeddings, failure_in_reply};
use crate::chat::{Endpoint, Failure, FailureClass, Lexer, Usage};
use crate::dialect::{Ask, Whole};

const CHOICES: &[u8] = br#""choices""#;
const DATA: &[u8] = br#""data""#;
const ERROR: &[u8] = br#""error""#;
const USAGE: &[u8] = br#""usage""#;
const KEYS: [&[u8]; 4] = [CHOICES, DATA, ERROR, USAGE];

/// What the gateway reads of a reply; everything else is only checked to be JSON.
#[derive(Default)]
struct Peek {
    has_choices: bool,
    has_data: bool,
    has_error: bool,
    usage: Option<Usage>,
}

impl Peek {
    fn of(body: &[u8]) -> Option<Self> {
        let mut peek = Self::default();
        let mut usage = None;
        let mut seen = [false; KEYS.len()];
        let mut lexer = Lexer::new(body);
        let crossed = lexer.object(|lexer, key| {
            let key = &body[key];
            let known = KEYS.iter().position(|known| *known == key);
            // Readers may take one or the other of a key that comes twice or is written in another way: neither passes.
            if known.is_some_and(|known| std::mem::replace(&mut seen[known], true)) || key.contains(&b'\\') {
                return Err(lexer.error("a key comes twice, or has escapes"));
            }
            let Some(known) = known else { return lexer.value().map(drop) };
            if KEYS[known] == CHOICES && lexer.peek() == Some(b'[') {
                return lexer.array(|lexer| lexer.value().map(|_| peek.has_choices = true));
            }
            let place = lexer.value()?;
            match KEYS[known] {
                DATA => peek.has_data = &body[place] != b"null",
                ERROR => peek.has_error = &body[place] != b"null",
                USAGE => usage = Some(place),
                _ => {}
            }
            Ok(())
        });
        crossed.and_then(|()| lexer.end()).ok()?;
        // What cannot be read is estimated, as what is missing.
        peek.usage = usage.and_then(|place| Usage::read(&body[place]).ok().flatten());
        Some(peek)
    }
}

/// Checks and, where needed, repairs a whole reply.
///
/// # Errors
/// `Malformed`, or the failure that an error object means.
pub fn decode(quirks: &Quirks, ask: &Ask<'_>, body: Bytes) -> Result<Whole, Failure> {
    let peek = Peek::of(&body).ok_or_else(|| malformed(&body))?;
    let complete = match ask.endpoint {
        Endpoint::Chat | Endpoint::Completions => peek.has_choices,
        Endpoint::Embeddings => peek.has_data,
        Endpoint::Passthrough => true,
    };
    if peek.has_error || !complete {
        if let Some(failure) = failure_in_reply(&tree(&body)?) {
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
            let tree = tree(&body)?;
            if let Some(failure) = failure_in_reply(&tree) {
                return Err(failure);
            }
            let repaired = Normaliser::new(ask).whole(tree);
            let usage = usage.or_else(|| repaired.get("usage").and_then(|usage| Usage::deserialize(usage).ok()));
            let body = serde_json::to_vec(&repaired).map(Bytes::from).map_err(|_| malformed(&[]))?;
            Ok(whole(body, usage))
        }
        Endpoint::Chat | Endpoint::Completions | Endpoint::Passthrough => Ok(whole(body, usage)),
    }
}

fn whole(body: Bytes, usage: Option<Usage>) -> Whole {
    Whole { body, usage, keepsakes: Vec::new() }
}

fn tree(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|_| malformed(body))
}

fn malformed(body: &[u8]) -> Failure {
    let was_cut = serde_json::from_slice::<IgnoredAny>(body).is_err_and(|error| error.is_eof());
    let what = if was_cut { "the provider's reply was cut before its end" } else { "the provider's reply is not JSON" };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_for_what_decides_about_it() {
        let peek = |body: &str| Peek::of(body.as_bytes()).map(|peek| (peek.has_choices, peek.has_data, peek.has_error));
        for (body, seen) in [
            (r#"{"id":"x","choices":[{"a":[1,{"choices":[]}]}],"usage":null}"#, Some((true, false, false))),
            (r#" { "choices" : [ ] , "data" : null , "error" : null } "#, Some((false, false, false))),
            (r#"{"choices":{"0":1},"data":[],"error":{"message":"no"}}"#, Some((false, true, true))),
            (r#"{"choices":null,"error":"no"}"#, Some((false, false, true))),
            (r#"{"choices":[1]} x"#, None),
            (r#"{"choices":[1]"#, None),
            (r#"{"choices":[1],"usage":"none"}"#, Some((true, false, false))),
            (r#"[{"choices":[1]}]"#, None),
            (r#"{"error":{"message":"no"},"error":null,"choices":[1]}"#, None),
            (r#"{"\u0065rror":{"message":"no"},"choices":[1]}"#, None),
            (r#"{"choices":[1],"choices":[]}"#, None),
            ("", None),
        ] {
            assert_eq!(peek(body), seen, "{body}");
        }
        let usage = Peek::of(br#"{"usage":{"prompt_tokens":7,"completion_tokens":2.0}}"#).and_then(|peek| peek.usage).unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (7, 2));
    }

    #[test]
    fn a_reply_that_was_cut_is_told_from_one_that_is_no_json() {
        assert!(malformed(br#"{"choices":[{"message":"#).message.contains("was cut before its end"));
        assert!(malformed(b"<html>").message.contains("is not JSON"));
    }
}
