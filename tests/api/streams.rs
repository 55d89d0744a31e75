//! Streams: when they are committed, how they end, and that they are whole however they are cut.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::readers::{reported, watched};
use crate::support::{
    Gateway, Head, PATIENCE, Provider, Received, Reply, Wire, backend, completion, eventually, finish_event, read_chunk,
    read_head, word_event,
};

pub const DONE: &str = "data: [DONE]\n\n";
const ERROR_EVENT: &str = "data: {\"error\":{\"message\":\"boom\",\"type\":\"server_error\",\"code\":\"internal\"}}\n\n";
const ROLE_EVENT: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";

/// A reply being read chunk by chunk.
pub struct Listener {
    pub head: Head,
    pub seen: Vec<u8>,
    stream: TcpStream,
}

impl Listener {
    /// Opens a streamed chat and reads the reply's head.
    pub async fn open(gateway: &Gateway, model: &str, text: &str) -> Self {
        Self::of(gateway.open_stream(model, text).await).await
    }

    /// Reads the head of a reply that is on its way.
    pub async fn of(mut stream: TcpStream) -> Self {
        let head = read_head(&mut stream).await;
        Self { head, seen: Vec::new(), stream }
    }

    /// Reads until the body so far holds a text.
    pub async fn until(&mut self, wanted: &str) {
        while !self.text().contains(wanted) {
            let chunk = timeout(PATIENCE, read_chunk(&mut self.stream)).await.expect("the next chunk comes in time");
            let chunk = chunk.filter(|chunk| !chunk.is_empty());
            self.seen.extend(chunk.unwrap_or_else(|| panic!("the body ends without {wanted}: {}", self.text())));
        }
    }

    /// Reads to the end; says whether the HTTP body ended in order.
    pub async fn finish(mut self) -> (Reply, bool) {
        let whole = loop {
            match timeout(PATIENCE, read_chunk(&mut self.stream)).await.expect("the next chunk comes in time") {
                Some(chunk) if chunk.is_empty() => break true,
                Some(chunk) => self.seen.extend(chunk),
                None => break false,
            }
        };
        (Reply { status: self.head.status, headers: self.head.headers, body: self.seen }, whole)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

/// The data of every event, read as the standard for server-sent events says.
pub fn sse(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
    let data = |event: &str| {
        let lines: Vec<&str> = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
        (!lines.is_empty())
            .then(|| lines.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n"))
    };
    text.split("\n\n").filter_map(data).collect()
}

/// The text of a streamed chat and whether `[DONE]` ended it.
pub fn said(bytes: &[u8]) -> (String, bool) {
    let events = sse(bytes);
    let is_done = events.last().is_some_and(|last| last == "[DONE]");
    let chunks = events.iter().filter(|data| *data != "[DONE]");
    let word = |data: &String| {
        let chunk: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    };
    (chunks.filter_map(word).collect(), is_done)
}

/// A stream that broke after `text`: exactly one typed error event, at the end, no `[DONE]`, an orderly end of the body.
pub fn assert_broken_after(text: &str, case: &str, (reply, whole): (Reply, bool)) {
    assert_eq!(reply.status, 200, "{case}");
    assert!(whole, "{case}: the body is cut");
    let events = sse(&reply.body);
    assert!(!events.iter().any(|data| data == "[DONE]"), "{case}: {events:?}");
    let is_error = |data: &&String| serde_json::from_str::<Value>(data).is_ok_and(|event| !event["error"].is_null());
    assert_eq!(events.iter().filter(is_error).count(), 1, "{case}: {events:?}");
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap_or_else(|_| panic!("{case}: {events:?}"));
    for field in ["message", "type", "code"] {
        assert!(error["error"][field].is_string(), "{case}: {error}");
    }
    assert_eq!(said(&reply.body).0, text, "{case}");
}

/// One backend `up` with further keys of its `config`.
pub fn one(provider: &Provider, more: &str) -> Gateway {
    Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), more)))
}

/// A pool `pool` whose member `second` is asked only when `first` has failed.
pub fn pair(first: &Provider, second: &Provider, more: &str) -> Gateway {
    Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: first, weight: 1 }}, {{ name: second, weight: 0 }} ] }}\n",
        backend("first", &first.endpoint(), more),
        backend("second", &second.endpoint(), more),
    ))
}

