//! Cross-checks a typed document and turns it into [`Settings`]: names resolved to indices, pools to trees, defaults
//! filled in. Reports every mistake it finds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix_http::header::HeaderValue;
use sha2::{Digest, Sha256};

use super::backend::is_at;
use super::document::{self, Auth, Config, Document, Entry, Otlp, Route as RouteEntry};
use super::pools::pools;
use super::schema::FAULTS;
use super::units::Secret;
use super::walk::{Findings, nearest};
use super::{Backend, BackendType, ClientKey, ImageUrls, PathMatch, Pool, Route, Settings, Timeouts, Translation, is_loopback};
use super::{google, network};
use crate::catalogue::{Catalogue, Model, Status};

/// Deadline of a request when neither route nor pool sets one.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);
/// Attempts per request over all members.
pub(super) const DEFAULT_MAX_ATTEMPTS: u32 = 6;

pub(super) fn plan(
    document: Document,
    environment: &BTreeMap<String, String>,
    declared: &HashSet<&str>,
    findings: &mut Findings,
) -> Settings {
    let entries: Vec<Entry> = document.backends.into_iter().flatten().collect();
    unique_names(&entries, findings);

    check_catalogue(&document.catalogue, findings);
    let catalogue = Arc::new(Catalogue::new(document.catalogue));
    let mut backends: Vec<Arc<Backend>> = Vec::new();
    let mut pool_entries: Vec<Entry> = Vec::new();
    for entry in entries {
        match BackendType::from_word(&entry.kind) {
            Some(kind) => backends.push(Arc::new(backend(backends.len(), kind, entry, environment, &catalogue, findings))),
            None => pool_entries.push(entry),
        }
    }
    if backends.is_empty() && findings.problems.is_empty() {
        findings.problem("backends", "no backend is left to serve requests; configure one or set the variables it needs");
    }

    for backend in &backends {
        note_old_models(backend, &catalogue, findings);
    }
    let pools = pools(&pool_entries, &backends, declared, findings);
    let names: HashMap<Arc<str>, usize> = pools.iter().map(|pool| (Arc::clone(&pool.name), pool.index)).collect();
    let has_routes = document.routes.is_some();
    let routes = routes(document.routes.unwrap_or_default(), &names, &pools, declared, findings);
    let (keys, open) = keys(document.auth, findings);
    if keys.is_empty() && !open && !is_loopback(&document.server.host) {
        findings.problem(
            "auth",
            format!(
                "the gateway would listen on {} for anybody; set auth.keys, or write `auth: none` to mean it",
                document.server.host
            ),
        );
    }
    if let (Some(token), Some(read_token)) = (&document.admin.token, &document.admin.read_token)
        && token.expose() == read_token.expose()
    {
        findings.problem("admin.readToken", "it must differ from admin.token, or whoever may look may also act".to_owned());
    }
    for (key, token) in [("admin.token", &document.admin.token), ("admin.readToken", &document.admin.read_token)] {
        let Some(token) = token.as_ref().map(Secret::expose) else { continue };
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            findings.problem(key, "a token has visible ASCII characters only, or no client could send it".to_owned());
        } else if token.len() < SHORT_TOKEN {
            findings.notes.push(format!("{key} has fewer than {SHORT_TOKEN} characters: it can be guessed"));
        }
    }
    check_level(&document.telemetry.logs.level, findings);

    if let Some(otlp) = &document.telemetry.otlp {
        check_otlp(otlp, findings);
    }

    Settings {
        source: String::new(),
        fingerprint: String::new(),
        server: document.server,
        admin_token: document.admin.token,
        read_token: document.admin.read_token,
        recent_requests: document.admin.recent_requests,
        keys,
        backends,
        pools,
        routes: has_routes.then_some(routes),
        telemetry: document.telemetry,
        notes: Vec::new(),
        left_out: declared.iter().filter(|name| !names.contains_key(**name)).map(|name| Box::from(*name)).collect(),
        names,
    }
}

/// A token with fewer characters is worth a word.
const SHORT_TOKEN: usize = 12;

