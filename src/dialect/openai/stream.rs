//! The streamed reply as a state machine: bytes in, events for the client out; holds the event in progress and one as a pattern.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::failure_in_reply;
use super::normal::Normaliser;
use super::pattern::{self, Pattern, Texts};
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
    out: Ready,
    has_content: bool,
    done: bool,
    usage: Option<Usage>,
    content_events: u64,
    /// Events that say only more of the same pass without being read.
    pattern: Pattern,
}

/// Events for the client. There is one at most, nearly always, and it needs no buffer.
#[derive(Default)]
struct Ready {
    next: Option<Bytes>,
    /// Empty while there is no next.
    later: VecDeque<Bytes>,
}

impl Ready {
    fn push(&mut self, event: Bytes) {
        if self.next.is_none() {
            self.next = Some(event);
        } else {
            self.later.push_back(event);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let event = self.next.take()?;
        self.next = self.later.pop_front();
        Some(event)
    }
}

/// Whether a chunk has parts that the gateway must read; crossing it also proves that it is JSON.
#[derive(Default)]
struct Skim {
    has_usage: bool,
    has_error: bool,
    /// The texts that decide about neither. Once there is content, nothing else is read in them either: see [`Relay::pass`].
    texts: Texts,
}

impl Skim {
    fn over(data: &[u8]) -> Result<Self, JsonError> {
        let mut skim = Self::default();
        let mut lexer = Lexer::new(data);
        lexer.object::<JsonError>(|lexer, key| {
            if matches!(&data[key.clone()], b"\"choices\"" | b"\"obfuscation\"") {
                return lexer.value_with_texts(&mut |text| pattern::note(&mut skim.texts, text)).map(drop);
            }
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
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
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
            out: Ready::default(),
            has_content: false,
            done: false,
            usage: None,
            content_events: 0,
            pattern: Pattern::default(),
        }
    }

    /// Takes bytes of the provider in; what they yield is fetched with [`Self::pop`].
    ///
    /// # Errors
    /// The failure that an error event means, or `Malformed`. The relay must not be fed afterwards.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), Failure> {
        // What fits is exactly one event.
        if !self.done && self.splitter.is_between_events() && self.pattern.fits(&chunk) {
            self.more(chunk);
            return Ok(());
        }
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
        self.out.pop()
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
        if self.pattern.fits(&event) {
            self.more(event);
            return Ok(());
        }
        let Some(data) = sse::data(&event) else {
            // A comment keeps the client's connection alive as well as ours. An event without data would break the official
            // clients.
            if self.has_content && sse::is_bare(&event) {
                self.out.push(event);
            }
            return Ok(());
        };
        if data.trim_ascii() == DONE {
            return self.end();
        }
        if data.trim_ascii().is_empty() {
            return Ok(());
        }
        match self.normaliser {
            Some(_) => self.repair(&data),
            None if sse::is_bare(&event) => self.pass(&event, &data),
            None => self.pass(&sse::event(&data), &data),
        }
    }

    /// More of what there was before.
    fn more(&mut self, event: Bytes) {
        self.content_events += 1;
        self.out.push(event);
    }

