//! What becomes of each field of the OpenAI API that Google does not have as it is.

use crate::dialect::Lossy;

/// Fields that are carried; every other one is dropped and reported, unless it says nothing.
pub(super) const CARRIED: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "stream",
    "stream_options",
    "n",
    "seed",
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "thinking",
    "service_tier",
    "modalities",
    "logprobs",
    "top_logprobs",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "audio",
    "web_search_options",
];

/// Fields of an embedding request that are carried.
pub(super) const EMBEDDING_CARRIED: &[&str] = &["model", "input", "dimensions", "encoding_format"];

/// Fields that are refused when they ask for something: their loss would change what the answer is.
pub(super) const REFUSED: &[&str] = &["logit_bias", "audio", "web_search_options"];

/// Every loss, for people.
pub const LOSSY: &[Lossy] = &[
    Lossy { field: "temperature", rule: "dropped where the model ignores it" },
    Lossy { field: "top_p", rule: "dropped where the model ignores it" },
    Lossy { field: "top_k", rule: "dropped where the model ignores it" },
    Lossy { field: "max_tokens", rule: "capped at the model's limit" },
    Lossy { field: "stop", rule: "cut after five" },
    Lossy { field: "seed", rule: "folded to 32 bits" },
    Lossy { field: "frequency_penalty", rule: "dropped where the model refuses it" },
    Lossy { field: "presence_penalty", rule: "dropped where the model refuses it" },
    Lossy {
        field: "reasoning_effort",
        rule: "the nearest lower level, else the lowest, where the model has no such level; dropped where the model does not think",
    },
    Lossy { field: "parallel_tool_calls", rule: "`false` is dropped" },
    Lossy { field: "service_tier", rule: "unknown tiers are dropped" },
    Lossy { field: "user", rule: "dropped" },
    Lossy { field: "safety_identifier", rule: "dropped" },
    Lossy { field: "metadata", rule: "dropped" },
    Lossy { field: "store", rule: "dropped" },
    Lossy { field: "prediction", rule: "dropped" },
    Lossy { field: "verbosity", rule: "dropped" },
    Lossy { field: "cache_control", rule: "dropped, also on parts, messages and tools" },
    Lossy { field: "messages.name", rule: "dropped" },
    Lossy { field: "messages.audio", rule: "dropped" },
    Lossy { field: "messages.images", rule: "dropped where they are not pictures as replies hold them" },
    Lossy { field: "messages.image_url.detail", rule: "dropped where the model takes none for an image" },
    Lossy {
        field: "tools.strict",
        rule: "dropped where calls are not validated: in older models, and where a call is forced or forbidden",
    },
    Lossy { field: "prompt_cache_key", rule: "dropped" },
    Lossy { field: "prompt_cache_retention", rule: "dropped" },
    Lossy { field: "n", rule: "refused above 1 where the model gives one candidate" },
    Lossy { field: "logprobs", rule: "refused where the model gives none" },
    Lossy { field: "logit_bias", rule: "refused" },
    Lossy { field: "modalities", rule: "refused when it asks for more than text and image" },
    Lossy { field: "audio", rule: "refused" },
    Lossy { field: "web_search_options", rule: "refused" },
    Lossy { field: "tools", rule: "refused when one is not a function, or has a schema larger than 1MiB" },
    Lossy { field: "response_format", rule: "refused beside tools where the model takes one of both" },
    Lossy { field: "messages", rule: "refused with foreign file ids, and with images that cannot be fetched" },
    Lossy { field: "input", rule: "refused with token ids" },
];
