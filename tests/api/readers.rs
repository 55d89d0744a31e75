//! Those who read a stream: slowly, never, in an old way, or not to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::streams::{DONE, Listener, assert_broken_after, one, said};
use crate::support::{PATIENCE, Provider, chat_body, eventually, finish_event, read_body, read_head, word_event};

/// A provider that goes as far as told, reports that, then waits for its connection to be closed and reports when it was.
pub async fn watched(how: &'static str) -> (Provider, mpsc::UnboundedReceiver<Instant>) {
    let (report, reports) = mpsc::unbounded_channel();
    let provider = Provider::start(move |_, mut wire| {
        let report = report.clone();
        async move {
            if how != "before the head" {
                wire.begin_stream().await;
            }
            if how.starts_with("mid-stream") {
                wire.chunk(&word_event("one ")).await;
            }
            report.send(Instant::now()).unwrap();
            if how == "mid-stream flowing" {
                while wire.chunk(&word_event("more ")).await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            } else {
                wire.await_close().await;
            }
            report.send(Instant::now()).unwrap();
            None
        }
    })
    .await;
    (provider, reports)
}

pub async fn reported(reports: &mut mpsc::UnboundedReceiver<Instant>) -> Instant {
    timeout(PATIENCE, reports.recv()).await.expect("the provider reports in time").unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_upstream_request_within_a_second() {
    for how in ["before the head", "before the first content", "mid-stream silent", "mid-stream flowing"] {
        let (provider, mut reports) = watched(how).await;
        let gateway = one(&provider, "");
        let client = gateway.open_stream("up", "hi").await;
        reported(&mut reports).await;
        if how.starts_with("mid-stream") {
            let mut client = Listener::of(client).await;
            client.until("one ").await;
            drop(client);
        } else {
            drop(client);
        }
        let left = Instant::now();
        let closed = reported(&mut reports).await;
        assert!(closed - left < Duration::from_secs(1), "{how}: {:?}", closed - left);
        eventually("it counts as cancelled", || async { gateway.member("up", "up").await["cancelled"] == 1 }).await;
        assert_eq!(gateway.backend("up").await["permits"]["used"], 0, "{how}");
        let told = gateway.get("/admin/api/requests?outcome=cancelled").await.json()["recent"][0].clone();
        assert_eq!((&told["backend"], &told["attempts"]), (&json!("up"), &json!(1)), "{how}: {told}");
        let counted = gateway.member("up", "up").await["prompt_tokens"].clone();
        assert_eq!((&told["usage"]["prompt_tokens"], &told["usage"]["estimated"]), (&counted, &json!(true)), "{how}: {told}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_whole_request_ends_the_upstream_request_within_a_second() {
    let (provider, mut reports) = watched("before the head").await;
    let gateway = one(&provider, "");
    let body = chat_body("up", "hi", false).to_string();
    let client = gateway.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await;
    reported(&mut reports).await;
    drop(client);
    let left = Instant::now();
    assert!(reported(&mut reports).await - left < Duration::from_secs(1));
}

#[tokio::test]
async fn a_client_that_leaves_behind_comments_ends_the_upstream_request_within_a_second() {
    let (provider, mut reports) = watched("before the head").await;
    let gateway = one(&provider, "keepAlive: 200ms");
    let mut client = Listener::open(&gateway, "up", "hi").await;
    client.until(": keep-alive").await;
    reported(&mut reports).await;
    drop(client);
    let left = Instant::now();
    assert!(reported(&mut reports).await - left < Duration::from_secs(1));
}

const PIECE: usize = 16 << 10;

/// A provider that offers this many bytes of stream and counts what it could write.
pub async fn plenty(bytes: usize) -> (Provider, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let provider = Provider::start(move |_, mut wire| {
        let counter = Arc::clone(&counter);
        async move {
            let event = word_event(&"x".repeat(PIECE));
            wire.begin_stream().await;
            while counter.load(Ordering::SeqCst) < bytes {
                if !wire.chunk(&event).await {
                    return None;
                }
                counter.fetch_add(event.len(), Ordering::SeqCst);
                // Client and provider share a thread here.
                tokio::task::yield_now().await;
            }
            wire.chunk(&format!("{}{DONE}", finish_event())).await;
            wire.end_chunks().await;
            None
        }
    })
    .await;
    (provider, written)
}

/// Waits until a provider can write no more for now; returns what it wrote.
pub async fn settled(written: &AtomicUsize) -> usize {
    let settling = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = written.load(Ordering::SeqCst);
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    };
    timeout(PATIENCE, settling).await.expect("the provider is held back")
}

/// What the sockets' own buffers on the way may hold, and a little for the gateway.
const ON_THE_WAY: usize = 32 << 20;

#[tokio::test]
async fn a_slow_reader_holds_the_provider_back_and_gets_everything() {
    let bytes = 96 << 20;
    let (provider, written) = plenty(bytes).await;
    let gateway = one(&provider, "");
    let mut client = gateway.open_stream("up", "hi").await;
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    let ahead = settled(&written).await;
    assert!(ahead < ON_THE_WAY, "{ahead} bytes are held for a reader that has read nothing");
    let mut tail = Vec::new();
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let got = timeout(PATIENCE, client.read(&mut buffer)).await.expect("more comes").unwrap();
        assert!(got > 0, "the stream is cut after {read} bytes");
        read += got;
        tail.extend_from_slice(&buffer[..got]);
        tail.drain(..tail.len().saturating_sub(64));
        let ahead = written.load(Ordering::SeqCst).saturating_sub(read);
        assert!(ahead < ON_THE_WAY, "{ahead} bytes are held after {read}");
    }
    assert!(read > bytes && written.load(Ordering::SeqCst) >= bytes);
    assert!(String::from_utf8_lossy(&tail).contains("[DONE]"));
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection() {
    let provider = Provider::start(|_, mut wire| async move {
        wire.begin_stream().await;
        wire.chunk(&word_event("all ")).await;
        wire.chunk(&word_event("of it")).await;
        wire.chunk(&format!("{}{DONE}", finish_event())).await;
        wire.end_chunks().await;
        Some(wire)
    })
    .await;
    let gateway = one(&provider, "");
    let body = chat_body("up", "hi", true).to_string();
    for connection in ["", "connection: keep-alive\r\n"] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST /v1/chat/completions HTTP/1.0\r\n{connection}content-type: application/json\r\n");
        client.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert_eq!((head.status, head.header("transfer-encoding"), head.header("content-length")), (200, None, None));
        assert_ne!(head.header("connection"), Some("keep-alive"));
        let mut seen = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut seen)).await.expect("the connection ends").unwrap();
        assert!(seen.starts_with(b"data: "), "{}", String::from_utf8_lossy(&seen));
        assert_eq!(said(&seen), ("all of it".to_owned(), true));
    }
    // What has a length leaves the connection open.
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    for _ in 0..2 {
        client.write_all(b"GET /health HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        let head = read_head(&mut client).await;
        assert_eq!((head.status, head.header("connection")), (200, Some("keep-alive")));
        read_body(&mut client, &head).await;
    }
}

