//! What is known of the providers' models: limits, list prices, dates, and what each takes. The facts are data in
//! `settings/catalogue.json`; an operator's `catalogue` in the configuration goes before them.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer};

use crate::chat::Usage;
use crate::chat::request::Effort;

const EMBEDDED: &str = include_str!("../settings/catalogue.json");
const PICO: u64 = 1_000_000_000_000;

/// Models by `type/id`, and the rules of the dialects that differ by model.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// By vendor, then by id.
    models: HashMap<String, HashMap<String, Model>>,
    anthropic: Vec<AnthropicRules>,
    google: Vec<GoogleRules>,
}

/// The file.
#[derive(Deserialize)]
struct Facts {
    models: BTreeMap<String, Model>,
    anthropic: Vec<AnthropicRules>,
    google: Vec<GoogleRules>,
}

/// One model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Model {
    /// Input and output together.
    pub context_tokens: Option<u64>,
    /// Longest answer.
    pub max_output_tokens: Option<u64>,
    /// List price.
    pub price: Option<Price>,
    /// Whether it still answers.
    pub status: Status,
    /// The day it was or will be switched off.
    pub ends: Option<String>,
    /// Another id of the same type whose rules it follows.
    pub like: Option<String>,
}

/// Whether a model still answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does.
    #[default]
    Live,
    /// It does, until a known day.
    Ending,
    /// It does not.
    Retired,
}

/// Price of one token in millionths of a millionth of a US dollar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PicoDollars(pub u64);

impl<'de> Deserialize<'de> for PicoDollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        per_token(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a price such as 0.25")))
    }
}

/// Dollars per million tokens, as decimal text, to the price of a token.
pub(crate) fn per_token(text: &str) -> Option<PicoDollars> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 6 || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') || whole.is_empty() {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part).map(PicoDollars)
}

/// List price of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Price {
    /// Input.
    pub input: Option<PicoDollars>,
    /// Input read from the provider's cache.
    pub cached_input: Option<PicoDollars>,
    /// Input written to the provider's cache.
    pub cache_write: Option<PicoDollars>,
    /// Input written to the provider's cache for an hour.
    pub cache_write_1h: Option<PicoDollars>,
    /// Output.
    pub output: Option<PicoDollars>,
    /// The last day on which it holds.
    pub until: Option<String>,
    /// Prices of the whole request when its input is long.
    pub tiers: Vec<Tier>,
}

/// Prices of a request with long input.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// For more input than this.
    pub above_input_tokens: u64,
    /// The prices.
    #[serde(flatten)]
    pub price: Price,
}

impl Price {
    /// Cost of a request in pico-dollars; `None` when a price that it needs is unknown or has run out.
    pub fn cost(&self, usage: &Usage, unix_seconds: u64) -> Option<u64> {
        if self.until.as_deref().is_some_and(|day| *day < *day_of(unix_seconds)) {
            return None;
        }
        if let Some(tier) = self.tiers.iter().rev().find(|tier| usage.prompt_tokens > tier.above_input_tokens) {
            return tier.price.cost(usage, unix_seconds);
        }
        let hour = usage.cache_write_1h_tokens.min(usage.cache_write_tokens);
        let written = usage.cache_write_tokens - hour;
        let plain = usage.prompt_tokens.saturating_sub(usage.cached_tokens.saturating_add(usage.cache_write_tokens));
        let parts = [
            (plain, self.input),
            (usage.cached_tokens, self.cached_input),
            (written, self.cache_write),
            (hour, self.cache_write_1h),
            (usage.completion_tokens, self.output),
        ];
        let mut total = 0u64;
        for (tokens, price) in parts.into_iter().filter(|(tokens, _)| *tokens > 0) {
            total = total.checked_add(tokens.checked_mul(price?.0)?)?;
        }
        Some(total)
    }
}

/// Pico-dollars as dollars, for people and logs.
pub fn dollars(pico: u64) -> String {
    let text = format!("{}.{:012}", pico / PICO, pico % PICO);
    let text = text.trim_end_matches('0');
    text.strip_suffix('.').unwrap_or(text).to_owned()
}

/// The day as `2026-11-22`.
pub fn day_of(unix_seconds: u64) -> String {
    let date = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds));
    date.to_string().chars().take(10).collect()
}

/// How a model takes sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// Not at all.
    None,
    /// Temperature or `top_p`, not both.
    One,
    /// All of them.
    Both,
}

