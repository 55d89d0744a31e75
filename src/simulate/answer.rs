//! What the simulated provider says: an echo of the question, a call of the first tool, an instance of the schema.

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::schema::instance;
use crate::chat::Endpoint;
use crate::settings::Simulated;

/// Numbers in one reply of embeddings.
const MAX_FLOATS: u64 = 4 << 20;

/// A composed reply.
pub(super) enum Composed {
    /// One JSON body.
    Whole(Bytes),
    /// Events of a stream, `[DONE]` included.
    Events(Vec<Bytes>),
    /// The request is not understood.
    Refused(&'static str),
}

/// What one choice says.
enum Says {
    Words(Vec<String>),
    Calls(Vec<(String, String)>),
}

/// Composes the reply to a request.
pub(super) fn compose(endpoint: Endpoint, body: &[u8], settings: &Simulated, number: u64) -> Composed {
    if endpoint == Endpoint::Passthrough {
        return Composed::Whole(Bytes::from(json!({ "object": "simulated", "request": number }).to_string()));
    }
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return Composed::Refused("the body is not JSON");
    };
    match endpoint {
        Endpoint::Embeddings => embeddings(&request),
        Endpoint::Completions => {
            let prompt = request.get("prompt").and_then(Value::as_str).unwrap_or_default();
            reply(&request, &Says::Words(words(prompt, settings.tokens)), true, number)
        }
        Endpoint::Chat | Endpoint::Passthrough => match says(&request, settings) {
            Some(says) => reply(&request, &says, false, number),
            None => Composed::Refused("messages must be a list that is not empty"),
        },
    }
}

fn says(request: &Value, settings: &Simulated) -> Option<Says> {
    let messages = request.get("messages")?.as_array()?;
    let last = messages.last()?;
    let tools = request.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let choice = request.get("tool_choice");
    let forced = choice.and_then(|choice| choice.pointer("/function/name")).and_then(Value::as_str);
    let may_call = !tools.is_empty() && choice.and_then(Value::as_str) != Some("none") && last["role"] != "tool";
    if may_call {
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).unwrap_or("unnamed").to_owned();
        let called = tools.iter().filter(|tool| forced.is_none_or(|forced| name(tool) == forced));
        let arguments = |tool: &Value| tool.pointer("/function/parameters").map_or_else(|| json!({}), instance).to_string();
        let parallel = request.get("parallel_tool_calls") != Some(&json!(false));
        let calls: Vec<_> = called.take(if parallel { 2 } else { 1 }).map(|tool| (name(tool), arguments(tool))).collect();
        return Some(Says::Calls(calls));
    }
    let format = request.get("response_format");
    match format.and_then(|format| format.get("type")).and_then(Value::as_str) {
        Some("json_schema") => {
            let schema = format.and_then(|format| format.pointer("/json_schema/schema")).cloned().unwrap_or_else(|| json!({}));
            Some(Says::Words(pieces(&instance(&schema).to_string())))
        }
        Some("json_object") => Some(Says::Words(pieces(r#"{"simulated":true}"#))),
        _ => Some(Says::Words(words(&text_of(last), settings.tokens))),
    }
}

fn text_of(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

/// The question's words after a preamble, again and again until there are `tokens` of them.
fn words(question: &str, tokens: u64) -> Vec<String> {
    let question: Vec<&str> = question.split_whitespace().collect();
    let again = question.iter().copied().chain(["and", "so", "on"]).cycle();
    let all = ["Simulated", "answer", "to:"].into_iter().chain(again);
    let count = usize::try_from(tokens).unwrap_or(usize::MAX);
    all.take(count).enumerate().map(|(place, word)| if place == 0 { word.to_owned() } else { format!(" {word}") }).collect()
}

fn pieces(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters.chunks(8).map(|piece| piece.iter().collect()).collect()
}

fn reply(request: &Value, says: &Says, legacy: bool, number: u64) -> Composed {
    let model = request.get("model").and_then(Value::as_str).unwrap_or("simulated");
    let choices = request.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, 16);
    let tokens = match says {
        Says::Words(words) => words.len() as u64,
        Says::Calls(calls) => calls.len() as u64 * 8,
    } * choices;
    let prompt = request.to_string().len() as u64 / 4;
    let usage = json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens });
    let finish = if matches!(says, Says::Calls(_)) { "tool_calls" } else { "stop" };
    let id = format!("{}-simulated-{number:08}", if legacy { "cmpl" } else { "chatcmpl" });
    let frame = Frame { id: &id, model, legacy };
    if request.get("stream") == Some(&json!(true)) {
        let include_usage = request.pointer("/stream_options/include_usage") == Some(&json!(true));
        return Composed::Events(frame.events(says, choices, finish, include_usage.then_some(&usage)));
    }
    let choices: Vec<Value> = (0..choices).map(|index| frame.choice(index, says, finish)).collect();
    let object = if legacy { "text_completion" } else { "chat.completion" };
    let body =
        json!({ "id": id, "object": object, "created": 1_700_000_000, "model": model, "choices": choices, "usage": usage });
    Composed::Whole(Bytes::from(body.to_string()))
}

