//! Walks `tests/golden`: for each case, what the client sent and what the provider answered, and what becomes of both.
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden` writes the expectations anew; review the difference like code.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use stagedoor::chat::{Endpoint, Failure, Keepsake, Shape, scan};
use stagedoor::dialect::{Ask, Codec, Dialect, ErrorReply, Image};
use stagedoor::settings;

#[test]
fn every_golden_case_gives_what_it_gave() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for dialect in std::fs::read_dir("tests/golden").unwrap() {
        for case in std::fs::read_dir(dialect.unwrap().path()).unwrap() {
            seen += 1;
            let path = case.unwrap().path();
            if let Err(difference) = check(&path) {
                wrong.push(format!("{}: {difference}", path.display()));
            }
        }
    }
    assert!(seen > 0, "no case was found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check(path: &Path) -> Result<(), String> {
    let mut case: Map<String, Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let actual = run(&case);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        case.insert("expected".into(), actual);
        std::fs::write(path, format!("{:#}\n", Value::Object(case))).unwrap();
        return Ok(());
    }
    if case["expected"] == actual { Ok(()) } else { Err(format!("\nexpected {:#}\nbut got  {actual:#}", case["expected"])) }
}

/// Carries a case out: every part that is there.
fn run(case: &Map<String, Value>) -> Value {
    let mut entry = case["backend"].clone();
    entry["name"] = json!("b");
    let document = json!({ "backends": [entry] }).to_string();
    let settings = settings::from_text("golden", &document, &BTreeMap::new()).unwrap();
    let backend = &settings.backends[0];
    let codec = Dialect::codec(backend);
    let path = case.get("path").and_then(Value::as_str).unwrap_or("/chat/completions");
    let endpoint = Endpoint::of_path(path);
    let body = Bytes::from(case["request"].to_string());
    let scan = scan(&body, Shape::Free).unwrap();
    let model = backend.native_model(scan.model.as_deref(), true).unwrap_or_default();
    let fetched = case.get("images").and_then(Value::as_object).into_iter().flatten();
    let images = fetched
        .map(|(url, base64)| (url.clone(), Image { media: "image/png", base64: base64.as_str().unwrap().to_owned() }))
        .collect();
    let ask = Ask {
        endpoint,
        body: &body,
        scan: &scan,
        model,
        backend,
        id: "req_golden",
        now: 1_800_000_000,
        recall: &|call| case.get("kept")?.get(call)?.as_str().map(Into::into),
        images: &images,
    };

    let mut out = Map::new();
    out.insert("url".into(), json!(codec.url(backend, endpoint, path, model, scan.stream)));
    match codec.encode(&ask) {
        Ok(encoded) => {
            let sent = |sent: &Bytes| if *sent == body { json!("the same bytes") } else { parse(sent) };
            let all: Vec<Value> = encoded.bodies.iter().map(sent).collect();
            out.insert("sent".into(), if all.len() == 1 { all[0].clone() } else { json!(all) });
            if !encoded.headers.is_empty() {
                out.insert("headers".into(), json!(encoded.headers.into_iter().collect::<BTreeMap<_, _>>()));
            }
            if !encoded.dropped.is_empty() {
                out.insert("dropped".into(), json!(encoded.dropped.to_vec()));
            }
        }
        Err(failure) => drop(out.insert("refused".into(), describe(&failure))),
    }
    if let Some(reply) = case.get("reply") {
        // Embeddings may have come in several parts.
        let parts = reply.as_array().cloned().unwrap_or_else(|| vec![reply.clone()]);
        let bytes: Vec<Bytes> = parts.iter().map(|part| Bytes::from(part.to_string())).collect();
        let answered = match codec.decode(&ask, &bytes) {
            Ok(whole) => {
                let body = if whole.body == bytes[0] { json!("the same bytes") } else { parse(&whole.body) };
                let mut answered = json!({ "body": body, "usage": whole.usage });
                if !whole.keepsakes.is_empty() {
                    answered["kept"] = kept(&whole.keepsakes);
                }
                answered
            }
            Err(failure) => describe(&failure),
        };
        out.insert("answered".into(), answered);
    }
    if let Some(events) = case.get("events").and_then(Value::as_array) {
        out.insert("streamed".into(), relay(&codec, &ask, events));
    }
    if let Some(error) = case.get("error") {
        let text = match &error["body"] {
            Value::String(text) => text.clone(),
            tree => tree.to_string(),
        };
        let status = u16::try_from(error["status"].as_u64().unwrap()).unwrap();
        let failure = codec.failure(&ErrorReply { status, retry_after: None, body: text.as_bytes() });
        out.insert("failed".into(), describe(&failure));
    }
    Value::Object(out)
}

fn kept(keepsakes: &[Keepsake]) -> Value {
    Value::Object(keepsakes.iter().map(|keepsake| (keepsake.call.clone(), json!(keepsake.state))).collect())
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn describe(failure: &Failure) -> Value {
    json!({
        "class": failure.class.word(), "message": failure.message, "type": failure.kind, "param": failure.param,
        "code": failure.code, "status": failure.status, "retry_after": failure.retry_after.map(|wait| wait.as_secs_f64()),
    })
}

/// Relays the events, whose text may also be raw; each comes out as its data.
fn relay(codec: &Codec, ask: &Ask<'_>, events: &[Value]) -> Value {
    let mut relay = codec.relay(ask);
    let mut out = Vec::new();
    let mut failure = None;
    for event in events {
        let data = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
        failure = relay.feed(Bytes::from(format!("data: {data}\n\n"))).err();
        while let Some(bytes) = relay.pop() {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let data = text.trim().trim_start_matches("data: ").to_owned();
            out.push(serde_json::from_str(&data).unwrap_or_else(|_| json!(data)));
        }
        if failure.is_some() {
            break;
        }
    }
    if failure.is_none() {
        failure = relay.finish().err();
        while let Some(bytes) = relay.pop() {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let data = text.trim().trim_start_matches("data: ").to_owned();
            out.push(serde_json::from_str(&data).unwrap_or_else(|_| json!(data)));
        }
    }
    let mut streamed = json!({ "events": out, "usage": relay.usage(), "failure": failure.as_ref().map(describe) });
    let keepsakes = relay.keepsakes();
    if !keepsakes.is_empty() {
        streamed["kept"] = kept(&keepsakes);
    }
    streamed
}
