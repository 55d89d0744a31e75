//! The configuration's shape as data: every key with its kind, whether it is required, and what it means.
//!
//! The walk in `walk` checks a document against it; [`json_schema`] prints it for editors. A new key is added
//! here, in the typed structs of `document`, and nowhere else.

use serde_json::{Map, Value, json};

/// One key of an object.
pub struct Key {
    /// Name as written in the document.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Whether the object is incomplete without it.
    pub required: bool,
    /// A sibling that takes its place: with it, the key is not required.
    pub unless: Option<&'static str>,
    /// One line for the JSON Schema.
    pub doc: &'static str,
}

/// What a value may be.
pub enum Kind {
    /// Any text.
    Text,
    /// Text that is never printed.
    Secret,
    /// An `http://` or `https://` address.
    Url,
    /// A name: letters, digits, `.`, `_`, `-`, at most 64 characters.
    Name,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Integer(u64, u64),
    /// A number within bounds.
    Number(f64, f64),
    /// Time as text: `250ms`, `30s`, `2m`.
    Duration,
    /// Dollars per million tokens: `0.25`, or a plain number.
    Price,
    /// Bytes as text: `512KiB`, `32MiB`, or a plain number.
    Size,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of one kind.
    List(&'static Kind),
    /// Free keys with values of one kind.
    Map(&'static Kind),
    /// A list of names, or a map of alias to native name.
    Names,
    /// Fixed keys.
    Object(&'static [Key]),
    /// The word, which stands for zero, or the other kind.
    WordOr(&'static str, &'static Kind),
    /// The word as it is, or the object.
    WordOrObject(&'static str, &'static [Key]),
    /// An entry of `backends`: the keys depend on its `type`.
    Backend,
}

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: false, unless: None, doc }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: true, unless: None, doc }
}

const fn required_unless(name: &'static str, kind: Kind, unless: &'static str, doc: &'static str) -> Key {
    Key { name, kind, required: true, unless: Some(unless), doc }
}

/// Top level of the document.
pub const DOCUMENT: Kind = Kind::Object(&[
    key("server", Kind::Object(SERVER), "where and how the gateway listens"),
    key(
        "admin",
        Kind::Object(&[
            key("token", Kind::Secret, "bearer token for /admin; without it only loopback is answered"),
            key("readToken", Kind::Secret, "bearer token that may look at /admin and /metrics, but not act"),
            key(
                "recentRequests",
                Kind::Integer(0, 1_000_000),
                "requests whose story is kept after their end, one in eight for those that went smoothly, default 4000",
            ),
        ]),
        "operator access",
    ),
    key(
        "auth",
        Kind::WordOrObject("none", &[required("keys", Kind::List(&Kind::Object(AUTH_KEY)), "accepted client keys")]),
        "client keys, or none",
    ),
    required("backends", Kind::List(&Kind::Backend), "upstream accounts and pools"),
    key("routes", Kind::List(&Kind::Object(ROUTE)), "which path goes to which backend; absent: by model"),
    key("telemetry", Kind::Object(TELEMETRY), "logs, traces and metrics"),
    key("catalogue", Kind::Map(&Kind::Object(MODEL)), "facts of models by `type/id`, before the built-in ones"),
]);

const SERVER: &[Key] = &[
    key("host", Kind::Text, "address to listen on, default 127.0.0.1"),
    key("port", Kind::Integer(0, 65_535), "port, default 8080; 0 picks a free one"),
    key("workers", Kind::WordOr("auto", &Kind::Integer(1, 1_024)), "worker threads, default one per core"),
    key("maxBody", Kind::Size, "largest request body, default 64MiB"),
    key("maxBodyInFlight", Kind::Size, "total of request bodies held at once, default 512MiB"),
    key("bodyTimeout", Kind::Duration, "longest wait for a request body, default 60s"),
    key("maxConnections", Kind::Integer(1, 10_000_000), "open client connections per worker, default 25000"),
    key("drainTimeout", Kind::Duration, "how long streams may finish after SIGTERM, default 60s"),
    key("drainGrace", Kind::Duration, "how long new connections are still accepted after SIGTERM, default 1s"),
];

const MODEL: &[Key] = &[
    key("contextTokens", Kind::Integer(1, 1_000_000_000), "input and output together"),
    key("maxOutputTokens", Kind::Integer(1, 1_000_000_000), "longest answer"),
    key("like", Kind::Text, "another model of the type whose rules it follows"),
    key(
        "price",
        Kind::Object(&[
            key("input", Kind::Price, "input"),
            key("cachedInput", Kind::Price, "input read from the provider's cache"),
            key("cacheWrite", Kind::Price, "input written to the provider's cache"),
            key("cacheWrite1h", Kind::Price, "input written to the provider's cache for an hour"),
            key("output", Kind::Price, "output"),
        ]),
        "US dollars per million tokens",
    ),
];

