//! The document as types: what the walk has checked, deserialized. [`super::plan`] turns it into settings.
//! What each key means stands in [`super::schema`], once.
#![expect(missing_docs, reason = "the schema describes every key")]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::units::Secret;
use crate::balance::CircuitRules;
use crate::catalogue::Model;

/// The whole document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    pub server: Server,
    #[serde(default)]
    pub admin: Admin,
    pub auth: Option<Auth>,
    /// `null` stands for an optional backend that was left out.
    pub backends: Vec<Option<Entry>>,
    pub routes: Option<Vec<Route>>,
    #[serde(default)]
    pub telemetry: Telemetry,
    #[serde(default)]
    pub catalogue: BTreeMap<String, Model>,
}

/// `server`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Server {
    pub host: String,
    pub port: u16,
    /// 0 stands for one per core.
    pub workers: usize,
    /// Bytes.
    pub max_body: u64,
    /// Bytes.
    pub max_body_in_flight: u64,
    pub body_timeout: Duration,
    pub max_connections: usize,
    pub drain_timeout: Duration,
    pub drain_grace: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            workers: 0,
            max_body: 64 << 20,
            max_body_in_flight: 512 << 20,
            body_timeout: Duration::from_secs(60),
            max_connections: 25_000,
            drain_timeout: Duration::from_secs(60),
            drain_grace: Duration::from_secs(1),
        }
    }
}

/// `admin`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Admin {
    pub token: Option<Secret>,
    pub read_token: Option<Secret>,
    pub recent_requests: usize,
}

impl Default for Admin {
    fn default() -> Self {
        Self { token: None, read_token: None, recent_requests: 4_000 }
    }
}

/// `auth`: the word `none`, or keys.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Auth {
    /// `none`.
    Word(#[expect(dead_code, reason = "there is only one word")] String),
    /// Accepted keys.
    Keys {
        /// At least one.
        keys: Vec<AuthKey>,
    },
}

/// One accepted client key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuthKey {
    pub name: String,
    pub key: Option<Secret>,
    pub sha256: Option<String>,
}

/// One entry of `backends`: a backend or a pool.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// The walk has left the entry out already where it must.
    #[serde(default, rename = "optional")]
    _optional: bool,
    #[serde(default)]
    pub config: Config,
    pub strategy: Option<String>,
    pub fallback: Option<bool>,
    #[serde(default)]
    pub backends: Vec<Member>,
    pub deadline: Option<Duration>,
    pub max_attempts: Option<u32>,
    #[serde(default)]
    pub parking: Parking,
    pub hedge: Option<Hedge>,
    pub affinity: Option<Affinity>,
    pub standby: Option<Standby>,
}

/// `hedge` of a pool.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hedge {
    /// Zero stands for the pool's own p95.
    pub after: Duration,
    pub share: f64,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: Duration::ZERO, share: 0.05 }
    }
}

/// `affinity` of a pool.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Affinity {
    pub header: String,
    pub expiry: Duration,
}

impl Default for Affinity {
    fn default() -> Self {
        Self { header: "x-session-id".into(), expiry: Duration::from_secs(300) }
    }
}

/// `standby` of a pool.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Standby {
    pub interval: Duration,
}

impl Default for Standby {
    fn default() -> Self {
        Self { interval: Duration::from_secs(300) }
    }
}

/// A member of a pool.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Member {
    pub name: String,
    pub weight: Option<f64>,
}

/// How jobs wait while every member of a pool is starting.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Parking {
    pub max_jobs: usize,
    pub max_wait: Duration,
}

impl Default for Parking {
    fn default() -> Self {
        Self { max_jobs: 1_024, max_wait: Duration::from_secs(5) }
    }
}

