//! A whole reply of the Messages API as a reply of the OpenAI API.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::failure_of;
use crate::chat::request::Text;
use crate::chat::{Failure, FailureClass, FinishReason, Keepsake, Piece, Sink as _, Usage, count};
use crate::dialect::openai::ReplyWriter;
use crate::dialect::{Ask, Whole, literal, stringified};

/// A message.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_details: Option<StopDetails<'a>>,
    #[serde(default)]
    pub(super) usage: Option<NativeUsage>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

/// Why a refusal was made.
#[derive(Deserialize)]
pub(super) struct StopDetails<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) explanation: Option<&'a RawValue>,
}

/// A block; which fields are there depends on its type.
#[derive(Deserialize)]
pub(super) struct Block<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) text: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) thinking: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) signature: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) citations: Option<Vec<Citation<'a>>>,
}

/// Where a text comes from.
#[derive(Deserialize)]
pub(super) struct Citation<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) url: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    pub(super) title: Option<&'a RawValue>,
}

/// Token counts; any may be missing or null.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct NativeUsage {
    #[serde(default, deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    output_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct CacheCreation {
    #[serde(default, deserialize_with = "count")]
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "count")]
    thinking_tokens: Option<u64>,
}

impl NativeUsage {
    /// Takes over what a later report knows; counts are totals, so they are never added.
    pub(super) fn update(&mut self, later: Self) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.cache_creation_input_tokens = later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
        self.output_tokens_details = later.output_tokens_details.or(self.output_tokens_details);
    }

    /// The counts in the gateway's terms: input includes what was read from or written to the cache.
    pub(super) fn usage(self) -> Usage {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let written = self.cache_creation_input_tokens.unwrap_or(0);
        Usage {
            prompt_tokens: self.input_tokens.unwrap_or(0).saturating_add(cached).saturating_add(written),
            completion_tokens: self.output_tokens.unwrap_or(0),
            cached_tokens: cached,
            cache_write_tokens: written,
            cache_write_1h_tokens: self.cache_creation.and_then(|made| made.ephemeral_1h_input_tokens).unwrap_or(0),
            reasoning_tokens: self.output_tokens_details.and_then(|details| details.thinking_tokens).unwrap_or(0),
            estimated: false,
        }
    }
}

/// Translates a whole reply.
///
/// # Errors
/// `Malformed`, or the failure that an error object means.
pub fn decode(ask: &Ask<'_>, body: &Bytes) -> Result<Whole, Failure> {
    let malformed = |what: &str| Failure::new(FailureClass::Malformed, format!("{what} ({} bytes)", body.len()));
    let message: Message<'_> = serde_json::from_slice(body).map_err(|error| match error.is_eof() {
        true => malformed("the provider's reply was cut before its end"),
        false => malformed("the provider's reply is not a message"),
    })?;
    if message.kind.as_deref() == Some("error") {
        return Err(failure_of(body));
    }
    let Some(content) = message.content else {
        return Err(malformed("the provider's reply has no result in it"));
    };
    let mut writer = ReplyWriter::new(ask);
    writer.identify(literal(message.id).unwrap_or(ask.id), literal(message.model).unwrap_or_default());
    let mut calls = 0;
    let mut thinking: Vec<&str> = Vec::new();
    let mut first_call = None;
    let mut annotations = Vec::new();
    for raw in &content {
        let block: Block<'_> = serde_json::from_str(raw.get()).map_err(|_| malformed("the provider's reply has a bad block"))?;
        match &*block.kind {
            "text" => {
                writer.piece(0, &Piece::Text(block.text.map_or("\"\"", RawValue::get)));
                annotations.extend(block.citations.iter().flatten().filter_map(annotation));
            }
            "thinking" | "redacted_thinking" => {
                if let Some(text) = block.thinking {
                    writer.piece(0, &Piece::Reasoning(text.get()));
                }
                thinking.push(raw.get());
            }
            "tool_use" => {
                let id = block.id.map_or("\"\"", RawValue::get);
                first_call.get_or_insert_with(|| crate::chat::unquote(id.as_bytes()).unwrap_or_default().into_owned());
                writer.piece(
                    0,
                    &Piece::Call {
                        index: calls,
                        id: Cow::Borrowed(id),
                        name: Cow::Borrowed(block.name.map_or("\"\"", RawValue::get)),
                        arguments: Cow::Owned(stringified(block.input.map_or("{}", RawValue::get))),
                        signature: None,
                    },
                );
                calls += 1;
            }
            _ => {}
        }
    }
    if !thinking.is_empty() {
        writer.piece(0, &Piece::ThinkingBlocks(&format!("[{}]", thinking.join(","))));
    }
    if !annotations.is_empty() {
        writer.piece(0, &Piece::Annotations(format!("[{}]", annotations.join(","))));
    }
    let stop = message.stop_reason.as_deref();
    if let Some(explanation) =
        message.stop_details.as_ref().and_then(|details| details.explanation).filter(|_| stop == Some("refusal"))
    {
        writer.piece(0, &Piece::Refusal(explanation.get()));
    }
    writer.piece(0, &finish(stop));
    let usage = message.usage.map(NativeUsage::usage);
    let keepsakes = keepsake(first_call, ask.model, &thinking);
    Ok(Whole { body: writer.finish(usage.as_ref()), usage, keepsakes })
}

/// A citation that has an address, in the form of the OpenAI API.
pub(super) fn annotation(citation: &Citation<'_>) -> Option<String> {
    let url = citation.url?.get();
    let title = citation.title.map_or("\"\"", RawValue::get);
    Some(format!(
        "{{\"type\":\"url_citation\",\"url_citation\":{{\"url\":{url},\"title\":{title},\"start_index\":0,\"end_index\":0}}}}"
    ))
}

/// The thinking that must come back with the calls it led to.
pub(super) fn keepsake(first_call: Option<String>, model: &str, thinking: &[&str]) -> Vec<Keepsake> {
    match first_call {
        Some(call) if !thinking.is_empty() => vec![Keepsake::new(call, model, &format!("[{}]", thinking.join(",")))],
        _ => Vec::new(),
    }
}

/// The end of a choice; a reason that the OpenAI API does not have is kept beside.
pub(super) fn finish(stop_reason: Option<&str>) -> Piece<'static> {
    let (reason, is_exact) = match stop_reason {
        Some("end_turn" | "stop_sequence") => (FinishReason::Stop, true),
        Some("max_tokens") => (FinishReason::Length, true),
        Some("tool_use") => (FinishReason::ToolCalls, true),
        Some("refusal") => (FinishReason::ContentFilter, false),
        Some("model_context_window_exceeded" | "compaction") => (FinishReason::Length, false),
        None => (FinishReason::Stop, true),
        Some(_) => (FinishReason::Stop, false),
    };
    let native = stop_reason.filter(|_| !is_exact).map(|word| Cow::Owned(serde_json::Value::from(word).to_string()));
    Piece::Finish { reason, native }
}