const AUTH_KEY: &[Key] = &[
    required("name", Kind::Name, "who this key belongs to"),
    key("key", Kind::Secret, "the key itself"),
    key("sha256", Kind::Text, "its SHA-256 as 64 hex digits, instead of key"),
];

const ROUTE: &[Key] = &[
    required("name", Kind::Name, "for logs and metrics"),
    required("path", Kind::Text, "exact path, or a prefix ending in /*"),
    key("methods", Kind::List(&Kind::Choice(METHODS)), "allowed methods, default POST"),
    key("headers", Kind::Map(&Kind::Text), "header values that must match"),
    required("backend", Kind::Text, "name of a backend or pool, or auto"),
    key("priority", Kind::Integer(0, 1_000_000), "lower is tried first, default 100"),
    key("deadline", Kind::Duration, "time for the whole request, default 10m"),
];

/// Methods a route may list.
pub const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

const TELEMETRY: &[Key] = &[
    key(
        "logs",
        Kind::Object(&[
            key("format", Kind::Choice(&["json", "pretty"]), "default json"),
            key("level", Kind::Text, "level or filter directives, default info"),
        ]),
        "log lines on standard output",
    ),
    key("accessLog", Kind::Bool, "one line per request, default true"),
    key("otlp", Kind::Object(OTLP), "traces and metrics for an OpenTelemetry collector; absent: none"),
];

const OTLP: &[Key] = &[
    required("endpoint", Kind::Url, "the collector's OTLP/HTTP address without /v1/traces and /v1/metrics"),
    key("headers", Kind::Map(&Kind::Secret), "extra headers sent to the collector"),
    key("interval", Kind::Duration, "time between pushes, at least 100ms, default 10s; spans wait 5s at most"),
    key("sampleRatio", Kind::Number(0.0, 1.0), "share of traces that begin here and are kept, default 1"),
    key("serviceName", Kind::Text, "service.name, default stagedoor"),
    key("traces", Kind::Bool, "a span for each request and each try, default true"),
    key("metrics", Kind::Bool, "durations, tokens and times to first token, default true"),
];

/// Backend types, in the order they are documented.
pub const TYPES: &[&str] = &["openai", "anthropic", "azure-openai", "google", "meta", "mistral", "simulated", "pool"];

/// Pool strategies.
pub const STRATEGIES: &[&str] = &["latency", "weighted", "round-robin", "least-busy", "cost"];

const BACKEND: &[Key] = &[
    required("name", Kind::Name, "unique name"),
    required("type", Kind::Choice(TYPES), "what it is"),
    key("optional", Kind::Bool, "leave the backend out when a variable it requires is not set"),
];

const POOL: &[Key] = &[
    required("name", Kind::Name, "unique name"),
    required("type", Kind::Choice(TYPES), "pool"),
    key("strategy", Kind::Choice(STRATEGIES), "default latency"),
    key("fallback", Kind::Bool, "on error, try the other members, default true"),
    required(
        "backends",
        Kind::List(&Kind::Object(&[
            required("name", Kind::Text, "a backend or another pool"),
            key("weight", Kind::Number(0.0, 1_000_000.0), "share, default 1"),
        ])),
        "members",
    ),
    key("deadline", Kind::Duration, "time for the whole request, default 10m"),
    key("maxAttempts", Kind::Integer(1, 100), "attempts per request over all members, default 6"),
    key(
        "hedge",
        Kind::Object(&[
            key(
                "after",
                Kind::WordOr("p95", &Kind::Duration),
                "wait before a second member is asked, default the pool's own p95",
            ),
            key("share", Kind::Number(0.001, 1.0), "largest share of requests that are asked twice, default 0.05"),
        ]),
        "ask a second member when the first one is slow; absent: never",
    ),
    key(
        "affinity",
        Kind::Object(&[
            key("header", Kind::Text, "request header that names the conversation, default x-session-id; else the prompt's head"),
            key("expiry", Kind::Duration, "how long after its last request a conversation keeps its member, default 5m"),
        ]),
        "send a conversation to the same member, so that its provider's prompt cache is hit; absent: never",
    ),
    key(
        "standby",
        Kind::Object(&[key("interval", Kind::Duration, "how long a member may be without traffic, default 5m")]),
        "check members without traffic by a request of one token; absent: never",
    ),
    key(
        "parking",
        Kind::Object(&[
            key("maxJobs", Kind::Integer(0, 1_000_000), "jobs that wait for a member to start, default 1024"),
            key("maxWait", Kind::Duration, "how long they wait, default 5s"),
        ]),
        "waiting while every member is starting",
    ),
];

