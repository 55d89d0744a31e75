//! Properties of translated streams: wherever the bytes are cut, the client gets the same; nothing is lost or doubled.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use stagedoor::chat::{Endpoint, Shape, Usage, scan};
use stagedoor::dialect::{Ask, Dialect};
use stagedoor::settings::{self, Settings};

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let document = json!({ "backends": [
        { "name": "a", "type": "anthropic", "config": { "apiKey": "k", "defaultModel": "claude-sonnet-5-5" } },
        { "name": "g", "type": "google", "config": { "apiKey": "k", "defaultModel": "gemini-3.8-flash" } },
    ] });
    settings::from_text("properties", &document.to_string(), &BTreeMap::new()).unwrap()
});

/// What one answer says: texts, thoughts and calls, in order.
#[derive(Debug, Clone)]
enum Said {
    Text(Vec<String>),
    Thought(Vec<String>),
    Call(String, Value, Vec<usize>),
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-zé\"\\\\\n\u{2028}😀 ]{1,8}", 1..4)
}

fn said() -> impl Strategy<Value = Said> {
    let arguments = prop::collection::btree_map("[a-z]{1,4}", "[a-zé\"\\\\😀]{0,6}", 0..3)
        .prop_map(|map| Value::Object(map.into_iter().map(|(key, value)| (key, json!(value))).collect()));
    prop_oneof![
        words().prop_map(Said::Text),
        words().prop_map(Said::Thought),
        ("[a-z_]{1,8}", arguments, prop::collection::vec(any::<prop::sample::Index>(), 0..4))
            .prop_map(|(name, input, cuts)| Said::Call(name, input, cuts.iter().map(|cut| cut.index(1_000)).collect())),
    ]
}

/// A text in pieces that end between characters.
fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (letters.len() + 1)).chain([0, letters.len()]).collect();
    places.sort_unstable();
    places.windows(2).map(|pair| letters[pair[0]..pair[1]].iter().collect()).collect()
}

