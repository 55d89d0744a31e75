//! The GenAI semantic conventions: what spans and measures are called outside. Pure: it runs on the exporter's thread, so
//! that a request pays for nothing but the fields it records anyway.
//!
//! Source: open-telemetry/semantic-conventions-genai, `docs/gen-ai/gen-ai-spans.md` and `gen-ai-metrics.md` (status:
//! development), read 2026-11-29.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{Key, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SpanData;

use crate::settings::{Backend, BackendType};

/// What was asked for.
pub(super) const OPERATION: &str = "gen_ai.operation.name";
/// Who was asked.
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
/// The model that was asked for.
pub(super) const MODEL: &str = "gen_ai.request.model";
/// Class of the failure.
pub(super) const ERROR: &str = "error.type";
/// Name of the configured backend.
pub(super) const BACKEND: &str = "stagedoor.backend";
/// Name of the pool.
pub(super) const POOL: &str = "stagedoor.pool";

/// What is exported about a backend.
#[derive(Debug)]
pub(super) struct Facts {
    /// Its name.
    pub name: StringValue,
    /// The conventions' word for its provider.
    pub provider: &'static str,
    /// Host and port of its address, if it has one.
    server: Option<(StringValue, i64)>,
    /// Models that are told apart in measures.
    pub models: HashMap<String, StringValue>,
}

/// Facts of every backend, by name.
pub(super) type Directory = HashMap<String, Facts>;

/// Gathers what is exported about backends.
pub(super) fn directory(backends: &[Arc<Backend>]) -> Directory {
    backends.iter().map(|backend| (backend.name.to_string(), Facts::of(backend))).collect()
}

impl Facts {
    fn of(backend: &Backend) -> Self {
        let address = url::Url::parse(&backend.base).ok();
        let server = address.as_ref().and_then(|url| {
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            Some((StringValue::from(host), i64::from(url.port_or_known_default()?)))
        });
        Self {
            name: Arc::clone(&backend.name).into(),
            provider: provider(backend),
            server,
            models: backend.model_slots().into_iter().map(|model| (model.clone(), Arc::<str>::from(model).into())).collect(),
        }
    }
}

/// Hosts of the OpenAI-compatible type that the conventions have a word for.
const HOSTS: [(&str, &str); 6] = [
    ("groq.com", "groq"),
    ("deepseek.com", "deepseek"),
    ("perplexity.ai", "perplexity"),
    ("moonshot.ai", "moonshot_ai"),
    ("cohere.com", "cohere"),
    ("x.ai", "x_ai"),
];

/// The conventions' word for a backend's provider; the type's own where they have none.
fn provider(backend: &Backend) -> &'static str {
    match backend.kind {
        BackendType::OpenAi => "openai",
        BackendType::Anthropic => "anthropic",
        BackendType::Azure => "azure.ai.openai",
        BackendType::Google if backend.vertex.is_some() => "gcp.vertex_ai",
        BackendType::Google => "gcp.gemini",
        BackendType::Mistral => "mistral_ai",
        BackendType::Meta => HOSTS.iter().find(|(domain, _)| backend.is_at(domain)).map_or("meta", |(_, word)| word),
        BackendType::Simulated => "simulated",
    }
}

/// The conventions' word for what was asked for.
pub(super) fn operation(word: &str) -> &str {
    if word == "completions" { "text_completion" } else { word }
}

