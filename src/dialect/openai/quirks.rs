//! What the types of this dialect, and the well-known hosts of type `meta`, do differently: data, not branches.
//!
//! Sources: the vendors' API references and SDK types, read 2026-11-22.

use crate::chat::Endpoint;
use crate::settings::{Backend, BackendType};

/// Which name carries the output limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputLimit {
    /// As the client wrote it.
    AsWritten,
    /// `max_completion_tokens` for models that refuse `max_tokens`.
    ByModel,
    /// Always `max_tokens`.
    Legacy,
    /// Always `max_completion_tokens`.
    Modern,
}

/// How the messages of a request are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// What another provider alone understands is left out; without any, the bytes pass.
    WithoutPrivate,
    /// The same, and replayed reasoning.
    WithoutReasoning,
    /// `name`, replayed reasoning and other fields of a reply are left out.
    Plain,
    /// Mistral's strict schema: fields, tool-call ids and order.
    Strict,
}

/// The fields that a provider knows, by what is asked for.
#[derive(Debug)]
pub struct Known {
    chat: &'static [&'static str],
    completions: &'static [&'static str],
    embeddings: &'static [&'static str],
}

impl Known {
    /// Those of this endpoint.
    pub fn of(&self, endpoint: Endpoint) -> &'static [&'static str] {
        match endpoint {
            Endpoint::Chat => self.chat,
            Endpoint::Completions => self.completions,
            Endpoint::Embeddings => self.embeddings,
            Endpoint::Passthrough => &[],
        }
    }
}

/// Differences of one backend from api.openai.com.
#[derive(Debug, Clone)]
pub struct Quirks {
    /// Which name carries the output limit.
    pub output_limit: OutputLimit,
    /// Top-level fields that are left out.
    pub drop: &'static [&'static str],
    /// The only top-level fields the provider knows, if it refuses others.
    pub only: Option<&'static Known>,
    /// Top-level fields that are renamed.
    pub rename: &'static [(&'static str, &'static str)],
    /// Values of top-level fields that are replaced.
    pub replace: &'static [(&'static str, &'static str, &'static str)],
    /// Fields that are added when absent.
    pub add: &'static [(&'static str, &'static str)],
    /// Whether `stream_options.include_usage` may be asked for.
    pub stream_usage: bool,
    /// How messages are rewritten.
    pub messages: Messages,
    /// Whether `stop` must be a list and `logprobs` a number.
    pub completion_style: bool,
    /// Whether replies are parsed and repaired, or pass as bytes.
    pub normalise: bool,
    /// Whether a stream is whole only with `[DONE]`, or already when every choice has finished.
    pub done_required: bool,
}

/// api.openai.com.
const OPENAI: Quirks = Quirks {
    output_limit: OutputLimit::ByModel,
    // Extensions that other dialects know.
    drop: &["thinking", "cache_control", "top_k"],
    only: None,
    rename: &[],
    replace: &[],
    add: &[],
    stream_usage: true,
    messages: Messages::WithoutReasoning,
    completion_style: false,
    normalise: false,
    done_required: true,
};

/// Azure OpenAI: OpenAI's request; annotation frames without identity or delta in the stream.
const AZURE: Quirks = Quirks { normalise: true, ..OPENAI };

const MISTRAL_FIELDS: Known = Known {
    chat: &[
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "repetition_penalty",
        "top_k",
        "stream",
        "stop",
        "seed",
        "random_seed",
        "metadata",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "top_prompt_logprobs",
        "n",
        "prediction",
        "reasoning_effort",
        "prompt_mode",
        "safe_prompt",
        "guardrails",
        "prompt_cache_key",
        "service_tier",
    ],
    // Fill-in-the-middle.
    completions: &[
        "model",
        "prompt",
        "suffix",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "stream",
        "stop",
        "seed",
        "random_seed",
        "metadata",
        "prompt_cache_key",
    ],
    embeddings: &["model", "input", "metadata", "output_dimension", "dimensions", "output_dtype", "encoding_format"],
};

/// Mistral: a strict allow-list, other names, usage that comes unasked.
const MISTRAL: Quirks = Quirks {
    output_limit: OutputLimit::Legacy,
    only: Some(&MISTRAL_FIELDS),
    rename: &[("seed", "random_seed"), ("dimensions", "output_dimension")],
    replace: &[
        ("service_tier", "\"default\"", ""),
        ("service_tier", "\"flex\"", ""),
        ("service_tier", "\"priority\"", ""),
        ("service_tier", "\"fast\"", ""),
        ("service_tier", "\"scale\"", ""),
    ],
    stream_usage: false,
    messages: Messages::Strict,
    normalise: true,
    done_required: false,
    ..OPENAI
};

