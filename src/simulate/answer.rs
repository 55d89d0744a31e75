//! What the simulated provider says, whatever the wire format: an echo of the question, calls of the first tools, an
//! instance of the schema. The formats in [`super::wire`] read the question and write the answer down.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::schema::instance;

/// The thought of a request that asks for one, in pieces.
pub(super) const THOUGHT: [&str; 3] = ["An echo", " of the question", " will do."];

/// What proves a thought, in base64 as the real ones are.
pub(super) const SIGNATURE: &str = "c2ltdWxhdGVkIHNpZ25hdHVyZQ==";

/// Tokens that one call counts for.
const CALL_TOKENS: u64 = 8;

/// Numbers in one reply of embeddings.
const MAX_FLOATS: u64 = 4 << 20;

/// What of a request its answer depends on.
#[derive(Default)]
pub(super) struct Question<'a> {
    /// Text of the last turn.
    pub text: String,
    /// Whether the last turn is a tool's result; then no tool is called.
    pub after_tool: bool,
    /// Tools that may be called.
    pub tools: Vec<Tool<'a>>,
    /// Whether several may be called at once.
    pub parallel: bool,
    /// What text has to be.
    pub format: Format<'a>,
    /// Whether thoughts are to be shown.
    pub thinks: bool,
}

/// A tool that may be called.
pub(super) struct Tool<'a> {
    /// Its name.
    pub name: &'a str,
    /// JSON Schema of its arguments.
    pub parameters: Option<&'a Value>,
}

/// What text has to be.
#[derive(Default)]
pub(super) enum Format<'a> {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    Json,
    /// An instance of the schema.
    Schema(Cow<'a, Value>),
}

/// An answer.
pub(super) struct Says {
    /// Whether [`THOUGHT`] comes first.
    pub thinks: bool,
    /// What is said or done.
    pub content: Content,
}

/// What an answer says or does.
pub(super) enum Content {
    /// Text in pieces.
    Words(Vec<String>),
    /// Calls of tools.
    Calls(Vec<Call>),
}

/// A call of a tool.
pub(super) struct Call {
    /// The tool.
    pub name: String,
    /// An instance of its schema.
    pub arguments: Value,
}

impl Says {
    /// Tokens of the content.
    pub(super) fn tokens(&self) -> u64 {
        match &self.content {
            Content::Words(words) => words.len() as u64,
            Content::Calls(calls) => calls.len() as u64 * CALL_TOKENS,
        }
    }

    /// Tokens of the thought.
    pub(super) fn thought_tokens(&self) -> u64 {
        if self.thinks { THOUGHT.len() as u64 } else { 0 }
    }

    /// Whether tools are called.
    pub(super) fn calls(&self) -> bool {
        matches!(self.content, Content::Calls(_))
    }
}

/// The answer to a question; plain text has as many words as `tokens` says.
pub(super) fn says(question: &Question<'_>, tokens: u64) -> Says {
    Says { thinks: question.thinks, content: content(question, tokens) }
}

fn content(question: &Question<'_>, tokens: u64) -> Content {
    if !question.tools.is_empty() && !question.after_tool {
        let count = if question.parallel { 2 } else { 1 };
        return Content::Calls(question.tools.iter().take(count).map(call).collect());
    }
    Content::Words(match &question.format {
        Format::Schema(schema) => pieces(&instance(schema).to_string()),
        Format::Json => pieces(r#"{"simulated":true}"#),
        Format::Text => words(&question.text, tokens),
    })
}

fn call(tool: &Tool<'_>) -> Call {
    Call { name: tool.name.to_owned(), arguments: tool.parameters.map_or_else(|| json!({}), instance) }
}

/// The question's words after a preamble, again and again until there are `tokens` of them.
pub(super) fn words(question: &str, tokens: u64) -> Vec<String> {
    let question: Vec<&str> = question.split_whitespace().collect();
    let again = question.iter().copied().chain(["and", "so", "on"]).cycle();
    let all = ["Simulated", "answer", "to:"].into_iter().chain(again);
    let count = usize::try_from(tokens).unwrap_or(usize::MAX);
    all.take(count).enumerate().map(|(place, word)| if place == 0 { word.to_owned() } else { format!(" {word}") }).collect()
}

/// Text cut into pieces, as JSON is streamed.
pub(super) fn pieces(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters.chunks(8).map(|piece| piece.iter().collect()).collect()
}

/// Tokens of a request, as good as can be told without a tokenizer.
pub(super) fn prompt_tokens(request: &Value) -> u64 {
    request.to_string().len() as u64 / 4
}

/// Tokens of a text to embed.
pub(super) fn text_tokens(text: &str) -> u64 {
    text.len() as u64 / 4 + 1
}

/// How many numbers an embedding has, if a request's wish can be met.
pub(super) fn dimensions(asked: Option<&Value>, inputs: usize) -> Result<u64, &'static str> {
    let dimensions = asked.and_then(Value::as_u64).unwrap_or(8).clamp(1, 4_096);
    if inputs as u64 * dimensions > MAX_FLOATS {
        return Err("the simulated provider embeds at most 4,194,304 numbers at once");
    }
    Ok(dimensions)
}

/// The embedding of a text.
pub(super) fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    let seed = text.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..dimensions).map(|_| rng.f32() * 2.0 - 1.0).collect()
}
