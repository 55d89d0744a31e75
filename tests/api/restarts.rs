//! Restarts of a backend under load, drain deadlines, and an operator's cancel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::support::{
    Gateway, PATIENCE, Provider, Reply, Wire, backend, chat_body, completion, events, eventually, finish_event, read_chunk,
    read_head, word_event,
};

/// A client that keeps its connection.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub async fn connect(gateway: &Gateway) -> Self {
        Self(BufReader::new(TcpStream::connect(gateway.address).await.expect("the gateway accepts")))
    }

    /// Sends a chat and reads the reply; a body that does not end in order is an error.
    pub async fn chat(&mut self, model: &str, text: &str, stream: bool) -> Result<Reply, String> {
        let body = chat_body(model, text, stream).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let all = [head.as_bytes(), body.as_bytes()].concat();
        self.0.get_mut().write_all(&all).await.map_err(|error| format!("sending: {error}"))?;
        timeout(PATIENCE, self.reply()).await.map_err(|_| "no whole reply in time".to_owned())?
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.map_err(|error| format!("reading: {error}"))?;
        line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| format!("the connection ended within `{line}`"))
    }

    async fn bytes(&mut self, length: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await.map_err(|error| format!("the body is cut: {error}"))?;
        Ok(bytes)
    }

    async fn reply(&mut self) -> Result<Reply, String> {
        let status = self.line().await?[9..12].parse().expect("a status");
        let mut reply = Reply { status, headers: Vec::new(), body: Vec::new() };
        loop {
            let line = self.line().await?;
            match line.split_once(": ") {
                Some((name, value)) => reply.headers.push((name.to_lowercase(), value.to_owned())),
                None => break,
            }
        }
        if let Some(length) = reply.header("content-length") {
            let length = length.parse().expect("a length");
            reply.body = self.bytes(length).await?;
            return Ok(reply);
        }
        loop {
            let length = usize::from_str_radix(&self.line().await?, 16).map_err(|error| error.to_string())?;
            let chunk = self.bytes(length + 2).await?;
            if length == 0 {
                return Ok(reply);
            }
            reply.body.extend_from_slice(&chunk[..length]);
        }
    }
}

