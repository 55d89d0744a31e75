//! Token counts of one request, as a provider reports them or as the gateway estimates them.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::json::{JsonError, Lexer};

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Usage {
    /// Input, cached tokens included.
    pub prompt_tokens: u64,
    /// Output, reasoning included.
    pub completion_tokens: u64,
    /// Part of the input that was read from the provider's cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Part of the input that was written to the provider's cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
    /// Part of the cache writes that is kept for an hour, which costs more.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_1h_tokens: u64,
    /// Part of the output that was thinking.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
    /// Whether the counts are the gateway's estimate because the provider reported none.
    pub estimated: bool,
}

/// Tokens beyond which a report is nonsense: no model takes or writes a thousandth of it.
const MOST: u64 = 1_000_000_000;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The counts as the OpenAI API writes them.
#[derive(Deserialize)]
struct Reported {
    #[serde(default, deserialize_with = "or_zero")]
    prompt_tokens: u64,
    #[serde(default, deserialize_with = "or_zero")]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Default, Deserialize)]
struct PromptDetails {
    #[serde(default, deserialize_with = "or_zero")]
    cached_tokens: u64,
    #[serde(default, deserialize_with = "or_zero")]
    cache_write_tokens: u64,
}

#[derive(Default, Deserialize)]
struct CompletionDetails {
    #[serde(default, deserialize_with = "or_zero")]
    reasoning_tokens: u64,
}

fn read_count(lexer: &mut Lexer<'_>, count: &mut u64) -> Result<(), JsonError> {
    *count = lexer.count()?.unwrap_or(0);
    Ok(())
}

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reported = Reported::deserialize(deserializer)?;
        let prompt = reported.prompt_tokens_details.unwrap_or_default();
        let completion = reported.completion_tokens_details.unwrap_or_default();
        Ok(Self {
            prompt_tokens: reported.prompt_tokens,
            completion_tokens: reported.completion_tokens,
            cached_tokens: prompt.cached_tokens,
            cache_write_tokens: prompt.cache_write_tokens,
            cache_write_1h_tokens: 0,
            reasoning_tokens: completion.reasoning_tokens,
            estimated: false,
        })
    }
}

impl Usage {
    /// Whether the counts can be true: one that cannot would spoil sums and averages for good.
    pub fn is_plausible(&self) -> bool {
        self.prompt_tokens.max(self.completion_tokens) <= MOST
    }

    /// Reads the counts as the OpenAI API writes them: an object, or `null` for none. What is no count is zero.
    ///
    /// # Errors
    /// Anything else.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, JsonError> {
        let mut lexer = Lexer::new(bytes);
        if lexer.peek() == Some(b'n') {
            return lexer.value().map(|_| None);
        }
        let mut usage = Self::default();
        lexer.object(|lexer, key| match &bytes[key] {
            br#""prompt_tokens""# => read_count(lexer, &mut usage.prompt_tokens),
            br#""completion_tokens""# => read_count(lexer, &mut usage.completion_tokens),
            br#""prompt_tokens_details""# | br#""completion_tokens_details""# if lexer.peek() == Some(b'{') => {
                lexer.object(|lexer, key| match &bytes[key] {
                    br#""cached_tokens""# => read_count(lexer, &mut usage.cached_tokens),
                    br#""cache_write_tokens""# => read_count(lexer, &mut usage.cache_write_tokens),
                    br#""reasoning_tokens""# => read_count(lexer, &mut usage.reasoning_tokens),
                    _ => lexer.value().map(drop),
                })
            }
            _ => lexer.value().map(drop),
        })?;
        Ok(Some(usage))
    }

    /// Guesses from sizes: about four bytes a token for input, one token per content event for output.
    pub fn estimate(body_bytes: usize, content_events: u64) -> Self {
        Self { prompt_tokens: body_bytes as u64 / 4, completion_tokens: content_events, estimated: true, ..Self::default() }
    }

    /// The counts as the OpenAI API writes them.
    pub fn to_openai(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens.saturating_add(self.completion_tokens),
            "prompt_tokens_details": { "cached_tokens": self.cached_tokens, "cache_write_tokens": self.cache_write_tokens },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning_tokens },
        })
    }
}

/// A count; providers write `null` for those that they do not know, some write floats, and Google's may be texts. Anything else
/// is none: a good reply is not lost for it.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().filter(|count| *count >= 0.0).map(whole)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

/// The same, where none is zero.
pub(crate) fn or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(count(deserializer)?.unwrap_or(0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and the caller checked the sign")]
fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_as_providers_write_them() {
        let read = |text: &str| Usage::read(text.as_bytes());
        for text in [
            r#"{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}"#,
            r#"{ "completion_tokens" : 2.9 , "prompt_tokens" : 7e0, "prompt_tokens_details": null, "x": [1, {}] }"#,
        ] {
            let usage = read(text).unwrap().unwrap();
            assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.estimated), (7, 2, false), "{text}");
        }
        let details = r#"{"prompt_tokens":null,"completion_tokens":-3,
            "prompt_tokens_details":{"cached_tokens":5,"cache_write_tokens":1},"completion_tokens_details":{"reasoning_tokens":4}}"#;
        let usage = read(details).unwrap().unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (0, 0));
        assert_eq!((usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens), (5, 1, 4));
        assert_eq!(read("null"), Ok(None));
        assert!(read("[]").is_err() && read("{").is_err() && read("\"none\"").is_err());
        let great =
            read(r#"{"prompt_tokens":18446744073709551615,"completion_tokens":99999999999999999999999}"#).unwrap().unwrap();
        assert_eq!((great.prompt_tokens, great.completion_tokens), (u64::MAX, u64::MAX));
    }
}
