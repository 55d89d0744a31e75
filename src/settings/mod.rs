//! Typed, validated settings; the only code that reads files or the environment.
//!
//! [`load`] merges file and environment, `walk` checks the tree against [`schema`], `document` types it, `plan` cross-checks
//! it into the [`Settings`] that everything else receives by value and that never change while the process lives.

mod backend;
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

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use backend::{Backend, BackendType, Network, Timeouts, Translation};
pub use credential::{AuthorizedUser, GoogleCredential, ServiceAccount, SigningKey};
pub use document::{Affinity, Fault, Hedge, Logs, Otlp, Parking, Server, Simulated, SimulatedDialect, Telemetry};
pub use families::family_of;
pub use google::{ImageHost, ImageUrls, Vertex};
pub use load::{DEFAULT_FILE, from_text, load, simulated_from_json};
pub use units::{Secret, format_size, parse_duration};
pub use walk::Problem;

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

/// Whether a host's name or address is this machine's loopback.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

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
