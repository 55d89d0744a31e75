//! Checking a configuration, and its schema.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{check, check_text, run};

/// Every variable that the user's files name.
const VARIABLES: &[(&str, &str)] = &[
    ("OPENAI_API_KEY", "sk-openai"),
    ("OPENAI_ORG_ID", "org-1"),
    ("ANTHROPIC_API_KEY", "sk-anthropic"),
    ("AZURE_OPENAI_API_KEY", "azure-key"),
    ("AZURE_OPENAI_ENDPOINT", "https://myresource.openai.azure.com"),
    ("GOOGLE_AI_API_KEY", "google-key"),
    ("GCP_PROJECT_ID", "project-1"),
    ("LLAMA_ENDPOINT_URL", "https://llama.example"),
    ("LLAMA_API_KEY", "llama-key"),
    ("MISTRAL_API_KEY", "mistral-key"),
];

fn user_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/user-config").join(name)
}

fn without<'a>(variable: &str) -> Vec<(&'a str, &'a str)> {
    VARIABLES.iter().copied().filter(|(name, _)| *name != variable).collect()
}

#[test]
fn every_file_of_the_users_is_valid_when_its_variables_are_set() {
    let mut files = 0;
    for entry in std::fs::read_dir(user_file("")).unwrap() {
        let file = entry.unwrap().path();
        let ended = check(&file, VARIABLES);
        assert_eq!(ended.code, Some(0), "{}: {}", file.display(), ended.err);
        assert!(ended.out.contains("valid"), "{}", ended.out);
        files += 1;
    }
    assert_eq!(files, 9);
}

#[test]
fn a_missing_variable_behind_a_required_key_is_named_with_its_backend_and_key() {
    for (file, variable, backend, key) in [
        ("openai.yaml", "OPENAI_API_KEY", "openai-backend", "apiKey"),
        ("anthropic.yaml", "ANTHROPIC_API_KEY", "anthropic-backend", "apiKey"),
        ("azure-openai.yaml", "AZURE_OPENAI_API_KEY", "azure-backend", "apiKey"),
        ("azure-openai.yaml", "AZURE_OPENAI_ENDPOINT", "azure-backend", "endpoint"),
        ("google.yaml", "GOOGLE_AI_API_KEY", "gemini-backend", "apiKey"),
        ("meta.yaml", "LLAMA_ENDPOINT_URL", "llama-backend", "endpoint"),
        ("mistral.yaml", "MISTRAL_API_KEY", "mistral-backend", "apiKey"),
        ("pool.yaml", "ANTHROPIC_API_KEY", "anthropic-backend", "apiKey"),
        ("all.yaml", "LLAMA_ENDPOINT_URL", "llama-backend", "endpoint"),
    ] {
        let ended = check(&user_file(file), &without(variable));
        assert_eq!(ended.code, Some(1), "{file} without {variable}: {}", ended.out);
        let told = ended.err.lines().any(|line| [variable, backend, key].iter().all(|word| line.contains(word)));
        assert!(told, "{file} without {variable}: {}", ended.err);
    }
}

#[test]
fn a_missing_variable_behind_the_only_credential_is_named_although_another_key_could_stand_there() {
    let ended = check(&user_file("google-vertex.yaml"), &without("GCP_PROJECT_ID"));
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let told = ended.err.lines().any(|line| ["GCP_PROJECT_ID", "gemini-backend"].iter().all(|word| line.contains(word)));
    assert!(told, "{}", ended.err);
}

#[test]
fn all_missing_variables_are_named_at_once() {
    let ended = check(&user_file("all.yaml"), &[]);
    assert_eq!(ended.code, Some(1));
    for variable in [
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "AZURE_OPENAI_API_KEY",
        "AZURE_OPENAI_ENDPOINT",
        "GOOGLE_AI_API_KEY",
        "LLAMA_ENDPOINT_URL",
        "MISTRAL_API_KEY",
    ] {
        assert!(ended.err.contains(variable), "{variable}: {}", ended.err);
    }
}

