//! /admin: who may enter, what is told, the live stream, and acts that need no pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Gateway, Provider, Reply, backend, completion, eventually, read_chunk, read_head};

const GUARDED: &str =
    "admin: { token: the-admin-token, readToken: the-read-token }\nbackends:\n  - { name: up, type: simulated }\n";
const OPEN: &str = "backends:\n  - { name: up, type: simulated, config: { firstToken: 1ms, tokensPerSecond: 2000 } }\n";

type Headers<'a> = &'a [(&'a str, &'a str)];

async fn with(gateway: &Gateway, method: &str, path: &str, headers: Headers<'_>) -> Reply {
    gateway.send(method, path, headers, b"").await
}

async fn log_in(gateway: &Gateway, token: &str) -> Reply {
    let body = json!({ "token": token }).to_string();
    gateway.send("POST", "/admin/api/session", &[("content-type", "application/json")], body.as_bytes()).await
}

fn code(reply: &Reply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_admin_token_acts_the_read_token_looks_and_nobody_else_enters() {
    let gateway = Gateway::start(GUARDED);
    let admin = ("authorization", "Bearer the-admin-token");
    let reader = ("authorization", "Bearer the-read-token");
    for path in ["state", "history", "requests", "openapi.json", "session"] {
        let path = format!("/admin/api/{path}");
        assert_eq!(with(&gateway, "GET", &path, &[admin]).await.status, 200, "{path}");
        assert_eq!(with(&gateway, "GET", &path, &[reader]).await.status, 200, "{path}");
        let refused = with(&gateway, "GET", &path, &[]).await;
        assert_eq!((refused.status, code(&refused)), (401, "missing_admin_token".into()), "{path}");
        let refused = with(&gateway, "GET", &path, &[("authorization", "Bearer the-admin-tokem")]).await;
        assert_eq!((refused.status, code(&refused)), (401, "invalid_admin_token".into()), "{path}");
    }
    assert_eq!(with(&gateway, "GET", "/admin/api/events", &[]).await.status, 401);
    for (method, path) in [
        ("POST", "/admin/api/backends/up/restart"),
        ("POST", "/admin/api/backends/up/drain"),
        ("POST", "/admin/api/backends/up/resume"),
        ("POST", "/admin/api/backends/up/reset"),
        ("POST", "/admin/api/backends/up/weight?weight=1"),
        ("POST", "/admin/api/backends/up/test"),
        ("DELETE", "/admin/api/requests/x"),
    ] {
        assert_eq!(with(&gateway, method, path, &[]).await.status, 401, "{path}");
        let refused = with(&gateway, method, path, &[reader]).await;
        assert_eq!((refused.status, code(&refused)), (403, "read_only".into()), "{path}");
        assert_ne!(with(&gateway, method, path, &[admin]).await.status, 403, "{path}");
    }
    for query in ["wait=yes", "deadline=soon", "wait=1&wait=1", "now=1"] {
        let path = format!("/admin/api/backends/up/restart?{query}");
        assert_eq!(with(&gateway, "POST", &path, &[admin]).await.status, 400, "{query}");
    }
    let state = with(&gateway, "GET", "/admin/api/state", &[reader]).await.json();
    assert_eq!(
        state["backends"][0]["drained"], false,
        "what a reader asked for was not done, and what the operator did is undone"
    );
}

#[tokio::test]
async fn a_session_is_begun_by_a_token_kept_in_a_strict_cookie_and_ended() {
    let gateway = Gateway::start(GUARDED);
    let begun = log_in(&gateway, "the-admin-token").await;
    assert_eq!((begun.status, begun.json()), (200, json!({ "role": "operator", "way": "session" })));
    let cookie = begun.header("set-cookie").unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/admin", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("the-admin-token") && !cookie.contains("Secure"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let session = ("cookie", cookie.as_str());
    assert_eq!(with(&gateway, "GET", "/admin/api/session", &[session]).await.json()["role"], "operator");
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[session]).await.status, 200);
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &[session]).await.status, 200);
    // What another site makes a browser send.
    for foreign in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "null"),
    ] {
        let refused = with(&gateway, "POST", "/admin/api/backends/up/reset", &[session, foreign]).await;
        assert_eq!((refused.status, code(&refused)), (403, "cross_site".into()), "{foreign:?}");
        assert_eq!(gateway.send("POST", "/admin/api/session", &[foreign], br#"{"token":"the-admin-token"}"#).await.status, 403);
    }
    let own = [session, ("origin", "http://localhost"), ("sec-fetch-site", "same-origin")];
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &own).await.status, 200);
    let reading = log_in(&gateway, "the-read-token").await.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let refused = with(&gateway, "POST", "/admin/api/backends/up/reset", &[("cookie", &reading)]).await;
    assert_eq!((refused.status, code(&refused)), (403, "read_only".into()));
    // Beside the cookies of others, and of an earlier session.
    let (name, _) = reading.split_once('=').unwrap();
    let among = format!("theme=dark; {name}=of-another-application; {reading}; lang=de");
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("cookie", &among)]).await.status, 200);
    // A session of the reader is not made an operator's by its name.
    let forged = reading.replace("reader", "operator");
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("cookie", &forged)]).await.status, 401);
    let ended = with(&gateway, "DELETE", "/admin/api/session", &[session, ("connection", "close")]).await;
    assert_eq!(ended.status, 204);
    assert!(ended.header("set-cookie").unwrap().contains("Max-Age=0"));
    // A copy of the cookie is worth nothing either; the sessions of others go on.
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[session]).await.status, 401);
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("cookie", &reading)]).await.status, 200);
    for body in ["", "{", "{\"token\":1}", "{\"token\":\"x\",\"more\":1}", "[]"] {
        assert_eq!(gateway.send("POST", "/admin/api/session", &[], body.as_bytes()).await.status, 400, "{body}");
    }
    let over_tls =
        gateway.send("POST", "/admin/api/session", &[("x-forwarded-proto", "https")], br#"{"token":"the-admin-token"}"#).await;
    assert!(over_tls.header("set-cookie").unwrap().contains("Secure"));
}

