//! Functions and the choice among them.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::schema;
use crate::catalogue::GoogleRules;
use crate::chat::Failure;
use crate::chat::request::{ChoiceMode, Function, Request, caller, schema_tree};
use crate::dialect::{Dropped, raw};

/// All functions, which stand in one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Declarations<'a> {
    function_declarations: Vec<Declaration<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Declaration<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters_json_schema: Option<Cow<'a, RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
}

/// Which functions may or must be called.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolConfig<'a> {
    function_calling_config: CallingConfig<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CallingConfig<'a> {
    mode: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_function_names: Vec<&'a str>,
}

/// Translates the tools.
pub(super) fn tools<'a>(
    request: &'a Request<'a>,
    rules: &GoogleRules,
    dropped: &mut Dropped,
) -> Result<(Vec<Declarations<'a>>, Option<ToolConfig<'a>>), Failure> {
    let functions = request.functions()?;
    if functions.is_empty() {
        return Ok((Vec::new(), None));
    }
    let is_strict = functions.iter().any(|(function, _)| function.strict == Some(true));
    let room = schema::Room::new();
    let declared: Result<Vec<_>, _> = functions.iter().map(|(function, _)| declaration(function, rules, &room)).collect();
    let config = |mode, only| Some(ToolConfig { function_calling_config: CallingConfig { mode, allowed_function_names: only } });
    // Calls that fit their schema are the nearest to what `strict` promises.
    let validated = is_strict && rules.validated_calls;
    let choice = match request.choice()? {
        None if validated => config("VALIDATED", Vec::new()),
        None => None,
        Some(choice) => match choice.mode {
            ChoiceMode::Auto if !choice.only.is_empty() => config("VALIDATED", choice.only),
            ChoiceMode::Auto if validated => config("VALIDATED", Vec::new()),
            ChoiceMode::Auto => config("AUTO", Vec::new()),
            ChoiceMode::None => config("NONE", Vec::new()),
            ChoiceMode::Required | ChoiceMode::One => config("ANY", choice.only),
        },
    };
    let is_validated = choice.as_ref().is_some_and(|choice| choice.function_calling_config.mode == "VALIDATED");
    dropped.note("tools.strict", is_strict && !is_validated);
    Ok((vec![Declarations { function_declarations: declared? }], choice))
}

fn declaration<'a>(function: &'a Function<'a>, rules: &GoogleRules, room: &schema::Room) -> Result<Declaration<'a>, Failure> {
    let mut out = Declaration {
        name: &function.name,
        description: function.description.as_deref().filter(|text| !text.is_empty()),
        parameters_json_schema: None,
        parameters: None,
    };
    let Some(parameters) = function.parameters.filter(|parameters| !matches!(parameters.get(), "null" | "{}")) else {
        return Ok(out);
    };
    let tree = schema_tree(parameters, "tools", || format!("`parameters` of the function `{}`", &*function.name))?;
    if !tree.is_object() {
        let name = &*function.name;
        return Err(caller("tools", format!("`parameters` of the function `{name}` must be a JSON Schema object")));
    }
    match rules.json_schema {
        true => out.parameters_json_schema = Some(Cow::Owned(raw(schema::plain(tree).to_string()))),
        false => {
            let message = schema::message(&tree, room);
            // An object without properties is refused; without parameters it means the same.
            out.parameters = Some(message).filter(|schema| schema.get("properties").is_some());
        }
    }
    Ok(out)
}
