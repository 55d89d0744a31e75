//! JSON Schema in the strict subset that Anthropic holds answers and calls to.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

/// Optional properties in one request's strict schemas.
const MAX_OPTIONAL: usize = 24;
/// Properties of several types in one request's strict schemas.
const MAX_UNIONS: usize = 16;
/// References in one schema.
const MAX_REFERENCES: usize = 500;
/// Nesting beyond this is taken for recursion.
const MAX_DEPTH: usize = 64;

/// Types that JSON Schema has.
const TYPES: usize = 7;

/// Keywords that stay as they are.
const KEPT: &[&str] = &["type", "enum", "const", "default", "title", "description", "$ref", "format", "pattern", "minItems"];
/// Keywords without meaning for an answer.
const SILENT: &[&str] = &["$schema", "$id", "$comment", "examples", "deprecated", "readOnly", "writeOnly", "strict"];
const FORMATS: &[&str] = &["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];

/// The schema with every object closed and every bound that the subset lacks moved into the descriptions; `None` when
/// it says something that the subset cannot, or when it is too much beside the others of the request.
pub(super) fn closed(schema: &Value, count: &mut Count) -> Option<Value> {
    let mut more = count.clone();
    let definitions = &mut Definitions { root: schema, sound: HashMap::new() };
    let root = node(schema, definitions, &mut more, 0)?;
    if more.optional > MAX_OPTIONAL || more.unions > MAX_UNIONS {
        return None;
    }
    *count = more;
    Some(root)
}

/// What the strict schemas of one request hold together.
#[derive(Debug, Clone, Default)]
pub(super) struct Count {
    optional: usize,
    unions: usize,
    references: usize,
}

fn node(schema: &Value, known: &mut Definitions<'_>, count: &mut Count, depth: usize) -> Option<Value> {
    let Value::Object(schema) = schema else {
        // `true` admits anything.
        return None;
    };
    if depth > MAX_DEPTH {
        return None;
    }
    if let Some(all) = schema.get("allOf") {
        match merged(schema) {
            Some(one) => return node(&one, known, count, depth + 1),
            // Objects that are closed one by one would admit nothing together.
            None if all.as_array()?.iter().any(has_object) => return None,
            None => {}
        }
    }
    if let Some(Value::Array(types)) = schema.get("type") {
        return one_type_each(schema, types, known, count, depth);
    }
    let mut out = Map::new();
    let mut notes = Vec::new();
    for (word, value) in schema {
        match word.as_str() {
            "properties" | "$defs" | "definitions" => {
                let name = if word == "definitions" { "$defs" } else { word };
                out.insert(name.into(), definitions(value, known, count, depth)?);
            }
            "items" => drop(out.insert(word.clone(), node(value, known, count, depth + 1)?)),
            "anyOf" | "oneOf" => {
                count.unions += 1;
                let all: Option<Vec<Value>> =
                    value.as_array()?.iter().map(|inner| node(inner, known, count, depth + 1)).collect();
                out.insert("anyOf".into(), Value::Array(all?));
            }
            "allOf" => {
                let all: Option<Vec<Value>> =
                    value.as_array()?.iter().map(|inner| node(inner, known, count, depth + 1)).collect();
                out.insert(word.clone(), Value::Array(all?));
            }
            // A map of free keys cannot be closed.
            "additionalProperties" if *value != json!(false) && schema.get("properties").is_none() => return None,
            "additionalProperties" | "required" => {}
            "$ref" => {
                let target = value.as_str()?.replace("#/definitions/", "#/$defs/");
                count.references += 1;
                let is_too_many = count.references > MAX_REFERENCES;
                if !target.starts_with("#/$defs/") || is_too_many || !known.is_sound(&target) {
                    return None;
                }
                out.insert(word.clone(), json!(target));
            }
            "format" if !value.as_str().is_some_and(|format| FORMATS.contains(&format)) => notes.push((word, value)),
            "pattern" if value.as_str().is_none_or(|pattern| pattern.contains("(?") || pattern.contains('\\')) => {
                notes.push((word, value));
            }
            "minItems" if value.as_u64().is_none_or(|least| least > 1) => notes.push((word, value)),
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

/// Several types as alternatives of one type each, each with what is said of its type.
fn one_type_each(
    schema: &Map<String, Value>,
    types: &[Value],
    known: &mut Definitions<'_>,
    count: &mut Count,
    depth: usize,
) -> Option<Value> {
    const OF_OBJECTS: &[&str] = &["properties", "required", "additionalProperties"];
    const OF_LISTS: &[&str] = &["items", "minItems", "maxItems"];
    const OF_ALL: &[&str] = &["title", "description", "$defs", "definitions"];
    if types.len() > TYPES {
        return None;
    }
    count.unions += 1;
    let mut branches = Vec::with_capacity(types.len());
    for kind in types {
        let belongs = |word: &str| match kind.as_str() {
            Some("object") => !OF_LISTS.contains(&word),
            Some("array") => !OF_OBJECTS.contains(&word),
            Some("null") => false,
            _ => !OF_LISTS.contains(&word) && !OF_OBJECTS.contains(&word),
        };
        let said = schema.iter().filter(|(word, _)| belongs(word) && !OF_ALL.contains(&word.as_str()));
        let mut branch: Map<String, Value> = said.map(|(word, value)| (word.clone(), value.clone())).collect();
        branch.insert("type".into(), kind.clone());
        branches.push(node(&Value::Object(branch), known, count, depth + 1)?);
    }
    let mut out = Map::new();
    for word in OF_ALL {
        if let Some(value) = schema.get(*word) {
            let value = if word.starts_with(['$', 'd']) && value.is_object() {
                definitions(value, known, count, depth)?
            } else {
                value.clone()
            };
            out.insert(if *word == "definitions" { "$defs" } else { word }.into(), value);
        }
    }
    out.insert("anyOf".into(), Value::Array(branches));
    Some(Value::Object(out))
}

fn definitions(all: &Value, known: &mut Definitions<'_>, count: &mut Count, depth: usize) -> Option<Value> {
    let mut out = Map::new();
    for (key, inner) in all.as_object()? {
        out.insert(key.clone(), node(inner, known, count, depth + 1)?);
    }
    Some(Value::Object(out))
}

/// Whether an object may stand in a branch, or what is behind a reference.
fn has_object(branch: &Value) -> bool {
    let Value::Object(branch) = branch else { return true };
    ["properties", "required", "additionalProperties", "$ref", "anyOf", "oneOf", "allOf"]
        .iter()
        .any(|word| branch.contains_key(*word))
        || branch.get("type").is_some_and(|kind| kind == "object" || kind.is_array())
}

/// What all must hold as one node; `None` where more than the properties of objects would have to be joined.
fn merged(schema: &Map<String, Value>) -> Option<Value> {
    const JOINED: &[&str] = &["type", "properties", "required", "additionalProperties", "title", "description"];
    let mut out = schema.clone();
    let branches = out.shift_remove("allOf")?;
    let branches = branches.as_array()?;
    for branch in branches {
        let branch = branch.as_object()?;
        if branches.len() > 1 && branch.keys().any(|word| !JOINED.contains(&word.as_str())) {
            return None;
        }
        for (word, value) in branch {
            match (out.get_mut(word), value) {
                (Some(Value::Object(known)), Value::Object(more)) if word == "properties" => {
                    known.extend(more.iter().map(|(name, inner)| (name.clone(), inner.clone())));
                }
                (Some(Value::Array(known)), Value::Array(more)) if word == "required" => known.extend(more.iter().cloned()),
                (Some(known), value) if *known == *value || matches!(word.as_str(), "title" | "description") => {}
                (Some(_), _) => return None,
                (None, value) => drop(out.insert(word.clone(), value.clone())),
            }
        }
    }
    Some(Value::Object(out))
}

/// Closes an object; one that lists no property would become empty, which is not what it means.
fn close(schema: &Map<String, Value>, out: &mut Map<String, Value>, count: &mut Count) -> Option<()> {
    let is_combined = ["anyOf", "$ref"].iter().any(|word| out.contains_key(*word));
    let properties = out.get("properties").and_then(Value::as_object);
    if properties.is_none() && !is_combined && schema.get("additionalProperties") != Some(&json!(false)) {
        return None;
    }
    let names: HashSet<&str> = properties.into_iter().flat_map(|properties| properties.keys()).map(String::as_str).collect();
    let mut seen = HashSet::new();
    let required: Vec<Value> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|name| name.as_str().is_some_and(|name| names.contains(name) && seen.insert(name)))
        .cloned()
        .collect();
    count.optional += names.len() - required.len();
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

/// The definitions of a schema, each looked into once, and none inside another: a client may name any number in a row.
struct Definitions<'a> {
    root: &'a Value,
    /// Whether all that a definition leads to is known to be there and not to lead back; `false` while it is looked into.
    sound: HashMap<String, bool>,
}

impl Definitions<'_> {
    /// Whether a definition leads neither back to where one has been nor to one that is not there.
    fn is_sound(&mut self, target: &str) -> bool {
        let mut path: Vec<(String, Vec<String>)> = Vec::new();
        let mut ahead = vec![target.to_owned()];
        loop {
            let Some(name) = ahead.pop() else {
                let Some((done, rest)) = path.pop() else { return true };
                self.sound.insert(done, true);
                ahead = rest;
                continue;
            };
            match self.sound.get(&name) {
                Some(true) => {}
                Some(false) => return false,
                None => {
                    let Some(found) = find(&name, self.root) else { return false };
                    let mut next = Vec::new();
                    named_in(found, &mut next);
                    self.sound.insert(name.clone(), false);
                    path.push((name, std::mem::replace(&mut ahead, next)));
                }
            }
        }
    }
}

/// Definitions that a node names; its own depth is bounded by the reader of JSON.
fn named_in(node: &Value, names: &mut Vec<String>) {
    match node {
        Value::Object(map) => {
            for (word, value) in map {
                match (word.as_str(), value) {
                    ("$ref", Value::String(name)) => names.push(name.replace("#/definitions/", "#/$defs/")),
                    _ => named_in(value, names),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| named_in(value, names)),
        _ => {}
    }
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
        assert_eq!(closed(&schema, &mut Count::default()), Some(expected));
    }

    #[test]
    fn what_is_said_of_one_type_stays_with_it_and_what_all_must_hold_is_one() {
        let object = json!({ "type": ["object", "null"], "properties": { "a": { "type": "string" } }, "required": ["a"] });
        let closed_object = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"], "additionalProperties": false });
        let list = json!({ "type": ["array", "null"], "items": { "type": "integer" }, "description": "d" });
        let all = json!({ "allOf": [
            { "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"] },
            { "properties": { "b": { "type": "string" } }, "required": ["b"] },
        ] });
        let count = &mut Count::default();
        assert_eq!(closed(&object, count), Some(json!({ "anyOf": [closed_object, { "type": "null" }] })));
        assert_eq!(
            closed(&list, count),
            Some(
                json!({ "description": "d", "anyOf": [{ "type": "array", "items": { "type": "integer" } }, { "type": "null" }] })
            )
        );
        assert_eq!(closed(&all, count).unwrap()["required"], json!(["a", "b"]));
    }

    #[test]
    fn limits_count_for_all_schemas_of_a_request_together() {
        let properties: Map<String, Value> = (0..15).map(|number| (format!("p{number}"), json!({ "type": "string" }))).collect();
        let schema = json!({ "type": "object", "properties": properties });
        let count = &mut Count::default();
        assert!(closed(&schema, count).is_some());
        assert!(closed(&schema, count).is_none(), "thirty optional properties are too many");
    }

    #[test]
    fn a_long_row_of_references_is_walked_and_not_descended() {
        let defs: Map<String, Value> =
            (0..200_000).map(|number| (format!("d{number}"), json!({ "$ref": format!("#/$defs/d{}", number + 1) }))).collect();
        let schema = json!({ "$defs": { "ends": { "type": "string" } }, "type": "object", "properties": { "a": { "$ref": "#/$defs/d0" } } });
        let mut schema = schema;
        schema["$defs"].as_object_mut().unwrap().extend(defs);
        assert_eq!(closed(&schema, &mut Count::default()), None);
    }

    #[test]
    fn many_may_refer_to_one_large_definition() {
        let values: Vec<usize> = (0..200_000).collect();
        let refers = |number: usize| (format!("p{number}"), json!({ "$ref": "#/$defs/large" }));
        let mut schema = json!({ "$defs": { "large": { "type": "integer", "enum": values } }, "type": "object" });
        let properties: Map<String, Value> = (0..MAX_REFERENCES).map(refers).collect();
        schema["required"] = properties.keys().cloned().collect();
        schema["properties"] = Value::Object(properties);
        assert!(closed(&schema, &mut Count::default()).is_some());
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
            assert_eq!(closed(&case, &mut Count::default()), None, "{case}");
        }
    }
}