/// Streams these words and ends in order.
async fn say(wire: &mut Wire, text: &str) {
    for word in text.split_inclusive(' ') {
        wire.chunk(&word_event(word)).await;
    }
    wire.chunk(&finish_event()).await;
    wire.chunk(DONE).await;
    wire.end_chunks().await;
}

fn reset(wire: Wire) {
    wire.0.set_zero_linger().unwrap();
    drop(wire);
}

/// Fails a streamed request before any content.
async fn fail_before_content(how: &str, mut wire: Wire) {
    match how {
        "status" => return wire.json(500, &serde_json::json!({ "error": { "message": "boom" } })).await,
        "json" => return wire.json(200, &serde_json::json!({ "hello": "there" })).await,
        "error in json" => return wire.json(200, &serde_json::json!({ "error": { "message": "boom" } })).await,
        _ => assert!(wire.begin_stream().await),
    }
    match how {
        "error event" => drop(wire.chunk(ERROR_EVENT).await),
        "error event after a role" => drop(wire.chunk(&format!("{ROLE_EVENT}{ERROR_EVENT}")).await),
        "cut" => {}
        "cut after a role" => drop(wire.chunk(ROLE_EVENT).await),
        "end after a role" => drop(wire.chunk(ROLE_EVENT).await && wire.end_chunks().await),
        "text" => drop(wire.chunk("data: hello there\n\n").await),
        "number" => drop(wire.chunk("data: 5\n\n").await),
        "list" => drop(wire.chunk("data: [1]\n\n").await),
        "wrong choices" => drop(wire.chunk("data: {\"choices\":\"none\"}\n\n").await),
        "reset" => {
            wire.chunk(ROLE_EVENT).await;
            reset(wire);
        }
        other => panic!("no such failure: {other}"),
    }
}

const BEFORE_CONTENT: &[&str] = &[
    "status",
    "json",
    "error in json",
    "error event",
    "error event after a role",
    "cut",
    "cut after a role",
    "end after a role",
    "text",
    "number",
    "list",
    "wrong choices",
    "reset",
];

#[tokio::test]
async fn a_stream_that_fails_before_its_first_content_is_served_by_the_next_member() {
    for how in BEFORE_CONTENT {
        let first = Provider::start(move |_, wire| async move {
            fail_before_content(how, wire).await;
            None
        })
        .await;
        let second = Provider::saying("from the second").await;
        let gateway = pair(&first, &second, "maxRetries: 0");
        let reply = gateway.stream("pool", "hi").await;
        assert_eq!(reply.status, 200, "{how}: {}", reply.text());
        assert_eq!(reply.header("x-stagedoor-backend"), Some("second"), "{how}");
        assert_eq!(reply.header("x-stagedoor-attempts"), Some("2"), "{how}");
        assert_eq!(said(&reply.body), ("from the second".to_owned(), true), "{how}");
        assert_eq!(first.requests().len(), 1, "{how}");
    }
}

#[tokio::test]
async fn a_stream_that_fails_before_its_first_content_and_has_no_next_member_is_an_error_status() {
    for how in BEFORE_CONTENT {
        let provider = Provider::start(move |_, wire| async move {
            fail_before_content(how, wire).await;
            None
        })
        .await;
        let reply = one(&provider, "maxRetries: 0").stream("up", "hi").await;
        assert_eq!(reply.status, 502, "{how}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/json"), "{how}");
        assert!(reply.json()["error"]["message"].is_string(), "{how}");
    }
}

#[tokio::test]
async fn a_strange_event_never_crashes_a_backend_whose_streams_are_repaired() {
    for event in
        ["5", "\"x\"", "null", "[]", "[1]", "{}", "{\"choices\":{}}", "{\"choices\":[5]}", "{\"choices\":[{\"delta\":5}]}"]
    {
        let provider = Provider::start(move |_, mut wire| async move {
            wire.begin_stream().await;
            wire.chunk(&format!("data: {event}\n\n")).await;
            wire.end_chunks().await;
            Some(wire)
        })
        .await;
        let endpoint = provider.endpoint();
        let gateway = Gateway::start(&format!(
            "backends:\n  - {{ name: up, type: meta, config: {{ endpoint: \"{endpoint}\", defaultModel: m, maxRetries: 0 }} }}\n"
        ));
        let reply = gateway.stream("up", "hi").await;
        assert_eq!(reply.status, 502, "{event}: {}", reply.text());
        assert_eq!(gateway.backend("up").await["crashes"], 0, "{event}");
    }
}