/// Keys of `config` that every backend type takes.
const COMMON: &[Key] = &[
    key("defaultModel", Kind::Text, "model for requests that name none the backend has"),
    key("models", Kind::Names, "models it serves: a list, or a map of alias to native id"),
    key("headers", Kind::Map(&Kind::Secret), "extra headers sent upstream"),
    key("timeout", Kind::Duration, "limit of one attempt: the whole reply, or a stream's first content; default 60s"),
    key(
        "timeouts",
        Kind::Object(&[
            key("connect", Kind::Duration, "default 5s"),
            key("head", Kind::Duration, "default timeout"),
            key("firstContent", Kind::Duration, "default timeout"),
            key("idle", Kind::Duration, "silence within a stream, default 60s"),
            key("total", Kind::Duration, "whole stream, default 10m"),
        ]),
        "limits by phase",
    ),
    key("maxRetries", Kind::Integer(0, 20), "further tries at this backend, default 2"),
    key("maxConcurrent", Kind::Integer(1, 1_000_000), "requests at once, for the whole process; default unlimited"),
    key("maxQueue", Kind::Integer(0, 1_000_000), "requests that wait for a permit, per worker; default 256"),
    key("maxReply", Kind::Size, "largest whole reply, default 64MiB"),
    key("drainTimeout", Kind::Duration, "how long a replaced generation may finish, default timeouts.total"),
    key("keepAlive", Kind::WordOr("off", &Kind::Duration), "silence before an SSE comment, default 15s"),
    key("clientStall", Kind::Duration, "longest pause of a reader while data waits, default 60s"),
    key("queueTimeout", Kind::Duration, "how long they wait at most, default 30s"),
    key("circuit", Kind::Object(CIRCUIT), "when the backend, or one model of it, is not asked for a while"),
    key(
        "restarts",
        Kind::Integer(1, 10_000),
        "crash restarts per minute and worker before the backend is marked failed, default 30",
    ),
];

const CIRCUIT: &[Key] = &[
    key("failures", Kind::Integer(1, 1_000_000), "failures in a row that open it, default 5"),
    key("failureShare", Kind::Number(0.01, 1.0), "or this share of failures within the window, default 0.5"),
    key("minRequests", Kind::Integer(1, 1_000_000), "fewest requests within the window for the share, default 10"),
    key("window", Kind::Duration, "default 30s"),
    key("coolDown", Kind::Duration, "first cool-down, doubling, default 5s"),
    key("maxCoolDown", Kind::Duration, "default 2m"),
    key("rateLimited", Kind::Duration, "first cool-down of a 429 that says no time, doubling, default 5s"),
    key("maxRateLimited", Kind::Duration, "default 1m"),
    key("overloaded", Kind::Duration, "first cool-down of a 503 or 529 that says no time, doubling, default 2s"),
    key("maxOverloaded", Kind::Duration, "default 1m"),
    key("credential", Kind::Duration, "cool-down of a refused key, default 5m"),
    key("billing", Kind::Duration, "cool-down of an account without money or quota, default 1h"),
    key("modelUnknown", Kind::Duration, "cool-down of a model the backend does not have, default 10m"),
];

/// Keys of `config` that every backend type with a network connection takes.
const NETWORK: &[Key] = &[
    key("proxyUrl", Kind::Url, "proxy for its connections; default HTTPS_PROXY and NO_PROXY"),
    key("caFile", Kind::Text, "PEM file with certificates to trust beside the system's"),
    key("maxConnectionAge", Kind::Duration, "age at which a connection is not used again, default 5m"),
    key("maxConnectionRequests", Kind::Integer(1, 1_000_000_000), "requests that a connection serves at most; default unlimited"),
    key("http2", Kind::Bool, "whether HTTP/2 is spoken where it is offered, default true"),
    key(
        "maxStreams",
        Kind::Integer(1, 1_000_000),
        "requests at once on one HTTP/2 connection, default 90; not above what the provider allows",
    ),
];

const OPENAI: &[Key] = &[
    required("apiKey", Kind::Secret, "key"),
    key("endpoint", Kind::Url, "base URL, default https://api.openai.com/v1"),
    key("orgId", Kind::Text, "sent as OpenAI-Organization"),
    key("project", Kind::Text, "sent as OpenAI-Project"),
];