#[tokio::test]
async fn since_when_a_backend_is_as_it_is_is_known_although_nobody_watched() {
    let gateway = Gateway::start(OPEN);
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let up = gateway.backend("up").await;
    assert_eq!(up["condition"], "well");
    assert!(up["since_seconds"].as_f64().unwrap() >= 2.0, "{}", up["since_seconds"]);
}

#[tokio::test]
async fn guessing_is_slowed_and_sessions_go_on() {
    let gateway = Gateway::start(GUARDED);
    let session = log_in(&gateway, "the-admin-token").await.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let begun = Instant::now();
    assert_eq!(log_in(&gateway, "guess").await.status, 401);
    assert!(begun.elapsed() >= Duration::from_millis(250), "a wrong token waits for its answer");
    for number in 0..9 {
        assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("authorization", "Bearer guess")]).await.status, 401, "{number}");
    }
    let refused = log_in(&gateway, "the-admin-token").await;
    assert_eq!((refused.status, code(&refused)), (429, "too_many_guesses".into()));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() <= 61);
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("cookie", &session)]).await.status, 200);
}

#[tokio::test]
async fn without_a_token_only_this_machine_enters_under_its_own_name() {
    let gateway = Gateway::start(OPEN);
    assert_eq!(gateway.get("/admin/api/session").await.json(), json!({ "role": "operator", "way": "loopback" }));
    for headers in [
        [("x-forwarded-for", "10.0.0.1")],
        [("forwarded", "for=10.0.0.1")],
        [("via", "1.1 proxy")],
        [("x-real-ip", "10.0.0.1")],
        [("cf-connecting-ip", "10.0.0.1")],
    ] {
        assert_eq!(with(&gateway, "GET", "/admin/api/state", &headers).await.status, 401, "{headers:?}");
    }
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET /admin/api/state HTTP/1.1\r\nhost: rebound.example\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 401);
    // A proxy that says nothing of itself speaks the old version to what is behind it.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET /admin/api/state HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.split(' ').nth(1) == Some("401"), "{answer}");
    let refused = with(&gateway, "POST", "/admin/api/backends/up/reset", &[("origin", "http://evil.example")]).await;
    assert_eq!((refused.status, code(&refused)), (403, "cross_site".into()));
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &[]).await.status, 200);
}

