//! Backends of other dialects behind the OpenAI API: faults, fallback across dialects, streams that stop, what is
//! dropped, and every file of the users serving.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use stagedoor::settings::Simulated;
use stagedoor::simulate::server;

use crate::support::{Gateway, Provider, backend, chat_body, eventually, read_body, read_head};

const DIALECTS: [&str; 2] = ["anthropic", "google"];

fn simulated(name: &str, dialect: &str, more: &str) -> String {
    format!(
        "  - {{ name: {name}, type: simulated, config: {{ dialect: {dialect}, firstToken: 1ms, tokensPerSecond: 2000, maxRetries: 0{more} }} }}\n"
    )
}

/// A request with everything that all three dialects can carry.
fn rich(model: &str, stream: bool) -> Value {
    let image = "data:image/png;base64,iVBORw0KGgo=";
    json!({
        "model": model, "stream": stream, "stream_options": { "include_usage": true },
        "messages": [
            { "role": "system", "content": "brief" },
            { "role": "user", "content": [{ "type": "text", "text": "see" }, { "type": "image_url", "image_url": { "url": image } }] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "call_1", "type": "function", "function": { "name": "look", "arguments": "{\"at\":\"x\"}" } },
                { "id": "call_2", "type": "function", "function": { "name": "look", "arguments": "" } },
            ] },
            { "role": "tool", "tool_call_id": "call_2", "content": "second" },
            { "role": "tool", "tool_call_id": "call_1", "content": "first" },
        ],
        "tools": [{ "type": "function", "function": { "name": "look", "parameters": { "type": "object", "properties": { "at": { "type": "string" } } } } }],
        "response_format": { "type": "json_schema", "json_schema": { "name": "a", "strict": true, "schema": {
            "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"], "additionalProperties": false } } },
        "max_tokens": 200,
    })
}

#[tokio::test]
async fn a_rich_request_moves_from_dialect_to_dialect_until_one_answers() {
    let broken = ", faults: [ { kind: status, status: 500, probability: 1 } ]";
    let orders = [["openai", "anthropic", "google"], ["google", "openai", "anthropic"], ["anthropic", "google", "openai"]];
    for [first, second, third] in orders {
        let gateway = Gateway::start(&format!(
            "backends:\n{}{}{}  - {{ name: pool, type: pool, strategy: weighted, backends: [ {{ name: a, weight: 1000000 }}, {{ name: b, weight: 1000 }}, {{ name: c, weight: 0 }} ] }}\n",
            simulated("a", first, broken),
            simulated("b", second, broken),
            simulated("c", third, "")
        ));
        for stream in [false, true] {
            let reply = gateway.post("/v1/chat/completions", &rich("pool", stream)).await;
            assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("c")), "{third}: {}", reply.text());
            assert_eq!(reply.header("x-stagedoor-dropped"), None, "{third}");
            let text = match stream {
                true => reply.streamed_text(),
                false => reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
            };
            let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{third}: {text}"));
            assert!(answer["a"].is_string(), "{third}: {text}");
        }
    }
}

#[tokio::test]
async fn what_one_member_cannot_carry_another_is_asked_and_alone_it_is_refused_with_the_field() {
    for dialect in DIALECTS {
        let gateway = Gateway::start(&format!(
            "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: odd, weight: 1000000 }}, {{ name: plain, weight: 0 }} ] }}\n",
            simulated("odd", dialect, ""),
            simulated("plain", "openai", "")
        ));
        for stream in [false, true] {
            let mut body = chat_body("odd", "hi", stream);
            body["logit_bias"] = json!({ "1": 5 });
            let refused = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!((refused.status, refused.code().as_str()), (400, "unsupported_by_backend"), "{}", refused.text());
            assert_eq!(refused.json()["error"]["param"], "logit_bias");
            assert!(refused.text().contains("`odd`") && refused.header("x-should-retry") == Some("false"), "{}", refused.text());
            body["model"] = json!("pool");
            let served = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!((served.status, served.header("x-stagedoor-backend")), (200, Some("plain")), "{}", served.text());
            assert_eq!(served.header("x-stagedoor-attempts"), Some("1"), "nothing was asked of the other");
        }
    }
}

