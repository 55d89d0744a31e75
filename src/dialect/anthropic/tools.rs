//! Tools and the choice among them.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::schema::{self, Count};
use crate::catalogue::AnthropicRules;
use crate::chat::Failure;
use crate::chat::request::{ChoiceMode, Function, Request, caller, schema_tree, unsupported};
use crate::dialect::raw;

/// Strict tools in one request.
const MAX_STRICT: usize = 20;

/// A tool as Anthropic takes it.
#[derive(Debug, Serialize)]
pub(super) struct Tool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: Cow<'a, RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<&'a RawValue>,
}

/// `tool_choice` as Anthropic takes it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Choice<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_parallel_tool_use: bool,
}

impl Choice<'_> {
    /// Whether a tool must be called.
    pub(super) fn is_forced(&self) -> bool {
        matches!(self.kind, "any" | "tool")
    }
}

/// What the request says about tools.
#[derive(Debug, Default)]
pub(super) struct Tools<'a> {
    pub(super) tools: Vec<Tool<'a>>,
    pub(super) choice: Option<Choice<'a>>,
    /// Whether a `strict` was left out.
    pub(super) lost_strict: bool,
}

/// Translates the tools; `called` names functions of the history, which must be known to the API.
pub(super) fn tools<'a>(
    request: &'a Request<'a>,
    rules: &AnthropicRules,
    model: &str,
    called: &[&'a str],
    count: &mut Count,
) -> Result<Tools<'a>, Failure> {
    let mut functions = request.functions()?;
    if functions.is_empty() {
        return Ok(of_history(called));
    }
    let choice = request.choice()?;
    if let Some(choice) = choice.as_ref().filter(|choice| choice.mode != ChoiceMode::One && !choice.only.is_empty()) {
        let only: HashSet<&str> = choice.only.iter().copied().collect();
        functions.retain(|(function, _)| only.contains(&*function.name));
        if functions.is_empty() {
            return Err(caller("tool_choice", "`tool_choice` allows none of the `tools`".into()));
        }
    }
    let may_be_strict = rules.structured && functions.iter().filter(|(f, _)| f.strict == Some(true)).count() <= MAX_STRICT;
    let mut out = Tools::default();
    for (function, cache_control) in functions {
        let (input_schema, strict) = input_schema(function, may_be_strict, count)?;
        out.lost_strict |= function.strict == Some(true) && !strict;
        out.tools.push(Tool {
            name: &function.name,
            description: function.description.as_deref().filter(|text| !text.is_empty()),
            input_schema,
            strict: strict.then_some(true),
            cache_control,
        });
    }
    let serial = request.parallel_tool_calls == Some(false);
    let forced = |kind, name| {
        if !rules.forced_tools {
            return Err(unsupported("tool_choice", format!("`tool_choice` cannot force a tool with model `{model}`")));
        }
        Ok(Some(Choice { kind, name, disable_parallel_tool_use: serial }))
    };
    out.choice = match choice {
        None if serial => Some(Choice { kind: "auto", name: None, disable_parallel_tool_use: true }),
        None => None,
        Some(choice) => match choice.mode {
            ChoiceMode::Auto => Some(Choice { kind: "auto", name: None, disable_parallel_tool_use: serial }),
            ChoiceMode::None => Some(Choice { kind: "none", ..Choice::default() }),
            ChoiceMode::Required => forced("any", None)?,
            ChoiceMode::One => forced("tool", choice.only.first().copied())?,
        },
    };
    Ok(out)
}

