//! Addresses and headers of the dialect's types.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::chat::Endpoint;
use crate::settings::{Backend, BackendType};

/// Everything but unreserved characters is escaped in a path segment or query value.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Azure's dated form keeps these below the deployment; the rest stands directly under `/openai`.
/// Source: the Azure client of the official openai SDK 3.54.0.
const DEPLOYMENT_PATHS: &[&str] = &[
    "/completions",
    "/chat/completions",
    "/embeddings",
    "/audio/transcriptions",
    "/audio/translations",
    "/audio/speech",
    "/images/generations",
    "/images/edits",
];

/// The address of an endpoint.
pub fn url(backend: &Backend, endpoint: Endpoint, path: &str, model: &str) -> String {
    let base = &backend.base;
    match (backend.kind, &backend.api_version) {
        (BackendType::Azure, Some(version)) => {
            let version = utf8_percent_encode(version, SEGMENT);
            let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
            let more = query.map(|query| format!("&{query}")).unwrap_or_default();
            if DEPLOYMENT_PATHS.contains(&path) {
                let deployment = utf8_percent_encode(model, SEGMENT);
                format!("{base}/openai/deployments/{deployment}{path}?api-version={version}{more}")
            } else {
                format!("{base}/openai{path}?api-version={version}{more}")
            }
        }
        (BackendType::Azure, None) => format!("{base}/openai/v1{path}"),
        // Mistral has no legacy completions; fill-in-the-middle is the same thing under another name.
        (BackendType::Mistral, _) if endpoint == Endpoint::Completions => {
            format!("{base}/fim/completions")
        }
        _ => format!("{base}{path}"),
    }
}

/// Headers that every request carries.
pub fn headers(backend: &Backend) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    if let Some(credential) = &backend.credential {
        if backend.kind == BackendType::Azure && !backend.entra {
            headers.push(("api-key".into(), credential.expose().to_owned()));
        } else {
            headers.push(("authorization".into(), format!("Bearer {}", credential.expose())));
        }
    }
    for (name, value) in [("openai-organization", &backend.organization), ("openai-project", &backend.project)] {
        if let Some(value) = value {
            headers.push((name.into(), value.clone()));
        }
    }
    headers.extend(backend.headers.iter().map(|(name, value)| (name.to_lowercase(), value.expose().to_owned())));
    headers
}
