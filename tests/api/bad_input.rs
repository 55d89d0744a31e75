//! What clients must not send.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::streams::one;
use crate::support::{
    Gateway, Provider, Reply, backend, chat_body, completion, eventually, read_body, read_head, try_read_head, word_event,
};

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// Sends bytes as a chat request's body.
async fn chat_bytes(gateway: &Gateway, body: &[u8]) -> Reply {
    gateway.send("POST", "/v1/chat/completions", &[JSON], body).await
}

/// Writes bytes to the gateway as they are.
pub async fn raw(gateway: &Gateway, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Reads a whole reply.
pub async fn reply(mut stream: TcpStream) -> Reply {
    let head = read_head(&mut stream).await;
    let body = read_body(&mut stream, &head).await;
    Reply { status: head.status, headers: head.headers, body }
}

pub fn assert_error(reply: &Reply, status: u16, code: &str, case: &str) {
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{case}: {}", reply.text());
    let error = &reply.json()["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{case}: {error}");
    assert!(error.get("param").is_some() && error.get("code").is_some(), "{case}: {error}");
    assert!(reply.header("x-request-id").is_some(), "{case}");
}

#[tokio::test]
async fn a_body_that_is_not_json_or_of_the_wrong_shape_is_400_and_goes_nowhere() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    let cases: &[(&[u8], &str, Value)] = &[
        (b"", "invalid_json", Value::Null),
        (b"{", "invalid_json", Value::Null),
        (b"{}}", "invalid_json", Value::Null),
        (b"[]", "invalid_json", Value::Null),
        (b"null", "invalid_json", Value::Null),
        (b"hello", "invalid_json", Value::Null),
        (b"{'model':'up'}", "invalid_json", Value::Null),
        (b"{\"model\":\"up\",\"messages\":[],}", "invalid_json", Value::Null),
        (b"{\"model\":\"up\",\"messages\":[]} {}", "invalid_json", Value::Null),
        (b"{\"model\":\"\xff\",\"messages\":[]}", "invalid_json", Value::Null),
        (b"{\"model\":\"up\",\"messages\":[],\"x\":NaN}", "invalid_json", Value::Null),
        (b"\x00\x01\x02", "invalid_json", Value::Null),
        (b"{\"messages\":[]}", "missing_required_parameter", json!("model")),
        (b"{\"model\":\"up\"}", "missing_required_parameter", json!("messages")),
        (b"{\"model\":5,\"messages\":[]}", "invalid_value", json!("model")),
        (b"{\"model\":\"\",\"messages\":[]}", "invalid_value", json!("model")),
        (b"{\"model\":[\"up\"],\"messages\":[]}", "invalid_value", json!("model")),
        (b"{\"model\":\"up\",\"messages\":\"hi\"}", "invalid_value", json!("messages")),
        (b"{\"model\":\"up\",\"messages\":{}}", "invalid_value", json!("messages")),
        (b"{\"model\":\"up\",\"messages\":[\"hi\"]}", "invalid_value", json!("messages")),
        (b"{\"model\":\"up\",\"messages\":[],\"stream\":\"true\"}", "invalid_value", json!("stream")),
        (b"{\"model\":\"up\",\"messages\":[],\"stream\":1}", "invalid_value", json!("stream")),
        (b"{\"model\":\"up\",\"messages\":[],\"n\":0}", "invalid_value", json!("n")),
        (b"{\"model\":\"up\",\"messages\":[],\"n\":\"2\"}", "invalid_value", json!("n")),
        (b"{\"model\":\"up\",\"messages\":[],\"stream_options\":true}", "invalid_value", json!("stream_options")),
        (b"{\"model\":\"up\",\"model\":\"up\",\"messages\":[]}", "invalid_value", json!("model")),
        (b"{\"model\":\"up\",\"messages\":[],\"messages\":[]}", "invalid_value", json!("messages")),
        (b"{\"model\":\"up\",\"messages\":[],\"stream\":false,\"stre\\u0061m\":true}", "invalid_value", json!("stream")),
    ];
    for (body, code, param) in cases {
        let case = String::from_utf8_lossy(body).into_owned();
        let reply = chat_bytes(&gateway, body).await;
        assert_error(&reply, 400, code, &case);
        assert_eq!(&reply.json()["error"]["param"], param, "{case}");
    }
    for path in ["/v1/embeddings", "/v1/completions"] {
        let reply = gateway.send("POST", path, &[JSON], b"{\"input\":\"x\"}").await;
        assert_error(&reply, 400, "missing_required_parameter", path);
        let reply = gateway.send("POST", path, &[JSON], b"{\"model\":").await;
        assert_error(&reply, 400, "invalid_json", path);
    }
    assert_eq!(provider.requests().len(), 0);
    assert_eq!(gateway.chat("up", "hi").await.status, 200, "the gateway serves on");
}

