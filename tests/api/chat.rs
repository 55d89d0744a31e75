//! The plain way: a request goes through and comes back.

use serde_json::json;

use crate::support::{Gateway, Provider, backend};

#[tokio::test]
async fn a_whole_reply_passes_as_the_bytes_it_came_as() {
    let provider = Provider::saying("Hello from upstream").await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "Hello from upstream");
    assert_eq!(reply.header("x-stagedoor-backend"), Some("up"));
    assert_eq!(reply.header("x-stagedoor-attempts"), Some("1"));
    assert!(reply.header("x-request-id").unwrap().starts_with("req_"));
    let request = &provider.requests()[0];
    assert_eq!(request.head.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(request.head.header("authorization"), Some("Bearer sk-upstream-secret"));
    assert_eq!(request.json()["model"], "m");
}

#[tokio::test]
async fn a_stream_arrives_whole_and_in_order() {
    let provider = Provider::saying("one two three").await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    let reply = gateway.stream("up", "hi").await;
    assert_eq!(reply.streamed_text(), "one two three");
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    assert_eq!(provider.requests()[0].json()["stream_options"], json!({ "include_usage": true }));
}

#[tokio::test]
async fn a_backend_that_is_left_out_is_named_and_nobody_answers_in_its_place() {
    let gateway = Gateway::start(
        "backends:\n  - { name: there, type: simulated }\n  \
         - { name: absent, type: openai, optional: true, config: { apiKey: \"${NOT_SET_ANYWHERE}\", defaultModel: m } }\n",
    );
    for model in ["absent", "absent/gpt-4o"] {
        let reply = gateway.chat(model, "hi").await;
        assert_eq!((reply.status, reply.code()), (404, "model_not_found".into()), "{}", reply.text());
        assert!(reply.text().contains("`absent` is configured but left out"), "{}", reply.text());
    }
    assert_eq!(gateway.chat("absentee", "hi").await.status, 200);
}