fn anthropic(all: &[Said], tokens: (u64, u64, u64)) -> Vec<Value> {
    let (input, cached, output) = tokens;
    let usage = json!({ "input_tokens": input, "cache_read_input_tokens": cached, "output_tokens": 1 });
    let mut events = vec![json!({ "type": "message_start", "message": { "id": "m", "model": "c", "usage": usage } })];
    for (index, said) in all.iter().enumerate() {
        let (block, deltas): (Value, Vec<Value>) = match said {
            Said::Text(words) => (
                json!({ "type": "text", "text": "" }),
                words.iter().map(|word| json!({ "type": "text_delta", "text": word })).collect(),
            ),
            Said::Thought(words) => (
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
                words
                    .iter()
                    .map(|word| json!({ "type": "thinking_delta", "thinking": word }))
                    .chain([json!({ "type": "signature_delta", "signature": "S" })])
                    .collect(),
            ),
            Said::Call(name, input, cuts) => (
                json!({ "type": "tool_use", "id": format!("t{index}"), "name": name, "input": {} }),
                pieces(&input.to_string(), cuts)
                    .iter()
                    .map(|piece| json!({ "type": "input_json_delta", "partial_json": piece }))
                    .collect(),
            ),
        };
        events.push(json!({ "type": "content_block_start", "index": index, "content_block": block }));
        events.extend(deltas.iter().map(|delta| json!({ "type": "content_block_delta", "index": index, "delta": delta })));
        events.push(json!({ "type": "content_block_stop", "index": index }));
    }
    events.push(json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": output } }));
    events.push(json!({ "type": "message_stop" }));
    events
}

fn google(all: &[Said], tokens: (u64, u64, u64)) -> Vec<Value> {
    let (input, cached, output) = tokens;
    let chunk = |part: Value| json!({ "candidates": [{ "content": { "parts": [part] } }], "responseId": "r" });
    let mut events = Vec::new();
    for (index, said) in all.iter().enumerate() {
        match said {
            Said::Text(words) => events.extend(words.iter().map(|word| chunk(json!({ "text": word })))),
            Said::Thought(words) => {
                events.extend(words.iter().map(|word| chunk(json!({ "text": word, "thought": true }))));
            }
            Said::Call(name, input, _) => {
                let call = json!({ "id": format!("t{index}"), "name": name, "args": input });
                events.push(chunk(json!({ "functionCall": call, "thoughtSignature": "S" })));
            }
        }
    }
    let prompt = input + cached;
    let usage = json!({ "promptTokenCount": prompt, "cachedContentTokenCount": cached, "candidatesTokenCount": output,
        "totalTokenCount": prompt + output });
    events.push(json!({ "candidates": [{ "finishReason": "STOP" }], "usageMetadata": usage }));
    events
}

/// What a client gathers from a stream.
#[derive(Debug, Default, PartialEq)]
struct Gathered {
    text: String,
    thoughts: String,
    calls: Vec<(String, String)>,
    finishes: usize,
    dones: usize,
    failed: bool,
    usage: Option<Usage>,
    kept: usize,
}

fn gather(backend: usize, stream: &[u8], cuts: &[usize], upto: usize) -> Gathered {
    let backend = &SETTINGS.backends[backend];
    let body = Bytes::from_static(br#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#);
    let scan = scan(&body, Shape::Chat).unwrap();
    let ask = Ask {
        endpoint: Endpoint::Chat,
        body: &body,
        scan: &scan,
        model: backend.default_model.as_deref().unwrap(),
        backend,
        id: "id",
        now: 0,
        recall: &|_| None,
        images: &HashMap::new(),
    };
    let mut relay = Dialect::codec(backend).relay(&ask);
    let stream = &stream[..upto];
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([0, stream.len()]).collect();
    places.sort_unstable();
    let mut out = Gathered::default();
    let take = |relay: &mut stagedoor::dialect::Relay, out: &mut Gathered| {
        while let Some(event) = relay.pop() {
            let text = String::from_utf8(event.to_vec()).unwrap();
            let data = text.strip_prefix("data: ").unwrap().trim_end();
            if data == "[DONE]" {
                out.dones += 1;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            let choice = &chunk["choices"][0];
            let delta = &choice["delta"];
            out.text.push_str(delta["content"].as_str().unwrap_or_default());
            out.thoughts.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                if let Some(name) = call["function"]["name"].as_str() {
                    assert_eq!(index, out.calls.len(), "calls are numbered in order");
                    out.calls.push((name.to_owned(), String::new()));
                }
                out.calls[index].1.push_str(call["function"]["arguments"].as_str().unwrap());
            }
            out.finishes += usize::from(!choice["finish_reason"].is_null());
        }
    };
    for pair in places.windows(2) {
        if relay.feed(Bytes::copy_from_slice(&stream[pair[0]..pair[1]])).is_err() {
            out.failed = true;
            break;
        }
        take(&mut relay, &mut out);
        // It goes out with the finish, and not before: a reply without one is not whole.
        let kept = relay.keepsakes().len();
        assert!(kept == 0 || out.finishes > 0, "kept before the finish");
        out.kept += kept;
    }
    if !out.failed {
        out.failed = relay.finish().is_err();
    }
    take(&mut relay, &mut out);
    out.usage = relay.usage();
    out.kept += relay.keepsakes().len();
    out
}

fn wire(events: &[Value], end: &str) -> Vec<u8> {
    let named = |event: &Value| match event["type"].as_str() {
        Some(name) => format!("event: {name}{end}data: {event}{end}{end}"),
        None => format!("data: {event}{end}{end}"),
    };
    events.iter().map(named).collect::<String>().into_bytes()
}

proptest! {
    #[test]
    fn a_translated_stream_says_what_was_said_wherever_its_bytes_are_cut(
        all in prop::collection::vec(said(), 1..5),
        tokens in (0u64..1_000, 0u64..1_000, 1u64..1_000),
        cuts in prop::collection::vec(0usize..100_000, 0..12),
        carriage in any::<bool>(),
    ) {
        let end = if carriage { "\r\n" } else { "\n" };
        for (backend, events) in [(0, anthropic(&all, tokens)), (1, google(&all, tokens))] {
            let stream = wire(&events, end);
            let whole = gather(backend, &stream, &[], stream.len());
            prop_assert_eq!(&gather(backend, &stream, &cuts, stream.len()), &whole);
            prop_assert!(!whole.failed);
            prop_assert_eq!((whole.finishes, whole.dones), (1, 1));
            let joined = |pick: fn(&Said) -> Option<&Vec<String>>| all.iter().filter_map(pick).flatten().cloned().collect::<String>();
            prop_assert_eq!(&whole.text, &joined(|said| match said { Said::Text(words) => Some(words), _ => None }));
            prop_assert_eq!(&whole.thoughts, &joined(|said| match said { Said::Thought(words) => Some(words), _ => None }));
            let calls: Vec<(String, Value)> = whole
                .calls
                .iter()
                .map(|(name, text)| (name.clone(), serde_json::from_str(text).unwrap()))
                .collect();
            let made: Vec<(String, Value)> = all
                .iter()
                .filter_map(|said| match said { Said::Call(name, input, _) => Some((name.clone(), input.clone())), _ => None })
                .collect();
            prop_assert_eq!(calls, made);
            let usage = whole.usage.unwrap();
            prop_assert_eq!(usage.prompt_tokens, tokens.0 + tokens.1);
            prop_assert_eq!(usage.cached_tokens, tokens.1);
            prop_assert_eq!(usage.completion_tokens, tokens.2);
        }
    }

    #[test]
    fn a_stream_that_breaks_off_never_ends_well_and_never_twice(
        all in prop::collection::vec(said(), 1..4),
        place in any::<prop::sample::Index>(),
    ) {
        for (backend, events) in [(0, anthropic(&all, (1, 1, 1))), (1, google(&all, (1, 1, 1)))] {
            let last = events.len() - 1;
            // Everything before the event that ends it: for Google that with the finish reason, for Anthropic the stop.
            let stream = wire(&events[..last], "\n");
            let broken = gather(backend, &stream, &[], place.index(stream.len() + 1));
            prop_assert!(broken.failed);
            prop_assert_eq!(broken.dones, 0);
            prop_assert!(broken.finishes <= 1);
        }
    }
}
