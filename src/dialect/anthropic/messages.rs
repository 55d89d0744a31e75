//! The conversation as Anthropic takes it: instructions apart, turns that alternate, results of tools first and in the
//! order of their calls, thinking blocks back where they were.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::value::RawValue;

use super::content::{Block, Source, blocks, legal_id};
use crate::catalogue::AnthropicRules;
use crate::chat::Failure;
use crate::chat::request::{BEGIN, CONTINUE, CalledFunction, Message, Role, caller, check_calls};
use crate::dialect::Ask;

/// One turn.
#[derive(Debug, Serialize)]
pub(super) struct Turn<'a> {
    pub(super) role: &'static str,
    pub(super) content: Vec<Block<'a>>,
}

/// The conversation in Anthropic's form.
pub(super) struct Conversation<'a> {
    pub(super) system: Vec<Block<'a>>,
    pub(super) turns: Vec<Turn<'a>>,
    /// Whether thinking blocks are handed back.
    pub(super) has_thinking: bool,
    /// Whether the last turn of the assistant called tools without a thinking block.
    pub(super) loop_lacks_thinking: bool,
    /// Names of the functions that were called.
    pub(super) called: Vec<&'a str>,
    /// Whether a block refers to a file that Anthropic holds.
    pub(super) has_files: bool,
    /// Fields of messages that are left out.
    pub(super) lost: BTreeSet<&'static str>,
}

/// Translates the messages; `may_continue` says that an answer could go on from the assistant's last words.
pub(super) fn conversation<'a>(
    messages: &'a [Message<'a>],
    rules: &AnthropicRules,
    may_continue: bool,
    ask: &Ask<'_>,
) -> Result<Conversation<'a>, Failure> {
    let mut building = Building {
        out: Conversation {
            system: Vec::new(),
            turns: Vec::new(),
            has_thinking: false,
            loop_lacks_thinking: false,
            called: Vec::new(),
            has_files: false,
            lost: BTreeSet::new(),
        },
        notes: Vec::new(),
        open_calls: Vec::new(),
        results: 0,
        system_turns: rules.system_turns,
    };
    for (place, message) in messages.iter().enumerate() {
        building.take(place, message, ask)?;
    }
    building.end(messages.len(), rules.prefill && may_continue)
}

struct Building<'a> {
    out: Conversation<'a>,
    /// Instructions that came later and wait for their place.
    notes: Vec<Block<'a>>,
    /// Calls that need a result: id and whether it has come.
    open_calls: Vec<(Cow<'a, str>, bool)>,
    /// Results at the beginning of the last turn.
    results: usize,
    system_turns: bool,
}

impl<'a> Building<'a> {
    fn take(&mut self, place: usize, message: &'a Message<'a>, ask: &Ask<'_>) -> Result<(), Failure> {
        match message.role {
            Role::System | Role::Developer => {
                let mut found = blocks(&message.content, place)?;
                if let Some(part) = found.iter().position(|block| !matches!(block, Block::Text { .. })) {
                    let field = format!("messages[{place}].content[{part}]");
                    let why = format!("`{field}`: instructions are text only with Anthropic; put it into a user message");
                    return Err(crate::chat::request::unsupported(&field, why));
                }
                if let Some(last) = found.last_mut() {
                    last.mark(message.cache_control);
                }
                let target = if self.out.turns.is_empty() { &mut self.out.system } else { &mut self.notes };
                target.extend(found);
            }
            Role::User => {
                self.all_answered(place)?;
                self.flush_notes(false);
                let found = blocks(&message.content, place)?;
                self.note(&found, message);
                self.add("user", found, message.cache_control);
            }
            Role::Assistant => {
                self.all_answered(place)?;
                self.assistant(place, message, ask)?;
            }
            Role::Tool | Role::Function => self.result(place, message)?,
        }
        Ok(())
    }

