//! Which backend type a model id belongs to, by pattern.
//!
//! Patterns cover the vendors' naming as of 2026-11; a model outside them belongs to no family.

use super::BackendType;

const FAMILIES: &[(&str, BackendType)] = &[
    ("gpt-", BackendType::OpenAi),
    ("chatgpt-", BackendType::OpenAi),
    ("o1", BackendType::OpenAi),
    ("o3", BackendType::OpenAi),
    ("o4", BackendType::OpenAi),
    ("text-embedding-3-", BackendType::OpenAi),
    ("text-embedding-ada-", BackendType::OpenAi),
    ("dall-e-", BackendType::OpenAi),
    ("whisper-", BackendType::OpenAi),
    ("tts-", BackendType::OpenAi),
    ("omni-moderation-", BackendType::OpenAi),
    ("davinci-", BackendType::OpenAi),
    ("babbage-", BackendType::OpenAi),
    ("claude-", BackendType::Anthropic),
    ("gemini-", BackendType::Google),
    ("gemma-", BackendType::Google),
    ("text-embedding-004", BackendType::Google),
    ("text-embedding-005", BackendType::Google),
    ("text-multilingual-embedding-", BackendType::Google),
    ("mistral-", BackendType::Mistral),
    ("open-mistral-", BackendType::Mistral),
    ("open-mixtral-", BackendType::Mistral),
    ("codestral-", BackendType::Mistral),
    ("ministral-", BackendType::Mistral),
    ("devstral-", BackendType::Mistral),
    ("magistral-", BackendType::Mistral),
    ("pixtral-", BackendType::Mistral),
    ("llama-", BackendType::Meta),
    ("meta-llama/", BackendType::Meta),
    ("muse-", BackendType::Meta),
];

/// The type whose family a model id belongs to.
pub fn family_of(model: &str) -> Option<BackendType> {
    // Open weights of OpenAI run on other people's hosts.
    if model.starts_with("gpt-oss") {
        return None;
    }
    FAMILIES.iter().find(|(prefix, _)| model.starts_with(prefix)).map(|(_, kind)| *kind)
}
