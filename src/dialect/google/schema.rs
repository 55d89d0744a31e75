//! JSON Schema as Google takes it, in two forms: [`plain`] for the slots that take JSON Schema, [`message`] for older
//! models, whose slots take a message with few fields and refuse every other.

use std::cell::Cell;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// Nesting beyond this is cut: a schema that refers to itself cannot be written out.
const MAX_DEPTH: usize = 12;
/// Bytes, about, of a request's schemas with their references written out; what is beyond becomes a bare object.
const MAX_BYTES: usize = 1 << 20;

/// What may still be written out for a request.
pub(super) struct Room(Cell<usize>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Cell::new(MAX_BYTES))
    }
}

/// Keywords without meaning for an answer.
const SILENT: &[&str] =
    &["$schema", "$comment", "examples", "deprecated", "readOnly", "writeOnly", "strict", "$id", "$anchor", "id"];
/// Keywords that neither form takes: they go into the description.
const SPOKEN: &[&str] = &[
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "unevaluatedProperties",
    "unevaluatedItems",
];
/// Keywords of JSON Schema that are taken, beside those that are rewritten.
const PLAIN: &[&str] =
    &["title", "description", "format", "minItems", "maxItems", "minimum", "maximum", "required", "propertyOrdering"];
/// Fields of the older message, beside those that are rewritten.
const MESSAGE: &[&str] = &[
    "title",
    "description",
    "default",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "example",
];
const MESSAGE_FORMATS: &[&str] = &["enum", "date-time", "int32", "int64", "float", "double"];

/// Cleaned JSON Schema.
pub(super) fn plain(schema: Value) -> Value {
    let mut out = plain_node(schema);
    if let Some(root) = out.as_object_mut().filter(|root| !is_typed(root)) {
        root.insert("type".into(), json!("object"));
    }
    out
}

fn is_typed(node: &Map<String, Value>) -> bool {
    ["type", "anyOf", "$ref", "enum"].iter().any(|word| node.contains_key(*word))
}

fn plain_node(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else { return schema };
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        // Nothing but definitions may stand beside a reference.
        let mut out = Map::from_iter([("$ref".to_owned(), json!(target.replace("#/definitions/", "#/$defs/")))]);
        let definitions = schema.shift_remove("$defs").or_else(|| schema.shift_remove("definitions"));
        out.extend(definitions.map(|all| ("$defs".to_owned(), each(all, plain_node))));
        return Value::Object(out);
    }
    let has_types = schema.get("type").is_some_and(Value::is_array);
    let all_of = schema.shift_remove("allOf");
    let mut out = Map::new();
    let mut spoken = Vec::new();
    // Each node is moved on and not copied: a schema may be large, and as deep as the reader of JSON lets it be.
    for (word, value) in schema {
        match word.as_str() {
            silent if SILENT.contains(&silent) => {}
            said if SPOKEN.contains(&said) => spoken.push((word, value)),
            "$defs" | "definitions" => drop(out.insert("$defs".into(), each(value, plain_node))),
            "properties" => drop(out.insert(word, each(value, plain_node))),
            "items" | "additionalProperties" => drop(out.insert(word, plain_node(value))),
            "anyOf" | "oneOf" => alternatives(&mut out, value, plain_node),
            "prefixItems" => drop(out.insert(word, list(value, plain_node))),
            "const" => drop(out.insert("enum".into(), Value::Array(vec![value]))),
            "enum" => drop(out.insert(word, without_empty(&value))),
            "type" => plain_type(&mut out, &value),
            known if PLAIN.contains(&known) => drop(out.insert(word, value)),
            _ => spoken.push((word, value)),
        }
    }
    if has_types {
        into_branches(&mut out);
    }
    merge_all(&mut out, all_of, &plain_node);
    finish(&mut out, &spoken);
    Value::Object(out)
}

/// What only lists or objects have goes into their alternative.
fn into_branches(out: &mut Map<String, Value>) {
    let Some(Value::Array(mut all)) = out.get_mut("anyOf").map(Value::take) else { return };
    for (kind, words) in
        [("array", &["items", "minItems", "maxItems"][..]), ("object", &["properties", "required", "additionalProperties"][..])]
    {
        let branch = all.iter_mut().find(|branch| branch["type"] == kind).and_then(Value::as_object_mut);
        if let Some(branch) = branch {
            branch.extend(words.iter().filter_map(|word| out.shift_remove_entry(*word)));
            items_of_arrays(branch);
        }
    }
    out.insert("anyOf".into(), Value::Array(all));
}

