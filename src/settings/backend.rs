//! One configured backend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_http::header::HeaderValue;

use super::{ImageUrls, Secret, Simulated, SimulatedDialect, Vertex, family_of};
use crate::balance::CircuitRules;
use crate::catalogue::{Catalogue, dollars};
use crate::chat::Usage;

/// What a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendType {
    /// api.openai.com and regional hosts.
    OpenAi,
    /// Anthropic Messages.
    Anthropic,
    /// Azure OpenAI.
    Azure,
    /// Google Gemini and Vertex AI.
    Google,
    /// Any OpenAI-compatible host.
    Meta,
    /// Mistral.
    Mistral,
    /// The embedded simulated provider.
    Simulated,
}

impl BackendType {
    /// The word used in settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Azure => "azure-openai",
            Self::Google => "google",
            Self::Meta => "meta",
            Self::Mistral => "mistral",
            Self::Simulated => "simulated",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::OpenAi, Self::Anthropic, Self::Azure, Self::Google, Self::Meta, Self::Mistral, Self::Simulated]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

/// One configured upstream account.
#[derive(Debug)]
pub struct Backend {
    /// Position in [`super::Settings::backends`].
    pub index: usize,
    /// Unique name.
    pub name: Arc<str>,
    /// The name as a header's value.
    pub name_header: HeaderValue,
    /// What it is.
    pub kind: BackendType,
    /// Base URL without a trailing slash; empty for the simulated type.
    pub base: String,
    /// Key or token.
    pub credential: Option<Secret>,
    /// Whether [`Self::credential`] is a Microsoft Entra token.
    pub entra: bool,
    /// `OpenAI-Organization`.
    pub organization: Option<String>,
    /// `OpenAI-Project`.
    pub project: Option<String>,
    /// Azure's dated API version, where `None` is the v1 form; or Google's version, such as `v1beta`, always set.
    pub api_version: Option<String>,
    /// The Vertex AI project that a google backend speaks to; without it, the Gemini API.
    pub vertex: Option<Vertex>,
    /// What becomes of image addresses in requests.
    pub image_urls: ImageUrls,
    /// Extra request headers.
    pub headers: Vec<(String, Secret)>,
    /// Alias to native id; a listed id stands for itself.
    pub aliases: BTreeMap<String, String>,
    /// What is asked for when nothing else applies.
    pub default_model: Option<String>,
    /// Request fields an operator says the host refuses.
    pub drop_fields: Vec<String>,
    /// The field an operator says the host knows for the output limit.
    pub max_tokens_field: Option<String>,
    /// Whether usage may be asked for in streams, if an operator says so.
    pub stream_usage: Option<bool>,
    /// Limits by phase.
    pub timeouts: Timeouts,
    /// Further tries at this backend after the first.
    pub max_retries: u32,
    /// Requests at once in the whole process.
    pub max_concurrent: Option<u32>,
    /// Requests per worker that wait for a permit.
    pub max_queue: usize,
    /// How long they wait at most.
    pub queue_timeout: Duration,
    /// When it is not asked for a while.
    pub circuit: CircuitRules,
    /// Bytes of the largest whole reply.
    pub max_reply: u64,
    /// How long a replaced generation may finish.
    pub drain_timeout: Duration,
    /// Silence before an SSE comment is written; `None` never writes one.
    pub keep_alive: Option<Duration>,
    /// Longest pause of a reader while data waits.
    pub client_stall: Duration,
    /// Crash restarts per minute and worker before the backend is marked failed.
    pub restarts_per_minute: usize,
    /// Its outgoing connections.
    pub network: Network,
    /// What translation into its dialect needs to know.
    pub translation: Translation,
    /// Facts of models.
    pub catalogue: Arc<Catalogue>,
    /// Whose models and prices they are in the catalogue.
    pub vendor: &'static str,
    /// The simulated type's behaviour.
    pub simulated: Option<Simulated>,
}

impl Backend {
    /// The host that its requests go to.
    pub fn host(&self) -> Option<String> {
        host_of(&self.base)
    }

    /// Whether its requests go to a domain or below it.
    pub fn is_at(&self, domain: &str) -> bool {
        is_at(&self.base, domain)
    }

    /// Whether it may need the system's trusted certificates: Google's tokens and images come from elsewhere.
    pub fn is_encrypted(&self) -> bool {
        self.base.starts_with("https:") || self.kind == BackendType::Google
    }

    /// The type whose wire format it speaks: its own, or the one that the simulated type plays.
    pub fn wire_type(&self) -> BackendType {
        match self.simulated.as_ref().map(|simulated| simulated.dialect) {
            None => self.kind,
            Some(SimulatedDialect::OpenAi) => BackendType::OpenAi,
            Some(SimulatedDialect::Anthropic) => BackendType::Anthropic,
            Some(SimulatedDialect::Google) => BackendType::Google,
        }
    }

