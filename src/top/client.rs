//! Where the state comes from: a running gateway's operator API.

use std::time::Duration;

use serde_json::Value;

use crate::settings::{Secret, Settings};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the largest state.
const LARGEST: usize = 64 << 20;

/// Which gateway, and how to enter.
pub struct Source {
    /// Its address, such as `http://127.0.0.1:8080`.
    pub address: String,
    /// The admin token, or the one that may only look.
    pub token: Option<Secret>,
}

impl Source {
    /// The gateway that a configuration is of, on this machine.
    pub fn of(settings: &Settings) -> Self {
        let host = match settings.server.host.as_str() {
            "0.0.0.0" | "localhost" => "127.0.0.1",
            "::" => "[::1]",
            host => host,
        };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let token = settings.read_token.clone().or_else(|| settings.admin_token.clone());
        Self { address: format!("http://{host}:{}", settings.server.port), token }
    }
}

/// What was fetched at once.
pub(super) struct Fetched {
    pub(super) state: Value,
    pub(super) requests: Value,
}

pub(super) struct Client {
    source: Source,
    http: awc::Client,
}

impl Client {
    pub(super) fn new(source: Source) -> Self {
        let mut http = awc::Client::builder().timeout(PATIENCE);
        if let Some(token) = &source.token {
            http = http.bearer_auth(token.expose());
        }
        // As it stands in a browser, or without its beginning.
        let address = source.address.trim_end_matches('/').trim_end_matches("/admin");
        let address = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Self { http: http.finish(), source: Source { address, ..source } }
    }

    pub(super) fn address(&self) -> &str {
        &self.source.address
    }

    /// Fetches the state and the requests.
    pub(super) async fn fetch(&self) -> Result<Fetched, String> {
        let state = self.get("/admin/api/state").await?;
        let requests = self.get("/admin/api/requests?limit=20").await?;
        Ok(Fetched { state, requests })
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let request = self.http.get(format!("{}{path}", self.source.address.trim_end_matches('/')));
        let mut reply = request.send().await.map_err(|error| format!("no answer: {error}"))?;
        let body = reply.body().limit(LARGEST).await.map_err(|error| format!("no whole answer: {error}"))?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if reply.status().is_success() && value.is_object() {
            return Ok(value);
        }
        let words = value["error"]["message"].as_str().unwrap_or("this is not a gateway's operator API");
        let hint = if reply.status() == 401 { "; give it by --token or STAGEDOOR_ADMIN_TOKEN" } else { "" };
        Err(format!("{}: {words}{hint}", reply.status().as_u16()))
    }
}
