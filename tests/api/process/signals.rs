//! How it ends.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpStream;

use super::{Running, reply};
use crate::restarts::drain_body;
use crate::support::{events, eventually, read_chunk, read_head};

const SLOW: &str =
    "backends:\n  - { name: up, type: simulated, config: { firstToken: 10ms, tokensPerSecond: 10, tokens: 25 } }\n";

#[tokio::test]
async fn on_sigterm_a_stream_finishes_while_nothing_new_is_taken() {
    let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, workers: 2, drainGrace: 600ms }}\n"), &[]);
    let mut kept = running.open("GET", "/ready", &[], "").await;
    assert_eq!(reply(&mut kept).await.status, 200);
    let mut stream = running.open_stream("up", "to the end").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    read_chunk(&mut stream).await.unwrap();

    running.signal("TERM");
    eventually("it is not ready", || async { running.send("GET", "/ready", &[], "").await.status == 503 }).await;
    assert_eq!(running.send("GET", "/health", &[], "").await.status, 200, "it lives");
    let taken = running.chat("up", "within the grace").await;
    assert_eq!(taken.status, 200, "within the grace new requests are served: {}", taken.text());
    assert_eq!(taken.header("connection"), Some("close"));
    eventually("new connections are refused", || async { TcpStream::connect(running.address).await.is_err() }).await;
    assert!(running.child.try_wait().unwrap().is_none(), "the stream keeps it running");

    let (body, in_order) = drain_body(&mut stream).await;
    let finished = Instant::now();
    assert!(in_order);
    assert_eq!(events(&body).last().unwrap(), "[DONE]");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - finished < Duration::from_millis(500), "it does not linger: {:?}", at - finished);
}

#[tokio::test]
async fn an_idle_process_ends_as_soon_as_the_grace_is_over() {
    let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, drainGrace: 200ms }}\n"), &[]);
    let mut kept = running.open("GET", "/ready", &[], "").await;
    assert_eq!(reply(&mut kept).await.status, 200);
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    let took = at - start;
    assert!(
        (Duration::from_millis(200)..Duration::from_millis(900)).contains(&took),
        "an idle connection does not hold it: {took:?}"
    );
}

#[tokio::test]
async fn the_drain_timeout_ends_what_is_left_with_the_error_event() {
    let yaml = format!("{SLOW}server: {{ port: 0, workers: 1, drainGrace: 50ms, drainTimeout: 400ms }}\n");
    let mut running = Running::start(&yaml, &[]);
    let mut stream = running.open_stream("up", "cut").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    let start = Instant::now();
    running.signal("TERM");
    let (body, in_order) = drain_body(&mut stream).await;
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    let took = at - start;
    assert!((Duration::from_millis(400)..Duration::from_millis(1_500)).contains(&took), "{took:?}");
    assert!(in_order, "the body ends in order, so that the event is delivered");
    let last: Value = serde_json::from_str(events(&body).last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_the_process_beyond_the_drain_timeout() {
    let yaml = "backends:\n  - { name: up, type: simulated, config: { firstToken: 1ms, tokensPerSecond: 1000000, tokens: 40000 } }\n\
                server: { port: 0, workers: 1, drainGrace: 50ms, drainTimeout: 400ms }\n";
    let mut running = Running::start(yaml, &[]);
    let _stream = running.open_stream("up", "never read").await;
    eventually("it is in flight", || async {
        running.send("GET", "/admin/api/requests", &[], "").await.json()["in_flight"][0]["phase"] == "streaming"
    })
    .await;
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - start < Duration::from_secs(2), "{:?}", at - start);
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT"), ("HUP", "QUIT"), ("QUIT", "TERM")] {
        let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, workers: 1 }}\n"), &[]);
        let mut stream = running.open_stream("up", "cut").await;
        assert_eq!(read_head(&mut stream).await.status, 200);
        running.signal(first);
        eventually("it drains", || async { running.send("GET", "/ready", &[], "").await.status == 503 }).await;
        let start = Instant::now();
        running.signal(second);
        let (body, in_order) = drain_body(&mut stream).await;
        let (status, at) = running.ended().await;
        assert_ne!(status.code(), Some(0));
        assert!(at - start < Duration::from_millis(800), "{:?}", at - start);
        assert!(in_order, "the client is told");
        assert!(events(&body).last().unwrap().contains("shutdown"), "{body:?}");
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let outcomes: Vec<_> = lines.iter().filter_map(|line| line["request"]["outcome"].as_str()).collect();
        assert_eq!(outcomes, ["cut"], "{printed}");
    }
}
