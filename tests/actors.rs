//! The actors of one worker on a paused clock, without sockets: an hour passes in microseconds.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use actix::Actor as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use stagedoor::actors::director::Director;
use stagedoor::actors::slots::{Shared, SlotState, Slots};
use stagedoor::actors::{Dispatch, RestartBackend};
use stagedoor::attempt::{AnswerBody, BodyHold, Call, Reply};
use stagedoor::balance::CircuitState;
use stagedoor::chat::{Endpoint, Shape, scan};
use stagedoor::error::GatewayError;
use stagedoor::settings;
use stagedoor::shard::Shard;
use tokio::time::{Instant, sleep};

struct Worker {
    slots: Rc<Slots>,
    director: actix::Addr<Director>,
}

/// One worker with this configuration; the clock stands still from here on.
fn worker(yaml: &str) -> Worker {
    // There may be one of another test.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::time::pause();
    let settings = settings::from_text("test", yaml, &BTreeMap::new()).unwrap();
    let shared = Shared::new(Arc::new(settings)).unwrap();
    let director = Director::new(Arc::clone(&shared)).start();
    Worker { slots: Shard::start_worker(&shared, 0, &director), director }
}

impl Worker {
    fn call(&self, stream: bool, deadline: Duration) -> Arc<Call> {
        let body = Bytes::from(format!(r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"a b c"}}]}}"#));
        let now = Instant::now();
        Arc::new(Call {
            id: "req".into(),
            endpoint: Endpoint::Chat,
            scan: scan(&body, Shape::Chat).unwrap(),
            body,
            hold: BodyHold::new(&self.slots.shared.body_bytes),
            model_at: None,
            deadline: now + deadline,
            started: now,
            began: self.slots.shared.clock.at(now),
            span: tracing::Span::none(),
            passthrough: None,
            touched: AtomicBool::new(false),
            repeatable: true,
            insistent: false,
            conversation: None,
            trail: Arc::default(),
        })
    }

    async fn ask(&self, stream: bool, deadline: Duration) -> Reply {
        let sending = self.slots.pool(0).unwrap().send(Dispatch(self.call(stream, deadline)));
        sending.await.unwrap()
    }

    fn used(&self, backend: usize) -> u32 {
        self.slots.shared.backends[backend].permits.used()
    }
}

fn class(reply: &Reply) -> &'static str {
    reply.as_ref().map_or_else(GatewayError::class, |_| "served")
}

const HOUR: Duration = Duration::from_secs(3_600);

#[actix_rt::test]
async fn a_caller_that_leaves_before_the_answer_is_settled_as_cancelled_with_an_estimate() {
    let worker = worker("backends: [{ name: s, type: simulated, config: { firstToken: 2h, timeout: 3h } }]");
    let asked = worker.ask(false, 10 * HOUR);
    assert!(tokio::time::timeout(HOUR, asked).await.is_err());
    sleep(Duration::from_millis(1)).await;
    let stats = worker.slots.pools[0].stats.borrow();
    assert_eq!((stats.members[0].attempts, stats.members[0].cancelled), (1, 1));
    assert!(stats.members[0].prompt_tokens > 0);
    assert_eq!(worker.used(0), 0);
}

#[actix_rt::test]
async fn a_whole_reply_is_awaited_for_its_timeout_and_no_longer() {
    let worker = worker("backends: [{ name: slow, type: simulated, config: { firstToken: 50m, timeout: 45m, maxRetries: 0 } }]");
    let start = Instant::now();
    let reply = worker.ask(false, 2 * HOUR).await;
    assert_eq!(class(&reply), "timeout_total");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(45 * 60) && waited < Duration::from_secs(46 * 60), "{waited:?}");
    assert_eq!(worker.used(0), 0);
}

#[actix_rt::test]
async fn a_request_is_answered_by_its_deadline_although_every_member_may_take_longer() {
    let slow = "type: simulated, config: { timeout: 10h, faults: [{ kind: slow-head, after: 9h, probability: 1 }] }";
    let worker = worker(&format!(
        "backends: [{{ name: p, type: pool, backends: [{{ name: a }}, {{ name: b }}] }}, {{ name: a, {slow} }}, {{ name: b, {slow} }}]"
    ));
    let start = Instant::now();
    let reply = worker.ask(false, HOUR).await;
    assert_eq!(class(&reply), "deadline");
    assert_eq!(start.elapsed().as_secs(), 3_600);
}

#[actix_rt::test]
async fn a_stream_that_falls_silent_is_ended_after_the_idle_limit() {
    let worker = worker(
        "backends: [{ name: s, type: simulated, config: { timeouts: { idle: 30m, total: 5h }, keepAlive: off, \
         faults: [{ kind: stall, event: 4, probability: 1 }] } }]",
    );
    let answer = worker.ask(true, 5 * HOUR).await.unwrap();
    let AnswerBody::Live(live) = answer.body else { panic!("a stream is live") };
    let start = Instant::now();
    let said: Vec<String> = live.take().map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).collect().await;
    assert!(said.last().unwrap().contains("silence"), "{said:?}");
    assert!(!said.concat().contains("[DONE]"));
    let waited = start.elapsed().as_secs();
    assert!((1_800..1_802).contains(&waited), "{waited}");
    assert_eq!(worker.used(0), 0);
}

