//! A chat request of the OpenAI API as a `generateContent` request.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::address::bare;
use super::contents::{Content, Conversation, conversation};
use super::fields::{CARRIED, REFUSED};
use super::schema;
use super::tools::{Declarations, ToolConfig, tools};
use crate::catalogue::GoogleRules;
use crate::chat::Failure;
use crate::chat::request::{Effort, Request, Stop, caller, schema_tree, unsupported};
use crate::dialect::{Ask, Dropped, Encoded};

/// Stop sequences at most.
const MAX_STOPS: usize = 5;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    contents: Vec<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Declarations<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_config: Option<ToolConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_config: Option<GenerationConfig<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    safety_settings: &'a [std::collections::BTreeMap<String, String>],
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct GenerationConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidate_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_mime_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_json_schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_config: Option<ThinkingConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    response_modalities: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ThinkingConfig {
    include_thoughts: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_level: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_budget: Option<u64>,
}

/// The request in Google's form.
pub(super) fn encode(ask: &Ask<'_>) -> Result<Encoded, Failure> {
    let rules = ask.backend.catalogue.google(bare(ask.model));
    let request = Request::read(ask.body)?;
    let mut dropped = Dropped::unknown(ask, CARRIED, REFUSED)?;
    refuse(&request, rules, ask.model)?;
    let Conversation { system, contents, lost } = conversation(&request.messages, rules, ask)?;
    for field in lost {
        dropped.note(field, true);
    }
    dropped.note("cache_control", request.tools.iter().flatten().any(|tool| tool.cache_control.is_some()));
    let (declarations, tool_config) = tools(&request, rules, &mut dropped)?;
    if !declarations.is_empty() {
        dropped.note("parallel_tool_calls", request.parallel_tool_calls == Some(false));
    }
    let mut config = generation_config(&request, rules, ask, &mut dropped);
    format(&request, rules, ask.model, !declarations.is_empty(), &mut config)?;
    let body = Body {
        contents,
        system_instruction: (!system.is_empty()).then_some(Content { role: "", parts: system }),
        tools: declarations,
        tool_config,
        generation_config: (config != GenerationConfig::default()).then_some(config),
        safety_settings: &ask.backend.translation.safety_settings,
        service_tier: service_tier(&request, &mut dropped),
    };
    let mut out = Vec::with_capacity(ask.body.len() + 256);
    serde_json::to_writer(&mut out, &body).map_err(|error| unsupported("messages", error.to_string()))?;
    Ok(Encoded::new(Bytes::from(out), dropped.finish()))
}

/// What would change the answer if it were left out.
fn refuse(request: &Request<'_>, rules: &GoogleRules, model: &str) -> Result<(), Failure> {
    if request.n.is_some_and(|n| n > 1) && !rules.candidates {
        return Err(unsupported("n", format!("`n` above 1 cannot be asked of model `{model}`")));
    }
    if request.logprobs == Some(true) && !rules.logprobs {
        return Err(unsupported("logprobs", format!("`logprobs` cannot be asked of model `{model}`")));
    }
    if request.modalities.iter().flatten().any(|kind| !matches!(&**kind, "text" | "image")) {
        return Err(unsupported("modalities", "`modalities` other than text and image are not translated for Google".into()));
    }
    Ok(())
}

fn generation_config<'a>(
    request: &'a Request<'a>,
    rules: &GoogleRules,
    ask: &Ask<'_>,
    dropped: &mut Dropped,
) -> GenerationConfig<'a> {
    let own = ask.backend.catalogue.model("google", bare(ask.model)).and_then(|model| model.max_output_tokens);
    let most = own.unwrap_or(rules.max_output_tokens);
    dropped.note("max_tokens", request.output_limit().is_some_and(|wanted| wanted > most));
    let sampling = rules.sampling;
    dropped.note("temperature", !sampling && request.temperature.is_some_and(|value| value != 1.0));
    dropped.note("top_p", !sampling && request.top_p.is_some_and(|value| value != 1.0));
    dropped.note("top_k", !sampling && request.top_k.is_some());
    let penalty = |value: Option<f64>| value.filter(|value| *value != 0.0);
    dropped.note("frequency_penalty", !rules.penalties && penalty(request.frequency_penalty).is_some());
    dropped.note("presence_penalty", !rules.penalties && penalty(request.presence_penalty).is_some());
    let mut stops: Vec<&str> = request.stop.iter().flat_map(Stop::texts).map(|text| &**text).collect();
    dropped.note("stop", stops.len() > MAX_STOPS);
    stops.truncate(MAX_STOPS);
    GenerationConfig {
        max_output_tokens: request.output_limit().map(|wanted| wanted.min(most)),
        temperature: request.temperature.filter(|_| sampling),
        top_p: request.top_p.filter(|_| sampling),
        top_k: request.top_k.filter(|_| sampling),
        stop_sequences: stops,
        seed: request.seed.map(folded),
        candidate_count: request.n.filter(|n| *n > 1),
        frequency_penalty: penalty(request.frequency_penalty).filter(|_| rules.penalties),
        presence_penalty: penalty(request.presence_penalty).filter(|_| rules.penalties),
        response_logprobs: request.logprobs.filter(|wanted| *wanted),
        logprobs: request.top_logprobs.filter(|count| *count > 0 && request.logprobs == Some(true)),
        thinking_config: thinking(request, rules, ask, dropped),
        response_modalities: modalities(request),
        ..GenerationConfig::default()
    }
}

