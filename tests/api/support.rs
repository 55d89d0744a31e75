//! What the end-to-end tests share: a gateway on a port of its own, a scripted provider, and a plain client.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stagedoor::settings;
use stagedoor::startup::Application;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything a test expects.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway in this process, on a thread and a port of its own; stopped when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Starts with a YAML configuration; `server`, where it is not given, is one worker on a free port.
    pub fn start(yaml: &str) -> Self {
        Self::start_with(yaml, &BTreeMap::new())
    }

    /// Starts with a YAML configuration and an environment.
    pub fn start_with(yaml: &str, environment: &BTreeMap<String, String>) -> Self {
        let mut yaml = yaml.to_owned();
        if !yaml.contains("server:") {
            yaml.push_str("\nserver: { port: 0, workers: 1 }\n");
        }
        if !yaml.contains("telemetry:") {
            yaml.push_str("\ntelemetry: { accessLog: false }\n");
        }
        let settings = settings::from_text("test", &yaml, environment).expect("the configuration is valid");
        let (started, starting) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix::System::new().block_on(async move {
                let application = Application::start(settings).expect("the gateway starts");
                let stopper = application.stopper();
                started.send(application.address()).expect("the test waits");
                tokio::select! {
                    ended = application.serve() => ended.expect("the server ends in order"),
                    _ = stopped => stopper.stop().await,
                }
            });
        });
        let address = starting.recv_timeout(PATIENCE).expect("the gateway starts in time");
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Sends a JSON body and awaits the whole reply.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// Sends a chat request.
    pub async fn chat(&self, model: &str, text: &str) -> Reply {
        self.post("/v1/chat/completions", &chat_body(model, text, false)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"").await
    }

    /// Sends any request over a connection of its own and reads the reply to its end.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.open(method, path, headers, body).await;
        let head = read_head(&mut stream).await;
        let body = read_body(&mut stream, &head).await;
        Reply { status: head.status, headers: head.headers, body }
    }

    /// Sends a request and returns the connection, nothing of the reply read yet.
    pub async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("the gateway accepts");
        stream.set_nodelay(true).expect("a socket option");
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.expect("the request is sent");
        // A gateway that refuses early may have closed already.
        let _ = stream.write_all(body).await;
        stream
    }

    /// Opens a streamed chat; nothing of the reply is read yet.
    pub async fn open_stream(&self, model: &str, text: &str) -> TcpStream {
        let body = chat_body(model, text, true).to_string();
        self.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], body.as_bytes()).await
    }

    /// A streamed chat, read to its end.
    pub async fn stream(&self, model: &str, text: &str) -> Reply {
        self.post("/v1/chat/completions", &chat_body(model, text, true)).await
    }

    pub async fn state(&self) -> Value {
        self.get("/admin/api/state").await.json()
    }

    /// A backend's part of the state.
    pub async fn backend(&self, name: &str) -> Value {
        let state = self.state().await;
        state["backends"].as_array().expect("a list").iter().find(|b| b["name"] == name).cloned().expect("the backend is known")
    }

    /// A member's statistics within a pool.
    pub async fn member(&self, pool: &str, backend: &str) -> Value {
        let state = self.state().await;
        let pool =
            state["pools"].as_array().expect("a list").iter().find(|p| p["name"] == pool).cloned().expect("the pool is known");
        pool["members"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|m| m["backend"] == backend)
            .cloned()
            .expect("the member is known")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed.
            let _ = thread.join();
        }
    }
}

pub fn chat_body(model: &str, text: &str, stream: bool) -> Value {
    json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": text }] })
}

/// A reply, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// `error.code`.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The data of every event.
    pub fn events(&self) -> Vec<String> {
        events(&self.body)
    }

    /// The text of a streamed chat.
    pub fn streamed_text(&self) -> String {
        let chunks = self.events().into_iter().filter(|data| data != "[DONE]");
        chunks
            .filter_map(|data| {
                serde_json::from_str::<Value>(&data).ok()?["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
            })
            .collect()
    }
}