/// `config` of a backend: the union of what the types take; the walk has refused what a type does not.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Config {
    pub api_key: Option<Secret>,
    pub endpoint: Option<String>,
    pub org_id: Option<String>,
    pub project: Option<String>,
    pub max_tokens: Option<u64>,
    pub version: Option<String>,
    pub beta: Vec<String>,
    pub entra_token: Option<Secret>,
    pub deployment_name: Option<String>,
    pub deployments: BTreeMap<String, String>,
    pub api_version: Option<String>,
    pub project_id: Option<String>,
    pub location: Option<String>,
    pub credentials_file: Option<String>,
    pub image_urls: Option<String>,
    pub image_hosts: Vec<String>,
    pub safety_settings: Vec<BTreeMap<String, String>>,
    pub thinking_budgets: BTreeMap<String, u64>,
    pub signature_placeholder: Option<String>,
    pub drop_fields: Vec<String>,
    pub max_tokens_field: Option<String>,
    pub stream_usage: Option<bool>,

    pub default_model: Option<String>,
    pub models: Names,
    pub headers: BTreeMap<String, Secret>,
    pub timeout: Option<Duration>,
    pub timeouts: Timeouts,
    pub max_retries: Option<u32>,
    pub max_concurrent: Option<u32>,
    pub max_queue: Option<usize>,
    pub max_reply: Option<u64>,
    pub drain_timeout: Option<Duration>,
    pub keep_alive: Option<Duration>,
    pub client_stall: Option<Duration>,
    pub restarts: Option<usize>,
    pub circuit: CircuitRules,
    pub queue_timeout: Option<Duration>,

    pub proxy_url: Option<String>,
    pub ca_file: Option<String>,
    pub max_connection_age: Option<Duration>,
    pub max_connection_requests: Option<u64>,
    pub http2: Option<bool>,
    pub max_streams: Option<usize>,

    #[serde(flatten)]
    pub simulated: Simulated,
}

/// `config.timeouts`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub connect: Option<Duration>,
    pub head: Option<Duration>,
    pub first_content: Option<Duration>,
    pub idle: Option<Duration>,
    pub total: Option<Duration>,
}

/// A list of names, or a map of alias to native name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Names {
    /// Names that stand for themselves.
    List(Vec<String>),
    /// Alias to native name.
    Map(BTreeMap<String, String>),
}

impl Default for Names {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// Wire format of the simulated type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimulatedDialect {
    OpenAi,
    Anthropic,
    Google,
}

/// What only the simulated type takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Simulated {
    pub dialect: SimulatedDialect,
    pub first_token: Duration,
    pub tokens_per_second: f64,
    /// Share by which times vary.
    pub jitter: f64,
    pub seed: u64,
    pub tokens: u64,
    pub faults: Vec<Fault>,
}

impl Default for Simulated {
    fn default() -> Self {
        Self {
            dialect: SimulatedDialect::OpenAi,
            first_token: Duration::from_millis(50),
            tokens_per_second: 100.0,
            jitter: 0.0,
            seed: 0,
            tokens: 12,
            faults: Vec::new(),
        }
    }
}

/// One line of a fault script.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    pub kind: String,
    #[serde(default)]
    pub probability: f64,
    #[serde(default)]
    pub requests: Vec<u64>,
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    pub after: Option<Duration>,
    pub event: Option<u64>,
}

/// One route.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Route {
    pub name: String,
    pub path: String,
    pub methods: Option<Vec<String>>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub backend: String,
    pub priority: Option<u64>,
    pub deadline: Option<Duration>,
}

/// `telemetry`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    pub logs: Logs,
    pub access_log: bool,
    pub otlp: Option<Otlp>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { logs: Logs::default(), access_log: true, otlp: None }
    }
}

/// `telemetry.otlp`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Otlp {
    pub endpoint: String,
    pub headers: BTreeMap<String, Secret>,
    pub interval: Duration,
    pub sample_ratio: f64,
    pub service_name: String,
    pub traces: bool,
    pub metrics: bool,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            headers: BTreeMap::new(),
            interval: Duration::from_secs(10),
            sample_ratio: 1.0,
            service_name: "stagedoor".into(),
            traces: true,
            metrics: true,
        }
    }
}

/// `telemetry.logs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logs {
    pub format: String,
    pub level: String,
}

impl Default for Logs {
    fn default() -> Self {
        Self { format: "json".into(), level: "info".into() }
    }
}

/// Reads a checked document.
///
/// # Errors
/// A disagreement between the schema and these types: a fault of the program, reported as text.
pub(super) fn read(checked: Value) -> Result<Document, String> {
    serde_json::from_value(checked).map_err(|error| format!("the schema admits what the types do not: {error}"))
}
