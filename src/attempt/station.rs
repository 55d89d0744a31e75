//! What an attempt needs of its provider generation, and the one place where requests leave it: with an access token,
//! where the backend takes one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::StatusCode;
use actix_http::header::{HeaderName, HeaderValue};
use futures_util::future::Either;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::fetch::Fetcher;
use super::headroom::Headroom;
use super::memory::Memory;
use super::token::{Minter, Token};
use super::transport::{Incoming, Outgoing, OutgoingBody, SendFailure, Transport};
use crate::balance::RetryBudget;
use crate::chat::{Failure, FailureClass, Phase};
use crate::dialect::Codec;
use crate::settings::Backend;

/// Everything an attempt needs of its provider generation.
pub struct Station {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Its dialect.
    pub codec: Codec,
    /// How it is reached.
    pub transport: Transport,
    /// What its access tokens come from, if it takes any.
    pub minter: Option<Rc<Minter>>,
    /// Fetches what its dialect cannot pass on by address, if there is such a thing.
    pub fetcher: Option<Fetcher>,
    /// What retries may be spent; shared by the generations of this worker.
    pub budget: Rc<RefCell<RetryBudget>>,
    /// What the provider wants back with its tool calls; shared by all workers and generations.
    pub memory: Arc<Memory>,
    /// What it says it may still be asked; shared likewise.
    pub headroom: Arc<Headroom>,
}

impl Station {
    /// Sends a request and awaits the reply's head. A token that the provider refuses is replaced by a new one, once;
    /// what the provider refused it has not worked on. Dropping the future ends the request.
    ///
    /// # Errors
    /// [`SendFailure`] when no head came, or no token until then.
    pub fn send<'a>(
        &'a self,
        request: Outgoing<'a>,
        ends: Instant,
    ) -> impl Future<Output = Result<Incoming, SendFailure>> + use<'a> {
        match &self.minter {
            None => Either::Left(self.transport.send(request)),
            // On the heap: most backends take no token, and their tasks should not be larger for it.
            Some(minter) => Either::Right(Box::pin(self.send_with_token(minter, request, ends))),
        }
    }

    async fn send_with_token(&self, minter: &Minter, request: Outgoing<'_>, ends: Instant) -> Result<Incoming, SendFailure> {
        let token = token_by(minter, ends).await?;
        let again = again(&request);
        let incoming = self.send_with(&token, request).await?;
        if incoming.status() != StatusCode::UNAUTHORIZED {
            return Ok(incoming);
        }
        minter.reject(&token);
        let Some(again) = again else { return Ok(incoming) };
        drop(incoming);
        let token = token_by(minter, ends).await?;
        self.send_with(&token, again).await
    }

    async fn send_with(&self, token: &Token, request: Outgoing<'_>) -> Result<Incoming, SendFailure> {
        let headers: SmallVec<[(HeaderName, HeaderValue); 8]> = request.headers.iter().cloned().chain(token.headers()).collect();
        self.transport.send(Outgoing { headers: &headers, ..request }).await
    }
}

async fn token_by(minter: &Minter, ends: Instant) -> Result<Token, SendFailure> {
    let token = timeout_at(ends, minter.token()).await.unwrap_or_else(|_| {
        Err(Failure::new(FailureClass::Timeout(Phase::Head), "no access token within the time for the provider's answer"))
    });
    token.map_err(|failure| SendFailure { failure, sent: false })
}

