//! Embeddings come as they were asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bad_input::assert_error;
use crate::bad_replies::{http, writing};
use crate::streams::one;
use crate::support::{Provider, eventually};

fn packed(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())
}

#[tokio::test]
async fn embeddings_come_in_the_asked_encoding_whatever_the_provider_answers() {
    let vectors: [&[f32]; 2] = [&[0.5, -1.25, 3.0], &[0.1, 1e-7, -0.0]];
    for answers_base64 in [false, true] {
        let provider = Provider::start(move |_, mut wire| async move {
            let entry = |index: usize| {
                let vector = if answers_base64 { json!(packed(vectors[index])) } else { json!(vectors[index]) };
                json!({ "object": "embedding", "index": index, "embedding": vector })
            };
            let usage = json!({ "prompt_tokens": 4, "total_tokens": 4 });
            wire.json(200, &json!({ "object": "list", "data": [entry(0), entry(1)], "model": "m", "usage": usage })).await;
            Some(wire)
        })
        .await;
        let gateway = one(&provider, "");
        for format in [None, Some("float"), Some("base64")] {
            let mut body = json!({ "model": "up", "input": ["a", "b"] });
            if let Some(format) = format {
                body["encoding_format"] = json!(format);
            }
            let served = gateway.post("/v1/embeddings", &body).await;
            assert_eq!(served.status, 200, "{}", served.text());
            let reply = served.json();
            for (index, vector) in vectors.iter().enumerate() {
                let entry = &reply["data"][index];
                assert_eq!(entry["index"], index);
                if format == Some("base64") {
                    assert_eq!(entry["embedding"], packed(vector), "{answers_base64} {format:?}");
                } else {
                    let numbers: Vec<f32> = serde_json::from_value(entry["embedding"].clone()).unwrap();
                    assert_eq!(numbers, *vector, "{answers_base64} {format:?}");
                }
            }
            assert_eq!(reply["usage"]["prompt_tokens"], 4);
        }
        eventually("usage is counted", || async { gateway.member("up", "up").await["prompt_tokens"] == 12 }).await;
    }
}

#[tokio::test]
async fn an_embedding_that_cannot_be_turned_into_the_asked_encoding_is_502() {
    for (entry, format) in [
        (json!({ "embedding": "not base64!" }), "float"),
        (json!({ "embedding": "AAA=" }), "float"),
        (json!({ "embedding": ["x"] }), "base64"),
        (json!({ "embedding": { "a": 1 } }), "base64"),
        (json!({ "embedding": null }), "base64"),
        (json!({}), "float"),
        (json!(5), "float"),
    ] {
        let body = json!({ "object": "list", "data": [entry] }).to_string();
        let provider = writing(http("200 OK\r\ncontent-type: application/json", &body)).await;
        let request = json!({ "model": "up", "input": "x", "encoding_format": format });
        let refused = one(&provider, "maxRetries: 0").post("/v1/embeddings", &request).await;
        assert_error(&refused, 502, "upstream_malformed", &body);
    }
}