/// Gives a span its name, kind, status and attributes of the conventions. `false`: it is none that is exported, such as
/// that of a health check.
pub(super) fn dress(span: &mut SpanData, directory: &Directory) -> bool {
    let is_root = span.name == "request";
    // What was recorded again counts as recorded last.
    let mut fields: HashMap<Key, Value> = std::mem::take(&mut span.attributes).into_iter().map(|kv| (kv.key, kv.value)).collect();
    let mut text = |name: &'static str| fields.remove(name).map(|value| value.as_str().into_owned());
    let mut out: Vec<KeyValue> = Vec::with_capacity(20);

    let Some(outcome) = text("outcome") else {
        return false;
    };
    let class = text("class");
    let backend = text(if is_root { "backend" } else { PROVIDER });
    let model = text(MODEL);
    let method = text("method");
    let asked = text(OPERATION).map(|word| operation(&word).to_owned());
    let is_stream = text("gen_ai.request.stream").is_some_and(|word| word == "true");
    let first_content = text("first_content_seconds").and_then(|seconds| seconds.parse::<f64>().ok());
    let cost = text("cost_usd").and_then(|dollars| dollars.parse::<f64>().ok());

    let head = asked.as_deref().or(method.as_deref()).unwrap_or(if is_root { "request" } else { "attempt" });
    span.name = model.as_ref().map_or_else(|| head.to_owned(), |model| format!("{head} {model}")).into();
    span.span_kind = if is_root { SpanKind::Server } else { SpanKind::Client };
    // A client that left and a try that was slower than another are no errors.
    if !matches!(outcome.as_str(), "served" | "cancelled") {
        let word = class.clone().unwrap_or_else(|| outcome.clone());
        out.push(KeyValue::new(ERROR, word.clone()));
        span.status = Status::error(word);
    }

    for (name, number) in [
        ("gen_ai.usage.input_tokens", "gen_ai.usage.input_tokens"),
        ("gen_ai.usage.output_tokens", "gen_ai.usage.output_tokens"),
        ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read.input_tokens"),
        ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning.output_tokens"),
        ("status", "http.response.status_code"),
        ("attempts", "stagedoor.attempts"),
        ("attempt", "stagedoor.attempt"),
    ] {
        // Zero stands for what is not known: no status was sent, no tokens were reported.
        let known = text(name).and_then(|digits| digits.parse::<i64>().ok()).filter(|number| *number > 0);
        out.extend(known.map(|known| KeyValue::new(number, known)));
    }
    for (name, flag) in [("absorbed", "stagedoor.absorbed"), ("usage_estimated", "stagedoor.usage.estimated")] {
        out.extend((text(name).as_deref() == Some("true")).then(|| KeyValue::new(flag, true)));
    }
    for (name, word) in [
        ("request_id", "stagedoor.request.id"),
        ("path", "url.path"),
        ("caller", "stagedoor.caller"),
        ("route", "stagedoor.route"),
        ("pool", POOL),
    ] {
        out.extend(text(name).map(|value| KeyValue::new(word, value)));
    }
    out.extend(method.map(|method| KeyValue::new("http.request.method", method)));
    out.extend(asked.map(|word| KeyValue::new(OPERATION, word)));
    out.extend(model.map(|model| KeyValue::new(MODEL, model)));
    out.extend(is_stream.then(|| KeyValue::new("gen_ai.request.stream", true)));
    out.extend(first_content.filter(|_| is_stream).map(|after| KeyValue::new("gen_ai.response.time_to_first_chunk", after)));
    out.extend(cost.map(|dollars| KeyValue::new("stagedoor.cost_usd", dollars)));
    out.extend(class.map(|class| KeyValue::new("stagedoor.class", class)));
    out.push(KeyValue::new("stagedoor.outcome", outcome));
    if let Some(facts) = backend.as_deref().and_then(|name| directory.get(name)) {
        out.push(KeyValue::new(BACKEND, facts.name.clone()));
        out.push(KeyValue::new(PROVIDER, facts.provider));
        if let Some((host, port)) = facts.server.as_ref().filter(|_| !is_root) {
            out.push(KeyValue::new("server.address", host.clone()));
            out.push(KeyValue::new("server.port", *port));
        }
    }
    span.attributes = out;
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use opentelemetry::InstrumentationScope;
    use opentelemetry::trace::{SpanContext, SpanId};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    fn providers(yaml: &str) -> Vec<(&'static str, Option<(String, i64)>)> {
        let settings = crate::settings::from_text("test", yaml, &BTreeMap::new()).unwrap();
        let facts = |backend: &Arc<Backend>| {
            let facts = Facts::of(backend);
            (facts.provider, facts.server.map(|(host, port)| (host.to_string(), port)))
        };
        settings.backends.iter().map(facts).collect()
    }

    fn span(name: &'static str, fields: &[(&'static str, &'static str)]) -> SpanData {
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: fields.iter().map(|(name, value)| KeyValue::new(*name, *value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn dressed(name: &'static str, fields: &[(&'static str, &'static str)]) -> (String, Status, BTreeMap<String, Value>) {
        let mut span = span(name, fields);
        assert!(dress(&mut span, &Directory::new()));
        let attributes = span.attributes.into_iter().map(|kv| (kv.key.to_string(), kv.value)).collect();
        (span.name.into_owned(), span.status, attributes)
    }

    #[test]
    fn a_span_without_an_outcome_is_not_exported() {
        assert!(!dress(&mut span("request", &[("path", "/health")]), &Directory::new()));
    }

    #[test]
    fn a_request_is_named_by_what_was_asked_of_which_model() {
        let (name, status, told) = dressed(
            "request",
            &[
                ("outcome", "served"),
                ("gen_ai.operation.name", "completions"),
                ("gen_ai.request.model", "m"),
                ("status", "200"),
                ("gen_ai.usage.input_tokens", "3"),
                ("gen_ai.usage.output_tokens", "0"),
                ("first_content_seconds", "0.5"),
            ],
        );
        assert_eq!((name.as_str(), status), ("text_completion m", Status::Unset));
        assert_eq!(told["http.response.status_code"], Value::I64(200));
        assert_eq!(told["gen_ai.usage.input_tokens"], Value::I64(3));
        assert!(!told.contains_key("gen_ai.usage.output_tokens"), "zero stands for unknown");
        assert!(!told.contains_key("gen_ai.response.time_to_first_chunk"), "it was no stream");
    }

    #[test]
    fn a_failure_is_an_error_by_its_class_and_a_client_that_left_is_none() {
        let (name, status, told) = dressed("attempt", &[("outcome", "failed"), ("class", "socket"), ("unheard_of", "x")]);
        assert_eq!((name.as_str(), status), ("attempt", Status::error("socket")));
        assert_eq!(told["error.type"], Value::from("socket"));
        assert!(!told.contains_key("unheard_of"), "only what is named here is exported");
        assert_eq!(dressed("request", &[("outcome", "cut")]).1, Status::error("cut"));
        let (_, status, told) = dressed("request", &[("outcome", "cancelled"), ("status", "0")]);
        assert_eq!(status, Status::Unset);
        assert!(!told.contains_key("error.type") && !told.contains_key("http.response.status_code"));
    }

    #[test]
    fn every_type_has_the_conventions_word_for_its_provider() {
        let yaml = "
            backends:
              - { name: a, type: openai, config: { apiKey: k } }
              - { name: b, type: anthropic, config: { apiKey: k } }
              - { name: c, type: azure-openai, config: { apiKey: k, endpoint: 'https://r.openai.azure.com', deploymentName: d } }
              - { name: d, type: google, config: { apiKey: k } }
              - { name: e, type: mistral, config: { apiKey: k } }
              - { name: f, type: meta, config: { apiKey: k, endpoint: 'https://api.groq.com/openai/v1', defaultModel: m } }
              - { name: g, type: meta, config: { apiKey: k, endpoint: 'http://[::1]:8000/v1', defaultModel: m } }
              - { name: h, type: meta, config: { apiKey: k, endpoint: 'https://notgroq.com', defaultModel: m } }
              - { name: i, type: simulated }
        ";
        let server = |host: &str, port| Some((host.to_owned(), port));
        let found = providers(yaml);
        assert_eq!(found[0], ("openai", server("api.openai.com", 443)));
        assert_eq!(found[1], ("anthropic", server("api.anthropic.com", 443)));
        assert_eq!(found[2], ("azure.ai.openai", server("r.openai.azure.com", 443)));
        assert_eq!(found[3].0, "gcp.gemini");
        assert_eq!(found[4], ("mistral_ai", server("api.mistral.ai", 443)));
        assert_eq!(found[5], ("groq", server("api.groq.com", 443)));
        assert_eq!(found[6], ("meta", server("::1", 8000)));
        assert_eq!(found[7].0, "meta");
        assert_eq!(found[8], ("simulated", None));
    }
}
