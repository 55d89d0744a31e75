//! How much a model is to think, in both forms that clients write.

use serde::{Deserialize, Serialize};

/// `reasoning_effort`, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Not at all.
    None,
    /// The least.
    Minimal,
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
    /// More.
    Xhigh,
    /// The most.
    Max,
}

impl Effort {
    /// The word of the OpenAI API.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }
}

/// Anthropic's `thinking`, accepted as an extension.
#[derive(Debug, Deserialize)]
pub struct Thinking {
    /// What is asked for.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
    /// Tokens, for `enabled`.
    pub budget_tokens: Option<u64>,
}

/// Kinds of Anthropic's `thinking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingKind {
    /// As much as the model sees fit.
    Adaptive,
    /// With a budget.
    Enabled,
    /// Not at all.
    Disabled,
    /// Not before the first answer.
    BetweenTools,
}

impl Thinking {
    /// The effort that is nearest to what is asked for; `None` leaves it to the model.
    pub fn effort(&self) -> Option<Effort> {
        match (self.kind, self.budget_tokens) {
            (ThinkingKind::Adaptive, _) => None,
            (ThinkingKind::Disabled | ThinkingKind::BetweenTools, _) => Some(Effort::None),
            (ThinkingKind::Enabled, Some(0..=2_048)) => Some(Effort::Low),
            (ThinkingKind::Enabled, None | Some(2_049..=8_192)) => Some(Effort::Medium),
            (ThinkingKind::Enabled, Some(8_193..=16_384)) => Some(Effort::High),
            (ThinkingKind::Enabled, Some(_)) => Some(Effort::Xhigh),
        }
    }
}