/// The same request once more; `None` when its body is gone once it was sent.
fn again<'a>(request: &Outgoing<'a>) -> Option<Outgoing<'a>> {
    let OutgoingBody::Full(body) = &request.body else { return None };
    Some(Outgoing {
        endpoint: request.endpoint,
        method: request.method.clone(),
        url: request.url.clone(),
        headers: request.headers,
        body: OutgoingBody::Full(body.clone()),
        pooled: request.pooled,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_http::Method;
    use actix_http::header;
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::scripted::Scripted;
    use super::super::{Address, HttpClient, tls_config};
    use super::*;
    use crate::chat::Endpoint;
    use crate::settings;

    /// A station of a Vertex AI backend at this provider, with tokens `t1`, `t2` and so on from this issuer.
    fn station(provider: &Scripted, issuer: &Scripted) -> Station {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user.json");
        let file = json!({ "type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r",
            "token_uri": issuer.url("/token"), "quota_project_id": "payer" });
        std::fs::write(&path, file.to_string()).unwrap();
        let config = json!({ "projectId": "p", "endpoint": provider.url(""), "credentialsFile": path });
        let document = json!({ "backends": [{ "name": "b", "type": "google", "config": config }] }).to_string();
        let settings = settings::from_text("test", &document, &std::collections::BTreeMap::new()).unwrap();
        let backend = Arc::clone(&settings.backends[0]);
        let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
        let headers = vec![("x-own".to_owned(), "own".to_owned())];
        Station {
            transport: Transport::Http(Box::new(HttpClient::new(&backend, &tls, headers, &Arc::default()))),
            minter: Minter::of(&backend, &tls),
            codec: crate::dialect::Dialect::codec(&backend),
            memory: Arc::default(),
            headroom: Arc::new(Headroom::new(super::super::Clock::start())),
            fetcher: None,
            budget: Rc::new(RefCell::new(RetryBudget::new(Instant::now().into_std()))),
            backend,
        }
    }

    async fn issuer() -> Scripted {
        Scripted::answering(|index, _| {
            let body: Value = json!({ "access_token": format!("t{}", index + 1), "expires_in": 3_599 });
            (200, String::new(), body.to_string().into_bytes())
        })
        .await
    }

    async fn post(station: &Station, pooled: bool) -> Result<u16, SendFailure> {
        let url = format!("{}/m:generateContent", station.backend.base);
        let make = || url.clone();
        let headers = [(HeaderName::from_static("x-own"), HeaderValue::from_static("extra"))];
        let request = Outgoing {
            endpoint: Endpoint::Chat,
            method: Method::POST,
            url: Address::Known { model: Some("m"), stream: false, make: &make },
            headers: &headers,
            body: OutgoingBody::Full(Bytes::from_static(b"{}")),
            pooled,
        };
        let incoming = station.send(request, Instant::now() + Duration::from_secs(20)).await?;
        Ok(incoming.status().as_u16())
    }

    #[actix_rt::test]
    async fn a_known_address_takes_headers_of_one_request_over_those_of_the_backend() {
        let (provider, issuer) = (Scripted::start(&[(200, "", "{}")]).await, issuer().await);
        let station = station(&provider, &issuer);
        for pooled in [true, true, false] {
            assert_eq!(post(&station, pooled).await.unwrap(), 200);
        }
        for request in provider.requests() {
            assert!(request.starts_with("POST /m:generateContent HTTP/1.1\r\n"), "{request}");
            for line in
                ["authorization: Bearer t1", "x-goog-user-project: payer", "x-own: extra", "content-type: application/json"]
            {
                assert_eq!(request.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {request}");
            }
            assert!(!request.contains("x-own: own"), "{request}");
        }
        assert_eq!((provider.requests().len(), issuer.requests().len()), (3, 1));
    }

    #[actix_rt::test]
    async fn a_refused_token_is_replaced_once_and_the_second_answer_counts() {
        let (provider, issuer) = (Scripted::start(&[(401, "", "{}"), (200, "", "{}")]).await, issuer().await);
        let station = station(&provider, &issuer);
        assert_eq!(post(&station, true).await.unwrap(), 200);
        let requests = provider.requests();
        assert!(requests[0].contains("Bearer t1") && requests[1].contains("Bearer t2"), "{requests:?}");

        let (provider, issuer) = (Scripted::start(&[(401, "", "{}")]).await, self::issuer().await);
        let station = self::station(&provider, &issuer);
        assert_eq!(post(&station, true).await.unwrap(), 401);
        assert_eq!((provider.requests().len(), issuer.requests().len()), (2, 2), "and no third try");
    }

    #[actix_rt::test]
    async fn without_a_token_nothing_is_sent() {
        let provider = Scripted::start(&[(200, "", "{}")]).await;
        let issuer = Scripted::start(&[(400, "", r#"{"error":"invalid_grant"}"#)]).await;
        let refused = post(&station(&provider, &issuer), true).await.unwrap_err();
        assert!(!refused.sent);
        assert_eq!(refused.failure.class, FailureClass::Credential);
        assert!(provider.requests().is_empty());
    }

    #[actix_rt::test]
    async fn a_streamed_body_is_sent_once_with_a_token() {
        let (provider, issuer) = (Scripted::start(&[(401, "", "{}")]).await, issuer().await);
        let station = station(&provider, &issuer);
        let bytes = Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"body"))]));
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))];
        let request = Outgoing {
            endpoint: Endpoint::Passthrough,
            method: Method::POST,
            url: Address::Own(provider.url("/upload")),
            headers: &headers,
            body: OutgoingBody::Stream { length: Some(4), bytes },
            pooled: false,
        };
        let incoming = station.send(request, Instant::now() + Duration::from_secs(20)).await.unwrap();
        assert_eq!(incoming.status(), StatusCode::UNAUTHORIZED);
        let requests = provider.requests();
        assert_eq!(requests.len(), 1);
        assert!(requests[0].contains("Bearer t1") && requests[0].ends_with("\r\n\r\nbody"), "{requests:?}");
    }
}