#[tokio::test]
async fn a_read_token_alone_leaves_acts_to_this_machine() {
    let gateway = Gateway::start(&format!("admin: {{ readToken: the-read-token }}\n{OPEN}"));
    let reader = [("authorization", "Bearer the-read-token")];
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &reader).await.status, 403);
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &[]).await.status, 200);
    assert_eq!(with(&gateway, "GET", "/admin/api/state", &[("authorization", "Bearer wrong")]).await.status, 401);
}

#[tokio::test]
async fn everything_below_admin_has_the_headers_of_a_page_that_trusts_nobody() {
    let gateway = Gateway::start(OPEN);
    for path in
        ["/admin", "/admin/", "/admin/page.css", "/admin/page.js", "/admin/api/state", "/admin/api/nothing", "/admin/nothing"]
    {
        let reply = gateway.get(path).await;
        let policy = reply.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';") && policy.contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(!policy.contains("unsafe"), "{path}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path} {name}");
        }
    }
    assert!(gateway.get("/admin").await.header("content-type").unwrap().starts_with("text/html"));
}

/// Reads the stream of events until one satisfies.
async fn event(stream: &mut TcpStream, mut is_wanted: impl FnMut(&str, &Value) -> bool) -> Value {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                let text = String::from_utf8(bytes.drain(..end + 2).collect()).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
                if let Ok(data) = serde_json::from_str::<Value>(&field("data: "))
                    && is_wanted(&field("event: "), &data)
                {
                    return data;
                }
            }
            bytes.extend(read_chunk(stream).await.expect("the stream goes on"));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the event comes")
}

#[tokio::test]
async fn the_stream_tells_the_state_the_requests_and_what_happens() {
    let gateway = Gateway::start(OPEN);
    let mut stream = gateway.open("GET", "/admin/api/events", &[], b"").await;
    let head = read_head(&mut stream).await;
    assert!(head.header("content-type").unwrap().starts_with("text/event-stream"));
    let first = event(&mut stream, |kind, _| kind == "state").await;
    assert_eq!((&first["backends"][0]["condition"], &first["verdict"]["level"]), (&json!("unknown"), &json!("unknown")));
    assert_eq!(gateway.chat("up", "hello").await.status, 200);
    let next = event(&mut stream, |kind, state| kind == "state" && state["verdict"]["requests"] == 1).await;
    assert_eq!((&next["backends"][0]["condition"], &next["verdict"]["level"]), (&json!("well"), &json!("serving")));
    assert!(next.get("events").is_none(), "each is an event of its own");
    let requests = event(&mut stream, |kind, requests| kind == "requests" && requests["recent"][0]["outcome"] == "served").await;
    assert_eq!(requests["in_flight"], json!([]));
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/reset", &[]).await.status, 200);
    let noted = event(&mut stream, |kind, _| kind == "journal").await;
    assert_eq!((&noted["kind"], &noted["backend"]), (&json!("act"), &json!("up")));
    assert!(noted["words"].as_str().unwrap().starts_with("reset by loopback from 127.0.0.1: closed 0"), "{noted}");
    // Who comes again is told only what is new.
    let seen = noted["id"].to_string();
    let mut again = gateway.open("GET", "/admin/api/events", &[("last-event-id", &seen)], b"").await;
    read_head(&mut again).await;
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/resume", &[]).await.status, 200);
    let noted = event(&mut again, |kind, _| kind == "journal").await;
    assert!(noted["words"].as_str().unwrap().starts_with("resume by"), "{noted}");
}