/// A fact of nobody's model would never be looked up.
fn check_catalogue(own: &BTreeMap<String, Model>, findings: &mut Findings) {
    let built_in = Catalogue::new(BTreeMap::new());
    let mut vendors = built_in.vendors();
    vendors.push(BackendType::Simulated.word());
    for (name, model) in own {
        let path = format!("catalogue.{name}");
        let (vendor, id) = name.split_once('/').unwrap_or((name, ""));
        if id.is_empty() {
            findings.problem(&path, "a model is named `type/id`, such as `openai/gpt-4o`");
        } else if vendor == BackendType::Azure.word() {
            findings.problem(&path, format!("Azure's models are OpenAI's: write `openai/{id}`"));
        } else if !vendors.contains(&vendor) {
            let hint = nearest(vendor, &vendors).map_or_else(String::new, |nearest| format!("; did you mean `{nearest}/{id}`?"));
            findings.problem(&path, format!("`{vendor}` is not one of {}{hint}", vendors.join(", ")));
        } else if let Some(like) = model.like.as_ref().filter(|like| !built_in.knows(vendor, like)) {
            findings.problem(&format!("{path}.like"), format!("the built-in catalogue has no model `{vendor}/{like}`"));
        }
    }
}

/// Models that are switched off, or will be, stay as configured: only the operator knows what should take their place.
fn note_old_models(backend: &Backend, catalogue: &Catalogue, findings: &mut Findings) {
    if backend.kind == BackendType::Azure {
        // It serves deployments, whose names say nothing.
        return;
    }
    let named: std::collections::BTreeSet<&String> = backend.aliases.values().chain(&backend.default_model).collect();
    for id in named {
        let Some(model) = catalogue.model(backend.vendor, id) else { continue };
        let ends = model.ends.as_deref().unwrap_or("an unknown day");
        let fate = match model.status {
            Status::Live => continue,
            Status::Ending => format!("will be switched off on {ends}"),
            Status::Retired => format!("was switched off on {ends}, so its provider will answer 404"),
        };
        findings.notes.push(format!("backend `{}`: model `{id}` {fate}", backend.name));
    }
}

/// A word alone is a level: the filter would take any other one for a target of which everything is shown.
fn check_level(level: &str, findings: &mut Findings) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|known| known.eq_ignore_ascii_case(word));
    let unknown = level.split(',').map(str::trim).find(|part| !part.contains('=') && !is_level(part));
    if level.parse::<tracing_subscriber::filter::Targets>().is_err() || unknown.is_some() {
        let word = unknown.unwrap_or(level);
        let nearest = nearest(word, &LEVELS).map_or_else(String::new, |level| format!("; did you mean `{level}`?"));
        let words = format!("`{word}` is neither a level ({}) nor a filter (`target=level`){nearest}", LEVELS.join(", "));
        findings.problem("telemetry.logs.level", words);
    }
}

fn unique_names(entries: &[Entry], findings: &mut Findings) {
    let mut seen = HashSet::new();
    for entry in entries {
        if !seen.insert(entry.name.as_str()) {
            findings.problem(
                &format!("backends[{}].name", entry.name),
                "this name is used twice; names are unique over backends and pools",
            );
        }
    }
}

