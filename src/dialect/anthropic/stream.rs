//! The streamed reply of the Messages API, event by event.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::failure_of;
use super::response::{Block, Citation, Message, NativeUsage, StopDetails, annotation, finish, keepsake};
use crate::chat::request::Text;
use crate::chat::{Failure, FailureClass, Keepsake, Piece, Sink, Usage, unquote};
use crate::dialect::{Ask, EventDecoder, literal, stringified};

/// An event; which fields are there depends on its type.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(default)]
    usage: Option<NativeUsage>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    text: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    thinking: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    signature: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "crate::dialect::literal_only")]
    partial_json: Option<&'a RawValue>,
    #[serde(borrow, default)]
    citation: Option<Citation<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_details: Option<StopDetails<'a>>,
}

/// A block between its start and its stop.
enum Open {
    Text,
    /// Insides of the literals of its text and signature.
    Thinking {
        text: String,
        signature: String,
    },
    /// A block that is whole in its start.
    Redacted(String),
    Tool {
        index: u32,
        has_arguments: bool,
        /// Arguments that stood in the start, as a literal.
        initial: String,
    },
    /// One that a client does not see.
    Other,
}

/// Bytes of thinking that are gathered for one reply.
const MAX_THINKING: usize = 4 << 20;
/// Blocks that are open at once.
const MAX_OPEN: usize = 64;

/// Decodes one stream.
#[derive(Default)]
pub struct Events {
    model: String,
    open: Vec<(u32, Open)>,
    calls: u32,
    first_call: Option<String>,
    thinking: Vec<String>,
    thinking_is_lost: bool,
    usage: Option<NativeUsage>,
    has_totals: bool,
    /// Bytes of thinking so far.
    gathered: usize,
    finished: bool,
}

impl EventDecoder for Events {
    fn event(&mut self, data: &[u8], sink: &mut dyn Sink) -> Result<bool, Failure> {
        let event: Event<'_> = match serde_json::from_slice(data) {
            Ok(event) => event,
            Err(_) if is_newer(data) => return Ok(false),
            Err(_) => {
                return Err(Failure::new(FailureClass::Malformed, "the provider's stream holds an event that cannot be read"));
            }
        };
        match &*event.kind {
            "content_block_delta" => {
                if let Some(delta) = &event.delta {
                    self.delta(event.index, delta, sink);
                }
            }
            "content_block_start" => {
                if let Some(block) = event.content_block {
                    self.start(event.index, block.get(), sink);
                }
            }
            "content_block_stop" => self.stop(event.index, sink),
            "message_start" => {
                if let Some(message) = &event.message {
                    sink.identify(literal(message.id).unwrap_or_default(), literal(message.model).unwrap_or_default());
                    self.usage = message.usage;
                }
            }
            "message_delta" => {
                if let Some(usage) = event.usage {
                    self.usage.get_or_insert_default().update(usage);
                    self.has_totals = true;
                }
                if let Some(delta) = &event.delta {
                    self.message_delta(delta, sink);
                }
            }
            "message_stop" => {
                if !self.finished {
                    self.stop_all(sink);
                    sink.piece(0, &finish(None));
                }
                return Ok(true);
            }
            "error" => return Err(failure_of(data)),
            // Pings, and events that are newer than this.
            _ => {}
        }
        Ok(false)
    }

    fn end(&mut self, _: &mut dyn Sink) -> bool {
        false
    }

    fn usage(&self) -> Option<Usage> {
        // Until the end is told, the output is a placeholder.
        self.usage.map(|usage| Usage { estimated: !self.has_totals, ..usage.usage() })
    }

    fn keepsakes(&mut self) -> Vec<Keepsake> {
        if self.thinking_is_lost {
            return Vec::new();
        }
        let thinking: Vec<&str> = self.thinking.iter().map(String::as_str).collect();
        keepsake(self.first_call.take(), &self.model, &thinking)
    }
}

/// Whether an event is of a type that is newer than this, whatever it holds.
fn is_newer(data: &[u8]) -> bool {
    const KNOWN: [&str; 8] = [
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "error",
        "ping",
    ];
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(borrow, rename = "type")]
        kind: Text<'a>,
    }
    serde_json::from_slice::<Kind<'_>>(data).is_ok_and(|event| !KNOWN.contains(&&*event.kind))
}

impl Events {
    /// Starts for one request.
    pub fn new(ask: &Ask<'_>) -> Self {
        Self { model: ask.model.to_owned(), ..Self::default() }
    }

