//! The exchange of a credential for an access token over HTTP, and what the issuer's answers mean. Nothing that is
//! secret goes into a message.

use std::sync::Arc;
use std::time::Duration;

use actix_http::StatusCode;
use actix_http::header::{self, HeaderMap, HeaderValue};
use awc::{Client, SendClientRequest};
use bytes::Bytes;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use url::form_urlencoded::Serializer;

use super::{Minted, jwt};
use crate::attempt::dial::Dialer;
use crate::attempt::http_client::client;
use crate::attempt::transport_errors::name_error;
use crate::chat::{Failure, FailureClass};
use crate::settings::{AuthorizedUser, Backend, Secret, ServiceAccount};
use crate::unix_time::unix_time;

/// Bytes of an answer that are read.
const ANSWER_LIMIT: usize = 64 << 10;
/// Characters of the issuer's own words that are repeated.
const WORDS_LIMIT: usize = 200;
const ISSUER: &str = "the token endpoint";

/// The client that tokens are asked for with.
#[derive(Clone)]
pub(super) struct Exchange {
    client: Client,
    connect: Duration,
}

/// An issuer's answer, read to its end.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Exchange {
    /// Makes the client; a connection serves one exchange, since there is one an hour.
    pub(super) fn new(backend: &Backend, proxy: Option<Url>, tls: &Arc<ClientConfig>) -> Self {
        let client = client(Dialer::new(proxy), backend, tls, Duration::ZERO);
        Self { client, connect: backend.timeouts.connect }
    }

    /// Asks with an assertion that the service account's key signs.
    pub(super) async fn by_assertion(&self, account: &ServiceAccount) -> Result<Minted, Failure> {
        let now = unix_time().as_secs();
        let assertion = jwt::assertion(account, now)
            .ok_or_else(|| Failure::new(FailureClass::Credential, "the service account's private key cannot sign"))?;
        let form = Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
            .append_pair("assertion", &assertion)
            .finish();
        let answer = self.post(&account.token_uri, form).await?;
        judge(&answer, ISSUER, &[&assertion])
    }

    /// Asks with a user's refresh token.
    pub(super) async fn by_refresh_token(&self, user: &AuthorizedUser) -> Result<Minted, Failure> {
        let (secret, refresh) = (user.client_secret.expose(), user.refresh_token.expose());
        let form = Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", &user.client_id)
            .append_pair("client_secret", secret)
            .append_pair("refresh_token", refresh)
            .finish();
        let answer = self.post(&user.token_uri, form).await?;
        judge(&answer, ISSUER, &[refresh, secret])
    }

    async fn post(&self, uri: &str, form: String) -> Result<Answered, Failure> {
        let request = self.client.post(uri).insert_header((header::CONTENT_TYPE, "application/x-www-form-urlencoded"));
        self.answer(request.insert_header(identity()).send_body(form), ISSUER).await
    }

    /// Asks a metadata server.
    pub(super) async fn get_metadata(&self, uri: &str, whom: &str) -> Result<Answered, Failure> {
        let request = self.client.get(uri).insert_header(("Metadata-Flavor", "Google"));
        self.answer(request.insert_header(identity()).send(), whom).await
    }

    async fn answer(&self, sending: SendClientRequest, whom: &str) -> Result<Answered, Failure> {
        let mut reply = sending.await.map_err(|error| name_error(&error, whom, self.connect).failure)?;
        let body = reply.body().limit(ANSWER_LIMIT).await;
        let body = body.map_err(|_| Failure::new(FailureClass::Malformed, format!("the answer of {whom} cannot be read")))?;
        Ok(Answered { status: reply.status(), headers: reply.headers().clone(), body })
    }
}

fn identity() -> (header::HeaderName, HeaderValue) {
    (header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
}

/// The token in an answer, or what the answer means instead; what was sent is taken out of the issuer's words.
pub(super) fn judge(answer: &Answered, whom: &str, sent: &[&str]) -> Result<Minted, Failure> {
    let status = answer.status.as_u16();
    let class = match status {
        200 => {
            return minted(&answer.body)
                .ok_or_else(|| Failure::new(FailureClass::Malformed, format!("the answer of {whom} holds no access token")));
        }
        429 => FailureClass::Overloaded,
        408 | 500..=599 => FailureClass::Server,
        400..=499 => FailureClass::Credential,
        _ => FailureClass::Malformed,
    };
    let words = words(&answer.body, sent).map(|words| format!(": {words}")).unwrap_or_default();
    Err(Failure::new(class, format!("{whom} gave no access token, status {status}{words}")))
}

fn minted(body: &[u8]) -> Option<Minted> {
    #[derive(Deserialize)]
    struct Body {
        access_token: Secret,
        expires_in: Value,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    // Some issuers write the number as text.
    let seconds = body.expires_in.as_f64().or_else(|| body.expires_in.as_str()?.parse().ok())?;
    let life = Duration::try_from_secs_f64(seconds).ok()?;
    let is_plain = |token: &str| !token.is_empty() && token.bytes().all(|b| (0x21..0x7f).contains(&b));
    is_plain(body.access_token.expose()).then_some(Minted { secret: body.access_token, life })
}

/// The error's name and description, as OAuth writes them, without what was sent and not longer than needed.
fn words(body: &[u8], sent: &[&str]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        error: String,
        error_description: Option<String>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let mut words = match body.error_description {
        Some(description) => format!("{} ({description})", body.error),
        None => body.error,
    };
    for secret in sent.iter().filter(|secret| !secret.is_empty()) {
        words = words.replace(secret, "[redacted]");
    }
    Some(words.chars().filter(|c| !c.is_control()).take(WORDS_LIMIT).collect())
}
