//! A value that satisfies a JSON Schema, as simple as can be.

use serde_json::{Map, Value, json};

/// Nesting at which the instance is cut short.
const MAX_DEPTH: u32 = 12;

/// Values in an instance; beyond it nothing but null is added.
const MAX_VALUES: u32 = 2_000;

/// An instance of the schema.
pub(super) fn instance(schema: &Value) -> Value {
    build(schema, schema, 0, &mut 0)
}

fn build(schema: &Value, root: &Value, depth: u32, values: &mut u32) -> Value {
    *values += 1;
    if depth > MAX_DEPTH || *values > MAX_VALUES {
        return Value::Null;
    }
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#')) {
        return root.pointer(pointer).map_or(Value::Null, |target| build(target, root, depth + 1, values));
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    for union in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema.get(union).and_then(Value::as_array).and_then(|options| options.first()) {
            return build(first, root, depth + 1, values);
        }
    }
    // Google's own form of a schema writes types in upper case.
    let kind = schema.get("type").and_then(Value::as_str).map(str::to_ascii_lowercase);
    let kind = match schema.get("type") {
        Some(Value::String(_)) => kind.as_deref().unwrap_or_default(),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("null"),
        _ => "object",
    };
    match kind {
        "object" => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let fields =
                properties.into_iter().flatten().map(|(name, inner)| (name.clone(), build(inner, root, depth + 1, values)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        "array" => schema.get("items").map_or_else(|| json!([]), |items| json!([build(items, root, depth + 1, values)])),
        "string" => json!("simulated"),
        "integer" => schema.get("minimum").filter(|least| least.is_i64() || least.is_u64()).cloned().unwrap_or_else(|| json!(1)),
        "number" => schema.get("minimum").cloned().unwrap_or_else(|| json!(1.5)),
        "boolean" => json!(true),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_every_property_of_its_type() {
        let schema = json!({
            "type": "object",
            "properties": { "city": { "type": "string" }, "unit": { "enum": ["c", "f"] }, "days": { "type": ["integer", "null"] },
                "inner": { "$ref": "#/$defs/inner" } },
            "$defs": { "inner": { "type": "array", "items": { "type": "boolean" } } }
        });
        assert_eq!(instance(&schema), json!({ "city": "simulated", "unit": "c", "days": 1, "inner": [true] }));
    }

    #[test]
    fn types_in_upper_case_are_types() {
        let schema = json!({ "type": "OBJECT", "properties": { "city": { "type": "STRING" }, "days": { "type": "INTEGER" } } });
        assert_eq!(instance(&schema), json!({ "city": "simulated", "days": 1 }));
    }

    #[test]
    fn a_schema_that_contains_itself_ends() {
        let schema = json!({ "type": "object", "properties": { "next": { "$ref": "#" } } });
        assert!(instance(&schema).is_object());
    }
}
