//! `maxConcurrent` holds for the whole process, and a permit returns on whatever path its request ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::restarts::{Client, mistake, simulated_answer};
use crate::support::{
    Gateway, PATIENCE, Provider, Wire, backend, chat_body, completion, eventually, finish_event, read_chunk, read_head,
    word_event,
};

/// Answers a question by repeating it, whole or streamed.
async fn echo(body: &Value, wire: &mut Wire) {
    let question = body["messages"][0]["content"].as_str().unwrap();
    if body["stream"] == true {
        wire.begin_stream().await;
        wire.chunk(&word_event(question)).await;
        wire.chunk(&finish_event()).await;
        wire.chunk("data: [DONE]\n\n").await;
        wire.end_chunks().await;
    } else {
        wire.json(200, &completion(question)).await;
    }
}

/// A provider that counts the requests it has at once, each for a while, and the most there ever were.
async fn counting() -> (Provider, Arc<AtomicUsize>) {
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&most);
    let provider = Provider::start(move |request, mut wire| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&counted));
        async move {
            if request.head.line.starts_with("GET") {
                wire.json(200, &json!({ "object": "list", "data": [] })).await;
                return Some(wire);
            }
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            // Before the last byte: from then on the gateway may send the next one.
            now.fetch_sub(1, Ordering::SeqCst);
            echo(&request.json(), &mut wire).await;
            Some(wire)
        }
    })
    .await;
    (provider, most)
}

#[tokio::test]
async fn four_workers_together_never_pass_the_limit_and_serve_everything() {
    let (provider, most) = counting().await;
    let gateway = Arc::new(Gateway::start(&format!(
        "backends:\n{}server: {{ port: 0, workers: 4 }}\n",
        backend("up", &provider.endpoint(), "maxConcurrent: 3")
    )));
    let clients: Vec<_> = (0..40)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let mut client = Client::connect(&gateway).await;
                for round in 0..10 {
                    let question = format!("client-{number}-round-{round}");
                    let stream = (number + round) % 2 == 0;
                    let reply = client.chat("up", &question, stream).await;
                    assert_eq!(mistake(&reply, &question, stream), None);
                }
            })
        })
        .collect();
    // The limit holds across generations, too.
    for _ in 0..5 {
        let goal = provider.requests().len() + 30;
        eventually("requests come", || async { provider.requests().len() >= goal }).await;
        let reply = gateway.send("POST", "/admin/api/backends/up/restart", &[], b"").await;
        assert_eq!(reply.status, 202);
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    eventually("every permit is back", || async { gateway.backend("up").await["permits"]["used"] == 0 }).await;
    assert_eq!(gateway.member("up", "up").await["served"], 400);
}

/// A provider that holds every answer until its gate opens.
async fn gated() -> (Provider, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let provider = Provider::start(move |request, mut wire| {
        let mut opened = opened.clone();
        async move {
            let is_open = tokio::select! {
                open = opened.wait_for(|open| *open) => open.is_ok(),
                _ = wire.0.read_u8() => false,
            };
            if !is_open {
                return None;
            }
            echo(&request.json(), &mut wire).await;
            Some(wire)
        }
    })
    .await;
    (provider, gate)
}

async fn open_chat(gateway: &Gateway, model: &str, text: &str) -> TcpStream {
    let body = chat_body(model, text, false).to_string();
    gateway.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await
}

async fn count(gateway: &Gateway, backend: &str, key: &str) -> u64 {
    gateway.backend(backend).await[key].as_u64().unwrap()
}

#[tokio::test]
async fn a_full_queue_refuses_with_503_and_what_waits_is_served() {
    let (provider, gate) = gated().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 1, maxQueue: 2")));
    let mut clients = vec![open_chat(&gateway, "up", "held").await];
    eventually("one is in flight", || async { count(&gateway, "up", "in_flight").await == 1 }).await;
    for queued in 1..=2 {
        clients.push(open_chat(&gateway, "up", "queued").await);
        eventually("it waits", || async { count(&gateway, "up", "queued").await == queued }).await;
    }
    let refused = gateway.chat("up", "one too many").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "server_error");
    assert!(refused.header("retry-after").is_some());
    gate.send_replace(true);
    for client in &mut clients {
        assert_eq!(read_head(client).await.status, 200);
    }
    assert_eq!(provider.requests().len(), 3);
}

