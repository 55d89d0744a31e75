//! The simulated provider in Anthropic's words: Messages. Order and fields of the events as Anthropic's streaming
//! documentation shows them (read 2026-11-22).

use std::borrow::Cow;

use actix_http::header::{HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Asked, Composed, Event, Trouble, Turn, Wire, list, text, texts, whole};
use crate::simulate::answer::{Content, Format, Question, SIGNATURE, Says, THOUGHT, Tool, pieces, prompt_tokens, says};

/// Anthropic Messages.
pub(super) struct Anthropic;

impl Wire for Anthropic {
    fn knows(&self, asked: &Asked<'_>) -> bool {
        is_count(asked) || path(asked).ends_with("/messages")
    }

    fn answer(&self, asked: &Asked<'_>, request: &Value, turn: &Turn<'_>) -> Result<Composed, &'static str> {
        let question = question(request).ok_or("messages: at least one message is required")?;
        if is_count(asked) {
            return Ok(whole(&json!({ "input_tokens": prompt_tokens(request) })));
        }
        if request.get("max_tokens").and_then(Value::as_u64).is_none() {
            return Err("max_tokens: Field required");
        }
        let says = says(&question, turn.settings.tokens);
        let reply = Reply { request, says: &says, number: turn.number };
        Ok(if request.get("stream") == Some(&json!(true)) { Composed::Events(reply.events()) } else { whole(&reply.message()) })
    }

    fn error(&self, trouble: &Trouble<'_>) -> Value {
        let kind = match trouble.status {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": trouble.message }, "request_id": request_id(trouble.number) })
    }

    fn frame(&self, data: &Value) -> Bytes {
        Bytes::from(format!("event: {}\ndata: {data}\n\n", text(data, "type")))
    }

    fn malformed(&self) -> &'static [u8] {
        b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\"\n\n"
    }

    fn models(&self) -> Value {
        let model = json!({ "id": "simulated", "type": "model", "display_name": "Simulated", "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active", "max_input_tokens": 1_000_000, "max_tokens": 128_000 });
        json!({ "data": [model], "has_more": false, "first_id": "simulated", "last_id": "simulated" })
    }

    fn identity(&self, number: u64) -> Option<(HeaderName, HeaderValue)> {
        Some((HeaderName::from_static("request-id"), HeaderValue::from_str(&request_id(number)).ok()?))
    }
}

fn path<'a>(asked: &Asked<'a>) -> &'a str {
    asked.target.split('?').next().unwrap_or_default()
}

fn is_count(asked: &Asked<'_>) -> bool {
    path(asked).ends_with("/messages/count_tokens")
}

fn request_id(number: u64) -> String {
    format!("req_simulated_{number:08}")
}

fn question(request: &Value) -> Option<Question<'_>> {
    let last = request.get("messages")?.as_array()?.last()?;
    let result = list(last.get("content")).last().filter(|block| block["type"] == "tool_result");
    Some(Question {
        text: text_of(result.unwrap_or(last)),
        after_tool: result.is_some(),
        tools: tools(request),
        parallel: request.pointer("/tool_choice/disable_parallel_tool_use") != Some(&json!(true)),
        format: format(request),
        thinks: matches!(request.pointer("/thinking/type").and_then(Value::as_str), Some("adaptive" | "enabled")),
    })
}

fn tools(request: &Value) -> Vec<Tool<'_>> {
    let choice = request.get("tool_choice").unwrap_or(&Value::Null);
    if text(choice, "type") == "none" {
        return Vec::new();
    }
    let forced = (text(choice, "type") == "tool").then(|| text(choice, "name"));
    // Tools with a versioned type are the provider's own.
    let own = list(request.get("tools")).iter().filter(|tool| matches!(text(tool, "type"), "" | "custom"));
    let all = own.map(|tool| Tool { name: text(tool, "name"), parameters: tool.get("input_schema") });
    all.filter(|tool| forced.is_none_or(|forced| tool.name == forced)).collect()
}