struct Frame<'a> {
    id: &'a str,
    model: &'a str,
    legacy: bool,
}

impl Frame<'_> {
    fn choice(&self, index: u64, says: &Says, finish: &str) -> Value {
        match says {
            Says::Words(words) if self.legacy => {
                json!({ "index": index, "text": words.concat(), "logprobs": null, "finish_reason": finish })
            }
            Says::Words(words) => {
                json!({ "index": index, "finish_reason": finish, "logprobs": null,
                "message": { "role": "assistant", "content": words.concat(), "refusal": null } })
            }
            Says::Calls(calls) => {
                let calls: Vec<Value> = calls
                    .iter()
                    .enumerate()
                    .map(|(place, (name, arguments))| {
                        json!({ "id": format!("call_{place}"), "type": "function", "function": { "name": name, "arguments": arguments } })
                    })
                    .collect();
                json!({ "index": index, "finish_reason": finish, "logprobs": null,
                    "message": { "role": "assistant", "content": null, "refusal": null, "tool_calls": calls } })
            }
        }
    }

    fn events(&self, says: &Says, choices: u64, finish: &str, usage: Option<&Value>) -> Vec<Bytes> {
        let mut events = Vec::new();
        let all = |make: &dyn Fn(u64) -> Value, events: &mut Vec<Bytes>| {
            for index in 0..choices {
                events.push(self.event(&[make(index)], None, usage.is_some()));
            }
        };
        if !self.legacy {
            all(&|index| delta(index, &json!({ "role": "assistant", "content": "" }), None), &mut events);
        }
        match says {
            Says::Words(words) => {
                for word in words {
                    let make = |index| {
                        if self.legacy {
                            json!({ "index": index, "text": word, "logprobs": null, "finish_reason": null })
                        } else {
                            delta(index, &json!({ "content": word }), None)
                        }
                    };
                    all(&make, &mut events);
                }
            }
            Says::Calls(calls) => {
                for (place, (name, arguments)) in calls.iter().enumerate() {
                    let opening = json!({ "tool_calls": [{ "index": place, "id": format!("call_{place}"), "type": "function",
                        "function": { "name": name, "arguments": "" } }] });
                    all(&|index| delta(index, &opening, None), &mut events);
                    for piece in pieces(arguments) {
                        let next = json!({ "tool_calls": [{ "index": place, "function": { "arguments": piece } }] });
                        all(&|index| delta(index, &next, None), &mut events);
                    }
                }
            }
        }
        let ending = |index| {
            if self.legacy {
                json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish })
            } else {
                delta(index, &json!({}), Some(finish))
            }
        };
        all(&ending, &mut events);
        if let Some(usage) = usage {
            events.push(self.event(&[], Some(usage), true));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        events
    }

    fn event(&self, choices: &[Value], usage: Option<&Value>, usage_key: bool) -> Bytes {
        let object = if self.legacy { "text_completion" } else { "chat.completion.chunk" };
        let mut chunk =
            json!({ "id": self.id, "object": object, "created": 1_700_000_000, "model": self.model, "choices": choices });
        if usage_key {
            chunk["usage"] = usage.cloned().unwrap_or(Value::Null);
        }
        crate::dialect::sse::event(chunk.to_string().as_bytes())
    }
}

fn delta(index: u64, delta: &Value, finish: Option<&str>) -> Value {
    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish })
}

fn embeddings(request: &Value) -> Composed {
    let inputs: Vec<String> = match request.get("input") {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) if items.iter().all(Value::is_u64) && !items.is_empty() => {
            vec![json!(items).to_string()]
        }
        Some(Value::Array(items)) if !items.is_empty() => {
            items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
        }
        _ => return Composed::Refused("input must be text or a list that is not empty"),
    };
    let dimensions = request.get("dimensions").and_then(Value::as_u64).unwrap_or(8).clamp(1, 4_096);
    if inputs.len() as u64 * dimensions > MAX_FLOATS {
        return Composed::Refused("the simulated provider embeds at most 4,194,304 numbers at once");
    }
    let base64 = request.get("encoding_format") == Some(&json!("base64"));
    let tokens: u64 = inputs.iter().map(|text| text.len() as u64 / 4 + 1).sum();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let mut rng = fastrand::Rng::with_seed(
                text.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte))),
            );
            let vector: Vec<f32> = (0..dimensions).map(|_| rng.f32() * 2.0 - 1.0).collect();
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|float| float.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let body = json!({ "object": "list", "model": request.get("model"), "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens } });
    Composed::Whole(Bytes::from(body.to_string()))
}