/// What an Anthropic model takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnthropicRules {
    /// Beginnings of the ids these rules are for.
    models: Vec<String>,
    /// Whether it thinks when not told.
    pub thinking_by_default: bool,
    /// Whether it decides itself how long to think.
    pub adaptive: bool,
    /// Whether it takes a budget of thinking tokens.
    pub budget: bool,
    /// The kind of `thinking` that turns it off, or down.
    pub off: Option<String>,
    /// Levels of effort.
    pub efforts: Vec<Effort>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Whether a tool can be forced.
    pub forced_tools: bool,
    /// Whether the last message may be the assistant's.
    pub prefill: bool,
    /// Whether a system message may stand among the others.
    pub system_turns: bool,
    /// Whether answers can be held to a schema.
    pub structured: bool,
    /// Whether thinking blocks are bound to what came before them.
    pub binding: bool,
    /// Longest answer.
    pub max_output_tokens: u64,
}

/// What a Google model takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GoogleRules {
    /// Beginnings of the ids these rules are for.
    models: Vec<String>,
    /// Levels of thinking.
    pub levels: Vec<Effort>,
    /// Budget of thinking tokens, for models without levels.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Whether sampling parameters count.
    pub sampling: bool,
    /// Whether penalties are taken.
    pub penalties: bool,
    /// Whether several candidates can be asked for.
    pub candidates: bool,
    /// Whether log probabilities are given.
    pub logprobs: bool,
    /// Whether calls have ids.
    pub call_ids: bool,
    /// Whether calls can be held to their schema.
    pub validated_calls: bool,
    /// Whether each image can say how closely to look.
    pub media_resolution: bool,
    /// Whether calls must come back with the signature of the thoughts before them.
    pub signatures: bool,
    /// Whether plain JSON Schema is taken.
    pub json_schema: bool,
    /// Whether the last turn must be the user's.
    pub ends_with_user: bool,
    /// Whether a function's result may hold images.
    pub result_images: bool,
    /// Whether tools and a JSON answer go together.
    pub tools_with_format: bool,
    /// Longest answer.
    pub max_output_tokens: u64,
    /// What it takes if it makes embeddings.
    #[serde(default)]
    pub embedding: Option<Embedding>,
}

/// Budget of thinking tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Budget {
    /// Least.
    pub min: u64,
    /// Most.
    pub max: u64,
    /// The budget that means no thinking.
    pub off: Option<u64>,
}

/// What an embedding model takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Embedding {
    /// Texts in one request of the Gemini API.
    pub batch: usize,
    /// Vertex's method.
    pub vertex: VertexMethod,
    /// Texts in one request of Vertex.
    #[serde(default)]
    pub vertex_batch: Option<usize>,
}

/// Vertex's method for embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VertexMethod {
    /// `:predict`.
    Predict,
    /// `:embedContent`, one text at a time.
    EmbedContent,
}

impl Catalogue {
    /// The embedded facts, with an operator's own before them.
    pub fn new(overrides: BTreeMap<String, Model>) -> Self {
        let facts: Facts = serde_json::from_str(EMBEDDED).expect("the embedded catalogue is read by a test");
        let mut catalogue = Self { models: HashMap::new(), anthropic: facts.anthropic, google: facts.google };
        for (id, model) in facts.models {
            *catalogue.entry(&id) = model;
        }
        for (id, own) in overrides {
            let known = catalogue.entry(&id);
            known.context_tokens = own.context_tokens.or(known.context_tokens);
            known.max_output_tokens = own.max_output_tokens.or(known.max_output_tokens);
            known.price = own.price.or_else(|| known.price.take());
            known.like = own.like.or_else(|| known.like.take());
        }
        catalogue
    }

    fn entry(&mut self, id: &str) -> &mut Model {
        let (vendor, id) = id.split_once('/').unwrap_or(("", id));
        self.models.entry(vendor.to_owned()).or_default().entry(id.to_owned()).or_default()
    }

    /// A model by its vendor (mostly the type of its backend) and id; a dated id is known by its undated one.
    pub fn model(&self, vendor: &str, id: &str) -> Option<&Model> {
        let models = self.models.get(vendor)?;
        // Some clients write the vendor's prefixes.
        let id = if models.contains_key(id) { id } else { id.rsplit('/').next().unwrap_or(id) };
        models.get(id).or_else(|| {
            let (undated, date) = id.rsplit_once('-')?;
            let is_date = date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit());
            is_date.then(|| models.get(undated))?
        })
    }

    /// Ids of a vendor that are not retired, in order.
    pub fn live(&self, vendor: &str) -> Vec<&str> {
        let own = self.models.get(vendor).into_iter().flatten().filter(|(_, model)| model.status != Status::Retired);
        let mut ids: Vec<&str> = own.map(|(id, _)| id.as_str()).collect();
        ids.sort_unstable();
        ids
    }

    /// The rules for an Anthropic model; those of the newest for an unknown one.
    pub fn anthropic(&self, id: &str) -> &AnthropicRules {
        best(&self.anthropic, |rules| &rules.models, self.alike("anthropic", id))
    }

    /// The rules for a Google model; those of the newest for an unknown one.
    pub fn google(&self, id: &str) -> &GoogleRules {
        best(&self.google, |rules| &rules.models, self.alike("google", id))
    }

    /// Whose models it knows, in order.
    pub fn vendors(&self) -> Vec<&str> {
        let mut vendors: Vec<&str> = self.models.keys().map(String::as_str).collect();
        vendors.sort_unstable();
        vendors
    }

    /// Whether it has facts or rules of a model.
    pub fn knows(&self, vendor: &str, id: &str) -> bool {
        let is_ruled = |names: &[String]| names.iter().any(|name| is_named(id, name));
        self.model(vendor, id).is_some()
            || match vendor {
                "anthropic" => self.anthropic.iter().any(|rules| is_ruled(&rules.models)),
                "google" => self.google.iter().any(|rules| is_ruled(&rules.models)),
                _ => false,
            }
    }

    fn alike<'a>(&'a self, kind: &str, id: &'a str) -> &'a str {
        self.model(kind, id).and_then(|model| model.like.as_deref()).unwrap_or(id)
    }
}

