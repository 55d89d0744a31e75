//! Panics in the gateway's own code, at each boundary: survived, counted, and nobody else's trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::restarts::{Client, Tally, ask_until, drain_body, mistake, simulated_answer};
use crate::support::{Gateway, PATIENCE, Reply, chat_body, eventually, read_head};

const TOKENS: usize = 12;

/// A pool of two simulated backends, the first of them with faults and further keys of `config`.
fn duo(shaky: &str, workers: usize) -> String {
    format!(
        "backends:\n  - {{ name: duo, type: pool, strategy: weighted, backends: [{{ name: shaky }}, {{ name: steady }}] }}\n\
         \x20 - {{ name: shaky, type: simulated, config: {{ firstToken: 10ms, tokensPerSecond: 500, {shaky} }} }}\n\
         \x20 - {{ name: steady, type: simulated, config: {{ firstToken: 10ms, tokensPerSecond: 500 }} }}\n\
         server: {{ port: 0, workers: {workers} }}\n"
    )
}

/// One backend, reached through a pool of its own, with faults and further keys of the pool.
fn solo(faults: &str, pool: &str) -> String {
    format!(
        "backends:\n  - {{ name: solo, type: pool, backends: [{{ name: shaky }}], {pool} }}\n\
         \x20 - {{ name: shaky, type: simulated, config: {{ firstToken: 5ms, tokensPerSecond: 1000, faults: [{faults}] }} }}\n"
    )
}

async fn crashes(gateway: &Gateway) -> u64 {
    gateway.backend("shaky").await["crashes"].as_u64().unwrap()
}

/// Whole requests and streams run against the pool until its shaky member has crashed a few times.
async fn one_call_in_a_hundred_panics(kind: &str) {
    let faults = format!("faults: [{{ kind: {kind}, probability: 0.01 }}]");
    let gateway = Arc::new(Gateway::start(&duo(&faults, 2)));
    let stop = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Tally::default());
    let expected = |question: &str| simulated_answer(question, TOKENS);
    let clients: Vec<_> = (0..48)
        .map(|number| {
            let who = ("duo", format!("client-{number}"), number % 2 == 0);
            tokio::spawn(ask_until(Arc::clone(&gateway), Arc::clone(&stop), Arc::clone(&tally), who, expected))
        })
        .collect();
    eventually("the shaky member has crashed four times", || async { crashes(&gateway).await >= 4 }).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let wrong = tally.wrong.lock().unwrap().clone();
    let served = tally.served.load(Ordering::Relaxed);
    assert!(wrong.is_empty(), "{} failed beside {served} served: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    let steady = gateway.backend("steady").await;
    assert_eq!((&steady["crashes"], &steady["restarts"], &steady["generation"]), (&json!(0), &json!(0), &json!(1)));
    let member = gateway.member("duo", "steady").await;
    assert_eq!((&member["failures"], &member["truncated"], &member["cut"]), (&json!({}), &json!(0), &json!(0)));
    eventually("every permit is back", || async {
        let shaky = gateway.backend("shaky").await;
        shaky["permits"]["used"] == 0 && shaky["draining"] == 0 && shaky["in_flight"] == 0
    })
    .await;
    let shaky = gateway.backend("shaky").await;
    assert!(shaky["last_reason"].as_str().unwrap().contains("simulated panic"), "{shaky}");
}

#[tokio::test]
async fn panics_in_one_of_a_hundred_handlers_fail_no_request() {
    one_call_in_a_hundred_panics("panic-handler").await;
}

#[tokio::test]
async fn panics_in_one_of_a_hundred_tasks_fail_no_request() {
    one_call_in_a_hundred_panics("panic-task").await;
}

#[tokio::test]
async fn panics_in_one_of_a_hundred_bodies_before_first_content_fail_no_request() {
    one_call_in_a_hundred_panics("panic-body").await;
}

#[tokio::test]
async fn panics_of_all_kinds_together_fail_no_request() {
    let faults = "faults: [{ kind: panic-handler, probability: 0.01 }, { kind: panic-task, probability: 0.01 }, \
                  { kind: panic-body, probability: 0.01, event: 0 }]";
    let gateway = Arc::new(Gateway::start(&duo(faults, 1)));
    let mut client = Client::connect(&gateway).await;
    let start = Instant::now();
    while crashes(&gateway).await < 6 {
        assert!(start.elapsed() < PATIENCE, "crashes come");
        for number in 0..20 {
            let reply = client.chat("duo", "hi there", number % 2 == 0).await;
            assert_eq!(mistake(&reply, &simulated_answer("hi there", TOKENS), number % 2 == 0), None);
        }
    }
}