fn format(request: &Value) -> Format<'_> {
    let format = request.pointer("/output_config/format").or_else(|| request.get("output_format"));
    let schema = format.filter(|format| format["type"] == "json_schema").and_then(|format| format.get("schema"));
    schema.map_or(Format::Text, |schema| Format::Schema(Cow::Borrowed(schema)))
}

/// Text of a message or of a tool's result.
fn text_of(holder: &Value) -> String {
    match holder.get("content") {
        Some(Value::String(text)) => text.clone(),
        content => texts(list(content)),
    }
}

struct Reply<'a> {
    request: &'a Value,
    says: &'a Says,
    number: u64,
}

impl Reply<'_> {
    fn message(&self) -> Value {
        let thought = self.says.thinks.then(|| {
            let shown = if self.shows_thoughts() { THOUGHT.concat() } else { String::new() };
            json!({ "type": "thinking", "thinking": shown, "signature": SIGNATURE })
        });
        let mut content: Vec<Value> = thought.into_iter().collect();
        match &self.says.content {
            Content::Words(words) => content.push(json!({ "type": "text", "text": words.concat() })),
            Content::Calls(calls) => content.extend(calls.iter().enumerate().map(|(place, call)| {
                json!({ "type": "tool_use", "id": self.call_id(place), "name": call.name, "input": call.arguments })
            })),
        }
        let usage = json!({ "input_tokens": prompt_tokens(self.request), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": { "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0 },
            "output_tokens": self.output_tokens(), "output_tokens_details": { "thinking_tokens": self.says.thought_tokens() },
            "server_tool_use": null, "service_tier": "standard" });
        let mut message = self.skeleton(&usage);
        message["content"] = json!(content);
        message["stop_reason"] = json!(self.stop_reason());
        message["stop_details"] = Value::Null;
        message
    }

    /// The message before anything is said.
    fn skeleton(&self, usage: &Value) -> Value {
        let model = self.request.get("model").and_then(Value::as_str).unwrap_or("simulated");
        json!({ "id": format!("msg_simulated_{:08}", self.number), "type": "message", "role": "assistant", "model": model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage })
    }

    fn events(&self) -> Vec<Event> {
        let mut stream = Stream { events: Vec::new(), blocks: 0, begun: false };
        let usage = json!({ "input_tokens": prompt_tokens(self.request), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0, "output_tokens": 1 });
        stream.push(&json!({ "type": "message_start", "message": self.skeleton(&usage) }));
        stream.push(&json!({ "type": "ping" }));
        if self.says.thinks {
            let shown = if self.shows_thoughts() { THOUGHT.as_slice() } else { &[] };
            let thoughts = shown.iter().map(|piece| json!({ "type": "thinking_delta", "thinking": piece }));
            let signature = json!({ "type": "signature_delta", "signature": SIGNATURE });
            let opening = json!({ "type": "thinking", "thinking": "", "signature": "" });
            stream.block(&opening, thoughts.chain([signature]));
        }
        match &self.says.content {
            Content::Words(words) => {
                let deltas = words.iter().map(|word| json!({ "type": "text_delta", "text": word }));
                stream.block(&json!({ "type": "text", "text": "" }), deltas);
            }
            Content::Calls(calls) => {
                for (place, call) in calls.iter().enumerate() {
                    let opening = json!({ "type": "tool_use", "id": self.call_id(place), "name": call.name, "input": {} });
                    // A call without arguments streams no JSON at all.
                    let arguments = Some(call.arguments.to_string()).filter(|json| json != "{}").unwrap_or_default();
                    let parts = std::iter::once(String::new()).chain(pieces(&arguments));
                    stream.block(&opening, parts.map(|part| json!({ "type": "input_json_delta", "partial_json": part })));
                }
            }
        }
        let delta = json!({ "stop_reason": self.stop_reason(), "stop_sequence": null });
        stream.push(&json!({ "type": "message_delta", "delta": delta, "usage": { "output_tokens": self.output_tokens() } }));
        stream.push(&json!({ "type": "message_stop" }));
        stream.events
    }

    fn shows_thoughts(&self) -> bool {
        self.request.pointer("/thinking/display") != Some(&json!("omitted"))
    }

    fn call_id(&self, place: usize) -> String {
        format!("toolu_simulated_{:08}_{place}", self.number)
    }

    fn stop_reason(&self) -> &'static str {
        if self.says.calls() { "tool_use" } else { "end_turn" }
    }

    fn output_tokens(&self) -> u64 {
        self.says.tokens() + self.says.thought_tokens()
    }
}