/// Kinds of output. Text alone is what a model gives by itself.
fn modalities(request: &Request<'_>) -> Vec<String> {
    let kinds = request.modalities.as_deref().unwrap_or_default();
    let is_text = kinds.iter().all(|kind| &**kind == "text");
    if is_text { Vec::new() } else { kinds.iter().map(|kind| kind.to_uppercase()).collect() }
}

/// A seed of 32 bits from one of 64, always the same.
fn folded(seed: i64) -> i32 {
    i32::try_from(seed).unwrap_or(((seed ^ (seed >> 32)) & 0x7fff_ffff) as i32)
}

fn thinking(request: &Request<'_>, rules: &GoogleRules, ask: &Ask<'_>, dropped: &mut Dropped) -> Option<ThinkingConfig> {
    let effort = match (request.reasoning_effort, &request.thinking) {
        (Some(effort), _) => effort,
        (None, Some(native)) => native.effort().unwrap_or(Effort::Medium),
        (None, None) => return None,
    };
    if let Some(budget) = rules.budget {
        let own = ask.backend.translation.thinking_budgets.get(effort.word()).copied();
        let tokens = match effort {
            Effort::None => budget.off.unwrap_or(budget.min),
            effort => own.unwrap_or_else(|| usual_budget(effort)).clamp(budget.min, budget.max),
        };
        dropped.note("reasoning_effort", effort == Effort::None && budget.off.is_none());
        return Some(ThinkingConfig {
            include_thoughts: effort != Effort::None,
            thinking_level: None,
            thinking_budget: Some(tokens),
        });
    }
    // The nearest level that is not above the wanted one, else the lowest.
    let level = rules.levels.iter().copied().filter(|level| *level <= effort).max().or_else(|| rules.levels.first().copied());
    dropped.note("reasoning_effort", level != Some(effort));
    level.map(|level| ThinkingConfig {
        include_thoughts: effort != Effort::None,
        thinking_level: Some(word_of(level)),
        thinking_budget: None,
    })
}

fn usual_budget(effort: Effort) -> u64 {
    match effort {
        Effort::None => 0,
        Effort::Minimal | Effort::Low => 1_024,
        Effort::Medium => 8_192,
        Effort::High => 24_576,
        Effort::Xhigh | Effort::Max => u64::MAX,
    }
}

fn word_of(level: Effort) -> &'static str {
    match level {
        Effort::None | Effort::Minimal => "MINIMAL",
        Effort::Low => "LOW",
        Effort::Medium => "MEDIUM",
        Effort::High => "HIGH",
        Effort::Xhigh | Effort::Max => "XHIGH",
    }
}

fn format(
    request: &Request<'_>,
    rules: &GoogleRules,
    model: &str,
    has_tools: bool,
    config: &mut GenerationConfig<'_>,
) -> Result<(), Failure> {
    let Some(format) = &request.response_format else { return Ok(()) };
    match &*format.kind {
        "text" => return Ok(()),
        "json_object" | "json_schema" if has_tools && !rules.tools_with_format => {
            let why = format!("`response_format` cannot stand beside tools with model `{model}`");
            return Err(unsupported("response_format", why));
        }
        "json_object" => {}
        "json_schema" => {
            let schema = format.json_schema.as_ref().and_then(|format| format.schema);
            let tree = schema.map_or(Ok(json!({})), |schema| {
                schema_tree(schema, "response_format", || "`response_format.json_schema.schema`".into())
            })?;
            match rules.json_schema {
                true => config.response_json_schema = Some(schema::plain(tree)),
                false => config.response_schema = Some(schema::message(&tree, &schema::Room::new())),
            }
        }
        other => return Err(caller("response_format", format!("`response_format` cannot be `{other}`"))),
    }
    config.response_mime_type = Some("application/json");
    Ok(())
}

fn service_tier(request: &Request<'_>, dropped: &mut Dropped) -> Option<&'static str> {
    match request.service_tier.as_deref() {
        None | Some("auto") => None,
        Some("default") => Some("standard"),
        Some("flex") => Some("flex"),
        Some("priority") => Some("priority"),
        Some(_) => {
            dropped.note("service_tier", true);
            None
        }
    }
}