    /// Notes what else the request needs, and what is lost.
    fn note(&mut self, content: &[Block<'a>], message: &Message<'_>) {
        let is_file = |block: &Block<'_>| matches!(block, Block::Document { source: Source::File { .. }, .. });
        self.out.has_files |= content.iter().any(is_file);
        self.out.lost.extend(message.losses());
    }

    /// Appends to the last turn, or begins a new one.
    fn add(&mut self, role: &'static str, mut content: Vec<Block<'a>>, marker: Option<&'a RawValue>) {
        if let Some(last) = content.last_mut() {
            last.mark(marker);
        }
        if content.is_empty() {
            return;
        }
        match self.out.turns.last_mut() {
            Some(turn) if turn.role == role => turn.content.extend(content),
            _ => {
                self.results = 0;
                self.out.turns.push(Turn { role, content });
            }
        }
    }

    /// Puts later instructions where they stood: as a turn of their own if the model takes that there.
    fn flush_notes(&mut self, assistant_follows: bool) {
        if self.notes.is_empty() {
            return;
        }
        let notes = std::mem::take(&mut self.notes);
        let after_user = self.out.turns.last().is_some_and(|turn| turn.role == "user");
        if self.system_turns && assistant_follows && after_user {
            self.out.turns.push(Turn { role: "system", content: notes });
            return;
        }
        let marked = notes.into_iter().map(|block| match block {
            Block::Text { text, cache_control } => {
                Block::Text { text: format!("Note from the operator: {text}").into(), cache_control }
            }
            other => other,
        });
        self.add("user", marked.collect(), None);
    }

    fn assistant(&mut self, place: usize, message: &'a Message<'a>, ask: &Ask<'_>) -> Result<(), Failure> {
        let mut content: Vec<Block<'a>> = Vec::new();
        let mut spoken = blocks(&message.content, place)?;
        if let Some(refusal) = message.refusal.as_ref().filter(|refusal| !refusal.trim().is_empty()) {
            spoken.push(Block::text(&**refusal));
        }
        self.out.lost.extend(message.losses());
        let calls = self.calls(place, message)?;
        content.extend(thinking(message, ask).map(Block::Thinking));
        let has_thinking = !content.is_empty();
        self.out.has_thinking |= has_thinking;
        self.out.loop_lacks_thinking = !calls.is_empty() && !has_thinking;
        // Thinking alone is no turn.
        if spoken.is_empty() && calls.is_empty() {
            return Ok(());
        }
        self.flush_notes(true);
        content.extend(spoken);
        content.extend(calls);
        self.add("assistant", content, message.cache_control);
        Ok(())
    }

    fn calls(&mut self, place: usize, message: &'a Message<'a>) -> Result<Vec<Block<'a>>, Failure> {
        let mut calls = Vec::new();
        for (index, call) in message.tool_calls.iter().flatten().enumerate() {
            let field = format!("messages[{place}].tool_calls[{index}]");
            let Some(function) = &call.function else {
                return Err(crate::chat::request::unsupported(&field, format!("`{field}` is not a call of a function")));
            };
            calls.push(self.call(legal_id(call.id.as_deref().unwrap_or_default()), function, &field)?);
        }
        if let Some(function) = &message.function_call {
            let field = format!("messages[{place}].function_call");
            calls.push(self.call(Cow::Owned(format!("call_{place}")), function, &field)?);
        }
        Ok(calls)
    }

