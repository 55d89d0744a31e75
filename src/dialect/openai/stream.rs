//! The streamed reply as a state machine: bytes in, events for the client out; holds nothing but the event in progress.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::failure_in_reply;
use super::normal::Normaliser;
use super::quirks::Quirks;
use crate::chat::{Endpoint, Failure, FailureClass, JsonError, Lexer, Usage};
use crate::dialect::sse::{self, Splitter};
use crate::dialect::{Ask, EVENT_LIMIT};

pub(in crate::dialect) const DONE: &[u8] = b"[DONE]";

/// Relays one streamed reply.
pub struct Relay {
    splitter: Splitter,
    /// Present when events are repaired; absent when they pass as bytes.
    normaliser: Option<Box<Normaliser>>,
    include_usage: bool,
    done_required: bool,
    out: VecDeque<Bytes>,
    has_content: bool,
    done: bool,
    usage: Option<Usage>,
    content_events: u64,
}

/// Whether a chunk has parts that the gateway must read; crossing it also proves that it is JSON.
#[derive(Default)]
struct Skim {
    has_usage: bool,
    has_error: bool,
}

impl Skim {
    fn over(data: &[u8]) -> Result<Self, JsonError> {
        let mut skim = Self::default();
        let mut lexer = Lexer::new(data);
        lexer.object::<JsonError>(|lexer, key| {
            let value = lexer.value()?;
            match &data[key] {
                b"\"usage\"" => skim.has_usage = data[value.start] == b'{',
                b"\"error\"" => skim.has_error = &data[value] != b"null",
                // A flat error object says so here.
                b"\"object\"" => skim.has_error |= &data[value] == b"\"error\"",
                _ => {}
            }
            Ok(())
        })?;
        lexer.end()?;
        Ok(skim)
    }
}

/// The parts of a chunk that decide about first content, usage and errors.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow, default)]
    choices: Option<SmallVec<[PeekChoice<'a>; 1]>>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct PeekChoice<'a> {
    #[serde(borrow, default)]
    delta: Option<PeekDelta<'a>>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PeekDelta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
}

impl PeekChoice<'_> {
    fn has_content(&self) -> bool {
        let says = |value: &Option<&RawValue>| value.is_some_and(|value| !matches!(value.get(), "\"\"" | "[]" | "null"));
        let delta = self.delta.as_ref().is_some_and(|delta| {
            [
                delta.content,
                delta.reasoning,
                delta.reasoning_content,
                delta.refusal,
                delta.tool_calls,
                delta.function_call,
                delta.audio,
            ]
            .iter()
            .any(says)
        });
        delta || says(&self.text) || says(&self.finish_reason)
    }
}

impl Relay {
    /// Starts for one request.
    pub fn new(quirks: &Quirks, ask: &Ask<'_>) -> Self {
        let normalise = quirks.normalise && ask.endpoint != Endpoint::Passthrough;
        Self {
            splitter: Splitter::new(EVENT_LIMIT),
            normaliser: normalise.then(|| Box::new(Normaliser::new(ask))),
            include_usage: ask.scan.include_usage,
            done_required: quirks.done_required,
            out: VecDeque::new(),
            has_content: false,
            done: false,
            usage: None,
            content_events: 0,
        }
    }

