//! Typed, validated settings; the only code that reads files or the environment.
//!
//! [`load`] merges file and environment, `walk` checks the tree against [`schema`], `document` types it, `plan` cross-checks
//! it into the [`Settings`] that everything else receives by value and that never change while the process lives.

mod credential;
mod document;
mod families;
mod google;
mod load;
mod network;
mod plan;
mod pools;
pub mod schema;
mod units;
mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_http::header::HeaderValue;

pub use credential::{AuthorizedUser, GoogleCredential, ServiceAccount, SigningKey};
pub use document::{Affinity, Fault, Hedge, Logs, Otlp, Parking, Server, Simulated, SimulatedDialect, Telemetry};
pub use families::family_of;
pub use google::{ImageHost, ImageUrls, Vertex};
pub use load::{DEFAULT_FILE, from_text, load, simulated_from_json};
pub use units::{Secret, format_size, parse_duration};
pub use walk::Problem;

use crate::balance::CircuitRules;
use crate::catalogue::{Catalogue, dollars};
use crate::chat::Usage;

/// Why a configuration is refused: every mistake at once.
#[derive(Debug)]
pub struct SettingsError {
    /// File or other origin of the document.
    pub source: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl SettingsError {
    fn single(path: &str, reason: String) -> Self {
        Self { source: path.to_owned(), problems: vec![Problem { path: path.to_owned(), reason }] }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = if self.source.is_empty() { String::new() } else { format!(" {}", self.source) };
        write!(f, "the configuration{source} is refused, {} to mend:", self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

/// The validated configuration.
#[derive(Debug)]
pub struct Settings {
    /// Where it was read from.
    pub source: String,
    /// Listening and limits.
    pub server: Server,
    /// SHA-256 of the configuration as it was read, before variables are put in.
    pub fingerprint: String,
    /// Operator's token.
    pub admin_token: Option<Secret>,
    /// Token that may look at /admin and /metrics, and change nothing.
    pub read_token: Option<Secret>,
    /// Requests whose story is kept after their end, in the whole process.
    pub recent_requests: usize,
    /// Client keys; empty when anybody may call.
    pub keys: Vec<ClientKey>,
    /// All backends, by index.
    pub backends: Vec<Arc<Backend>>,
    /// All pools, by index: the configured ones first, then a pool of one for each backend.
    pub pools: Vec<Arc<Pool>>,
    /// Routes in matching order; without any configured: standard paths by model.
    pub routes: Option<Vec<Route>>,
    /// Logs, traces and metrics.
    pub telemetry: Telemetry,
    /// What was left out or looks unintended, one line each.
    pub notes: Vec<String>,
    /// Pool that each name (of a pool or a backend) stands for.
    pub(crate) names: HashMap<Arc<str>, usize>,
    /// Names of backends and pools that are configured and left out.
    pub(crate) left_out: HashSet<Box<str>>,
}

/// A client key as its digest.
#[derive(Debug, Clone)]
pub struct ClientKey {
    /// Who it belongs to.
    pub name: Arc<str>,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
}

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

    fn from_word(word: &str) -> Option<Self> {
        [Self::OpenAi, Self::Anthropic, Self::Azure, Self::Google, Self::Meta, Self::Mistral, Self::Simulated]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

/// One configured upstream account.
#[derive(Debug)]
pub struct Backend {
    /// Position in [`Settings::backends`].
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

/// How a pool orders its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Fastest responding first.
    Latency,
    /// By configured share.
    Weighted,
    /// In turn.
    RoundRobin,
    /// Fewest requests in flight.
    LeastBusy,
    /// Cheapest.
    Cost,
}

impl Strategy {
    /// The word used in settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Weighted => "weighted",
            Self::RoundRobin => "round-robin",
            Self::LeastBusy => "least-busy",
            Self::Cost => "cost",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Latency, Self::Weighted, Self::RoundRobin, Self::LeastBusy, Self::Cost].into_iter().find(|s| s.word() == word)
    }
}

/// A named group of backends.
#[derive(Debug)]
pub struct Pool {
    /// Position in [`Settings::pools`].
    pub index: usize,
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Members, nested pools kept as groups.
    pub tree: Group,
    /// Backend index of every leaf of the tree, in order; a leaf holds its place in this list.
    pub members: Vec<usize>,
    /// Groups in the tree.
    pub groups: usize,
    /// Configured weight of every edge of the tree, by its number.
    pub weights: Vec<f64>,
    /// Time for the whole request.
    pub deadline: Duration,
    /// Attempts per request over all members.
    pub max_attempts: u32,
    /// Waiting while every member is starting.
    pub parking: Parking,
    /// When a second member is asked beside a slow one.
    pub hedge: Option<Hedge>,
    /// How a conversation is told from others, to keep it with one member.
    pub affinity: Option<Affinity>,
    /// How long its members may be without traffic before they are checked.
    pub standby: Option<Duration>,
    /// Whether it is the implicit pool of one backend.
    pub implicit: bool,
}

impl Pool {
    /// Whether a group of its tree orders its members in this way.
    pub fn uses(&self, strategy: Strategy) -> bool {
        self.tree.uses(strategy)
    }

    /// The first membership of a leaf in its tree.
    pub fn child_of(&self, leaf: usize) -> Option<&Child> {
        self.tree.child_of(leaf)
    }
}

impl Group {
    fn child_of(&self, leaf: usize) -> Option<&Child> {
        self.children.iter().find_map(|child| match &child.node {
            Node::Leaf(own) => (*own == leaf).then_some(child),
            Node::Group(inner) => inner.child_of(leaf),
        })
    }

    fn uses(&self, strategy: Strategy) -> bool {
        let inner = |child: &Child| matches!(&child.node, Node::Group(inner) if inner.uses(strategy));
        self.strategy == strategy || self.children.iter().any(inner)
    }
}

/// An inner node of a pool's tree.
#[derive(Debug, Clone)]
pub struct Group {
    /// Name of the pool that it is.
    pub pool: Arc<str>,
    /// Number of the group within its pool's tree, from 0.
    pub id: usize,
    /// How its children are ordered.
    pub strategy: Strategy,
    /// Whether a second child is tried when the first fails.
    pub fallback: bool,
    /// Its members.
    pub children: Vec<Child>,
}

/// A member of a group.
#[derive(Debug, Clone)]
pub struct Child {
    /// Number of this membership within the pool's tree, from 0: where its present weight is found.
    pub edge: usize,
    /// Configured weight.
    pub weight: f64,
    /// What it is.
    pub node: Node,
}

/// A node of a pool's tree.
#[derive(Debug, Clone)]
pub enum Node {
    /// Place in [`Pool::members`].
    Leaf(usize),
    /// A nested pool.
    Group(Group),
}

/// What a route's path matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// This path.
    Exact(String),
    /// Every path that begins with this, which ends in `/`.
    Prefix(String),
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Position in [`Settings::routes`].
    pub index: usize,
    /// For logs and metrics.
    pub name: Arc<str>,
    /// Which paths.
    pub path: PathMatch,
    /// Which methods, upper case.
    pub methods: Vec<String>,
    /// Header values that must match, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Where to; `None` routes by model.
    pub pool: Option<usize>,
    /// Time for the whole request, if the route limits it.
    pub deadline: Option<Duration>,
}

impl Route {
    /// Whether it takes every request that another one could take.
    fn covers(&self, other: &Self) -> bool {
        let takes_path = match (&self.path, &other.path) {
            (PathMatch::Exact(own), PathMatch::Exact(path)) => own == path,
            (PathMatch::Prefix(own), PathMatch::Exact(path) | PathMatch::Prefix(path)) => path.starts_with(own.as_str()),
            (PathMatch::Exact(_), PathMatch::Prefix(_)) => false,
        };
        takes_path
            && other.methods.iter().all(|method| self.methods.contains(method))
            && self.headers.iter().all(|header| other.headers.contains(header))
    }
}

impl Settings {
    /// Finds the pool for a requested model, and the model id to ask its members for (`None`: their default).
    pub fn by_model<'m>(&self, model: &'m str) -> (usize, Option<&'m str>) {
        if let Some(pool) = self.names.get(model) {
            return (*pool, None);
        }
        if let Some((name, rest)) = model.split_once('/')
            && let Some(pool) = self.names.get(name)
            && !rest.is_empty()
        {
            return (*pool, Some(rest));
        }
        let holder = self.only_backend(|backend| backend.is_configured_for(model)).or_else(|| {
            let family = family_of(model)?;
            self.only_backend(|backend| backend.kind == family)
        });
        match holder {
            Some(backend) => (self.names[&backend.name], Some(model)),
            // The first configured pool, else the pool of one of the first backend.
            None => (0, Some(model)),
        }
    }

    /// The configured backend or pool that a requested model names although it is left out.
    pub fn left_out<'m>(&self, model: &'m str) -> Option<&'m str> {
        let name = model.split_once('/').map_or(model, |(name, _)| name);
        self.left_out.contains(name).then_some(name)
    }

    fn only_backend(&self, has: impl Fn(&Backend) -> bool) -> Option<&Arc<Backend>> {
        let mut holders = self.backends.iter().filter(|backend| has(backend));
        holders.next().filter(|_| holders.next().is_none())
    }

    /// Whether the gateway listens only on this machine's loopback.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.server.host)
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host of a base address, without what may be secret in it.
fn host_of(base: &str) -> Option<String> {
    url::Url::parse(base).ok()?.host_str().map(str::to_owned)
}

