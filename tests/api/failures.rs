//! The failure table: what is tried again and where, and what the client is told in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::streams::{assert_broken_after, one, pair};
use crate::support::{Gateway, Provider, Reply, Wire, backend, chat_body, completion, eventually, word_event};

/// A provider that answers every request alike.
async fn answering(status: u16, headers: &'static [(&str, &str)], body: &'static str) -> Provider {
    Provider::start(move |_, mut wire| async move {
        wire.reply(status, "application/json", headers, body.as_bytes()).await;
        Some(wire)
    })
    .await
}

struct Row {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    /// Requests the backend gets with `maxRetries: 2`.
    tries: usize,
    /// Whether another member is asked.
    next: bool,
    /// Status and code that the client sees.
    seen: (u16, &'static str),
    /// Whether the client is told not to retry.
    last: bool,
}

const fn row(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    tries: usize,
    next: bool,
    seen: (u16, &'static str),
    last: bool,
) -> Row {
    Row { status, headers, body, tries, next, seen, last }
}

const TOO_LONG: &str =
    r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
const NO_MODEL: &str =
    r#"{"error":{"message":"no such model","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#;
const MISTRAL_MODEL: &str =
    r#"{"object":"error","message":"Invalid model: m","type":"invalid_model","param":null,"code":"1500"}"#;
const NO_MONEY: &str = r#"{"error":{"message":"pay","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
const SLOW_DOWN: &str = r#"{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
const FILTERED: &str = r#"{"error":{"message":"filtered","type":null,"param":"prompt","code":"content_filter","status":400}}"#;

const TABLE: &[Row] = &[
    row(400, &[], TOO_LONG, 1, false, (400, "context_length_exceeded"), true),
    row(400, &[], FILTERED, 1, false, (400, "content_filter"), true),
    row(413, &[], r#"{"error":{"message":"big"}}"#, 1, false, (413, ""), true),
    row(415, &[], r#"{"error":{"message":"odd"}}"#, 1, false, (415, ""), true),
    row(422, &[], r#"{"detail":[{"loc":["body","n"],"msg":"wrong"}]}"#, 1, false, (422, ""), true),
    row(404, &[], NO_MODEL, 1, true, (404, "model_not_found"), true),
    row(400, &[], MISTRAL_MODEL, 1, true, (404, "model_not_found"), true),
    row(401, &[], r#"{"error":{"message":"who?"}}"#, 1, true, (502, "upstream_credential"), true),
    row(403, &[], r#"{"error":{"message":"no"}}"#, 1, true, (502, "upstream_credential"), true),
    row(402, &[], r#"{"error":{"message":"pay"}}"#, 1, true, (429, "insufficient_quota"), true),
    row(429, &[], NO_MONEY, 1, true, (429, "insufficient_quota"), true),
    row(429, &[], SLOW_DOWN, 1, true, (429, "rate_limit_exceeded"), false),
    row(429, &[("retry-after", "30")], SLOW_DOWN, 1, true, (429, "rate_limit_exceeded"), false),
    row(429, &[("retry-after-ms", "20")], SLOW_DOWN, 3, true, (429, "rate_limit_exceeded"), false),
    row(503, &[], r#"{"error":{"message":"busy"}}"#, 3, true, (503, "upstream_overloaded"), false),
    row(529, &[], r#"{"error":{"message":"busy"}}"#, 3, true, (503, "upstream_overloaded"), false),
    row(503, &[("retry-after", "30")], r#"{"error":{"message":"busy"}}"#, 1, true, (503, "upstream_overloaded"), false),
    row(500, &[], r#"{"error":{"message":"boom"}}"#, 3, true, (502, "upstream_error"), false),
    row(502, &[], "<html>bad gateway</html>", 3, true, (502, "upstream_error"), false),
    row(504, &[], "", 3, true, (504, "upstream_error"), false),
    row(200, &[], "hello", 1, true, (502, "upstream_malformed"), false),
    row(302, &[("location", "/elsewhere")], "", 1, true, (502, "upstream_malformed"), false),
];

#[tokio::test]
async fn every_class_of_failure_is_retried_and_told_as_the_table_says() {
    for row in TABLE {
        let case = format!("{} {:?} {}", row.status, row.headers, row.body);
        for stream in [false, true] {
            let provider = answering(row.status, row.headers, row.body).await;
            let gateway = one(&provider, "maxRetries: 2");
            let reply = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
            assert_eq!((reply.status, reply.code().as_str()), row.seen, "{case}: {}", reply.text());
            assert_eq!(provider.requests().len(), row.tries, "{case}");
            assert_eq!(reply.header("x-should-retry"), row.last.then_some("false"), "{case}");
            assert_eq!(reply.header("x-stagedoor-backend"), Some("up"), "{case}");
            let error = &reply.json()["error"];
            assert!(error["message"].is_string() && error["type"].is_string(), "{case}: {error}");
            assert!(error.get("param").is_some() && error.get("code").is_some(), "{case}: {error}");
            if row.headers == [("retry-after", "30")] {
                assert_eq!(reply.header("retry-after"), Some("30"), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn another_member_is_asked_as_the_table_says() {
    for row in TABLE {
        let case = format!("{} {:?} {}", row.status, row.headers, row.body);
        let first = answering(row.status, row.headers, row.body).await;
        let second = Provider::saying("from the second").await;
        let reply = pair(&first, &second, "maxRetries: 0").chat("pool", "hi").await;
        assert_eq!(first.requests().len(), 1, "{case}");
        assert_eq!(second.requests().len(), usize::from(row.next), "{case}");
        let expected = if row.next { 200 } else { row.seen.0 };
        assert_eq!(reply.status, expected, "{case}: {}", reply.text());
    }
}

#[tokio::test]
async fn the_callers_mistake_keeps_its_words_type_and_param() {
    let provider = answering(400, &[], TOO_LONG).await;
    let reply = one(&provider, "").chat("up", "hi").await;
    let error = &reply.json()["error"];
    assert_eq!(error["message"], "too long");
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"], "messages");
}

#[tokio::test]
async fn the_most_telling_error_wins_in_whatever_order_it_came() {
    const BOOM: &str = r#"{"error":{"message":"boom"}}"#;
    let pairs = [
        ((500, BOOM), (429, SLOW_DOWN), 429, "rate_limit_exceeded"),
        ((401, BOOM), (500, BOOM), 502, "upstream_error"),
        ((404, NO_MODEL), (503, BOOM), 503, "upstream_overloaded"),
        ((401, BOOM), (429, SLOW_DOWN), 429, "rate_limit_exceeded"),
        ((404, NO_MODEL), (401, BOOM), 502, "upstream_credential"),
        ((429, NO_MONEY), (429, SLOW_DOWN), 429, "rate_limit_exceeded"),
        ((200, "hello"), (503, BOOM), 503, "upstream_overloaded"),
        ((500, BOOM), (400, TOO_LONG), 400, "context_length_exceeded"),
    ];
    for ((one, first), (two, second), status, code) in pairs {
        let first = answering(one, &[], first).await;
        let second = answering(two, &[], second).await;
        let reply = pair(&first, &second, "maxRetries: 0").chat("pool", "hi").await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{one} then {two}: {}", reply.text());
        // The caller's mistake would end it at the first member.
        if code != "context_length_exceeded" {
            let reply = pair(&second, &first, "maxRetries: 0").chat("pool", "hi").await;
            assert_eq!((reply.status, reply.code().as_str()), (status, code), "{two} then {one}: {}", reply.text());
        }
    }
}

/// A provider that refuses so many requests, then answers; with the time of each request.
async fn recovering(
    refusals: usize,
    status: u16,
    headers: &'static [(&str, &str)],
) -> (Provider, Arc<std::sync::Mutex<Vec<Instant>>>) {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&times);
    let provider = Provider::start(move |_, mut wire| {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(Instant::now());
            log.len()
        };
        async move {
            if number <= refusals {
                wire.reply(status, "application/json", headers, br#"{"error":{"message":"later"}}"#).await;
            } else {
                wire.json(200, &completion("at last")).await;
            }
            Some(wire)
        }
    })
    .await;
    (provider, times)
}

#[tokio::test]
async fn a_short_retry_after_is_waited_for() {
    const MILLIS: &[(&str, &str)] = &[("retry-after-ms", "400")];
    const SECONDS: &[(&str, &str)] = &[("retry-after", "1")];
    for (status, headers, wait) in [(429, MILLIS, 400), (503, MILLIS, 400), (500, MILLIS, 400), (429, SECONDS, 1_000)] {
        let (provider, times) = recovering(1, status, headers).await;
        let reply = one(&provider, "").chat("up", "hi").await;
        assert_eq!(reply.status, 200, "{status} {headers:?}: {}", reply.text());
        assert_eq!(reply.header("x-stagedoor-attempts"), Some("2"));
        let times = times.lock().unwrap().clone();
        let waited = (times[1] - times[0]).as_millis();
        assert!((wait..wait + 1_500).contains(&waited), "{status} {headers:?}: {waited} ms");
    }
}

#[tokio::test]
async fn a_backend_that_recovers_within_its_retries_serves() {
    let (provider, _) = recovering(2, 500, &[]).await;
    let gateway = one(&provider, "");
    let reply = gateway.chat("up", "hi").await;
    assert_eq!((reply.status, reply.header("x-stagedoor-attempts")), (200, Some("3")));
    eventually("it counts as absorbed", || async {
        let state = gateway.state().await;
        state["pools"].as_array().unwrap().iter().any(|pool| pool["name"] == "up" && pool["absorbed"] == 1)
    })
    .await;
}

const SOON: &[(&str, &str)] = &[("retry-after-ms", "1")];
const BUSY: &str = r#"{"error":{"message":"busy"}}"#;

#[tokio::test]
async fn tries_are_bounded_by_max_retries_and_by_max_attempts() {
    for (retries, expected) in [(0, 1), (1, 2), (4, 5), (12, 6)] {
        let provider = answering(503, SOON, BUSY).await;
        let reply = one(&provider, &format!("maxRetries: {retries}")).chat("up", "hi").await;
        assert_eq!(reply.status, 503);
        assert_eq!(provider.requests().len(), expected, "maxRetries: {retries}");
    }
    for (attempts, expected) in [(1, (1, 0)), (2, (2, 0)), (3, (2, 1)), (4, (2, 2)), (6, (2, 2))] {
        let first = answering(503, SOON, BUSY).await;
        let second = answering(503, SOON, BUSY).await;
        let gateway = Gateway::start(&format!(
            "backends:\n{}{}  - {{ name: pool, type: pool, maxAttempts: {attempts}, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
            backend("first", &first.endpoint(), "maxRetries: 1"),
            backend("second", &second.endpoint(), "maxRetries: 1"),
        ));
        assert_eq!(gateway.chat("pool", "hi").await.status, 503);
        assert_eq!((first.requests().len(), second.requests().len()), expected, "maxAttempts: {attempts}");
    }
}

#[tokio::test]
async fn a_pool_without_fallback_asks_one_member() {
    let first = answering(503, SOON, BUSY).await;
    let second = Provider::saying("from the second").await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, fallback: false, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        backend("first", &first.endpoint(), "maxRetries: 0"),
        backend("second", &second.endpoint(), ""),
    ));
    assert_eq!(gateway.chat("pool", "hi").await.status, 503);
    assert_eq!(second.requests().len(), 0);
}

async fn never_answers(_: crate::support::Received, mut wire: Wire) -> Option<Wire> {
    wire.await_close().await;
    None
}

/// Time that something took, with what it gave.
async fn timed<T>(doing: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (doing.await, start.elapsed())
}

fn assert_about(expected: u64, took: Duration, case: &str) {
    let took = took.as_millis();
    assert!((u128::from(expected) * 9 / 10..u128::from(expected) + 2_000).contains(&took), "{case}: {took} ms");
}

#[tokio::test]
async fn a_provider_that_says_that_asking_again_cannot_help_is_not_asked_again() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.reply(500, "application/json", &[("x-should-retry", "false")], br#"{"error":{"message":"no"}}"#).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 3")));
    assert_eq!(gateway.chat("up", "hi").await.status, 502);
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test]
async fn the_deadline_of_a_pool_or_route_ends_a_request_with_504() {
    let silent = Provider::start(never_answers).await;
    let ready = Provider::saying("too late").await;
    let backends = format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, deadline: 400ms, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        backend("first", &silent.endpoint(), ""),
        backend("second", &ready.endpoint(), ""),
    );
    for stream in [false, true] {
        let gateway = Gateway::start(&backends);
        let (reply, took) = timed(gateway.post("/v1/chat/completions", &chat_body("pool", "hi", stream))).await;
        assert_eq!(reply.status, 504, "{}", reply.text());
        assert_about(400, took, "pool");
        assert_eq!((reply.header("x-stagedoor-backend"), reply.header("x-stagedoor-attempts")), (Some("first"), Some("1")));
    }
    let routes = "routes:\n  - { name: chat, path: /v1/chat/completions, backend: first, deadline: 300ms }\n";
    let gateway = Gateway::start(&format!("{backends}{routes}"));
    let (reply, took) = timed(gateway.chat("first", "hi")).await;
    assert_eq!(reply.status, 504, "{}", reply.text());
    assert_about(300, took, "route");
    assert_eq!(ready.requests().len(), 0, "a member was asked after the deadline");
}

#[tokio::test]
async fn the_deadline_counts_while_a_request_waits_for_a_permit() {
    let silent = Provider::start(never_answers).await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: chat, path: /v1/chat/completions, backend: up, deadline: 500ms }}\n",
        backend("up", &silent.endpoint(), "maxConcurrent: 1"),
    ));
    let ((first, second), took) = timed(async { tokio::join!(gateway.chat("up", "hi"), gateway.chat("up", "hi")) }).await;
    assert_eq!((first.status, second.status), (504, 504));
    assert_about(500, took, "queue");
    assert_eq!(silent.requests().len(), 1);
}

#[tokio::test]
async fn the_deadline_bounds_retries() {
    let provider = answering(503, &[("retry-after-ms", "300")], BUSY).await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: chat, path: /v1/chat/completions, backend: up, deadline: 700ms }}\n",
        backend("up", &provider.endpoint(), "maxRetries: 20"),
    ));
    let (reply, took) = timed(gateway.chat("up", "hi")).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!((2..=3).contains(&provider.requests().len()));
}

#[tokio::test]
async fn each_phase_has_its_own_limit() {
    let cases = [
        ("timeouts: { head: 300ms }", false, "no head", "timeout_head"),
        ("timeout: 300ms", false, "no head", "timeout_head"),
        ("timeout: 300ms", true, "no head", "timeout_head"),
        ("timeout: 300ms", false, "half a body", "timeout_total"),
        ("timeout: 300ms", true, "no content", "timeout_first_content"),
        ("timeouts: { firstContent: 300ms }", true, "no content", "timeout_first_content"),
    ];
    for (limits, stream, how, class) in cases {
        let provider = Provider::start(move |_, mut wire| async move {
            match how {
                "half a body" => drop(
                    wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"id\"").await,
                ),
                "no content" => drop(wire.begin_stream().await),
                _ => {}
            }
            wire.await_close().await;
            None
        })
        .await;
        let gateway = one(&provider, limits);
        let (reply, took) = timed(gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream))).await;
        assert_eq!((reply.status, reply.code().as_str()), (504, "upstream_timeout"), "{limits}: {}", reply.text());
        assert_about(300, took, limits);
        assert_eq!(provider.requests().len(), 1, "{limits}: a timeout is not tried again here");
        eventually(class, || async { gateway.member("up", "up").await["failures"][class] == 1 }).await;
        let ready = Provider::saying("from the second").await;
        let reply = pair(&provider, &ready, limits).post("/v1/chat/completions", &chat_body("pool", "hi", stream)).await;
        assert_eq!(reply.status, 200, "{limits}: {}", reply.text());
    }
}

/// A port whose queue of connections is full, so that a further one is neither accepted nor refused.
async fn full_port() -> (std::net::SocketAddr, Vec<TcpStream>, tokio::net::TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        held.push(connected.unwrap());
        assert!(held.len() < 16, "the queue never fills");
    }
    (address, held, listener)
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_a_timeout_and_tried_again() {
    let (address, _held, _listener) = full_port().await;
    let endpoint = format!("http://{address}/v1");
    for (retries, least) in [(0, 300), (1, 600)] {
        let limits = format!("timeouts: {{ connect: 300ms }}, maxRetries: {retries}");
        let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &endpoint, &limits)));
        let (reply, took) = timed(gateway.chat("up", "hi")).await;
        assert_eq!((reply.status, reply.code().as_str()), (504, "upstream_timeout"), "{}", reply.text());
        assert_about(least, took, &limits);
        assert_eq!(gateway.member("up", "up").await["failures"]["timeout_connect"], retries + 1);
    }
    let second = Provider::saying("from the second").await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        backend("first", &endpoint, "timeouts: { connect: 300ms }, maxRetries: 0"),
        backend("second", &second.endpoint(), ""),
    ));
    assert_eq!(gateway.chat("pool", "hi").await.status, 200);
}

