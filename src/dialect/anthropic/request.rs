//! A chat request of the OpenAI API as a request of the Messages API. What a model refuses is left out and reported, or
//! refused here by a rule that names the field; it is never sent to fail.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::content::Block;
use super::fields::{CARRIED, REFUSED};
use super::messages::{Conversation, Turn, conversation};
use super::thinking::{self, Circumstances, Native, Plan};
use super::tools::{Choice, Tool, tools};
use super::{BETA, schema};
use crate::catalogue::{AnthropicRules, Sampling};
use crate::chat::request::{Effort, Request, Stop, schema_tree, unsupported};
use crate::chat::{Endpoint, Failure};
use crate::dialect::{Ask, Dropped, Encoded};

const JSON_ONLY: &str = "Answer with one valid JSON object and nothing else: no explanation and no code fence.";

/// The body of the Messages API.
#[derive(Debug, Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(flatten)]
    sampling: Sampled,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Native>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<&'a RawValue>,
}

#[derive(Debug, Default, Serialize)]
struct Sampled {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u64>,
}

#[derive(Debug, Serialize)]
struct OutputConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<Effort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    user_id: Cow<'a, str>,
}

/// The request in Anthropic's form.
///
/// # Errors
/// `Caller` for what no provider could read, `Unsupported` for what this model or dialect cannot carry.
pub fn encode(ask: &Ask<'_>) -> Result<Encoded, Failure> {
    match ask.endpoint {
        Endpoint::Chat => {}
        Endpoint::Embeddings => return Err(unsupported("model", "Anthropic has no embeddings".into())),
        Endpoint::Completions => {
            return Err(unsupported("prompt", "Anthropic has no text completions; use chat completions".into()));
        }
        Endpoint::Passthrough => {
            return Err(unsupported("path", "only chat completions are translated for Anthropic".into()));
        }
    }
    let rules = ask.backend.catalogue.anthropic(ask.model);
    let request = Request::read(ask.body)?;
    let mut dropped = Dropped::unknown(ask, CARRIED, REFUSED)?;
    refuse(&request)?;

    // Neither a schema nor thinking goes with an answer that is begun already.
    let may_continue = request.response_format.is_none() && request.reasoning_effort.is_none() && request.thinking.is_none();
    let Conversation { mut system, turns, has_thinking, loop_lacks_thinking, called, has_files, lost } =
        conversation(&request.messages, rules, may_continue, ask)?;
    for field in lost {
        dropped.note(field, true);
    }
    let mut count = schema::Count::default();
    let format = format(&request, rules, ask.model, &mut system, &mut count)?;
    let tools = tools(&request, rules, ask.model, &called, &mut count)?;
    dropped.note("tools.strict", tools.lost_strict);
    let max_tokens = output_limit(&request, rules, ask, &mut dropped);
    let circumstances = Circumstances {
        max_tokens,
        forces_tool: tools.choice.as_ref().is_some_and(Choice::is_forced),
        has_thinking,
        loop_lacks_thinking,
        budgets: &ask.backend.translation.thinking_budgets,
    };
    let plan = thinking::plan(rules, request.reasoning_effort, request.thinking.as_ref(), &circumstances);
    dropped.note("reasoning_effort", plan.reduced);
    let sampling = sampled(&request, rules, ask, &plan, &mut dropped);
    let output_config = (plan.effort.is_some() || format.is_some()).then_some(OutputConfig { effort: plan.effort, format });
    let headers = betas(ask, &plan, !tools.tools.is_empty(), has_files);
    let native = Body {
        model: ask.model,
        max_tokens,
        system,
        messages: turns,
        stream: ask.scan.stream,
        sampling,
        stop_sequences: stops(&request, &mut dropped),
        tools: tools.tools,
        tool_choice: tools.choice,
        thinking: plan.thinking,
        output_config,
        metadata: user(&request),
        service_tier: service_tier(&request, &mut dropped),
        cache_control: request.cache_control,
    };
    let mut body = Vec::with_capacity(ask.body.len() + 256);
    serde_json::to_writer(&mut body, &native).map_err(|error| unsupported("messages", error.to_string()))?;
    Ok(Encoded { headers, ..Encoded::new(Bytes::from(body), dropped.finish()) })
}

/// What would change the answer if it were left out.
fn refuse(request: &Request<'_>) -> Result<(), Failure> {
    if request.n.is_some_and(|n| n > 1) {
        return Err(unsupported("n", "`n` above 1 cannot be asked of Anthropic".into()));
    }
    if request.logprobs == Some(true) || request.top_logprobs.is_some_and(|count| count > 0) {
        return Err(unsupported("logprobs", "`logprobs` cannot be asked of Anthropic".into()));
    }
    if request.modalities.iter().flatten().any(|kind| &**kind != "text") {
        return Err(unsupported("modalities", "`modalities` other than text cannot be asked of Anthropic".into()));
    }
    Ok(())
}

