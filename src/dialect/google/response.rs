//! Replies of `generateContent`: a whole one and a chunk of a stream have the same shape, so one reader serves both.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use smallvec::SmallVec;

use super::error::failure_in;
use crate::chat::request::Text;
use crate::chat::{Failure, FailureClass, FinishReason, Keepsake, Piece, Sink, Usage, count, unquote};
use crate::dialect::openai::ReplyWriter;
use crate::dialect::{Ask, EventDecoder, Whole, literal, stringified};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply<'a> {
    #[serde(borrow, default)]
    candidates: Option<SmallVec<[Candidate<'a>; 1]>>,
    #[serde(borrow, default)]
    prompt_feedback: Option<PromptFeedback<'a>>,
    #[serde(default)]
    usage_metadata: Option<UsageMetadata>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    model_version: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    response_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    finish_message: Option<Text<'a>>,
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    logprobs_result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    grounding_metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    parts: Option<SmallVec<[Part<'a>; 2]>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    text: Option<&'a RawValue>,
    #[serde(default)]
    thought: Option<bool>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    thought_signature: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<FunctionCall<'a>>,
    #[serde(borrow, default)]
    inline_data: Option<InlineData<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InlineData<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    mime_type: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    data: Option<&'a RawValue>,
}

impl<'a> InlineData<'a> {
    /// Media type and data of a picture, as literals.
    fn picture(&self) -> Option<(&'a str, &'a str)> {
        let (media, data) = (self.mime_type?.get(), self.data?.get());
        media.starts_with("\"image/").then_some((media, data))
    }
}

#[derive(Deserialize)]
struct FunctionCall<'a> {
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    args: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback<'a> {
    #[serde(borrow, default)]
    block_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    block_reason_message: Option<Text<'a>>,
}

/// Token counts; zeros are left out on the wire.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct UsageMetadata {
    #[serde(deserialize_with = "count")]
    prompt_token_count: Option<u64>,
    #[serde(deserialize_with = "count")]
    candidates_token_count: Option<u64>,
    #[serde(deserialize_with = "count")]
    thoughts_token_count: Option<u64>,
    #[serde(deserialize_with = "count")]
    tool_use_prompt_token_count: Option<u64>,
    #[serde(deserialize_with = "count")]
    cached_content_token_count: Option<u64>,
    #[serde(deserialize_with = "count")]
    total_token_count: Option<u64>,
}

impl UsageMetadata {
    /// The counts in the gateway's terms: output includes thinking, unless the provider has counted it in already.
    pub(super) fn usage(self) -> Usage {
        let prompt = self.prompt_token_count.unwrap_or(0).saturating_add(self.tool_use_prompt_token_count.unwrap_or(0));
        let said = self.candidates_token_count.unwrap_or(0);
        let thought = self.thoughts_token_count.unwrap_or(0);
        let is_included = said > 0 && self.total_token_count == Some(prompt.saturating_add(said));
        Usage {
            prompt_tokens: prompt,
            completion_tokens: if is_included { said } else { said.saturating_add(thought) },
            cached_tokens: self.cached_content_token_count.unwrap_or(0),
            reasoning_tokens: thought,
            ..Usage::default()
        }
    }
}

/// What a candidate has said so far.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// The last signature on a text: clients that gather a stream would join several into one.
    signature: Option<String>,
    calls: u32,
    images: u32,
    has_content: bool,
    finished: bool,
}

/// Decodes one stream; a whole reply is its only event.
pub struct Events {
    request: String,
    model: String,
    reply: String,
    candidates: Vec<Progress>,
    usage: Option<UsageMetadata>,
    keepsakes: Vec<Keepsake>,
}

/// Signatures of one reply that are kept.
const MAX_KEPT: usize = 512;
/// More candidates than the API gives.
const MAX_CANDIDATES: u32 = 64;

