//! JSON Schema in the strict subset that Anthropic holds answers and calls to.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// Optional properties in one request's strict schemas.
const MAX_OPTIONAL: usize = 24;
/// Properties of several types in one request's strict schemas.
const MAX_UNIONS: usize = 16;
/// References in one schema.
const MAX_REFERENCES: usize = 500;
/// Nesting beyond this is taken for recursion.
const MAX_DEPTH: usize = 64;

/// Keywords that stay as they are.
const KEPT: &[&str] = &["type", "enum", "const", "default", "title", "description", "$ref", "format", "pattern", "minItems"];
/// Keywords without meaning for an answer.
const SILENT: &[&str] = &["$schema", "$id", "$comment", "examples", "deprecated", "readOnly", "writeOnly", "strict"];
const FORMATS: &[&str] = &["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];

/// The schema with every object closed and every bound that the subset lacks moved into the descriptions; `None` when
/// it says something that the subset cannot.
pub(super) fn closed(schema: &Value) -> Option<Value> {
    let mut count = Count::default();
    let root = node(schema, schema, &mut count, 0)?;
    (count.optional <= MAX_OPTIONAL && count.unions <= MAX_UNIONS).then_some(root)
}

#[derive(Default)]
struct Count {
    optional: usize,
    unions: usize,
    references: usize,
}

fn node(schema: &Value, root: &Value, count: &mut Count, depth: usize) -> Option<Value> {
    let Value::Object(schema) = schema else {
        // `true` admits anything.
        return None;
    };
    if depth > MAX_DEPTH {
        return None;
    }
    let mut out = Map::new();
    let mut notes = Vec::new();
    for (word, value) in schema {
        match word.as_str() {
            "properties" | "$defs" | "definitions" => {
                let name = if word == "definitions" { "$defs" } else { word };
                let mut all = Map::new();
                for (key, inner) in value.as_object()? {
                    all.insert(key.clone(), node(inner, root, count, depth + 1)?);
                }
                out.insert(name.into(), Value::Object(all));
            }
            "items" => drop(out.insert(word.clone(), node(value, root, count, depth + 1)?)),
            "anyOf" | "oneOf" => {
                count.unions += 1;
                let all: Option<Vec<Value>> = value.as_array()?.iter().map(|inner| node(inner, root, count, depth + 1)).collect();
                out.insert("anyOf".into(), Value::Array(all?));
            }
            "allOf" => {
                let branches = value.as_array()?;
                if branches.iter().any(|branch| branch.get("$ref").is_some()) {
                    return None;
                }
                let all: Option<Vec<Value>> = branches.iter().map(|inner| node(inner, root, count, depth + 1)).collect();
                out.insert(word.clone(), Value::Array(all?));
            }
            // A map of free keys cannot be closed.
            "additionalProperties" if *value != json!(false) && schema.get("properties").is_none() => return None,
            "additionalProperties" | "required" => {}
            "$ref" => {
                let target = value.as_str()?.replace("#/definitions/", "#/$defs/");
                count.references += 1;
                let is_too_many = count.references > MAX_REFERENCES;
                if !target.starts_with("#/$defs/") || is_too_many || is_recursive(&target, root) {
                    return None;
                }
                out.insert(word.clone(), json!(target));
            }
            "format" if !value.as_str().is_some_and(|format| FORMATS.contains(&format)) => notes.push((word, value)),
            "pattern" if value.as_str().is_none_or(|pattern| pattern.contains("(?") || pattern.contains('\\')) => {
                notes.push((word, value));
            }
            "minItems" if value.as_u64().is_none_or(|least| least > 1) => notes.push((word, value)),
            "type" if value.is_array() => {
                count.unions += 1;
                out.insert("anyOf".into(), one_type_each(schema, value.as_array()?));
            }
            known if KEPT.contains(&known) => drop(out.insert(word.clone(), value.clone())),
            silent if SILENT.contains(&silent) => {}
            _ => notes.push((word, value)),
        }
    }
    if out.get("type") == Some(&json!("object")) || out.contains_key("properties") {
        close(schema, &mut out, count)?;
    }
    if contradicts(&out) {
        out.shift_remove("type");
    }
    describe(&mut out, &notes);
    Some(Value::Object(out))
}

/// A list of types as alternatives of one type each; what else the node says stays beside them.
fn one_type_each(schema: &Map<String, Value>, types: &[Value]) -> Value {
    let branch = |kind: &Value| match kind.as_str() {
        Some("object") => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        Some("array") if schema.contains_key("items") => json!({ "type": "array" }),
        _ => json!({ "type": kind }),
    };
    types.iter().map(branch).collect()
}

/// Closes an object; one that lists no property would become empty, which is not what it means.
fn close(schema: &Map<String, Value>, out: &mut Map<String, Value>, count: &mut Count) -> Option<()> {
    let is_combined = ["anyOf", "allOf", "$ref"].iter().any(|word| out.contains_key(*word));
    let properties = out.get("properties").and_then(Value::as_object);
    if properties.is_none() && !is_combined && schema.get("additionalProperties") != Some(&json!(false)) {
        return None;
    }
    let names: Vec<&String> = properties.into_iter().flat_map(|properties| properties.keys()).collect();
    let required: Vec<Value> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|name| name.as_str().is_some_and(|name| names.iter().any(|known| *known == name)))
        .cloned()
        .collect();
    count.optional += names.len() - required.len().min(names.len());
    if !required.is_empty() {
        out.insert("required".into(), Value::Array(required));
    }
    out.insert("additionalProperties".into(), json!(false));
    Some(())
}

