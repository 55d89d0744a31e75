//! The simulated provider in OpenAI's words: Chat Completions, legacy completions, embeddings.

use std::borrow::Cow;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Asked, Composed, Event, Trouble, Turn, Wire, list, texts, whole};
use crate::chat::Endpoint;
use crate::simulate::answer::{
    Call, Content, Format, Question, Says, Tool, dimensions, pieces, prompt_tokens, says, text_tokens, vector, words,
};

/// OpenAI Chat Completions.
pub(super) struct OpenAi;

impl Wire for OpenAi {
    fn knows(&self, asked: &Asked<'_>) -> bool {
        asked.endpoint != Endpoint::Passthrough
    }

    fn answer(&self, asked: &Asked<'_>, request: &Value, turn: &Turn<'_>) -> Result<Composed, &'static str> {
        match asked.endpoint {
            Endpoint::Embeddings => embeddings(request),
            Endpoint::Completions => {
                let prompt = request.get("prompt").and_then(Value::as_str).unwrap_or_default();
                let content = Content::Words(words(prompt, turn.settings.tokens));
                Ok(reply(request, &Says { thinks: false, content }, true, turn.number))
            }
            Endpoint::Chat | Endpoint::Passthrough => {
                let question = question(request).ok_or("messages must be a list that is not empty")?;
                Ok(reply(request, &says(&question, turn.settings.tokens), false, turn.number))
            }
        }
    }

    fn error(&self, trouble: &Trouble<'_>) -> Value {
        let (kind, code) = match trouble.status {
            401 => ("invalid_request_error", "invalid_api_key"),
            402 => ("insufficient_quota", "insufficient_quota"),
            404 => ("invalid_request_error", "model_not_found"),
            429 => ("rate_limit_error", "rate_limit_exceeded"),
            400..=499 => ("invalid_request_error", "simulated"),
            _ => ("server_error", "simulated"),
        };
        json!({ "error": { "message": trouble.message, "type": kind, "param": null, "code": code } })
    }

    fn malformed(&self) -> &'static [u8] {
        b"data: {\"choices\":[{\"delta\"\n\n"
    }

    fn models(&self) -> Value {
        json!({ "object": "list", "data": [{ "id": "simulated", "object": "model", "created": 0, "owned_by": "stagedoor" }] })
    }
}

fn question(request: &Value) -> Option<Question<'_>> {
    let last = request.get("messages")?.as_array()?.last()?;
    Some(Question {
        text: text_of(last),
        after_tool: last["role"] == "tool",
        tools: tools(request),
        parallel: request.get("parallel_tool_calls") != Some(&json!(false)),
        format: format(request),
        thinks: false,
    })
}

fn tools(request: &Value) -> Vec<Tool<'_>> {
    let choice = request.get("tool_choice");
    if choice.and_then(Value::as_str) == Some("none") {
        return Vec::new();
    }
    let forced = choice.and_then(|choice| choice.pointer("/function/name")).and_then(Value::as_str);
    let all = list(request.get("tools")).iter().map(|tool| Tool {
        name: tool.pointer("/function/name").and_then(Value::as_str).unwrap_or("unnamed"),
        parameters: tool.pointer("/function/parameters"),
    });
    all.filter(|tool| forced.is_none_or(|forced| tool.name == forced)).collect()
}

fn format(request: &Value) -> Format<'_> {
    let format = request.get("response_format");
    match format.and_then(|format| format.get("type")).and_then(Value::as_str) {
        Some("json_schema") => {
            let schema = format.and_then(|format| format.pointer("/json_schema/schema"));
            Format::Schema(schema.map_or_else(|| Cow::Owned(json!({})), Cow::Borrowed))
        }
        Some("json_object") => Format::Json,
        _ => Format::Text,
    }
}

fn text_of(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        content => texts(list(content)),
    }
}

fn reply(request: &Value, says: &Says, legacy: bool, number: u64) -> Composed {
    let model = request.get("model").and_then(Value::as_str).unwrap_or("simulated");
    let choices = request.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, 16);
    let tokens = says.tokens() * choices;
    let prompt = prompt_tokens(request);
    let usage = json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens });
    let finish = if says.calls() { "tool_calls" } else { "stop" };
    let id = format!("{}-simulated-{number:08}", if legacy { "cmpl" } else { "chatcmpl" });
    let frame = Frame { id: &id, model, legacy };
    if request.get("stream") == Some(&json!(true)) {
        let include_usage = request.pointer("/stream_options/include_usage") == Some(&json!(true));
        return Composed::Events(frame.events(says, choices, finish, include_usage.then_some(&usage)));
    }
    let choices: Vec<Value> = (0..choices).map(|index| frame.choice(index, says, finish)).collect();
    let object = if legacy { "text_completion" } else { "chat.completion" };
    whole(&json!({ "id": id, "object": object, "created": 1_700_000_000, "model": model, "choices": choices, "usage": usage }))
}

