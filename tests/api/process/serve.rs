//! Serving: where the configuration comes from, where it listens, whom it trusts; the stand-alone simulator.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Running, reply, request, run, stagedoor, written};
use crate::restarts::{drain_body, simulated_answer};
use crate::support::{chat_body, events, read_head};

#[tokio::test]
async fn the_default_configuration_answers_without_any_key() {
    // Within the source tree its file is read; anywhere else the copy within the binary is.
    let elsewhere = tempfile::tempdir().unwrap();
    for folder in [Path::new(env!("CARGO_MANIFEST_DIR")), elsewhere.path()] {
        let mut command = stagedoor(&[], &[("STAGEDOOR__SERVER__PORT", "0")]);
        let running = Running::spawn({
            command.current_dir(folder);
            command
        });
        let reply = running.chat("gpt-4o", "hello there").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-stagedoor-simulated"), Some("true"));
        let mut stream = running.open_stream("gpt-4o", "hello there").await;
        assert_eq!(read_head(&mut stream).await.status, 200);
        let (body, in_order) = drain_body(&mut stream).await;
        assert!(in_order);
        assert_eq!(events(&body).last().unwrap(), "[DONE]");
        assert_eq!(running.send("GET", "/health", &[], "").await.status, 200);
        assert_eq!(running.send("GET", "/ready", &[], "").await.status, 200);
    }
}

#[tokio::test]
async fn variables_override_the_file_without_regard_to_case() {
    let yaml = "server: { port: 1, drainGrace: 10s }\nbackends:\n  - { name: up, type: simulated }\n";
    let environment = [
        ("STAGEDOOR__SERVER__PORT", "0"),
        ("STAGEDOOR__server__drainGrace", "50ms"),
        ("STAGEDOOR__SERVER__MAXBODY", "1KiB"),
        ("STAGEDOOR__ADMIN__TOKEN", "operators-only"),
    ];
    let mut running = Running::start(yaml, &environment);
    assert_ne!(running.address.port(), 1);
    assert_eq!(running.send("GET", "/admin/api/state", &[], "").await.status, 401);
    let token = [("authorization", "Bearer operators-only")];
    assert_eq!(running.send("GET", "/admin/api/state", &token, "").await.status, 200);
    assert_eq!(running.chat("up", &"long ".repeat(1_000)).await.status, 413);
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - start < Duration::from_secs(5));
}

#[tokio::test]
async fn the_variable_stagedoor_config_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, "server: { port: 0 }\nbackends:\n  - { name: only-here, type: simulated }\n");
    let running = Running::spawn(stagedoor(&[], &[("STAGEDOOR_CONFIG", file.to_str().unwrap())]));
    let models = running.send("GET", "/v1/models", &[], "").await;
    assert!(models.text().contains("only-here"), "{}", models.text());
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let ended = run(&[], &[("STAGEDOOR__SERVER__PORT", &port)]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("server.port") && ended.err.contains(&port), "{}", ended.err);
}

#[tokio::test]
async fn the_stand_alone_simulator_answers_in_each_dialect_and_stops_in_order() {
    let chat = chat_body("any", "one two", false);
    let mut limited = chat.clone();
    limited["max_tokens"] = json!(100);
    let contents = json!({ "contents": [{ "role": "user", "parts": [{ "text": "one two" }] }] });
    for (dialect, path, body, place) in [
        ("openai", "/v1/chat/completions", &chat, "/choices/0/message/content"),
        ("anthropic", "/v1/messages", &limited, "/content/0/text"),
        ("google", "/v1beta/models/any:generateContent", &contents, "/candidates/0/content/parts/0/text"),
    ] {
        let behaviour = r#"{"firstToken":"1ms","tokens":5}"#;
        let mut command = stagedoor(&["simulate", "--dialect", dialect, "--port", "0", "--behaviour", behaviour], &[]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address: SocketAddr = line.trim().trim_start_matches("listening on http://").trim_end_matches("/v1").parse().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let sent = request("POST", path, &[("content-type", "application/json")], &body.to_string());
        stream.write_all(sent.as_bytes()).await.unwrap();
        let reply = reply(&mut stream).await;
        assert_eq!(reply.json().pointer(place), Some(&json!(simulated_answer("one two", 5))), "{dialect}");
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn providers_are_trusted_by_the_systems_certificates() {
    let provider = crate::network::TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let yaml = format!(
        "server: {{ port: 0, workers: 1 }}\ntelemetry: {{ logs: {{ format: json }} }}\nbackends:\n{}",
        crate::support::backend("up", &provider.endpoint(), "")
    );
    let trusted = Running::start(&yaml, &[("SSL_CERT_FILE", provider.ca.path().to_str().unwrap())]);
    let reply = trusted.chat("up", "hi").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = Running::start(&yaml, &[]).chat("up", "hi").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("its issuer is not trusted; name it in caFile"), "{}", reply.text());
}