fn backend(
    index: usize,
    kind: BackendType,
    entry: Entry,
    environment: &BTreeMap<String, String>,
    catalogue: &Arc<Catalogue>,
    findings: &mut Findings,
) -> Backend {
    let path = format!("backends[{}].config", entry.name);
    let config = entry.config;
    let base = base_url(kind, &config);
    let vendor = vendor(kind, &base);
    let network = network::of(&config, &base, environment, &path, findings);
    let attempt = config.timeout.unwrap_or(Duration::from_secs(60));
    let total = config.timeouts.total.unwrap_or(Duration::from_secs(600));
    for (name, limit) in [
        ("timeout", config.timeout),
        ("timeouts.connect", config.timeouts.connect),
        ("timeouts.head", config.timeouts.head),
        ("timeouts.firstContent", config.timeouts.first_content),
        ("timeouts.idle", config.timeouts.idle),
        ("timeouts.total", config.timeouts.total),
        ("clientStall", config.client_stall),
    ] {
        if limit == Some(Duration::ZERO) {
            findings.problem(&format!("{path}.{name}"), NO_TIME);
        }
    }
    let is_google = kind == BackendType::Google;
    let vertex = if is_google { google::vertex(&config, environment, &path, findings) } else { None };
    let image_urls = if is_google { google::image_urls(&config, &path, findings) } else { ImageUrls::Pass };
    let api_version = if is_google { Some(google::api_version(&config, &path, findings)) } else { config.api_version.clone() };
    check_credential(&config, &path, findings);
    check_headers(&config, &path, findings);
    check_faults(&config, &path, findings);

    let default_model = match kind {
        BackendType::Azure => config.default_model.or(config.deployment_name),
        _ => config.default_model,
    };
    let mut aliases: BTreeMap<String, String> = match config.models {
        document::Names::List(names) => names.into_iter().map(|name| (name.clone(), name)).collect(),
        document::Names::Map(map) => map,
    };
    aliases.extend(config.deployments);
    if kind == BackendType::Azure && aliases.is_empty() && default_model.is_none() {
        findings.problem(
            &format!("{path}.deploymentName"),
            "set deploymentName or deployments: Azure serves deployments, not models",
        );
    }

    Backend {
        index,
        name: entry.name.as_str().into(),
        // The schema admits only names that are valid here.
        name_header: HeaderValue::from_str(&entry.name).unwrap_or_else(|_| HeaderValue::from_static("unnamed")),
        kind,
        network,
        base,
        entra: config.api_key.is_none() && config.entra_token.is_some(),
        // A project takes access tokens only.
        credential: config.api_key.or(config.entra_token).filter(|_| config.project_id.is_none()),
        organization: config.org_id,
        project: config.project,
        api_version,
        vertex,
        image_urls,
        headers: config.headers.into_iter().collect(),
        aliases,
        default_model,
        drop_fields: config.drop_fields,
        max_tokens_field: config.max_tokens_field,
        stream_usage: config.stream_usage,
        timeouts: Timeouts {
            attempt,
            connect: config.timeouts.connect.unwrap_or(Duration::from_secs(5)),
            head: config.timeouts.head.unwrap_or(attempt),
            first_content: config.timeouts.first_content.unwrap_or(attempt),
            idle: config.timeouts.idle.unwrap_or(Duration::from_secs(60)),
            total,
        },
        max_retries: config.max_retries.unwrap_or(2),
        max_concurrent: config.max_concurrent,
        max_queue: config.max_queue.unwrap_or(256),
        queue_timeout: config.queue_timeout.unwrap_or(Duration::from_secs(30)),
        circuit: config.circuit,
        max_reply: config.max_reply.unwrap_or(64 << 20),
        drain_timeout: config.drain_timeout.unwrap_or(total),
        keep_alive: Some(config.keep_alive.unwrap_or(Duration::from_secs(15))).filter(|silence| !silence.is_zero()),
        client_stall: config.client_stall.unwrap_or(Duration::from_secs(60)),
        restarts_per_minute: config.restarts.unwrap_or(30),
        simulated: (kind == BackendType::Simulated).then_some(config.simulated),
        translation: Translation {
            max_tokens: config.max_tokens,
            version: config.version.unwrap_or_else(|| "2023-06-01".into()),
            betas: config.beta,
            thinking_budgets: config.thinking_budgets,
            safety_settings: config.safety_settings,
            signature_placeholder: config.signature_placeholder.unwrap_or_else(|| "skip_thought_signature_validator".into()),
        },
        catalogue: Arc::clone(catalogue),
        vendor,
    }
}

/// Whose models a backend serves: one model has another id and price on every host.
fn vendor(kind: BackendType, base: &str) -> &'static str {
    const HOSTS: &[(&str, &str)] =
        &[("groq.com", "groq"), ("together.ai", "together"), ("together.xyz", "together"), ("fireworks.ai", "fireworks")];
    match kind {
        BackendType::Azure => BackendType::OpenAi.word(),
        BackendType::Meta => HOSTS.iter().find(|(domain, _)| is_at(base, domain)).map_or("meta", |(_, vendor)| vendor),
        other => other.word(),
    }
}