#[tokio::test]
async fn fields_that_are_dropped_are_named_in_the_reply() {
    let gateway = Gateway::start(&format!("backends:\n{}{}", simulated("ant", "anthropic", ""), simulated("gem", "google", "")));
    for (model, expected) in [("ant", "seed, verbosity"), ("gem", "verbosity")] {
        for stream in [false, true] {
            let mut body = chat_body(model, "hi", stream);
            body["seed"] = json!(7);
            body["verbosity"] = json!("low");
            body["store"] = json!(false);
            let reply = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!((reply.status, reply.header("x-stagedoor-dropped")), (200, Some(expected)), "{model}: {}", reply.text());
        }
    }
}

#[tokio::test]
async fn faults_of_every_kind_end_in_an_answer_or_in_a_typed_error() {
    for dialect in DIALECTS {
        let before = ["connect-refused", "reset", "slow-head", "status", "malformed", "error-event", "cut"];
        for kind in before {
            let more = match kind {
                "status" => ", status: 503",
                "slow-head" => ", after: 30s",
                "malformed" | "error-event" | "cut" => ", event: 0",
                _ => "",
            };
            let gateway = Gateway::start(&format!(
                "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: bad, weight: 1000000 }}, {{ name: good, weight: 0 }} ] }}\n",
                simulated("bad", dialect, &format!(", timeout: 500ms, faults: [ {{ kind: {kind}, probability: 1{more} }} ]")),
                simulated("good", "openai", "")
            ));
            for stream in [false, true] {
                let reply = gateway.post("/v1/chat/completions", &chat_body("pool", "hi", stream)).await;
                assert_eq!(
                    (reply.status, reply.header("x-stagedoor-backend")),
                    (200, Some("good")),
                    "{dialect} {kind}: {}",
                    reply.text()
                );
            }
        }
        for kind in ["malformed", "error-event", "cut"] {
            let gateway = Gateway::start(&format!(
                "backends:\n{}",
                simulated("bad", dialect, &format!(", faults: [ {{ kind: {kind}, probability: 1, event: 6 }} ]"))
            ));
            let reply = gateway.stream("bad", "one two three four").await;
            let events = reply.events();
            assert_eq!(reply.status, 200);
            let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
            assert!(last["error"]["code"].is_string(), "{dialect} {kind}: {events:?}");
            assert!(events.len() > 1 && !events.iter().any(|event| event == "[DONE]"), "{dialect} {kind}: {events:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended_and_a_client_that_leaves_ends_it() {
    for dialect in DIALECTS {
        let gateway = Gateway::start(&format!(
            "backends:\n{}",
            simulated("mute", dialect, ", timeouts: { idle: 300ms }, faults: [ { kind: stall, probability: 1, event: 6 } ]")
        ));
        let reply = gateway.stream("mute", "one two three four").await;
        let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "stream_ended", "{dialect}: {last}");

        let gateway = Gateway::start(&format!(
            "backends:\n{}",
            simulated("mute", dialect, ", faults: [ { kind: stall, probability: 1, event: 6 } ]")
        ));
        let mut stream = gateway.open_stream("mute", "one two three four").await;
        let head = read_head(&mut stream).await;
        assert_eq!(head.status, 200);
        drop(stream);
        eventually("the stream is cancelled", async || gateway.backend("mute").await["in_flight"] == 0).await;
    }
}

#[tokio::test]
async fn comments_keep_a_silent_translated_stream_alive() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.begin_stream().await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let events = [
            json!({ "type": "message_start", "message": { "id": "m", "model": "c", "usage": { "input_tokens": 1, "output_tokens": 1 } } }),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "late" } }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 1 } }),
            json!({ "type": "message_stop" }),
        ];
        for event in events {
            wire.chunk(&format!("data: {event}\n\n")).await;
        }
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let endpoint = provider.endpoint();
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: ant, type: anthropic, config: {{ apiKey: k, endpoint: \"{endpoint}\", defaultModel: claude-sonnet-5-5, keepAlive: 100ms }} }}\n"
    ));
    let mut stream = gateway.open_stream("ant", "hi").await;
    let head = read_head(&mut stream).await;
    let body = String::from_utf8(read_body(&mut stream, &head).await).unwrap();
    assert!(body.starts_with(": "), "{body}");
    assert!(body.contains("\"content\":\"late\"") && body.trim_end().ends_with("data: [DONE]"), "{body}");
}