    /// Whether the configuration itself names the model for this backend.
    pub fn is_configured_for(&self, model: &str) -> bool {
        self.aliases.contains_key(model) || self.default_model.as_deref() == Some(model)
    }

    /// What to ask for when nobody asks for anything in particular.
    pub fn usual_model(&self) -> &str {
        self.default_model.as_ref().or_else(|| self.aliases.keys().next()).map_or("simulated", String::as_str)
    }

    /// The native ids of models that have circuits and averages of their own: those it is configured with or known to have.
    pub fn model_slots(&self) -> Vec<String> {
        let configured = self.aliases.values().chain(&self.default_model).cloned();
        configured.chain(self.catalogue.live(self.vendor).into_iter().map(str::to_owned)).collect()
    }

    /// What a request cost in US dollars, as decimal text; `None` when the price is unknown.
    pub fn cost(&self, model: &str, usage: &Usage, unix_seconds: u64) -> Option<String> {
        let price = self.catalogue.model(self.vendor, model)?.price.as_ref()?;
        price.cost(usage, unix_seconds).map(dollars)
    }

    /// The model id to send, or `None` when this backend does not have the model.
    ///
    /// `only` says that the route has no other backend.
    pub fn native_model<'a>(&'a self, requested: Option<&'a str>, only: bool) -> Option<&'a str> {
        if let Some(model) = requested {
            if let Some(native) = self.aliases.get(model) {
                return Some(native);
            }
            if self.kind == BackendType::Simulated || self.default_model.as_deref() == Some(model) {
                return Some(model);
            }
            match family_of(model) {
                Some(family) if family == self.kind => return Some(model),
                None if only => return Some(model),
                Some(_) | None => {}
            }
        }
        self.default_model.as_deref().or_else(|| (self.kind == BackendType::Simulated).then_some("simulated"))
    }
}

/// What translation into a backend's dialect needs to know.
#[derive(Debug, Clone, Default)]
pub struct Translation {
    /// Output limit of requests that set none.
    pub max_tokens: Option<u64>,
    /// `anthropic-version`.
    pub version: String,
    /// `anthropic-beta`.
    pub betas: Vec<String>,
    /// Tokens for thinking by effort.
    pub thinking_budgets: BTreeMap<String, u64>,
    /// Gemini's safety settings.
    pub safety_settings: Vec<BTreeMap<String, String>>,
    /// Stands for a thought signature that is lost.
    pub signature_placeholder: String,
}

/// Limits of one attempt, by phase.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Whole reply; for a stream, the wait for its first content.
    pub attempt: Duration,
    /// TCP, TLS and proxy together.
    pub connect: Duration,
    /// Until the status line.
    pub head: Duration,
    /// Until a stream's first content.
    pub first_content: Duration,
    /// Silence within a reply.
    pub idle: Duration,
    /// A stream from start to end.
    pub total: Duration,
}

/// How a backend's connections are made.
#[derive(Debug, Clone)]
pub struct Network {
    /// Proxy that every connection goes through.
    pub proxy: Option<url::Url>,
    /// Extra certificates to trust, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Age at which a connection is not used again.
    pub max_age: Duration,
    /// Requests that a connection serves at most.
    pub max_requests: Option<u64>,
    /// Requests at once on one connection, where it may be shared: with HTTP/2.
    pub shared: Option<usize>,
}

/// The host of a base address, without what may be secret in it.
fn host_of(base: &str) -> Option<String> {
    url::Url::parse(base).ok()?.host_str().map(str::to_owned)
}

/// Whether a base address is at a domain or below it.
pub(super) fn is_at(base: &str, domain: &str) -> bool {
    host_of(base).is_some_and(|host| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::super::from_text;

    #[test]
    fn a_vendor_is_told_by_its_domain_alone() {
        for (endpoint, vendor) in [
            ("https://api.together.xyz", "together"),
            ("https://API.Together.ai/v1", "together"),
            ("https://llm.together.corp/v1", "meta"),
            ("https://notgroq.com", "meta"),
            ("https://me:groq.com@vllm.example/groq.com", "meta"),
            ("http://10.0.0.1:8000", "meta"),
        ] {
            let text = format!("backends: [{{ name: b, type: meta, config: {{ endpoint: \"{endpoint}\" }} }}]");
            let settings = from_text("test", &text, &std::collections::BTreeMap::new()).unwrap();
            assert_eq!(settings.backends[0].vendor, vendor, "{endpoint}");
        }
    }
}
