//! Access tokens: how a Vertex AI backend gets them, keeps them, and replaces them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use stagedoor::settings::{self, SigningKey};
use tokio::sync::Semaphore;

use crate::support::{Gateway, Provider, Received, Wire, backend, eventually};

/// Made for tests: it opens nothing.
const KEY: &str = include_str!("service-account.pem");

/// A token endpoint that checks what it is sent, and gives the tokens `token-1`, `token-2` and so on.
async fn issuer(life: u64) -> Provider {
    issuer_with(move |_| json!({ "expires_in": life })).await
}

/// A token endpoint; the closure says what is said about each token, by its number, or `error` in its place.
async fn issuer_with(about: impl Fn(usize) -> Value + Send + Sync + 'static) -> Provider {
    let count = AtomicUsize::new(0);
    Provider::start(move |request, mut wire| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answer = about(number);
        check(&request);
        async move {
            let status = answer.get("status").and_then(Value::as_u64).map_or(200, |status| u16::try_from(status).unwrap());
            if status == 200 {
                answer["access_token"] = json!(format!("token-{number}"));
            }
            wire.reply(status, "application/json", &[("metadata-flavor", "Google")], answer.to_string().as_bytes()).await;
            Some(wire)
        }
    })
    .await
}

/// A wrong request to the token endpoint panics here, and its gateway gets no answer.
fn check(request: &Received) {
    if request.head.line.starts_with("GET ") {
        assert_eq!(request.head.header("metadata-flavor"), Some("Google"));
        return;
    }
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    if form["grant_type"] == "refresh_token" {
        assert_eq!((form["client_id"].as_str(), form["client_secret"].as_str()), ("id", "c-secret"));
        assert_eq!(form["refresh_token"], "1//refresh");
        return;
    }
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let (signed, signature) = form["assertion"].rsplit_once('.').unwrap();
    let public = SigningKey::from_pem(KEY).unwrap().pair().public_key().as_ref().to_vec();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public).verify(signed.as_bytes(), &signature).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&claims).unwrap()["iss"], "robot@p.iam");
}

fn token_uri(issuer: &Provider) -> String {
    format!("http://{}/token", issuer.address)
}

fn account(issuer: &Provider) -> Value {
    json!({ "type": "service_account", "client_email": "robot@p.iam", "private_key": KEY, "private_key_id": "key-1",
        "token_uri": token_uri(issuer) })
}

fn user(issuer: &Provider) -> Value {
    json!({ "type": "authorized_user", "client_id": "id", "client_secret": "c-secret", "refresh_token": "1//refresh",
        "token_uri": token_uri(issuer), "quota_project_id": "payer" })
}

/// A Vertex AI backend in YAML with this credentials file, which must outlive the start.
struct Vertex {
    yaml: String,
    _folder: tempfile::TempDir,
}

impl Vertex {
    fn new(provider: &Provider, credentials: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials.json");
        std::fs::write(&file, credentials.to_string()).unwrap();
        let yaml = vertex(provider, &format!("credentialsFile: \"{}\"", file.display()));
        Self { yaml, _folder: folder }
    }

    fn start(&self) -> Gateway {
        Gateway::start(&format!("backends:\n{}", self.yaml))
    }
}

fn vertex(provider: &Provider, more: &str) -> String {
    format!(
        "  - {{ name: gem, type: google, config: {{ projectId: p-1, location: europe-west4, defaultModel: gemini-3.8-flash, \
         endpoint: \"http://{}\", {more} }} }}\n",
        provider.address
    )
}

/// What Gemini answers.
fn content(text: &str, finish: bool) -> Value {
    let mut candidate = json!({ "index": 0, "content": { "role": "model", "parts": [{ "text": text }] } });
    if finish {
        candidate["finishReason"] = json!("STOP");
    }
    json!({ "candidates": [candidate], "modelVersion": "gemini-3.8-flash", "responseId": "r1",
        "usageMetadata": { "promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5 } })
}

async fn answer(wire: &mut Wire, request: &Received) {
    if request.head.line.contains(":streamGenerateContent?alt=sse") {
        wire.begin_stream().await;
        for (text, finish) in [("Hello ", false), ("there", true)] {
            wire.chunk(&format!("data: {}\r\n\r\n", content(text, finish))).await;
        }
        wire.end_chunks().await;
    } else {
        wire.json(200, &content("Hello there", true)).await;
    }
}

async fn refuse(wire: &mut Wire, token: &str) {
    let message = format!("Request had invalid authentication credentials: {token}");
    wire.json(401, &json!({ "error": { "code": 401, "message": message, "status": "UNAUTHENTICATED" } })).await;
}

/// A provider that answers 401 to these tokens.
async fn provider_refusing(refused: &'static [&'static str]) -> Provider {
    Provider::start(move |request, mut wire| async move {
        let sent = bearer(&request).unwrap_or_default();
        if refused.contains(&sent.as_str()) {
            refuse(&mut wire, &sent).await;
        } else {
            answer(&mut wire, &request).await;
        }
        Some(wire)
    })
    .await
}

fn bearer(request: &Received) -> Option<String> {
    request.head.header("authorization")?.strip_prefix("Bearer ").map(str::to_owned)
}

fn bearers(provider: &Provider) -> Vec<String> {
    provider.requests().iter().filter_map(bearer).collect()
}

#[tokio::test]
async fn requests_to_vertex_ai_carry_a_token_that_the_account_signed_for() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    let reply = gateway.chat("gem", "hi").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "Hello there");
    assert_eq!(gateway.stream("gem", "hi").await.streamed_text(), "Hello there");
    let requests = provider.requests();
    let model = "/v1beta1/projects/p-1/locations/europe-west4/publishers/google/models/gemini-3.8-flash";
    assert_eq!(requests[0].head.line, format!("POST {model}:generateContent HTTP/1.1"));
    assert_eq!(requests[1].head.line, format!("POST {model}:streamGenerateContent?alt=sse HTTP/1.1"));
    assert_eq!(bearers(&provider), ["token-1", "token-1"]);
    assert_eq!(requests[0].head.header("x-goog-user-project"), None);
    assert_eq!(issuer.requests().len(), 1);
}

