//! What the google type needs beyond a key: which surface it speaks to, and the credential of a Vertex AI project.
//!
//! A project means Vertex AI, whether or not a key stands beside it: a key is for the Gemini API.

use std::collections::BTreeMap;

use url::Url;

use super::credential::{self, GoogleCredential};
use super::document::Config;
use super::network::proxy;
use super::walk::Findings;

/// A Vertex AI project and how its tokens are made.
#[derive(Debug)]
pub struct Vertex {
    /// Project id or number.
    pub project: String,
    /// `global`, a multi-region or a region.
    pub location: String,
    /// What access tokens are made from.
    pub credential: GoogleCredential,
    /// Proxy on the way to the token endpoint.
    pub proxy: Option<Url>,
}

/// What becomes of image addresses in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ImageUrls {
    /// They go to the provider as they are.
    #[default]
    Pass,
    /// The gateway fetches them.
    Fetch {
        /// What may be fetched although it is private or without TLS.
        hosts: Vec<ImageHost>,
    },
}

/// A host that the operator lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHost {
    /// Name or address, as a URL has it, IPv6 without brackets.
    pub host: String,
    /// The only port, if one is written.
    pub port: Option<u16>,
}

impl ImageHost {
    /// Reads `host` or `host:port`.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        // The name comes out as it does of the addresses that clients give.
        let url = Url::parse(&format!("https://{host}/")).ok()?;
        let plain = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let is_host = !host.contains(['/', '?', '#', '@', '*']) && url.port().is_none();
        is_host.then_some(Self { host: plain, port })
    }
}

/// Where requests go, without a trailing slash and without a version.
pub(super) fn base(config: &Config) -> String {
    match (&config.endpoint, &config.project_id) {
        (Some(endpoint), _) => without_version(endpoint.trim_end_matches('/')).0.to_owned(),
        (None, None) => "https://generativelanguage.googleapis.com".to_owned(),
        (None, Some(_)) => match location(config) {
            "global" => "https://aiplatform.googleapis.com".to_owned(),
            multi @ ("us" | "eu") => format!("https://aiplatform.{multi}.rep.googleapis.com"),
            region => format!("https://{region}-aiplatform.googleapis.com"),
        },
    }
}

/// The version between base and path.
pub(super) fn api_version(config: &Config, path: &str, findings: &mut Findings) -> String {
    if let Some(version) = &config.api_version {
        if !is_version(version) {
            findings.problem(&format!("{path}.apiVersion"), format!("`{version}` is not a version such as v1 or v1beta"));
        }
        return version.clone();
    }
    let written = config.endpoint.as_deref().and_then(|endpoint| without_version(endpoint.trim_end_matches('/')).1);
    let usual = if config.project_id.is_some() { "v1beta1" } else { "v1beta" };
    written.unwrap_or(usual).to_owned()
}

/// An address is written with or without the version.
fn without_version(endpoint: &str) -> (&str, Option<&str>) {
    match endpoint.rsplit_once('/') {
        Some((base, last)) if is_version(last) => (base, Some(last)),
        _ => (endpoint, None),
    }
}