#[actix_rt::test]
async fn a_body_that_nobody_pulls_is_ended_and_its_permit_returned() {
    let worker = worker(
        "backends: [{ name: s, type: simulated, config: { tokens: 100000, clientStall: 20m, maxConcurrent: 1, timeouts: { total: 5h } } }]",
    );
    let answer = worker.ask(true, 5 * HOUR).await.unwrap();
    assert_eq!(worker.used(0), 1);
    sleep(Duration::from_secs(19 * 60)).await;
    assert_eq!(worker.used(0), 1);
    sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(worker.used(0), 0);
    drop(answer);
    assert_eq!(worker.slots.pools[0].stats.borrow().members[0].attempts, 1);
}

/// How a second request ends, and after how many seconds, at a backend whose only permit is taken for two hours.
async fn wait_for_a_permit(queue_timeout: &str) -> (String, u64) {
    let worker = Rc::new(worker(&format!(
        "backends: [{{ name: s, type: simulated, config: {{ firstToken: 2h, timeout: 3h, maxConcurrent: 1, queueTimeout: {queue_timeout} }} }}]"
    )));
    let first = Rc::clone(&worker);
    let first = actix_rt::spawn(async move { first.ask(false, 10 * HOUR).await });
    tokio::task::yield_now().await;
    let start = Instant::now();
    let second = worker.ask(false, HOUR).await;
    let waited = start.elapsed().as_secs();
    assert_eq!(class(&first.await.unwrap()), "served");
    (class(&second).to_owned(), waited)
}

#[actix_rt::test]
async fn a_job_waits_for_a_permit_until_its_deadline() {
    assert_eq!(wait_for_a_permit("2h").await, ("deadline".to_owned(), 3_600));
}

#[actix_rt::test]
async fn a_job_waits_for_a_permit_no_longer_than_the_queue_allows() {
    assert_eq!(wait_for_a_permit("5m").await, ("saturated".to_owned(), 300));
}

#[actix_rt::test]
async fn a_provider_that_crashes_too_often_is_failed_for_a_minute_and_then_tried_again() {
    let worker = worker(
        "backends: [{ name: s, type: simulated, config: { restarts: 2, faults: [{ kind: panic-task, requests: [1, 2, 3] }] } }]",
    );
    for expected in ["crashed", "crashed", "crashed", "no_backend"] {
        assert_eq!(class(&worker.ask(false, HOUR).await), expected);
    }
    assert!(matches!(*worker.slots.providers[0].state.borrow(), SlotState::Down { failed: true, .. }));
    let circuit = &worker.slots.shared.backends[0].health.circuit;
    assert!(matches!(circuit.state(worker.slots.shared.clock.now()), CircuitState::Open { .. }), "other workers are warned");
    sleep(Duration::from_secs(61)).await;
    assert_eq!(class(&worker.ask(false, HOUR).await), "served");
    assert_eq!(worker.slots.providers[0].crashed.get(), 3);
}

/// A pool whose first member fails once, with 503: after two seconds it may be probed.
fn pool_with_a_blip(more: &str) -> Worker {
    let faults = "faults: [{ kind: status, status: 503, requests: [1] }], maxRetries: 0";
    worker(&format!(
        "backends: [{{ name: p, type: pool, strategy: weighted{more}, backends: [{{ name: a, weight: 1 }}, {{ name: b, weight: 0 }}] }}, \
         {{ name: a, type: simulated, config: {{ timeout: 60s, {faults} }} }}, {{ name: b, type: simulated }}]"
    ))
}

#[actix_rt::test]
async fn a_deadline_that_is_no_longer_than_a_timeout_leaves_no_member_out_for_good() {
    let worker = pool_with_a_blip("");
    let deadline = Duration::from_secs(60);
    for chosen in [1, 1, 2] {
        assert_eq!(class(&worker.ask(false, deadline).await), "served");
        assert_eq!(worker.slots.pools[0].stats.borrow().members[0].chosen, chosen);
        sleep(Duration::from_millis(1_500)).await;
    }
}

/// Asks such a pool until its first member has been probed.
async fn probed_in_the_end(more: &str, deadline: Duration) {
    let worker = pool_with_a_blip(more);
    let chosen = || worker.slots.pools[0].stats.borrow().members[0].chosen;
    worker.ask(false, deadline).await.ok();
    sleep(Duration::from_secs(3)).await;
    assert_eq!((class(&worker.ask(false, deadline).await), chosen()), ("served", 1), "another request may yet probe it");
    sleep(Duration::from_secs(15)).await;
    assert_eq!((class(&worker.ask(false, deadline).await), chosen()), ("served", 2));
}

#[actix_rt::test]
async fn a_member_is_probed_in_the_end_although_no_request_may_be_tried_twice() {
    probed_in_the_end(", maxAttempts: 1", HOUR).await;
}

