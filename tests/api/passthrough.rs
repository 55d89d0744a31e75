//! What passes through: requests on paths without a meaning to the gateway, uploads, downloads and their ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::bad_input::{JSON, assert_error, raw, reply};
use crate::bad_replies::{TAKEN, http, writing};
use crate::streams::Listener;
use crate::support::{Gateway, PATIENCE, Provider, backend, completion, read_body, read_chunk, read_head};

/// A gateway whose every path below /v1 leads to one backend.
pub fn passing(provider: &Provider, more: &str) -> Gateway {
    Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: all, path: /v1/*, methods: [GET, POST, PUT, DELETE, HEAD], backend: up }}\n",
        backend("up", &provider.endpoint(), more)
    ))
}

/// Reads a request's body until it has this many bytes.
async fn take(stream: &mut TcpStream, body: &mut Vec<u8>, wanted: usize, is_chunked: bool) {
    let reading = async {
        while body.len() < wanted {
            if is_chunked {
                body.extend(read_chunk(stream).await.expect("the body goes on"));
            } else {
                assert!(stream.read_buf(body).await.expect("the body goes on") > 0);
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the body comes while it is sent");
}

#[tokio::test]
async fn a_multipart_body_is_streamed_through_as_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: audio, path: /v1/audio/transcriptions, backend: up }}\n",
        backend("up", &endpoint, "")
    ));
    let field = b"--edge\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nup/whisper-1\r\n";
    let file = b"--edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    // Larger than what may be gathered before it is sent on.
    let part = [field.as_slice(), file, &[0xff; 512 << 10]].concat();
    let rest = b"\x00\r\n--edge--\r\n";
    for in_chunks in [false, true] {
        let length = if in_chunks {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {}", part.len() + rest.len())
        };
        let head = format!(
            "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=edge\r\n{length}\r\n\r\n"
        );
        let piece = |bytes: &[u8]| match in_chunks {
            true => [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat(),
            false => bytes.to_vec(),
        };
        let mut client = raw(&gateway, &[head.as_bytes(), &piece(&part)].concat()).await;
        let (mut provider, _) =
            timeout(PATIENCE, listener.accept()).await.expect("the request comes while its body does").unwrap();
        let received = read_head(&mut provider).await;
        assert_eq!(received.line, "POST /v1/audio/transcriptions HTTP/1.1");
        assert_eq!(received.header("content-type"), Some("multipart/form-data; boundary=edge"));
        let is_chunked = received.header("transfer-encoding").is_some();
        assert_eq!(is_chunked, in_chunks, "{received:?}");
        let mut body = Vec::new();
        // Much of the first part arrives while the client still holds the second back.
        take(&mut provider, &mut body, part.len() / 2, is_chunked).await;
        client.write_all(&piece(rest)).await.unwrap();
        if in_chunks {
            client.write_all(b"0\r\n\r\n").await.unwrap();
        }
        take(&mut provider, &mut body, part.len() + rest.len(), is_chunked).await;
        assert!(body == [part.as_slice(), rest].concat(), "the body arrives changed");
        provider
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
            .await
            .unwrap();
        let served = reply(client).await;
        assert_eq!((served.status, served.text().as_str()), (200, "hello"));
        assert_eq!(served.header("content-type"), Some("text/plain"));
    }
}

#[tokio::test]
async fn the_model_is_rewritten_in_json_that_passes_through() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.json(200, &json!({ "data": [] })).await;
        Some(wire)
    })
    .await;
    let gateway = passing(&provider, "models: { draw: dall-e-3 }");
    for (model, sent) in
        [("up/dall-e-2", "dall-e-2"), ("draw", "dall-e-3"), ("up/draw", "dall-e-3"), ("up", "m"), ("dall-e-2", "dall-e-2")]
    {
        let served = gateway.post("/v1/images/generations", &json!({ "model": model, "prompt": "a cat", "n": 1 })).await;
        assert_eq!(served.status, 200, "{model}: {}", served.text());
        let request = provider.requests().pop().unwrap();
        assert_eq!(request.head.line, "POST /v1/images/generations HTTP/1.1");
        assert_eq!(request.json(), json!({ "model": sent, "prompt": "a cat", "n": 1 }), "{model}");
    }
    let served = gateway.post("/v1/images/generations", &json!({ "prompt": "a cat" })).await;
    assert_eq!(served.status, 200);
    assert_eq!(provider.requests().pop().unwrap().json(), json!({ "prompt": "a cat" }));
    assert_error(
        &gateway.send("POST", "/v1/images/generations", &[JSON], b"{\"model\":").await,
        400,
        "invalid_json",
        "broken JSON",
    );
}

#[tokio::test]
async fn status_and_bytes_of_a_passed_through_reply_are_the_providers_own() {
    let bytes: &'static [u8] = b"\x00\xffID3 sound";
    for status in [200, 201, 206, 302, 400, 404, 418, 429, 500, 503] {
        let provider = Provider::start(move |_, mut wire| async move {
            wire.reply(status, "audio/mpeg", &[("content-disposition", "attachment")], bytes).await;
            Some(wire)
        })
        .await;
        let gateway = passing(&provider, "");
        let served = gateway.post("/v1/audio/speech", &json!({ "model": "tts-1", "input": "hi" })).await;
        assert_eq!((served.status, served.body.as_slice()), (status, bytes));
        assert_eq!(served.header("content-type"), Some("audio/mpeg"));
        assert_eq!(served.header("content-length"), Some("11"));
        assert_eq!(served.header("content-disposition"), Some("attachment"));
        assert_eq!(served.header("x-stagedoor-backend"), Some("up"));
        assert_eq!(provider.requests().len(), 1, "{status} is the client's to judge");
    }
}

#[tokio::test]
async fn a_passed_through_reply_is_streamed() {
    let go_on = Arc::new(Notify::new());
    let may_go_on = Arc::clone(&go_on);
    let provider = Provider::start(move |_, mut wire| {
        let may_go_on = Arc::clone(&may_go_on);
        async move {
            wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n").await;
            wire.chunk("first").await;
            may_go_on.notified().await;
            wire.chunk("second").await;
            wire.end_chunks().await;
            Some(wire)
        }
    })
    .await;
    let gateway = passing(&provider, "");
    let client = gateway.open("GET", "/v1/files/f-1/content?part=2&x=%20", &[], b"").await;
    let mut client = Listener::of(client).await;
    client.until("first").await;
    go_on.notify_one();
    let (served, whole) = client.finish().await;
    assert_eq!((served.text().as_str(), whole), ("firstsecond", true));
    assert_eq!(provider.requests()[0].head.line, "GET /v1/files/f-1/content?part=2&x=%20 HTTP/1.1");
}

#[tokio::test]
async fn a_passed_through_reply_that_is_cut_does_not_look_whole() {
    for length in ["content-length: 10\r\n\r\nfirst", "transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"] {
        let provider = writing(format!("HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n{length}").into_bytes()).await;
        let gateway = passing(&provider, "");
        let mut client = gateway.open("GET", "/v1/files/f-1/content", &[("connection", "close")], b"").await;
        let mut seen = Vec::new();
        // A reset ends it as well as an early end of file, and it may come before the head was written.
        let _ = timeout(PATIENCE, client.read_to_end(&mut seen)).await.expect("the connection is closed");
        let seen = String::from_utf8_lossy(&seen);
        let (head, body) = seen.split_once("\r\n\r\n").unwrap_or_default();
        assert!(!body.ends_with("0\r\n\r\n") && body.len() < 15, "{length}: {seen}");
        let head = head.to_lowercase();
        let frame = length.split_once("\r\n").unwrap().0;
        assert!(head.is_empty() || head.contains(frame), "{length}: it must go on saying so, or an end would be one: {seen}");
    }
}

#[tokio::test]
async fn a_passed_through_request_is_not_sent_twice_once_a_provider_has_it() {
    let provider = Provider::start(|_, _| async { None }).await;
    let gateway = passing(&provider, "");
    let refused = gateway.post("/v1/images/generations", &json!({ "model": "up", "prompt": "a cat" })).await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert_eq!(provider.requests().len(), 1);
    let multipart = [("content-type", "multipart/form-data; boundary=x")];
    assert_eq!(gateway.send("POST", "/v1/files", &multipart, b"--x--\r\n").await.status, 502);
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test]
async fn a_path_that_could_mean_something_else_upstream_is_refused() {
    let provider = Provider::saying("hello").await;
    let gateway = passing(&provider, "");
    for path in [
        "/v1/files/../models",
        "/v1/files/./x",
        "/v1/files/..",
        "/v1/files/%2e%2e/models",
        "/v1/files/%2E%2E",
        "/v1/files/.%2e/x",
        "/v1/files/a%2fb",
        "/v1/files/a%5cb",
        "/v1/files/a%0d%0ab",
        "/v1/files//x",
        "/v1//etc",
        "/v1/files/a%00",
        "/v1/files/a\\b",
    ] {
        let refused = gateway.get(path).await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
    }
    assert_eq!(provider.requests().len(), 0);
}

#[tokio::test]
async fn a_passed_through_path_needs_one_backend() {
    let provider = Provider::saying("hello").await;
    let pool = format!(
        "backends:\n{}{}  - {{ name: pool, type: pool, backends: [ {{ name: a }}, {{ name: b }} ] }}\n",
        backend("a", &provider.endpoint(), ""),
        backend("b", &provider.endpoint(), ""),
    );
    let exact = format!("{pool}routes:\n  - {{ name: images, path: /v1/images/generations, backend: pool }}\n");
    let refused = stagedoor::settings::from_text("test", &exact, &std::collections::BTreeMap::new());
    assert!(refused.unwrap_err().to_string().contains("routes[images]"));
    let gateway = Gateway::start(&format!("{pool}routes:\n  - {{ name: all, path: /v1/*, backend: pool }}\n"));
    let refused = gateway.post("/v1/images/generations", &json!({ "model": "x", "prompt": "a cat" })).await;
    assert_eq!(refused.status, 501, "{}", refused.text());
    assert_eq!(provider.requests().len(), 0);
    assert_eq!(gateway.chat("pool", "hi").await.status, 200);
}

#[tokio::test]
async fn a_part_of_a_file_is_passed_through_with_what_says_which_part_it_is() {
    let provider = Provider::start(|_, mut wire| async move {
        let told = [("content-range", "bytes 0-3/9"), ("accept-ranges", "bytes"), ("etag", "\"v1\""), ("set-cookie", "a=b")];
        wire.reply(206, "text/plain", &told, b"part").await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n{}routes:\n  - {{ name: all, path: /v1/*, methods: [GET], backend: up }}\n",
        backend("up", &provider.endpoint(), "")
    ));
    let reply = gateway.send("GET", "/v1/files/f/content", &[("range", "bytes=0-3")], b"").await;
    assert_eq!((reply.status, reply.text()), (206, "part".into()));
    assert_eq!(provider.requests()[0].head.header("range"), Some("bytes=0-3"));
    let told = ["content-range", "accept-ranges", "etag", "set-cookie"];
    assert_eq!(told.map(|name| reply.header(name)), [Some("bytes 0-3/9"), Some("bytes"), Some("\"v1\""), None]);
}

/// A provider that sends the head and some bytes of a download, then goes on as told until its connection is closed.
async fn downloading(flows: bool) -> (Provider, Arc<AtomicUsize>, Arc<Notify>) {
    let closed = Arc::new(Notify::new());
    let written = Arc::new(AtomicUsize::new(0));
    let (tell, counter) = (Arc::clone(&closed), Arc::clone(&written));
    let provider = Provider::start(move |_, mut wire| {
        let (tell, counter) = (Arc::clone(&tell), Arc::clone(&counter));
        async move {
            wire.raw(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n").await;
            wire.chunk("first").await;
            let block = "x".repeat(64 << 10);
            while flows && wire.chunk(&block).await {
                counter.fetch_add(block.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
            wire.await_close().await;
            tell.notify_one();
            None
        }
    })
    .await;
    (provider, written, closed)
}

#[tokio::test]
async fn a_passed_through_download_is_bounded_and_ended_like_a_stream() {
    // Nobody reads.
    let (provider, written, closed) = downloading(true).await;
    let gateway = passing(&provider, "clientStall: 1s, maxConcurrent: 1");
    let client = gateway.open("GET", "/v1/files/f/content", &[], b"").await;
    timeout(PATIENCE, closed.notified()).await.expect("a stopped reader is ended");
    assert!(written.load(Ordering::SeqCst) < TAKEN);
    assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
    drop(client);

    // The provider falls silent.
    let (provider, _, closed) = downloading(false).await;
    let gateway = passing(&provider, "timeouts: { idle: 300ms }");
    let client = Listener::of(gateway.open("GET", "/v1/files/f/content", &[], b"").await).await;
    let (reply, whole) = client.finish().await;
    assert_eq!((reply.text().as_str(), whole), ("first", false));
    timeout(PATIENCE, closed.notified()).await.expect("a silent provider is left");

    // The client leaves.
    let (provider, _, closed) = downloading(false).await;
    let gateway = passing(&provider, "");
    let mut client = Listener::of(gateway.open("GET", "/v1/files/f/content", &[], b"").await).await;
    client.until("first").await;
    drop(client);
    timeout(Duration::from_secs(1), closed.notified()).await.expect("the download ends within a second");
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_413_although_it_did_not_say_how_long_it_is() {
    let provider = Provider::saying("stored").await;
    let gateway = Gateway::start(&format!(
        "server: {{ port: 0, workers: 1, maxBody: 64KiB }}\nbackends:\n{}\
         routes:\n  - {{ name: all, path: /v1/*, methods: [GET, POST], backend: up }}\n",
        backend("up", &provider.endpoint(), "")
    ));
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..10 {
        let piece = [format!("{:x}\r\n", 8 << 10).into_bytes(), vec![b'x'; 8 << 10], b"\r\n".to_vec()].concat();
        // It may be refused before it is sent to its end.
        let _ = stream.write_all(&piece).await;
    }
    let head = read_head(&mut stream).await;
    let body = String::from_utf8(read_body(&mut stream, &head).await).unwrap();
    assert_eq!(head.status, 413, "{body}");
    assert!(body.contains("body_too_large") && body.contains("64KiB"), "{body}");
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "closed");
}

#[tokio::test]
async fn an_upload_goes_on_with_its_encoding() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.json(200, &json!({ "id": "file-1" })).await;
        Some(wire)
    })
    .await;
    let gateway = passing(&provider, "");
    let headers = [("content-type", "application/octet-stream"), ("content-encoding", "gzip")];
    assert_eq!(gateway.send("POST", "/v1/files", &headers, b"\x1f\x8bnot looked at").await.status, 200);
    let seen = &provider.requests()[0];
    assert_eq!(seen.head.header("content-encoding"), Some("gzip"));
    assert_eq!(seen.body, b"\x1f\x8bnot looked at");
}

#[tokio::test]
async fn a_key_without_the_right_to_one_path_is_good_for_the_others() {
    let provider = Provider::start(|request, mut wire| async move {
        match request.head.line.contains("/files") {
            true => wire.json(403, &json!({ "error": { "message": "Missing scopes: api.files.read for sk-up" } })).await,
            false => wire.json(200, &completion("hello")).await,
        }
        Some(wire)
    })
    .await;
    let gateway = passing(&provider, "");
    for _ in 0..3 {
        let refused = gateway.get("/v1/files").await;
        assert_eq!(refused.status, 403, "{}", refused.text());
        assert!(refused.text().contains("Missing scopes"), "{}", refused.text());
    }
    assert_eq!(gateway.chat("up", "hi").await.status, 200);
    assert_eq!(gateway.backend("up").await["circuit"]["state"], "closed");
}

#[tokio::test]
async fn what_stands_behind_a_reply_without_a_body_is_no_next_reply() {
    let forged = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
    for (status, expected) in [("204 N", 204), ("304 N", 304), ("101 Switching Protocols", 502)] {
        let provider = writing(http(status, forged)).await;
        let gateway = passing(&provider, "maxRetries: 0");
        let get = "GET /v1/files/one HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut client = raw(&gateway, get.as_bytes()).await;
        let head = read_head(&mut client).await;
        assert_eq!(head.status, expected, "{status}");
        if expected == 502 {
            read_body(&mut client, &head).await;
        }
        // The connection is good for the next one, whose answer is its own.
        client.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let head = read_head(&mut client).await;
        let body = String::from_utf8(read_body(&mut client, &head).await).unwrap();
        assert!(head.status == 200 && !body.contains("EVIL"), "{status}: {body}");
        assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
    }
}

#[tokio::test]
async fn a_304_with_a_length_leaves_the_connection_open() {
    let provider = writing(b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 1234\r\n\r\n".to_vec()).await;
    let gateway = passing(&provider, "");
    let mut client = raw(&gateway, b"GET /v1/files/one HTTP/1.1\r\nhost: localhost\r\nif-none-match: \"a\"\r\n\r\n").await;
    let head = read_head(&mut client).await;
    assert_eq!((head.status, head.header("etag")), (304, Some("\"a\"")));
    client.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let next = timeout(PATIENCE, read_head(&mut client)).await.expect("the next answer comes");
    assert_eq!(next.status, 200);
}

#[tokio::test]
async fn a_provider_that_sends_the_key_back_in_a_header_does_not_tell_clients() {
    let provider = Provider::start(|request, mut wire| async move {
        let key = request.head.header("authorization").unwrap().trim_start_matches("Bearer ").to_owned();
        let status = if request.json()["messages"][0]["content"] == "refuse" { 400 } else { 200 };
        let headers =
            [("x-request-id", key.as_str()), ("x-ratelimit-limit-requests", key.as_str()), ("x-stagedoor-simulated", "true")];
        wire.reply(status, "application/json", &headers, completion("hello").to_string().as_bytes()).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    for (text, status) in [("hi", 200), ("refuse", 400)] {
        let reply = gateway.chat("up", text).await;
        assert_eq!(reply.status, status);
        let sent = provider.requests()[0].head.header("authorization").unwrap().trim_start_matches("Bearer ").to_owned();
        assert!(!sent.is_empty() && !format!("{:?}{}", reply.headers, reply.text()).contains(&sent), "{:?}", reply.headers);
        assert_eq!(reply.header("x-stagedoor-simulated"), None, "only the simulated type says so");
    }
}

#[tokio::test]
async fn a_key_that_is_no_secret_hides_no_header() {
    let provider = Provider::start(|_, mut wire| async move {
        let headers = [("x-request-id", "req-1"), ("x-ratelimit-remaining-requests", "100")];
        wire.reply(200, "application/json", &headers, completion("hello").to_string().as_bytes()).await;
        Some(wire)
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:\n  - {{ name: up, type: meta, config: {{ endpoint: \"{}\", apiKey: \"1\", defaultModel: m }} }}\n",
        provider.endpoint()
    ));
    let reply = gateway.chat("up", "hi").await;
    assert_eq!(reply.header("x-upstream-request-id"), Some("req-1"), "{:?}", reply.headers);
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("100"));
    assert!(!gateway.backend("up").await["headroom"].is_null(), "what the provider says of its limits is taken in");
}