/// Reads a chunked body to its end and says whether it ended in order.
pub async fn drain_body(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let reading = async {
        let mut body = Vec::new();
        loop {
            match read_chunk(stream).await {
                Some(chunk) if chunk.is_empty() => return (body, true),
                Some(chunk) => body.extend_from_slice(&chunk),
                None => return (body, false),
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the body ends in time")
}

/// What is wrong with a reply that should say exactly this.
pub fn mistake(reply: &Result<Reply, String>, expected: &str, stream: bool) -> Option<String> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Some(error.clone()),
    };
    if reply.status != 200 {
        return Some(format!("status {}: {}", reply.status, reply.text()));
    }
    let said = match stream {
        true if reply.events().last().map(String::as_str) != Some("[DONE]") => {
            return Some(format!("truncated: {}", reply.text()));
        }
        true => reply.streamed_text(),
        false => reply.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned(),
    };
    (said != expected).then(|| format!("mixed up: expected `{expected}`, got `{said}`"))
}

/// What a simulated backend says in so many words.
pub fn simulated_answer(question: &str, tokens: usize) -> String {
    let again = question.split_whitespace().chain(["and", "so", "on"]).cycle();
    ["Simulated", "answer", "to:"].into_iter().chain(again).take(tokens).collect::<Vec<_>>().join(" ")
}

/// What went through a backend under load.
#[derive(Default)]
pub struct Tally {
    pub served: AtomicUsize,
    pub wrong: std::sync::Mutex<Vec<String>>,
}

/// Asks one question after another over one connection until told to stop.
pub async fn ask_until(
    gateway: Arc<Gateway>,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    (model, name, stream): (&'static str, String, bool),
    expected: fn(&str) -> String,
) {
    let mut client = Client::connect(&gateway).await;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let question = format!("{name} round-{round}");
        let reply = client.chat(model, &question, stream).await;
        match mistake(&reply, &expected(&question), stream) {
            None => drop(tally.served.fetch_add(1, Ordering::Relaxed)),
            Some(wrong) => {
                tally.wrong.lock().unwrap().push(format!("{question}: {wrong}"));
                if reply.is_err() {
                    client = Client::connect(&gateway).await;
                }
            }
        }
    }
}

/// Restarts a backend 50 times while 64 connections and 100 streams run, and checks every answer.
async fn fifty_restarts_under_load(gateway: Gateway, expected: fn(&str) -> String) {
    let gateway = Arc::new(gateway);
    let stop = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = (0..164)
        .map(|number| {
            let stream = number >= 64;
            let who = ("up", format!("client-{number}"), stream);
            tokio::spawn(ask_until(Arc::clone(&gateway), Arc::clone(&stop), Arc::clone(&tally), who, expected))
        })
        .collect();
    let mut restarted = 0;
    let started = Instant::now();
    while restarted < 50 && started.elapsed() < Duration::from_secs(45) {
        let goal = tally.served.load(Ordering::Relaxed) + 20;
        let reply = gateway.send("POST", "/admin/api/backends/up/restart", &[], b"").await;
        restarted += 1;
        assert_eq!(reply.status, 202, "{}", reply.text());
        assert_eq!(reply.json()["generation"], restarted + 1);
        eventually("requests are served between two restarts", || async { tally.served.load(Ordering::Relaxed) >= goal }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let wrong = tally.wrong.lock().unwrap().clone();
    assert!(
        wrong.is_empty(),
        "{} of {} went wrong: {:#?}",
        wrong.len(),
        tally.served.load(Ordering::Relaxed),
        &wrong[..wrong.len().min(5)]
    );
    assert_eq!(restarted, 50, "restarts within the time");
    eventually("the old generations are gone", || async {
        let backend = gateway.backend("up").await;
        backend["in_flight"] == 0 && backend["draining"] == 0 && backend["permits"]["used"] == 0
    })
    .await;
    let member = gateway.member("up", "up").await;
    assert_eq!(member["truncated"], 0);
    assert_eq!(member["cut"], 0);
    assert_eq!(gateway.backend("up").await["generation"], 51);
}

#[tokio::test]
async fn fifty_restarts_of_a_simulated_backend_disturb_no_request() {
    let gateway = Gateway::start(
        "backends:\n  - { name: up, type: simulated, config: { firstToken: 60ms, tokensPerSecond: 150, tokens: 30, jitter: 0.5 } }\n\
         server: { port: 0, workers: 2 }\n",
    );
    fifty_restarts_under_load(gateway, |question| simulated_answer(question, 30)).await;
}

#[tokio::test]
async fn fifty_restarts_of_a_provider_behind_sockets_disturb_no_request() {
    let provider = Provider::start(|request, mut wire| async move {
        if request.head.line.starts_with("GET") {
            wire.json(200, &json!({ "object": "list", "data": [] })).await;
            return Some(wire);
        }
        let body = request.json();
        let question = body["messages"][0]["content"].as_str().unwrap().to_owned();
        tokio::time::sleep(Duration::from_millis(40)).await;
        if body["stream"] == true {
            wire.begin_stream().await;
            for word in question.split_inclusive(' ') {
                wire.chunk(&word_event(word)).await;
                tokio::time::sleep(Duration::from_millis(80)).await;
            }
            wire.chunk(&finish_event()).await;
            wire.chunk("data: [DONE]\n\n").await;
            wire.end_chunks().await;
        } else {
            wire.json(200, &completion(&question)).await;
        }
        Some(wire)
    })
    .await;
    let gateway =
        Gateway::start(&format!("backends:\n{}server: {{ port: 0, workers: 2 }}\n", backend("up", &provider.endpoint(), "")));
    fifty_restarts_under_load(gateway, str::to_owned).await;
}

/// A provider that shows the first word of a stream and keeps the rest, or a whole reply, until its gate opens.
async fn gated() -> (Provider, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let provider = Provider::start(move |request, mut wire| {
        let mut opened = opened.clone();
        async move {
            if request.head.line.starts_with("GET") {
                wire.json(200, &json!({ "object": "list", "data": [] })).await;
                return Some(wire);
            }
            let body = request.json();
            let question = body["messages"][0]["content"].as_str().unwrap().to_owned();
            let holds = question.starts_with("hold");
            if body["stream"] == true {
                wire.begin_stream().await;
                wire.chunk(&word_event("first ")).await;
            }
            if holds {
                let mut byte = [0];
                tokio::select! {
                    _ = opened.wait_for(|open| *open) => {}
                    _ = wire.0.read(&mut byte) => return None,
                }
            }
            if body["stream"] == true {
                wire.chunk(&word_event("last")).await;
                wire.chunk(&finish_event()).await;
                wire.chunk("data: [DONE]\n\n").await;
                wire.end_chunks().await;
            } else {
                wire.json(200, &completion(&question)).await;
            }
            Some(wire)
        }
    })
    .await;
    (provider, gate)
}

async fn restart(gateway: &Gateway, query: &str) -> Value {
    let reply = gateway.send("POST", &format!("/admin/api/backends/up/restart{query}"), &[], b"").await;
    assert!(matches!(reply.status, 200 | 202), "{}", reply.text());
    reply.json()
}

/// Opens streams and reads their heads and first chunks.
async fn hold_streams(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = gateway.open_stream("up", "hold").await;
        assert_eq!(read_head(&mut stream).await.status, 200);
        assert_eq!(events(&read_chunk(&mut stream).await.unwrap()).len(), 1);
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn a_restart_reports_what_completed_and_what_moved_and_cuts_nothing_by_default() {
    let (provider, gate) = gated().await;
    let gateway = Arc::new(Gateway::start(&format!(
        "backends:\n{}server: {{ port: 0, workers: 2 }}\n",
        backend("up", &provider.endpoint(), "maxConcurrent: 4")
    )));
    let mut streams = hold_streams(&gateway, 4).await;
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.chat("up", &format!("queued {number}")).await })
        })
        .collect();
    eventually("three requests wait for a permit", || async { gateway.backend("up").await["queued"] == 3 }).await;

    let report = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { restart(&gateway, "?wait=1").await }
    });
    eventually("the old generation drains while the new one holds the queue", || async {
        let up = gateway.backend("up").await;
        up["generation"] == 2 && up["draining"] == 4 && up["in_flight"] == 0 && up["queued"] == 3
    })
    .await;
    assert!(!report.is_finished());
    gate.send_replace(true);
    let report = timeout(PATIENCE, report).await.expect("the report comes").unwrap();
    for stream in &mut streams {
        let (body, in_order) = drain_body(stream).await;
        assert!(in_order);
        assert_eq!(events(&body).last().unwrap(), "[DONE]");
    }
    for (number, reply) in waiting.into_iter().enumerate() {
        let reply = reply.await.unwrap();
        assert_eq!(reply.json()["choices"][0]["message"]["content"], format!("queued {number}"));
    }

    assert_eq!(report["generation"], 2);
    assert_eq!(report["in_flight_at_start"], 4);
    assert_eq!(report["completed"], 4);
    assert_eq!(report["moved"], 3);
    assert_eq!(report["cut"], 0);
    let workers = report["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for key in ["in_flight_at_start", "completed", "moved", "cut"] {
        let sum: u64 = workers.iter().map(|worker| worker[key].as_u64().unwrap()).sum();
        assert_eq!(report[key], sum, "{key}");
    }
    assert_eq!(gateway.backend("up").await["restarts"], 1, "one act on two workers");
    let longest = workers.iter().map(|worker| worker["duration_seconds"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(report["duration_seconds"].as_f64().unwrap(), longest);
}

#[tokio::test]
async fn new_requests_land_on_the_new_generation_at_once() {
    let (provider, gate) = gated().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    let mut old = hold_streams(&gateway, 3).await;
    let answer = restart(&gateway, "").await;
    assert_eq!(answer["generation"], 2);
    assert_eq!(answer["in_flight_at_start"], 3);
    assert_eq!(answer.get("completed"), None, "nothing is known yet: {answer}");
    assert_eq!(gateway.chat("up", "now").await.status, 200);
    let mut new = hold_streams(&gateway, 1).await;
    let up = gateway.backend("up").await;
    assert_eq!((&up["generation"], &up["draining"], &up["in_flight"]), (&json!(2), &json!(3), &json!(1)));
    assert_eq!(up["restarts"], 1);
    assert_eq!(up["crashes"], 0);
    assert!(up["last_reason"].as_str().unwrap().contains("operator"), "{up}");
    assert_eq!(up["permits"]["used"], 4);
    gate.send_replace(true);
    for stream in old.iter_mut().chain(&mut new) {
        assert_eq!(events(&drain_body(stream).await.0).last().unwrap(), "[DONE]");
    }
    eventually("everything is delivered", || async {
        let up = gateway.backend("up").await;
        up["draining"] == 0 && up["in_flight"] == 0 && up["permits"]["used"] == 0
    })
    .await;
}

#[tokio::test]
async fn a_drain_deadline_ends_begun_streams_with_the_error_event_and_moves_what_has_no_content() {
    let (provider, gate) = gated().await;
    let gateway = Arc::new(Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), ""))));
    let mut streams = hold_streams(&gateway, 3).await;
    let whole = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.chat("up", "hold whole").await }
    });
    eventually("four requests are in flight", || async { gateway.backend("up").await["in_flight"] == 4 }).await;
    let report = restart(&gateway, "?deadline=300ms&wait=1").await;
    assert_eq!((&report["in_flight_at_start"], &report["completed"]), (&json!(4), &json!(0)), "{report}");
    assert_eq!((&report["moved"], &report["cut"], &report["failed"]), (&json!(1), &json!(3), &json!(0)), "{report}");
    let seconds = report["duration_seconds"].as_f64().unwrap();
    assert!((0.3..3.0).contains(&seconds), "{seconds}");
    for stream in &mut streams {
        let (body, in_order) = drain_body(stream).await;
        assert!(in_order, "the body ends in order, so that the event is delivered");
        let last: Value = serde_json::from_str(events(&body).last().unwrap()).unwrap();
        assert_eq!(last["error"]["type"], "server_error");
        assert!(last["error"]["message"].as_str().unwrap().contains("drain deadline of its backend"), "{last}");
    }
    // There is no other member: the next generation serves it.
    eventually("it is with the next generation", || async { gateway.backend("up").await["in_flight"] == 1 }).await;
    gate.send_replace(true);
    let whole = whole.await.unwrap();
    assert_eq!((whole.status, whole.header("x-stagedoor-attempts")), (200, Some("2")), "{}", whole.text());
    eventually("each attempt has its outcome", || async {
        let up = gateway.member("up", "up").await;
        up["cut"] == 4 && up["served"] == 1
    })
    .await;
    assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
}

