//! Images by address: fetched for a provider that takes none, and only from where clients may send a gateway.

use serde_json::{Value, json};

use crate::support::{Gateway, Provider, Reply};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n the rest of it";
/// The same in base64.
const PNG_BASE64: &str = "iVBORw0KGgogdGhlIHJlc3Qgb2YgaXQ=";

/// Gemini, as far as these tests need it.
async fn gemini() -> Provider {
    Provider::start(|_, mut wire| async move {
        let candidate =
            json!({ "index": 0, "content": { "role": "model", "parts": [{ "text": "seen" }] }, "finishReason": "STOP" });
        wire.json(200, &json!({ "candidates": [candidate], "usageMetadata": { "promptTokenCount": 1, "totalTokenCount": 1 } }))
            .await;
        Some(wire)
    })
    .await
}

/// A host of images: `/png`, `/page`, `/moved` to `/png`, `/inside` to another port.
async fn host() -> Provider {
    Provider::start(|request, mut wire| async move {
        match request.head.line.split(' ').nth(1).unwrap_or_default() {
            "/png" => wire.reply(200, "application/octet-stream", &[], PNG).await,
            "/moved" => wire.reply(302, "text/plain", &[("location", "/png")], b"").await,
            "/inside" => wire.reply(302, "text/plain", &[("location", "http://127.0.0.1:1/secret")], b"").await,
            "/page" => wire.reply(200, "image/png", &[], b"<html>").await,
            _ => wire.reply(404, "text/plain", &[], b"").await,
        }
        Some(wire)
    })
    .await
}

fn google(provider: &Provider, more: &str) -> String {
    format!(
        "  - {{ name: gem, type: google, config: {{ apiKey: key, defaultModel: gemini-3.8-flash, endpoint: \"http://{}\", {more} }} }}\n",
        provider.address
    )
}

fn listing(host: &Provider) -> String {
    format!("imageHosts: [\"{}\"]", host.address)
}

async fn ask(gateway: &Gateway, urls: &[&str]) -> Reply {
    let mut parts = vec![json!({ "type": "text", "text": "what is this?" })];
    parts.extend(urls.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } })));
    gateway.post("/v1/chat/completions", &json!({ "model": "gem", "messages": [{ "role": "user", "content": parts }] })).await
}

/// The parts of the user's turn as the provider got them.
fn parts(provider: &Provider) -> Vec<Value> {
    provider.requests()[0].json()["contents"][0]["parts"].as_array().unwrap().clone()
}

#[tokio::test]
async fn an_image_is_fetched_once_and_goes_inline() {
    let (provider, host) = (gemini().await, host().await);
    let gateway = Gateway::start(&format!("backends:\n{}", google(&provider, &listing(&host))));
    let (png, moved) = (format!("http://{}/png", host.address), format!("http://{}/moved", host.address));
    let reply = ask(&gateway, &[&png, &moved, &png]).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let inline: Vec<Value> = parts(&provider).into_iter().filter_map(|part| part.get("inlineData").cloned()).collect();
    assert_eq!(inline, vec![json!({ "mimeType": "image/png", "data": PNG_BASE64 }); 3]);
    let fetched = host.requests();
    assert_eq!(fetched.len(), 3, "each address once, and where one leads");
    assert!(fetched.iter().all(|request| request.head.header("x-goog-api-key").is_none()));
}

#[tokio::test]
async fn what_clients_may_not_reach_is_not_fetched_for_them() {
    let (provider, host) = (gemini().await, host().await);
    let gateway = Gateway::start(&format!("backends:\n{}", google(&provider, "")));
    let port = host.address.port();
    for url in [
        format!("http://127.0.0.1:{port}/png"),
        format!("https://127.0.0.1:{port}/png"),
        format!("https://localhost:{port}/png"),
        "https://169.254.169.254/computeMetadata/v1/".to_owned(),
        "https://[::ffff:10.0.0.1]/".to_owned(),
        "https://nowhere.invalid/".to_owned(),
    ] {
        let reply = ask(&gateway, &[&url]).await;
        assert_eq!(reply.status, 400, "{url}: {}", reply.text());
        assert_eq!(reply.json()["error"]["param"], "messages", "{}", reply.text());
    }
    let reply = ask(&gateway, &["file:///etc/passwd"]).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(host.requests().is_empty() && provider.requests().is_empty());
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_refused_with_the_reason() {
    let (provider, host) = (gemini().await, host().await);
    let gateway = Gateway::start(&format!("backends:\n{}", google(&provider, &listing(&host))));
    for (path, reason) in [
        ("/page", "it is not a PNG, JPEG, GIF, WebP or HEIF image"),
        ("/missing", "its host answered with status 404"),
        ("/inside", "it is redirected to an address that may not be fetched"),
    ] {
        let reply = ask(&gateway, &[&format!("http://{}{path}", host.address)]).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_image_url"), "{}", reply.text());
        assert_eq!(
            reply.json()["error"]["message"],
            format!("backend `gem`: the image at 127.0.0.1 cannot be fetched: {reason}")
        );
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    assert!(provider.requests().is_empty());
}

#[tokio::test]
async fn an_address_is_passed_on_where_the_operator_says_so() {
    let (provider, host) = (gemini().await, host().await);
    let gateway = Gateway::start(&format!("backends:\n{}", google(&provider, "imageUrls: pass")));
    let reply = ask(&gateway, &["https://example.com/a.png"]).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let file = parts(&provider).into_iter().find_map(|part| part.get("fileData").cloned()).unwrap();
    assert_eq!(file["fileUri"], "https://example.com/a.png");
    assert!(host.requests().is_empty());
}
