//! The credential that access tokens for Google are made from, and where it is looked for: the order of Google's
//! application default credentials.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::signature::RsaKeyPair;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use url::Url;

use super::walk::Findings;
use super::{Secret, is_loopback};

/// Where tokens come from unless a credentials file says otherwise.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// What access tokens are made from.
#[derive(Debug)]
pub enum GoogleCredential {
    /// A service account's key.
    ServiceAccount(ServiceAccount),
    /// A user's consent, as `gcloud auth application-default login` leaves it.
    User(AuthorizedUser),
    /// The metadata server of the machine; on Google Cloud only.
    Metadata {
        /// Host and port that stand in for the usual ones.
        host: Option<String>,
    },
}

/// A service account's key.
#[derive(Debug)]
pub struct ServiceAccount {
    /// `client_email`.
    pub email: String,
    /// `private_key_id`.
    pub key_id: Option<String>,
    /// `private_key`.
    pub key: SigningKey,
    /// Where tokens are asked for.
    pub token_uri: String,
    /// Project that usage counts against.
    pub quota_project: Option<String>,
}

/// A user's consent.
#[derive(Debug)]
pub struct AuthorizedUser {
    /// `client_id`.
    pub client_id: String,
    /// `client_secret`.
    pub client_secret: Secret,
    /// `refresh_token`.
    pub refresh_token: Secret,
    /// Where tokens are asked for.
    pub token_uri: String,
    /// Project that usage counts against.
    pub quota_project: Option<String>,
}

impl GoogleCredential {
    /// Where tokens are asked for; `None` for the metadata server, which is near.
    pub fn token_uri(&self) -> Option<&str> {
        match self {
            Self::ServiceAccount(account) => Some(&account.token_uri),
            Self::User(user) => Some(&user.token_uri),
            Self::Metadata { .. } => None,
        }
    }

    /// Project that usage counts against.
    pub fn quota_project(&self) -> Option<&str> {
        match self {
            Self::ServiceAccount(account) => account.quota_project.as_deref(),
            Self::User(user) => user.quota_project.as_deref(),
            Self::Metadata { .. } => None,
        }
    }
}

/// A private RSA key; prints as `[redacted]`.
#[derive(Clone)]
pub struct SigningKey(Arc<RsaKeyPair>);

impl SigningKey {
    /// Reads PEM, PKCS#8 or PKCS#1. Line breaks may be escaped once more, as happens on the way through a variable.
    ///
    /// # Errors
    /// What is wrong, without a word of the key.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let pem = pem.replace("\\n", "\n").replace("\\r", "");
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| "`private_key` is not a key in PEM".to_owned())?;
        let pair = match &der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("`private_key` is not an RSA key".to_owned()),
        };
        pair.map(|pair| Self(Arc::new(pair))).map_err(|why| format!("`private_key` is not a usable RSA key: {why}"))
    }

    /// The key itself, for the one place that signs.
    pub fn pair(&self) -> &RsaKeyPair {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The credential in the order of application default credentials; `None` after a mistake.
pub(super) fn find(
    named: Option<&str>,
    environment: &BTreeMap<String, String>,
    path: &str,
    findings: &mut Findings,
) -> Option<GoogleCredential> {
    let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let named = named.map(|file| (format!("{path}.credentialsFile"), PathBuf::from(file)));
    let by_variable = || {
        let file = variable("GOOGLE_APPLICATION_CREDENTIALS")?;
        Some(("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), PathBuf::from(file)))
    };
    let by_gcloud = || {
        let folder = variable("CLOUDSDK_CONFIG").map(PathBuf::from);
        let folder = folder.or_else(|| Some(Path::new(variable("HOME")?).join(".config/gcloud")))?;
        let file = folder.join("application_default_credentials.json");
        file.exists().then_some((format!("{path}.credentialsFile"), file))
    };
    let Some((origin, file)) = named.or_else(by_variable).or_else(by_gcloud) else {
        findings.notes.push(format!(
            "{path}: no credentials file is set or found; access tokens come from the metadata server, on Google Cloud only"
        ));
        return metadata(variable("GCE_METADATA_HOST"), findings);
    };
    match read(&file) {
        Ok(credential) => Some(credential),
        Err(reason) => {
            findings.problem(&origin, format!("{}: {reason}", file.display()));
            None
        }
    }
}

fn metadata(host: Option<&String>, findings: &mut Findings) -> Option<GoogleCredential> {
    let is_host = |host: &String| {
        Url::parse(&format!("http://{host}"))
            .is_ok_and(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty())
    };
    if host.is_some_and(|host| !is_host(host)) {
        findings.problem("GCE_METADATA_HOST", "this is not a host name, with or without a port");
        return None;
    }
    Some(GoogleCredential::Metadata { host: host.cloned() })
}

/// A credentials file as it is written; which fields it has depends on its type.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: Option<String>,
    client_email: Option<String>,
    private_key: Option<Secret>,
    private_key_id: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret>,
    refresh_token: Option<Secret>,
    token_uri: Option<String>,
    quota_project_id: Option<String>,
}

fn read(file: &Path) -> Result<GoogleCredential, String> {
    let text = std::fs::read(file).map_err(|error| format!("the file cannot be read: {error}"))?;
    // The parser's own words may repeat what the file holds.
    let file: File = serde_json::from_slice(&text).map_err(|error| {
        format!("the file is not a credentials file in JSON (line {}, column {})", error.line(), error.column())
    })?;
    credential_of(file)
}

fn credential_of(file: File) -> Result<GoogleCredential, String> {
    fn needed<T>(value: Option<T>, name: &str) -> Result<T, String> {
        value.ok_or_else(|| format!("the file has no `{name}`"))
    }
    let quota_project = file.quota_project_id.filter(|project| !project.is_empty());
    if quota_project.as_ref().is_some_and(|project| !project.bytes().all(|b| (0x21..0x7f).contains(&b))) {
        return Err("`quota_project_id` cannot be sent as a header".to_owned());
    }
    match needed(file.kind, "type")?.as_str() {
        "service_account" => Ok(GoogleCredential::ServiceAccount(ServiceAccount {
            email: needed(file.client_email, "client_email")?,
            key_id: file.private_key_id,
            key: SigningKey::from_pem(needed(file.private_key, "private_key")?.expose())?,
            token_uri: token_uri(file.token_uri)?,
            quota_project,
        })),
        "authorized_user" => Ok(GoogleCredential::User(AuthorizedUser {
            client_id: needed(file.client_id, "client_id")?,
            client_secret: needed(file.client_secret, "client_secret")?,
            refresh_token: needed(file.refresh_token, "refresh_token")?,
            token_uri: token_uri(file.token_uri)?,
            quota_project,
        })),
        other => Err(format!(
            "credentials of type `{}` are not supported; use a service_account or authorized_user file",
            other.escape_debug()
        )),
    }
}

/// Keys and refresh tokens leave this machine encrypted or not at all.
fn token_uri(written: Option<String>) -> Result<String, String> {
    let Some(uri) = written.filter(|uri| !uri.is_empty()) else { return Ok(TOKEN_URI.to_owned()) };
    let url = Url::parse(&uri).ok().filter(Url::has_host);
    let is_near = |url: &Url| is_loopback(url.host_str().unwrap_or_default().trim_matches(['[', ']']));
    match url {
        Some(url) if url.scheme() == "https" || (url.scheme() == "http" && is_near(&url)) => Ok(url.into()),
        _ => Err("`token_uri` is not an https:// address".to_owned()),
    }
}