#[tokio::test]
async fn what_a_hanging_backend_has_not_answered_is_served_by_another_when_it_is_restarted_or_drained() {
    let hangs = Provider::start(|_, mut wire: Wire| async move {
        wire.await_close().await;
        None
    })
    .await;
    let well = Provider::saying("served elsewhere").await;
    let gateway = Arc::new(Gateway::start(&format!(
        "backends:\n{}{}  - {{ name: p, type: pool, strategy: weighted, backends: [ {{ name: up, weight: 1 }}, \
         {{ name: other, weight: 0 }} ] }}\nserver: {{ port: 0, workers: 2 }}\n",
        backend("up", &hangs.endpoint(), ""),
        backend("other", &well.endpoint(), ""),
    )));
    for act in ["restart", "drain"] {
        let asking: Vec<_> = (0..6)
            .map(|number| {
                let gateway = Arc::clone(&gateway);
                let headers = if number == 5 { vec![("x-stagedoor-repeat", "never")] } else { vec![] };
                tokio::spawn(async move {
                    let body = chat_body("p", "hi", number % 2 == 0).to_string();
                    let headers = [&[("content-type", "application/json")], &headers[..]].concat();
                    gateway.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await
                })
            })
            .collect();
        eventually("they hang", || async { gateway.backend("up").await["permits"]["used"] == 6 }).await;
        let path = format!("/admin/api/backends/up/{act}?wait=1&deadline=200ms");
        let report = gateway.send("POST", &path, &[], b"").await.json();
        assert_eq!((&report["moved"], &report["cut"]), (&json!(5), &json!(1)), "{act}: {report}");
        let up = gateway.member("p", "up").await;
        let acts = if act == "restart" { 1 } else { 2 };
        assert_eq!((&up["cut"], &up["moved"]), (&json!(6 * acts), &json!(5 * acts)), "{up}");
        for (number, reply) in asking.into_iter().enumerate() {
            let reply = reply.await.unwrap();
            if number == 5 {
                // Nobody knows what has become of it.
                assert_eq!((reply.status, reply.code().as_str()), (503, "request_cut"), "{act}");
            } else {
                assert_eq!((reply.status, reply.header("x-stagedoor-backend")), (200, Some("other")), "{act}: {}", reply.text());
            }
        }
    }
}

