//! How tokens are made, against an issuer on the loopback interface.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

use super::*;
use crate::attempt::scripted::Scripted;
use crate::attempt::tls_config;
use crate::settings::{self, SigningKey};

/// Made for tests: it opens nothing.
const KEY: &str = include_str!("../../../tests/api/service-account.pem");

/// The fields of the form in a request.
fn form(request: &str) -> BTreeMap<String, String> {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/x-www-form-urlencoded"), "{head}");
    url::form_urlencoded::parse(body.as_bytes()).into_owned().collect()
}

fn token(secret: &str) -> String {
    json!({ "access_token": secret, "expires_in": 3_599, "token_type": "Bearer" }).to_string()
}

/// A minter with this credentials file, or without one.
fn minter(file: Option<&Value>, environment: &[(&str, &str)]) -> Rc<Minter> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.json");
    let mut config = json!({ "projectId": "p" });
    if let Some(file) = file {
        std::fs::write(&path, file.to_string()).unwrap();
        config["credentialsFile"] = json!(path);
    }
    let document = json!({ "backends": [{ "name": "b", "type": "google", "config": config }] });
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let settings = settings::from_text("test", &document.to_string(), &environment).unwrap();
    let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
    Minter::of(&settings.backends[0], &tls).unwrap()
}

fn account(issuer: &Scripted) -> Value {
    json!({ "type": "service_account", "client_email": "robot@p.iam", "private_key": KEY, "private_key_id": "key-1",
        "token_uri": issuer.url("/token") })
}

fn user(issuer: &Scripted) -> Value {
    json!({ "type": "authorized_user", "client_id": "id", "client_secret": "c-secret", "refresh_token": "1//refresh",
        "token_uri": issuer.url("/token"), "quota_project_id": "payer" })
}

fn headers_of(token: &Token) -> BTreeMap<String, String> {
    token.headers().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

#[actix_rt::test]
async fn a_service_account_signs_what_its_public_key_verifies() {
    let issuer = Scripted::start(&[(200, "", &token("ya29.a"))]).await;
    let minter = minter(Some(&account(&issuer)), &[]);
    let minted = minter.token().await.unwrap();
    assert_eq!(headers_of(&minted), BTreeMap::from([("authorization".into(), "Bearer ya29.a".into())]));

    let form = form(&issuer.requests()[0]);
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let parts: Vec<&str> = form["assertion"].split('.').collect();
    let decoded = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    assert_eq!(decoded(parts[0]), json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }));
    let claims = decoded(parts[1]);
    assert_eq!(claims["iss"], "robot@p.iam");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token", "whatever token_uri is");
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3_600);
    let public = SigningKey::from_pem(KEY).unwrap().pair().public_key().as_ref().to_vec();
    let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    let signed = format!("{}.{}", parts[0], parts[1]);
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public).verify(signed.as_bytes(), &signature).unwrap();
}

#[actix_rt::test]
async fn a_users_refresh_token_is_exchanged_and_its_quota_project_named() {
    let issuer = Scripted::start(&[(200, "", &token("ya29.u"))]).await;
    let minter = minter(Some(&user(&issuer)), &[]);
    let minted = headers_of(&minter.token().await.unwrap());
    assert_eq!(minted["authorization"], "Bearer ya29.u");
    assert_eq!(minted["x-goog-user-project"], "payer");
    let form = form(&issuer.requests()[0]);
    let expected =
        [("grant_type", "refresh_token"), ("client_id", "id"), ("client_secret", "c-secret"), ("refresh_token", "1//refresh")];
    assert_eq!(form, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[actix_rt::test]
async fn a_refusal_is_told_in_the_issuers_words_without_what_is_secret() {
    let words = "Bad: 1//refresh of c-secret";
    let refused = json!({ "error": "invalid_grant", "error_description": words }).to_string();
    let issuer = Scripted::start(&[(400, "", &refused)]).await;
    let failure = minter(Some(&user(&issuer)), &[]).token().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Credential);
    assert!(failure.message.contains("invalid_grant (Bad: [redacted] of [redacted])"), "{}", failure.message);
}

#[actix_rt::test]
async fn an_assertion_that_is_repeated_in_a_refusal_is_not_told() {
    let issuer = Scripted::start(&[(401, "", "")]).await;
    let account = account(&issuer);
    let failure = minter(Some(&account), &[]).token().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Credential);
    assert_eq!(failure.message, "the token endpoint gave no access token, status 401");
}