#[test]
fn a_missing_variable_behind_an_optional_key_only_drops_the_key() {
    for (file, variable, key) in [("openai.yaml", "OPENAI_ORG_ID", "orgId"), ("meta.yaml", "LLAMA_API_KEY", "apiKey")] {
        let ended = check(&user_file(file), &without(variable));
        assert_eq!(ended.code, Some(0), "{file}: {}", ended.err);
        assert!(ended.out.contains(variable) && ended.out.contains(key), "{}", ended.out);
    }
}

#[test]
fn an_optional_backend_without_its_variable_is_left_out_whether_unset_or_empty() {
    for environment in [&[][..], &[("OPENAI_API_KEY", "")], &[("OPENAI_API_KEY", ""), ("LLAMA_ENDPOINT_URL", "")]] {
        let ended = run(&["check"], environment);
        assert_eq!(ended.code, Some(0), "{environment:?}: {}", ended.err);
        let about: Vec<&str> = ended.out.lines().filter(|line| line.contains("openai-backend")).collect();
        assert!(matches!(about[..], [line] if line.contains("is left out")), "{environment:?}: {}", ended.out);
    }
}

const TWO: &str = "backends:\n  - { name: one, type: simulated }\n  - { name: two, type: simulated }\n";

#[test]
fn each_mistake_is_reported_with_its_path_its_reason_and_the_nearest_valid_word() {
    for (yaml, words) in [
        (format!("{TWO}server: {{ prot: 1 }}\n"), &["server.prot", "`port`"][..]),
        (format!("{TWO}server: {{ drainTimeout: soon }}\n"), &["server.drainTimeout", "`soon`", "30s"]),
        (format!("{TWO}server: {{ port: many }}\n"), &["server.port", "`many`", "65535"]),
        (format!("{TWO}server: {{ port: [1] }}\n"), &["server.port", "single value", "list"]),
        (format!("{TWO}server: {{ maxBody: 3 parsecs }}\n"), &["server.maxBody", "3 parsecs"]),
        (format!("{TWO}server: {{ host: 0.0.0.0 }}\n"), &["auth", "0.0.0.0", "auth: none"]),
        (format!("{TWO}telemetry: {{ accessLog: perhaps }}\n"), &["telemetry.accessLog", "`perhaps`"]),
        (format!("{TWO}telemetry: {{ logs: {{ level: inof }} }}\n"), &["telemetry.logs.level", "`inof`", "`info`"]),
        (format!("{TWO}telemetry: {{ logs: {{ level: 'warn,stagedoor=lots' }} }}\n"), &["telemetry.logs.level", "target=level"]),
        (format!("{TWO}catalogue: {{ opnai/x: {{}} }}\n"), &["catalogue.opnai/x", "did you mean `openai/x`?"]),
        (format!("{TWO}catalogue: {{ azure-openai/x: {{}} }}\n"), &["catalogue.azure-openai/x", "`openai/x`"]),
        (format!("{TWO}catalogue: {{ gpt-5: {{}} }}\n"), &["catalogue.gpt-5", "`type/id`"]),
        (format!("{TWO}catalogue: {{ google/x: {{ like: gemni }} }}\n"), &["catalogue.google/x.like", "`google/gemni`"]),
        (format!("{TWO}auth: {{ keys: [{{ name: a, key: 00123456 }}] }}\n"), &["auth.keys[a].key", "in quotes"]),
        (format!("{TWO}admin: {{ token: 1234567890123456 }}\n"), &["admin.token", "in quotes"]),
        (
            format!("{TWO}auth: {{ keys: [{{ name: a, key: one-key-for-two }}, {{ name: b, key: one-key-for-two }}] }}\n"),
            &["auth.keys[b]", "that of `a` too"],
        ),
        (
            format!("{TWO}auth: {{ keys: [{{ name: a, key: the-first-one }}, {{ name: a, key: the-second-one }}] }}\n"),
            &["auth.keys[a].name", "used twice"],
        ),
        (
            format!("{TWO}  - {{ name: p, type: pool, deadline: 0s, backends: [{{ name: one }}] }}\n"),
            &["backends[p].deadline", "zero"],
        ),
        (
            format!("{TWO}  - {{ name: o, type: openai, config: {{ apiKey: k, defaultModel: 4.10 }} }}\n"),
            &["backends[o].config.defaultModel", "in quotes"],
        ),
        (format!("{TWO}admin: {{ token: '${{A' }}\n"), &["admin.token", "`}`"]),
        (format!("{TWO}telemetry: {{ otlp: {{}} }}\n"), &["telemetry.otlp.endpoint", "required"]),
        (format!("{TWO}telemetry: {{ otlp: {{ endpoint: localhost:4318 }} }}\n"), &["telemetry.otlp.endpoint", "http://"]),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', interval: 1ms }} }}\n"),
            &["telemetry.otlp.interval", "100ms"],
        ),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', sampleRatio: 2 }} }}\n"),
            &["telemetry.otlp.sampleRatio", "`2`"],
        ),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', headers: {{ 'a b': c }} }} }}\n"),
            &["telemetry.otlp.headers.a b", "header"],
        ),
        (format!("{TWO}routes: [{{ name: r, path: /x, backend: twoo }}]\n"), &["routes[r].backend", "`twoo`", "`two`"]),
        (format!("{TWO}routes: [{{ name: r, path: x, backend: one }}]\n"), &["routes[r].path"]),
        (format!("{TWO}routes: [{{ name: r, path: /x }}]\n"), &["routes[r].backend", "required"]),
        (format!("{TWO}  - {{ name: one, type: simulated }}\n"), &["backends[one].name", "twice"]),
        (format!("{TWO}  - {{ name: three, type: simulatd }}\n"), &["backends[three].type", "`simulated`"]),
        (format!("{TWO}  - {{ name: three }}\n"), &["backends[three].type", "required"]),
        (format!("{TWO}  - {{ type: simulated }}\n"), &["backends[2].name", "required"]),
        (
            format!("{TWO}  - {{ name: three, type: openai, config: {{ apiKey: k, tiemout: 3s }} }}\n"),
            &["backends[three].config.tiemout", "`timeout`"],
        ),
        (format!("{TWO}  - {{ name: three, type: openai }}\n"), &["backends[three].config.apiKey", "required"]),
        (
            format!("{TWO}  - {{ name: three, type: openai, config: {{ apiKey: k, endpoint: example.com }} }}\n"),
            &["backends[three].config.endpoint", "https://"],
        ),
        (
            format!("{TWO}  - {{ name: three, type: pool, backends: [{{ name: twoo }}] }}\n"),
            &["backends[three].backends[twoo]", "`two`"],
        ),
        (
            format!(
                "{TWO}  - {{ name: p, type: pool, backends: [{{ name: q }}] }}\n  - {{ name: q, type: pool, backends: [{{ name: p }}] }}\n"
            ),
            &["contains itself", "p -> q -> p"],
        ),
        (format!("{TWO}backends:\n  - {{ name: other, type: simulated }}\n"), &["backends", "duplicate"]),
        ("server: {}\n".to_owned(), &["backends", "required"]),
        ("backends: [\n".to_owned(), &["YAML"]),
        (format!("{TWO}backend: []\n"), &["backend:", "`backends`"]),
    ] {
        let ended = check_text(&yaml, &[]);
        assert_eq!(ended.code, Some(1), "{yaml}{}", ended.out);
        assert!(ended.err.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {}", ended.err);
        assert!(!ended.err.contains("String(") && !ended.err.contains("panicked"), "{}", ended.err);
    }
    assert_eq!(check_text(&format!("{TWO}server: {{ host: 0.0.0.0 }}\nauth: none\n"), &[]).code, Some(0));
}

