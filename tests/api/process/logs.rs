//! What it prints: no secrets, a line for each request, a line for each act.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Running, check_text, free_port, stagedoor, written};
use crate::support::{PATIENCE, Provider, chat_body, eventually, word_event};

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    const SECRETS: [&str; 5] =
        ["sk-secret-upstream", "secret-header-value", "secret-client-key", "secret-admin-token", "secret-question"];
    let provider = Provider::start(|request, mut wire| async move {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        if text.contains("refuse") {
            let key = request.head.header("authorization").unwrap_or_default().to_owned();
            let error = json!({ "error": { "message": format!("Incorrect API key provided: {key}"), "type": "invalid_request_error", "code": "invalid_api_key" } });
            wire.json(401, &error).await;
        } else if text.contains("blame") {
            let key = request.head.header("authorization").unwrap_or_default().to_owned();
            wire.json(400, &json!({ "error": { "message": format!("bad, {key}"), "type": "invalid_request_error" } })).await;
        } else if text.contains("break") {
            wire.begin_stream().await;
            wire.chunk(&word_event("one")).await;
            return None;
        } else {
            wire.json(200, &crate::support::completion("fine")).await;
        }
        Some(wire)
    })
    .await;
    let yaml = format!(
        "server: {{ port: 0, workers: 1, drainGrace: 50ms }}\nadmin: {{ token: \"${{ADMIN}}\" }}\n\
         auth: {{ keys: [{{ name: app, key: \"${{CLIENT}}\" }}] }}\n\
         telemetry: {{ logs: {{ level: trace }} }}\n\
         backends:\n  - {{ name: up, type: openai, config: {{ apiKey: \"${{UPSTREAM}}\", endpoint: \"{}\", defaultModel: m, \
         headers: {{ x-extra: \"${{HEADER}}\" }} }} }}\n",
        provider.endpoint()
    );
    let environment = [("UPSTREAM", SECRETS[0]), ("HEADER", SECRETS[1]), ("CLIENT", SECRETS[2]), ("ADMIN", SECRETS[3])];
    let mut running = Running::start(&yaml, &environment);
    let client = [("content-type", "application/json"), ("authorization", "Bearer secret-client-key")];
    let operator = [("authorization", "Bearer secret-admin-token")];
    let mut seen = String::new();
    for (text, stream) in [("fine", false), ("refuse", false), ("blame", false), ("break", true)] {
        let body = chat_body("up", &format!("{text} secret-question"), stream).to_string();
        let reply = running.send("POST", "/v1/chat/completions", &client, &body).await;
        seen.push_str(&format!("{:?}{}", reply.headers, reply.text()));
    }
    let wrong = [("content-type", "application/json"), ("authorization", "Bearer secret-client-keyX")];
    let refused = running.send("POST", "/v1/chat/completions", &wrong, "{}").await;
    assert_eq!(refused.status, 401);
    seen.push_str(&refused.text());
    for path in ["/admin/api/state", "/admin/api/requests", "/v1/models"] {
        let headers = if path.starts_with("/v1") { &client[1..] } else { &operator };
        let reply = running.send("GET", path, headers, "").await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        seen.push_str(&reply.text());
    }
    let sent = provider.requests();
    assert_eq!(sent[0].head.header("authorization"), Some("Bearer sk-secret-upstream"));
    assert_eq!(sent[0].head.header("x-extra"), Some("secret-header-value"));
    running.signal("TERM");
    running.ended().await;
    seen.push_str(&running.printed.lock().unwrap());

    let bad = format!("{yaml}servr: 1\n");
    for environment in [&environment[..], &environment[1..], &[("UPSTREAM", "sk-secret-upstream with-space")]] {
        let ended = check_text(&bad, environment);
        assert_eq!(ended.code, Some(1));
        seen.push_str(&format!("{}{}", ended.out, ended.err));
    }
    for secret in SECRETS {
        let place = seen.find(secret).map(|at| seen[at.saturating_sub(300)..at + 40].to_owned());
        assert_eq!(place, None, "{secret}");
    }
}