/// Where the requests go, without a trailing slash.
fn base_url(kind: BackendType, config: &Config) -> String {
    let base = match (&config.endpoint, kind) {
        (_, BackendType::Google) => return google::base(config),
        (Some(endpoint), _) => endpoint.trim_end_matches('/').to_owned(),
        (None, BackendType::OpenAi) => "https://api.openai.com/v1".into(),
        (None, BackendType::Mistral) => "https://api.mistral.ai/v1".into(),
        (None, BackendType::Anthropic) => "https://api.anthropic.com".into(),
        (None, BackendType::Azure | BackendType::Meta | BackendType::Simulated) => String::new(),
    };
    match kind {
        // Hosts are written with or without the version.
        BackendType::OpenAi | BackendType::Mistral | BackendType::Meta => {
            let is_version =
                |segment: &str| segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if base.split('/').skip(3).any(is_version) { base } else { format!("{base}/v1") }
        }
        BackendType::Azure => base.trim_end_matches("/openai/v1").trim_end_matches("/openai").to_owned(),
        BackendType::Anthropic => base.trim_end_matches("/v1").to_owned(),
        BackendType::Google | BackendType::Simulated => base,
    }
}

fn check_credential(config: &Config, path: &str, findings: &mut Findings) {
    for (name, secret) in [("apiKey", &config.api_key), ("entraToken", &config.entra_token)] {
        if secret.as_ref().is_some_and(|secret| !secret.expose().bytes().all(|b| (0x21..0x7f).contains(&b))) {
            findings.problem(
                &format!("{path}.{name}"),
                "a key holds visible ASCII characters only; is there a space or line break in it?",
            );
        }
    }
}

/// What is wrong with a limit of zero.
pub(super) const NO_TIME: &str = "a limit of zero would refuse everything";

/// Shortest time between two pushes.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn check_otlp(otlp: &Otlp, findings: &mut Findings) {
    check_header_map(&otlp.headers, "telemetry.otlp", findings);
    if otlp.interval < SHORTEST_INTERVAL {
        findings.problem("telemetry.otlp.interval", format!("the shortest interval is {SHORTEST_INTERVAL:?}"));
    }
    if !otlp.traces && !otlp.metrics {
        findings.notes.push("telemetry.otlp: nothing is exported, since both traces and metrics are off".to_owned());
    }
}

fn check_header_map(headers: &BTreeMap<String, Secret>, path: &str, findings: &mut Findings) {
    for (name, value) in headers {
        let valid = actix_http::header::HeaderName::try_from(name.as_str()).is_ok()
            && actix_http::header::HeaderValue::from_str(value.expose()).is_ok();
        if !valid {
            findings.problem(&format!("{path}.headers.{name}"), "this is not a valid header");
        }
    }
}

fn check_headers(config: &Config, path: &str, findings: &mut Findings) {
    check_header_map(&config.headers, path, findings);
    for (name, value) in [("orgId", &config.org_id), ("project", &config.project), ("apiVersion", &config.api_version)] {
        if value.as_ref().is_some_and(|value| !value.bytes().all(|b| (0x21..0x7f).contains(&b))) {
            findings.problem(&format!("{path}.{name}"), "only visible ASCII characters can be sent");
        }
    }
}

fn check_faults(config: &Config, path: &str, findings: &mut Findings) {
    for (index, fault) in config.simulated.faults.iter().enumerate() {
        debug_assert!(FAULTS.contains(&fault.kind.as_str()), "the schema admits only these");
        if fault.probability == 0.0 && fault.requests.is_empty() {
            findings.problem(&format!("{path}.faults[{index}]"), "say when it happens: probability or requests");
        }
        if fault.kind == "status" && fault.status.is_none() {
            findings.problem(&format!("{path}.faults[{index}].status"), "this key is required for kind status");
        }
    }
}

pub(super) fn unknown_name(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(best) => format!("no backend or pool has the name `{name}`; did you mean `{best}`?"),
        None => format!("no backend or pool has the name `{name}`; there are {}", known.join(", ")),
    }
}