#[tokio::test]
async fn a_queued_caller_that_leaves_is_dropped_and_nothing_is_sent_for_it() {
    let (provider, gate) = gated().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 1")));
    let mut held = open_chat(&gateway, "up", "held").await;
    eventually("one is in flight", || async { count(&gateway, "up", "in_flight").await == 1 }).await;
    let leaver = open_chat(&gateway, "up", "leaves").await;
    eventually("one waits", || async { count(&gateway, "up", "queued").await == 1 }).await;
    drop(leaver);
    eventually("it is gone", || async { count(&gateway, "up", "queued").await == 0 }).await;
    gate.send_replace(true);
    assert_eq!(read_head(&mut held).await.status, 200);
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test]
async fn a_queue_on_one_worker_is_served_by_permits_that_another_returns() {
    let (provider, gate) = gated().await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}server: {{ port: 0, workers: 4 }}\n",
        backend("up", &provider.endpoint(), "maxConcurrent: 1")
    ));
    let mut clients = Vec::new();
    for number in 0..8 {
        clients.push(open_chat(&gateway, "up", "hi").await);
        eventually("it is in flight or waits", || async {
            let up = gateway.backend("up").await;
            up["in_flight"].as_u64().unwrap() + up["queued"].as_u64().unwrap() == number + 1
        })
        .await;
    }
    let workers = gateway.backend("up").await["providers"].as_array().unwrap().clone();
    let waiting_on = workers.iter().filter(|worker| worker["queued"].as_u64() > Some(0)).count();
    assert!(waiting_on > 1, "requests wait on several workers: {workers:?}");
    let begun = tokio::time::Instant::now();
    gate.send_replace(true);
    for client in &mut clients {
        assert_eq!(read_head(client).await.status, 200);
    }
    // Each is woken within some milliseconds; by a look around each second it would be eight.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_full_member_is_skipped_and_a_full_pool_waits() {
    let (small, gate) = gated().await;
    let (big, big_gate) = gated().await;
    big_gate.send_replace(true);
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: both, type: pool, strategy: weighted, backends: [{{ name: small, weight: 1000000 }}, {{ name: big, weight: 0.001 }}] }}\n{}{}",
        backend("small", &small.endpoint(), "maxConcurrent: 1"),
        backend("big", &big.endpoint(), "maxConcurrent: 1")
    ));
    let mut held = vec![open_chat(&gateway, "both", "held").await];
    eventually("the favourite is full", || async { count(&gateway, "small", "in_flight").await == 1 }).await;
    for _ in 0..5 {
        let reply = gateway.chat("both", "hi").await;
        assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("big")));
    }
    assert_eq!(gateway.member("both", "small").await["bounced"], 5);
    assert_eq!(gateway.member("both", "small").await["failures"], json!({}), "to be full is no failure");

    big_gate.send_replace(false);
    held.push(open_chat(&gateway, "both", "held").await);
    eventually("both are full", || async { count(&gateway, "big", "in_flight").await == 1 }).await;
    held.push(open_chat(&gateway, "both", "waits").await);
    eventually("the next one waits", || async {
        count(&gateway, "small", "queued").await + count(&gateway, "big", "queued").await == 1
    })
    .await;
    gate.send_replace(true);
    big_gate.send_replace(true);
    for client in &mut held {
        assert_eq!(read_head(client).await.status, 200);
    }
}

#[tokio::test]
async fn what_waits_at_a_full_member_goes_to_another_that_has_room_first() {
    let (small, gate) = gated().await;
    let (big, big_gate) = gated().await;
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 2 }}\nbackends:\n  - {{ name: both, type: pool, strategy: weighted, backends: [{{ name: small, weight: 1000000 }}, {{ name: big, weight: 0.001 }}] }}\n{}{}",
        backend("small", &small.endpoint(), "maxConcurrent: 1"),
        backend("big", &big.endpoint(), "maxConcurrent: 1")
    ));
    let mut held = Vec::new();
    for name in ["small", "big"] {
        held.push(open_chat(&gateway, "both", "held").await);
        eventually("it is full", || async { count(&gateway, name, "in_flight").await == 1 }).await;
    }
    let mut waiting = Vec::new();
    for number in 1..=4 {
        waiting.push(open_chat(&gateway, "both", "waits").await);
        eventually("it waits", || async {
            count(&gateway, "small", "queued").await + count(&gateway, "big", "queued").await == number
        })
        .await;
    }
    assert!(count(&gateway, "small", "queued").await > 0);
    big_gate.send_replace(true);
    for client in waiting.iter_mut().chain(&mut held[1..]) {
        assert_eq!(read_head(client).await.status, 200);
    }
    assert_eq!(count(&gateway, "small", "in_flight").await, 1, "the small one was never free");
    gate.send_replace(true);
    assert_eq!(read_head(&mut held[0]).await.status, 200);
}