#[tokio::test]
async fn the_access_line_is_whole_whatever_else_is_logged() {
    for level in ["warn", "off", "warn,access=info"] {
        let mut running = Running::start_quiet(&format!(
            "server: {{ port: {}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ level: '{level}' }} }}\n\
             backends:\n  - {{ name: up, type: simulated }}\n",
            free_port()
        ))
        .await;
        assert_eq!(running.chat("up", "hi").await.status, 200);
        running.signal("TERM");
        running.ended().await;
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let access = lines.iter().find(|line| line["target"] == "access" && line["request"]["path"] == "/v1/chat/completions");
        let request = &access.unwrap_or_else(|| panic!("{level}: {printed}"))["request"];
        assert_eq!((&request["status"], &request["outcome"]), (&json!(200), &json!("served")), "{level}: {printed}");
        assert!(request["request_id"].is_string() && request["backend"] == "up", "{level}: {printed}");
    }
}

#[tokio::test]
async fn every_request_has_one_access_line_unless_it_is_switched_off() {
    for (setting, expected) in [("", 1), (", accessLog: false", 0)] {
        let mut running = Running::start_quiet(&format!(
            "server: {{ port: {}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ format: json }}{setting} }}\n\
             auth: {{ keys: [ {{ name: app, key: sk-a-long-enough-key }} ] }}\nbackends:\n  - {{ name: up, type: simulated }}\n",
            free_port()
        ))
        .await;
        for (method, path) in
            [("GET", "/v1/models"), ("GET", "/v1/models/up"), ("POST", "/v1/chat/completions"), ("GET", "/v1/none")]
        {
            assert_eq!(running.send(method, path, &[], "").await.status, 401, "{path}");
        }
        running.signal("TERM");
        running.ended().await;
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for path in ["/v1/models", "/v1/models/up", "/v1/chat/completions", "/v1/none"] {
            let own = lines.iter().filter(|line| line["target"] == "access" && line["request"]["path"] == path);
            assert_eq!(own.count(), expected, "{path}: {printed}");
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_no_request_and_its_losses_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let yaml = format!(
        "server: {{ port: {port}, workers: 1 }}\ntelemetry: {{ logs: {{ format: json }} }}\nbackends:\n  - {{ name: up, type: simulated }}\n"
    );
    let file = written(&folder, &yaml);
    let mut command = stagedoor(&["--config", file.to_str().unwrap()], &[]);
    // Nobody reads what it prints.
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("it listens", || async { TcpStream::connect(address).await.is_ok() }).await;
    let running = Running { child, address, printed: Arc::default() };
    // More lines than wait to be written and than the pipe takes.
    let hundred = "HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut seen, mut answers) = (Vec::new(), 0);
    for _ in 0..120 {
        stream.write_all(hundred.as_bytes()).await.unwrap();
        while seen.windows(4).filter(|end| end == b"\r\n\r\n").count() < 100 {
            let read = timeout(PATIENCE, stream.read_buf(&mut seen)).await.expect("it answers").unwrap();
            assert!(read > 0, "it closed after {answers} answers");
        }
        answers += 100;
        assert_eq!(seen.windows(12).filter(|begin| begin == b"HTTP/1.1 200").count(), 100);
        seen.clear();
    }
    assert_eq!(running.chat("up", "hi").await.status, 200);
    let lost = async || {
        let metrics = running.send("GET", "/metrics", &[], "").await.text();
        let line = metrics.lines().find(|line| line.starts_with("stagedoor_log_lines_lost_total ")).map(str::to_owned);
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    eventually("losses are counted", || async { lost().await >= 1_000.0 }).await;
    let is_told = async || running.send("GET", "/admin/api/state", &[], "").await.text().contains("\"kind\":\"log-lost\"");
    eventually("the timeline tells of it", is_told).await;
}

#[tokio::test]
async fn the_log_for_people_is_plain_text_where_it_goes_to_a_file() {
    let port = free_port();
    let mut running = Running::start_quiet(&format!(
        "server: {{ port: {port}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ format: pretty }} }}\n\
         backends:\n  - {{ name: up, type: simulated }}\n",
    ))
    .await;
    assert_eq!(running.chat("up", "hi").await.status, 200);
    running.signal("TERM");
    running.ended().await;
    let printed = running.printed.lock().unwrap().clone();
    assert!(printed.contains("INFO") && printed.contains("outcome=\"served\""), "{printed}");
    assert!(!printed.contains('\u{1b}'), "{printed}");
}

#[tokio::test]
async fn each_act_of_an_operator_is_logged_with_who_and_what_came_of_it() {
    let mut running = Running::start(
        "server: { port: 0, workers: 1, drainGrace: 50ms }\nadmin: { token: the-admin-token, readToken: the-read-token }\n\
         backends:\n  - { name: up, type: simulated }\n  - { name: p, type: pool, backends: [{ name: up, weight: 2 }] }\n",
        &[],
    );
    let operator = ("authorization", "Bearer the-admin-token");
    let json = ("content-type", "application/json");
    let mut expected = Vec::new();
    for (method, path, body, status, act) in [
        ("POST", "backends/up/restart?wait=1", "", 200, "restart"),
        ("POST", "backends/up/drain?wait=1", "", 200, "drain"),
        // What is done already is done again, and told as well.
        ("POST", "backends/up/drain?wait=1", "", 200, "drain"),
        ("POST", "backends/up/resume", "", 200, "resume"),
        ("POST", "backends/up/reset", "", 200, "reset"),
        ("POST", "backends/up/weight?weight=3", "", 200, "weight"),
        ("DELETE", "requests/nobodys", "", 404, "cancel"),
        ("POST", "session", r#"{"token":"the-admin-token"}"#, 200, "login"),
    ] {
        let reply = running.send(method, &format!("/admin/api/{path}"), &[operator, json], body).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        if path.ends_with("wait=1") {
            // Written where it ends, whether somebody still waits for it or not.
            expected.push(format!("{act}-completed"));
        }
        expected.push(act.to_owned());
    }
    let reader = [("authorization", "Bearer the-read-token")];
    assert_eq!(running.send("POST", "/admin/api/backends/up/reset", &reader, "").await.status, 403);
    let guess = [("authorization", "Bearer a-guess")];
    assert_eq!(running.send("POST", "/admin/api/backends/up/reset", &guess, "").await.status, 401);
    running.signal("TERM");
    running.ended().await;
    let printed = running.printed.lock().unwrap().clone();
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let audit: Vec<&Value> = lines.iter().filter(|line| line["target"] == "audit").collect();
    let acts: Vec<_> = audit.iter().filter_map(|line| line["act"].as_str()).filter(|act| !act.ends_with("-requested")).collect();
    assert_eq!(acts, expected, "{printed}");
    for line in audit.iter().filter(|line| line["backend"] == "up") {
        assert!(line["by"].as_str().is_some_and(|by| by.contains("127.0.0.1")), "{line}");
        assert!(line["time"].is_string(), "{line}");
        let is_end = line["act"].as_str().is_some_and(|act| act.ends_with("-completed"));
        assert!(line["result"].as_str().is_some_and(|result| result.starts_with('{') || is_end), "{line}");
    }
    let refused: Vec<&&Value> = audit.iter().filter(|line| line["message"] == "an act was refused").collect();
    assert!(
        matches!(refused[..], [line] if line["path"] == "/admin/api/backends/up/reset" && line["by"].is_string()),
        "{refused:?}"
    );
    assert_eq!(audit.last().unwrap()["message"], "a wrong admin token was refused");
    assert!(
        !printed.contains("the-admin-token") && !printed.contains("the-read-token") && !printed.contains("a-guess"),
        "{printed}"
    );
}