/// An address where nobody listens.
async fn closed_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_refused_connection_is_an_error_or_served_by_the_next_member() {
    let endpoint = closed_port().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &endpoint, "")));
    let (reply, took) = timed(gateway.chat("up", "hi")).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{}", reply.text());
    assert!(!reply.text().contains("127.0.0.1"), "an address of ours is shown: {}", reply.text());
    assert!(took < Duration::from_secs(2), "{took:?}");
    let second = Provider::saying("from the second").await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        backend("first", &endpoint, ""),
        backend("second", &second.endpoint(), ""),
    ));
    for stream in [false, true] {
        let reply = gateway.post("/v1/chat/completions", &chat_body("pool", "hi", stream)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

#[tokio::test]
async fn the_retry_budget_bounds_retries_at_a_dead_backend() {
    let provider = answering(503, SOON, BUSY).await;
    let gateway = one(&provider, "maxRetries: 5");
    assert_eq!(gateway.chat("up", "hi").await.status, 503);
    assert_eq!(provider.requests().len(), 6, "the floor covers the first request's retries");
    let start = Instant::now();
    for _ in 0..60 {
        assert_eq!(gateway.chat("up", "hi").await.status, 503);
    }
    let most = 61.0 + 61.0 * 0.2 + 10.0 + start.elapsed().as_secs_f64() + 1.0;
    let requests = provider.requests().len();
    assert!((requests as f64) < most, "{requests} requests, at most {most}");
}

/// A provider that answers the first request on each connection, and the next one in this way.
async fn forgetful(how: &'static str) -> Provider {
    Provider::start(move |request, mut wire| async move {
        let stream = request.json()["stream"] == true;
        if stream {
            wire.begin_stream().await;
            wire.chunk(&format!("{}{}data: [DONE]\n\n", word_event("hello"), crate::support::finish_event())).await;
            wire.end_chunks().await;
        } else {
            wire.json(200, &completion("hello")).await;
        }
        match how {
            "closed at once" => return None,
            "reset at once" => wire.0.set_zero_linger().unwrap(),
            _ => {
                // The next request on this connection: its first byte is all that is taken.
                let mut byte = [0];
                wire.0.peek(&mut byte).await.ok();
                if how == "reset on the next request" {
                    wire.0.set_zero_linger().unwrap();
                }
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_stale_pooled_connection_never_reaches_the_client_as_an_error() {
    for how in ["closed at once", "reset at once", "closed on the next request", "reset on the next request"] {
        let provider = forgetful(how).await;
        let gateway = one(&provider, "maxRetries: 0");
        for number in 0..12 {
            let reply = gateway.post("/v1/chat/completions", &chat_body("up", "hi", number % 2 == 1)).await;
            assert_eq!(reply.status, 200, "{how}, request {number}: {}", reply.text());
        }
        assert_eq!(gateway.member("up", "up").await["failures"], json!({}), "{how}");
    }
}

fn large() -> String {
    "x".repeat(300 << 10)
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_reply_is_tried_once_more_unless_the_body_is_large() {
    for (text, expected) in [("hi".to_owned(), 2), (large(), 1)] {
        for resets in [false, true] {
            let provider = Provider::start(move |_, wire| async move {
                if resets {
                    wire.0.set_zero_linger().unwrap();
                }
                None
            })
            .await;
            let reply = one(&provider, "").chat("up", &text).await;
            assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{}", reply.text());
            assert_eq!(provider.requests().len(), expected, "{} bytes, reset: {resets}", text.len());
            let second = Provider::saying("from the second").await;
            let reply = pair(&provider, &second, "").chat("pool", &text).await;
            assert_eq!(reply.status, 200, "{} bytes: {}", text.len(), reply.text());
        }
    }
}

#[tokio::test]
async fn a_large_body_is_tried_again_after_a_status_that_asks_for_it() {
    let (provider, _) = recovering(1, 503, SOON).await;
    let reply = one(&provider, "").chat("up", &large()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test]
async fn a_connection_closed_in_time_is_not_used_for_a_large_body() {
    let provider = forgetful("closed at once").await;
    let gateway = one(&provider, "");
    for _ in 0..4 {
        let reply = gateway.chat("up", &large()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_model_that_nobody_has_is_404() {
    let provider = Provider::saying("hello").await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: up, type: openai, config: {{ apiKey: k, endpoint: \"{}\", models: [gpt-4o] }} }}\n",
        provider.endpoint()
    ));
    for stream in [false, true] {
        let reply = gateway.post("/v1/chat/completions", &chat_body("claude-3-opus", "hi", stream)).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "model_not_found"), "{}", reply.text());
        assert_eq!(reply.json()["error"]["param"], "model");
    }
    assert_eq!(provider.requests().len(), 0);
    assert_eq!(gateway.chat("gpt-4o", "hi").await.status, 200);
}

#[tokio::test]
async fn a_member_that_lacks_the_model_is_passed_over() {
    let first = Provider::saying("from the first").await;
    let second = Provider::saying("from the second").await;
    let member = |name: &str, provider: &Provider, model: &str| {
        format!(
            "  - {{ name: {name}, type: openai, config: {{ apiKey: k, endpoint: \"{}\", models: [{model}] }} }}\n",
            provider.endpoint()
        )
    };
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        member("first", &first, "one"),
        member("second", &second, "two"),
    ));
    let reply = gateway.chat("pool/two", "hi").await;
    assert_eq!(reply.header("x-stagedoor-backend"), Some("second"), "{}", reply.text());
    assert_eq!(first.requests().len(), 0);
    assert_eq!(second.requests()[0].json()["model"], "two");
    assert_eq!(gateway.chat("pool/three", "hi").await.status, 404);
}

const KEY: &str = "sk-upstream-secret";

fn assert_no_key(reply: &Reply, case: &str) {
    assert!(!reply.text().contains(KEY), "{case}: {}", reply.text());
    assert!(!reply.headers.iter().any(|(_, value)| value.contains(KEY)), "{case}: {:?}", reply.headers);
}

#[tokio::test]
async fn a_refused_credential_is_502_and_no_error_shows_the_key() {
    for status in [400, 401, 403, 404, 422, 429, 500, 503] {
        for body in [
            r#"{"error":{"message":"Incorrect API key provided: sk-upstream-secret.","type":"sk-upstream-secret","param":"sk-upstream-secret","code":"sk-upstream-secret"}}"#,
            "key sk-upstream-secret is refused",
        ] {
            let provider = answering(status, &[], body).await;
            for stream in [false, true] {
                let gateway = one(&provider, "maxRetries: 0");
                let reply = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
                assert!(reply.status >= 400);
                assert_no_key(&reply, &format!("{status} {body}"));
                if matches!(status, 401 | 403) {
                    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_credential"));
                }
            }
        }
    }
}

#[tokio::test]
async fn an_error_within_a_stream_does_not_show_the_key() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.begin_stream().await;
        wire.chunk(&word_event("one ")).await;
        wire.chunk("data: {\"error\":{\"message\":\"key sk-upstream-secret expired\"}}\n\n").await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    let client = crate::streams::Listener::open(&gateway, "up", "hi").await;
    let (reply, whole) = client.finish().await;
    assert_no_key(&reply, "error event");
    let id = reply.header("x-request-id").unwrap().to_owned();
    assert_broken_after("one ", "error event", (reply, whole));
    let story = gateway.get(&format!("/admin/api/requests/{id}")).await;
    assert_eq!(story.json()["tries"][0]["outcome"], "truncated", "{}", story.text());
    assert_no_key(&story, "story");
}

#[tokio::test]
async fn a_failure_of_one_request_does_not_touch_others() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let provider = Provider::start(move |request, mut wire| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            let body = request.json();
            match body["messages"][0]["content"].as_str().unwrap() {
                "reset" => return None,
                "refuse" => wire.reply(400, "application/json", &[], TOO_LONG.as_bytes()).await,
                "garbage" => wire.reply(200, "application/json", &[], b"{\"choi").await,
                text => wire.json(200, &completion(text)).await,
            }
            Some(wire)
        }
    })
    .await;
    let gateway = one(&provider, "");
    let requests = (0..40).map(|number| {
        let gateway = &gateway;
        async move {
            let text = format!("text {number}");
            match number % 4 {
                0 => assert_eq!(gateway.chat("up", "reset").await.status, 502),
                1 => assert_eq!(gateway.chat("up", "refuse").await.status, 400),
                2 => assert_eq!(gateway.chat("up", "garbage").await.status, 502),
                _ => assert_eq!(gateway.chat("up", &text).await.json()["choices"][0]["message"]["content"], text),
            }
        }
    });
    futures_util::future::join_all(requests).await;
    assert_eq!(count.load(Ordering::SeqCst), 50, "each broken connection is tried once more, nothing else is");
}

#[tokio::test]
async fn a_connection_that_is_tried_again_at_once_is_told_as_failed() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: down, type: meta, config: {{ endpoint: \"http://127.0.0.1:{port}\", defaultModel: m, maxRetries: 0 }} }}\n"
    ));
    let body = chat_body("down", "hi", false).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "refused")];
    let reply = gateway.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
    assert_eq!((reply.status, reply.header("x-stagedoor-attempts")), (502, Some("2")));
    assert_eq!(reply.header("x-stagedoor-failed"), Some("down:socket, down:socket"));
    let story = gateway.get("/admin/api/requests/refused").await.json();
    for told in story["tries"].as_array().unwrap() {
        assert_eq!((&told["outcome"], &told["class"]), (&"failed".into(), &"socket".into()), "{story}");
    }
    // Neither was a connection of the pool that had died meanwhile: both count, as the header says.
    let member = gateway.member("down", "down").await;
    assert_eq!((&member["failures"]["socket"], &member["retried"]), (&json!(2), &json!(1)), "{member}");
}
