//! What the fuzz targets do with their bytes: feed one decoder and check what must hold for any input.
//!
//! The first bytes choose the circumstances (which backend, which request, where a stream is cut); the rest is what a
//! client or a provider sent. `seeds.py` writes inputs of the same form from the golden files.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use stagedoor::chat::{self, Endpoint, Shape};
use stagedoor::dialect::sse::{self, Splitter};
use stagedoor::dialect::{Ask, Codec, Dialect, ErrorReply, Image};
use stagedoor::settings::{self, Backend};

/// Backends by dialect; the order is known to `seeds.py`.
const BACKENDS: &[(&str, &[&str])] = &[
    (
        "openai",
        &[
            r#"{ "type": "openai", "config": { "apiKey": "k" } }"#,
            r#"{ "type": "azure-openai", "config": { "apiKey": "k", "endpoint": "https://r.openai.azure.com", "deploymentName": "d" } }"#,
            r#"{ "type": "mistral", "config": { "apiKey": "k" } }"#,
            r#"{ "type": "meta", "config": { "endpoint": "http://h/v1", "streamUsage": false } }"#,
        ],
    ),
    ("anthropic", &[r#"{ "type": "anthropic", "config": { "apiKey": "k" } }"#]),
    (
        "google",
        &[
            r#"{ "type": "google", "config": { "apiKey": "k" } }"#,
            r#"{ "type": "google", "config": { "apiKey": "k", "projectId": "p", "location": "global" } }"#,
        ],
    ),
];

/// Requests whose replies are read.
const REQUESTS: &[(Endpoint, &str)] = &[
    (
        Endpoint::Chat,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#,
    ),
    (Endpoint::Chat, r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#),
    (
        Endpoint::Chat,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"reasoning_effort":"low","parallel_tool_calls":false,
            "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],
            "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{}}}}}"#,
    ),
    (Endpoint::Embeddings, r#"{"model":"m","input":["a","b"],"encoding_format":"base64"}"#),
    (Endpoint::Embeddings, r#"{"model":"m","input":["a","b"]}"#),
    (Endpoint::Completions, r#"{"model":"m","prompt":"hi","stream":true}"#),
];

/// Models whose families are treated differently.
const MODELS: &[&str] = &[
    "m",
    "gpt-4o",
    "o3",
    "claude-sonnet-5-5",
    "claude-haiku-4-5",
    "claude-opus-4-6",
    "gemini-3.8-flash",
    "gemini-3.5-flash",
    "gemini-2.5-pro",
    "mistral-large-latest",
];

struct Lane {
    backend: Arc<Backend>,
    codec: Codec,
}

/// Splits events at the places of the input's first two bytes, and whole.
pub fn sse(data: &[u8]) {
    let Some((cuts, stream)) = data.split_first_chunk::<2>() else { return };
    let split = |pieces: Vec<Bytes>| {
        let (mut splitter, mut events) = (Splitter::new(1 << 12), Vec::new());
        let mut each = |event: Bytes| {
            if let Some(data) = sse::data(&event) {
                events.push(data.into_owned());
            }
        };
        let mut refused = None;
        for piece in pieces {
            refused = refused.or_else(|| splitter.feed(piece, &mut each).err());
        }
        if refused.is_none() {
            splitter.finish().into_iter().for_each(each);
        }
        (events, refused)
    };
    let whole = split(vec![Bytes::copy_from_slice(stream)]);
    assert_eq!(split(pieces(stream, *cuts)), whole, "the events depend on where the stream was cut");
}

/// Scans a request body.
pub fn scan(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    for shape in [Shape::Free, Shape::Model, Shape::Chat] {
        if chat::scan(&body, shape).is_ok() {
            assert_json(&body, "a scanned body");
        }
    }
}

/// Encodes a request.
pub fn encode(dialect: &'static str, data: &[u8]) {
    let Some(([way, model], text)) = data.split_first_chunk::<2>() else { return };
    let endpoint = [Endpoint::Chat, Endpoint::Embeddings, Endpoint::Completions][usize::from(way >> 6) % 3];
    asking(dialect, (*way, *model), endpoint, &Bytes::copy_from_slice(text), |codec, ask| {
        let _ = codec.images(endpoint, ask.body, ask.scan);
        let _ = codec.url(ask.backend, endpoint, "/path", ask.model, ask.scan.stream);
        if let Ok(encoded) = codec.encode(ask) {
            encoded.bodies.iter().for_each(|body| assert_json(body, "an encoded request"));
        }
    });
}

/// Decodes a whole reply.
pub fn decode(dialect: &'static str, data: &[u8]) {
    let Some(([way, model], reply)) = data.split_first_chunk::<2>() else { return };
    let (endpoint, request) = request(*way);
    asking(dialect, (*way, *model), endpoint, &request, |codec, ask| {
        let _ = codec.failure_in(reply);
        if let Ok(whole) = codec.decode(ask, &[Bytes::copy_from_slice(reply)]) {
            assert_json(&whole.body, "a decoded reply");
        }
    });
}

/// Relays a stream, cut at the places of the input's third and fourth byte, and whole.
pub fn relay(dialect: &'static str, data: &[u8]) {
    let Some(([way, model, first, second], stream)) = data.split_first_chunk::<4>() else { return };
    let (endpoint, request) = request(*way);
    asking(dialect, (*way, *model), endpoint, &request, |codec, ask| {
        let run = |pieces: Vec<Bytes>| {
            let (mut relay, mut events, mut failed) = (codec.relay(ask), Vec::new(), None);
            for piece in pieces {
                failed = failed.or_else(|| relay.feed(piece).err());
            }
            failed = failed.or_else(|| relay.finish().err());
            while let Some(event) = relay.pop() {
                events.extend(sse::data(&event).map(|data| data.into_owned()));
            }
            let ended = format!("{:?} {:?}", failed.map(|failure| (failure.class, failure.message)), relay.usage());
            (events, ended)
        };
        let (whole, cut) = (run(vec![Bytes::copy_from_slice(stream)]), run(pieces(stream, [*first, *second])));
        // Their bytes may differ: where a blank line is CRLF, the LF may come with the next event.
        assert_eq!(cut, whole, "the relay depends on where the stream was cut");
        for data in &whole.0 {
            if data.trim_ascii() != b"[DONE]" {
                assert_json(data, "an event for the client");
            }
        }
    });
}

/// Classifies an error reply.
pub fn error(dialect: &'static str, data: &[u8]) {
    let Some(([way, high, low], body)) = data.split_first_chunk::<3>() else { return };
    let status = 100 + u16::from_be_bytes([*high, *low]) % 500;
    with(dialect, *way, |lane| {
        let failure = lane.codec.failure(&ErrorReply { status, retry_after: None, body });
        assert!(failure.message.len() <= body.len().max(4_096), "a message of {} bytes", failure.message.len());
    });
}

/// The request whose reply is read.
fn request(way: u8) -> (Endpoint, Bytes) {
    let (endpoint, text) = REQUESTS[usize::from(way >> 3) % REQUESTS.len()];
    (endpoint, Bytes::from_static(text.as_bytes()))
}

/// Runs with one of the dialect's backends and models, unless the request is none.
fn asking(dialect: &'static str, (way, model): (u8, u8), endpoint: Endpoint, body: &Bytes, run: impl FnOnce(&Codec, &Ask<'_>)) {
    thread_local!(static IMAGES: HashMap<String, Image> = HashMap::from([(
        "https://example.com/a.png".to_owned(),
        Image { media: "image/png", base64: "iVBORw0KGgo=".to_owned() },
    )]));
    let Ok(scan) = chat::scan(body, Shape::Free) else { return };
    let model = MODELS[usize::from(model) % MODELS.len()];
    // Every second id is one for which something was kept.
    let recall = |call: &str| (call.len().is_multiple_of(2)).then(|| Arc::from("c2lnbmF0dXJl"));
    with(dialect, way, |lane| {
        IMAGES.with(|images| {
            let ask = Ask {
                endpoint,
                body,
                scan: &scan,
                model,
                backend: &lane.backend,
                id: "req_fuzz",
                now: 1_800_000_000,
                recall: &recall,
                images,
            };
            run(&lane.codec, &ask);
        });
    });
}

/// Runs with one of the dialect's backends.
fn with(dialect: &'static str, way: u8, run: impl FnOnce(&Lane)) {
    thread_local!(static LANES: OnceCell<Vec<Lane>> = const { OnceCell::new() });
    LANES.with(|lanes| {
        let lanes = lanes.get_or_init(|| lanes_of(dialect));
        run(&lanes[usize::from(way & 7) % lanes.len()]);
    });
}

fn lanes_of(dialect: &str) -> Vec<Lane> {
    let (_, entries) = BACKENDS.iter().find(|(name, _)| *name == dialect).expect("a dialect of the list above");
    let lane = |entry: &&str| {
        let named = entry.replacen('{', r#"{ "name": "b","#, 1);
        let document = format!(r#"{{ "backends": [{named}] }}"#);
        let settings = settings::from_text("fuzz", &document, &BTreeMap::new()).expect("the backends above are valid");
        let backend = Arc::clone(&settings.backends[0]);
        Lane { codec: Dialect::codec(&backend), backend }
    };
    entries.iter().map(lane).collect()
}

/// The stream in pieces whose lengths follow from two bytes.
fn pieces(stream: &[u8], [first, second]: [u8; 2]) -> Vec<Bytes> {
    let lengths = [usize::from(first % 16) + 1, usize::from(second) + 1, usize::from(first / 16) + 1];
    let (mut rest, mut pieces) = (stream, Vec::new());
    for length in lengths.into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(Bytes::copy_from_slice(piece));
        rest = after;
    }
    pieces
}

fn assert_json(text: &[u8], what: &str) {
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(text) {
        // The gateway's own reader goes deeper than this one.
        let too_deep = error.to_string().contains("recursion limit");
        assert!(too_deep, "{what} is not JSON: {error}: {}", String::from_utf8_lossy(text));
    }
}