/// A provider that streams without end, and says when the gateway takes no more and when it hangs up.
async fn endless() -> (Provider, watch::Receiver<&'static str>) {
    let (tell, told) = watch::channel("");
    let provider = Provider::start(move |request, mut wire: Wire| {
        let tell = tell.clone();
        async move {
            if request.head.line.starts_with("GET") {
                wire.json(200, &json!({ "object": "list", "data": [] })).await;
                return Some(wire);
            }
            wire.begin_stream().await;
            let event = word_event(&"word ".repeat(8_000));
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            loop {
                match timeout(Duration::from_secs(1), wire.raw(chunk.as_bytes())).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The transfer is spoilt now, but nobody reads on.
                    Err(_) => {
                        tell.send_replace("full");
                        // Nothing will be readable until the gateway hangs up.
                        let _ = wire.0.read(&mut [0]).await;
                        break;
                    }
                }
            }
            tell.send_replace("closed");
            None
        }
    })
    .await;
    (provider, told)
}

async fn until(told: &mut watch::Receiver<&'static str>, what: &str) {
    timeout(PATIENCE, told.wait_for(|state| *state == what)).await.unwrap_or_else(|_| panic!("never {what}")).unwrap();
}

/// Opens a stream under an id and never reads it; returns when everything on the way is full.
async fn stalled_reader(gateway: &Gateway, told: &mut watch::Receiver<&'static str>, id: &str) -> TcpStream {
    let body = chat_body("up", "hi", true).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    let reader = gateway.open("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
    until(told, "full").await;
    eventually("the stream has begun", || async {
        gateway.get("/admin/api/requests").await.json()["in_flight"][0]["phase"] == "streaming"
    })
    .await;
    reader
}

/// Reads everything that had been on its way, and the event at its end.
async fn last_event(mut reader: TcpStream) -> Value {
    assert_eq!(read_head(&mut reader).await.status, 200);
    let mut reader = BufReader::new(reader);
    let mut tail = Vec::new();
    let reading = async {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).await.expect("the connection ends in order");
            assert!(read > 0, "the body ends with its last chunk");
            if line == b"0\r\n" {
                break;
            }
            if line.starts_with(b"data: ") {
                tail.clone_from(&line);
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the body ends in time");
    serde_json::from_slice(&tail[6..]).unwrap()
}

#[tokio::test]
async fn a_drain_deadline_also_ends_a_stream_whose_client_never_reads() {
    let (provider, mut told) = endless().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "")));
    let reader = stalled_reader(&gateway, &mut told, "never-reads").await;
    let report = restart(&gateway, "?deadline=300ms&wait=1").await;
    assert_eq!((&report["in_flight_at_start"], &report["completed"], &report["cut"]), (&json!(1), &json!(0), &json!(1)));
    until(&mut told, "closed").await;
    eventually("it counts as cut", || async { gateway.member("up", "up").await["cut"] == 1 }).await;
    assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
    assert_eq!(last_event(reader).await["error"]["type"], "server_error");
}

