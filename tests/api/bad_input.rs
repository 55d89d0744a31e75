//! Bad input from either side: what clients must not send, and what providers should not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::passthrough::passing;
use crate::streams::{Listener, assert_broken_after, one, pair, said};
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

fn chunked(path: &str, body: &[u8]) -> Vec<u8> {
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
async fn a_refusal_carries_the_providers_limits_and_request_id() {
    let provider = Provider::start(|_, mut wire| async move {
        let told = [
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6s"),
            ("x-request-id", "up-9"),
            ("server", "x"),
        ];
        wire.reply(429, "application/json", &told, br#"{"error":{"message":"slow down"}}"#).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.status, 429);
    let told = ["x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "x-upstream-request-id", "server"];
    assert_eq!(told.map(|name| reply.header(name)), [Some("0"), Some("6s"), Some("up-9"), None]);
}

/// A provider that writes these bytes as its reply and closes.
pub async fn writing(bytes: Vec<u8>) -> Provider {
    let bytes = Arc::new(bytes);
    Provider::start(move |_, mut wire| {
        let bytes = Arc::clone(&bytes);
        async move {
            wire.raw(&bytes).await;
            None
        }
    })
    .await
}

pub fn http(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_provider_that_answers_nonsense_is_502_and_the_next_member_serves() {
    let whole = completion("hello").to_string();
    let html = "<!doctype html><html><body>down for maintenance</body></html>";
    let event = word_event("hello");
    let gzip = "\u{1f}\u{8b}\u{8}nonsense";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"\x00\x01\x02 garbage\r\n\r\n".to_vec()),
        ("words", b"hello there\r\n\r\n".to_vec()),
        ("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("no version", b"HTTP 200 OK\r\n\r\n".to_vec()),
        ("no status", b"HTTP/1.1 hello\r\n\r\n".to_vec()),
        ("half a head", b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec()),
        ("bad header", b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n".to_vec()),
        ("bad length", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}".to_vec()),
        (
            "short of its length",
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{whole}", whole.len() + 1)
                .into_bytes(),
        ),
        ("half a reply", http("200 OK\r\ncontent-type: application/json", &whole[..40])),
        ("no body", http("200 OK\r\ncontent-type: application/json", "")),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        ("a page", http("200 OK\r\ncontent-type: text/html", html)),
        ("a stream for a whole reply", http("200 OK\r\ncontent-type: text/event-stream", &event)),
        ("gzip", http("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip", gzip)),
        ("gzip in name only", http("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip", &whole)),
        ("a redirect", http("302 Found\r\nlocation: http://127.0.0.1:1/", "")),
        ("a redirect that keeps the method", http("308 Permanent Redirect\r\nlocation: /v1/elsewhere", "")),
        ("another shape", http("200 OK\r\ncontent-type: application/json", "{\"object\":\"list\",\"data\":[]}")),
        ("a list", http("200 OK\r\ncontent-type: application/json", "[{},{}]")),
        ("choices that are none", http("200 OK\r\ncontent-type: application/json", "{\"choices\":\"hello\"}")),
    ];
    for (case, bytes) in cases {
        let provider = writing(bytes).await;
        let refused = one(&provider, "maxRetries: 0").chat("up", "hi").await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let form = refused.json();
        assert!(form["error"]["message"].is_string(), "{case}: {form}");
        assert!(!refused.text().contains("doctype") && !refused.text().contains("127.0.0.1"), "{case}: {form}");
        let second = Provider::saying("from the second").await;
        let served = pair(&provider, &second, "maxRetries: 0").chat("pool", "hi").await;
        assert_eq!(served.status, 200, "{case}: {}", served.text());
    }
}

#[tokio::test]
async fn a_stream_of_the_wrong_kind_is_502_and_the_next_member_serves() {
    let events = format!("{}data: [DONE]\n\n", word_event("hello"));
    let whole = completion("hello").to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a whole reply", http("200 OK\r\ncontent-type: application/json", &whole)),
        ("a stream called text", http("200 OK\r\ncontent-type: text/plain", &events)),
        ("a stream called nothing", http("200 OK", &events)),
        ("a page", http("200 OK\r\ncontent-type: text/html", "<html></html>")),
        ("gzip", http("200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip", "nonsense")),
        ("JSON lines", http("200 OK\r\ncontent-type: text/event-stream", &format!("{whole}\n{whole}\n"))),
        ("nothing", http("200 OK\r\ncontent-type: text/event-stream", "")),
        (
            "short of its length",
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n: hi\n\n".to_vec(),
        ),
    ];
    for (case, bytes) in cases {
        let provider = writing(bytes).await;
        let refused = one(&provider, "maxRetries: 0").stream("up", "hi").await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let second = Provider::saying("from the second").await;
        let served = pair(&provider, &second, "maxRetries: 0").stream("pool", "hi").await;
        assert_eq!(said(&served.body), ("from the second".to_owned(), true), "{case}");
    }
}

#[tokio::test]
async fn an_error_page_keeps_its_class_and_is_not_shown() {
    let page = "<!doctype html><html><body>secret host 10.1.2.3</body></html>";
    for (status, seen) in [(400, 400), (401, 502), (403, 502), (404, 404), (429, 429), (500, 502), (502, 502), (503, 503)] {
        for encoding in ["", "\r\ncontent-encoding: gzip"] {
            let provider = writing(http(&format!("{status} X\r\ncontent-type: text/html{encoding}"), page)).await;
            for stream in [false, true] {
                let gateway = one(&provider, "maxRetries: 0");
                let refused = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
                assert_eq!(refused.status, seen, "{status}: {}", refused.text());
                assert!(
                    !refused.text().contains("doctype") && !refused.text().contains("10.1.2.3"),
                    "{status}: {}",
                    refused.text()
                );
                assert!(refused.json()["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{status}");
            }
        }
    }
}

#[tokio::test]
async fn a_reply_is_not_asked_for_in_gzip() {
    let provider = Provider::saying("hello").await;
    one(&provider, "").chat("up", "hi").await;
    assert_eq!(provider.requests()[0].head.header("accept-encoding"), Some("identity"));
}

/// A provider that begins a reply so, then repeats bytes without end; with the count of bytes taken from it.
async fn endless(begin: &'static str, repeat: &'static str, in_chunks: bool) -> (Provider, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let provider = Provider::start(move |_, mut wire| {
        let counter = Arc::clone(&counter);
        async move {
            wire.raw(begin.as_bytes()).await;
            let block = repeat.repeat((64 << 10) / repeat.len());
            while if in_chunks { wire.chunk(&block).await } else { wire.raw(block.as_bytes()).await } {
                counter.fetch_add(block.len(), Ordering::SeqCst);
                // Client and provider share a thread here.
                tokio::task::yield_now().await;
            }
            None
        }
    })
    .await;
    (provider, written)
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const JSON_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
const ERROR_HEAD: &str = "HTTP/1.1 500 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
/// What the limits of the gateway and the sockets on the way may take of a reply without end.
pub const TAKEN: usize = 64 << 20;

#[tokio::test]
async fn a_reply_without_end_is_given_up() {
    let cases = [
        ("a header", "HTTP/1.1 200 OK\r\nx: ", "x", false, false),
        ("headers", "HTTP/1.1 200 OK\r\n", "x: y\r\n", false, false),
        ("a line before content", STREAM_HEAD, "x", true, true),
        ("events without content", STREAM_HEAD, "data: {\"choices\":[]}\n\n", true, true),
        ("comments", STREAM_HEAD, ": ping\n\n", true, true),
        ("an error", ERROR_HEAD, "x", true, false),
        ("a whole reply", JSON_HEAD, "[", true, false),
        ("a reply that is no stream", JSON_HEAD, " ", true, true),
    ];
    for (case, begin, repeat, in_chunks, stream) in cases {
        let (provider, written) = endless(begin, repeat, in_chunks).await;
        let gateway = one(&provider, "maxRetries: 0, maxReply: 1MiB, timeout: 10s");
        let refused = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let taken = written.load(Ordering::SeqCst);
        assert!(taken < TAKEN, "{case}: {taken} bytes");
        eventually("the connection is closed", || async {
            let before = written.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(30)).await;
            written.load(Ordering::SeqCst) == before
        })
        .await;
    }
}

#[tokio::test]
async fn a_line_without_end_after_the_first_content_ends_the_stream_with_one_typed_error_event() {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let provider = Provider::start(move |_, mut wire| {
        let counter = Arc::clone(&counter);
        async move {
            wire.begin_stream().await;
            wire.chunk(&word_event("one ")).await;
            let block = "x".repeat(64 << 10);
            while wire.chunk(&block).await {
                counter.fetch_add(block.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
            None
        }
    })
    .await;
    let gateway = one(&provider, "");
    let client = Listener::open(&gateway, "up", "hi").await;
    assert_broken_after("one ", "an endless line", client.finish().await);
    assert!(written.load(Ordering::SeqCst) < TAKEN);
}

#[tokio::test]
async fn a_whole_reply_beyond_the_limit_is_502_and_the_next_member_serves() {
    let big: &'static str = completion(&"x".repeat(70 << 10)).to_string().leak();
    for in_chunks in [false, true] {
        let provider = Provider::start(move |_, mut wire| async move {
            if in_chunks {
                wire.raw(JSON_HEAD.as_bytes()).await;
                wire.chunk(big).await;
                wire.end_chunks().await;
            } else {
                wire.reply(200, "application/json", &[], big.as_bytes()).await;
            }
            Some(wire)
        })
        .await;
        let refused = one(&provider, "maxReply: 64KiB").chat("up", "hi").await;
        assert_error(&refused, 502, "upstream_malformed", "too large");
        assert!(refused.text().contains("64KiB"), "{}", refused.text());
        assert_eq!(one(&provider, "maxReply: 128KiB").chat("up", "hi").await.status, 200);
        let second = Provider::saying("from the second").await;
        assert_eq!(pair(&provider, &second, "maxReply: 64KiB").chat("pool", "hi").await.status, 200);
    }
}

#[tokio::test]
async fn bytes_behind_a_reply_never_reach_the_next_request() {
    let evil =
        String::from_utf8(http("200 OK\r\ncontent-type: application/json", &completion("somebody else's").to_string())).unwrap();
    for at_once in [true, false] {
        let evil = evil.clone();
        let provider = Provider::start(move |request, mut wire| {
            let evil = evil.clone();
            async move {
                let text = request.json()["messages"][0]["content"].as_str().unwrap().to_owned();
                let own =
                    String::from_utf8(http("200 OK\r\ncontent-type: application/json", &completion(&text).to_string())).unwrap();
                // Else the second write could wait for the next request.
                wire.0.set_nodelay(true).unwrap();
                if at_once {
                    wire.raw(format!("{own}{evil}").as_bytes()).await;
                } else {
                    wire.raw(own.as_bytes()).await;
                    wire.raw(evil.as_bytes()).await;
                }
                Some(wire)
            }
        })
        .await;
        let gateway = one(&provider, "");
        for number in 0..10 {
            let text = format!("text {number}");
            let served = gateway.chat("up", &text).await;
            assert_eq!(served.json()["choices"][0]["message"]["content"], text, "in one write: {at_once}");
        }
    }
}

fn packed(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())
}

#[tokio::test]
async fn embeddings_come_in_the_asked_encoding_whatever_the_provider_answers() {
    let vectors: [&[f32]; 2] = [&[0.5, -1.25, 3.0], &[0.1, 1e-7, -0.0]];
    for answers_base64 in [false, true] {
        let provider = Provider::start(move |_, mut wire| async move {
            let entry = |index: usize| {
                let vector = if answers_base64 { json!(packed(vectors[index])) } else { json!(vectors[index]) };
                json!({ "object": "embedding", "index": index, "embedding": vector })
            };
            let usage = json!({ "prompt_tokens": 4, "total_tokens": 4 });
            wire.json(200, &json!({ "object": "list", "data": [entry(0), entry(1)], "model": "m", "usage": usage })).await;
            Some(wire)
        })
        .await;
        let gateway = one(&provider, "");
        for format in [None, Some("float"), Some("base64")] {
            let mut body = json!({ "model": "up", "input": ["a", "b"] });
            if let Some(format) = format {
                body["encoding_format"] = json!(format);
            }
            let served = gateway.post("/v1/embeddings", &body).await;
            assert_eq!(served.status, 200, "{}", served.text());
            let reply = served.json();
            for (index, vector) in vectors.iter().enumerate() {
                let entry = &reply["data"][index];
                assert_eq!(entry["index"], index);
                if format == Some("base64") {
                    assert_eq!(entry["embedding"], packed(vector), "{answers_base64} {format:?}");
                } else {
                    let numbers: Vec<f32> = serde_json::from_value(entry["embedding"].clone()).unwrap();
                    assert_eq!(numbers, *vector, "{answers_base64} {format:?}");
                }
            }
            assert_eq!(reply["usage"]["prompt_tokens"], 4);
        }
        eventually("usage is counted", || async { gateway.member("up", "up").await["prompt_tokens"] == 12 }).await;
    }
}

#[tokio::test]
async fn an_embedding_that_cannot_be_turned_into_the_asked_encoding_is_502() {
    for (entry, format) in [
        (json!({ "embedding": "not base64!" }), "float"),
        (json!({ "embedding": "AAA=" }), "float"),
        (json!({ "embedding": ["x"] }), "base64"),
        (json!({ "embedding": { "a": 1 } }), "base64"),
        (json!({ "embedding": null }), "base64"),
        (json!({}), "float"),
        (json!(5), "float"),
    ] {
        let body = json!({ "object": "list", "data": [entry] }).to_string();
        let provider = writing(http("200 OK\r\ncontent-type: application/json", &body)).await;
        let request = json!({ "model": "up", "input": "x", "encoding_format": format });
        let refused = one(&provider, "maxRetries: 0").post("/v1/embeddings", &request).await;
        assert_error(&refused, 502, "upstream_malformed", &body);
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

#[tokio::test]
async fn a_provider_that_ends_its_reply_by_closing_is_understood() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    for version in ["HTTP/1.0".to_owned(), "HTTP/1.1".to_owned(), format!("{interim}HTTP/1.1")] {
        let reply = |kind: &str, body: &str| format!("{version} 200 OK\r\ncontent-type: {kind}\r\n\r\n{body}").into_bytes();
        let whole = writing(reply("application/json", &completion("hello").to_string())).await;
        let served = one(&whole, "").chat("up", "hi").await;
        assert_eq!(served.status, 200, "{version}: {}", served.text());
        assert_eq!(served.json()["choices"][0]["message"]["content"], "hello");
        let events = format!("{}data: [DONE]\n\n", word_event("hello"));
        let served = one(&writing(reply("text/event-stream", &events)).await, "").stream("up", "hi").await;
        assert_eq!(said(&served.body), ("hello".to_owned(), true), "{version}");
        let served =
            passing(&writing(reply("text/plain", "a file")).await, "").send("GET", "/v1/files/f/content", &[], b"").await;
        assert_eq!((served.status, served.text()), (200, "a file".to_owned()), "{version}");
    }
}

#[tokio::test]
async fn an_interim_reply_that_comes_by_itself_is_waited_over() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        wire.json(200, &completion("hello")).await;
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    for _ in 0..2 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    assert_eq!(gateway.backend("up").await["connections"], 1, "the connection serves on");
}

#[tokio::test]
async fn a_reply_whose_head_is_cut_and_without_length_is_no_empty_success() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.raw(b"HTTP/1.1 200 OK\r\ncontent-").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.raw(b"type: text/plain\r\n\r\na file").await;
        None
    })
    .await;
    let refused = passing(&provider, "maxRetries: 0").send("GET", "/v1/files/f/content", &[], b"").await;
    assert_eq!(refused.status, 502);
    assert!(refused.text().contains("does not say where its body ends"), "{}", refused.text());
}