    fn call(&mut self, id: Cow<'a, str>, function: &'a CalledFunction<'a>, field: &str) -> Result<Block<'a>, Failure> {
        check_calls(self.open_calls.len(), field)?;
        self.open_calls.push((id.clone(), false));
        self.out.called.push(&function.name);
        Ok(Block::ToolUse { id, name: &function.name, input: function.object(field)?, cache_control: None })
    }

    fn result(&mut self, place: usize, message: &'a Message<'a>) -> Result<(), Failure> {
        let field = format!("messages[{place}]");
        let position = match &message.tool_call_id {
            Some(id) => {
                let id = legal_id(id);
                self.open_calls.iter().position(|(open, done)| *open == id && !done)
            }
            // The older form knows no ids.
            None => self.open_calls.iter().position(|(_, done)| !done),
        };
        let Some(position) = position else {
            return Err(caller(&field, format!("`{field}` answers a tool call that was not made just before it")));
        };
        self.open_calls[position].1 = true;
        let content = blocks(&message.content, place)?;
        self.note(&content, message);
        let block = Block::ToolResult {
            tool_use_id: self.open_calls[position].0.clone(),
            content,
            is_error: message.is_error.unwrap_or(false),
            cache_control: message.cache_control,
        };
        if self.out.turns.last().is_none_or(|turn| turn.role != "user") {
            self.results = 0;
            self.out.turns.push(Turn { role: "user", content: Vec::new() });
        }
        // Results stand first, in the order of their calls.
        let before = self.open_calls[..position].iter().filter(|(_, done)| *done).count();
        if let Some(turn) = self.out.turns.last_mut() {
            let at = before.min(self.results).min(turn.content.len());
            turn.content.insert(at, block);
            self.results += 1;
        }
        Ok(())
    }

    /// A call without a result right behind it is refused by the API, in words that do not help.
    fn all_answered(&mut self, place: usize) -> Result<(), Failure> {
        let calls = std::mem::take(&mut self.open_calls);
        match calls.iter().find(|(_, done)| !done) {
            None => Ok(()),
            Some((id, _)) => {
                let field = format!("messages[{place}]");
                Err(caller(&field, format!("`{field}`: the tool call `{id}` before it has no result")))
            }
        }
    }

    fn end(mut self, after: usize, prefill: bool) -> Result<Conversation<'a>, Failure> {
        self.all_answered(after)?;
        self.flush_notes(true);
        let turns = &mut self.out.turns;
        if turns.first().is_none_or(|turn| turn.role != "user") {
            turns.insert(0, Turn { role: "user", content: vec![Block::text(BEGIN)] });
        }
        if let Some(last) = turns.last_mut().filter(|turn| turn.role == "assistant") {
            match last.content.last_mut() {
                Some(Block::Text { text, .. }) if prefill => {
                    let end = text.trim_end().len();
                    match text {
                        Cow::Borrowed(text) => *text = &text[..end],
                        Cow::Owned(text) => text.truncate(end),
                    }
                }
                _ => turns.push(Turn { role: "user", content: vec![Block::text(CONTINUE)] }),
            }
        }
        Ok(self.out)
    }
}

/// The thinking blocks of an assistant's message: those the client hands back, else those kept here.
fn thinking<'a>(message: &'a Message<'a>, ask: &Ask<'_>) -> std::vec::IntoIter<Cow<'a, RawValue>> {
    // Another model or account would refuse them.
    let is_ours = message.extra_content.as_ref().and_then(|extra| extra.origin.as_ref()).is_none_or(|o| **o == ask.origin());
    let echoed = message.thinking_blocks.iter().flatten().filter(|_| is_ours);
    let echoed: Vec<Cow<'a, RawValue>> = echoed.filter(|block| is_own(block)).map(|block| Cow::Borrowed(*block)).collect();
    if !echoed.is_empty() {
        return echoed.into_iter();
    }
    let first = message.tool_calls.iter().flatten().next().and_then(|call| call.id.as_deref());
    let kept = first.and_then(|id| ask.kept(id)).and_then(|state| serde_json::from_str::<Vec<Box<RawValue>>>(&state).ok());
    kept.unwrap_or_default().into_iter().map(Cow::Owned).collect::<Vec<_>>().into_iter()
}

/// Whether Anthropic handed a block out: another provider's has no signature.
fn is_own(block: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Peek<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(default, borrow)]
        signature: Option<Cow<'a, str>>,
        #[serde(default)]
        data: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Peek<'_>>(block.get()).is_ok_and(|peek| match &*peek.kind {
        "thinking" => peek.signature.is_some_and(|signature| !signature.is_empty()),
        "redacted_thinking" => peek.data.is_some(),
        _ => false,
    })
}