const BUDGETS: &str = "tokens for each reasoning_effort, for models that take a budget";

const ANTHROPIC: &[Key] = &[
    required("apiKey", Kind::Secret, "key"),
    key("endpoint", Kind::Url, "base URL, default https://api.anthropic.com"),
    key("maxTokens", Kind::Integer(1, 10_000_000), "max_tokens when the request has none"),
    key("version", Kind::Choice(&["2023-06-01", "2026-10-21"]), "anthropic-version header, default 2023-06-01"),
    key("beta", Kind::List(&Kind::Text), "anthropic-beta values"),
    key("thinkingBudgets", Kind::Map(&Kind::Integer(0, 10_000_000)), BUDGETS),
];

const LIMITS: &[&str] = &["max_tokens", "max_completion_tokens"];

const AZURE: &[Key] = &[
    required_unless("apiKey", Kind::Secret, "entraToken", "key, sent as api-key"),
    key("entraToken", Kind::Secret, "bearer token, instead of apiKey"),
    required("endpoint", Kind::Url, "resource address, such as https://myresource.openai.azure.com"),
    key("deploymentName", Kind::Text, "deployment that serves every model not in deployments"),
    key("deployments", Kind::Map(&Kind::Text), "model to deployment"),
    key("apiVersion", Kind::Text, "dated API version; absent: the v1 form"),
    key("maxTokensField", Kind::Choice(LIMITS), "the name the deployments know; default by the models' names in deployments"),
];

const GOOGLE: &[Key] = &[
    required_unless("apiKey", Kind::Secret, "projectId", "Gemini API key; not used with projectId"),
    key("projectId", Kind::Text, "Vertex AI project: requests go to Vertex AI with access tokens, also where a key is set"),
    key("location", Kind::Text, "Vertex AI location, default global"),
    key(
        "credentialsFile",
        Kind::Text,
        "service account or authorized user file for Vertex AI; default: application default credentials, then the metadata server",
    ),
    key("apiVersion", Kind::Text, "version in the path, default v1beta, with projectId v1beta1"),
    key("safetySettings", Kind::List(&Kind::Map(&Kind::Text)), "passed to the model"),
    key("thinkingBudgets", Kind::Map(&Kind::Integer(0, 10_000_000)), BUDGETS),
    key("signaturePlaceholder", Kind::Text, "stands for a thought signature that is lost"),
    key(
        "imageUrls",
        Kind::Choice(&["fetch", "pass"]),
        "fetch images by their https address, or pass the address on; default fetch",
    ),
    key("imageHosts", Kind::List(&Kind::Text), "hosts whose images are fetched although they are private or without TLS"),
    key("endpoint", Kind::Url, "base URL, default by location"),
];

const META: &[Key] = &[
    key("apiKey", Kind::Secret, "key, if the host wants one"),
    required("endpoint", Kind::Url, "base URL of an OpenAI-compatible host"),
    key("dropFields", Kind::List(&Kind::Text), "request fields the host refuses"),
    key("maxTokensField", Kind::Choice(LIMITS), "the name the host knows"),
    key("streamUsage", Kind::Bool, "whether stream_options.include_usage may be sent, default true"),
];

const MISTRAL: &[Key] =
    &[required("apiKey", Kind::Secret, "key"), key("endpoint", Kind::Url, "base URL, default https://api.mistral.ai/v1")];

/// Dialects of the simulated provider.
pub const DIALECTS: &[&str] = &["openai", "anthropic", "google"];

const SIMULATED: &[Key] = &[
    key("dialect", Kind::Choice(DIALECTS), "wire format it speaks, default openai"),
    key("firstToken", Kind::Duration, "time to first token, default 50ms"),
    key("tokensPerSecond", Kind::Number(0.001, 1e9), "pace of a stream, default 100; a whole reply comes after firstToken"),
    key("jitter", Kind::Number(0.0, 1.0), "share by which times vary, default 0"),
    key("seed", Kind::Integer(0, u64::MAX), "seed of the variation, default 0"),
    key("tokens", Kind::Integer(1, 1_000_000), "length of an answer, default 12"),
    key("faults", Kind::List(&Kind::Object(FAULT)), "what goes wrong, and when"),
];