/// A stream as it grows.
struct Stream {
    events: Vec<Event>,
    blocks: usize,
    /// Whether a delta was written: the first one comes with what opens the stream.
    begun: bool,
}

impl Stream {
    fn push(&mut self, data: &Value) {
        self.events.push(Event { bytes: Anthropic.frame(data), paced: false });
    }

    fn block(&mut self, opening: &Value, deltas: impl Iterator<Item = Value>) {
        let index = self.blocks;
        self.blocks += 1;
        self.push(&json!({ "type": "content_block_start", "index": index, "content_block": opening }));
        for delta in deltas {
            let data = json!({ "type": "content_block_delta", "index": index, "delta": delta });
            self.events.push(Event { bytes: Anthropic.frame(&data), paced: self.begun });
            self.begun = true;
        }
        self.push(&json!({ "type": "content_block_stop", "index": index }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{asked, body, data};
    use super::*;
    use crate::settings::SimulatedDialect;

    fn send(request: &Value) -> Composed {
        asked(SimulatedDialect::Anthropic, "/v1/messages?beta=true", request).unwrap()
    }

    fn with_tools(stream: bool) -> Value {
        let tool = |name: &str| json!({ "name": name, "input_schema": { "type": "object", "properties": { "n": { "type": "integer" } } } });
        json!({ "model": "claude-x", "max_tokens": 100, "stream": stream, "thinking": { "type": "adaptive" },
            "messages": [{ "role": "user", "content": "Hi" }], "tools": [tool("a"), tool("b")] })
    }

    #[test]
    fn a_thought_comes_before_the_calls() {
        let message = body(send(&with_tools(false)));
        let kinds: Vec<&str> = list(message.get("content")).iter().map(|block| text(block, "type")).collect();
        assert_eq!(kinds, ["thinking", "tool_use", "tool_use"]);
        assert_eq!(message["content"][1]["input"], json!({ "n": 1 }));
        assert_eq!((&message["stop_reason"], &message["usage"]["output_tokens"]), (&json!("tool_use"), &json!(19)));
    }

    #[test]
    fn a_stream_opens_and_closes_every_block_in_order() {
        let events = data(send(&with_tools(true)));
        let kinds: Vec<&str> = events.iter().map(|event| text(event, "type").trim_start_matches("content_block_")).collect();
        let block = |deltas: usize| [vec!["start"], vec!["delta"; deltas], vec!["stop"]].concat();
        let expected =
            [vec!["message_start", "ping"], block(4), block(2), block(2), vec!["message_delta", "message_stop"]].concat();
        assert_eq!(kinds, expected);
        assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 19);
        assert_eq!(events[2]["content_block"], json!({ "type": "thinking", "thinking": "", "signature": "" }));
    }

    #[test]
    fn a_thought_that_is_not_shown_still_has_its_signature() {
        let mut request = with_tools(true);
        request["thinking"]["display"] = json!("omitted");
        let deltas = data(send(&request)).into_iter().filter(|event| event["index"] == 0).collect::<Vec<_>>();
        assert_eq!(deltas.len(), 3);
        assert_eq!(deltas[1]["delta"]["type"], "signature_delta");
    }

    #[test]
    fn after_a_tools_result_the_answer_is_text() {
        let mut request = with_tools(false);
        request["messages"] =
            json!([{ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "4C" }] }]);
        request["thinking"] = Value::Null;
        let message = body(send(&request));
        assert_eq!(message["content"], json!([{ "type": "text", "text": "Simulated answer to: 4C and so" }]));
        assert_eq!(message["stop_reason"], "end_turn");
    }

    #[test]
    fn a_request_without_its_limit_is_refused() {
        let mut request = with_tools(false);
        request["max_tokens"] = Value::Null;
        assert_eq!(asked(SimulatedDialect::Anthropic, "/v1/messages", &request).err(), Some("max_tokens: Field required"));
    }
}