#[tokio::test]
async fn nesting_too_deep_is_400_and_ordinary_nesting_passes() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    for depth in [200, 100_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for body in [
                format!("{{\"model\":\"up\",\"messages\":[],\"metadata\":{deep}}}"),
                format!("{{\"model\":\"up\",\"messages\":[{{\"role\":\"user\",\"content\":{deep}}}]}}"),
            ] {
                assert_error(&chat_bytes(&gateway, body.as_bytes()).await, 400, "invalid_json", &format!("{open} {depth}"));
            }
        }
    }
    let usual = format!("{{\"model\":\"up\",\"messages\":[],\"metadata\":{}1{}}}", "[".repeat(60), "]".repeat(60));
    assert_eq!(chat_bytes(&gateway, usual.as_bytes()).await.status, 200);
}

/// A gateway with this `server` line before one backend.
fn serving(server: &str, provider: &Provider, more: &str) -> Gateway {
    Gateway::start(&format!(
        "server: {{ port: 0, workers: 1, {server} }}\nbackends:\n{}",
        backend("up", &provider.endpoint(), more)
    ))
}

/// A chat body of exactly this many bytes.
fn chat_of(bytes: usize) -> Vec<u8> {
    let empty = chat_body("up", "", false).to_string().len();
    chat_body("up", &"x".repeat(bytes - empty), false).to_string().into_bytes()
}