/// The rules with the longest matching name, else the first, which are the newest.
fn best<'a, T>(all: &'a [T], models: impl Fn(&T) -> &[String], id: &str) -> &'a T {
    let length = |rules: &T| models(rules).iter().filter(|name| is_named(id, name)).map(String::len).max();
    all.iter().filter(|rules| length(rules).is_some()).max_by_key(|rules| length(rules)).unwrap_or(&all[0])
}

/// Whether an id is a name of the rules, or the name with a date or a word behind it. A name with `*` stands for all
/// that begin with it; without, `claude-opus-5-6` is not `claude-opus-5` but a model that is not known yet.
fn is_named(id: &str, name: &str) -> bool {
    if let Some(begin) = name.strip_suffix('*') {
        return id.starts_with(begin);
    }
    let Some(rest) = id.strip_prefix(name) else { return false };
    let Some(more) = rest.strip_prefix(['-', '@']) else { return rest.is_empty() };
    let digits = more.bytes().take_while(u8::is_ascii_digit).count();
    digits == 0 || digits >= 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_is_readable_and_priced() {
        let catalogue = Catalogue::new(BTreeMap::new());
        let usage = Usage { prompt_tokens: 1_000_000, completion_tokens: 1_000_000, ..Usage::default() };
        let cost = |kind: &str, id: &str| catalogue.model(kind, id)?.price.as_ref()?.cost(&usage, 1_795_000_000).map(dollars);
        assert_eq!(cost("anthropic", "claude-haiku-4-5").as_deref(), Some("6"));
        assert_eq!(cost("anthropic", "claude-haiku-4-5-20251001").as_deref(), Some("6"));
        assert_eq!(cost("openai", "gpt-6-luna").as_deref(), Some("0.95"), "a long request costs more as a whole");
        assert_eq!(cost("openai", "text-embedding-3-small"), None, "an unknown price is not zero");
        assert_eq!(cost("openai", "gpt-5.6-sol"), None);
        assert_eq!(cost("openai", "never-heard-of"), None);
    }

    #[test]
    fn a_price_ends_with_its_last_day() {
        let catalogue = Catalogue::new(BTreeMap::new());
        let price = catalogue.model("google", "gemini-3.8-flash").unwrap().price.clone().unwrap();
        let usage = Usage { prompt_tokens: 100, cached_tokens: 40, completion_tokens: 10, ..Usage::default() };
        // 60 at 0.75, 40 at 0.075, 10 at 3.75 dollars per million.
        assert_eq!(price.cost(&usage, 1_798_000_000).map(dollars).as_deref(), Some("0.0000855"));
        assert_eq!(price.cost(&usage, 1_800_000_000), None);
    }

    #[test]
    fn rules_are_found_by_the_longest_beginning() {
        let catalogue = Catalogue::new(BTreeMap::from([(
            "anthropic/house-model".to_owned(),
            Model { like: Some("claude-haiku-4-5".into()), ..Model::default() },
        )]));
        assert!(!catalogue.anthropic("claude-opus-5-5").forced_tools);
        assert!(catalogue.anthropic("claude-opus-5").forced_tools);
        assert_eq!(catalogue.anthropic("claude-3-opus-20240229").max_output_tokens, 4_096);
        for unknown in ["claude-next-9", "claude-opus-5-6", "claude-sonnet-4-8"] {
            assert!(!catalogue.anthropic(unknown).forced_tools, "{unknown} is taken for a new one");
        }
        assert!(
            !catalogue.google("gemini-3.9-flash").sampling
                && !catalogue.google("gemini-3.9-flash").levels.contains(&Effort::Minimal)
        );
        assert!(catalogue.anthropic("claude-haiku-4-5-20251001").prefill);
        assert!(catalogue.anthropic("house-model").prefill);
        assert!(catalogue.google("gemini-2.5-flash-lite").budget.is_some());
        assert!(catalogue.google("gemini-3.1-pro-preview").sampling);
    }
}
