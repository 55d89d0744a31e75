//! How hard to think, in the words that a model takes: adaptive with an effort, a budget of tokens, or not at all.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalogue::AnthropicRules;
use crate::chat::request::{Effort, Thinking, ThinkingKind};

/// `thinking` as Anthropic takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Native {
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    display: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_binding: Option<Binding>,
}

/// What becomes of thinking blocks that do not fit the conversation any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Binding {
    prefix_mismatch_behavior: &'static str,
}

/// Blocks that are bound to another conversation, model or account are left out instead of refused.
const DROP: Binding = Binding { prefix_mismatch_behavior: "drop_block" };

impl Native {
    fn of(kind: &str) -> Self {
        Self { kind: kind.to_owned(), budget_tokens: None, display: None, block_binding: None }
    }

    fn shown(kind: &str) -> Self {
        Self { display: Some("summarized"), ..Self::of(kind) }
    }
}

/// What is decided about thinking.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) thinking: Option<Native>,
    pub(super) effort: Option<Effort>,
    /// Whether the model was asked for something it cannot do, so that this is less.
    pub(super) reduced: bool,
}

impl Plan {
    /// Whether a budget is set, which forbids sampling and forced tools.
    pub(super) fn has_budget(&self) -> bool {
        self.thinking.as_ref().is_some_and(|thinking| thinking.budget_tokens.is_some())
    }

    /// Whether the beta for bound blocks is needed.
    pub(super) fn has_binding(&self) -> bool {
        self.thinking.as_ref().is_some_and(|thinking| thinking.block_binding.is_some())
    }
}

/// What else of the request decides.
pub(super) struct Circumstances<'a> {
    pub(super) max_tokens: u64,
    pub(super) forces_tool: bool,
    pub(super) has_thinking: bool,
    pub(super) loop_lacks_thinking: bool,
    /// The operator's budgets by effort.
    pub(super) budgets: &'a BTreeMap<String, u64>,
}

/// Decides from `reasoning_effort` or Anthropic's own `thinking`.
pub(super) fn plan(
    rules: &AnthropicRules,
    effort: Option<Effort>,
    native: Option<&Thinking>,
    circumstances: &Circumstances<'_>,
) -> Plan {
    let mut plan = match native {
        Some(native) => by_native(rules, native, effort, circumstances),
        None => match effort {
            None => Plan::default(),
            Some(Effort::None) => off(rules),
            Some(effort) => by_effort(rules, effort, circumstances),
        },
    };
    if rules.binding && circumstances.has_thinking {
        let thinking = plan.thinking.get_or_insert_with(|| Native::of("adaptive"));
        if thinking.kind == "adaptive" {
            thinking.block_binding = Some(DROP);
        }
    }
    plan
}

fn by_native(rules: &AnthropicRules, native: &Thinking, effort: Option<Effort>, circumstances: &Circumstances<'_>) -> Plan {
    match (native.kind, native.budget_tokens, native.effort().or(effort)) {
        (ThinkingKind::Enabled, Some(tokens), _) if rules.budget => budget(tokens, circumstances),
        (_, _, Some(Effort::None)) => off(rules),
        (_, _, Some(effort)) => by_effort(rules, effort, circumstances),
        (_, _, None) if rules.adaptive => Plan { thinking: Some(Native::shown("adaptive")), ..Plan::default() },
        (_, _, None) => by_effort(rules, Effort::Medium, circumstances),
    }
}

/// No thinking, or as little as there is.
fn off(rules: &AnthropicRules) -> Plan {
    match &rules.off {
        Some(_) if !rules.thinking_by_default => Plan::default(),
        Some(kind) => Plan { thinking: Some(Native::of(kind)), ..Plan::default() },
        None if !rules.thinking_by_default => Plan::default(),
        None => Plan { effort: rules.efforts.first().copied(), reduced: true, ..Plan::default() },
    }
}

fn by_effort(rules: &AnthropicRules, effort: Effort, circumstances: &Circumstances<'_>) -> Plan {
    if rules.adaptive {
        let wanted = effort.max(Effort::Low);
        // The highest level that is not above the wanted one: `xhigh` becomes `high` where there is none.
        let level = rules.efforts.iter().copied().filter(|level| *level <= wanted).max();
        return Plan { thinking: Some(Native::shown("adaptive")), effort: level, reduced: level != Some(effort) };
    }
    if !rules.budget {
        return Plan { reduced: true, ..Plan::default() };
    }
    let tokens = circumstances.budgets.get(effort.word()).copied().unwrap_or(match effort {
        Effort::None | Effort::Minimal => 1_024,
        Effort::Low => 2_048,
        Effort::Medium => 8_192,
        Effort::High => 16_384,
        Effort::Xhigh => 24_576,
        Effort::Max => u64::MAX,
    });
    budget(tokens, circumstances)
}

/// A budget that leaves room for the answer, or none where the API would refuse it.
fn budget(tokens: u64, circumstances: &Circumstances<'_>) -> Plan {
    const LEAST: u64 = 1_024;
    let room = circumstances.max_tokens - circumstances.max_tokens / 4;
    let tokens = tokens.max(LEAST).min(room);
    if tokens < LEAST || circumstances.forces_tool || circumstances.loop_lacks_thinking {
        return Plan { reduced: true, ..Plan::default() };
    }
    Plan { thinking: Some(Native { budget_tokens: Some(tokens), ..Native::shown("enabled") }), effort: None, reduced: false }
}