#[tokio::test]
async fn a_client_that_watches_and_never_reads_costs_the_others_nothing() {
    let gateway = Gateway::start(OPEN);
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(gateway.open("GET", "/admin/api/events", &[], b"").await);
    }
    let before = gateway.state().await["memory_bytes"].as_u64().unwrap();
    let mut reading = gateway.open("GET", "/admin/api/events", &[], b"").await;
    read_head(&mut reading).await;
    for number in 0..30 {
        assert_eq!(gateway.chat("up", "hello").await.status, 200, "{number}");
    }
    // Ten seconds of states that nobody takes.
    let mut states = 0;
    event(&mut reading, |kind, _| {
        states += u64::from(kind == "state");
        states == 6
    })
    .await;
    let after = gateway.state().await["memory_bytes"].as_u64().unwrap();
    assert!(after < before + (16 << 20), "{before} -> {after}");
    drop(stuck);
    eventually("the connections are closed", || async { gateway.state().await["connections"].as_u64().unwrap() <= 4 }).await;
}

#[tokio::test]
async fn a_backend_whose_latest_tries_have_all_failed_is_not_well_whatever_it_did_before() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let provider = Provider::start(move |_, mut wire| {
        let status = if failing.load(Ordering::SeqCst) { 500 } else { 200 };
        async move {
            wire.json(status, &completion("hello")).await;
            Some(wire)
        }
    })
    .await;
    let patient = "maxRetries: 0, circuit: { failures: 100, failureShare: 1.0 }";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), patient)));
    for number in 0..23 {
        fails.store(number >= 20, Ordering::SeqCst);
        gateway.chat("up", "hi").await;
    }
    eventually("it ails", || async { gateway.backend("up").await["condition"] == "ailing" }).await;
    let up = gateway.backend("up").await;
    assert_eq!(up["reason"], "its last 3 tries failed: it answers with errors (server_error)", "{up}");
    let words = gateway.state().await["verdict"]["words"].as_str().unwrap().to_owned();
    assert!(words.contains("3 of 23 requests failed") && words.contains("Most often: it answers with errors"), "{words}");
}

#[tokio::test]
async fn requests_that_find_no_room_are_told_as_such() {
    let gateway = Gateway::start(
        "backends:\n  - { name: up, type: simulated, config: { firstToken: 20s, maxConcurrent: 1, maxQueue: 0 } }\n",
    );
    let _held = gateway.open_stream("up", "hi").await;
    eventually("it is full", || async { gateway.backend("up").await["permits"]["used"] == 1 }).await;
    for _ in 0..3 {
        assert_eq!(gateway.chat("up", "hi").await.status, 503);
    }
    let words = gateway.state().await["verdict"]["words"].as_str().unwrap().to_owned();
    assert!(words.contains("Most often: no room") && words.contains("maxConcurrent"), "{words}");
    eventually("the timeline tells of all of them at once", || async {
        gateway.state().await["events"].to_string().contains("3 requests were refused for want of room")
    })
    .await;
}

#[tokio::test]
async fn history_is_told_in_steps_for_every_backend() {
    let gateway = Gateway::start(OPEN);
    let history = gateway.get("/admin/api/history").await.json();
    assert_eq!((&history["step_seconds"], &history["backends"][0]["name"]), (&json!(30.0), &json!("up")));
    assert_eq!(history["steps"], 0);
}