impl Events {
    /// Starts for one request.
    pub fn new(ask: &Ask<'_>) -> Self {
        Self {
            request: ask.id.to_owned(),
            model: ask.model.to_owned(),
            reply: String::new(),
            candidates: Vec::new(),
            usage: None,
            keepsakes: Vec::new(),
        }
    }

    fn take(&mut self, reply: &Reply<'_>, sink: &mut dyn Sink) -> Result<(), Failure> {
        if self.reply.is_empty()
            && let Some(id) = literal(reply.response_id)
        {
            id.clone_into(&mut self.reply);
            sink.identify(id, literal(reply.model_version).unwrap_or_default());
        }
        // Counts are totals: the last report holds.
        self.usage = reply.usage_metadata.or(self.usage);
        for (place, candidate) in reply.candidates.iter().flatten().enumerate() {
            let index = candidate.index.unwrap_or_else(|| u32::try_from(place).unwrap_or(0)).min(MAX_CANDIDATES);
            self.candidate(index, candidate, sink)?;
        }
        if let Some(feedback) = &reply.prompt_feedback
            && let Some(reason) = feedback.block_reason.as_deref()
            && !self.candidates.iter().any(|progress| progress.finished)
        {
            self.blocked(reason, feedback.block_reason_message.as_deref(), sink);
        }
        Ok(())
    }

    /// The prompt itself was refused: there is no candidate, or none that has ended.
    fn blocked(&mut self, reason: &str, message: Option<&str>, sink: &mut dyn Sink) {
        if self.candidates.is_empty() {
            self.candidates.push(Progress::default());
        }
        for (index, progress) in self.candidates.iter_mut().enumerate() {
            let index = u32::try_from(index).unwrap_or(0);
            if !std::mem::replace(&mut progress.has_content, true) {
                let words = message.map_or_else(|| format!("the prompt was blocked: {reason}"), str::to_owned);
                sink.piece(index, &Piece::Refusal(&Value::from(words).to_string()));
            }
            let native = Some(Cow::Owned(Value::from(reason).to_string()));
            sink.piece(index, &Piece::Finish { reason: FinishReason::ContentFilter, native });
            progress.finished = true;
        }
    }

    fn candidate(&mut self, index: u32, candidate: &Candidate<'_>, sink: &mut dyn Sink) -> Result<(), Failure> {
        let place = index as usize;
        if self.candidates.len() <= place {
            self.candidates.resize(place + 1, Progress::default());
        }
        for part in candidate.content.iter().filter_map(|content| content.parts.as_ref()).flatten() {
            self.part(index, part, sink);
        }
        if let Some(list) = candidate.logprobs_result.and_then(logprobs) {
            sink.piece(index, &Piece::Logprobs(list));
        }
        if let Some(list) = candidate.grounding_metadata.and_then(sources) {
            sink.piece(index, &Piece::Annotations(list));
        }
        let progress = &mut self.candidates[place];
        let Some(reason) = candidate.finish_reason.as_deref().filter(|_| !progress.finished) else { return Ok(()) };
        if is_malformed(reason) && !progress.has_content {
            let why = candidate.finish_message.as_deref().unwrap_or("the model's answer could not be used");
            let failure = Failure::new(FailureClass::Server, format!("{reason}: {why}"));
            return Err(Failure { is_excused: true, ..failure });
        }
        progress.finished = true;
        if let Some(signature) = progress.signature.take() {
            sink.piece(index, &Piece::Signature(&signature));
        }
        sink.piece(index, &finish(reason, progress.calls > 0));
        Ok(())
    }

