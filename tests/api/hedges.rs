//! Hedges: the next member is asked before the first has failed.

use std::time::Duration;

use serde_json::json;

use crate::pools::{pool, pool_state, said, switch, switched, with_header};
use crate::support::{Gateway, Provider, backend, chat_body, completion, eventually};

#[tokio::test]
async fn a_slow_member_is_hedged_and_the_first_content_wins() {
    let gateway = Gateway::start(
        "backends:\n  - { name: slow, type: simulated, config: { firstToken: 20s } }\n  \
         - { name: fast, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: p, type: pool, strategy: weighted, hedge: { after: 50ms, share: 1.0 }, backends: [ { name: slow, weight: 1 }, { name: fast, weight: 0 } ] }\n",
    );
    for is_stream in [false, true] {
        let reply = gateway.post("/v1/chat/completions", &chat_body("p", "x", is_stream)).await;
        assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("fast")));
        assert_eq!(reply.header("x-stagedoor-attempts"), Some("2"));
        assert_eq!(reply.header("x-stagedoor-failed"), None, "nothing has failed");
    }
    eventually("the losers are gone", || async { gateway.backend("slow").await["permits"]["used"] == 0 }).await;
    let state = pool_state(&gateway).await;
    assert_eq!(state["hedges"], json!({ "started": 2, "won": 2 }));
    assert_eq!((&state["absorbed"], &state["outcomes"]["served"]), (&json!(0), &json!(2)));
    let slow = gateway.member("p", "slow").await;
    assert_eq!(slow["cancelled"], 2);
    assert!(slow["prompt_tokens"].as_u64().unwrap() > 0, "what the losers cost is counted");
}

#[tokio::test]
async fn a_request_that_must_not_be_repeated_is_neither_hedged_nor_tried_again() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 500, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), ""),
        backend("b", &well.endpoint(), ""),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", "hedge: { after: 1ms, share: 1.0 }"),
    ));
    let reply = with_header(&gateway, "x-stagedoor-repeat", "never", &chat_body("p", "x", false)).await;
    assert_eq!((reply.status, reply.header("x-stagedoor-attempts")), (502, Some("1")));
    assert_eq!((ill.requests().len(), well.requests().len()), (1, 0));
}

#[tokio::test]
async fn a_hedge_that_fails_leaves_the_request_to_the_first_member() {
    let gateway = Gateway::start(
        "backends:\n  - { name: slow, type: simulated, config: { firstToken: 300ms } }\n  \
         - { name: ill, type: simulated, config: { faults: [ { kind: status, status: 500, probability: 1 } ] } }\n  \
         - { name: p, type: pool, strategy: weighted, hedge: { after: 20ms, share: 1.0 }, backends: [ { name: slow, weight: 1 }, { name: ill, weight: 0 } ] }\n",
    );
    let reply = gateway.chat("p", "x").await;
    assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("slow")));
    assert_eq!((reply.header("x-stagedoor-attempts"), reply.header("x-stagedoor-failed")), (Some("2"), Some("ill:server_error")));
    let state = pool_state(&gateway).await;
    assert_eq!((&state["hedges"], &state["refused"]), (&json!({ "started": 1, "won": 0 }), &json!(0)));
}

#[tokio::test]
async fn a_hedge_beside_a_second_try_counts_as_a_third() {
    let gateway = Gateway::start(
        "backends:\n  - { name: ill, type: simulated, config: { faults: [ { kind: status, status: 500, probability: 1 } ], maxRetries: 0 } }\n  \
         - { name: slow, type: simulated, config: { firstToken: 20s } }\n  \
         - { name: fast, type: simulated, config: { firstToken: 1ms } }\n  \
         - { name: p, type: pool, strategy: weighted, hedge: { after: 100ms, share: 1.0 }, backends: [ { name: ill, weight: 9 }, { name: slow, weight: 1 }, { name: fast, weight: 0 } ] }\n",
    );
    let reply = gateway.chat("p", "x").await;
    assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("fast")));
    assert_eq!((reply.header("x-stagedoor-attempts"), reply.header("x-stagedoor-failed")), (Some("3"), Some("ill:server_error")));
    eventually("it counts as absorbed", || async { pool_state(&gateway).await["absorbed"] == 1 }).await;
}

#[tokio::test]
async fn hedges_stay_within_their_share() {
    let gateway = Gateway::start(
        "server: { port: 0, workers: 1 }\nbackends:\n  - { name: slow, type: simulated, config: { firstToken: 30ms } }\n  \
         - { name: other, type: simulated, config: { firstToken: 30ms } }\n  \
         - { name: p, type: pool, strategy: weighted, hedge: { after: 5ms, share: 0.1 }, backends: [ { name: slow }, { name: other } ] }\n",
    );
    for _ in 0..40 {
        assert_eq!(gateway.chat("p", "x").await.status, 200);
    }
    let started = pool_state(&gateway).await["hedges"]["started"].as_u64().unwrap();
    assert!((1..=6).contains(&started), "{started}");
}

#[tokio::test]
async fn the_two_jobs_of_a_race_never_ask_one_member_twice() {
    let failing = switch(true);
    let third = switched("third", 500, &failing).await;
    let slow = Provider::start(|_, mut wire| async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        wire.json(200, &completion("slow")).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}{}",
        backend("a", &slow.endpoint(), "maxRetries: 0, timeout: 150ms"),
        backend("b", &slow.endpoint(), "maxRetries: 0"),
        backend("c", &third.endpoint(), "maxRetries: 0"),
        pool(
            "weighted",
            "{ name: a, weight: 1 }, { name: b, weight: 0 }, { name: c, weight: 0 }",
            "hedge: { after: 20ms, share: 1.0 }, affinity: {}"
        ),
    ));
    let reply = gateway.chat("p", "x").await;
    assert_eq!((reply.status, said(&reply).as_str()), (200, "slow"), "{}", reply.text());
    assert_eq!(slow.requests().len(), 2, "one by a and one by b");
    assert!(third.requests().len() <= 1);
}

#[tokio::test]
async fn a_hedge_that_loses_does_not_move_the_conversation() {
    let gateway = Gateway::start(
        "backends:\n  - { name: a, type: simulated, config: { firstToken: 60ms } }\n  \
         - { name: b, type: simulated, config: { firstToken: 5s } }\n  \
         - { name: p, type: pool, strategy: weighted, affinity: {}, hedge: { after: 20ms, share: 1.0 }, backends: [ { name: a, weight: 1 }, { name: b, weight: 0 } ] }\n",
    );
    for _ in 0..3 {
        let reply = with_header(&gateway, "x-session-id", "s", &chat_body("p", "x", false)).await;
        assert_eq!(reply.header("x-stagedoor-backend"), Some("a"));
    }
    assert_eq!(pool_state(&gateway).await["conversations"], json!({ "kept": 2, "moved": 0, "new": 1 }));
}
