//! The upstream: answers chat completions as a request's `user` field asks, `bench DELAY GAP CHUNKS`.
//!
//! DELAY is milliseconds before the head, GAP milliseconds between events. CHUNKS is the number of text events of a
//! stream, or 0 for one that never ends and goes as fast as the peer reads. The wish travels in the body because a
//! gateway may drop request headers that it does not know. One line on stdout names the ports; the end of stdin ends
//! the process, so that none is left behind.

use crate::http::{self, Body};
use crate::{Args, Result};
use memchr::memmem;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

/// Size of a plain reply's body and of one event, as real ones are.
pub const REPLY_BYTES: usize = 600;
const EVENT_BYTES: usize = 296;
/// The wish stands at the front of a body; stream requests are small and kept whole to look for their options.
const KEPT: usize = 16 * 1024;

pub async fn run(args: &Args) -> Result<()> {
    let mut ports = Vec::new();
    for _ in 0..args.number("ports", 1)? {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(|e| format!("bind: {e}"))?;
        ports.push(listener.local_addr().map_err(|e| e.to_string())?.port());
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A peer that leaves, also in mid-stream, is not the mock's business.
                tokio::task::spawn_local(async move { serve(socket).await.ok() });
            }
        });
    }
    println!("{ports:?}");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.ok();
    Ok(())
}

async fn serve(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true).map_err(|e| e.to_string())?;
    let reply = reply();
    let mut buf = Vec::with_capacity(64 * 1024);
    while let Some(body) = request(&mut socket, &mut buf).await? {
        let wish = Wish::of(&body);
        if wish.delay > 0 {
            sleep(Duration::from_millis(wish.delay)).await;
        }
        if wish.stream {
            stream(&mut socket, &wish)
                .await
                .map_err(|e| e.to_string())?;
        } else {
            socket.write_all(&reply).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Reads one request; returns the front of its body, or `None` when the peer has closed.
async fn request(socket: &mut TcpStream, buf: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let (mut kept, mut body): (Vec<u8>, Option<Body>) = (Vec::new(), None);
    loop {
        if body.is_none()
            && let Some(head) = http::head(buf, Some(Body::Length(0)))?
        {
            buf.drain(..head.size);
            body = Some(head.body);
        }
        if let Some(body) = &mut body {
            let took = body.feed(buf, |b| {
                let room = KEPT.saturating_sub(kept.len());
                kept.extend_from_slice(&b[..b.len().min(room)]);
            })?;
            buf.drain(..took);
            if body.is_done() {
                return Ok(Some(kept));
            }
        }
        if socket.read_buf(buf).await.map_err(|e| e.to_string())? == 0 {
            return Ok(None);
        }
    }
}

struct Wish {
    delay: u64,
    gap: u64,
    chunks: u64,
    stream: bool,
    usage: bool,
}

impl Wish {
    fn of(body: &[u8]) -> Wish {
        let mut numbers = [0; 3];
        if let Some(at) = memmem::find(body, b"bench ") {
            let text = String::from_utf8_lossy(&body[at + 6..body.len().min(at + 40)]);
            let words = text.split(['"', ' ']);
            for (number, word) in numbers.iter_mut().zip(words) {
                *number = word.parse().unwrap_or(0);
            }
        }
        let [delay, gap, chunks] = numbers;
        let has = |needle: &[u8]| memmem::find(body, needle).is_some();
        Wish {
            delay,
            gap,
            chunks,
            stream: has(b"\"stream\":true"),
            usage: has(b"\"include_usage\":true"),
        }
    }
}

async fn stream(socket: &mut TcpStream, wish: &Wish) -> std::io::Result<()> {
    // Like OpenAI: a null `usage` in every event once the totals are asked for.
    let usage = if wish.usage { ",\"usage\":null" } else { "" };
    let text = event(r#"{"content":" word"}"#, "null", usage);
    let mut first = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
        cache-control: no-cache\r\nx-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    first.extend(event(
        r#"{"role":"assistant","content":"","refusal":null}"#,
        "null",
        usage,
    ));
    first.extend(&text);
    socket.write_all(&first).await?;
    if wish.chunks == 0 {
        let block = text.repeat(16);
        loop {
            socket.write_all(&block).await?;
        }
    }
    let start = Instant::now();
    for k in 1..wish.chunks {
        sleep_until(start + Duration::from_millis(k * wish.gap)).await;
        socket.write_all(&text).await?;
    }
    let mut last = event("{}", "\"stop\"", usage);
    if wish.usage {
        last.extend(chunk(
            r#"{"id":"chatcmpl-BenchBenchBenchBenchBenchBench1","object":"chat.completion.chunk","created":1750000000,"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":200,"total_tokens":219,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}"#,
        ));
    }
    last.extend(chunk("[DONE]"));
    last.extend(b"0\r\n\r\n");
    socket.write_all(&last).await
}

/// One event of `EVENT_BYTES`, filled up with the field OpenAI itself pads with.
fn event(delta: &str, finish: &str, usage: &str) -> Vec<u8> {
    let front = format!(
        r#"{{"id":"chatcmpl-BenchBenchBench","object":"chat.completion.chunk","created":1750000000,"model":"gpt-4o-2024-08-06","service_tier":"default","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{usage},"obfuscation":""#
    );
    let frame = "data: ".len() + "\"}\n\n".len();
    let padding = EVENT_BYTES.saturating_sub(front.len() + frame);
    chunk(&format!(
        "{front}{}\"}}",
        "q7Zx"
            .repeat(EVENT_BYTES)
            .get(..padding)
            .unwrap_or_default()
    ))
}

/// One event as one chunk of the body.
fn chunk(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

fn reply() -> Vec<u8> {
    let front = r#"{"id":"chatcmpl-BenchBenchBench","object":"chat.completion","created":1750000000,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":""#;
    let back = r#"","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":30,"total_tokens":49,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"system_fingerprint":"fp_0123456789"}"#;
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    let body = format!(
        "{front}{}{back}",
        &text[..REPLY_BYTES - front.len() - back.len()]
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