#[tokio::test]
async fn first_requests_that_come_at_once_share_one_token_per_worker() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &account(&issuer));
    for workers in [1, 2] {
        let before = issuer.requests().len();
        let gateway = Gateway::start(&format!("backends:\n{}\nserver: {{ port: 0, workers: {workers} }}\n", vertex.yaml));
        let replies = futures_util::future::join_all((0..20).map(|_| gateway.chat("gem", "hi"))).await;
        assert!(replies.iter().all(|reply| reply.status == 200));
        let minted = issuer.requests().len() - before;
        assert!((1..=workers).contains(&minted), "{minted} tokens for {workers} workers");
    }
}

#[tokio::test]
async fn a_users_consent_and_its_quota_project_serve_as_well() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &user(&issuer));
    assert_eq!(vertex.start().chat("gem", "hi").await.status, 200);
    let request = &provider.requests()[0];
    assert_eq!(bearer(request).as_deref(), Some("token-1"));
    assert_eq!(request.head.header("x-goog-user-project"), Some("payer"));
}

#[tokio::test]
async fn without_a_file_the_metadata_server_gives_the_token() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let environment = BTreeMap::from([("GCE_METADATA_HOST".to_owned(), issuer.address.to_string())]);
    let gateway = Gateway::start_with(&format!("backends:\n{}", vertex(&provider, "")), &environment);
    assert_eq!(gateway.chat("gem", "hi").await.status, 200);
    assert_eq!(bearers(&provider), ["token-1"]);
    let asked = &issuer.requests()[0].head.line;
    assert_eq!(asked, "GET /computeMetadata/v1/instance/service-accounts/default/token HTTP/1.1");
}

#[tokio::test]
async fn a_key_whose_line_breaks_are_escaped_twice_signs() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let mut account = account(&issuer);
    account["private_key"] = json!(KEY.replace('\n', "\\n"));
    assert_eq!(Vertex::new(&provider, &account).start().chat("gem", "hi").await.status, 200);
}

#[test]
fn a_file_without_a_usable_key_is_refused_at_start_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    let cut = &KEY[..KEY.len() / 2];
    let content = json!({ "type": "service_account", "client_email": "robot@p.iam", "private_key": cut });
    std::fs::write(&file, content.to_string()).unwrap();
    let yaml =
        format!("backends: [{{ name: gem, type: google, config: {{ projectId: p, credentialsFile: \"{}\" }} }}]", file.display());
    let refused = settings::from_text("test", &yaml, &BTreeMap::new()).unwrap_err().to_string();
    assert!(refused.contains(file.to_str().unwrap()) && refused.contains("private_key"), "{refused}");
    assert!(!refused.contains(&cut[40..80]), "{refused}");
}

#[tokio::test]
async fn a_token_is_renewed_ahead_of_its_end_and_no_request_waits_for_it() {
    let provider = provider_refusing(&[]).await;
    let gate = Arc::new(Semaphore::new(1));
    let count = Arc::new(AtomicUsize::new(0));
    let issuer = {
        let gate = Arc::clone(&gate);
        Provider::start(move |_, mut wire| {
            let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
            async move {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                gate.acquire().await.unwrap().forget();
                wire.json(200, &json!({ "access_token": format!("token-{number}"), "expires_in": 16 })).await;
                Some(wire)
            }
        })
        .await
    };
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    assert_eq!(gateway.chat("gem", "hi").await.status, 200);
    eventually("the token is renewed with nobody asking", async || issuer.requests().len() == 2).await;
    assert_eq!(gateway.chat("gem", "hi").await.status, 200);
    assert_eq!(bearers(&provider), ["token-1", "token-1"], "served while the renewal is under way");
    gate.add_permits(1);
    eventually("requests use the new token", async || {
        assert_eq!(gateway.chat("gem", "hi").await.status, 200);
        bearers(&provider).last().unwrap() == "token-2"
    })
    .await;
    assert_eq!(issuer.requests().len(), 2);
}