#[tokio::test]
async fn a_panic_after_first_content_ends_the_stream_with_the_error_event() {
    let gateway = Gateway::start(&duo("maxConcurrent: 5, faults: [{ kind: panic-body, requests: [1], event: 3 }]", 1));
    let mut stream = gateway.open_stream("shaky", "one two three").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    let (body, in_order) = drain_body(&mut stream).await;
    assert!(in_order, "the body ends in order, so that the event is delivered");
    let reply = Reply { status: 200, headers: Vec::new(), body };
    assert_eq!(reply.streamed_text(), "Simulated answer");
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert_eq!(last["error"]["code"], "internal_error");
    assert!(!last["error"]["message"].as_str().unwrap().contains("simulated panic"), "a panic's words stay inside: {last}");
    eventually("the next generation is up", || async { gateway.backend("shaky").await["generation"] == 2 }).await;
    let shaky = gateway.backend("shaky").await;
    assert_eq!((&shaky["crashes"], &shaky["permits"]["used"], &shaky["draining"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!(gateway.member("shaky", "shaky").await["truncated"], 1);
    assert_eq!(gateway.chat("shaky", "again").await.status, 200);
}

#[tokio::test]
async fn a_stream_in_flight_outlives_the_crash_of_its_provider() {
    let shaky = "tokens: 60, tokensPerSecond: 60, faults: [{ kind: panic-task, requests: [2] }]";
    let yaml = duo(shaky, 1).replacen("tokensPerSecond: 500, ", "", 1);
    let gateway = Gateway::start(&yaml);
    let mut stream = gateway.open_stream("shaky", "going on").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    let crashed = gateway.chat("shaky", "crash").await;
    assert_eq!(crashed.status, 500);
    assert_eq!(crashed.code(), "internal_error");
    eventually("the next generation is up", || async { gateway.backend("shaky").await["generation"] == 2 }).await;
    assert_eq!(gateway.backend("shaky").await["draining"], 1);
    let (body, in_order) = drain_body(&mut stream).await;
    assert!(in_order);
    let reply = Reply { status: 200, headers: Vec::new(), body };
    assert_eq!(reply.streamed_text(), simulated_answer("going on", 60));
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn past_the_cap_of_restarts_a_backend_is_failed_and_everything_else_serves_on() {
    let gateway = Gateway::start(&duo("restarts: 3, faults: [{ kind: panic-task, requests: [1, 2, 3, 4] }]", 1));
    for crash in 1..=4 {
        assert_eq!(gateway.chat("shaky", "crash").await.status, 500, "crash {crash}");
        eventually("the crash is counted", || async { crashes(&gateway).await == crash }).await;
        if crash < 4 {
            eventually("it is up again", || async { gateway.backend("shaky").await["providers"][0]["state"] == "up" }).await;
        }
    }
    let shaky = gateway.backend("shaky").await;
    assert_eq!(shaky["providers"][0]["state"], "failed");
    assert_eq!(shaky["restarts"], 3);
    assert!(shaky["last_reason"].as_str().unwrap().contains("too many crashes"), "{shaky}");

    let start = Instant::now();
    let refused = gateway.chat("shaky", "hi").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert!(start.elapsed() < Duration::from_secs(1), "a failed backend is not waited for");
    for _ in 0..10 {
        let reply = gateway.chat("duo", "hi").await;
        assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("steady")));
    }
    assert_eq!(gateway.chat("steady", "hi").await.status, 200);
    assert_eq!(gateway.get("/ready").await.status, 200);

    let reply = gateway.send("POST", "/admin/api/backends/shaky/restart", &[], b"").await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!(gateway.chat("shaky", "hi").await.status, 200, "an operator's restart brings it back");
    assert_eq!(gateway.backend("shaky").await["providers"][0]["state"], "up");
}

#[tokio::test]
async fn a_pool_whose_only_backend_crashes_parks_its_requests_and_serves_them() {
    let gateway = Arc::new(Gateway::start(&solo("{ kind: panic-handler, requests: [1, 2, 3, 4, 5] }", "")));
    let asking: Vec<_> = (0..20)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { (number, gateway.chat("solo", &format!("question {number}")).await) })
        })
        .collect();
    eventually("requests are parked", || async { gateway.state().await["pools"][0]["parked"].as_u64() > Some(0) }).await;
    for asking in asking {
        let (number, reply) = asking.await.unwrap();
        assert_eq!(mistake(&Ok(reply.clone()), &simulated_answer(&format!("question {number}"), TOKENS), false), None);
        assert_eq!(reply.header("x-stagedoor-attempts"), Some("1"), "a handler's panic sends nothing");
    }
    assert_eq!(crashes(&gateway).await, 5);
    assert_eq!(gateway.state().await["pools"][0]["parked"], 0);
}

