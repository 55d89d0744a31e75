//! Fields of a request whose values Mistral's strict schema takes in a narrower form than OpenAI's.
//!
//! Source: Mistral's OpenAPI document and SDK types, read 2026-11-22.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::request::{Edit, blame};
use crate::chat::{Endpoint, Failure};

/// Whether a field of this endpoint is looked at here.
pub(super) fn knows(endpoint: Endpoint, name: &str) -> bool {
    match endpoint {
        Endpoint::Chat => matches!(name, "tools" | "tool_choice" | "prediction"),
        Endpoint::Completions => name == "prompt",
        Endpoint::Embeddings => name == "input",
        Endpoint::Passthrough => false,
    }
}

/// The field in Mistral's form.
///
/// # Errors
/// `Unsupported` where it has none.
pub(super) fn field(name: &str, value: &[u8]) -> Result<Edit, Failure> {
    let read = || serde_json::from_slice::<Value>(value).map_err(|error| blame(name, format!("{name} cannot be read: {error}")));
    match (name, value.first()) {
        ("tools", _) => tools(read()?),
        ("tool_choice", Some(b'{')) => choice(&read()?),
        ("tool_choice", _) if value == br#""required""# => Ok(Edit::Replace(None, Cow::Borrowed(br#""any""#))),
        ("prediction", Some(b'{')) => prediction(read()?),
        ("prompt", Some(b'[')) => prompt(value),
        ("input", Some(b'[')) => input(value),
        _ if value == b"null" => Ok(Edit::Drop),
        _ => Ok(Edit::Keep),
    }
}

fn replaced(value: &Value) -> Edit {
    Edit::Replace(None, Cow::Owned(value.to_string().into_bytes()))
}

/// An empty list is refused, `parameters` are demanded, and there are functions only.
fn tools(mut tools: Value) -> Result<Edit, Failure> {
    const KNOWN: [&str; 4] = ["name", "description", "parameters", "strict"];
    let Some(list) = tools.as_array_mut().filter(|list| !list.is_empty()) else {
        return Ok(Edit::Drop);
    };
    for tool in list {
        let Some(Value::Object(function)) = tool.get_mut("function").map(Value::take) else {
            return Err(blame("tools", "this backend's provider takes function tools only".into()));
        };
        let known = function.into_iter().filter(|(name, value)| KNOWN.contains(&name.as_str()) && !value.is_null());
        let mut function: Map<String, Value> = known.collect();
        function.entry("parameters").or_insert(json!({ "type": "object", "properties": {} }));
        *tool = json!({ "type": "function", "function": function });
    }
    Ok(replaced(&tools))
}

fn choice(choice: &Value) -> Result<Edit, Failure> {
    match (choice.get("type").and_then(Value::as_str), choice.pointer("/function/name")) {
        (Some("function"), Some(name)) => Ok(replaced(&json!({ "type": "function", "function": { "name": name } }))),
        _ => Err(blame("tool_choice", "this backend's provider can be made to call a function, and nothing else".into())),
    }
}

/// The content is a text there, never a list of parts.
fn prediction(mut prediction: Value) -> Result<Edit, Failure> {
    if let Some(Value::Array(parts)) = prediction.get("content") {
        let texts = parts.iter().map(|part| part.get("text").and_then(Value::as_str));
        let Some(text) = texts.collect::<Option<String>>() else {
            return Err(blame("prediction", "this backend's provider takes a prediction of text only".into()));
        };
        prediction["content"] = json!(text);
    }
    Ok(replaced(&prediction))
}

/// One text; a list of one is the same.
fn prompt(value: &[u8]) -> Result<Edit, Failure> {
    match serde_json::from_slice::<Vec<&RawValue>>(value).as_deref() {
        Ok([one]) if one.get().starts_with('"') => Ok(Edit::Replace(None, Cow::Owned(one.get().as_bytes().to_vec()))),
        _ => Err(blame("prompt", "this backend's provider takes one prompt, as text".into())),
    }
}

fn input(value: &[u8]) -> Result<Edit, Failure> {
    match serde_json::from_slice::<Vec<&RawValue>>(value) {
        Ok(texts) if texts.iter().all(|text| text.get().starts_with('"')) => Ok(Edit::Keep),
        _ => Err(blame("input", "this backend's provider takes texts, no tokens".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::FailureClass;

    #[test]
    fn what_the_schema_cannot_say_is_left_to_other_members() {
        for (name, value) in [
            ("tools", r#"[{"type":"custom","custom":{"name":"f"}}]"#),
            ("tool_choice", r#"{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[]}}"#),
            ("tool_choice", r#"{"type":"custom","custom":{"name":"f"}}"#),
            ("prediction", r#"{"type":"content","content":[{"type":"image_url"}]}"#),
            ("prompt", r#"["a","b"]"#),
            ("prompt", "[1,2]"),
            ("input", "[1,2]"),
            ("input", "[[1],[2]]"),
        ] {
            let Err(refused) = field(name, value.as_bytes()) else { panic!("{name}: {value}") };
            assert_eq!((refused.class, refused.param.as_deref()), (FailureClass::Unsupported, Some(name)), "{value}");
        }
    }
}