const FAULT: &[Key] = &[
    required("kind", Kind::Choice(FAULTS), "what happens"),
    key("probability", Kind::Number(0.0, 1.0), "share of requests"),
    key("requests", Kind::List(&Kind::Integer(1, u64::MAX)), "numbers of requests, from 1"),
    key("status", Kind::Integer(300, 599), "for kind status"),
    key("retryAfter", Kind::Duration, "for kind status"),
    key("after", Kind::Duration, "for kind slow-head: its length, default 10s"),
    key("event", Kind::Integer(0, 1_000_000), "for stall, cut, malformed and error-event: before which event, default 1"),
];

/// Faults of the simulated backend.
pub const FAULTS: &[&str] = &[
    "connect-refused",
    "reset",
    "status",
    "slow-head",
    "stall",
    "cut",
    "malformed",
    "error-event",
    "panic-handler",
    "panic-task",
    "panic-body",
];

/// The key lists that make up one backend entry: its own keys, and those of `config` (empty for a pool).
pub fn backend_keys(kind: &str) -> (&'static [Key], Vec<&'static Key>) {
    let special: &[&'static [Key]] = match kind {
        "openai" => &[OPENAI, COMMON, NETWORK],
        "anthropic" => &[ANTHROPIC, COMMON, NETWORK],
        "azure-openai" => &[AZURE, COMMON, NETWORK],
        "google" => &[GOOGLE, COMMON, NETWORK],
        "meta" => &[META, COMMON, NETWORK],
        "mistral" => &[MISTRAL, COMMON, NETWORK],
        "simulated" => &[SIMULATED, COMMON],
        _ => return (POOL, Vec::new()),
    };
    (BACKEND, special.iter().flat_map(|keys| keys.iter()).collect())
}

/// The document as a JSON Schema (draft 2020-12).
pub fn json_schema() -> Value {
    let mut schema = describe(&DOCUMENT);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Stagedoor configuration");
    schema
}

fn describe(kind: &Kind) -> Value {
    // A variable may stand wherever a scalar does.
    let or_variable = |inner: Value| json!({ "anyOf": [inner, { "type": "string", "pattern": "\\$\\{" }] });
    match kind {
        Kind::Text | Kind::Secret | Kind::Url => json!({ "type": "string" }),
        Kind::Name => json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" }),
        Kind::Bool => or_variable(json!({ "type": "boolean" })),
        Kind::Integer(min, max) => or_variable(json!({ "type": "integer", "minimum": min, "maximum": max })),
        Kind::Number(min, max) => or_variable(json!({ "type": "number", "minimum": min, "maximum": max })),
        Kind::Duration => or_variable(json!({ "type": "string", "pattern": "^[0-9.]+ *(ms|s|m|h|d)( *[0-9]+ *(ms|s|m|h))*$" })),
        Kind::Price => or_variable(json!({ "type": ["string", "number"] })),
        Kind::Size => or_variable(json!({ "type": ["string", "integer"] })),
        Kind::Choice(words) => or_variable(json!({ "enum": words })),
        Kind::List(item) => json!({ "type": "array", "items": describe(item) }),
        Kind::Map(item) => json!({ "type": "object", "additionalProperties": describe(item) }),
        Kind::Names => json!({ "anyOf": [
            { "type": "array", "items": { "type": "string" } },
            { "type": "object", "additionalProperties": { "type": "string" } },
        ] }),
        Kind::Object(keys) => object(keys.iter()),
        Kind::WordOr(word, inner) => json!({ "anyOf": [{ "const": word }, describe(inner)] }),
        Kind::WordOrObject(word, keys) => {
            json!({ "anyOf": [{ "const": word }, object(keys.iter())] })
        }
        Kind::Backend => {
            json!({ "oneOf": TYPES.iter().map(|name| backend(name)).collect::<Vec<_>>() })
        }
    }
}

fn backend(kind: &str) -> Value {
    let (own, config) = backend_keys(kind);
    let mut entry = object(own.iter());
    entry["properties"]["type"] = json!({ "const": kind });
    if !config.is_empty() {
        let needs_config = config.iter().any(|key| key.required && key.unless.is_none());
        entry["properties"]["config"] = object(config.into_iter());
        if needs_config && let Some(required) = entry["required"].as_array_mut() {
            required.push(json!("config"));
        }
    }
    entry
}

fn object<'a>(keys: impl Iterator<Item = &'a Key>) -> Value {
    let mut properties = Map::new();
    let mut needed = Vec::new();
    for key in keys {
        let mut described = describe(&key.kind);
        described["description"] = json!(key.doc);
        properties.insert(key.name.to_owned(), described);
        if key.required && key.unless.is_none() {
            needed.push(key.name);
        }
    }
    json!({ "type": "object", "properties": properties, "required": needed, "additionalProperties": false })
}