#[tokio::test]
async fn a_reader_that_never_reads_is_ended_and_its_permit_returns() {
    let (provider, written) = plenty(1 << 30).await;
    let gateway = one(&provider, "clientStall: 1s, maxConcurrent: 1");
    let client = gateway.open_stream("up", "hi").await;
    eventually("it is in flight", || async { gateway.backend("up").await["permits"]["used"] == 1 }).await;
    eventually("its permit returns", || async { gateway.backend("up").await["permits"]["used"] == 0 }).await;
    assert!(settled(&written).await < ON_THE_WAY);
    assert_eq!(gateway.member("up", "up").await["cancelled"], 1);
    // If it reads after all, it learns what happened.
    let (reply, whole) = Listener::of(client).await.finish().await;
    let text = said(&reply.body).0;
    assert_broken_after(&text, "a reader that woke up", (reply, whole));
}

#[tokio::test]
async fn a_reader_that_never_reads_and_then_leaves_frees_its_permit_at_once() {
    let (provider, written) = plenty(1 << 30).await;
    let gateway = one(&provider, "maxConcurrent: 1");
    let client = gateway.open_stream("up", "hi").await;
    settled(&written).await;
    assert_eq!(gateway.backend("up").await["permits"]["used"], 1);
    drop(client);
    let left = Instant::now();
    eventually("its permit returns", || async { gateway.backend("up").await["permits"]["used"] == 0 }).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_for_a_permit_or_a_retry_is_not_served_any_more() {
    let (provider, mut reports) = watched("before the head").await;
    let gateway = one(&provider, "maxConcurrent: 1");
    let first = gateway.open_stream("up", "first").await;
    reported(&mut reports).await;
    let second = gateway.open_stream("up", "second").await;
    eventually("the second waits", || async { gateway.backend("up").await["queued"] == 1 }).await;
    drop(second);
    eventually("it is forgotten", || async { gateway.backend("up").await["queued"] == 0 }).await;
    drop(first);
    reported(&mut reports).await;
    assert_eq!(provider.requests().len(), 1);

    let busy = Provider::start(|_, mut wire| async move {
        wire.reply(503, "application/json", &[("retry-after-ms", "1500")], b"{}").await;
        Some(wire)
    })
    .await;
    let gateway = one(&busy, "maxConcurrent: 1");
    let client = gateway.open_stream("up", "hi").await;
    eventually("it was tried", || async { busy.requests().len() == 1 }).await;
    drop(client);
    let left = Instant::now();
    eventually("its permit returns", || async { gateway.backend("up").await["permits"]["used"] == 0 }).await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    eventually("nothing is open", || async { gateway.state().await["open_requests"] == 0 }).await;
    assert_eq!(busy.requests().len(), 1);
}