pub fn chunked(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in body.chunks(10_000) {
        request.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_and_names_the_limit() {
    let provider = Provider::saying("hello").await;
    let gateway = serving("maxBody: 64KiB", &provider, "");
    let limit = 64 << 10;
    assert_eq!(chat_bytes(&gateway, &chat_of(limit)).await.status, 200);
    let over = chat_of(limit + 1);
    for refused in [chat_bytes(&gateway, &over).await, reply(raw(&gateway, &chunked("/v1/chat/completions", &over)).await).await]
    {
        assert_error(&refused, 413, "body_too_large", "one byte over");
        assert!(refused.text().contains("64KiB"), "{}", refused.text());
    }
    assert_eq!(reply(raw(&gateway, &chunked("/v1/chat/completions", &chat_of(limit))).await).await.status, 200);
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test]
async fn a_client_that_sends_far_too_much_can_still_read_the_refusal() {
    let provider = Provider::saying("hello").await;
    let gateway = serving("maxBody: 64KiB", &provider, "");
    for _ in 0..5 {
        assert_error(&chat_bytes(&gateway, &chat_of(8 << 20)).await, 413, "body_too_large", "8 MiB");
    }
}

#[tokio::test]
async fn sixty_five_mib_are_refused_by_their_declared_length_alone() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        65 << 20
    );
    let refused = reply(raw(&gateway, head.as_bytes()).await).await;
    assert_error(&refused, 413, "body_too_large", "declared");
    assert!(refused.text().contains("64MiB"), "{}", refused.text());
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_together_and_given_back() {
    let finish = Arc::new(Notify::new());
    let may_finish = Arc::clone(&finish);
    let provider = Provider::start(move |_, mut wire| {
        let may_finish = Arc::clone(&may_finish);
        async move {
            may_finish.notified().await;
            wire.json(200, &completion("hello")).await;
            Some(wire)
        }
    })
    .await;
    let gateway = serving("maxBody: 64KiB, maxBodyInFlight: 100KiB", &provider, "");
    let body = chat_of(60 << 10);
    let first = gateway.open("POST", "/v1/chat/completions", &[JSON], &body).await;
    eventually("the first arrives", || async { provider.requests().len() == 1 }).await;
    for refused in [chat_bytes(&gateway, &body).await, reply(raw(&gateway, &chunked("/v1/chat/completions", &body)).await).await]
    {
        assert_error(&refused, 503, "gateway_overloaded", "second");
        assert!(refused.header("retry-after").is_some());
    }
    finish.notify_one();
    assert_eq!(reply(first).await.status, 200);
    let third = gateway.open("POST", "/v1/chat/completions", &[JSON], &body).await;
    eventually("the third arrives", || async { provider.requests().len() == 2 }).await;
    drop(third);
    eventually("all bytes are given back", || async { gateway.state().await["body_bytes"] == 0 }).await;
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test]
async fn bodies_that_are_declared_and_not_sent_keep_nobody_out() {
    let provider = Provider::saying("hello").await;
    let gateway = serving("maxBody: 64KiB, maxBodyInFlight: 100KiB", &provider, "");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n{";
    let mut unfinished = Vec::new();
    for _ in 0..8 {
        unfinished.push(raw(&gateway, head.as_bytes()).await);
    }
    eventually("they are read", || async { gateway.state().await["body_bytes"] == 8 }).await;
    assert_eq!(chat_bytes(&gateway, &chat_of(60 << 10)).await.status, 200);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_spend_money_where_no_key_is_needed() {
    let provider = Provider::saying("hello").await;
    let gateway = serving("", &provider, "");
    let body = chat_body("up", "hi", false).to_string();
    let ask =
        async |origin: &str| gateway.send("POST", "/v1/chat/completions", &[("origin", origin), JSON], body.as_bytes()).await;
    for origin in ["https://evil.example", "http://evil.example:8080", "http://localhost.evil.example", "null"] {
        assert_error(&ask(origin).await, 403, "cross_site", origin);
    }
    assert_eq!(provider.requests().len(), 0);
    for origin in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:5173", "http://app.localhost", "tauri://app"] {
        assert_eq!(ask(origin).await.status, 200, "{origin}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_408() {
    let provider = Provider::saying("hello").await;
    let gateway = serving("bodyTimeout: 1s", &provider, "");
    for head in ["content-length: 100\r\n\r\n{\"model\":", "transfer-encoding: chunked\r\n\r\n5\r\n{\"mod\r\n"] {
        let request =
            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{head}");
        let start = Instant::now();
        assert_error(&reply(raw(&gateway, request.as_bytes()).await).await, 408, "body_timeout", head);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    eventually("nothing is held", || async { gateway.state().await["body_bytes"] == 0 }).await;
}

#[tokio::test]
async fn a_client_that_leaves_within_its_body_leaves_nothing_behind() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{\"model\":";
    let client = raw(&gateway, request).await;
    eventually("its bytes are held", || async { gateway.state().await["body_bytes"] != 0 }).await;
    drop(client);
    eventually("its bytes are given back", || async {
        let state = gateway.state().await;
        state["body_bytes"] == 0 && state["open_requests"] == 0
    })
    .await;
    assert_eq!(provider.requests().len(), 0);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_is_served() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    let body = chat_body("up", "hi", false).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = raw(&gateway, head.as_bytes()).await;
    assert_eq!(read_head(&mut client).await.status, 100);
    client.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(reply(client).await.status, 200);
}

#[tokio::test]
async fn an_unknown_path_is_404_and_a_wrong_method_is_405_with_allow() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    for path in [
        "/",
        "/v1",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/chat/completions/../completions",
        "/v1/chat/completions%00",
        "/v2/chat/completions",
        "/admin/api/nothing",
        "/v1/files",
    ] {
        for method in ["GET", "POST"] {
            assert_error(&gateway.send(method, path, &[JSON], b"{}").await, 404, "unknown_path", &format!("{method} {path}"));
        }
    }
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("GET", "/v1/completions", "POST"),
    ] {
        let refused = gateway.send(method, path, &[], b"").await;
        assert_error(&refused, 405, "method_not_allowed", &format!("{method} {path}"));
        assert_eq!(refused.header("allow"), Some(allow), "{method} {path}");
    }
    assert_error(&gateway.get("/v1/models/nothing").await, 404, "model_not_found", "model");
    assert_eq!(provider.requests().len(), 0);
}

#[tokio::test]
async fn a_wrong_method_on_a_fixed_path_is_405_with_allow() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    for (method, path, allow) in [
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/ready", "GET, HEAD"),
        ("POST", "/admin/api/state", "GET"),
        ("GET", "/admin/api/backends/up/restart", "POST"),
    ] {
        let refused = gateway.send(method, path, &[], b"").await;
        assert_error(&refused, 405, "method_not_allowed", &format!("{method} {path}"));
        assert_eq!(refused.header("allow"), Some(allow), "{method} {path}");
    }
}

#[tokio::test]
async fn configured_methods_are_listed_in_allow() {
    let provider = Provider::saying("hello").await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: chat, path: /v1/chat/completions, backend: up }}\n  - {{ name: files, path: /v1/files/*, methods: [GET, DELETE], backend: up }}\n",
        backend("up", &provider.endpoint(), "")
    ));
    let refused = gateway.send("PUT", "/v1/files/f-1", &[], b"").await;
    assert_error(&refused, 405, "method_not_allowed", "PUT");
    assert_eq!(refused.header("allow"), Some("DELETE, GET"));
    assert_error(&gateway.post("/v1/embeddings", &json!({ "model": "up", "input": "x" })).await, 404, "unknown_path", "no route");
}

#[tokio::test]
async fn a_client_key_is_asked_for_and_never_forwarded() {
    let provider = Provider::saying("hello").await;
    // The SHA-256 of `key-two`.
    let digest = "c8df51469c308a59bfbd48a3e0bdd228ca922d6032035f5ef6e4ad45f473a9f3";
    let gateway = Gateway::start(&format!(
        "auth: {{ keys: [ {{ name: one, key: key-one }}, {{ name: two, sha256: \"{digest}\" }} ] }}\nbackends:\n{}",
        backend("up", &provider.endpoint(), "")
    ));
    let body = chat_body("up", "hi", false).to_string();
    for (header, code) in [
        (None, "missing_api_key"),
        (Some(""), "missing_api_key"),
        (Some("Bearer"), "missing_api_key"),
        (Some("Bearer "), "missing_api_key"),
        (Some("key-one"), "missing_api_key"),
        (Some("Basic key-one"), "missing_api_key"),
        (Some("Bearer key-on"), "invalid_api_key"),
        (Some("Bearer key-onee"), "invalid_api_key"),
        (Some("Bearer KEY-ONE"), "invalid_api_key"),
        (Some("Bearer sk-upstream-secret"), "invalid_api_key"),
    ] {
        for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/nothing"] {
            let headers: Vec<_> = [JSON].into_iter().chain(header.map(|value| ("authorization", value))).collect();
            assert_error(&gateway.send("POST", path, &headers, body.as_bytes()).await, 401, code, &format!("{header:?} {path}"));
        }
    }
    assert_error(&gateway.get("/v1/models").await, 401, "missing_api_key", "models");
    assert_eq!(gateway.get("/health").await.status, 200);
    assert_eq!(provider.requests().len(), 0);
    for header in ["Bearer key-one", "bearer key-one", "Bearer key-two"] {
        let served = gateway.send("POST", "/v1/chat/completions", &[JSON, ("authorization", header)], body.as_bytes()).await;
        assert_eq!(served.status, 200, "{}", served.text());
    }
    for request in provider.requests() {
        assert_eq!(request.head.header("authorization"), Some("Bearer sk-upstream-secret"));
        assert!(!format!("{request:?}").contains("key-"));
    }
}

#[tokio::test]
async fn a_content_type_other_than_json_is_415() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    let body = chat_body("up", "hi", false).to_string();
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "json"]
    {
        let refused = gateway.send("POST", "/v1/chat/completions", &[("content-type", kind)], body.as_bytes()).await;
        assert_error(&refused, 415, "unsupported_media_type", kind);
    }
    for kind in ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"] {
        let served = gateway.send("POST", "/v1/chat/completions", &[("content-type", kind)], body.as_bytes()).await;
        assert_eq!(served.status, 200, "{kind}: {}", served.text());
    }
    assert_eq!(gateway.send("POST", "/v1/chat/completions", &[], body.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn a_model_cannot_reach_out_of_its_place_in_the_request() {
    let provider = Provider::saying("hello").await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: up, type: azure-openai, config: {{ apiKey: k, endpoint: \"http://{}\", apiVersion: \"2024-10-21\", deploymentName: d }} }}\n{}",
        provider.address,
        backend("plain", &provider.endpoint(), "")
    ));
    let long = "m".repeat(200);
    for dots in [".", ".."] {
        let refused = gateway.chat(&format!("up/{dots}"), "hi").await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "unsupported_by_backend"), "{dots}: {}", refused.text());
    }
    assert_eq!(provider.requests().len(), 0);
    let models = [
        "../..",
        "a/b",
        "/",
        "//",
        "a?x=1",
        "a#b",
        "a b",
        "a%2Fb",
        "%2e%2e",
        "a\\b",
        "é",
        "a\"b",
        "x\",\"stream\":true,\"y\":\"",
        "a&api-version=1",
        ":",
        "@",
        &long,
    ];
    for model in models {
        let served = gateway.chat(&format!("up/{model}"), "hi").await;
        assert_eq!(served.status, 200, "{model}: {}", served.text());
        let request = provider.requests().pop().unwrap();
        let path = request.head.line.strip_prefix("POST /openai/deployments/").unwrap_or_else(|| panic!("{model}: {request:?}"));
        let segment =
            path.strip_suffix("/chat/completions?api-version=2024-10-21 HTTP/1.1").unwrap_or_else(|| panic!("{model}: {path}"));
        assert!(!segment.contains(['/', '?', '#', ' ', '\\', '"', '&']), "{model}: {segment}");
        assert!(!matches!(segment, "." | ".."), "{model}: {segment}");
        assert_eq!(percent_encoding::percent_decode_str(segment).decode_utf8().unwrap(), model);
        assert_eq!(request.json()["messages"][0]["content"], "hi", "{model}");

        let served = gateway.chat(&format!("plain/{model}"), "hi").await;
        assert_eq!(served.status, 200, "{model}: {}", served.text());
        let request = provider.requests().pop().unwrap();
        assert_eq!(request.head.line, "POST /v1/chat/completions HTTP/1.1", "{model}");
        let body = request.json();
        assert_eq!((&body["model"], &body["stream"]), (&json!(model), &json!(false)), "{model}");
        assert_eq!(body.as_object().unwrap().len(), 3, "{model}: {body}");
    }
    let sent = provider.requests().len();
    for model in ["up/a\r\nx-evil: 1", "up/a\nb", "up/\0", "plain/\u{7f}", "plain/\r", &"m".repeat(257), &"m".repeat(1 << 20)] {
        let refused = gateway.chat(model, "hi").await;
        assert_error(&refused, 400, "invalid_value", &model[..model.len().min(20)]);
        assert_eq!(refused.json()["error"]["param"], "model");
        assert!(refused.body.len() < 1_000);
    }
    assert_eq!(provider.requests().len(), sent);
}

#[tokio::test]
async fn a_request_id_is_on_every_reply_and_taken_over_only_if_sane() {
    let provider = Provider::start(|request, mut wire| async move {
        match request.json()["messages"][0]["content"].as_str() {
            Some("refuse") => wire.json(400, &json!({ "error": { "message": "no" } })).await,
            Some("fail") => wire.json(500, &json!({ "error": { "message": "no" } })).await,
            _ if request.json()["stream"] == true => {
                wire.begin_stream().await;
                wire.chunk(&format!("{}data: [DONE]\n\n", word_event("hello"))).await;
                wire.end_chunks().await;
            }
            _ => wire.json(200, &completion("hello")).await,
        }
        Some(wire)
    })
    .await;
    let gateway = serving("maxBody: 64KiB", &provider, "maxRetries: 0");
    let chat = |text: &str, stream: bool| chat_body("up", text, stream).to_string().into_bytes();
    let kinds: Vec<(&str, &str, Vec<u8>, u16)> = vec![
        ("POST", "/v1/chat/completions", chat("hi", false), 200),
        ("POST", "/v1/chat/completions", chat("hi", true), 200),
        ("POST", "/v1/chat/completions", chat("refuse", false), 400),
        ("POST", "/v1/chat/completions", chat("fail", true), 502),
        ("POST", "/v1/chat/completions", b"{".to_vec(), 400),
        ("POST", "/v1/chat/completions", chat_of(65 << 10), 413),
        ("GET", "/v1/chat/completions", Vec::new(), 405),
        ("GET", "/nothing", Vec::new(), 404),
        ("GET", "/v1/models", Vec::new(), 200),
        ("GET", "/v1/models/nothing", Vec::new(), 404),
        ("GET", "/health", Vec::new(), 200),
        ("GET", "/ready", Vec::new(), 200),
        ("GET", "/admin/api/state", Vec::new(), 200),
        ("GET", "/admin/api/nothing", Vec::new(), 404),
        ("DELETE", "/admin/api/requests/x", Vec::new(), 404),
        ("POST", "/admin/api/backends/x/restart", Vec::new(), 404),
    ];
    let long = "x".repeat(129);
    for (method, path, body, status) in &kinds {
        for (given, kept) in [
            (None, false),
            (Some("my-id_1.2:3"), true),
            (Some("has space"), false),
            (Some("<script>"), false),
            (Some("a\"b"), false),
            (Some("é"), false),
            (Some(long.as_str()), false),
            (Some(""), false),
        ] {
            let headers: Vec<_> = [JSON].into_iter().chain(given.map(|id| ("x-request-id", id))).collect();
            let reply = gateway.send(method, path, &headers, body).await;
            let case = format!("{method} {path} {given:?}");
            assert_eq!(reply.status, *status, "{case}: {}", reply.text());
            let ids: Vec<_> = reply.headers.iter().filter(|(name, _)| name == "x-request-id").collect();
            assert_eq!(ids.len(), 1, "{case}");
            assert_eq!(ids[0].1 == given.unwrap_or_default(), kept, "{case}: {}", ids[0].1);
            assert!(kept || ids[0].1.starts_with("req_"), "{case}: {}", ids[0].1);
        }
    }
}

const PRIVATE: &[(&str, &str)] = &[
    ("authorization", "Bearer client-secret"),
    ("api-key", "client-secret"),
    ("x-api-key", "client-secret"),
    ("proxy-authorization", "Basic client-secret"),
    ("cookie", "session=client-secret"),
    ("x-stainless-lang", "python"),
    ("x-stainless-retry-count", "0"),
    ("openai-organization", "client-org"),
    ("openai-project", "client-project"),
    ("x-forwarded-for", "10.0.0.1"),
    ("forwarded", "for=10.0.0.1"),
    ("te", "trailers"),
    ("upgrade", "h2c"),
    ("x-internal", "client-secret"),
    ("accept-encoding", "gzip, br"),
];

#[tokio::test]
async fn client_credentials_cookies_and_sdk_headers_are_never_forwarded() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.reply(
            200,
            "application/json",
            &[("set-cookie", "a=b"), ("x-ratelimit-remaining-requests", "7"), ("x-request-id", "up-1")],
            completion("hello").to_string().as_bytes(),
        )
        .await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: all, path: /v1/*, methods: [GET, POST], backend: up }}\n",
        backend("up", &provider.endpoint(), "orgId: our-org")
    ));
    let body = chat_body("up", "hi", false).to_string();
    let headers: Vec<_> = PRIVATE.iter().copied().chain([JSON]).collect();
    for (method, path, body) in [
        ("POST", "/v1/chat/completions", body.as_str()),
        ("POST", "/v1/images/generations", "{\"model\":\"x\"}"),
        ("GET", "/v1/files", ""),
    ] {
        let served = gateway.send(method, path, &headers, body.as_bytes()).await;
        assert_eq!(served.status, 200, "{path}: {}", served.text());
        let request = provider.requests().pop().unwrap();
        let head = format!("{:?}", request.head);
        for secret in ["client-secret", "client-org", "client-project", "stainless", "10.0.0.1", "h2c", "gzip"] {
            assert!(!head.contains(secret), "{path}: {head}");
        }
        assert_eq!(request.head.header("authorization"), Some("Bearer sk-upstream-secret"), "{path}");
        assert_eq!(request.head.header("openai-organization"), Some("our-org"), "{path}");
        assert_eq!(served.header("set-cookie"), None, "{path}");
        assert_eq!(served.header("x-ratelimit-remaining-requests"), Some("7"), "{path}");
        assert_eq!(served.header("x-upstream-request-id"), Some("up-1"), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_speaks_no_http_is_refused_and_others_are_served() {
    let provider = Provider::saying("hello").await;
    let gateway = one(&provider, "");
    for bytes in
        [b"GARBAGE\r\n\r\n".to_vec(), b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), b"GET / HTTP/1.1\r\nbad header\r\n\r\n".to_vec()]
    {
        let mut client = raw(&gateway, &bytes).await;
        client.shutdown().await.unwrap();
        if let Some(head) = try_read_head(&mut client).await {
            assert_eq!(head.status, 400, "{head:?}");
        }
    }
    // Two lengths: whoever reads the second differs from whoever reads the first.
    let body = chat_body("up", "hi", false).to_string();
    for lengths in [
        format!("content-length: {}\r\ncontent-length: 3", body.len()),
        format!("content-length: {}\r\ntransfer-encoding: chunked", body.len()),
    ] {
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{lengths}\r\n\r\n{body}");
        let mut client = raw(&gateway, request.as_bytes()).await;
        client.shutdown().await.unwrap();
        if let Some(head) = try_read_head(&mut client).await {
            assert_eq!(head.status, 400, "{lengths}: {head:?}");
        }
    }
    assert_eq!(provider.requests().len(), 0);
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
}
