//! Circuits: who is not asked, until when, and who finds out that all is well again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use crate::pools::{act, pool, said, switch, switched, with_header};
use crate::support::{Gateway, Provider, backend, chat_body, completion, eventually, finish_event, word_event};

#[tokio::test]
async fn a_member_that_keeps_failing_is_not_asked_until_one_probe_has_found_it_well() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 500, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), "maxRetries: 0, circuit: { coolDown: 300ms }"),
        backend("b", &well.endpoint(), ""),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", ""),
    ));
    for _ in 0..5 {
        let reply = gateway.chat("p", "x").await;
        assert_eq!((reply.status, reply.header("x-stagedoor-attempts")), (200, Some("2")));
        assert_eq!(reply.header("x-stagedoor-failed"), Some("a:server_error"));
    }
    let state = gateway.backend("a").await;
    assert_eq!((&state["condition"], &state["models"][0]["state"]), (&json!("open"), &json!("open")), "{state}");
    assert!(state["models"][0]["until_seconds"].as_f64().unwrap() > 0.0);
    let asked = ill.requests().len();
    let reply = gateway.chat("p", "x").await;
    assert_eq!((reply.header("x-stagedoor-attempts"), reply.header("x-stagedoor-backend")), (Some("1"), Some("b")));
    assert_eq!(ill.requests().len(), asked, "it is left alone");
    // Still ill: one probe, which is absorbed, and a longer cool-down.
    tokio::time::sleep(Duration::from_millis(310)).await;
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-attempts"), Some("2"));
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-attempts"), Some("1"));
    assert_eq!(ill.requests().len(), asked + 1);
    failing.store(false, Ordering::SeqCst);
    eventually("the member is asked again", || async { said(&gateway.chat("p", "x").await) == "ill" }).await;
    assert_eq!(gateway.backend("a").await["models"][0]["state"], "closed");
    let events = gateway.state().await["events"].clone();
    let kinds: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert!(kinds.starts_with(&["circuit-open", "circuit-open"]) && kinds.last() == Some(&"circuit-closed"), "{events}");
    assert!(events[0]["words"].as_str().unwrap().contains("it answers with errors (server_error), 5 in a row"), "{events}");
}

#[tokio::test]
async fn a_member_that_cuts_its_streams_is_well_again_only_when_one_has_come_to_its_end() {
    let cuts = switch(true);
    let is_cutting = Arc::clone(&cuts);
    let cutter = Provider::start(move |_, mut wire| {
        let cuts = is_cutting.load(Ordering::SeqCst);
        async move {
            wire.begin_stream().await;
            wire.chunk(&word_event("cutter")).await;
            if cuts {
                return None;
            }
            wire.chunk(&format!("{}data: [DONE]\n\n", finish_event())).await;
            wire.end_chunks().await;
            None
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}  - {{ name: good, type: simulated, config: {{ firstToken: 1ms, tokensPerSecond: 10000 }} }}\n{}",
        backend("cutter", &cutter.endpoint(), "maxRetries: 0, circuit: { failures: 2, coolDown: 200ms }"),
        pool("weighted", "{ name: cutter, weight: 1 }, { name: good, weight: 0 }", ""),
    ));
    let is_cut = async || !gateway.stream("p", "x").await.text().contains("[DONE]");
    let kinds = async || {
        let events = gateway.state().await["events"].clone();
        events.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(is_cut().await && is_cut().await && !is_cut().await, "two of them are too many");
    tokio::time::sleep(Duration::from_millis(250)).await;
    // The probe begins well and is cut as the others were: it has failed, and one is all that it costs.
    assert!(is_cut().await && !is_cut().await && !is_cut().await);
    assert_eq!(kinds().await, ["circuit-open", "circuit-open"]);
    cuts.store(false, Ordering::SeqCst);
    eventually("it is well", || async { kinds().await.last().is_some_and(|kind| kind == "circuit-closed") || is_cut().await })
        .await;
    assert_eq!(kinds().await.last().map(String::as_str), Some("circuit-closed"));
    assert_eq!(gateway.stream("p", "x").await.header("x-stagedoor-backend"), Some("cutter"));
}

#[tokio::test]
async fn what_a_backend_was_not_asked_or_could_not_end_is_told_as_what_it_was() {
    let gateway = Gateway::start(
        "backends:\n  - { name: claude, type: simulated, config: { dialect: anthropic } }\n  \
         - { name: cutter, type: simulated, config: { firstToken: 1ms, faults: [{ kind: cut, event: 3, probability: 1 }] } }\n  \
         - { name: loops, type: simulated, config: { maxRetries: 0, faults: [{ kind: panic-handler, probability: 1 }] } }\n  \
         - { name: bare, type: openai, config: { apiKey: k, endpoint: 'http://127.0.0.1:9' } }\n",
    );
    let mut body = chat_body("claude", "hi", false);
    body["n"] = json!(2);
    assert_eq!(gateway.post("/v1/chat/completions", &body).await.code(), "unsupported_by_backend");
    assert_eq!(gateway.chat("claude", "hi").await.status, 200);
    let totals = gateway.backend("claude").await["totals"].clone();
    assert_eq!((&totals["attempts"], &totals["failed"]), (&json!(1), &json!(0)), "{totals}");

    let reply = gateway.stream("cutter", "x").await;
    let id = reply.header("x-request-id").unwrap().to_owned();
    let story = gateway.get(&format!("/admin/api/requests/{id}")).await.json();
    let told = &story["tries"][0];
    assert_eq!(told["outcome"], "truncated", "{story}");
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("cut before its end")), "{story}");
    let cutter = gateway.backend("cutter").await;
    assert_eq!(cutter["condition"], "ailing", "{cutter}");

    assert_eq!(gateway.chat("loops", "x").await.status, 503);
    let loops = gateway.backend("loops").await;
    assert!(loops["condition"] != "unknown" && loops["condition"] != "well", "{loops}");

    let refused = gateway.chat("bare", "x").await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "model_not_found"));
    assert!(refused.text().contains("`bare` has no `defaultModel`"), "{}", refused.text());
}

