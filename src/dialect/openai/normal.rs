//! Repairs replies of hosts that are nearly compatible: foreign finish reasons, reasoning under other names, repeated
//! roles and ids, missing identities, usage in odd places. One place for whole replies and chunks.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::chat::Endpoint;
use crate::dialect::Ask;

/// What a stream of one choice has sent so far.
#[derive(Debug, Default)]
struct Choice {
    role_sent: bool,
    finished: bool,
    /// Tool calls in the order in which they were announced.
    calls: Vec<Announced>,
}

/// A tool call as the client knows it by its place.
#[derive(Debug)]
struct Announced {
    id: String,
    /// The index that the host gives it.
    index: Option<u64>,
}

/// Repairs the replies to one request.
#[derive(Debug)]
pub(super) struct Normaliser {
    endpoint: Endpoint,
    id: String,
    fallback_id: String,
    created: u64,
    model: String,
    choices: BTreeMap<u64, Choice>,
    /// Usage as reported, wherever it stood.
    pub usage: Option<Value>,
}

impl Normaliser {
    /// Starts for one request.
    pub(super) fn new(ask: &Ask<'_>) -> Self {
        Self {
            endpoint: ask.endpoint,
            id: String::new(),
            fallback_id: format!("chatcmpl-{}", ask.id),
            created: ask.now,
            model: ask.model.to_owned(),
            choices: BTreeMap::new(),
            usage: None,
        }
    }

    /// Repairs a whole reply.
    pub(super) fn whole(&mut self, mut reply: Value) -> Value {
        let object = if self.endpoint == Endpoint::Completions { "text_completion" } else { "chat.completion" };
        self.identify(&mut reply, object);
        let choices = reply.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten();
        for (position, choice) in choices.enumerate() {
            let Some(choice) = choice.as_object_mut() else {
                continue;
            };
            choice.entry("index").or_insert(json!(position));
            let parts = choice.shift_remove("messages");
            let mut message = match (choice.shift_remove("message"), parts) {
                (Some(Value::Object(message)), _) => message,
                (_, Some(Value::Array(parts))) => joined(parts),
                _ => Map::new(),
            };
            if self.endpoint == Endpoint::Completions {
                // Fill-in-the-middle answers in the chat shape.
                if let Some(content) = message.shift_remove("content") {
                    choice.insert("text".into(), content);
                }
                finish(choice, false);
                continue;
            }
            message.entry("role").or_insert(json!("assistant"));
            message.shift_remove("prefix");
            split_content(&mut message);
            name_reasoning(&mut message);
            let has_calls = whole_calls(&mut message, &self.fallback_id);
            if !message.contains_key("content")
                || (message["content"].is_null() && !has_calls && !message.contains_key("refusal"))
            {
                let empty = if has_calls { Value::Null } else { json!("") };
                message.insert("content".into(), empty);
            }
            chat_logprobs(choice, message.get("content"));
            choice.insert("message".into(), Value::Object(message));
            if choice.get("finish_reason").is_none_or(Value::is_null) {
                choice.insert("finish_reason".into(), json!("stop"));
            }
            finish(choice, has_calls);
        }
        if let Some(usage) = self.usage.take() {
            reply["usage"] = usage;
        }
        reply
    }

    /// Repairs a chunk; `None` when nothing is left of it that a client needs.
    pub(super) fn chunk(&mut self, mut chunk: Value) -> Option<Value> {
        let object = chunk_object(self.endpoint);
        self.identify(&mut chunk, object);
        let mut choices = match chunk.get_mut("choices").map(Value::take) {
            Some(Value::Array(choices)) => choices,
            _ => return None,
        };
        let mut position = 0;
        choices.retain_mut(|choice| {
            position += 1;
            choice.as_object_mut().is_some_and(|choice| self.delta(choice, position - 1))
        });
        if choices.is_empty() {
            return None;
        }
        chunk["choices"] = Value::Array(choices);
        Some(chunk)
    }