    /// Takes bytes of the provider in; what they yield is fetched with [`Self::pop`].
    ///
    /// # Errors
    /// The failure that an error event means, or `Malformed`. The relay must not be fed afterwards.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), Failure> {
        let mut events: SmallVec<[Bytes; 4]> = SmallVec::new();
        let fed = self.splitter.feed(chunk, |event| events.push(event));
        for event in events {
            self.event(event)?;
        }
        fed.map_err(|error| Failure::new(FailureClass::Malformed, error.to_string()))
    }

    /// Ends the stream when the provider's bytes have ended.
    ///
    /// # Errors
    /// `Malformed` when the reply was cut before its end.
    pub fn finish(&mut self) -> Result<(), Failure> {
        if let Some(rest) = self.splitter.finish() {
            // Only the blank line is missing.
            self.event(Bytes::from([&rest[..], b"\n\n"].concat()))?;
        }
        if !self.done && !self.done_required && self.is_finished() {
            self.end()?;
        }
        if self.done {
            return Ok(());
        }
        Err(Failure::new(FailureClass::Malformed, "the provider's stream was cut before its end"))
    }

    /// The next bytes for the client.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// Whether the first content has come.
    pub fn has_content(&self) -> bool {
        self.has_content
    }

    /// Whether the last event has come.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Tokens, if reported so far.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Events with content so far, for estimates.
    pub fn content_events(&self) -> u64 {
        self.content_events
    }

    fn is_finished(&self) -> bool {
        self.normaliser.as_ref().is_some_and(|normaliser| normaliser.is_finished())
    }

    fn event(&mut self, event: Bytes) -> Result<(), Failure> {
        if self.done {
            return Ok(());
        }
        let Some(data) = sse::data(&event) else {
            // A comment keeps the client's connection alive as well as ours.
            if self.has_content {
                self.out.push_back(event);
            }
            return Ok(());
        };
        if data.trim_ascii() == DONE {
            return self.end();
        }
        // An event without data would break the official Python client.
        if data.trim_ascii().is_empty() {
            return Ok(());
        }
        match self.normaliser {
            Some(_) => self.repair(&data),
            None => self.pass(&event, &data),
        }
    }

    /// Same dialect: the event passes as it came, read only where it may matter.
    fn pass(&mut self, event: &Bytes, data: &[u8]) -> Result<(), Failure> {
        let skim = Skim::over(data).map_err(|_| unreadable())?;
        if self.has_content && !skim.has_usage && !skim.has_error {
            self.content_events += 1;
            self.out.push_back(event.clone());
            return Ok(());
        }
        if skim.has_error {
            let tree: Value = serde_json::from_slice(data).map_err(|_| unreadable())?;
            if let Some(failure) = failure_in_reply(&tree) {
                return Err(failure);
            }
        }
        let peek: Peek<'_> = serde_json::from_slice(data).map_err(|_| unreadable())?;
        let choices = peek.choices.unwrap_or_default();
        self.has_content |= choices.iter().any(PeekChoice::has_content);
        if let Some(usage) = peek.usage {
            self.usage = Some(usage);
            if choices.is_empty() && !self.include_usage {
                return Ok(());
            }
        }
        self.content_events += u64::from(!choices.is_empty());
        self.out.push_back(event.clone());
        Ok(())
    }

    /// Nearly the same dialect: the event is parsed and repaired.
    fn repair(&mut self, data: &[u8]) -> Result<(), Failure> {
        let tree: Value = serde_json::from_slice(data).map_err(|_| unreadable())?;
        if let Some(failure) = failure_in_reply(&tree) {
            return Err(failure);
        }
        let Some(normaliser) = &mut self.normaliser else {
            return Ok(());
        };
        let repaired = normaliser.chunk(tree);
        if let Some(usage) = &normaliser.usage {
            self.usage = Usage::deserialize(usage).ok();
        }
        let Some(mut chunk) = repaired else {
            return Ok(());
        };
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        let bytes = serde_json::to_vec(&chunk).map_err(|_| unreadable())?;
        if !self.has_content {
            let peek: Peek<'_> = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
            self.has_content = peek.choices.unwrap_or_default().iter().any(PeekChoice::has_content);
        }
        self.content_events += 1;
        self.out.push_back(sse::event(&bytes));
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        if let Some(normaliser) = &mut self.normaliser {
            let mut last = normaliser.missing_finishes();
            self.has_content |= !last.is_empty();
            if self.include_usage
                && let Some(usage) = normaliser.usage.take()
            {
                last.push(normaliser.usage_chunk(&usage));
            }
            self.out.extend(last.iter().map(|chunk| sse::event(chunk.to_string().as_bytes())));
        }
        if !self.has_content {
            return Err(Failure::new(FailureClass::Malformed, "the provider's stream ended without any content"));
        }
        self.done = true;
        self.out.push_back(sse::event(DONE));
        Ok(())
    }
}

fn unreadable() -> Failure {
    Failure::new(FailureClass::Malformed, "the provider's stream holds an event that is not a JSON object")
}

/// The typed event that ends a stream which fails after its first content.
pub fn error_event(message: &str, kind: &str, code: &str) -> Bytes {
    let error = serde_json::json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    sse::event(error.to_string().as_bytes())
}