fn is_version(text: &str) -> bool {
    let rest = text.strip_prefix('v').unwrap_or_default();
    rest.starts_with(|c: char| c.is_ascii_digit()) && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn location(config: &Config) -> &str {
    config.location.as_deref().unwrap_or("global")
}

/// The Vertex AI project, if there is one.
pub(super) fn vertex(
    config: &Config,
    environment: &BTreeMap<String, String>,
    path: &str,
    findings: &mut Findings,
) -> Option<Vertex> {
    let Some(project) = &config.project_id else {
        for (key, is_set) in [("location", config.location.is_some()), ("credentialsFile", config.credentials_file.is_some())] {
            if is_set {
                findings.notes.push(format!("{path}.{key} has no effect: it is for Vertex AI, which needs projectId"));
            }
        }
        return None;
    };
    if config.api_key.is_some() {
        findings.notes.push(format!("{path}.apiKey has no effect: projectId means Vertex AI, which takes access tokens"));
    }
    let is_in = |text: &str, more: &str| {
        text.len() <= 63 && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    if !is_in(project, "-.:") {
        findings.problem(&format!("{path}.projectId"), "a project id holds lower-case letters, digits and `-`");
    }
    let location = location(config);
    // It becomes part of a host name.
    if !is_in(location, "-") {
        findings.problem(&format!("{path}.location"), "a location holds lower-case letters, digits and `-`");
    }
    let credential = credential::find(config.credentials_file.as_deref(), environment, path, findings)?;
    let proxy = credential.token_uri().and_then(|uri| proxy(config.proxy_url.as_deref(), uri, environment, path, findings));
    Some(Vertex { project: project.clone(), location: location.to_owned(), credential, proxy })
}

/// What becomes of image addresses.
pub(super) fn image_urls(config: &Config, path: &str, findings: &mut Findings) -> ImageUrls {
    let mut hosts = Vec::new();
    for (index, text) in config.image_hosts.iter().enumerate() {
        match ImageHost::parse(text) {
            Some(host) => hosts.push(host),
            None => {
                findings.problem(&format!("{path}.imageHosts[{index}]"), "write a host name or address, with or without a port");
            }
        }
    }
    match config.image_urls.as_deref() {
        Some("pass") => ImageUrls::Pass,
        _ => ImageUrls::Fetch { hosts },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::super::{GoogleCredential, Settings, SettingsError, SigningKey, from_text};
    use super::*;

    /// Made for tests: it opens nothing.
    const KEY: &str = include_str!("../../tests/api/service-account.pem");

    fn load(config: &Value, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let document = json!({ "backends": [{ "name": "b", "type": "google", "config": config }] }).to_string();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        from_text("test", &document, &environment)
    }

    fn account() -> Value {
        json!({ "type": "service_account", "client_email": "robot@p.iam", "private_key": KEY })
    }

    fn user() -> Value {
        json!({ "type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r" })
    }

    /// What is said about a credentials file.
    fn refusal(file: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        fs::write(&path, file).unwrap();
        let refused = load(&json!({ "projectId": "p", "credentialsFile": path }), &[]).unwrap_err().to_string();
        assert!(refused.contains("backends[b].config.credentialsFile"), "{refused}");
        assert!(refused.contains(path.to_str().unwrap()), "{refused}");
        refused
    }

    #[test]
    fn the_host_follows_from_the_location_unless_an_endpoint_is_set() {
        for (config, base, version) in [
            (json!({ "apiKey": "k" }), "https://generativelanguage.googleapis.com", "v1beta"),
            (json!({ "apiKey": "k", "apiVersion": "v1" }), "https://generativelanguage.googleapis.com", "v1"),
            (json!({ "apiKey": "k", "endpoint": "https://proxy.example/g/v1alpha/" }), "https://proxy.example/g", "v1alpha"),
            (json!({ "projectId": "p" }), "https://aiplatform.googleapis.com", "v1beta1"),
            (json!({ "projectId": "p", "location": "global" }), "https://aiplatform.googleapis.com", "v1beta1"),
            (json!({ "projectId": "p", "location": "eu" }), "https://aiplatform.eu.rep.googleapis.com", "v1beta1"),
            (json!({ "projectId": "p", "location": "us-central1" }), "https://us-central1-aiplatform.googleapis.com", "v1beta1"),
            (json!({ "projectId": "p", "location": "eu", "endpoint": "http://localhost:1" }), "http://localhost:1", "v1beta1"),
        ] {
            let settings = load(&config, &[]).unwrap();
            let backend = &settings.backends[0];
            assert_eq!((backend.base.as_str(), backend.api_version.as_deref()), (base, Some(version)), "{config}");
        }
    }

    #[test]
    fn a_project_means_vertex_ai_even_beside_a_key() {
        let settings = load(&json!({ "apiKey": "k", "projectId": "example.com:p-1" }), &[]).unwrap();
        let backend = &settings.backends[0];
        let vertex = backend.vertex.as_ref().unwrap();
        assert_eq!((vertex.project.as_str(), vertex.location.as_str()), ("example.com:p-1", "global"));
        assert!(backend.credential.is_none(), "the key is for the other surface");
        assert!(settings.notes.iter().any(|note| note.contains("config.apiKey has no effect")), "{:?}", settings.notes);
        let settings = load(&json!({ "apiKey": "k", "location": "eu" }), &[]).unwrap();
        assert!(settings.backends[0].vertex.is_none() && settings.backends[0].credential.is_some());
        assert!(settings.notes.iter().any(|note| note.contains("config.location has no effect")), "{:?}", settings.notes);
    }

    #[test]
    fn what_becomes_part_of_an_address_is_checked() {
        for (key, value) in [
            ("location", "evil.example/"),
            ("location", "EU"),
            ("projectId", "a/b"),
            ("projectId", "a?b"),
            ("apiVersion", "../v1"),
        ] {
            let mut config = json!({ "projectId": "p" });
            config[key] = json!(value);
            let refused = load(&config, &[]).unwrap_err();
            assert_eq!(refused.problems[0].path, format!("backends[b].config.{key}"), "{refused}");
        }
    }

    #[test]
    fn credentials_are_looked_for_in_the_order_of_application_default_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str, content: &Value| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content.to_string()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let named = written("named.json", &account());
        let variable = written("variable.json", &user());
        written("home/.config/gcloud/application_default_credentials.json", &user());
        written("gcloud/application_default_credentials.json", &account());
        let (home, gcloud) = (folder.path().join("home"), folder.path().join("gcloud"));
        let (home, gcloud) = (home.to_str().unwrap(), gcloud.to_str().unwrap());
        let found = |config: &Value, environment: &[(&str, &str)]| {
            let settings = load(config, environment).unwrap();
            match &settings.backends[0].vertex.as_ref().unwrap().credential {
                GoogleCredential::ServiceAccount(_) => "account",
                GoogleCredential::User(_) => "user",
                GoogleCredential::Metadata { .. } => "metadata",
            }
        };
        let plain = json!({ "projectId": "p" });
        let by_variable = ("GOOGLE_APPLICATION_CREDENTIALS", variable.as_str());
        assert_eq!(found(&json!({ "projectId": "p", "credentialsFile": named }), &[by_variable]), "account");
        assert_eq!(found(&plain, &[by_variable, ("CLOUDSDK_CONFIG", gcloud)]), "user");
        assert_eq!(found(&plain, &[("HOME", home)]), "user");
        assert_eq!(found(&plain, &[("HOME", home), ("CLOUDSDK_CONFIG", gcloud)]), "account");
        assert_eq!(found(&plain, &[("HOME", "/nowhere")]), "metadata");
        let lost = load(&plain, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json"), ("HOME", home)]).unwrap_err().to_string();
        assert!(lost.contains("GOOGLE_APPLICATION_CREDENTIALS: /nowhere.json: the file cannot be read"), "{lost}");
        let wrong = load(&plain, &[("GCE_METADATA_HOST", "a/b")]).unwrap_err();
        assert_eq!(wrong.problems[0].path, "GCE_METADATA_HOST");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_refused_by_its_path_and_without_its_content() {
        let with = |mut file: Value, key: &str, value: Value| {
            file[key] = value;
            file.to_string()
        };
        let cut = &KEY[..KEY.len() / 2];
        for (file, reason) in [
            ("\"secret\"".to_owned(), "not a credentials file in JSON (line 1"),
            ("{}".to_owned(), "has no `type`"),
            (with(account(), "type", json!("external_account")), "type `external_account` are not supported"),
            (with(account(), "client_email", Value::Null), "has no `client_email`"),
            (with(account(), "private_key", json!("secret")), "`private_key` is not a key in PEM"),
            (with(account(), "private_key", json!(cut)), "`private_key` is not"),
            (with(account(), "token_uri", json!("http://evil.example/t")), "`token_uri` is not an https:// address"),
            (with(account(), "token_uri", json!("secret")), "`token_uri` is not an https:// address"),
            (with(user(), "refresh_token", Value::Null), "has no `refresh_token`"),
            (with(user(), "quota_project_id", json!("a\r\nb")), "`quota_project_id` cannot be sent"),
        ] {
            let refused = refusal(&file);
            assert!(refused.contains(reason), "{reason}: {refused}");
            assert!(!refused.contains("secret") && !refused.contains("MIIE"), "{refused}");
        }
    }

    #[test]
    fn a_key_is_read_with_escaped_line_breaks_and_in_either_form_and_never_prints() {
        let escaped = KEY.replace('\n', "\\n");
        let public = |pem: &str| SigningKey::from_pem(pem).unwrap().pair().public().as_ref().to_vec();
        assert_eq!(public(KEY), public(&escaped));
        assert_eq!(public(KEY), public(&KEY.replace('\n', "\r\n")));
        let lines: String = KEY.lines().filter(|line| !line.starts_with('-')).collect();
        // What follows the algorithm's name in PKCS#8 is the key in PKCS#1.
        let inner = STANDARD.encode(&STANDARD.decode(lines).unwrap()[26..]);
        assert_eq!(public(KEY), public(&format!("-----BEGIN RSA PRIVATE KEY-----\n{inner}\n-----END RSA PRIVATE KEY-----\n")));
        assert_eq!(format!("{:?}", SigningKey::from_pem(KEY).unwrap()), "[redacted]");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        fs::write(&path, account().to_string()).unwrap();
        let settings = load(&json!({ "projectId": "p", "credentialsFile": path }), &[]).unwrap();
        let printed = format!("{:?}", settings.backends[0]);
        assert!(printed.contains("robot@p.iam") && !printed.contains("MIIE"), "{printed}");
    }

    #[test]
    fn image_hosts_are_hosts() {
        let settings =
            load(&json!({ "apiKey": "k", "imageHosts": ["Images.Internal", "10.0.0.1:8080", "[::1]:80", "[::1]"] }), &[])
                .unwrap();
        let host = |host: &str, port| ImageHost { host: host.to_owned(), port };
        let hosts = vec![host("images.internal", None), host("10.0.0.1", Some(8_080)), host("::1", Some(80)), host("::1", None)];
        assert_eq!(settings.backends[0].image_urls, ImageUrls::Fetch { hosts });
        let settings = load(&json!({ "apiKey": "k", "imageUrls": "pass" }), &[]).unwrap();
        assert_eq!(settings.backends[0].image_urls, ImageUrls::Pass);
        for wrong in ["https://a", "a/b", "*", "*.example.com", "a b", "", "a:b", "a:70000", "u@a", "::1"] {
            assert!(load(&json!({ "apiKey": "k", "imageHosts": [wrong] }), &[]).is_err(), "{wrong}");
        }
    }
}