/// Whether a base address is at a domain or below it.
fn is_at(base: &str, domain: &str) -> bool {
    host_of(base).is_some_and(|host| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_can_have_no_effect_is_noted() {
        let notes = |more: &str| {
            let two = "backends: [{ name: a, type: simulated }, { name: b, type: simulated }";
            from_text("test", &format!("{two}{more}"), &std::collections::BTreeMap::new()).unwrap().notes
        };
        let hedged = notes(", { name: p, type: pool, fallback: false, hedge: {}, backends: [{ name: a }, { name: b }] }]");
        assert!(hedged.iter().any(|note| note.contains("nothing is hedged")), "{hedged:?}");
        let routes = notes(
            "]\nroutes:\n  - { name: late, path: /v1/chat/completions, backend: a, priority: 200 }\n  \
             - { name: own, path: /v1/chat/completions, backend: a, methods: [GET] }\n  \
             - { name: some, path: /v1/*, backend: a, headers: { x-team: a } }\n  \
             - { name: all, path: /v1/*, backend: b }\n  - { name: page, path: /admin/x, backend: a }\n",
        );
        let mut idle: Vec<&str> = routes.iter().filter(|note| note.contains("never taken")).map(String::as_str).collect();
        idle.sort_unstable();
        let expected = [
            "route `late` is never taken: `all` comes before it",
            "route `page` is never taken: the gateway answers /admin/x itself",
        ];
        assert_eq!(idle, expected);
    }
}