    fn start(&mut self, index: u32, raw: &str, sink: &mut dyn Sink) {
        let Ok(block) = serde_json::from_str::<Block<'_>>(raw) else { return };
        let open = match &*block.kind {
            "text" => {
                if let Some(text) = block.text.filter(|text| text.get() != "\"\"") {
                    sink.piece(0, &Piece::Text(text.get()));
                }
                Open::Text
            }
            "thinking" => {
                let text = literal(block.thinking).unwrap_or_default();
                if !text.is_empty() {
                    sink.piece(0, &Piece::Reasoning(block.thinking.map_or("\"\"", RawValue::get)));
                }
                Open::Thinking { text: text.into(), signature: literal(block.signature).unwrap_or_default().into() }
            }
            // On one line, as events for clients are.
            "redacted_thinking" => Open::Redacted(raw.replace(['\n', '\r'], " ")),
            "tool_use" => {
                let place = self.calls;
                self.calls += 1;
                let id = block.id.map_or("\"\"", RawValue::get);
                self.first_call.get_or_insert_with(|| unquote(id.as_bytes()).unwrap_or_default().into_owned());
                sink.piece(
                    0,
                    &Piece::Call {
                        index: place,
                        id: Cow::Borrowed(id),
                        name: Cow::Borrowed(block.name.map_or("\"\"", RawValue::get)),
                        arguments: Cow::Borrowed("\"\""),
                        signature: None,
                    },
                );
                let initial = stringified(block.input.map_or("{}", RawValue::get));
                Open::Tool { index: place, has_arguments: false, initial }
            }
            _ => Open::Other,
        };
        if self.open.len() < MAX_OPEN {
            self.open.push((index, open));
        }
    }

    fn delta(&mut self, index: u32, delta: &Delta<'_>, sink: &mut dyn Sink) {
        let open = self.open.iter_mut().find(|(place, _)| *place == index).map(|(_, open)| open);
        match (delta.kind.as_deref(), open) {
            (Some("text_delta"), _) => {
                if let Some(text) = delta.text.filter(|text| text.get() != "\"\"") {
                    sink.piece(0, &Piece::Text(text.get()));
                }
            }
            (Some("input_json_delta"), Some(Open::Tool { index, has_arguments, .. })) => {
                if let Some(text) = delta.partial_json.filter(|text| text.get() != "\"\"") {
                    *has_arguments = true;
                    sink.piece(0, &Piece::Arguments { index: *index, text: text.get() });
                }
            }
            (Some("thinking_delta"), Some(Open::Thinking { text, .. })) => {
                if let Some(more) = delta.thinking.filter(|more| more.get() != "\"\"") {
                    if text.len() < MAX_THINKING {
                        text.push_str(literal(Some(more)).unwrap_or_default());
                    }
                    sink.piece(0, &Piece::Reasoning(more.get()));
                }
            }
            (Some("signature_delta"), Some(Open::Thinking { signature, .. })) if signature.len() < MAX_THINKING => {
                signature.push_str(literal(delta.signature).unwrap_or_default());
            }
            (Some("citations_delta"), _) => {
                if let Some(found) = delta.citation.as_ref().and_then(annotation) {
                    sink.piece(0, &Piece::Annotations(format!("[{found}]")));
                }
            }
            _ => {}
        }
    }

    fn stop(&mut self, index: u32, sink: &mut dyn Sink) {
        let Some(place) = self.open.iter().position(|(open, _)| *open == index) else { return };
        let block = match self.open.swap_remove(place).1 {
            Open::Thinking { text, signature } if self.gathered + text.len() + signature.len() >= MAX_THINKING => {
                // A part of what was thought would be refused, so nothing is handed back.
                self.thinking_is_lost = true;
                return;
            }
            Open::Thinking { text, signature } if !text.is_empty() || !signature.is_empty() => {
                format!("{{\"type\":\"thinking\",\"thinking\":\"{text}\",\"signature\":\"{signature}\"}}")
            }
            Open::Redacted(block) if self.gathered + block.len() >= MAX_THINKING => {
                self.thinking_is_lost = true;
                return;
            }
            Open::Redacted(block) => block,
            Open::Tool { index, has_arguments: false, initial } => {
                // A client must be able to parse what it got.
                sink.piece(0, &Piece::Arguments { index, text: &initial });
                return;
            }
            _ => return,
        };
        self.gathered += block.len();
        self.thinking.push(block);
    }

    /// Ends the blocks whose end was not told.
    fn stop_all(&mut self, sink: &mut dyn Sink) {
        while let Some((index, _)) = self.open.last() {
            self.stop(*index, sink);
        }
    }

    fn message_delta(&mut self, delta: &Delta<'_>, sink: &mut dyn Sink) {
        let Some(reason) = delta.stop_reason.as_deref().filter(|_| !self.finished) else { return };
        if let Some(explanation) =
            delta.stop_details.as_ref().and_then(|details| details.explanation).filter(|_| reason == "refusal")
        {
            sink.piece(0, &Piece::Refusal(explanation.get()));
        }
        self.finished = true;
        self.stop_all(sink);
        if !self.thinking.is_empty() && !self.thinking_is_lost {
            sink.piece(0, &Piece::ThinkingBlocks(&format!("[{}]", self.thinking.join(","))));
        }
        sink.piece(0, &finish(Some(reason)));
    }
}