/// One type, or one beside null, stays; several become alternatives.
fn plain_type(out: &mut Map<String, Value>, value: &Value) {
    let types: Vec<&Value> = value.as_array().into_iter().flatten().filter(|kind| **kind != json!("null")).collect();
    if types.len() > 1 {
        let all: Vec<Value> = value.as_array().into_iter().flatten().map(|kind| json!({ "type": kind })).collect();
        out.insert("anyOf".into(), Value::Array(all));
    } else {
        out.insert("type".into(), value.clone());
    }
}

/// The older message.
pub(super) fn message(schema: &Value, room: &Room) -> Value {
    let mut out = message_node(schema, schema, 0, &room.0);
    if let Some(root) = out.as_object_mut().filter(|root| !is_typed(root)) {
        root.insert("type".into(), json!("object"));
    }
    out
}

fn message_node(schema: &Value, root: &Value, depth: usize, left: &Cell<usize>) -> Value {
    let Value::Object(schema) = schema else { return json!({ "type": "object" }) };
    left.set(left.get().saturating_sub(own_size(schema)));
    if depth > MAX_DEPTH || left.get() == 0 {
        return json!({ "type": "object" });
    }
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let found = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return found.map_or_else(|| json!({ "type": "object" }), |found| message_node(found, root, depth + 1, left));
    }
    let inner = |value: Value| message_node(&value, root, depth + 1, left);
    let mut out = Map::new();
    let mut spoken = Vec::new();
    for (word, value) in schema {
        match word.as_str() {
            silent if SILENT.contains(&silent) => {}
            said if SPOKEN.contains(&said) => spoken.push((word.clone(), value.clone())),
            "properties" => drop(out.insert(word.clone(), each(value.clone(), inner))),
            "items" => drop(out.insert(word.clone(), inner(value.clone()))),
            "required" => drop(out.insert(word.clone(), value.clone())),
            "anyOf" | "oneOf" => alternatives(&mut out, value.clone(), inner),
            "type" => message_type(&mut out, value),
            "const" if value.is_string() => drop(out.insert("enum".into(), json!([value]))),
            "const" => {
                if !schema.contains_key("type") {
                    out.insert("type".into(), json!(type_of(value)));
                }
                spoken.push((word.clone(), value.clone()));
            }
            "enum" if value.as_array().is_some_and(|all| all.iter().all(Value::is_string)) => {
                out.insert(word.clone(), without_empty(value));
            }
            "enum" => spoken.push((word.clone(), value.clone())),
            "format" if value.as_str().is_some_and(|format| MESSAGE_FORMATS.contains(&format)) => {
                out.insert(word.clone(), value.clone());
            }
            known if MESSAGE.contains(&known) => drop(out.insert(word.clone(), value.clone())),
            _ => {}
        }
    }
    merge_all(&mut out, schema.get("allOf").cloned(), &inner);
    nullable(&mut out);
    if out.get("properties").and_then(Value::as_object).is_some_and(Map::is_empty) {
        out.shift_remove("properties");
        out.shift_remove("required");
    }
    finish(&mut out, &spoken);
    if !is_typed(&out) {
        out.insert("type".into(), json!("object"));
    } else if out.contains_key("enum") && !out.contains_key("type") {
        out.insert("type".into(), json!("string"));
    }
    alone(out)
}

/// Bytes, about, of a node without the nodes inside it.
fn own_size(schema: &Map<String, Value>) -> usize {
    fn size(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len() + 8,
            Value::Array(list) => list.iter().map(size).sum::<usize>() + 8,
            Value::Object(map) => map.iter().map(|(key, value)| key.len() + size(value)).sum::<usize>() + 8,
            _ => 8,
        }
    }
    const INNER: &[&str] = &["properties", "items", "anyOf", "oneOf", "allOf", "$defs", "definitions"];
    schema.iter().map(|(word, value)| if INNER.contains(&word.as_str()) { 8 } else { word.len() + size(value) }).sum()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::Array(_) => "array",
        Value::String(_) | Value::Null => "string",
        Value::Object(_) => "object",
    }
}

fn message_type(out: &mut Map<String, Value>, value: &Value) {
    let Value::Array(types) = value else {
        out.insert("type".into(), value.clone());
        return;
    };
    let real: Vec<&Value> = types.iter().filter(|kind| **kind != json!("null")).collect();
    if real.len() < types.len() {
        out.insert("nullable".into(), json!(true));
    }
    match real.as_slice() {
        [one] => drop(out.insert("type".into(), (*one).clone())),
        several => {
            let all: Vec<Value> = several.iter().map(|kind| json!({ "type": kind })).collect();
            out.insert("anyOf".into(), Value::Array(all));
        }
    }
}