#[actix_rt::test]
async fn a_member_is_probed_in_the_end_although_no_request_has_time_for_two() {
    probed_in_the_end("", Duration::from_secs(5)).await;
}

#[actix_rt::test]
async fn a_probe_that_hangs_leaves_time_for_another_member() {
    let hangs = "faults: [{ kind: status, status: 503, requests: [1] }, { kind: slow-head, after: 1h, requests: [2] }]";
    let worker = worker(&format!(
        "backends: [{{ name: p, type: pool, strategy: weighted, backends: [{{ name: a, weight: 1 }}, {{ name: b, weight: 0 }}] }}, \
         {{ name: a, type: simulated, config: {{ timeout: 60s, maxRetries: 0, {hangs} }} }}, {{ name: b, type: simulated }}]"
    ));
    assert_eq!(class(&worker.ask(false, HOUR).await), "served");
    sleep(Duration::from_secs(3)).await;
    let start = Instant::now();
    assert_eq!(class(&worker.ask(false, Duration::from_secs(60)).await), "served");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[actix_rt::test]
async fn a_hedge_waits_for_the_pools_own_p95_once_that_is_known() {
    let slow = "faults: [{ kind: slow-head, after: 10s, requests: [11, 42] }]";
    let worker = worker(&format!(
        "backends: [{{ name: p, type: pool, strategy: weighted, hedge: {{}}, backends: [{{ name: a, weight: 1 }}, {{ name: b, weight: 0 }}] }}, \
         {{ name: a, type: simulated, config: {{ firstToken: 100ms, tokensPerSecond: 1000000, {slow} }} }}, \
         {{ name: b, type: simulated, config: {{ firstToken: 100ms, tokensPerSecond: 1000000 }} }}]"
    ));
    for number in 1..=42 {
        let start = Instant::now();
        assert_eq!(class(&worker.ask(true, HOUR).await), "served");
        let took = start.elapsed().as_millis();
        match number {
            11 => assert!(took >= 10_000, "ten answers say too little: {took}"),
            42 => assert!((200..400).contains(&took), "p95 and another member's 100 ms: {took}"),
            _ => assert!((100..120).contains(&took), "{number}: {took}"),
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(worker.slots.pools[0].stats.borrow().hedges, (1, 1));
}

#[actix_rt::test]
async fn parked_jobs_wait_no_longer_than_the_pool_says() {
    let worker = worker(
        "backends: [{ name: p, type: pool, backends: [{ name: s }], parking: { maxWait: 3s } }, \
         { name: s, type: simulated, config: { faults: [{ kind: panic-handler, probability: 1 }], restarts: 10000 } }]",
    );
    let start = Instant::now();
    let reply = worker.ask(false, HOUR).await;
    assert_eq!(class(&reply), "no_backend");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(6), "{waited:?}");
}

#[actix_rt::test]
async fn a_replaced_generation_finishes_what_it_carries_within_its_drain_deadline() {
    let worker =
        worker("backends: [{ name: s, type: simulated, config: { tokens: 3600, tokensPerSecond: 1, timeouts: { total: 5h } } }]");
    let answer = worker.ask(true, 5 * HOUR).await.unwrap();
    let AnswerBody::Live(live) = answer.body else { panic!("a stream is live") };
    let pulling =
        actix_rt::spawn(live.take().map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).collect::<Vec<_>>());
    let act = |deadline| RestartBackend { backend: 0, deadline: Some(deadline), wait: true, by: String::new() };
    let report = worker.director.send(act(Duration::from_secs(600))).await.unwrap().unwrap();
    let drained = report.drained.unwrap();
    assert_eq!((report.generation, report.in_flight_at_start, drained.completed, drained.cut), (2, 1, 0, 1));
    assert!((600.0..601.0).contains(&drained.duration_seconds), "{}", drained.duration_seconds);
    let said = pulling.await.unwrap();
    assert!(said.len() > 590 && said.last().unwrap().contains("drain deadline"));
}

#[actix_rt::test]
async fn a_job_that_waits_in_a_full_pool_is_served_although_its_backend_restarts() {
    let member = "type: simulated, config: { firstToken: 1h, timeout: 3h, drainTimeout: 3h, maxConcurrent: 1, queueTimeout: 9h }";
    let worker = Rc::new(worker(&format!(
        "backends: [{{ name: p, type: pool, backends: [{{ name: a }}, {{ name: b }}] }}, {{ name: a, {member} }}, {{ name: b, {member} }}]"
    )));
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let worker = Rc::clone(&worker);
            actix_rt::spawn(async move { worker.ask(false, 10 * HOUR).await })
        })
        .collect();
    sleep(Duration::from_secs(60)).await;
    for backend in 0..2 {
        worker.director.send(RestartBackend { backend, deadline: None, wait: false, by: String::new() }).await.unwrap().unwrap();
        sleep(Duration::from_secs(60)).await;
    }
    for asked in asking {
        assert_eq!(class(&asked.await.unwrap()), "served");
    }
}