/// Starts a chat whose handler panics seven times, and returns once the backend rests for more than a second.
async fn long_rest(gateway: &Arc<Gateway>) -> tokio::task::JoinHandle<Reply> {
    let asking = tokio::spawn({
        let gateway = Arc::clone(gateway);
        async move { gateway.chat("solo", "first").await }
    });
    eventually("the backend backs off for long", || async { crashes(gateway).await == 7 }).await;
    asking
}

const SEVEN: &str = "{ kind: panic-handler, requests: [1, 2, 3, 4, 5, 6, 7] }";

#[tokio::test]
async fn a_parked_caller_that_leaves_is_dropped() {
    let gateway = Arc::new(Gateway::start(&solo(SEVEN, "")));
    let first = long_rest(&gateway).await;
    let body = chat_body("solo", "leaves", false).to_string();
    let leaver = gateway.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await;
    let parked = || async { gateway.state().await["pools"][0]["parked"].as_u64().unwrap() };
    eventually("both are parked", || async { parked().await == 2 }).await;
    drop(leaver);
    eventually("the one that left is dropped", || async { parked().await == 1 }).await;
    assert_eq!(crashes(&gateway).await, 7, "it was dropped while the backend rested");
    assert_eq!(timeout(PATIENCE, first).await.unwrap().unwrap().status, 200);
    assert_eq!(gateway.member("solo", "shaky").await["attempts"], 1, "nothing was sent for the one that left");
    assert_eq!(gateway.state().await["body_bytes"], 0);
}

#[tokio::test]
async fn beyond_the_parking_limit_requests_are_refused_at_once() {
    let gateway = Arc::new(Gateway::start(&solo(SEVEN, "parking: { maxJobs: 1 }")));
    let first = long_rest(&gateway).await;
    let refused = gateway.chat("solo", "one too many").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "server_error");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(crashes(&gateway).await, 7, "it did not wait");
    assert_eq!(timeout(PATIENCE, first).await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn a_request_is_parked_no_longer_than_allowed() {
    let gateway = Arc::new(Gateway::start(&solo(SEVEN, "parking: { maxWait: 250ms }")));
    let start = Instant::now();
    let refused = gateway.chat("solo", "waits").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert!((Duration::from_millis(250)..Duration::from_secs(1)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn without_parking_a_starting_backend_is_refused_at_once() {
    let gateway = Arc::new(Gateway::start(&solo("{ kind: panic-handler, requests: [1] }", "parking: { maxJobs: 0 }")));
    assert_eq!(gateway.chat("solo", "hi").await.status, 503);
    eventually("it starts again", || async { gateway.chat("solo", "hi").await.status == 200 }).await;
}

#[tokio::test]
async fn every_job_behind_a_crashed_one_is_served_by_the_next_generation() {
    // Each crash finds a mailbox with jobs in it: none of them may be lost with the actor.
    let faults = "{ kind: panic-handler, requests: [5, 25, 45] }";
    let gateway = Arc::new(Gateway::start(&solo(faults, "")));
    let asking: Vec<_> = (0..100)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.stream("solo", &format!("question {number}")).await })
        })
        .collect();
    for (number, asking) in asking.into_iter().enumerate() {
        let reply = asking.await.unwrap();
        assert_eq!(mistake(&Ok(reply), &simulated_answer(&format!("question {number}"), TOKENS), true), None);
    }
    assert_eq!(crashes(&gateway).await, 3);
}