/// An alternative of null becomes a mark; a single one that is left becomes the node itself.
fn nullable(out: &mut Map<String, Value>) {
    let Some(Value::Array(all)) = out.get_mut("anyOf") else { return };
    let before = all.len();
    all.retain(|branch| branch.get("type") != Some(&json!("null")));
    let had_null = all.len() < before;
    let only = if all.len() == 1 { all.pop() } else { None };
    if let Some(Value::Object(only)) = only {
        out.shift_remove("anyOf");
        for (word, value) in only {
            out.entry(word).or_insert(value);
        }
    }
    if had_null {
        out.insert("nullable".into(), json!(true));
    }
}

/// Alternatives must stand alone: what stood beside them goes into each.
fn alone(mut out: Map<String, Value>) -> Value {
    let Some(Value::Array(mut all)) = out.shift_remove("anyOf") else { return Value::Object(out) };
    for branch in all.iter_mut().filter_map(Value::as_object_mut) {
        let is_object = branch.get("type") == Some(&json!("object"));
        let is_list = branch.get("type") == Some(&json!("array"));
        for (word, value) in &out {
            let fits = match word.as_str() {
                "title" | "description" | "nullable" => true,
                "properties" | "required" => is_object,
                "items" => is_list,
                _ => false,
            };
            if fits {
                branch.entry(word.clone()).or_insert_with(|| value.clone());
            }
        }
        items_of_arrays(branch);
    }
    json!({ "anyOf": all })
}

fn each(value: Value, inner: impl Fn(Value) -> Value) -> Value {
    let Value::Object(all) = value else { return json!({}) };
    Value::Object(all.into_iter().map(|(name, schema)| (name, inner(schema))).collect())
}

fn list(value: Value, inner: impl Fn(Value) -> Value) -> Value {
    let Value::Array(all) = value else { return json!([]) };
    all.into_iter().map(inner).collect()
}

fn alternatives(out: &mut Map<String, Value>, value: Value, inner: impl Fn(Value) -> Value) {
    out.insert("anyOf".into(), list(value, inner));
}

fn without_empty(value: &Value) -> Value {
    value.as_array().into_iter().flatten().filter(|item| item.as_str() != Some("")).cloned().collect()
}

/// What all must hold becomes one: properties and required names are united.
fn merge_all(out: &mut Map<String, Value>, all: Option<Value>, inner: &dyn Fn(Value) -> Value) {
    let Some(Value::Array(all)) = all else { return };
    for branch in all {
        let Value::Object(branch) = inner(branch) else { continue };
        for (word, value) in branch {
            match (out.get_mut(&word), value) {
                (Some(Value::Object(known)), Value::Object(more)) if word == "properties" => known.extend(more),
                (Some(Value::Array(known)), Value::Array(more)) if word == "required" => known.extend(more),
                (Some(_), _) => {}
                (None, value) => drop(out.insert(word, value)),
            }
        }
    }
}

/// What both forms demand of a node: items, names that exist, words for what cannot be said.
fn finish(out: &mut Map<String, Value>, spoken: &[(String, Value)]) {
    items_of_arrays(out);
    let names: Option<HashSet<String>> =
        out.get("properties").and_then(Value::as_object).map(|all| all.keys().cloned().collect());
    if let (Some(names), Some(Value::Array(required))) = (names, out.get_mut("required")) {
        required.retain(|name| name.as_str().is_some_and(|name| names.contains(name)));
        if required.is_empty() {
            out.shift_remove("required");
        }
    }
    if spoken.is_empty() {
        return;
    }
    let said = spoken.iter().map(|(word, value)| format!("{word}: {value}")).collect::<Vec<_>>().join("; ");
    let text = match out.get("description").and_then(Value::as_str) {
        Some(before) => format!("{before} ({said})"),
        None => said,
    };
    out.insert("description".into(), json!(text));
}

fn items_of_arrays(out: &mut Map<String, Value>) {
    let is_array = out.get("type") == Some(&json!("array"));
    let lacks_items = out.get("items").and_then(Value::as_object).is_none_or(Map::is_empty);
    if is_array && lacks_items && !out.contains_key("prefixItems") {
        out.insert("items".into(), json!({ "type": "string" }));
    }
}
