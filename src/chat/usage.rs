//! Token counts of one request, as a provider reports them or as the gateway estimates them.

use serde::{Deserialize, Serialize};

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input, cached tokens included.
    #[serde(default, deserialize_with = "or_zero")]
    pub prompt_tokens: u64,
    /// Output, reasoning included.
    #[serde(default, deserialize_with = "or_zero")]
    pub completion_tokens: u64,
    /// Whether the counts are the gateway's estimate because the provider reported none.
    #[serde(default, skip_deserializing)]
    pub estimated: bool,
}

impl Usage {
    /// Guesses from sizes: about four bytes a token for input, one token per content event for output.
    pub fn estimate(body_bytes: usize, content_events: u64) -> Self {
        Self { prompt_tokens: body_bytes as u64 / 4, completion_tokens: content_events, estimated: true }
    }
}

/// Providers write `null` for counts they do not know, and some write floats.
fn or_zero<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    Ok(number.and_then(|n| n.as_u64().or_else(|| n.as_f64().filter(|f| *f >= 0.0).map(whole))).unwrap_or(0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and the caller checked the sign")]
fn whole(number: f64) -> u64 {
    number as u64
}
