//! How a backend's connections are made: proxy, trusted certificates, age.

use std::collections::BTreeMap;
use std::net::IpAddr;
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
            let host = base.host_str()?.trim_matches(['[', ']']).to_lowercase();
            let port = base.port_or_known_default().unwrap_or(443);
            if base.scheme() != "https" || variable("NO_PROXY").is_some_and(|list| is_exempt(&host, port, list)) {
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

/// Whether a list of names, addresses, networks (`10.0.0.0/8`) and any of them with a port exempts a host.
fn is_exempt(host: &str, port: u16, list: &str) -> bool {
    list.split(',').map(|entry| entry.trim().to_lowercase()).any(|entry| {
        let (entry, its_port) = match entry.rsplit_once(':') {
            // Else it is an address of the newer protocol.
            Some((name, digits)) if !name.contains(':') || name.ends_with(']') => (name.to_owned(), digits.parse::<u16>().ok()),
            _ => (entry, None),
        };
        if its_port.is_some_and(|its| its != port) {
            return false;
        }
        let name = entry.trim_matches(['[', ']']).trim_start_matches("*.").trim_start_matches('.');
        let is_within = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        name == "*" || (!name.is_empty() && (host == name || is_within)) || is_in_network(host, name)
    })
}

/// Whether an address lies in a network such as `10.0.0.0/8`.
fn is_in_network(host: &str, network: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let Some((begin, length)) = network.split_once('/') else { return false };
    let (Ok(host), Ok(begin), Ok(length)) = (host.parse::<IpAddr>(), begin.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let ((host_bits, width), (begin_bits, _)) = (bits(host), bits(begin));
    let differing = (host_bits ^ begin_bits).leading_zeros();
    host.is_ipv4() == begin.is_ipv4() && length <= width && differing >= length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_exempts_names_addresses_networks_and_ports() {
        for (host, port, list, expected) in [
            ("api.internal", 443, "internal", true),
            ("api.internal", 443, "x, .internal", true),
            ("api.internal", 443, "*.internal", true),
            ("notinternal", 443, "internal", false),
            ("api.internal", 443, "*", true),
            ("api.internal", 8443, "api.internal:8443", true),
            ("api.internal", 443, "api.internal:8443", false),
            ("10.1.2.3", 443, "10.0.0.0/8", true),
            ("11.1.2.3", 443, "10.0.0.0/8", false),
            ("10.1.2.3", 443, "10.1.2.3:443", true),
            ("10.1.2.3", 443, "0.0.0.0/0", true),
            ("10.1.2.3", 443, "10.0.0.0/33", false),
            ("fd00::1", 443, "fd00::/8", true),
            ("fd00::1", 443, "fd00::1", true),
            ("fd00::1", 443, "[fd00::1]:443", true),
            ("fd00::1", 443, "10.0.0.0/8", false),
            ("api.internal", 443, ", ,", false),
        ] {
            assert_eq!(is_exempt(host, port, list), expected, "{host}:{port} in {list}");
        }
    }
}