#[tokio::test]
async fn a_renewal_that_fails_fails_no_request_while_the_old_token_lives() {
    let provider = provider_refusing(&[]).await;
    let issuer = issuer_with(|number| match number {
        2 => json!({ "status": 500 }),
        _ => json!({ "expires_in": 16 }),
    })
    .await;
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    assert_eq!(gateway.chat("gem", "hi").await.status, 200);
    eventually("the renewal fails", async || issuer.requests().len() == 2).await;
    let reply = gateway.chat("gem", "hi").await;
    assert_eq!((reply.status, reply.header("x-stagedoor-attempts")), (200, Some("1")));
    assert_eq!(bearers(&provider), ["token-1", "token-1"]);
    eventually("there is a new token in the end", async || {
        assert_eq!(gateway.chat("gem", "hi").await.status, 200);
        bearers(&provider).last().unwrap() == "token-3"
    })
    .await;
}

#[tokio::test]
async fn a_token_that_the_provider_refuses_is_replaced_and_the_request_sent_again() {
    let (provider, issuer) = (provider_refusing(&["token-1"]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    let reply = gateway.chat("gem", "hi").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-stagedoor-attempts"), Some("1"), "it is one attempt");
    assert_eq!(bearers(&provider), ["token-1", "token-2"]);
    assert_eq!(provider.requests()[0].body, provider.requests()[1].body);
    let member = gateway.member("gem", "gem").await;
    assert_eq!(member["failures"].as_object().map_or(0, serde_json::Map::len), 0, "{member}");
    assert_eq!(gateway.stream("gem", "hi").await.streamed_text(), "Hello there");
    assert_eq!(issuer.requests().len(), 2);
}

#[tokio::test]
async fn a_provider_that_refuses_the_new_token_too_is_the_operators_to_mend() {
    let (provider, issuer) = (provider_refusing(&["token-1", "token-2"]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    let reply = gateway.chat("gem", "hi").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_credential"));
    assert!(!reply.text().contains("token-"), "{}", reply.text());
    assert_eq!(bearers(&provider), ["token-1", "token-2"]);
}

#[tokio::test]
async fn when_there_is_no_token_the_next_member_serves_and_nothing_was_sent() {
    let provider = provider_refusing(&[]).await;
    let issuer = issuer_with(|_| json!({ "status": 400, "error": "invalid_grant", "error_description": "1//refresh" })).await;
    let vertex = Vertex::new(&provider, &user(&issuer));
    let other = Provider::saying("from another").await;
    let pool = "  - { name: pool, type: pool, strategy: round-robin, backends: [{ name: gem }, { name: other }] }\n";
    let gateway = Gateway::start(&format!("backends:\n{}{}{pool}", vertex.yaml, backend("other", &other.endpoint(), "")));
    for _ in 0..4 {
        let reply = gateway.chat("pool", "hi").await;
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "from another");
    }
    let reply = gateway.chat("gem", "hi").await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_credential"));
    assert!(!reply.text().contains("refresh"), "{}", reply.text());
    assert!(provider.requests().is_empty());
}

#[tokio::test]
async fn an_error_within_a_stream_does_not_show_the_token() {
    let provider = Provider::start(|request, mut wire| async move {
        wire.begin_stream().await;
        wire.chunk(&format!("data: {}\n\n", content("Hello", false))).await;
        let message = format!("backend failed for {}", bearer(&request).unwrap_or_default());
        let error = json!({ "error": { "code": 500, "message": message, "status": "INTERNAL" } });
        wire.chunk(&format!("data: {error}\n\n")).await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let issuer = issuer(3_600).await;
    let vertex = Vertex::new(&provider, &account(&issuer));
    let reply = vertex.start().stream("gem", "hi").await;
    assert!(reply.text().contains("backend failed for [redacted]"), "{}", reply.text());
    assert!(!reply.text().contains("token-1"), "{}", reply.text());
}

#[tokio::test]
async fn a_replaced_generation_has_its_token_before_the_first_request() {
    let (provider, issuer) = (provider_refusing(&[]).await, issuer(3_600).await);
    let vertex = Vertex::new(&provider, &account(&issuer));
    let gateway = vertex.start();
    let restarted = gateway.post("/admin/api/backends/gem/restart", &json!({})).await;
    assert!(restarted.status < 300, "{}", restarted.text());
    eventually("a token is made", async || issuer.requests().len() == 1).await;
    assert_eq!(gateway.chat("gem", "hi").await.status, 200);
    assert_eq!(issuer.requests().len(), 1);
}
