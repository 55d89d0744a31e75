//! What becomes of each field of the OpenAI API that Anthropic does not have as it is.

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
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "thinking",
    "cache_control",
    "user",
    "safety_identifier",
    "service_tier",
    "modalities",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "audio",
    "web_search_options",
];

/// Fields that are refused when they ask for something: their loss would change what the answer is.
pub(super) const REFUSED: &[&str] = &["logit_bias", "audio", "web_search_options"];

/// Every loss, for people.
pub const LOSSY: &[Lossy] = &[
    Lossy {
        field: "temperature",
        rule: "above 1 becomes 1; dropped where the model or API version takes none, and beside thinking",
    },
    Lossy { field: "top_p", rule: "dropped where the model takes none, or beside temperature where it takes one of both" },
    Lossy { field: "top_k", rule: "dropped where the model takes none, and beside thinking" },
    Lossy { field: "max_tokens", rule: "capped at the model's limit" },
    Lossy {
        field: "reasoning_effort",
        rule: "the nearest lower level where the model has no such level; `none` becomes `low` where thinking cannot be turned off; dropped where the model does not think, the output limit leaves no room, a tool is forced, or a tool loop lacks its thinking blocks",
    },
    Lossy { field: "service_tier", rule: "`flex` and unknown tiers are dropped" },
    Lossy { field: "tools.strict", rule: "dropped where the schemas do not fit Anthropic's strict subset" },
    Lossy {
        field: "response_format",
        rule: "`json_object` becomes an instruction; refused when its schema is a map of free keys (beside named ones none are given), has recursion or more than Anthropic's strict subset can say",
    },
    Lossy { field: "stop", rule: "texts of white space alone are dropped" },
    Lossy { field: "messages.name", rule: "dropped" },
    Lossy { field: "messages.audio", rule: "dropped" },
    Lossy { field: "messages.images", rule: "dropped" },
    Lossy { field: "messages.image_url.detail", rule: "dropped" },
    Lossy { field: "seed", rule: "dropped" },
    Lossy { field: "frequency_penalty", rule: "dropped" },
    Lossy { field: "presence_penalty", rule: "dropped" },
    Lossy { field: "metadata", rule: "dropped" },
    Lossy { field: "store", rule: "dropped" },
    Lossy { field: "prediction", rule: "dropped" },
    Lossy { field: "verbosity", rule: "dropped" },
    Lossy { field: "prompt_cache_key", rule: "dropped" },
    Lossy { field: "prompt_cache_retention", rule: "dropped" },
    Lossy { field: "n", rule: "refused above 1" },
    Lossy { field: "logprobs", rule: "refused when true" },
    Lossy { field: "logit_bias", rule: "refused" },
    Lossy { field: "modalities", rule: "refused when it asks for more than text" },
    Lossy { field: "audio", rule: "refused" },
    Lossy { field: "web_search_options", rule: "refused" },
    Lossy { field: "tools", rule: "refused when one is not a function, or has a schema larger than 1MiB" },
    Lossy { field: "tool_choice", rule: "refused when it forces a tool and the model takes no force" },
    Lossy { field: "messages", rule: "refused with audio, http images or foreign file ids" },
];