/// Whether the listed values are not of the named type, which the API refuses.
fn contradicts(node: &Map<String, Value>) -> bool {
    let (Some(Value::String(kind)), Some(Value::Array(values))) = (node.get("type"), node.get("enum")) else { return false };
    values.iter().any(|value| match kind.as_str() {
        "string" => !value.is_string(),
        "integer" | "number" => !value.is_number(),
        "boolean" => !value.is_boolean(),
        _ => false,
    })
}

/// Writes what the subset cannot say into the description, where the model reads it.
fn describe(out: &mut Map<String, Value>, notes: &[(&String, &Value)]) {
    if notes.is_empty() {
        return;
    }
    let said = notes.iter().map(|(word, value)| format!("{word}: {value}")).collect::<Vec<_>>().join("; ");
    let text = match out.get("description").and_then(Value::as_str) {
        Some(before) => format!("{before} ({said})"),
        None => said,
    };
    out.insert("description".into(), json!(text));
}

/// Whether a definition leads back to itself, or to one that is not there.
fn is_recursive(target: &str, root: &Value) -> bool {
    fn leads<'a>(node: &'a Value, target: &str, root: &'a Value, seen: &mut HashSet<String>) -> bool {
        match node {
            Value::Object(map) => map.iter().any(|(word, value)| match (word.as_str(), value) {
                ("$ref", Value::String(next)) => {
                    let next = next.replace("#/definitions/", "#/$defs/");
                    // Each definition is looked into once, however often it is named.
                    next == target
                        || (seen.insert(next.clone()) && find(&next, root).is_none_or(|found| leads(found, target, root, seen)))
                }
                _ => leads(value, target, root, seen),
            }),
            Value::Array(list) => list.iter().any(|value| leads(value, target, root, seen)),
            _ => false,
        }
    }
    find(target, root).is_none_or(|found| leads(found, target, root, &mut HashSet::new()))
}

fn find<'a>(target: &str, root: &'a Value) -> Option<&'a Value> {
    let name = target.strip_prefix("#/$defs/")?;
    root.get("$defs").and_then(|all| all.get(name)).or_else(|| root.get("definitions").and_then(|all| all.get(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_and_bounds_become_words() {
        let schema = json!({
            "$schema": "x", "type": "object", "required": ["a", "ghost"],
            "properties": {
                "a": { "type": "integer", "minimum": 1, "description": "how many" },
                "b": { "oneOf": [{ "type": "string", "format": "color" }, { "type": "null" }] },
                "c": { "type": ["string", "null"] },
                "d": { "type": "string", "enum": [1, "x"] },
            },
        });
        let expected = json!({
            "type": "object",
            "properties": {
                "a": { "type": "integer", "description": "how many (minimum: 1)" },
                "b": { "anyOf": [{ "type": "string", "description": "format: \"color\"" }, { "type": "null" }] },
                "c": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "d": { "enum": [1, "x"] },
            },
            "required": ["a"],
            "additionalProperties": false,
        });
        assert_eq!(closed(&schema), Some(expected));
    }

    #[test]
    fn what_the_subset_cannot_say_is_refused() {
        let cases = [
            json!({ "type": "object" }),
            json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            json!({ "type": "object", "properties": { "a": true } }),
            json!({ "$defs": { "n": { "type": "object", "properties": { "next": { "$ref": "#/$defs/n" } } } }, "$ref": "#/$defs/n" }),
            json!({ "type": "object", "properties": { "a": { "$ref": "other.json" } } }),
        ];
        for case in cases {
            assert_eq!(closed(&case), None, "{case}");
        }
    }
}