#[tokio::test]
async fn what_one_worker_finds_out_protects_all_and_one_request_of_them_all_probes() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 429, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 4 }}\nbackends:\n{}{}{}",
        backend("a", &ill.endpoint(), "maxRetries: 0, circuit: { rateLimited: 1500ms }"),
        backend("b", &well.endpoint(), ""),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", ""),
    ));
    // Each over a connection of its own, and so over all workers.
    let ask_forty = || futures_util::future::join_all((0..40).map(|_| gateway.chat("p", "x")));
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-attempts"), Some("2"));
    let replies = ask_forty().await;
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.header("x-stagedoor-backend") == Some("b")));
    assert_eq!(ill.requests().len(), 1, "the one that found it out");
    eventually("the cool-down is over", || async { gateway.backend("a").await["condition"] == "half-open" }).await;
    assert!(ask_forty().await.iter().all(|reply| reply.status == 200));
    assert_eq!(ill.requests().len(), 2, "the probe");
    let workers = gateway.state().await["workers"].as_array().unwrap().len();
    assert_eq!(workers, 4);
}

#[tokio::test]
async fn a_rate_limited_member_alone_is_answered_for_by_its_circuit_and_probed_once_a_second() {
    let failing = switch(true);
    let provider = switched("up", 429, &failing).await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    assert_eq!(gateway.chat("up", "x").await.status, 429);
    let reply = gateway.chat("up", "x").await;
    assert_eq!(reply.status, 429);
    assert_eq!(gateway.chat("up", "x").await.status, 429);
    assert_eq!(provider.requests().len(), 1, "the circuit answers");
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    failing.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(gateway.chat("up", "x").await.status, 200, "a probe passes long before the cool-down ends");
    assert_eq!(gateway.chat("up", "x").await.status, 200);
}

#[tokio::test]
async fn with_every_circuit_open_the_least_bad_member_is_asked_nevertheless() {
    let failing = switch(true);
    let provider = switched("up", 503, &failing).await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}",
        backend("up", &provider.endpoint(), "maxRetries: 0, circuit: { overloaded: 1h }")
    ));
    for _ in 0..3 {
        assert_eq!(gateway.chat("up", "x").await.status, 503);
    }
    assert_eq!(provider.requests().len(), 3);
    assert_eq!(gateway.backend("up").await["models"][0]["state"], "open");
    failing.store(false, Ordering::SeqCst);
    assert_eq!(gateway.chat("up", "x").await.status, 200);
    assert_eq!(gateway.backend("up").await["models"][0]["state"], "closed");
}

#[tokio::test]
async fn a_refused_key_takes_the_whole_backend_out_and_a_reset_brings_it_back() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 401, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), "models: [m, n]"),
        backend("b", &well.endpoint(), "models: [m, n]"),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", ""),
    ));
    assert_eq!(gateway.chat("p/m", "x").await.header("x-stagedoor-attempts"), Some("2"));
    assert_eq!(gateway.chat("p/n", "x").await.header("x-stagedoor-attempts"), Some("1"), "another model of it is not asked");
    let state = gateway.backend("a").await;
    assert_eq!((&state["condition"], &state["circuit"]["class"]), (&json!("open"), &json!("credential")));
    assert!((290.0..=300.0).contains(&state["circuit"]["until_seconds"].as_f64().unwrap()));
    failing.store(false, Ordering::SeqCst);
    let reply = act(&gateway, "a/reset").await;
    assert_eq!((reply.status, &reply.json()["closed"]), (200, &json!(1)));
    assert_eq!(said(&gateway.chat("p/m", "x").await), "ill");
    assert_eq!(act(&gateway, "a/reset?model=zzz").await.status, 404);
}