    fn part(&mut self, choice: u32, part: &Part<'_>, sink: &mut dyn Sink) {
        let progress = &mut self.candidates[choice as usize];
        if let Some(call) = &part.function_call {
            let number = progress.calls;
            progress.calls += 1;
            progress.has_content = true;
            let id: Cow<'_, str> = match call.id.filter(|id| id.get().len() > 2) {
                Some(id) => Cow::Borrowed(id.get()),
                None => Cow::Owned(format!("\"{}\"", minted(&self.request, &self.reply, choice, number))),
            };
            if self.keepsakes.len() < MAX_KEPT
                && let Some(signature) = part.thought_signature.and_then(|text| unquote(text.get().as_bytes()))
            {
                let call = unquote(id.as_bytes()).unwrap_or_default().into_owned();
                self.keepsakes.push(Keepsake::new(call, &self.model, &signature));
            }
            sink.piece(
                choice,
                &Piece::Call {
                    index: number,
                    id,
                    name: Cow::Borrowed(call.name.map_or("\"\"", RawValue::get)),
                    arguments: Cow::Owned(arguments(call.args)),
                    signature: part.thought_signature.map(RawValue::get),
                },
            );
            return;
        }
        // What a model draws while it thinks are drafts.
        if let Some((media, data)) =
            part.inline_data.as_ref().filter(|_| part.thought != Some(true)).and_then(InlineData::picture)
        {
            let index = progress.images;
            progress.images += 1;
            progress.has_content = true;
            let signature = part.thought_signature.map(RawValue::get);
            sink.piece(choice, &Piece::Image { index, media, data, signature });
            return;
        }
        if let Some(text) = part.text.filter(|text| text.get() != "\"\"") {
            progress.has_content = true;
            match part.thought {
                Some(true) => sink.piece(choice, &Piece::Reasoning(text.get())),
                _ => sink.piece(choice, &Piece::Text(text.get())),
            }
        }
        if let Some(signature) = part.thought_signature {
            progress.signature = Some(signature.get().to_owned());
        }
    }
}

impl EventDecoder for Events {
    fn event(&mut self, data: &[u8], sink: &mut dyn Sink) -> Result<bool, Failure> {
        let reply: Reply<'_> = match serde_json::from_slice(data) {
            Ok(reply) => reply,
            // Errors come wrapped in a list now and then.
            Err(_) => {
                return Err(failure_in(data).unwrap_or_else(|| {
                    Failure::new(FailureClass::Malformed, "the provider's stream holds an event that cannot be read")
                }));
            }
        };
        if reply.error.is_some()
            && let Some(failure) = failure_in(data)
        {
            return Err(failure);
        }
        self.take(&reply, sink)?;
        // Late chunks may follow the last reason, so only the end of the bytes ends the stream.
        Ok(false)
    }

    fn end(&mut self, sink: &mut dyn Sink) -> bool {
        let any = self.candidates.iter().any(|progress| progress.finished);
        for (index, progress) in self.candidates.iter_mut().enumerate().filter(|(_, progress)| any && !progress.finished) {
            progress.finished = true;
            sink.piece(u32::try_from(index).unwrap_or(0), &finish("STOP", progress.calls > 0));
        }
        any
    }

    fn usage(&self) -> Option<Usage> {
        self.usage.map(UsageMetadata::usage)
    }

    fn keepsakes(&mut self) -> Vec<Keepsake> {
        std::mem::take(&mut self.keepsakes)
    }
}

/// Translates a whole reply.
pub(super) fn decode(ask: &Ask<'_>, body: &Bytes) -> Result<Whole, Failure> {
    let malformed = |what: &str| Failure::new(FailureClass::Malformed, format!("{what} ({} bytes)", body.len()));
    let reply: Reply<'_> = serde_json::from_slice(body).map_err(|error| match error.is_eof() {
        true => malformed("the provider's reply was cut before its end"),
        false => failure_in(body).unwrap_or_else(|| malformed("the provider's reply is not a result")),
    })?;
    if reply.error.is_some()
        && let Some(failure) = failure_in(body)
    {
        return Err(failure);
    }
    let mut writer = ReplyWriter::new(ask);
    let mut events = Events::new(ask);
    events.take(&reply, &mut writer)?;
    if events.candidates.is_empty() {
        return Err(malformed("the provider's reply has no result in it"));
    }
    // Even the reason may be missing in a whole reply.
    for (index, progress) in events.candidates.iter().enumerate().filter(|(_, progress)| !progress.finished) {
        writer.piece(u32::try_from(index).unwrap_or(0), &finish("STOP", progress.calls > 0));
    }
    let usage = events.usage();
    Ok(Whole { body: writer.finish(usage.as_ref()), usage, keepsakes: events.keepsakes })
}

