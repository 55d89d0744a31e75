//! Which route takes a request, what the fixed paths answer, and uploads that are passed through.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{Gateway, Provider, backend, chat_body, read_body, read_head};

const JSON: (&str, &str) = ("content-type", "application/json");

fn simulated(names: &[&str]) -> String {
    names.iter().map(|name| format!("  - {{ name: {name}, type: simulated }}\n")).collect()
}

#[tokio::test]
async fn a_route_is_chosen_by_path_method_headers_and_priority() {
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n\
         \x20 - {{ name: rest, path: /v1/*, methods: [GET, POST], backend: rest, priority: 300 }}\n\
         \x20 - {{ name: all, path: /v1/chat/completions, backend: all }}\n\
         \x20 - {{ name: both, path: /v1/chat/completions, backend: both, priority: 1, headers: {{ X-Team: a, X-Tier: gold }} }}\n\
         \x20 - {{ name: team, path: /v1/chat/completions, backend: team, priority: 2, headers: {{ X-Team: a }} }}\n",
        simulated(&["all", "both", "team", "rest"])
    ));
    let chosen = async |headers: &[(&str, &str)]| {
        let headers = [&[JSON], headers].concat();
        let body = chat_body("any", "hi", false).to_string();
        let reply = gateway.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
        reply.header("x-stagedoor-backend").map(str::to_owned)
    };
    assert_eq!(chosen(&[]).await.as_deref(), Some("all"));
    assert_eq!(chosen(&[("x-team", "a")]).await.as_deref(), Some("team"));
    assert_eq!(chosen(&[("x-team", "A")]).await.as_deref(), Some("all"), "values are compared as they are");
    assert_eq!(chosen(&[("x-tier", "gold"), ("x-team", "a")]).await.as_deref(), Some("both"));
    assert_eq!(chosen(&[("x-tier", "gold")]).await.as_deref(), Some("all"));
    // Of another method, it is the one that takes it.
    let reply = gateway.get("/v1/chat/completions").await;
    assert_eq!(reply.header("x-stagedoor-backend"), Some("rest"), "{}", reply.text());
    let reply = gateway.send("PUT", "/v1/chat/completions", &[], b"").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, POST")));
}

#[tokio::test]
async fn what_can_be_read_can_be_asked_for_by_head() {
    let gateway = Gateway::start(&format!("backends:\n{}", simulated(&["up"])));
    for path in ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/up", "/admin", "/admin/page.css"] {
        let by_get = gateway.get(path).await;
        assert_eq!(by_get.status, 200, "{path}");
        let mut stream = gateway.open("HEAD", path, &[("connection", "close")], b"").await;
        let head = read_head(&mut stream).await;
        assert_eq!((head.status, head.header("content-type")), (200, by_get.header("content-type")), "{path}");
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.unwrap();
        assert_eq!(rest, b"", "{path}: a reply to HEAD has no body");
        let refused = gateway.send("PUT", path, &[], b"").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[tokio::test]
async fn a_refusal_for_want_of_a_key_says_how_to_show_one() {
    let gateway = Gateway::start(&format!(
        "auth: {{ keys: [ {{ name: a, key: sk-a-long-enough-key }} ] }}\nadmin: {{ token: an-admin-token-long-enough }}\nbackends:\n{}",
        simulated(&["up"])
    ));
    for path in ["/v1/models", "/v1/chat/completions", "/admin/api/state", "/metrics"] {
        let method = if path.ends_with("completions") { "POST" } else { "GET" };
        let refused = gateway.send(method, path, &[JSON], b"{}").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")), "{path}");
    }
}

fn passing(provider: &Provider, server: &str) -> Gateway {
    Gateway::start(&format!(
        "server: {{ port: 0, workers: 1, {server} }}\nbackends:\n{}\
         routes:\n  - {{ name: all, path: /v1/*, methods: [GET, POST], backend: up }}\n",
        backend("up", &provider.endpoint(), "")
    ))
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_413_although_it_did_not_say_how_long_it_is() {
    let provider = Provider::saying("stored").await;
    let gateway = passing(&provider, "maxBody: 64KiB");
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..10 {
        let piece = [format!("{:x}\r\n", 8 << 10).into_bytes(), vec![b'x'; 8 << 10], b"\r\n".to_vec()].concat();
        // It may be refused before it is sent to its end.
        let _ = stream.write_all(&piece).await;
    }
    let head = read_head(&mut stream).await;
    let body = String::from_utf8(read_body(&mut stream, &head).await).unwrap();
    assert_eq!(head.status, 413, "{body}");
    assert!(body.contains("body_too_large") && body.contains("64KiB"), "{body}");
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "closed");
}

#[tokio::test]
async fn an_upload_goes_on_with_its_encoding() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.json(200, &json!({ "id": "file-1" })).await;
        Some(wire)
    })
    .await;
    let gateway = passing(&provider, "");
    let headers = [("content-type", "application/octet-stream"), ("content-encoding", "gzip")];
    assert_eq!(gateway.send("POST", "/v1/files", &headers, b"\x1f\x8bnot looked at").await.status, 200);
    let seen = &provider.requests()[0];
    assert_eq!(seen.head.header("content-encoding"), Some("gzip"));
    assert_eq!(seen.body, b"\x1f\x8bnot looked at");
}

#[tokio::test]
async fn a_key_without_the_right_to_one_path_is_good_for_the_others() {
    let provider = Provider::start(|request, mut wire| async move {
        match request.head.line.contains("/files") {
            true => wire.json(403, &json!({ "error": { "message": "Missing scopes: api.files.read for sk-up" } })).await,
            false => wire.json(200, &crate::support::completion("hello")).await,
        }
        Some(wire)
    })
    .await;
    let gateway = passing(&provider, "");
    for _ in 0..3 {
        let refused = gateway.get("/v1/files").await;
        assert_eq!(refused.status, 403, "{}", refused.text());
        assert!(refused.text().contains("Missing scopes"), "{}", refused.text());
    }
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "closed");
}
