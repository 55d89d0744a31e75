//! A client that trusts nothing: it keeps its connection, reads chunk by chunk, and says how a reply ended.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Words in an answer of the simulated provider.
pub const WORDS: usize = 12;

/// A connection that serves one request after another.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connecting: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("a socket option: {error}"))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request; nothing of the reply is read yet.
    pub async fn send(&mut self, method: &str, path: &str, body: &str) -> Result<(), String> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).await.map_err(|error| format!("sending: {error}"))
    }

    /// Asks a question and reads the reply to its end.
    pub async fn ask(&mut self, question: &Question<'_>) -> Result<Reply, String> {
        self.send("POST", "/v1/chat/completions", &question.body()).await?;
        self.reply().await
    }

    /// Reads a reply to its end. One that breaks off is an error.
    pub async fn reply(&mut self) -> Result<Reply, String> {
        let mut reply = self.head().await?;
        while self.piece(&mut reply).await? {}
        Ok(reply)
    }

    /// Reads the head of a reply.
    pub async fn head(&mut self) -> Result<Reply, String> {
        let line = self.line().await?;
        let status = line.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(|| format!("no status: {line}"))?;
        let mut reply = Reply { status, headers: Vec::new(), body: Vec::new() };
        while let Some((name, value)) = self.line().await?.split_once(": ") {
            reply.headers.push((name.to_lowercase(), value.to_owned()));
        }
        Ok(reply)
    }

    /// Reads one more piece of a reply's body; false at its end in order.
    pub async fn piece(&mut self, reply: &mut Reply) -> Result<bool, String> {
        if let Some(length) = reply.header("content-length") {
            let length: usize = length.parse().map_err(|error| format!("content-length: {error}"))?;
            let rest = self.bytes(length.saturating_sub(reply.body.len())).await?;
            reply.body.extend_from_slice(&rest);
            return Ok(!rest.is_empty());
        }
        let length = usize::from_str_radix(&self.line().await?, 16).map_err(|error| format!("length of a chunk: {error}"))?;
        let chunk = self.bytes(length + 2).await?;
        reply.body.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
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
}

/// A reply as far as it was read.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Events so far.
    pub fn events(&self) -> usize {
        self.body.windows(2).filter(|pair| pair == b"\n\n").count()
    }
}

/// What is asked.
pub struct Question<'a> {
    pub model: &'a str,
    pub text: &'a str,
    pub stream: bool,
}

/// Tokens as a reply reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
}

/// How a reply ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// A whole reply that says what was due.
    Whole,
    /// A stream that says what was due, with `[DONE]`.
    Done,
    /// A stream that says a part of what was due, then has one typed error event, no `[DONE]`, and an end in order.
    Broken { code: String, words: u64 },
    /// A status of its own with an error of the right form.
    Refused { status: u16, code: String, retry_after: Option<u64>, is_final: bool },
}

impl Question<'_> {
    /// The request's body.
    pub fn body(&self) -> String {
        let mut body = json!({ "model": self.model, "messages": [{ "role": "user", "content": self.text }] });
        if self.stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        body.to_string()
    }

    /// What the simulated provider says to it.
    fn answer(&self) -> String {
        let again = self.text.split_whitespace().chain(["and", "so", "on"]).cycle();
        ["Simulated", "answer", "to:"].into_iter().chain(again).take(WORDS).collect::<Vec<_>>().join(" ")
    }

    /// How a reply to it ended, and its usage; an error is a promise that was broken.
    pub fn ending(&self, reply: &Reply) -> Result<(Ending, Usage), String> {
        let (ending, usage) = match (reply.status, self.stream) {
            (200, false) => self.whole(reply)?,
            (200, true) => self.streamed(reply)?,
            _ => (refused(reply)?, None),
        };
        let is_complete = matches!(ending, Ending::Whole | Ending::Done);
        match usage {
            Some(usage) => Ok((ending, usage)),
            None if is_complete => Err(format!("no usage: {}", reply.text())),
            None => Ok((ending, Usage::default())),
        }
    }

    fn whole(&self, reply: &Reply) -> Result<(Ending, Option<Usage>), String> {
        let body: Value = serde_json::from_slice(&reply.body).map_err(|error| format!("{error}: {}", reply.text()))?;
        let said = body["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        if said != self.answer() {
            return Err(format!("mixed up: `{said}` where `{}` was due", self.answer()));
        }
        Ok((Ending::Whole, usage(&body)))
    }

    fn streamed(&self, reply: &Reply) -> Result<(Ending, Option<Usage>), String> {
        let text = reply.text();
        let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        let Some((last, before)) = events.split_last() else {
            return Err("a stream without any event".to_owned());
        };
        let mut said = String::new();
        let mut reported = None;
        for event in before {
            let event: Value = serde_json::from_str(event).map_err(|error| format!("{error}: {text}"))?;
            if event.get("error").is_some() {
                return Err(format!("something follows the error event: {text}"));
            }
            said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            reported = usage(&event).or(reported);
        }
        if *last == "[DONE]" {
            return if said == self.answer() {
                Ok((Ending::Done, reported))
            } else {
                Err(format!("mixed up or truncated: `{said}` where `{}` was due", self.answer()))
            };
        }
        let last: Value = serde_json::from_str(last).map_err(|error| format!("{error}: {text}"))?;
        let code = code_of(&last).map_err(|wrong| format!("a truncated stream ends cleanly, {wrong}: {text}"))?;
        if !self.answer().starts_with(&said) {
            return Err(format!("mixed up: `{said}` where `{}` was due", self.answer()));
        }
        Ok((Ending::Broken { code, words: said.split_whitespace().count() as u64 }, reported))
    }
}

fn refused(reply: &Reply) -> Result<Ending, String> {
    let body: Value = serde_json::from_slice(&reply.body).map_err(|error| format!("{error}: {}", reply.text()))?;
    let code = code_of(&body).map_err(|wrong| format!("{wrong}: {}", reply.text()))?;
    let retry_after = reply.header("retry-after").map(str::parse).transpose().map_err(|error| format!("retry-after: {error}"))?;
    let is_final = reply.header("x-should-retry") == Some("false");
    Ok(Ending::Refused { status: reply.status, code, retry_after, is_final })
}

/// The code of an error of the right form.
fn code_of(body: &Value) -> Result<String, String> {
    let error = body.get("error").ok_or("without an error")?;
    let text = |name: &str| error[name].as_str().filter(|text| !text.is_empty());
    if text("message").is_none() || text("type").is_none() || error.get("param").is_none() {
        return Err("an error without message, type or param".to_owned());
    }
    text("code").map(str::to_owned).ok_or_else(|| "an error without a code".to_owned())
}

fn usage(body: &Value) -> Option<Usage> {
    let count = |name: &str| body["usage"][name].as_u64();
    Some(Usage { prompt: count("prompt_tokens")?, completion: count("completion_tokens")? })
}