#[test]
fn every_mistake_of_a_document_is_reported_at_once() {
    let yaml = "server: { prot: 1, drainTimeout: soon }\n\
                backends:\n  - { name: 'x y', type: simulated }\n  - { type: pool, backends: [] }\n  - { name: one, type: simulated }\n  - { name: one, type: simulated }\n\
                \x20 - { name: p, type: pool, backends: [{ name: p }] }\n\
                \x20 - { name: three, type: openai, config: { apiKey: \"${NOT_SET}\" } }\n\
                routes: [{ name: r, path: /x, backend: nowhere }, { path: /y, backend: one }]\n";
    let ended = check_text(yaml, &[]);
    assert_eq!(ended.code, Some(1));
    for words in [
        &["backends[x y].name", "letters, digits"][..],
        &["backends[1].name", "required"],
        &["no member"],
        &["routes[1].name", "required"],
        &["server.prot", "port"],
        &["server.drainTimeout", "soon"],
        &["backends[three].config.apiKey", "NOT_SET"],
        &["backends[one].name", "twice"],
        &["contains itself"],
        &["routes[r].backend", "nowhere"],
    ] {
        assert!(ended.err.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {}", ended.err);
    }
}

#[test]
fn a_file_that_is_not_there_and_a_variable_that_is_no_key_are_refused() {
    let ended = run(&["check", "--config", "/nowhere/stagedoor.yaml"], &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("/nowhere/stagedoor.yaml"), "{}", ended.err);
    let ended = run(&["check"], &[("STAGEDOOR__SERVER__PROT", "1")]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("STAGEDOOR__SERVER__PROT") && ended.err.contains("PORT"), "{}", ended.err);
    let ended = run(&["check"], &[("STAGEDOOR__SERVER__PORT", "many")]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("many"), "{}", ended.err);
}

/// Whether a JSON Schema, as far as ours goes, accepts a value; else where it does not.
fn accepts(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{path}: {why}: {value}"));
    for (word, least) in [("anyOf", 1), ("oneOf", 1)] {
        if let Some(options) = schema[word].as_array() {
            let results: Vec<_> = options.iter().map(|option| accepts(option, value, path)).collect();
            let fitting = results.iter().filter(|result| result.is_ok()).count();
            if fitting < least || (word == "oneOf" && fitting > 1) {
                return Err(format!("{path}: {fitting} of {word} fit {value}: {results:?}"));
            }
        }
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return refuse("not the constant");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return refuse("not one of the words");
    }
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        other => panic!("unknown type {other}"),
    };
    match &schema["type"] {
        Value::Null => {}
        Value::Array(kinds) if kinds.iter().any(is) => {}
        kind @ Value::String(_) if is(kind) => {}
        kind => return refuse(&format!("not of type {kind}")),
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        if let Some(items) = schema.get("items") {
            accepts(items, item, &format!("{path}[{index}]"))?;
        }
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            return refuse(&format!("lacks {required}"));
        }
    }
    if schema["type"] == "object" {
        for (name, inner) in value.as_object().into_iter().flatten() {
            let inner_path = format!("{path}.{name}");
            match schema["properties"].get(name).or_else(|| schema.get("additionalProperties").filter(|more| more.is_object())) {
                Some(known) => accepts(known, inner, &inner_path)?,
                None if schema["additionalProperties"] == false => return Err(format!("{inner_path}: unknown")),
                None => {}
            }
        }
    }
    Ok(())
}

fn document(file: &Path) -> Value {
    let source = config::File::from(file).format(config::FileFormat::Yaml);
    config::Config::builder().add_source(source).build().unwrap().try_deserialize().unwrap()
}

#[test]
fn the_schema_accepts_the_default_and_the_users_files_and_refuses_a_wrong_key() {
    let ended = run(&["schema"], &[]);
    assert_eq!(ended.code, Some(0));
    let schema: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("settings/stagedoor.yaml");
    let users = std::fs::read_dir(user_file("")).unwrap().map(|entry| entry.unwrap().path());
    for file in users.chain([default]) {
        assert_eq!(accepts(&schema, &document(&file), &file.display().to_string()), Ok(()));
    }
    for wrong in [
        json!({ "server": { "prot": 1 }, "backends": [] }),
        json!({ "server": {} }),
        json!({ "backends": [{ "name": "a", "type": "unheard-of" }] }),
        json!({ "backends": [{ "name": "a", "type": "openai", "config": { "tiemout": "3s", "apiKey": "k" } }] }),
    ] {
        assert!(accepts(&schema, &wrong, "").is_err(), "{wrong}");
    }
}