#[tokio::test]
async fn each_wait_for_a_permit_has_the_whole_queue_timeout() {
    let slow = Provider::start(|request, mut wire| async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let status = if request.json()["messages"][0]["content"] == "fails" { 500 } else { 200 };
        wire.json(status, &completion("slow")).await;
        Some(wire)
    })
    .await;
    let (other, gate) = gated().await;
    let more = "maxConcurrent: 1, queueTimeout: 600ms, maxRetries: 0";
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 1 }}\nbackends:\n  - {{ name: both, type: pool, strategy: weighted, backends: [{{ name: slow, weight: 1000000 }}, {{ name: other, weight: 0.001 }}] }}\n{}{}",
        backend("slow", &slow.endpoint(), more),
        backend("other", &other.endpoint(), more)
    ));
    let mut held = vec![open_chat(&gateway, "both", "first").await, open_chat(&gateway, "both", "held").await];
    eventually("both are full", || async { count(&gateway, "other", "in_flight").await == 1 }).await;
    // It waits at the first, is tried there, and waits at the second.
    held.push(open_chat(&gateway, "both", "fails").await);
    eventually("it waits again", || async { count(&gateway, "other", "queued").await == 1 }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.send_replace(true);
    for client in &mut held {
        assert_eq!(read_head(client).await.status, 200);
    }
}

#[tokio::test]
async fn what_waits_at_a_full_member_counts_for_the_model_that_it_is_asked_for_there() {
    let (small, gate) = gated().await;
    let (big, big_gate) = gated().await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: both, type: pool, strategy: weighted, backends: [{{ name: small, weight: 1000000 }}, {{ name: big, weight: 0.001 }}] }}\n{}{}",
        backend("small", &small.endpoint(), "maxConcurrent: 1, models: { m: native, other-one: another }"),
        backend("big", &big.endpoint(), "maxConcurrent: 1, models: { m: big-native }")
    ));
    let mut held = Vec::new();
    for name in ["small", "big"] {
        held.push(open_chat(&gateway, "both/m", "held").await);
        eventually("it is full", || async { count(&gateway, name, "in_flight").await == 1 }).await;
    }
    held.push(open_chat(&gateway, "both/m", "waits").await);
    eventually("the next one waits", || async { count(&gateway, "small", "queued").await == 1 }).await;
    gate.send_replace(true);
    big_gate.send_replace(true);
    for client in &mut held {
        assert_eq!(read_head(client).await.status, 200);
    }
    let known = gateway.backend("small").await["models"].clone();
    let names: Vec<_> = known.as_array().unwrap().iter().map(|model| model["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["native"]);
}

/// A provider that does what the question says, and reports when the gateway hangs up on it.
async fn obedient(hung_up: watch::Sender<usize>) -> Provider {
    Provider::start(move |request, mut wire: Wire| {
        let hung_up = hung_up.clone();
        async move {
            let body = request.json();
            match body["messages"][0]["content"].as_str().unwrap() {
                "answer" => {
                    echo(&body, &mut wire).await;
                    return Some(wire);
                }
                "fail" => {
                    wire.json(500, &json!({ "error": { "message": "no", "type": "server_error" } })).await;
                    return Some(wire);
                }
                "refuse" => {
                    wire.json(400, &json!({ "error": { "message": "no", "type": "invalid_request_error" } })).await;
                    return Some(wire);
                }
                "limit" => {
                    wire.reply(429, "application/json", &[("retry-after", "60")], b"{}").await;
                    return Some(wire);
                }
                "reset" => return None,
                "garbage" => {
                    wire.reply(200, "application/json", &[], b"<html>").await;
                    return Some(wire);
                }
                "half" => {
                    wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").await;
                    return None;
                }
                "break" => {
                    wire.begin_stream().await;
                    wire.chunk(&word_event("one")).await;
                    return None;
                }
                "silence" => {}
                "begin" => {
                    wire.begin_stream().await;
                    wire.chunk(&word_event("one")).await;
                }
                "flood" => {
                    wire.begin_stream().await;
                    let event = word_event(&"word ".repeat(8_000));
                    while timeout(Duration::from_secs(1), wire.chunk(&event)).await == Ok(true) {}
                }
                other => panic!("unknown question {other}"),
            }
            wire.await_close().await;
            hung_up.send_modify(|count| *count += 1);
            None
        }
    })
    .await
}

async fn only_permit_is_back(gateway: &Gateway, after: &str) {
    eventually(after, || async { gateway.backend("up").await["permits"]["used"] == 0 }).await;
    // What has failed so far must not keep the circuit open.
    assert_eq!(gateway.send("POST", "/admin/api/backends/up/reset", &[], b"").await.status, 200);
    let reply = gateway.chat("up", "answer").await;
    assert_eq!(reply.status, 200, "after {after}: {}", reply.text());
    assert_eq!(gateway.backend("up").await["in_flight"], 0);
}

#[tokio::test]
async fn the_only_permit_returns_after_every_kind_of_failure() {
    let (hung_up, mut hangs_up) = watch::channel(0);
    let provider = obedient(hung_up).await;
    let limits = "maxConcurrent: 1, maxQueue: 0, maxRetries: 0, timeout: 400ms, timeouts: { idle: 400ms }";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), limits)));
    for (question, status) in
        [("fail", 502), ("refuse", 400), ("limit", 429), ("reset", 502), ("garbage", 502), ("half", 502), ("silence", 504)]
    {
        for stream in [false, true] {
            let reply = gateway.post("/v1/chat/completions", &chat_body("up", question, stream)).await;
            assert_eq!(reply.status, status, "{question}: {}", reply.text());
            only_permit_is_back(&gateway, question).await;
        }
    }
    for question in ["break", "begin"] {
        let reply = gateway.stream("up", question).await;
        assert_eq!((reply.status, reply.streamed_text()), (200, "one".into()));
        assert!(reply.events().last().unwrap().contains("error"), "{question}: {}", reply.text());
        only_permit_is_back(&gateway, question).await;
    }
    assert_eq!(gateway.stream("up", "answer").await.streamed_text(), "answer");
    only_permit_is_back(&gateway, "a stream").await;
    hangs_up.wait_for(|count| *count == 3).await.unwrap();
}