#[tokio::test]
async fn an_operator_can_cancel_a_stream_whose_client_never_reads() {
    let (provider, mut told) = endless().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 1")));
    let reader = stalled_reader(&gateway, &mut told, "never-reads").await;
    let listed = gateway.get("/admin/api/requests").await.json();
    assert_eq!(listed["in_flight"][0]["id"], "never-reads");
    assert_eq!(listed["in_flight"][0]["phase"], "streaming");
    assert_eq!(listed["in_flight"][0]["backend"], "up");
    let reply = gateway.send("DELETE", "/admin/api/requests/never-reads", &[], b"").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    until(&mut told, "closed").await;
    eventually("it counts as cut", || async { gateway.member("up", "up").await["cut"] == 1 }).await;
    assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
    assert_eq!(gateway.get("/admin/api/requests").await.json()["in_flight"], json!([]));
    let last = last_event(reader).await;
    assert!(last["error"]["message"].as_str().unwrap().contains("operator"), "{last}");
}

#[tokio::test]
async fn an_operator_can_cancel_a_request_that_waits_for_its_provider() {
    let (hung_up, mut hangs_up) = watch::channel(false);
    let provider = Provider::start(move |_, mut wire: Wire| {
        let hung_up = hung_up.clone();
        async move {
            wire.await_close().await;
            hung_up.send_replace(true);
            None
        }
    })
    .await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 2")));
    for (number, stream) in [(1, false), (2, true)] {
        hangs_up.borrow_and_update();
        let id = format!("waits-{number}");
        let body = chat_body("up", "hi", stream).to_string();
        let headers = [("content-type", "application/json"), ("x-request-id", id.as_str())];
        let mut client = gateway.open("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
        eventually("the request is listed", || async {
            let listed = gateway.get("/admin/api/requests").await.json();
            listed["in_flight"][0]["id"] == id.as_str() && listed["in_flight"][0]["phase"] == "waiting"
        })
        .await;
        let reply = gateway.send("DELETE", &format!("/admin/api/requests/{id}"), &[], b"").await;
        assert_eq!(reply.json()["ended"], 1);
        let head = read_head(&mut client).await;
        assert_eq!(head.status, 503);
        assert_eq!(head.header("x-request-id"), Some(id.as_str()));
        timeout(Duration::from_secs(2), hangs_up.changed()).await.expect("the provider is let go soon").unwrap();
        eventually("it counts as cut", || async { gateway.member("up", "up").await["cut"] == number }).await;
        assert_eq!(gateway.backend("up").await["permits"]["used"], 0);
    }
}

#[tokio::test]
async fn an_operator_can_cancel_a_request_that_waits_for_a_permit() {
    let (provider, _gate) = gated().await;
    let gateway = Gateway::start(&format!("backends:\n{}", backend("up", &provider.endpoint(), "maxConcurrent: 1")));
    let _held = hold_streams(&gateway, 1).await;
    let body = chat_body("up", "queued", false).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "queued-1")];
    let mut client = gateway.open("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
    eventually("it waits", || async { gateway.backend("up").await["queued"] == 1 }).await;
    let reply = gateway.send("DELETE", "/admin/api/requests/queued-1", &[], b"").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(read_head(&mut client).await.status, 503);
    eventually("the queue is empty", || async { gateway.backend("up").await["queued"] == 0 }).await;
}

#[tokio::test]
async fn acts_on_what_does_not_exist_are_refused_in_words() {
    let gateway = Gateway::start("backends:\n  - { name: up, type: simulated }\n");
    let reply = gateway.send("DELETE", "/admin/api/requests/nobody", &[], b"").await;
    assert_eq!(reply.status, 404);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("nobody"));
    assert_eq!(gateway.send("POST", "/admin/api/backends/nothing/restart", &[], b"").await.status, 404);
    let reply = gateway.send("POST", "/admin/api/backends/up/restart?deadline=soon", &[], b"").await;
    assert_eq!(reply.status, 400);
    assert_eq!(gateway.backend("up").await["generation"], 1, "a refused restart restarts nothing");
}