#[tokio::test]
async fn a_test_prompt_reaches_a_backend_whatever_is_known_of_it() {
    let provider = Provider::saying("five words and no more").await;
    let ill = Provider::start(|_, mut wire| async move {
        wire.json(401, &json!({ "error": { "message": "key sk-upstream-secret refused", "type": "t", "code": null } })).await;
        Some(wire)
    })
    .await;
    let gateway =
        Gateway::start(&format!("backends:\n{}{}", backend("up", &provider.endpoint(), ""), backend("ill", &ill.endpoint(), "")));
    let test = async |name: &str, body: &str| {
        gateway
            .send("POST", &format!("/admin/api/backends/{name}/test"), &[("content-type", "application/json")], body.as_bytes())
            .await
    };
    let told = test("up", "").await.json();
    assert_eq!(
        (&told["outcome"], &told["text"], &told["status"]),
        (&json!("served"), &json!("five words and no more"), &json!(200))
    );
    let tried = &told["tries"][0];
    let times: Vec<f64> = ["began_seconds", "head_seconds", "first_content_seconds", "ended_seconds"]
        .iter()
        .map(|at| tried[*at].as_f64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(provider.received.lock().unwrap()[0].json()["messages"][0]["content"], "Say hello in five words.");
    let whole = test("up", r#"{"prompt":"Why?","stream":false,"model":"m-2"}"#).await.json();
    assert_eq!((&whole["text"], &whole["tokens_per_second"]), (&json!("five words and no more"), &Value::Null));
    assert_eq!(provider.received.lock().unwrap()[1].json()["messages"][0]["content"], "Why?");
    // Drained, it is asked by nobody else.
    assert_eq!(with(&gateway, "POST", "/admin/api/backends/up/drain", &[]).await.status, 200);
    assert_eq!(gateway.chat("up", "hi").await.status, 503);
    assert_eq!(test("up", "").await.json()["outcome"], "served");
    // A credential that is refused opens the circuit for minutes; an operator who has mended it does not wait for that.
    assert_eq!(gateway.chat("ill", "hi").await.status, 502);
    let asked = ill.received.lock().unwrap().len();
    let failed = test("ill", "").await.json();
    assert_eq!((&failed["outcome"], &failed["status"]), (&json!("failed"), &json!(502)));
    assert!(failed["error"].as_str().unwrap().contains("refused the configured credential"), "{failed}");
    assert!(!failed.to_string().contains("sk-upstream"), "{failed}");
    assert!(ill.received.lock().unwrap().len() > asked, "it was asked");
    for body in ["{", "[]", r#"{"prompt":1}"#, r#"{"shout":true}"#] {
        let refused = test("up", body).await;
        assert_eq!((refused.status, code(&refused)), (400, "invalid_value".into()), "{body}");
    }
    assert_eq!(test("nobody", "").await.status, 404);
    let events = gateway.state().await["events"].to_string();
    assert!(
        events.contains("test-requested by loopback") && events.contains("test by loopback") && !events.contains("five words"),
        "{events}"
    );
}

#[tokio::test]
async fn the_state_says_what_operators_ask_first() {
    let provider = Provider::start(|_, mut wire| async move {
        let headers = [
            ("x-ratelimit-remaining-requests", "99"),
            ("x-ratelimit-limit-requests", "100"),
            ("x-ratelimit-remaining-tokens", "7000"),
        ];
        wire.reply(200, "application/json", &headers, crate::support::completion("hello").to_string().as_bytes()).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}  - {{ name: other, type: simulated }}\n  - {{ name: p, type: pool, strategy: weighted, backends: [ {{ name: up, weight: 3 }}, {{ name: other, weight: 1 }} ] }}\n\
         routes:\n  - {{ name: chat, path: /v1/chat/completions, backend: up }}\n",
        backend("up", &provider.endpoint(), "").replace("sk-upstream-secret", "sk-abcdefghijklmnopqrstuv-WXYZ")
    ));
    for _ in 0..3 {
        assert_eq!(gateway.chat("x", "hi").await.status, 200);
    }
    assert_eq!(gateway.post("/v1/chat/completions", &json!({ "model": 1 })).await.status, 400);
    assert_eq!(gateway.get("/nowhere").await.status, 404);
    let state = gateway.state().await;
    let up = &state["backends"][0];
    assert_eq!((&up["key"], &up["host"], &up["connections"]), (&json!("WXYZ"), &json!("127.0.0.1"), &json!(1)));
    assert!(!state.to_string().contains("sk-abcdef"));
    assert_eq!((&up["headroom"]["requests_left"], &up["headroom"]["requests_limit"]), (&json!(99), &json!(100)));
    assert_eq!((&up["headroom"]["tokens_left"], &up["headroom"]["tokens_limit"]), (&json!(7000), &Value::Null));
    assert_eq!(up["shares"], json!([{ "pool": "p", "now": null, "expected": 0.75, "weight": 3.0 }]));
    assert_eq!((&up["recent"]["attempts"], &up["totals"]["served"]), (&json!(3), &json!(3)));
    let routes = &state["routes"];
    assert_eq!((&routes[0]["name"], &routes[0]["requests"], &routes[0]["client_errors"]), (&Value::Null, &json!(1), &json!(1)));
    assert_eq!(
        (&routes[1]["name"], &routes[1]["requests"], &routes[1]["outcomes"]["served"]),
        (&json!("chat"), &json!(4), &json!(3))
    );
    assert_eq!(routes[1]["failures"], json!({ "caller": 1 }));
    // What clients are to mend is no error of the gateway's.
    assert_eq!((&state["verdict"]["requests"], &state["verdict"]["failed"]), (&json!(3), &json!(0)));
    assert_eq!(state["configuration"]["sha256"].as_str().unwrap().len(), 64);
    assert!(state["memory_bytes"].as_u64().unwrap() > 1 << 20);
}

#[tokio::test]
async fn what_clients_are_to_mend_makes_no_backend_ill() {
    let provider = Provider::start(|request, mut wire| async move {
        let status = if request.json()["messages"][0]["content"] == "wrong" { 400 } else { 200 };
        let no = json!({ "error": { "message": "no", "type": "invalid_request_error", "code": null } });
        wire.json(status, if status == 400 { &no } else { &*Box::leak(Box::new(crate::support::completion("x"))) }).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    for _ in 0..6 {
        assert_eq!(gateway.chat("up", "wrong").await.status, 400);
    }
    let state = gateway.state().await;
    assert_eq!(
        (&state["backends"][0]["condition"], &state["verdict"]["level"]),
        (&json!("unknown"), &json!("unknown")),
        "{state}"
    );
    assert_eq!(state["backends"][0]["recent"]["failures"], json!({ "caller": 6 }));
    assert_eq!(gateway.chat("up", "right").await.status, 200);
    let state = gateway.state().await;
    assert_eq!((&state["backends"][0]["condition"], &state["verdict"]["level"]), (&json!("well"), &json!("serving")), "{state}");
}

#[tokio::test]
async fn clients_that_give_up_show_although_nothing_has_failed() {
    let provider = Provider::start(|request, mut wire| async move {
        if request.json()["messages"][0]["content"] == "hang" {
            wire.await_close().await;
            return None;
        }
        wire.json(200, &crate::support::completion("x")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    for _ in 0..4 {
        assert_eq!(gateway.chat("up", "quick").await.status, 200);
    }
    for _ in 0..4 {
        let left = tokio::time::timeout(std::time::Duration::from_millis(100), gateway.chat("up", "hang")).await;
        assert!(left.is_err());
    }
    crate::support::eventually("all have left", || async { gateway.state().await["verdict"]["given_up"] == 4 }).await;
    let state = gateway.state().await;
    let (verdict, up) = (&state["verdict"], &state["backends"][0]);
    assert_eq!(
        (&verdict["level"], &verdict["requests"], &verdict["failed"]),
        (&json!("failing"), &json!(4), &json!(0)),
        "{verdict}"
    );
    let words = verdict["words"].as_str().unwrap();
    assert!(words.starts_with("Clients give up waiting.") && words.contains("4 clients left before any content"), "{words}");
    assert_eq!((&up["condition"], &state["routes"][0]["given_up"]), (&json!("ailing"), &json!(4)), "{up}");
    assert!(up["reason"].as_str().unwrap().contains("the last 4 requests were given up"), "{up}");
    assert_eq!(gateway.chat("up", "quick").await.status, 200);
    assert_eq!(gateway.state().await["backends"][0]["condition"], "well");
}

#[tokio::test]
async fn a_backend_that_still_streams_its_first_answers_is_known_and_has_its_share() {
    let gateway = Gateway::start(
        "server: { port: 0, workers: 1 }\nbackends:\n  - { name: long, type: simulated, config: { firstToken: 1ms, tokensPerSecond: 1, tokens: 100 } }\n  \
         - { name: mute, type: simulated, config: { firstToken: 100s } }\n  \
         - { name: p, type: pool, strategy: round-robin, backends: [ { name: long }, { name: mute } ] }\n",
    );
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(gateway.open_stream("p", "hi").await);
    }
    crate::support::eventually("all are under way", || async {
        let state = gateway.state().await;
        state["backends"][0]["condition"] == "well" && state["backends"][1]["in_flight"] == 2
    })
    .await;
    let state = gateway.state().await;
    for backend in 0..2 {
        assert_eq!(state["backends"][backend]["shares"][0]["now"], 0.5, "{state}");
    }
    assert_eq!(state["backends"][1]["reason"], "2 requests in flight, and no answer yet");
}

#[tokio::test]
async fn a_backend_that_would_be_asked_next_is_not_called_down() {
    let provider = Provider::start(|_, mut wire| async move {
        let headers = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-limit-requests", "100")];
        let body = json!({ "error": { "message": "slow down", "type": "t", "code": null } });
        wire.reply(429, "application/json", &headers, body.to_string().as_bytes()).await;
        Some(wire)
    })
    .await;
    let more = "maxRetries: 0, circuit: { coolDown: 100ms, rateLimited: 100ms }";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), more)));
    assert_eq!(gateway.chat("up", "x").await.status, 429);
    // A refusal says most about the limits.
    assert_eq!(gateway.backend("up").await["headroom"]["requests_left"], 0);
    eventually("its cool-down is over", || async { gateway.backend("up").await["condition"] == "half-open" }).await;
    let verdict = gateway.state().await["verdict"].clone();
    assert_eq!(verdict["backends_down"], 0, "{verdict}");
    assert_ne!(verdict["level"], "down", "{verdict}");
}

#[tokio::test]
async fn a_story_keeps_no_more_of_a_clients_field_names_than_a_header_shows() {
    let gateway =
        Gateway::start("backends:\n  - { name: up, type: simulated, config: { dialect: anthropic, firstToken: 1ms } }\n");
    let mut body = json!({ "model": "up", "messages": [{ "role": "user", "content": "hi" }], "odd": 1 });
    body["x".repeat(100_000)] = json!(1);
    let headers = [("content-type", "application/json"), ("x-request-id", "long-names")];
    let reply = gateway.send("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).await;
    assert_eq!((reply.status, reply.header("x-stagedoor-dropped")), (200, Some("odd")));
    eventually("it has ended", || async { gateway.get("/admin/api/requests/long-names").await.json()["state"] == "ended" }).await;
    let story = gateway.get("/admin/api/requests/long-names").await;
    assert_eq!(story.json()["dropped"], json!(["odd"]));
    assert!(story.body.len() < 10_000);
}

#[tokio::test]
async fn tokens_must_be_ones_that_can_be_sent() {
    for token in ["with space", "t\u{e4}st"] {
        let text = format!("admin: {{ token: \"{token}\" }}\nbackends: [{{ name: s, type: simulated }}]");
        let error = stagedoor::settings::from_text("test", &text, &std::collections::BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("admin.token") && !error.contains(token), "{error}");
    }
}

#[tokio::test]
async fn tokens_must_differ_for_looking_and_acting() {
    let text = "admin: { token: same, readToken: same }\nbackends: [{ name: s, type: simulated }]";
    let error = stagedoor::settings::from_text("test", text, &std::collections::BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("admin.readToken"), "{error}");
}

#[tokio::test]
async fn a_request_in_flight_is_told_with_what_it_has_got_so_far() {
    let gateway =
        Gateway::start("backends:\n  - { name: up, type: simulated, config: { firstToken: 1ms, tokensPerSecond: 20 } }\n");
    let mut stream = gateway.open_stream("up", &"many words ".repeat(50)).await;
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).await.unwrap();
    eventually("the request is told", || async {
        let told = gateway.get("/admin/api/requests").await.json()["in_flight"][0].clone();
        told["phase"] == "streaming"
            && told["backend"] == "up"
            && told["pool"] == "up"
            && told["model"] == "up"
            && told["attempt"] == 1
            && told["content_events"].as_u64().is_some_and(|events| events > 3)
            && told["content_events_per_second"].as_f64().is_some_and(|pace| pace > 1.0)
    })
    .await;
}