    /// A chunk that carries the usage alone.
    pub(super) fn usage_chunk(&self, usage: &Value) -> Value {
        let object = chunk_object(self.endpoint);
        json!({ "id": self.identity(), "object": object, "created": self.created, "model": self.model, "choices": [], "usage": usage })
    }

    /// Chunks that finish the choices which a host left open at `[DONE]`.
    pub(super) fn missing_finishes(&mut self) -> Vec<Value> {
        let (id, created, model, object) = (self.identity(), self.created, self.model.clone(), chunk_object(self.endpoint));
        let open = self.choices.iter_mut().filter(|(_, choice)| !choice.finished);
        open.map(|(index, choice)| {
            choice.finished = true;
            let reason = if choice.calls.is_empty() { "stop" } else { "tool_calls" };
            let mut ending = json!({ "index": index, "finish_reason": reason });
            match self.endpoint {
                Endpoint::Completions => ending["text"] = json!(""),
                Endpoint::Chat | Endpoint::Embeddings | Endpoint::Passthrough => ending["delta"] = json!({}),
            }
            json!({ "id": id, "object": object, "created": created, "model": model, "choices": [ending] })
        })
        .collect()
    }

    /// Whether every choice seen so far has finished, and there was one.
    pub(super) fn is_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.values().all(|choice| choice.finished)
    }

    fn identity(&self) -> String {
        // Ids as short as Ollama's repeat within an hour.
        if self.id.len() < 16 { self.fallback_id.clone() } else { self.id.clone() }
    }

    /// Fills identity in, the same over a whole stream, and takes usage out.
    fn identify(&mut self, reply: &mut Value, object: &str) {
        let Some(fields) = reply.as_object_mut() else {
            return;
        };
        if self.id.is_empty()
            && let Some(id) = fields.get("id").and_then(Value::as_str).filter(|id| !id.is_empty())
        {
            self.id = id.to_owned();
        }
        if let Some(created) = fields.get("created").and_then(Value::as_u64).filter(|created| *created > 0) {
            self.created = created;
        }
        if let Some(model) = fields.get("model").and_then(Value::as_str).filter(|model| !model.is_empty()) {
            self.model = model.to_owned();
        }
        let usage = fields.shift_remove("usage").filter(Value::is_object);
        let usage = usage
            .or_else(|| fields.get("x_groq").and_then(|extra| extra.get("usage")).filter(|usage| usage.is_object()).cloned());
        if let Some(usage) = usage {
            self.usage = Some(whole_usage(usage));
        }
        fields.insert("id".into(), json!(self.identity()));
        fields.insert("object".into(), json!(object));
        fields.insert("created".into(), json!(self.created));
        fields.insert("model".into(), json!(self.model));
    }

    /// Repairs one choice of a chunk; false when it carries nothing.
    fn delta(&mut self, choice: &mut Map<String, Value>, position: usize) -> bool {
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
        choice.insert("index".into(), json!(index));
        let state = self.choices.entry(index).or_default();
        let has_reason = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        let mut delta = match choice.shift_remove("delta") {
            Some(Value::Object(delta)) => delta,
            // Azure's annotation frames have no delta.
            _ if !has_reason && !choice.contains_key("text") => return false,
            _ => Map::new(),
        };
        if self.endpoint == Endpoint::Completions {
            if let Some(content) = delta.shift_remove("content") {
                choice.insert("text".into(), content);
            }
            choice.entry("text").or_insert(json!(""));
        } else {
            if state.role_sent {
                delta.shift_remove("role");
            } else {
                delta.insert("role".into(), json!("assistant"));
                state.role_sent = true;
            }
            delta.shift_remove("prefix");
            split_content(&mut delta);
            name_reasoning(&mut delta);
            announce_once(&mut delta, &mut state.calls, &self.fallback_id);
            chat_logprobs(choice, delta.get("content"));
            choice.insert("delta".into(), Value::Object(delta));
        }
        if has_reason {
            state.finished = true;
            finish(choice, !state.calls.is_empty());
        } else {
            choice.entry("finish_reason").or_insert(Value::Null);
        }
        true
    }
}