/// The data of every event in some bytes.
pub fn events(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// Head of a reply or request.
#[derive(Debug, Clone)]
pub struct Head {
    /// Status of a reply; 0 for a request.
    pub status: u16,
    /// First line.
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a head; panics when it does not come.
pub async fn read_head(stream: &mut TcpStream) -> Head {
    try_read_head(stream).await.expect("a head comes")
}

/// Reads a head; `None` when the connection ends first.
pub async fn try_read_head(stream: &mut TcpStream) -> Option<Head> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("the head comes in time").ok()?;
        bytes.push(byte);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = text.lines();
    let line = lines.next()?.to_owned();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let rest = ["HTTP/1.1 ", "HTTP/1.0 "].iter().find_map(|version| line.strip_prefix(version));
    let status = rest.and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
    Some(Head { status, line, headers })
}

/// Reads a body by its length or chunks, else to the end of the connection. A chunked body that breaks off is returned
/// as far as it came.
pub async fn read_body(stream: &mut TcpStream, head: &Head) -> Vec<u8> {
    let reading = async {
        let mut body = Vec::new();
        if head.header("transfer-encoding").is_some() {
            while let Some(chunk) = read_chunk(stream).await {
                if chunk.is_empty() {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = head.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            body.resize(length, 0);
            stream.read_exact(&mut body).await.expect("the body is whole");
        } else {
            stream.read_to_end(&mut body).await.expect("the body ends");
        }
        body
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the body comes in time")
}

/// Reads one chunk of a chunked body; empty is the last one, `None` a broken one.
pub async fn read_chunk(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    let length = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk).await.ok()?;
    chunk.truncate(length);
    Some(chunk)
}

/// A request as a scripted provider received it.
#[derive(Debug, Clone)]
pub struct Received {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the gateway sends JSON")
    }
}

/// A provider whose every connection is handled by a closure with the bare socket in its hands.
pub struct Provider {
    pub address: SocketAddr,
    /// Connections accepted.
    pub connections: Arc<AtomicUsize>,
    /// Requests received, in order.
    pub received: Arc<Mutex<Vec<Received>>>,
}

impl Provider {
    /// Starts; `answer` is called with each request and may write anything. It returns whether the connection stays.
    pub async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Received, Wire) -> A + Send + Sync + 'static,
        A: Future<Output = Option<Wire>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let received = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let (count, log) = (Arc::clone(&connections), Arc::clone(&received));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).expect("a socket option");
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                tokio::spawn(async move {
                    let mut wire = Wire(stream);
                    while let Some(request) = wire.receive().await {
                        log.lock().expect("no test panics with it").push(request.clone());
                        match answer(request, wire).await {
                            Some(kept) => wire = kept,
                            None => break,
                        }
                    }
                });
            }
        });
        Self { address, connections, received }
    }

    /// Starts a provider that answers every chat with this text, whole or streamed as asked.
    pub async fn saying(text: &'static str) -> Self {
        Self::start(move |request, mut wire| async move {
            if request.json()["stream"] == true {
                wire.begin_stream().await;
                for word in text.split_inclusive(' ') {
                    wire.chunk(&word_event(word)).await;
                }
                wire.chunk(&finish_event()).await;
                wire.chunk("data: [DONE]\n\n").await;
                wire.end_chunks().await;
            } else {
                wire.json(200, &completion(text)).await;
            }
            Some(wire)
        })
        .await
    }

    /// Base URL for a backend's `endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn requests(&self) -> Vec<Received> {
        self.received.lock().expect("no test panics with it").clone()
    }
}

/// A provider's side of a connection.
pub struct Wire(pub TcpStream);

impl Wire {
    async fn receive(&mut self) -> Option<Received> {
        let head = {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                bytes.push(self.0.read_u8().await.ok()?);
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines = text.lines();
            let line = lines.next()?.to_owned();
            let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
            Head { status: 0, line, headers }
        };
        let mut body = Vec::new();
        if head.header("transfer-encoding").is_some() {
            loop {
                let chunk = read_chunk(&mut self.0).await?;
                if chunk.is_empty() {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = head.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            body.resize(length, 0);
            self.0.read_exact(&mut body).await.ok()?;
        }
        Some(Received { head, body })
    }

    /// Writes bytes as they are; a gateway that has left is no error.
    pub async fn raw(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Writes a whole JSON reply.
    pub async fn json(&mut self, status: u16, body: &Value) {
        self.reply(status, "application/json", &[], body.to_string().as_bytes()).await;
    }

    /// Writes a whole reply.
    pub async fn reply(&mut self, status: u16, content_type: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.raw(&[head.as_bytes(), body].concat()).await;
    }

    /// Writes the head of a chunked event stream.
    pub async fn begin_stream(&mut self) -> bool {
        self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await
    }

    /// Writes one chunk; false when the gateway has left.
    pub async fn chunk(&mut self, text: &str) -> bool {
        self.raw(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    /// Ends a chunked body.
    pub async fn end_chunks(&mut self) -> bool {
        self.raw(b"0\r\n\r\n").await
    }

    /// Waits until the gateway closes the connection; returns how long that took.
    pub async fn await_close(&mut self) -> Duration {
        let start = tokio::time::Instant::now();
        let mut rest = [0; 1_024];
        while let Ok(read) = tokio::time::timeout(PATIENCE, self.0.read(&mut rest)).await.expect("the gateway closes in time") {
            if read == 0 {
                break;
            }
        }
        start.elapsed()
    }
}

/// A whole chat completion.
pub fn completion(text: &str) -> Value {
    json!({ "id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5 } })
}

/// An event with one piece of text.
pub fn word_event(word: &str) -> String {
    let chunk = json!({ "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": { "content": word }, "finish_reason": null }] });
    format!("data: {chunk}\n\n")
}

/// The event that finishes a choice.
pub fn finish_event() -> String {
    let chunk = json!({ "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    format!("data: {chunk}\n\n")
}

/// The event that reports usage.
pub fn usage_event(prompt: u64, completion: u64) -> String {
    let chunk = json!({ "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [], "usage": { "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion } });
    format!("data: {chunk}\n\n")
}

/// An `openai` backend in YAML, with further keys of `config`.
pub fn backend(name: &str, endpoint: &str, more: &str) -> String {
    format!(
        "  - {{ name: {name}, type: openai, config: {{ apiKey: sk-upstream-secret, endpoint: \"{endpoint}\", defaultModel: m, {more} }} }}\n"
    )
}

/// Waits until a condition holds, looking every 10 ms.
pub async fn eventually<F, A>(what: &str, mut holds: F)
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    let looking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