struct Frame<'a> {
    id: &'a str,
    model: &'a str,
    legacy: bool,
}

impl Frame<'_> {
    fn choice(&self, index: u64, says: &Says, finish: &str) -> Value {
        match &says.content {
            Content::Words(words) if self.legacy => {
                json!({ "index": index, "text": words.concat(), "logprobs": null, "finish_reason": finish })
            }
            Content::Words(words) => {
                json!({ "index": index, "finish_reason": finish, "logprobs": null,
                "message": { "role": "assistant", "content": words.concat(), "refusal": null } })
            }
            Content::Calls(calls) => {
                let calls: Vec<Value> = calls
                    .iter()
                    .enumerate()
                    .map(|(place, Call { name, arguments })| {
                        json!({ "id": format!("call_{place}"), "type": "function",
                            "function": { "name": name, "arguments": arguments.to_string() } })
                    })
                    .collect();
                json!({ "index": index, "finish_reason": finish, "logprobs": null,
                    "message": { "role": "assistant", "content": null, "refusal": null, "tool_calls": calls } })
            }
        }
    }

    fn events(&self, says: &Says, choices: u64, finish: &str, usage: Option<&Value>) -> Vec<Event> {
        let mut events = Vec::new();
        let all = |make: &dyn Fn(u64) -> Value, events: &mut Vec<Bytes>| {
            for index in 0..choices {
                events.push(self.event(&[make(index)], None, usage.is_some()));
            }
        };
        if !self.legacy {
            all(&|index| delta(index, &json!({ "role": "assistant", "content": "" }), None), &mut events);
        }
        match &says.content {
            Content::Words(words) => {
                for word in words {
                    all(&|index| self.word(index, word), &mut events);
                }
            }
            Content::Calls(calls) => {
                for (place, Call { name, arguments }) in calls.iter().enumerate() {
                    let opening = json!({ "tool_calls": [{ "index": place, "id": format!("call_{place}"), "type": "function",
                        "function": { "name": name, "arguments": "" } }] });
                    all(&|index| delta(index, &opening, None), &mut events);
                    for piece in pieces(&arguments.to_string()) {
                        let next = json!({ "tool_calls": [{ "index": place, "function": { "arguments": piece } }] });
                        all(&|index| delta(index, &next, None), &mut events);
                    }
                }
            }
        }
        all(&|index| self.ending(index, finish), &mut events);
        if let Some(usage) = usage {
            events.push(self.event(&[], Some(usage), true));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        // The role and the first word come together.
        events.into_iter().enumerate().map(|(place, bytes)| Event { bytes, paced: place > 1 }).collect()
    }

    fn word(&self, index: u64, word: &str) -> Value {
        if self.legacy {
            json!({ "index": index, "text": word, "logprobs": null, "finish_reason": null })
        } else {
            delta(index, &json!({ "content": word }), None)
        }
    }

    fn ending(&self, index: u64, finish: &str) -> Value {
        if self.legacy {
            json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish })
        } else {
            delta(index, &json!({}), Some(finish))
        }
    }

    fn event(&self, choices: &[Value], usage: Option<&Value>, usage_key: bool) -> Bytes {
        let object = if self.legacy { "text_completion" } else { "chat.completion.chunk" };
        let mut chunk =
            json!({ "id": self.id, "object": object, "created": 1_700_000_000, "model": self.model, "choices": choices });
        if usage_key {
            chunk["usage"] = usage.cloned().unwrap_or(Value::Null);
        }
        OpenAi.frame(&chunk)
    }
}

fn delta(index: u64, delta: &Value, finish: Option<&str>) -> Value {
    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish })
}

fn embeddings(request: &Value) -> Result<Composed, &'static str> {
    let inputs: Vec<String> = match request.get("input") {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) if items.iter().all(Value::is_u64) && !items.is_empty() => {
            vec![json!(items).to_string()]
        }
        Some(Value::Array(items)) if !items.is_empty() => {
            items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
        }
        _ => return Err("input must be text or a list that is not empty"),
    };
    let dimensions = dimensions(request.get("dimensions"), inputs.len())?;
    let base64 = request.get("encoding_format") == Some(&json!("base64"));
    let tokens: u64 = inputs.iter().map(|text| text_tokens(text)).sum();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text, dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|float| float.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    Ok(whole(&json!({ "object": "list", "model": request.get("model"), "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens } })))
}