/// A provider that answers each model with a status of its own.
async fn by_model(statuses: &'static [(&'static str, u16)]) -> Provider {
    Provider::start(move |request, mut wire| async move {
        let model = request.json()["model"].as_str().unwrap_or_default().to_owned();
        match statuses.iter().find(|(known, _)| *known == model) {
            Some((_, status)) => {
                let headers: &[(&str, &str)] = if *status == 429 { &[("retry-after", "60")] } else { &[] };
                wire.reply(*status, "application/json", headers, br#"{"error":{"message":"no"}}"#).await;
            }
            None => wire.json(200, &completion("well")).await,
        }
        Some(wire)
    })
    .await
}

#[tokio::test]
async fn models_in_different_trouble_are_each_answered_with_their_own_error() {
    let provider = by_model(&[("limited", 429), ("busy", 503), ("also-limited", 429)]).await;
    let more = "maxRetries: 0, models: [limited, also-limited, busy, fine]";
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), more)));
    for _ in 0..3 {
        assert_eq!(gateway.chat("up/limited", "x").await.status, 429);
        assert_eq!(gateway.chat("up/also-limited", "x").await.status, 429);
    }
    assert_eq!(gateway.chat("up/fine", "x").await.status, 200, "limits of two models say nothing about a third");
    for _ in 0..3 {
        assert_eq!(gateway.chat("up/busy", "x").await.status, 503);
        assert_eq!(gateway.chat("up/limited", "x").await.status, 429);
    }
}

#[tokio::test]
async fn without_fallback_a_member_that_has_recovered_has_its_share_again() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 503, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), "maxRetries: 0, circuit: { overloaded: 100ms }"),
        backend("b", &well.endpoint(), ""),
        pool("round-robin", "{ name: a }, { name: b }", "fallback: false"),
    ));
    for _ in 0..4 {
        gateway.chat("p", "x").await;
    }
    failing.store(false, Ordering::SeqCst);
    eventually("it is asked", || async { said(&gateway.chat("p", "x").await) == "ill" }).await;
}

#[tokio::test]
async fn a_request_that_nobody_could_take_over_does_not_probe() {
    let failing = switch(true);
    let (ill, well) = (switched("ill", 503, &failing).await, Provider::saying("well").await);
    let gateway = Gateway::start(&format!(
        "backends:\n{}{}{}",
        backend("a", &ill.endpoint(), "maxRetries: 0, circuit: { overloaded: 50ms }"),
        backend("b", &well.endpoint(), ""),
        pool("weighted", "{ name: a, weight: 1 }, { name: b, weight: 0 }", ""),
    ));
    assert_eq!(gateway.chat("p", "x").await.status, 200);
    tokio::time::sleep(Duration::from_millis(60)).await;
    for _ in 0..3 {
        let reply = with_header(&gateway, "x-stagedoor-repeat", "never", &chat_body("p", "x", false)).await;
        assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("b")));
    }
    assert_eq!(ill.requests().len(), 1);
    assert_eq!(gateway.chat("p", "x").await.header("x-stagedoor-attempts"), Some("2"), "another one does");
    assert_eq!(ill.requests().len(), 2);
}

#[tokio::test]
async fn a_passed_through_error_does_not_close_a_circuit() {
    let provider = Provider::start(|request, mut wire| async move {
        let status = if request.head.line.contains("/chat/") { 401 } else { 500 };
        wire.json(status, &json!({ "error": { "message": "no" } })).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: all, path: /v1/*, methods: [GET, POST], backend: up }}\n",
        backend("up", &provider.endpoint(), "")
    ));
    assert_eq!(gateway.chat("up", "x").await.status, 502);
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "open");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(gateway.get("/v1/files").await.status, 500, "it is the probe");
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "open");
}

#[tokio::test]
async fn a_members_endless_trouble_leaves_one_event() {
    let provider = switched("up", 500, &switch(true)).await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    for _ in 0..60 {
        assert_eq!(gateway.chat("up", "x").await.status, 502);
    }
    assert_eq!(gateway.state().await["events"].as_array().unwrap().len(), 1);
    let until = gateway.backend("up").await["models"][0]["until_seconds"].as_f64().unwrap();
    assert!(until <= 5.0, "{until}");
}