/// The required limit: the request's, else the operator's, else the model's own.
fn output_limit(request: &Request<'_>, rules: &AnthropicRules, ask: &Ask<'_>, dropped: &mut Dropped) -> u64 {
    let own = ask.backend.catalogue.model("anthropic", ask.model).and_then(|model| model.max_output_tokens);
    let most = own.unwrap_or(rules.max_output_tokens);
    match request.output_limit() {
        Some(wanted) => {
            dropped.note("max_tokens", wanted > most);
            wanted.min(most)
        }
        None => ask.backend.translation.max_tokens.unwrap_or(most).min(most),
    }
}

fn sampled(request: &Request<'_>, rules: &AnthropicRules, ask: &Ask<'_>, plan: &Plan, dropped: &mut Dropped) -> Sampled {
    let version = ask.backend.translation.version.as_str();
    let takes_none = rules.sampling == Sampling::None || version != "2023-06-01" || plan.thinking.is_some();
    if takes_none {
        // The default needs no report: it is what the model does anyway.
        dropped.note("temperature", request.temperature.is_some_and(|value| value != 1.0));
        dropped.note("top_p", request.top_p.is_some_and(|value| value != 1.0));
        dropped.note("top_k", request.top_k.is_some());
        return Sampled::default();
    }
    let both = request.temperature.is_some() && request.top_p.is_some() && rules.sampling == Sampling::One;
    dropped.note("top_p", both);
    dropped.note("temperature", request.temperature.is_some_and(|value| value > 1.0));
    Sampled {
        temperature: request.temperature.map(|value| value.clamp(0.0, 1.0)),
        top_p: request.top_p.filter(|_| !both),
        top_k: request.top_k,
    }
}

fn format<'a>(
    request: &Request<'a>,
    rules: &AnthropicRules,
    model: &str,
    system: &mut Vec<Block<'_>>,
    count: &mut schema::Count,
) -> Result<Option<Value>, Failure> {
    let Some(format) = &request.response_format else { return Ok(None) };
    match &*format.kind {
        "text" => Ok(None),
        "json_object" => {
            system.push(Block::text(JSON_ONLY));
            Ok(None)
        }
        "json_schema" if rules.structured => {
            const FIELD: &str = "response_format.json_schema.schema";
            let schema = format.json_schema.as_ref().and_then(|format| format.schema);
            let tree = schema.map_or(Ok(json!({})), |schema| schema_tree(schema, "response_format", || format!("`{FIELD}`")))?;
            let Some(closed) = schema::closed(&tree, count) else {
                let why = "holds what Anthropic cannot hold an answer to, such as free keys or recursion";
                return Err(unsupported(FIELD, format!("`{FIELD}` {why}")));
            };
            Ok(Some(json!({ "type": "json_schema", "schema": closed })))
        }
        "json_schema" => {
            Err(unsupported("response_format", format!("`response_format` json_schema is not known to model `{model}`")))
        }
        other => Err(crate::chat::request::caller("response_format", format!("`response_format` cannot be `{other}`"))),
    }
}

/// An opaque id: addresses and phone numbers are refused there, so they are hashed.
fn user<'a>(request: &'a Request<'a>) -> Option<Metadata<'a>> {
    let user = request.safety_identifier.as_deref().or(request.user.as_deref()).filter(|user| !user.is_empty())?;
    let digits = user.bytes().filter(u8::is_ascii_digit).count();
    let is_phone = digits >= 7 && user.bytes().all(|byte| byte.is_ascii_digit() || b"+-() .".contains(&byte));
    if !user.contains('@') && !is_phone && user.len() <= 256 {
        return Some(Metadata { user_id: Cow::Borrowed(user) });
    }
    let digest: String = Sha256::digest(user.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Metadata { user_id: Cow::Owned(digest) })
}

fn service_tier(request: &Request<'_>, dropped: &mut Dropped) -> Option<&'static str> {
    match request.service_tier.as_deref() {
        None => None,
        Some("auto" | "priority") => Some("auto"),
        Some("default") => Some("standard_only"),
        Some(_) => {
            dropped.note("service_tier", true);
            None
        }
    }
}

/// Texts of white space alone are refused.
fn stops<'a>(request: &'a Request<'a>, dropped: &mut Dropped) -> Vec<&'a str> {
    let all = request.stop.iter().flat_map(Stop::texts).map(|text| &**text);
    let (kept, blank): (Vec<&str>, Vec<&str>) = all.partition(|text| !text.trim().is_empty());
    dropped.note("stop", !blank.is_empty());
    kept
}

/// The betas that this request needs beside the configured ones.
fn betas(ask: &Ask<'_>, plan: &Plan, has_tools: bool, has_files: bool) -> Vec<(&'static str, String)> {
    let needed = [
        (plan.has_binding(), "thinking-binding-controls-2026-08-01"),
        (plan.has_budget() && has_tools, "interleaved-thinking-2025-05-14"),
        (has_files, "files-api-2025-04-14"),
    ];
    let configured = &ask.backend.translation.betas;
    let more: Vec<&str> = needed
        .into_iter()
        .filter(|(is_needed, beta)| *is_needed && !configured.iter().any(|known| known == beta))
        .map(|(_, beta)| beta)
        .collect();
    if more.is_empty() {
        return Vec::new();
    }
    let all = configured.iter().map(String::as_str).chain(more).collect::<Vec<_>>().join(",");
    vec![(BETA, all)]
}