fn routes(
    entries: Vec<RouteEntry>,
    names: &HashMap<Arc<str>, usize>,
    pools: &[Arc<Pool>],
    declared: &HashSet<&str>,
    findings: &mut Findings,
) -> Vec<Route> {
    let mut seen = HashSet::new();
    let mut routes: Vec<(u64, Route)> = Vec::new();
    for entry in entries {
        let path = format!("routes[{}]", entry.name);
        if !seen.insert(entry.name.clone()) {
            findings.problem(&format!("{path}.name"), "this name is used twice");
        }
        let pool = match (entry.backend.as_str(), names.get(entry.backend.as_str())) {
            ("auto", _) => None,
            (_, Some(pool)) => Some(*pool),
            (name, None) if declared.contains(name) => {
                findings.notes.push(format!("route `{}` is left out with its backend `{name}`", entry.name));
                continue;
            }
            (name, None) => {
                let mut known: Vec<&str> = names.keys().map(|name| &**name).chain(["auto"]).collect();
                known.sort_unstable();
                findings.problem(&format!("{path}.backend"), unknown_name(name, &known));
                None
            }
        };
        let Some(matcher) = path_match(&entry.path) else {
            findings.problem(&format!("{path}.path"), "a path begins with / and is exact or ends in /*");
            continue;
        };
        let endpoint_is_known =
            ["/chat/completions", "/completions", "/embeddings"].iter().any(|tail| entry.path.ends_with(tail));
        if !endpoint_is_known && pool.is_some_and(|pool| pools[pool].members.len() > 1) && matches!(matcher, PathMatch::Exact(_))
        {
            findings
                .problem(&format!("{path}.backend"), "a path that is passed through needs one backend; a pool cannot resend it");
        }
        routes.push((
            entry.priority.unwrap_or(100),
            Route {
                index: 0,
                name: entry.name.as_str().into(),
                path: matcher,
                methods: entry.methods.unwrap_or_else(|| vec!["POST".into()]),
                headers: entry.headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect(),
                pool,
                deadline: entry.deadline,
            },
        ));
        if entry.deadline.is_some_and(|deadline| deadline.is_zero()) {
            findings.problem(&format!("{path}.deadline"), NO_TIME);
        }
    }
    routes.sort_by_key(|(priority, _)| *priority);
    let routes: Vec<Route> = routes.into_iter().enumerate().map(|(index, (_, route))| Route { index, ..route }).collect();
    note_idle(&routes, findings);
    routes
}

/// Routes that no request can come to.
fn note_idle(routes: &[Route], findings: &mut Findings) {
    for route in routes {
        let own = match &route.path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        };
        let is_fixed = ["/admin", "/metrics", "/health", "/ready"]
            .iter()
            .any(|fixed| own.strip_prefix(fixed).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        if is_fixed {
            findings.notes.push(format!("route `{}` is never taken: the gateway answers {own} itself", route.name));
        } else if let Some(before) = routes[..route.index].iter().find(|before| before.covers(route)) {
            findings.notes.push(format!("route `{}` is never taken: `{}` comes before it", route.name, before.name));
        }
    }
}

fn path_match(path: &str) -> Option<PathMatch> {
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
        return None;
    }
    match path.split_once('*') {
        None => Some(PathMatch::Exact(path.to_owned())),
        Some((prefix, "")) if prefix.ends_with('/') => Some(PathMatch::Prefix(prefix.to_owned())),
        Some(_) => None,
    }
}

/// The accepted keys, and whether anybody may call without one.
fn keys(auth: Option<Auth>, findings: &mut Findings) -> (Vec<ClientKey>, bool) {
    let keys = match auth {
        None => return (Vec::new(), false),
        Some(Auth::Word(_)) => return (Vec::new(), true),
        Some(Auth::Keys { keys }) => keys,
    };
    if keys.is_empty() {
        findings.problem("auth.keys", "no key is listed; list one, or write `auth: none`");
    }
    let mut out: Vec<ClientKey> = Vec::new();
    for entry in keys {
        let path = format!("auth.keys[{}]", entry.name);
        let digest = match (&entry.key, &entry.sha256) {
            (Some(key), None) => Some(Sha256::digest(key.expose()).into()),
            (None, Some(hex)) => {
                let digest = decode_hex(hex);
                if digest.is_none() {
                    findings.problem(&format!("{path}.sha256"), "64 hexadecimal digits are expected");
                }
                digest
            }
            (Some(_), Some(_)) => {
                findings.problem(&path, "set key or sha256, not both");
                None
            }
            (None, None) => {
                findings.problem(&path, "set either key or sha256 (is the variable set?)");
                None
            }
        };
        if out.iter().any(|known| *known.name == *entry.name) {
            findings.problem(&format!("{path}.name"), "this name is used twice");
        }
        if let Some(known) = out.iter().find(|known| Some(known.digest) == digest) {
            let why = format!("this key is that of `{}` too: nobody could tell the two apart", known.name);
            findings.problem(&path, why);
        }
        if let Some(digest) = digest {
            out.push(ClientKey { name: entry.name.as_str().into(), digest });
        }
    }
    (out, false)
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}