fn chunk_object(endpoint: Endpoint) -> &'static str {
    if endpoint == Endpoint::Completions { "text_completion" } else { "chat.completion.chunk" }
}

/// Maps foreign finish reasons onto OpenAI's.
fn finish(choice: &mut Map<String, Value>, has_calls: bool) {
    let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) else {
        return;
    };
    let mapped = match reason {
        "stop" | "length" | "tool_calls" | "content_filter" | "function_call" => return,
        "max_tokens" | "model_length" | "abort" => "length",
        _ if has_calls => "tool_calls",
        _ => "stop",
    };
    choice.insert("finish_reason".into(), json!(mapped));
}

/// Mistral's reasoning models write `content` as a list of thinking and text chunks.
fn split_content(message: &mut Map<String, Value>) {
    let Some(Value::Array(chunks)) = message.get("content") else {
        return;
    };
    let (mut text, mut thinking) = (String::new(), String::new());
    for chunk in chunks {
        match chunk.get("type").and_then(Value::as_str) {
            Some("thinking") => {
                for inner in chunk.get("thinking").and_then(Value::as_array).into_iter().flatten() {
                    thinking.push_str(inner.get("text").and_then(Value::as_str).unwrap_or_default());
                }
            }
            _ => text.push_str(chunk.get("text").and_then(Value::as_str).unwrap_or_default()),
        }
    }
    let text = if text.is_empty() && !thinking.is_empty() { Value::Null } else { json!(text) };
    message.insert("content".into(), text);
    if !thinking.is_empty() {
        message.insert("reasoning_content".into(), json!(thinking));
    }
}

/// Together writes log probabilities as completions have them, and in a chunk as the number of its one token.
fn chat_logprobs(choice: &mut Map<String, Value>, content: Option<&Value>) {
    let Some(found) = choice.get_mut("logprobs") else { return };
    let entry = |token: &str, logprob: &Value, top: Vec<Value>| json!({ "token": token, "logprob": logprob, "bytes": token.as_bytes(), "top_logprobs": top });
    let entries: Vec<Value> = match &*found {
        Value::Number(_) => content
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(|text| entry(text, found, Vec::new()))
            .into_iter()
            .collect(),
        Value::Object(legacy) if legacy.contains_key("tokens") => {
            let list = |name: &str| legacy.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let top = |place: usize| {
                let others = list("top_logprobs").get(place).and_then(Value::as_object).into_iter().flatten();
                others.map(|(token, logprob)| json!({ "token": token, "logprob": logprob, "bytes": token.as_bytes() })).collect()
            };
            let pairs = list("tokens").iter().zip(list("token_logprobs")).enumerate();
            pairs.filter_map(|(place, (token, logprob))| Some(entry(token.as_str()?, logprob, top(place)))).collect()
        }
        _ => return,
    };
    *found = if entries.is_empty() { Value::Null } else { json!({ "content": entries, "refusal": null }) };
}

/// Where its own tools have run, Mistral tells an answer in several messages: the assistant's together.
fn joined(parts: Vec<Value>) -> Map<String, Value> {
    let mut message = Map::new();
    let (mut content, mut calls) = (String::new(), Vec::new());
    for part in parts {
        let Value::Object(mut part) = part else { continue };
        if part.get("role").and_then(Value::as_str).is_some_and(|role| role != "assistant") {
            continue;
        }
        split_content(&mut part);
        content.push_str(part.get("content").and_then(Value::as_str).unwrap_or_default());
        if let Some(Value::Array(more)) = part.shift_remove("tool_calls") {
            calls.extend(more);
        }
    }
    message.insert("content".into(), json!(content));
    if !calls.is_empty() {
        message.insert("tool_calls".into(), Value::Array(calls));
    }
    message
}