#[tokio::test]
async fn a_whole_reply_that_fails_is_served_by_the_next_member() {
    for how in ["status", "cut", "cut chunks", "no choices", "empty choices", "text", "error", "nothing"] {
        let first = Provider::start(move |_, mut wire| async move {
            let whole = completion("from the first").to_string();
            match how {
                "status" => wire.json(500, &serde_json::json!({ "error": { "message": "boom" } })).await,
                "cut" => {
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", whole.len());
                    wire.raw(&[head.as_bytes(), &whole.as_bytes()[..50]].concat()).await;
                }
                "cut chunks" => {
                    wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await;
                    wire.chunk(&whole[..50]).await;
                }
                "no choices" => wire.json(200, &serde_json::json!({ "id": "x" })).await,
                "empty choices" => wire.json(200, &serde_json::json!({ "choices": [] })).await,
                "text" => wire.reply(200, "text/plain", &[], b"hello").await,
                "error" => wire.json(200, &serde_json::json!({ "error": { "message": "boom" } })).await,
                _ => wire.reply(200, "application/json", &[], b"").await,
            }
            None
        })
        .await;
        let second = Provider::saying("from the second").await;
        let gateway = pair(&first, &second, "maxRetries: 0");
        let reply = gateway.chat("pool", "hi").await;
        assert_eq!(reply.status, 200, "{how}: {}", reply.text());
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "from the second", "{how}");
        assert_eq!(reply.header("x-stagedoor-attempts"), Some("2"), "{how}");
    }
}

/// Plays a stream that breaks in this way after its first content, and checks what becomes of it.
async fn break_after_content(how: &'static str) {
    let read = Arc::new(Notify::new());
    let has_read = Arc::clone(&read);
    let first = Provider::start(move |_, mut wire| {
        let has_read = Arc::clone(&has_read);
        async move {
            wire.begin_stream().await;
            wire.chunk(&word_event("one ")).await;
            has_read.notified().await;
            match how {
                "cut" => {}
                "end without [DONE]" => drop(wire.end_chunks().await),
                "end after the finish" => drop(wire.chunk(&finish_event()).await && wire.end_chunks().await),
                "reset" => reset(wire),
                "no HTTP chunk" => drop(wire.raw(b"zzz\r\nno chunk\r\n").await),
                event => drop(wire.chunk(&format!("{event}{}{DONE}", word_event("two"))).await),
            }
            None
        }
    })
    .await;
    // A second member must not be asked any more.
    let second = Provider::saying("from the second").await;
    let gateway = pair(&first, &second, "");
    let mut client = Listener::open(&gateway, "pool", "hi").await;
    client.until("one ").await;
    read.notify_one();
    assert_broken_after("one ", how, client.finish().await);
    assert_eq!(second.requests().len(), 0, "{how}");
    eventually("the end is counted", || async { gateway.member("pool", "first").await["truncated"] == 1 }).await;
}

#[tokio::test]
async fn a_stream_that_breaks_after_its_first_content_ends_with_one_typed_error_event() {
    for how in ["cut", "end without [DONE]", "end after the finish", "reset", "no HTTP chunk"] {
        break_after_content(how).await;
    }
}

#[tokio::test]
async fn an_error_event_after_the_first_content_ends_the_stream_with_one_typed_error_event() {
    for event in [
        ERROR_EVENT,
        "event: error\ndata: {\"error\": {\"message\": \"boom\"}}\n\n",
        "data: {\"error\":\"boom\"}\n\n",
        "data: { \"error\" : { \"message\" : \"boom\" } }\n\n",
    ] {
        break_after_content(event).await;
    }
}