#[tokio::test]
async fn a_path_that_is_passed_through_needs_a_backend_of_the_clients_dialect() {
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: files, path: \"/v1/files/*\", methods: [GET], backend: ant }}\n",
        simulated("ant", "anthropic", "")
    ));
    let refused = gateway.get("/v1/files/x").await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "unsupported_by_backend"), "{}", refused.text());
}

/// The users' file with each backend's address at a stand-in that speaks its dialect.
fn addressed(text: &str, ports: &BTreeMap<&str, u16>) -> String {
    let mut kind = "";
    let mut out = String::new();
    for line in text.lines() {
        out.push_str(line);
        out.push('\n');
        if let Some(word) = line.trim().strip_prefix("type: ") {
            kind = ["anthropic", "google", "openai", "mistral"].into_iter().find(|known| *known == word).unwrap_or_default();
        }
        if line.trim() == "config:" && !kind.is_empty() {
            let port = ports.get(kind).unwrap_or_else(|| &ports["openai"]);
            out.push_str(&format!("      endpoint: \"http://127.0.0.1:{port}\"\n"));
        }
    }
    out
}

#[test]
fn every_file_of_the_users_serves() {
    // The stand-ins are servers of their own, as `stagedoor simulate` starts them.
    actix_rt::System::new().block_on(async {
        let mut ports = BTreeMap::new();
        for dialect in ["openai", "anthropic", "google"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            ports.insert(dialect, listener.local_addr().unwrap().port());
            let quick = json!({ "dialect": dialect, "firstToken": { "secs": 0, "nanos": 1_000_000 }, "tokensPerSecond": 5000.0 });
            let settings: Simulated = serde_json::from_value(quick).unwrap();
            actix_rt::spawn(server::serve(listener, settings).unwrap());
        }
        let here = |name: &str| format!("http://127.0.0.1:{}", ports[name]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("user.json");
        let token = Provider::start(|_, mut wire| async move {
            wire.json(200, &json!({ "access_token": "t", "expires_in": 3599 })).await;
            Some(wire)
        })
        .await;
        let credentials = json!({ "type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r",
            "token_uri": format!("{}/token", token.endpoint().trim_end_matches("/v1")) });
        std::fs::write(&file, credentials.to_string()).unwrap();
        let environment: BTreeMap<String, String> = [
            ("OPENAI_API_KEY", "k".to_owned()),
            ("OPENAI_ORG_ID", "o".to_owned()),
            ("ANTHROPIC_API_KEY", "k".to_owned()),
            ("AZURE_OPENAI_API_KEY", "k".to_owned()),
            ("AZURE_OPENAI_ENDPOINT", here("openai")),
            ("GOOGLE_AI_API_KEY", "k".to_owned()),
            ("GCP_PROJECT_ID", "project".to_owned()),
            ("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string()),
            ("LLAMA_ENDPOINT_URL", here("openai")),
            ("LLAMA_API_KEY", "k".to_owned()),
            ("MISTRAL_API_KEY", "k".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for entry in std::fs::read_dir("tests/user-config").unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let names: Vec<&str> = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("- name: \"")?.strip_suffix('"'))
                .filter(|name| *name != "chat")
                .collect();
            let routed = text.contains("routes:");
            let gateway = Gateway::start_with(&addressed(&text, &ports), &environment);
            // With a route, the route's pool takes every model.
            for name in if routed { &names[..1] } else { &names[..] } {
                for stream in [false, true] {
                    let reply = gateway.post("/v1/chat/completions", &chat_body(name, "hello", stream)).await;
                    assert_eq!(reply.status, 200, "{} {name}: {}", path.display(), reply.text());
                    let said = if stream { reply.streamed_text() } else { reply.text() };
                    assert!(said.contains("Simulated answer"), "{} {name}: {said}", path.display());
                }
            }
        }
    });
}

#[tokio::test]
async fn signatures_are_remembered_over_a_restart_of_the_backend() {
    let provider = Provider::start(|received, mut wire| async move {
        let body = received.json();
        let turns = body["messages"].as_array().map_or(0, Vec::len);
        let content = if turns == 1 {
            json!([{ "type": "thinking", "thinking": "", "signature": "SIG" }, { "type": "tool_use", "id": "toolu_1", "name": "f", "input": {} }])
        } else {
            json!([{ "type": "text", "text": body["messages"][1]["content"][0]["signature"].as_str().unwrap_or("lost") }])
        };
        let reply = json!({ "id": "m", "type": "message", "role": "assistant", "model": "c", "content": content, "stop_reason": "end_turn",
            "usage": { "input_tokens": 1, "output_tokens": 1 } });
        wire.json(200, &reply).await;
        Some(wire)
    })
    .await;
    let endpoint = provider.endpoint();
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: ant, type: anthropic, config: {{ apiKey: k, endpoint: \"{endpoint}\", defaultModel: claude-sonnet-5-5 }} }}\n"
    ));
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let mut body = chat_body("ant", "hi", false);
    body["tools"] = tools;
    let first = gateway.post("/v1/chat/completions", &body).await;
    assert_eq!(first.json()["choices"][0]["message"]["tool_calls"][0]["id"], "toolu_1", "{}", first.text());
    let restarted = gateway.send("POST", "/admin/api/backends/ant/restart?wait=1", &[], b"").await;
    assert_eq!(restarted.status, 200);
    body["messages"] = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "tool_calls": [{ "id": "toolu_1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "toolu_1", "content": "r" },
    ]);
    let second = gateway.post("/v1/chat/completions", &body).await;
    assert_eq!(second.json()["choices"][0]["message"]["content"], "SIG", "{}", second.text());
}

#[tokio::test]
async fn known_models_are_listed_with_what_is_known_of_them() {
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: ant, type: anthropic, config: {{ apiKey: k, defaultModel: claude-3-opus-20240229 }} }}\n{}catalogue:\n  \"anthropic/claude-opus-5\": {{ contextTokens: 5 }}\n",
        backend("up", "http://127.0.0.1:9", "")
    ));
    let list = gateway.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    for id in ["ant", "up", "ant/claude-3-opus-20240229", "claude-sonnet-5-5", "ant/claude-sonnet-5-5"] {
        assert!(ids.contains(&id), "{id} in {ids:?}");
    }
    assert!(!ids.contains(&"claude-3-5-sonnet-20241022"), "a retired model is not offered");
    let one = gateway.get("/v1/models/claude-opus-5").await.json();
    assert_eq!((&one["context_window"], &one["max_output_tokens"]), (&json!(5), &json!(128_000)));
    let old = gateway.get("/v1/models/ant%2Fclaude-3-opus-20240229").await.json();
    assert_eq!(old["shutdown_date"], "2026-01-05", "{old}");
}

#[tokio::test]
async fn a_schema_that_is_too_large_is_refused_by_name_and_the_gateway_serves_on() {
    let gateway = Gateway::start(
        "backends:\n  - { name: claude, type: simulated, config: { dialect: anthropic } }\n  - { name: gemini, type: simulated, config: { dialect: google } }\n",
    );
    let large: Vec<u32> = (0..300_000).collect();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer", "enum": large } }, "required": ["a"] });
    for model in ["claude", "gemini"] {
        let mut body = chat_body(model, "hi", false);
        body["tools"] = json!([{ "type": "function", "function": { "name": "f", "strict": true, "parameters": schema } }]);
        let refused = gateway.post("/v1/chat/completions", &body).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tools")), "{model}: {}", refused.text());
        assert!(refused.text().contains("larger than 1MiB"), "{model}: {}", refused.text());
        let mut body = chat_body(model, "hi", false);
        body["response_format"] = json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": schema } });
        let refused = gateway.post("/v1/chat/completions", &body).await;
        let param = &refused.json()["error"]["param"];
        assert_eq!((refused.status, param), (400, &json!("response_format")), "{model}: {}", refused.text());
        assert_eq!(gateway.chat(model, "hi").await.status, 200);
    }
}