#[tokio::test]
async fn the_only_permit_returns_when_the_client_leaves_and_the_provider_is_let_go_within_a_second() {
    let (hung_up, mut hangs_up) = watch::channel(0);
    let provider = obedient(hung_up).await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 1, maxQueue: 0")));
    let in_flight = || async { gateway.backend("up").await["in_flight"] == 1 };

    let client = open_chat(&gateway, "up", "silence").await;
    eventually("it is in flight", in_flight).await;
    drop(client);
    timeout(Duration::from_secs(1), hangs_up.wait_for(|count| *count == 1)).await.expect("within a second").unwrap();
    only_permit_is_back(&gateway, "leaving before the head").await;

    let client = gateway.open_stream("up", "silence").await;
    eventually("it is in flight", in_flight).await;
    drop(client);
    timeout(Duration::from_secs(1), hangs_up.wait_for(|count| *count == 2)).await.expect("within a second").unwrap();
    only_permit_is_back(&gateway, "leaving before the stream").await;

    let mut client = gateway.open_stream("up", "begin").await;
    read_head(&mut client).await;
    read_chunk(&mut client).await.unwrap();
    drop(client);
    timeout(Duration::from_secs(1), hangs_up.wait_for(|count| *count == 3)).await.expect("within a second").unwrap();
    only_permit_is_back(&gateway, "leaving within the stream").await;
    assert_eq!(gateway.member("up", "up").await["cancelled"], 3);
}

#[tokio::test]
async fn the_only_permit_returns_when_the_client_stops_reading() {
    let (hung_up, mut hangs_up) = watch::channel(0);
    let provider = obedient(hung_up).await;
    let limits = "maxConcurrent: 1, maxQueue: 0, clientStall: 500ms";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), limits)));
    let _reader = gateway.open_stream("up", "flood").await;
    timeout(PATIENCE, hangs_up.wait_for(|count| *count == 1)).await.expect("the provider is let go").unwrap();
    only_permit_is_back(&gateway, "a stalled reader").await;
}

#[tokio::test]
async fn the_only_permit_returns_when_the_total_limit_ends_a_stream() {
    let (hung_up, mut hangs_up) = watch::channel(0);
    let provider = obedient(hung_up).await;
    let limits = "maxConcurrent: 1, maxQueue: 0, timeouts: { total: 500ms }";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), limits)));
    let reply = gateway.stream("up", "begin").await;
    assert!(reply.events().last().unwrap().contains("error"), "{}", reply.text());
    timeout(PATIENCE, hangs_up.wait_for(|count| *count == 1)).await.expect("the provider is let go").unwrap();
    only_permit_is_back(&gateway, "the total limit").await;
}

#[tokio::test]
async fn the_only_permit_returns_after_every_kind_of_panic() {
    for kind in ["panic-handler", "panic-task", "panic-body"] {
        for event in [1, 3] {
            let gateway = Gateway::start(&format!(
                "backends:\n  - {{ name: up, type: simulated, config: {{ maxConcurrent: 1, maxQueue: 4, firstToken: 5ms, \
                 tokensPerSecond: 1000, faults: [{{ kind: {kind}, requests: [1], event: {event} }}] }} }}\n"
            ));
            gateway.stream("up", "crash").await;
            eventually("the crash is counted and the permit back", || async {
                let up = gateway.backend("up").await;
                up["crashes"] == 1 && up["permits"]["used"] == 0 && up["providers"][0]["state"] == "up"
            })
            .await;
            let mut client = Client::connect(&gateway).await;
            assert_eq!(mistake(&client.chat("up", "hi", true).await, &simulated_answer("hi", 12), true), None);
        }
    }
}