#[actix_rt::test]
async fn what_the_issuer_answers_decides_the_class() {
    for (status, body, class) in [
        (403, "{}", FailureClass::Credential),
        (429, "", FailureClass::Overloaded),
        (500, "<html>", FailureClass::Server),
        (503, "", FailureClass::Server),
        (302, "", FailureClass::Malformed),
        (200, "<html>", FailureClass::Malformed),
        (200, "{}", FailureClass::Malformed),
        (200, r#"{"access_token":"","expires_in":1}"#, FailureClass::Malformed),
        (200, r#"{"access_token":"a b","expires_in":1}"#, FailureClass::Malformed),
        (200, r#"{"access_token":"a","expires_in":-1}"#, FailureClass::Malformed),
        (200, r#"{"access_token":"a","expires_in":"soon"}"#, FailureClass::Malformed),
    ] {
        let issuer = Scripted::start(&[(status, "", body)]).await;
        let failure = minter(Some(&account(&issuer)), &[]).token().await.unwrap_err();
        assert_eq!(failure.class, class, "{status} {body}: {}", failure.message);
    }
}

#[actix_rt::test]
async fn an_expiry_written_as_text_is_read() {
    let issuer = Scripted::start(&[(200, "", r#"{"access_token":"a","expires_in":"3599"}"#)]).await;
    assert!(minter(Some(&account(&issuer)), &[]).token().await.is_ok());
}

#[actix_rt::test]
async fn an_issuer_that_cannot_be_reached_is_a_socket_failure_without_its_address() {
    let mut account = account(&Scripted::start(&[]).await);
    account["token_uri"] = json!("http://127.0.0.1:1/token");
    let failure = minter(Some(&account), &[]).token().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Socket);
    assert_eq!(failure.message, "no connection to the token endpoint: connection refused");
}

#[actix_rt::test]
async fn without_a_file_the_metadata_server_is_asked() {
    let issuer = Scripted::start(&[(200, "Metadata-Flavor: Google\r\n", &token("ya29.m"))]).await;
    let host = issuer.address.to_string();
    let minter = minter(None, &[("GCE_METADATA_HOST", &host)]);
    assert_eq!(headers_of(&minter.token().await.unwrap())["authorization"], "Bearer ya29.m");
    let request = issuer.requests()[0].to_lowercase();
    assert!(request.starts_with("get /computemetadata/v1/instance/service-accounts/default/token http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nmetadata-flavor: google\r\n"), "{request}");
}

#[actix_rt::test]
async fn a_metadata_server_is_tried_again_and_must_be_googles() {
    let flavor = "Metadata-Flavor: Google\r\n";
    let issuer = Scripted::start(&[(503, flavor, ""), (200, flavor, &token("ya29.m"))]).await;
    let host = issuer.address.to_string();
    assert!(minter(None, &[("GCE_METADATA_HOST", &host)]).token().await.is_ok());
    assert_eq!(issuer.requests().len(), 2);

    let issuer = Scripted::start(&[(200, "", &token("ya29.m"))]).await;
    let host = issuer.address.to_string();
    let failure = minter(None, &[("GCE_METADATA_HOST", &host)]).token().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Malformed);
    assert!(failure.message.contains("not Google's"), "{}", failure.message);
    assert_eq!(issuer.requests().len(), 1);
}