/// Clients read `reasoning_content` or `reasoning`: both are written.
fn name_reasoning(message: &mut Map<String, Value>) {
    let text = |name: &str| message.get(name).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())).cloned();
    if let Some(reasoning) = text("reasoning_content").or_else(|| text("reasoning")) {
        message.insert("reasoning_content".into(), reasoning.clone());
        message.insert("reasoning".into(), reasoning);
    }
}

/// Repairs the calls of a whole message; whether there are any.
fn whole_calls(message: &mut Map<String, Value>, seed: &str) -> bool {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else {
        message.shift_remove("tool_calls");
        return false;
    };
    for (position, call) in calls.iter_mut().enumerate() {
        let Some(call) = call.as_object_mut() else {
            continue;
        };
        call.shift_remove("index");
        call.entry("type").or_insert(json!("function"));
        if call.get("id").and_then(Value::as_str).is_none_or(|id| id.is_empty() || id == "null") {
            call.insert("id".into(), json!(call_id(seed, position as u64)));
        }
        text_arguments(call);
    }
    if calls.is_empty() {
        message.shift_remove("tool_calls");
        return false;
    }
    true
}

/// Calls of a stream that are told apart; more is nonsense, and each is looked for among all.
const MOST_CALLS: usize = 1_024;

/// Repairs the calls of a delta: an index for each, and id, type and name only the first time.
fn announce_once(delta: &mut Map<String, Value>, known: &mut Vec<Announced>, seed: &str) {
    let Some(Value::Array(calls)) = delta.get_mut("tool_calls") else {
        delta.shift_remove("tool_calls");
        return;
    };
    for call in calls.iter_mut() {
        let Some(call) = call.as_object_mut() else {
            continue;
        };
        let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty() && *id != "null").map(str::to_owned);
        let index = call.get("index").and_then(Value::as_u64);
        let name = call.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
        let has_name = name.is_some_and(|name| !name.is_empty());
        text_arguments(call);
        if let Some(place) = place(known, id.as_deref(), index, has_name) {
            call.insert("index".into(), json!(place));
            call.shift_remove("id");
            call.shift_remove("type");
            if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
                function.shift_remove("name");
            }
        } else if known.len() < MOST_CALLS {
            let id = id.unwrap_or_else(|| call_id(seed, known.len() as u64));
            call.insert("index".into(), json!(known.len()));
            call.insert("id".into(), json!(id));
            call.entry("type").or_insert(json!("function"));
            known.push(Announced { id, index });
        }
    }
    if calls.is_empty() {
        delta.shift_remove("tool_calls");
    }
}

/// Which call a piece belongs to; `None` where it begins one. An id that is known decides. Hosts without indices, or with the
/// same one for all, begin a call with a name.
fn place(known: &[Announced], id: Option<&str>, index: Option<u64>, has_name: bool) -> Option<usize> {
    if let Some(place) = id.and_then(|id| known.iter().position(|call| call.id == id)) {
        return Some(place);
    }
    let last = match index {
        Some(_) => known.iter().rposition(|call| call.index == index),
        None => known.len().checked_sub(1),
    };
    let begins = match (id, index) {
        // Some repeat the name in every piece.
        (None, Some(_)) => false,
        (Some(_), Some(_)) | (None, None) => has_name,
        (Some(_), None) => true,
    };
    last.filter(|_| !begins)
}

fn call_id(seed: &str, index: u64) -> String {
    format!("call_{}_{index}", seed.trim_start_matches("chatcmpl-"))
}