#[tokio::test]
async fn an_event_that_is_not_json_after_the_first_content_ends_the_stream_with_one_typed_error_event() {
    for event in ["data: hello\n\n", "data: {\"choices\":[{\"del\n\n", "data: 5\n\n"] {
        break_after_content(event).await;
    }
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments_and_still_falls_back() {
    let fail = Arc::new(Notify::new());
    let may_fail = Arc::clone(&fail);
    let first = Provider::start(move |_, mut wire| {
        let may_fail = Arc::clone(&may_fail);
        async move {
            wire.begin_stream().await;
            may_fail.notified().await;
            wire.chunk(ERROR_EVENT).await;
            None
        }
    })
    .await;
    let second = Provider::saying("from the second").await;
    let gateway = pair(&first, &second, "keepAlive: 200ms, maxRetries: 0");
    let mut client = Listener::open(&gateway, "pool", "hi").await;
    assert_eq!(client.head.status, 200);
    assert!(client.head.header("content-type").unwrap().starts_with("text/event-stream"));
    assert!(client.head.header("x-request-id").is_some());
    assert_eq!(client.head.header("x-stagedoor-backend"), None);
    client.until(": keep-alive\n\n: keep-alive\n\n").await;
    fail.notify_one();
    let (reply, whole) = client.finish().await;
    assert!(whole);
    assert_eq!(said(&reply.body), ("from the second".to_owned(), true));
}

#[tokio::test]
async fn a_failure_behind_comments_is_one_typed_error_event() {
    let fail = Arc::new(Notify::new());
    let may_fail = Arc::clone(&fail);
    let provider = Provider::start(move |_, mut wire| {
        let may_fail = Arc::clone(&may_fail);
        async move {
            may_fail.notified().await;
            wire.json(400, &serde_json::json!({ "error": { "message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded" } })).await;
            Some(wire)
        }
    })
    .await;
    let gateway = one(&provider, "keepAlive: 200ms");
    let mut client = Listener::open(&gateway, "up", "hi").await;
    client.until(": keep-alive").await;
    fail.notify_one();
    let (reply, whole) = client.finish().await;
    let error: Value = serde_json::from_str(sse(&reply.body).last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "context_length_exceeded");
    assert_eq!(error["error"]["type"], "invalid_request_error");
    assert_broken_after("", "a refused request", (reply, whole));
}

#[tokio::test]
async fn comments_fill_a_silence_after_the_first_content() {
    let go_on = Arc::new(Notify::new());
    let may_go_on = Arc::clone(&go_on);
    let provider = Provider::start(move |_, mut wire| {
        let may_go_on = Arc::clone(&may_go_on);
        async move {
            wire.begin_stream().await;
            wire.chunk(&word_event("one ")).await;
            may_go_on.notified().await;
            say(&mut wire, "two").await;
            Some(wire)
        }
    })
    .await;
    let gateway = one(&provider, "keepAlive: 200ms");
    let mut client = Listener::open(&gateway, "up", "hi").await;
    assert_eq!(client.head.header("x-stagedoor-backend"), Some("up"));
    client.until(": keep-alive\n\n: keep-alive\n\n").await;
    go_on.notify_one();
    let (reply, whole) = client.finish().await;
    assert!(whole);
    assert_eq!(said(&reply.body), ("one two".to_owned(), true));
}

/// A gateway before a provider of this type that sends the request's own script as its stream, in pieces of this size.
async fn in_pieces(kind: &str) -> (Provider, Gateway) {
    let provider = Provider::start(move |request, mut wire| async move {
        let script: Value = serde_json::from_str(request.json()["messages"][0]["content"].as_str().unwrap()).unwrap();
        let text = script["text"].as_str().unwrap().as_bytes();
        let mut at = 0;
        // One write: every HTTP chunk is a piece of its own all the same.
        let mut reply = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for cut in script["cuts"].as_array().unwrap() {
            let cut = usize::try_from(cut.as_u64().unwrap()).unwrap();
            let piece = &text[at..cut];
            if !piece.is_empty() {
                reply.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
            }
            at = cut;
        }
        wire.raw(&[&reply, b"0\r\n\r\n".as_slice()].concat()).await;
        Some(wire)
    })
    .await;
    let endpoint = provider.endpoint();
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: up, type: {kind}, config: {{ apiKey: k, endpoint: \"{endpoint}\", defaultModel: m, maxRetries: 0 }} }}\n"
    ));
    (provider, gateway)
}

async fn play(gateway: &Gateway, text: &str, cuts: &[usize]) -> Reply {
    gateway.stream("up", &serde_json::json!({ "text": text, "cuts": cuts }).to_string()).await
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_yields_the_same_text() {
    let stream = format!("{}{}: ping\n\n{}{DONE}", word_event("hé "), word_event("\u{2028}二"), finish_event());
    for kind in ["openai", "meta"] {
        let (_provider, gateway) = in_pieces(kind).await;
        for at in 0..=stream.len() {
            let reply = play(&gateway, &stream, &[at, stream.len()]).await;
            assert_eq!(said(&reply.body), ("hé \u{2028}二".to_owned(), true), "{kind}, cut at {at}: {}", reply.text());
        }
        for size in [1, 2, 3, 7, 64] {
            let cuts: Vec<usize> = (size..stream.len()).step_by(size).chain([stream.len()]).collect();
            let reply = play(&gateway, &stream, &cuts).await;
            assert_eq!(said(&reply.body), ("hé \u{2028}二".to_owned(), true), "{kind}, pieces of {size}: {}", reply.text());
        }
    }
}

#[tokio::test]
async fn every_lawful_form_of_a_stream_yields_the_same_text() {
    let line = |word: &str| word_event(word).trim_end().to_owned();
    // The JSON of a chunk may stand on several data lines, cut where JSON allows white space.
    let multi = line("two ").replace(",\"created\"", ",\ndata: \"created\"");
    let forms = [
        ("plain", format!("{}\n\n{}\n\n{}{DONE}", line("one "), line("two "), finish_event())),
        ("CRLF", format!("{}\n\n{}\n\n{}{DONE}", line("one "), line("two "), finish_event()).replace('\n', "\r\n")),
        ("CR", format!("{}\n\n{}\n\n{}{DONE}", line("one "), line("two "), finish_event()).replace('\n', "\r")),
        ("multi-line", format!("{}\n\n{multi}\n\n{}{DONE}", line("one "), finish_event())),
        ("multi-line CRLF", format!("{}\n\n{multi}\n\n{}{DONE}", line("one "), finish_event()).replace('\n', "\r\n")),
        ("comments", format!(": hi\n\n{}\n\n: ping\n{}\n\n:\n\n{}{DONE}", line("one "), line("two "), finish_event())),
        (
            "fields",
            format!("id: 1\nevent: message\n{}\n\nretry: 5\n\n{}\n\n{}{DONE}", line("one "), line("two "), finish_event()),
        ),
        (
            "no space",
            format!("{}\n\n{}\n\n{}data:[DONE]\n\n", line("one ").replacen("data: ", "data:", 1), line("two "), finish_event()),
        ),
        ("no final blank line", format!("{}\n\n{}\n\n{}data: [DONE]", line("one "), line("two "), finish_event())),
        (
            "no final blank line, one line end",
            format!("{}\n\n{}\n\n{}data: [DONE]\n", line("one "), line("two "), finish_event()),
        ),
        ("byte order mark", format!("\u{feff}{}\n\n{}\n\n{}{DONE}", line("one "), line("two "), finish_event())),
    ];
    for kind in ["openai", "meta"] {
        let (_provider, gateway) = in_pieces(kind).await;
        for (name, stream) in &forms {
            let reply = play(&gateway, stream, &[stream.len()]).await;
            let body = reply.text().replace('\u{feff}', "");
            assert_eq!(said(body.as_bytes()), ("one two ".to_owned(), true), "{kind}, {name}: {}", reply.text());
        }
    }
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended_after_the_idle_limit() {
    let (provider, mut reports) = watched("mid-stream silent").await;
    let gateway = one(&provider, "timeouts: { idle: 300ms }");
    let client = Listener::open(&gateway, "up", "hi").await;
    let began = reported(&mut reports).await;
    assert_broken_after("one ", "silence", client.finish().await);
    let closed = reported(&mut reports).await - began;
    assert!(closed >= Duration::from_millis(250) && closed < Duration::from_secs(5), "{closed:?}");
    assert_eq!(gateway.member("up", "up").await["failures"]["timeout_idle"], 1);
}

#[tokio::test]
async fn a_stream_that_flows_for_too_long_is_ended_at_the_total_limit() {
    let (provider, mut reports) = watched("mid-stream flowing").await;
    let gateway = one(&provider, "timeouts: { total: 500ms }");
    let client = Listener::open(&gateway, "up", "hi").await;
    let began = reported(&mut reports).await;
    let (reply, whole) = client.finish().await;
    let text = said(&reply.body).0;
    assert!(text.starts_with("one more "), "{text}");
    assert_broken_after(&text, "too long", (reply, whole));
    assert!(reported(&mut reports).await - began < Duration::from_secs(5));
    assert_eq!(gateway.member("up", "up").await["failures"]["timeout_total"], 1);
}

#[tokio::test]
async fn a_stream_without_content_in_time_is_a_timeout_or_served_by_the_next_member() {
    let silent = |_: Received, mut wire: Wire| async move {
        wire.begin_stream().await;
        wire.chunk(ROLE_EVENT).await;
        wire.await_close().await;
        None
    };
    let first = Provider::start(silent).await;
    let second = Provider::saying("from the second").await;
    let reply = one(&first, "timeouts: { firstContent: 200ms }").stream("up", "hi").await;
    assert_eq!((reply.status, reply.code().as_str()), (504, "upstream_timeout"));
    let reply = pair(&first, &second, "timeouts: { firstContent: 200ms }").stream("pool", "hi").await;
    assert_eq!(said(&reply.body), ("from the second".to_owned(), true));
}

#[tokio::test]
async fn streams_that_run_at_once_never_mix() {
    let provider = Provider::start(|request, mut wire| async move {
        let text = request.json()["messages"][0]["content"].as_str().unwrap().to_owned();
        wire.begin_stream().await;
        for word in text.split_inclusive(' ') {
            wire.chunk(&word_event(word)).await;
            tokio::task::yield_now().await;
        }
        wire.chunk(&format!("{}{DONE}", finish_event())).await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let yaml = format!("server: {{ port: 0, workers: 2 }}\nbackends:\n{}", backend("up", &provider.endpoint(), ""));
    let gateway = Gateway::start(&yaml);
    let text = |stream: usize, round: usize| (0..40).map(|word| format!("r{round}s{stream}w{word} ")).collect::<String>();
    for round in 0..3 {
        let streams = (0..30).map(|stream| {
            let gateway = &gateway;
            let text = text(stream, round);
            async move {
                let reply = gateway.stream("up", &text).await;
                assert_eq!(said(&reply.body), (text, true));
            }
        });
        futures_util::future::join_all(streams).await;
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_last_event_although_the_provider_keeps_the_connection() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.begin_stream().await;
        wire.chunk(&format!("{}{}{DONE}", word_event("one"), finish_event())).await;
        wire.await_close().await;
        None
    })
    .await;
    let gateway = one(&provider, "maxConcurrent: 1");
    for _ in 0..3 {
        let start = Instant::now();
        let reply = gateway.stream("up", "hi").await;
        assert_eq!(said(&reply.body), ("one".to_owned(), true));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    assert_eq!(gateway.member("up", "up").await["served"], 3);
}

#[tokio::test]
async fn comments_do_not_put_off_the_idle_limit() {
    let (provider, _reports) = watched("mid-stream silent").await;
    let gateway = one(&provider, "timeouts: { idle: 700ms }, keepAlive: 100ms");
    let client = Listener::open(&gateway, "up", "hi").await;
    let (reply, whole) = client.finish().await;
    assert!(reply.text().contains(": keep-alive\n\n"), "{}", reply.text());
    assert_broken_after("one ", "silence", (reply, whole));
}

#[tokio::test]
async fn a_streamed_text_completion_passes_and_falls_back_like_a_chat() {
    let first = Provider::start(|_, wire| async move {
        fail_before_content("error event", wire).await;
        None
    })
    .await;
    let second = Provider::start(|request, mut wire| async move {
        assert_eq!(request.head.line, "POST /v1/completions HTTP/1.1");
        wire.begin_stream().await;
        let event = |text: &str, reason: Value| {
            let choice = serde_json::json!({ "index": 0, "text": text, "finish_reason": reason });
            let chunk =
                serde_json::json!({ "id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice] });
            format!("data: {chunk}\n\n")
        };
        wire.chunk(&format!("{}{}{DONE}", event("one", Value::Null), event("", "stop".into()))).await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let gateway = pair(&first, &second, "maxRetries: 0");
    let body = serde_json::json!({ "model": "pool", "prompt": "hi", "stream": true });
    let reply = gateway.post("/v1/completions", &body).await;
    assert_eq!(reply.header("x-stagedoor-backend"), Some("second"), "{}", reply.text());
    let first: Value = serde_json::from_str(&reply.events()[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "one");
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
}