/// A history with calls needs its tools, even where none may be called any more.
fn of_history<'a>(called: &[&'a str]) -> Tools<'a> {
    let mut out = Tools::default();
    let mut seen = HashSet::new();
    for name in called {
        if seen.insert(*name) {
            let input_schema = Cow::Owned(raw(r#"{"type":"object"}"#.into()));
            out.tools.push(Tool { name, description: None, input_schema, strict: None, cache_control: None });
        }
    }
    if !out.tools.is_empty() {
        out.choice = Some(Choice { kind: "none", ..Choice::default() });
    }
    out
}

/// The schema of a function's input, and whether calls will be held to it.
fn input_schema<'a>(
    function: &'a Function<'a>,
    may_be_strict: bool,
    count: &mut Count,
) -> Result<(Cow<'a, RawValue>, bool), Failure> {
    #[derive(Deserialize)]
    struct Root<'a> {
        #[serde(rename = "type", default, borrow)]
        kind: Option<&'a RawValue>,
        #[serde(rename = "anyOf", alias = "oneOf", alias = "allOf", default)]
        combined: Option<serde::de::IgnoredAny>,
    }
    let Some(parameters) = function.parameters.filter(|parameters| parameters.get() != "null") else {
        return Ok((Cow::Owned(raw(r#"{"type":"object","properties":{}}"#.into())), false));
    };
    let what = || format!("`parameters` of the function `{}`", &*function.name);
    if function.strict == Some(true) && may_be_strict {
        let tree = schema_tree(parameters, "tools", what)?;
        // Alternatives and references at the root must be made one object, and then cannot be held to.
        if let Some(strict) = schema::closed(&tree, count).filter(is_object) {
            return Ok((Cow::Owned(raw(strict.to_string())), true));
        }
    }
    let is_plain = serde_json::from_str::<Root<'_>>(parameters.get())
        .is_ok_and(|root| root.combined.is_none() && root.kind.is_some_and(|kind| kind.get() == "\"object\""));
    if is_plain {
        return Ok((Cow::Borrowed(parameters), false));
    }
    let Value::Object(tree) = schema_tree(parameters, "tools", what)? else {
        return Err(caller("tools", format!("{} must be a JSON Schema object", what())));
    };
    Ok((Cow::Owned(raw(object_root(tree).to_string())), false))
}

/// Whether a schema is that of an object, and says so at its root.
fn is_object(schema: &Value) -> bool {
    schema["type"] == "object" && ["anyOf", "allOf", "$ref"].iter().all(|word| schema.get(word).is_none())
}

/// The root as one object: the API takes no alternatives there, so their properties are merged, and no reference.
fn object_root(mut root: Map<String, Value>) -> Value {
    if let Some(Value::String(target)) = root.shift_remove("$ref") {
        let named = target.strip_prefix('#').and_then(|pointer| Value::Object(root.clone()).pointer(pointer).cloned());
        if let Some(Value::Object(named)) = named {
            for (word, value) in named {
                root.entry(word).or_insert(value);
            }
        }
    }
    let mut properties = match root.shift_remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    let mut required: Vec<Value> = root.shift_remove("required").and_then(|list| list.as_array().cloned()).unwrap_or_default();
    for (word, all_hold) in [("allOf", true), ("anyOf", false), ("oneOf", false)] {
        let branches = root.shift_remove(word).and_then(|list| list.as_array().cloned()).unwrap_or_default();
        let mut common: Option<Vec<Value>> = None;
        for branch in branches {
            for (name, schema) in branch["properties"].as_object().into_iter().flatten() {
                properties.entry(name.clone()).or_insert_with(|| schema.clone());
            }
            let needs = branch["required"].as_array().cloned().unwrap_or_default();
            common = Some(match common {
                None => needs,
                Some(mut before) if all_hold => {
                    before.extend(needs);
                    before
                }
                Some(before) => {
                    let needs: HashSet<&str> = needs.iter().filter_map(Value::as_str).collect();
                    before.into_iter().filter(|name| name.as_str().is_some_and(|name| needs.contains(name))).collect()
                }
            });
        }
        required.extend(common.unwrap_or_default());
    }
    root.insert("type".into(), json!("object"));
    root.insert("properties".into(), Value::Object(properties));
    if !required.is_empty() {
        root.insert("required".into(), Value::Array(required));
    }
    Value::Object(root)
}