/// `arguments` is text for clients, also where a host sends an object.
fn text_arguments(call: &mut Map<String, Value>) {
    if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments")) {
        match arguments {
            Value::Object(_) | Value::Array(_) => *arguments = json!(arguments.to_string()),
            Value::Null => *arguments = json!(""),
            Value::String(_) | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// `total_tokens` is required by the clients' types.
fn whole_usage(mut usage: Value) -> Value {
    let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
    if usage.get("total_tokens").and_then(Value::as_u64).is_none() {
        usage["total_tokens"] = json!(prompt.saturating_add(completion));
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client puts together of the calls in these deltas: id, name and arguments by index.
    fn put_together(deltas: &[Value]) -> Vec<(String, String, String)> {
        let mut known = Vec::new();
        let mut calls: Vec<(String, String, String)> = Vec::new();
        for delta in deltas {
            let mut delta = json!({ "tool_calls": delta }).as_object().unwrap().clone();
            announce_once(&mut delta, &mut known, "chatcmpl-x");
            for call in delta["tool_calls"].as_array().unwrap() {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                if index == calls.len() {
                    calls.push((text(&call["id"]), text(&call["function"]["name"]), String::new()));
                }
                calls[index].2.push_str(&text(&call["function"]["arguments"]));
            }
        }
        calls
    }

    #[test]
    fn log_probabilities_have_one_shape() {
        let shaped = |logprobs: Value, content: Value| {
            let mut choice = json!({ "logprobs": logprobs }).as_object().unwrap().clone();
            chat_logprobs(&mut choice, Some(&content));
            choice["logprobs"].take()
        };
        let hi = json!({ "token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": [] });
        assert_eq!(shaped(json!(-0.5), json!("hi")), json!({ "content": [hi], "refusal": null }));
        assert_eq!(shaped(json!(-0.5), json!("")), Value::Null);
        let legacy = json!({ "tokens": ["hi"], "token_logprobs": [-0.5], "token_ids": [7], "top_logprobs": [{ "ho": -2.0 }] });
        let found = shaped(legacy, json!("hi"));
        assert_eq!(found["content"][0]["logprob"], -0.5);
        assert_eq!(found["content"][0]["top_logprobs"], json!([{ "token": "ho", "logprob": -2.0, "bytes": [104, 111] }]));
        let own = json!({ "content": [], "refusal": null });
        assert_eq!(shaped(own.clone(), json!("hi")), own);
    }

    #[test]
    fn an_answer_in_several_messages_is_one() {
        let parts = json!([
            { "role": "assistant", "content": [{ "type": "text", "text": "Let me " }, { "type": "tool_reference", "tool": "web" }] },
            { "role": "tool", "content": "found" },
            { "role": "assistant", "content": "see.", "tool_calls": [{ "id": "a" }] },
        ]);
        let Value::Array(parts) = parts else { unreachable!("a list") };
        assert_eq!(Value::Object(joined(parts)), json!({ "content": "Let me see.", "tool_calls": [{ "id": "a" }] }));
    }

    #[test]
    fn parallel_calls_stay_apart_however_a_host_numbers_them() {
        let call = |id: Value, index: Value, name: &str, arguments: &str| {
            let mut call = json!({ "function": { "name": name, "arguments": arguments } });
            for (key, value) in [("id", id), ("index", index)] {
                if !value.is_null() {
                    call[key] = value;
                }
            }
            call
        };
        let two = |a: &str, b: &str| {
            [(a, "f", "{1}"), (b, "g", "{2}")].map(|(id, name, arguments)| (id.to_owned(), name.to_owned(), arguments.to_owned()))
        };
        let nothing = Value::Null;
        for id in [json!("null"), json!(""), Value::Null] {
            let both = json!([call(id.clone(), nothing.clone(), "f", "{1}"), call(id, nothing.clone(), "g", "{2}")]);
            assert_eq!(put_together(&[both]), two("call_x_0", "call_x_1"));
        }
        let same = [
            json!([call(json!("a"), json!(0), "f", "{"), call(json!("b"), json!(0), "g", "{2")]),
            json!([call(json!("a"), json!(0), "", "1}")]),
            json!([call(nothing.clone(), json!(0), "", "}")]),
        ];
        assert_eq!(put_together(&same), two("a", "b"));
        let repeated = [
            json!([call(json!("a"), json!(1), "f", "{1")]),
            json!([call(json!("a"), json!(1), "f", "}")]),
            json!([call(json!("b"), json!(2), "g", "{")]),
            json!([call(nothing, json!(2), "g", "2}")]),
        ];
        assert_eq!(put_together(&repeated), two("a", "b"));
    }
}