/// A compatible host of no further known kind: vLLM, llama.cpp, Ollama and their like.
const COMPATIBLE: Quirks = Quirks {
    output_limit: OutputLimit::Legacy,
    drop: &[],
    messages: Messages::WithoutPrivate,
    normalise: true,
    done_required: false,
    ..OPENAI
};

/// Hosts of type `meta` by their domain.
const HOSTS: &[(&str, Quirks)] = &[
    (
        "groq.com",
        Quirks {
            output_limit: OutputLimit::Modern,
            drop: &["logprobs", "top_logprobs", "logit_bias"],
            messages: Messages::Plain,
            ..COMPATIBLE
        },
    ),
    ("together.ai", TOGETHER),
    ("together.xyz", TOGETHER),
    (
        "fireworks.ai",
        Quirks { messages: Messages::Plain, add: &[("context_length_exceeded_behavior", "\"error\"")], ..COMPATIBLE },
    ),
    ("api.meta.ai", Quirks { output_limit: OutputLimit::Modern, drop: &["stop"], ..COMPATIBLE }),
];

const TOGETHER: Quirks = Quirks {
    drop: &["top_logprobs", "stream_options", "parallel_tool_calls", "user", "store", "metadata"],
    stream_usage: false,
    completion_style: true,
    ..COMPATIBLE
};

impl Quirks {
    /// The quirks of a backend: by type, then by host, then by what its operator says.
    pub fn of(backend: &Backend) -> Self {
        let mut quirks = match backend.kind {
            BackendType::Azure => azure(backend.api_version.as_deref()),
            BackendType::Mistral => MISTRAL,
            BackendType::Meta => {
                HOSTS.iter().find(|(domain, _)| backend.is_at(domain)).map_or(COMPATIBLE, |(_, quirks)| quirks.clone())
            }
            BackendType::OpenAi | BackendType::Simulated | BackendType::Anthropic | BackendType::Google => OPENAI,
        };
        if let Some(asked) = backend.stream_usage {
            quirks.stream_usage = asked;
        }
        match backend.max_tokens_field.as_deref() {
            Some("max_tokens") => quirks.output_limit = OutputLimit::Legacy,
            Some(_) => quirks.output_limit = OutputLimit::Modern,
            None => {}
        }
        quirks
    }
}

/// A dated API version refuses fields that are newer than itself.
fn azure(version: Option<&str>) -> Quirks {
    let older_than = |date: &str| version.is_some_and(|version| version < date);
    Quirks {
        stream_usage: !older_than("2024-09-01"),
        output_limit: if older_than("2024-12-01") { OutputLimit::Legacy } else { AZURE.output_limit },
        ..AZURE
    }
}

/// Whether a model refuses `max_tokens`: the o-series and everything from gpt-5 on.
pub(super) fn wants_completion_tokens(model: &str) -> bool {
    let model = model.rsplit('/').next().unwrap_or(model);
    // A model of one's own is named by the one it was made from.
    let model = model.strip_prefix("ft:").unwrap_or(model);
    let numbered =
        |prefix: &str| model.strip_prefix(prefix).and_then(|rest| rest.bytes().next()).is_some_and(|b| b.is_ascii_digit());
    let generation = model.strip_prefix("gpt-").and_then(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse::<u32>().ok()
    });
    numbered("o") || generation.is_some_and(|n| (5..30).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newer_families_refuse_max_tokens() {
        for model in ["o1", "o3-mini", "gpt-5", "gpt-5.6-sol", "gpt-6-luna", "gpt-6.2-astra", "gpt-12", "ft:gpt-5-mini:me::1"] {
            assert!(wants_completion_tokens(model), "{model}");
        }
        for model in [
            "gpt-4o",
            "gpt-4.1-mini",
            "gpt-35-turbo",
            "gpt-oss-120b",
            "openai/gpt-oss-20b",
            "omni-moderation-latest",
            "llama-3.3",
            "prod-a",
        ] {
            assert!(!wants_completion_tokens(model), "{model}");
        }
    }
}
