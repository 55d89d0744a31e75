//! Tokens are counted on every path.

use serde_json::Value;

use crate::streams::{DONE, Listener, one, said};
use crate::support::{Gateway, Provider, chat_body, completion, eventually, finish_event, usage_event, word_event};

#[tokio::test]
async fn the_usage_event_is_removed_unless_it_was_asked_for() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.begin_stream().await;
        wire.chunk(&format!("{}{}{}{DONE}", word_event("one"), finish_event(), usage_event(7, 4))).await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    let mut body = chat_body("up", "hi", true);
    for (options, kept) in [
        (Value::Null, false),
        (serde_json::json!({}), false),
        (serde_json::json!({ "include_usage": false }), false),
        (serde_json::json!({ "include_usage": true }), true),
    ] {
        body["stream_options"] = options.clone();
        let reply = gateway.post("/v1/chat/completions", &body).await;
        let usage = reply.events().iter().any(|data| data.contains("prompt_tokens"));
        assert_eq!(usage, kept, "{options}: {}", reply.text());
        assert_eq!(said(&reply.body), ("one".to_owned(), true));
        assert_eq!(provider.requests().last().unwrap().json()["stream_options"]["include_usage"], true, "{options}");
    }
}

/// Prompt and completion tokens counted for the one backend.
async fn tokens(gateway: &Gateway) -> (u64, u64) {
    let member = gateway.member("up", "up").await;
    (member["prompt_tokens"].as_u64().unwrap(), member["completion_tokens"].as_u64().unwrap())
}

#[tokio::test]
async fn the_usage_of_a_whole_reply_and_of_a_stream_is_counted_as_reported() {
    let provider = Provider::start(|request, mut wire| async move {
        if request.json()["stream"] == true {
            wire.begin_stream().await;
            wire.chunk(&format!("{}{}{}{DONE}", word_event("one"), finish_event(), usage_event(7, 4))).await;
            wire.end_chunks().await;
        } else {
            wire.json(200, &completion("one")).await;
        }
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    gateway.chat("up", "hi").await;
    eventually("the whole reply is counted", || async { tokens(&gateway).await == (3, 2) }).await;
    gateway.stream("up", "hi").await;
    eventually("the stream is counted", || async { tokens(&gateway).await == (10, 6) }).await;
    assert_eq!(gateway.member("up", "up").await["served"], 2);
}

#[tokio::test]
async fn the_usage_of_a_stream_that_reports_none_is_estimated() {
    let provider = Provider::saying("one two three").await;
    let gateway = one(&provider, "");
    gateway.stream("up", "hello there, how are you?").await;
    eventually("it is served", || async { gateway.member("up", "up").await["served"] == 1 }).await;
    let (prompt, completion) = tokens(&gateway).await;
    assert!(prompt > 5 && (3..=4).contains(&completion), "{prompt} {completion}");
}

#[tokio::test]
async fn the_usage_of_a_cancelled_and_of_a_truncated_stream_is_counted() {
    for leaves in [true, false] {
        let provider = Provider::start(move |_, mut wire| async move {
            wire.begin_stream().await;
            wire.chunk(&format!("{}{}", word_event("one "), word_event("two "))).await;
            if leaves {
                wire.await_close().await;
            }
            None
        })
        .await;
        let gateway = one(&provider, "");
        let mut client = Listener::open(&gateway, "up", "hello there, how are you?").await;
        client.until("two ").await;
        let outcome = if leaves {
            drop(client);
            "cancelled"
        } else {
            client.finish().await;
            "truncated"
        };
        eventually(outcome, || async { gateway.member("up", "up").await[outcome] == 1 }).await;
        let (prompt, completion) = tokens(&gateway).await;
        assert!(prompt > 5 && completion == 2, "{outcome}: {prompt} {completion}");
        let member = gateway.member("up", "up").await;
        assert_eq!((&member["attempts"], &member["served"]), (&1.into(), &0.into()), "{outcome}");
    }
}
