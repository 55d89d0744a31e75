//! How a backend's connections are made: proxy, trusted certificates, age.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::Network;
use super::document::Config;
use super::walk::Findings;

/// Requests at once on one HTTP/2 connection: most providers allow 100 or more.
const MAX_STREAMS: usize = 90;

/// The network settings of a backend.
pub(super) fn of(
    config: &Config,
    base: &str,
    environment: &BTreeMap<String, String>,
    path: &str,
    findings: &mut Findings,
) -> Network {
    Network {
        proxy: proxy(config.proxy_url.as_deref(), base, environment, path, findings),
        ca_pem: config.ca_file.as_deref().and_then(|file| read_pem(file, path, findings)),
        max_age: config.max_connection_age.unwrap_or(Duration::from_secs(300)),
        max_requests: config.max_connection_requests,
        shared: (base.starts_with("https:") && config.http2.unwrap_or(true)).then(|| config.max_streams.unwrap_or(MAX_STREAMS)),
    }
}

fn read_pem(file: &str, path: &str, findings: &mut Findings) -> Option<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let problem = match std::fs::read(file) {
        Ok(pem) => match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if !certificates.is_empty() => return Some(pem),
            Ok(_) => "the file holds no certificate".to_owned(),
            Err(error) => format!("the file is not PEM: {error}"),
        },
        Err(error) => format!("the file cannot be read: {error}"),
    };
    findings.problem(&format!("{path}.caFile"), format!("{file}: {problem}"));
    None
}

/// The proxy for a base URL: the backend's own, else `HTTPS_PROXY` unless `NO_PROXY` exempts the host.
pub(super) fn proxy(
    own: Option<&str>,
    base: &str,
    environment: &BTreeMap<String, String>,
    path: &str,
    findings: &mut Findings,
) -> Option<Url> {
    let variable = |name: &str| environment.get(name).or_else(|| environment.get(&name.to_lowercase())).filter(|v| !v.is_empty());
    let (text, origin) = match own {
        Some(own) => (own, format!("{path}.proxyUrl")),
        None => {
            let base = Url::parse(base).ok()?;
            let host = base.host_str()?.to_lowercase();
            if base.scheme() != "https" || variable("NO_PROXY").is_some_and(|list| is_exempt(&host, list)) {
                return None;
            }
            (variable("HTTPS_PROXY")?.as_str(), "HTTPS_PROXY".to_owned())
        }
    };
    match Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Some(url),
        _ => {
            findings.problem(&origin, "the proxy must be an http:// address");
            None
        }
    }
}

fn is_exempt(host: &str, list: &str) -> bool {
    list.split(',').map(|entry| entry.trim().trim_start_matches("*.").trim_start_matches('.').to_lowercase()).any(|entry| {
        entry == "*"
            || (!entry.is_empty() && (host == entry || host.strip_suffix(&entry).is_some_and(|rest| rest.ends_with('.'))))
    })
}