/// An id for a call that came without one: no two calls of one history may share theirs.
fn minted(request: &str, reply: &str, candidate: u32, number: u32) -> String {
    let digest = Sha256::digest(format!("{request}\n{reply}\n{candidate}\n{number}").as_bytes());
    let letters: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("call_{letters}")
}

/// A call's arguments as a literal of JSON in text.
fn arguments(args: Option<&RawValue>) -> String {
    let raw = args.map_or("{}", RawValue::get);
    // The API likes to print its JSON over several lines; within a string there is no line's end.
    match raw.contains('\n') {
        true => stringified(&raw.lines().map(str::trim).collect::<String>()),
        false => stringified(raw),
    }
}

/// Reasons that say that the model failed and not that it ended.
fn is_malformed(reason: &str) -> bool {
    matches!(
        reason,
        "MALFORMED_FUNCTION_CALL"
            | "UNEXPECTED_TOOL_CALL"
            | "MALFORMED_RESPONSE"
            | "MISSING_THOUGHT_SIGNATURE"
            | "TOO_MANY_TOOL_CALLS"
    )
}

/// The end of a choice; a reason that the OpenAI API does not have is kept beside.
fn finish(reason: &str, has_calls: bool) -> Piece<'static> {
    let (word, is_exact) = match reason {
        "STOP" if has_calls => (FinishReason::ToolCalls, true),
        "STOP" | "FINISH_REASON_UNSPECIFIED" => (FinishReason::Stop, true),
        "MAX_TOKENS" => (FinishReason::Length, true),
        "CONTINUATION" => (FinishReason::Length, false),
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "LANGUAGE"
        | "MODEL_ARMOR"
        | "ESCALATION"
        | "OTHER"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "IMAGE_OTHER"
        | "NO_IMAGE"
        | "PUP_LIMITED_DISABLED" => (FinishReason::ContentFilter, false),
        _ => (FinishReason::Stop, false),
    };
    let native = (!is_exact).then(|| Cow::Owned(Value::from(reason).to_string()));
    Piece::Finish { reason: word, native }
}

/// Log probabilities in the form of the OpenAI API.
fn logprobs(result: &RawValue) -> Option<String> {
    let tree: Value = serde_json::from_str(result.get()).ok()?;
    let tops = tree["topCandidates"].as_array();
    let entry = |token: &Value| {
        let text = token["token"].as_str().unwrap_or_default();
        serde_json::json!({ "token": text, "logprob": token["logProbability"].as_f64().unwrap_or(0.0), "bytes": text.as_bytes() })
    };
    let chosen = tree["chosenCandidates"].as_array()?.iter().enumerate().map(|(place, token)| {
        let mut out = entry(token);
        let top = tops.and_then(|tops| tops.get(place)).and_then(|top| top["candidates"].as_array());
        out["top_logprobs"] = top.into_iter().flatten().map(entry).collect();
        out
    });
    Some(Value::Array(chosen.collect()).to_string())
}

/// Sources of the answer in the form of the OpenAI API.
fn sources(metadata: &RawValue) -> Option<String> {
    let tree: Value = serde_json::from_str(metadata.get()).ok()?;
    let chunks = tree["groundingChunks"].as_array()?;
    let all: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| {
            let (url, title) = (chunk["web"]["uri"].as_str()?, chunk["web"]["title"].as_str().unwrap_or_default());
            let citation = serde_json::json!({ "url": url, "title": title, "start_index": 0, "end_index": 0 });
            Some(serde_json::json!({ "type": "url_citation", "url_citation": citation }))
        })
        .collect();
    (!all.is_empty()).then(|| Value::Array(all).to_string())
}
