//! What providers should not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::bad_input::assert_error;
use crate::passthrough::passing;
use crate::streams::{Listener, assert_broken_after, one, pair, said};
use crate::support::{Gateway, Provider, backend, chat_body, completion, eventually, word_event};

#[tokio::test]
async fn a_refusal_carries_the_providers_limits_and_request_id() {
    let provider = Provider::start(|_, mut wire| async move {
        let told = [
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6s"),
            ("x-request-id", "up-9"),
            ("server", "x"),
        ];
        wire.reply(429, "application/json", &told, br#"{"error":{"message":"slow down"}}"#).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxRetries: 0")));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.status, 429);
    let told = ["x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "x-upstream-request-id", "server"];
    assert_eq!(told.map(|name| reply.header(name)), [Some("0"), Some("6s"), Some("up-9"), None]);
}

/// A provider that writes these bytes as its reply and closes.
pub async fn writing(bytes: Vec<u8>) -> Provider {
    let bytes = Arc::new(bytes);
    Provider::start(move |_, mut wire| {
        let bytes = Arc::clone(&bytes);
        async move {
            wire.raw(&bytes).await;
            None
        }
    })
    .await
}

pub fn http(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_provider_that_answers_nonsense_is_502_and_the_next_member_serves() {
    let whole = completion("hello").to_string();
    let html = "<!doctype html><html><body>down for maintenance</body></html>";
    let event = word_event("hello");
    let gzip = "\u{1f}\u{8b}\u{8}nonsense";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"\x00\x01\x02 garbage\r\n\r\n".to_vec()),
        ("words", b"hello there\r\n\r\n".to_vec()),
        ("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("no version", b"HTTP 200 OK\r\n\r\n".to_vec()),
        ("no status", b"HTTP/1.1 hello\r\n\r\n".to_vec()),
        ("half a head", b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec()),
        ("bad header", b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n".to_vec()),
        ("bad length", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}".to_vec()),
        (
            "short of its length",
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{whole}", whole.len() + 1)
                .into_bytes(),
        ),
        ("half a reply", http("200 OK\r\ncontent-type: application/json", &whole[..40])),
        ("no body", http("200 OK\r\ncontent-type: application/json", "")),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        ("a page", http("200 OK\r\ncontent-type: text/html", html)),
        ("a stream for a whole reply", http("200 OK\r\ncontent-type: text/event-stream", &event)),
        ("gzip", http("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip", gzip)),
        ("gzip in name only", http("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip", &whole)),
        ("a redirect", http("302 Found\r\nlocation: http://127.0.0.1:1/", "")),
        ("a redirect that keeps the method", http("308 Permanent Redirect\r\nlocation: /v1/elsewhere", "")),
        ("another shape", http("200 OK\r\ncontent-type: application/json", "{\"object\":\"list\",\"data\":[]}")),
        ("a list", http("200 OK\r\ncontent-type: application/json", "[{},{}]")),
        ("choices that are none", http("200 OK\r\ncontent-type: application/json", "{\"choices\":\"hello\"}")),
    ];
    for (case, bytes) in cases {
        let provider = writing(bytes).await;
        let refused = one(&provider, "maxRetries: 0").chat("up", "hi").await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let form = refused.json();
        assert!(form["error"]["message"].is_string(), "{case}: {form}");
        assert!(!refused.text().contains("doctype") && !refused.text().contains("127.0.0.1"), "{case}: {form}");
        let second = Provider::saying("from the second").await;
        let served = pair(&provider, &second, "maxRetries: 0").chat("pool", "hi").await;
        assert_eq!(served.status, 200, "{case}: {}", served.text());
    }
}

#[tokio::test]
async fn a_stream_of_the_wrong_kind_is_502_and_the_next_member_serves() {
    let events = format!("{}data: [DONE]\n\n", word_event("hello"));
    let whole = completion("hello").to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a whole reply", http("200 OK\r\ncontent-type: application/json", &whole)),
        ("a stream called text", http("200 OK\r\ncontent-type: text/plain", &events)),
        ("a stream called nothing", http("200 OK", &events)),
        ("a page", http("200 OK\r\ncontent-type: text/html", "<html></html>")),
        ("gzip", http("200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip", "nonsense")),
        ("JSON lines", http("200 OK\r\ncontent-type: text/event-stream", &format!("{whole}\n{whole}\n"))),
        ("nothing", http("200 OK\r\ncontent-type: text/event-stream", "")),
        (
            "short of its length",
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n: hi\n\n".to_vec(),
        ),
    ];
    for (case, bytes) in cases {
        let provider = writing(bytes).await;
        let refused = one(&provider, "maxRetries: 0").stream("up", "hi").await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let second = Provider::saying("from the second").await;
        let served = pair(&provider, &second, "maxRetries: 0").stream("pool", "hi").await;
        assert_eq!(said(&served.body), ("from the second".to_owned(), true), "{case}");
    }
}

#[tokio::test]
async fn an_error_page_keeps_its_class_and_is_not_shown() {
    let page = "<!doctype html><html><body>secret host 10.1.2.3</body></html>";
    for (status, seen) in [(400, 400), (401, 502), (403, 502), (404, 404), (429, 429), (500, 502), (502, 502), (503, 503)] {
        for encoding in ["", "\r\ncontent-encoding: gzip"] {
            let provider = writing(http(&format!("{status} X\r\ncontent-type: text/html{encoding}"), page)).await;
            for stream in [false, true] {
                let gateway = one(&provider, "maxRetries: 0");
                let refused = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
                assert_eq!(refused.status, seen, "{status}: {}", refused.text());
                assert!(
                    !refused.text().contains("doctype") && !refused.text().contains("10.1.2.3"),
                    "{status}: {}",
                    refused.text()
                );
                assert!(refused.json()["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{status}");
            }
        }
    }
}

#[tokio::test]
async fn a_reply_is_not_asked_for_in_gzip() {
    let provider = Provider::saying("hello").await;
    one(&provider, "").chat("up", "hi").await;
    assert_eq!(provider.requests()[0].head.header("accept-encoding"), Some("identity"));
}

/// A provider that begins a reply so, then repeats bytes without end; with the count of bytes taken from it.
async fn endless(begin: &'static str, repeat: &'static str, in_chunks: bool) -> (Provider, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let provider = Provider::start(move |_, mut wire| {
        let counter = Arc::clone(&counter);
        async move {
            wire.raw(begin.as_bytes()).await;
            let block = repeat.repeat((64 << 10) / repeat.len());
            while if in_chunks { wire.chunk(&block).await } else { wire.raw(block.as_bytes()).await } {
                counter.fetch_add(block.len(), Ordering::SeqCst);
                // Client and provider share a thread here.
                tokio::task::yield_now().await;
            }
            None
        }
    })
    .await;
    (provider, written)
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const JSON_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
const ERROR_HEAD: &str = "HTTP/1.1 500 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
/// What the limits of the gateway and the sockets on the way may take of a reply without end.
pub const TAKEN: usize = 64 << 20;

#[tokio::test]
async fn a_reply_without_end_is_given_up() {
    let cases = [
        ("a header", "HTTP/1.1 200 OK\r\nx: ", "x", false, false),
        ("headers", "HTTP/1.1 200 OK\r\n", "x: y\r\n", false, false),
        ("a line before content", STREAM_HEAD, "x", true, true),
        ("events without content", STREAM_HEAD, "data: {\"choices\":[]}\n\n", true, true),
        ("comments", STREAM_HEAD, ": ping\n\n", true, true),
        ("an error", ERROR_HEAD, "x", true, false),
        ("a whole reply", JSON_HEAD, "[", true, false),
        ("a reply that is no stream", JSON_HEAD, " ", true, true),
    ];
    for (case, begin, repeat, in_chunks, stream) in cases {
        let (provider, written) = endless(begin, repeat, in_chunks).await;
        let gateway = one(&provider, "maxRetries: 0, maxReply: 1MiB, timeout: 10s");
        let refused = gateway.post("/v1/chat/completions", &chat_body("up", "hi", stream)).await;
        assert_eq!(refused.status, 502, "{case}: {}", refused.text());
        let taken = written.load(Ordering::SeqCst);
        assert!(taken < TAKEN, "{case}: {taken} bytes");
        eventually("the connection is closed", || async {
            let before = written.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(30)).await;
            written.load(Ordering::SeqCst) == before
        })
        .await;
    }
}

#[tokio::test]
async fn a_line_without_end_after_the_first_content_ends_the_stream_with_one_typed_error_event() {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let provider = Provider::start(move |_, mut wire| {
        let counter = Arc::clone(&counter);
        async move {
            wire.begin_stream().await;
            wire.chunk(&word_event("one ")).await;
            let block = "x".repeat(64 << 10);
            while wire.chunk(&block).await {
                counter.fetch_add(block.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
            None
        }
    })
    .await;
    let gateway = one(&provider, "");
    let client = Listener::open(&gateway, "up", "hi").await;
    assert_broken_after("one ", "an endless line", client.finish().await);
    assert!(written.load(Ordering::SeqCst) < TAKEN);
}

#[tokio::test]
async fn a_whole_reply_beyond_the_limit_is_502_and_the_next_member_serves() {
    let big: &'static str = completion(&"x".repeat(70 << 10)).to_string().leak();
    for in_chunks in [false, true] {
        let provider = Provider::start(move |_, mut wire| async move {
            if in_chunks {
                wire.raw(JSON_HEAD.as_bytes()).await;
                wire.chunk(big).await;
                wire.end_chunks().await;
            } else {
                wire.reply(200, "application/json", &[], big.as_bytes()).await;
            }
            Some(wire)
        })
        .await;
        let refused = one(&provider, "maxReply: 64KiB").chat("up", "hi").await;
        assert_error(&refused, 502, "upstream_malformed", "too large");
        assert!(refused.text().contains("64KiB"), "{}", refused.text());
        assert_eq!(one(&provider, "maxReply: 128KiB").chat("up", "hi").await.status, 200);
        let second = Provider::saying("from the second").await;
        assert_eq!(pair(&provider, &second, "maxReply: 64KiB").chat("pool", "hi").await.status, 200);
    }
}

#[tokio::test]
async fn bytes_behind_a_reply_never_reach_the_next_request() {
    let evil =
        String::from_utf8(http("200 OK\r\ncontent-type: application/json", &completion("somebody else's").to_string())).unwrap();
    for at_once in [true, false] {
        let evil = evil.clone();
        let provider = Provider::start(move |request, mut wire| {
            let evil = evil.clone();
            async move {
                let text = request.json()["messages"][0]["content"].as_str().unwrap().to_owned();
                let own =
                    String::from_utf8(http("200 OK\r\ncontent-type: application/json", &completion(&text).to_string())).unwrap();
                // Else the second write could wait for the next request.
                wire.0.set_nodelay(true).unwrap();
                if at_once {
                    wire.raw(format!("{own}{evil}").as_bytes()).await;
                } else {
                    wire.raw(own.as_bytes()).await;
                    wire.raw(evil.as_bytes()).await;
                }
                Some(wire)
            }
        })
        .await;
        let gateway = one(&provider, "");
        for number in 0..10 {
            let text = format!("text {number}");
            let served = gateway.chat("up", &text).await;
            assert_eq!(served.json()["choices"][0]["message"]["content"], text, "in one write: {at_once}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_ends_its_reply_by_closing_is_understood() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    for version in ["HTTP/1.0".to_owned(), "HTTP/1.1".to_owned(), format!("{interim}HTTP/1.1")] {
        let reply = |kind: &str, body: &str| format!("{version} 200 OK\r\ncontent-type: {kind}\r\n\r\n{body}").into_bytes();
        let whole = writing(reply("application/json", &completion("hello").to_string())).await;
        let served = one(&whole, "").chat("up", "hi").await;
        assert_eq!(served.status, 200, "{version}: {}", served.text());
        assert_eq!(served.json()["choices"][0]["message"]["content"], "hello");
        let events = format!("{}data: [DONE]\n\n", word_event("hello"));
        let served = one(&writing(reply("text/event-stream", &events)).await, "").stream("up", "hi").await;
        assert_eq!(said(&served.body), ("hello".to_owned(), true), "{version}");
        let served =
            passing(&writing(reply("text/plain", "a file")).await, "").send("GET", "/v1/files/f/content", &[], b"").await;
        assert_eq!((served.status, served.text()), (200, "a file".to_owned()), "{version}");
    }
}

#[tokio::test]
async fn an_interim_reply_that_comes_by_itself_is_waited_over() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        wire.json(200, &completion("hello")).await;
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    for _ in 0..2 {
        assert_eq!(gateway.chat("up", "hi").await.status, 200);
    }
    assert_eq!(gateway.backend("up").await["connections"], 1, "the connection serves on");
}

#[tokio::test]
async fn a_reply_whose_head_is_cut_and_without_length_is_no_empty_success() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.raw(b"HTTP/1.1 200 OK\r\ncontent-").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.raw(b"type: text/plain\r\n\r\na file").await;
        None
    })
    .await;
    let refused = passing(&provider, "maxRetries: 0").send("GET", "/v1/files/f/content", &[], b"").await;
    assert_eq!(refused.status, 502);
    assert!(refused.text().contains("does not say where its body ends"), "{}", refused.text());
}
