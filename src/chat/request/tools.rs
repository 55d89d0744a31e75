//! Tools and calls of a request.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Text, caller, unsupported};
use crate::chat::Failure;

/// A call the assistant made.
#[derive(Debug, Deserialize)]
pub struct ToolCall<'a> {
    /// Its id.
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    /// What was called.
    #[serde(borrow)]
    pub function: Option<CalledFunction<'a>>,
    /// What a provider wants back, an extension.
    #[serde(borrow)]
    pub extra_content: Option<ExtraContent<'a>>,
}

/// The function of a call.
#[derive(Debug, Deserialize)]
pub struct CalledFunction<'a> {
    /// Its name.
    #[serde(borrow)]
    pub name: Text<'a>,
    /// JSON as text.
    #[serde(borrow)]
    pub arguments: Option<Text<'a>>,
    /// One spelling of Google's signature, an extension.
    #[serde(borrow)]
    pub thought_signature: Option<Text<'a>>,
}

/// `extra_content`: what a provider wants back, in the shape of Google's own compatible endpoint.
#[derive(Debug, Deserialize)]
pub struct ExtraContent<'a> {
    /// Google's part of it.
    #[serde(borrow)]
    pub google: Option<GoogleContent<'a>>,
    /// Backend and model that it came from, if this gateway handed it out.
    #[serde(borrow)]
    pub origin: Option<Text<'a>>,
}

/// Google's part of `extra_content`.
#[derive(Debug, Deserialize)]
pub struct GoogleContent<'a> {
    /// Signature over the thoughts before this part.
    #[serde(borrow)]
    pub thought_signature: Option<Text<'a>>,
}

/// A tool.
#[derive(Debug, Deserialize)]
pub struct Tool<'a> {
    /// What it is.
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    /// The function, if it is one.
    #[serde(borrow)]
    pub function: Option<Function<'a>>,
    /// Cache marker, an extension.
    #[serde(borrow)]
    pub cache_control: Option<&'a RawValue>,
}

/// A function that may be called.
#[derive(Debug, Deserialize)]
pub struct Function<'a> {
    /// Its name.
    #[serde(borrow)]
    pub name: Text<'a>,
    /// What it does.
    #[serde(borrow)]
    pub description: Option<Text<'a>>,
    /// JSON Schema.
    #[serde(borrow)]
    pub parameters: Option<&'a RawValue>,
    /// Whether calls must fit the schema.
    pub strict: Option<bool>,
}

/// `tool_choice` in every form, and the older `function_call`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum ToolChoice<'a> {
    /// `auto`, `none`, `required`.
    Word(#[serde(borrow)] Text<'a>),
    /// One function, or the allowed ones.
    Named(#[serde(borrow)] NamedChoice<'a>),
}

/// The object form of `tool_choice`.
#[derive(Debug, Deserialize)]
pub struct NamedChoice<'a> {
    /// What is named.
    #[serde(borrow, rename = "type")]
    pub kind: Option<Text<'a>>,
    /// The function.
    #[serde(borrow)]
    pub function: Option<FunctionName<'a>>,
    /// Its name, in the older form.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// The allowed tools.
    #[serde(borrow)]
    pub allowed_tools: Option<AllowedTools<'a>>,
}

/// A function by name.
#[derive(Debug, Deserialize)]
pub struct FunctionName<'a> {
    /// Its name.
    #[serde(borrow)]
    pub name: Text<'a>,
}

/// The allowed tools.
#[derive(Debug, Deserialize)]
pub struct AllowedTools<'a> {
    /// `auto` or `required`.
    #[serde(borrow)]
    pub mode: Text<'a>,
    /// Which.
    #[serde(borrow)]
    pub tools: Vec<AllowedTool<'a>>,
}

/// One allowed tool.
#[derive(Debug, Deserialize)]
pub struct AllowedTool<'a> {
    /// The function.
    #[serde(borrow)]
    pub function: Option<FunctionName<'a>>,
}

/// Which tools may or must be called, whatever form it was written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice<'a> {
    /// How.
    pub mode: ChoiceMode,
    /// Only these; empty means all.
    pub only: Vec<&'a str>,
}

/// Whether tools may or must be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceMode {
    /// The model decides.
    Auto,
    /// None may.
    None,
    /// At least one must.
    Required,
    /// This one must.
    One,
}

impl CalledFunction<'_> {
    /// The arguments, which providers of other dialects take as an object only.
    ///
    /// # Errors
    /// `Unsupported` for anything else, which a provider of the OpenAI API may take.
    pub fn object(&self, field: &str) -> Result<Cow<'_, RawValue>, Failure> {
        let text = self.arguments.as_deref().unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(Cow::Owned(RawValue::from_string("{}".into()).unwrap_or_else(|_| RawValue::NULL.to_owned())));
        }
        match serde_json::from_str::<&RawValue>(text) {
            Ok(value) if value.get().starts_with('{') => Ok(Cow::Borrowed(value)),
            _ => {
                let field = format!("{field}.function.arguments");
                Err(unsupported(&field, format!("`{field}` is not a JSON object")))
            }
        }
    }
}

/// Bytes of one schema at most: it is worked over as a tree, which takes many times as many.
const MAX_SCHEMA: usize = 1 << 20;

/// The tree of a schema, which stands in a top-level field; `what` names it in words.
///
/// # Errors
/// `Caller` for one that is too large or too deep.
pub fn schema_tree(schema: &RawValue, field: &str, what: impl FnOnce() -> String) -> Result<Value, Failure> {
    if schema.get().len() > MAX_SCHEMA {
        return Err(caller(field, format!("{} is larger than 1MiB", what())));
    }
    serde_json::from_str(schema.get()).map_err(|error| caller(field, format!("{} cannot be read: {error}", what())))
}

/// Calls of one turn at most.
const MAX_CALLS: usize = 512;

/// Refuses a turn with more calls than any model makes: they are matched with their results one by one.
///
/// # Errors
/// A failure of class `Caller` that names the field.
pub fn check_calls(open: usize, field: &str) -> Result<(), Failure> {
    if open < MAX_CALLS { Ok(()) } else { Err(caller(field, format!("`{field}` is beyond the {MAX_CALLS} calls of one turn"))) }
}