    /// Same dialect: the event passes as it came, read only where it may matter.
    fn pass(&mut self, event: &Bytes, data: &[u8]) -> Result<(), Failure> {
        let skim = Skim::over(data).map_err(|_| unreadable())?;
        if self.has_content && !skim.has_usage && !skim.has_error {
            self.pattern.learn(event, data, &skim.texts);
            self.more(event.clone());
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
        if let Some(usage) = peek.usage.filter(|usage| usage.get().starts_with('{')) {
            // What cannot be read is estimated, as what is missing.
            self.usage = Usage::read(usage.get().as_bytes()).ok().flatten().or(self.usage);
            if choices.is_empty() && !self.include_usage {
                return Ok(());
            }
        }
        self.content_events += u64::from(!choices.is_empty());
        self.out.push(event.clone());
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
        self.out.push(sse::event(&bytes));
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
            for chunk in last {
                self.out.push(sse::event(chunk.to_string().as_bytes()));
            }
        }
        if !self.has_content {
            return Err(Failure::new(FailureClass::Malformed, "the provider's stream ended without any content"));
        }
        self.done = true;
        self.out.push(sse::event(DONE));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(content: &str, finish: &str, padding: &str) -> Vec<u8> {
        let content = Value::from(content);
        format!(
            r#"{{"id":"c1","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{{"content":{content}}},"finish_reason":{finish}}}],"usage":null,"obfuscation":"{padding}"}}"#
        )
        .into_bytes()
    }

    fn learned(data: &[u8]) -> Pattern {
        let mut pattern = Pattern::default();
        pattern.learn(&sse::event(data), data, &Skim::over(data).unwrap().texts);
        pattern
    }

    #[test]
    fn events_with_other_texts_fit_and_all_others_are_read() {
        let pattern = learned(&chunk("Hello", "null", "x9"));
        for (content, padding) in [("", ""), ("wörld\n\"quoted\" \\ \u{2028}", "abcdef"), ("\"},\"usage\":{\"a\":1}", "")] {
            assert!(pattern.fits(&sse::event(&chunk(content, "null", padding))), "{content}");
        }
        let plain = String::from_utf8(chunk("a", "null", "")).unwrap();
        for other in [
            String::from_utf8(chunk("a", "\"stop\"", "")).unwrap(),
            plain.replace("\"usage\":null", "\"usage\":{\"prompt_tokens\":1}"),
            plain.replace("\"obfuscation\":\"\"", "\"obfuscation\":\"\",\"error\":{}"),
            plain.replace("chat.completion.chunk", "error"),
            plain.replace("\"content\":\"a\"", "\"content\":\"a\"\""),
            plain.replace("\"content\":\"a\"", "\"content\":\"a\\\""),
            plain.replace("\"content\":\"a\"", "\"content\":1"),
            format!("{plain} "),
            plain[..plain.len() - 1].to_owned(),
        ] {
            assert!(!pattern.fits(&sse::event(other.as_bytes())), "{other}");
        }
        assert!(!pattern.fits(b""));
        assert!(!Pattern::default().fits(b"data: {}\n\n"));
    }

    #[test]
    fn a_stream_of_ever_new_shapes_is_not_learned_for_ever() {
        let mut pattern = Pattern::default();
        for number in 0..100 {
            let data = format!(r#"{{"choices":["{number}"],"created":{number}}}"#);
            pattern.learn(&sse::event(data.as_bytes()), data.as_bytes(), &Skim::over(data.as_bytes()).unwrap().texts);
        }
        assert!(pattern.fits(b"data: {\"choices\":[\"x\"],\"created\":15}\n\n"));
        assert!(!pattern.fits(b"data: {\"choices\":[\"x\"],\"created\":99}\n\n"));
    }

    fn relay() -> Relay {
        Relay {
            splitter: Splitter::new(EVENT_LIMIT),
            normaliser: None,
            include_usage: true,
            done_required: true,
            out: Ready::default(),
            has_content: false,
            done: false,
            usage: None,
            content_events: 0,
            pattern: Pattern::default(),
        }
    }

    #[test]
    fn usage_errors_and_faults_are_seen_behind_events_that_fit() {
        let alike: Vec<u8> = (0..50).flat_map(|n| sse::event(&chunk(&n.to_string(), "null", &"x".repeat(n)))).collect();
        let fed = |rest: &[u8]| {
            let mut relay = relay();
            let stream = [&alike, rest].concat();
            let result = relay.feed(Bytes::from(stream.clone()));
            let out: Vec<u8> = std::iter::from_fn(|| relay.pop()).flatten().collect();
            (relay, result, out == stream)
        };
        assert_eq!(fed(b"").0.pattern.lessons(), 1, "all others fit");
        let (relay, result, same) =
            fed(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n");
        assert!(result.is_ok() && same && relay.is_done());
        assert_eq!(relay.content_events(), 50);
        assert_eq!(relay.usage().map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((7, 9)));
        let (relay, result, _) = fed(b"data: {\"error\":{\"message\":\"overloaded\",\"code\":503}}\n\n");
        assert!(result.is_err() && !relay.is_done());
        for odd in ["[]", "\"many\"", "{\"prompt_tokens\":\"7\"}", "{\"prompt_tokens\":[7]}"] {
            let (relay, result, _) = fed(format!("data: {{\"choices\":[],\"usage\":{odd}}}\n\ndata: [DONE]\n\n").as_bytes());
            assert!(result.is_ok() && relay.is_done(), "{odd}: {result:?}");
        }
        let (_, result, _) = fed(&sse::event(&chunk("a", "null", "\\")));
        assert_eq!(result.unwrap_err().class, FailureClass::Malformed);
    }

    #[test]
    fn nothing_but_data_and_comments_reaches_the_client() {
        let content = String::from_utf8(chunk("a", "null", "")).unwrap();
        let (head, tail) = content.split_at(content.find(",\"choices\"").unwrap());
        let mut relay = relay();
        let sent = format!(
            "id: 5\nevent: message\ndata: {content}\n\nevent: ping\n\n: note\n\nretry: 3\n\nid: 6\ndata: {content}\n\n\
             event: x\r\ndata: {head}\r\ndata: {tail}\r\n\r\ndata: [DONE]\n\n"
        );
        relay.feed(Bytes::from(sent)).unwrap();
        let out: Vec<u8> = std::iter::from_fn(|| relay.pop()).flatten().collect();
        let expected = format!("data: {content}\n\n: note\n\ndata: {content}\n\ndata: {head}\ndata: {tail}\n\ndata: [DONE]\n\n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert!(relay.is_done());
    }

    #[test]
    fn an_event_whose_last_line_feed_is_still_to_come_is_no_pattern() {
        let data = chunk("a", "null", "");
        let event = [b"data: ", &data[..], b"\r\n\r"].concat();
        let mut pattern = Pattern::default();
        pattern.learn(&event, &data, &Skim::over(&data).unwrap().texts);
        assert!(!pattern.fits(&event));
    }

    proptest! {
        #[test]
        fn wherever_a_stream_is_cut_it_passes_as_it_came(
            first in ".{1,30}", more in prop::collection::vec(".{0,30}", 1..12), end in prop_oneof![Just("\n\n"), Just("\r\n\r\n"), Just("\r\r")],
            whole in any::<bool>(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            // Without any content a stream is refused.
            let texts: Vec<String> = [first].into_iter().chain(more).collect();
            let events: Vec<Vec<u8>> = texts.iter()
                .map(|text| [b"data: ", &chunk(text, "null", "x")[..], end.as_bytes()].concat())
                .chain([b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7}}\n\n".to_vec(), b"data: [DONE]\n\n".to_vec()])
                .collect();
            let stream = events.concat();
            // Between the events, or anywhere.
            let mut places: Vec<usize> = if whole {
                events.iter().scan(0, |at, event| { *at += event.len(); Some(*at) }).collect()
            } else {
                cuts.iter().map(|cut| cut.index(stream.len())).collect()
            };
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let mut relay = relay();
            let mut out = Vec::new();
            for pair in places.windows(2) {
                relay.feed(Bytes::copy_from_slice(&stream[pair[0]..pair[1]])).unwrap();
                out.extend(std::iter::from_fn(|| relay.pop()).flatten());
            }
            // A line feed cut off from its CR goes to the next event, where it means nothing.
            let seen = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(['\r', '\n'], "");
            prop_assert_eq!(seen(&out), seen(&stream));
            prop_assert!(end != "\n\n" || out == stream);
            prop_assert_eq!(relay.content_events(), texts.len() as u64);
            prop_assert_eq!(relay.usage().map(|usage| usage.prompt_tokens), Some(7));
            prop_assert!(relay.is_done());
        }

        #[test]
        fn what_fits_would_have_been_read_as_valid_and_without_news(
            first in ".{0,20}", second in ".{0,40}", at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..3,
        ) {
            let pattern = learned(&chunk(&first, "null", "x"));
            let mut event = sse::event(&chunk(&second, "null", "yy")).to_vec();
            let at = at.index(event.len());
            match cut {
                0 => event[at] = byte,
                1 => { event.remove(at); }
                _ => event.insert(at, byte),
            }
            if pattern.fits(&event) {
                let data = sse::data(&event);
                prop_assert!(data.is_some());
                let skim = Skim::over(&data.unwrap());
                prop_assert!(skim.is_ok_and(|skim| !skim.has_usage && !skim.has_error));
            }
        }
    }
}
