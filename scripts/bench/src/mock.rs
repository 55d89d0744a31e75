//! The upstream: answers as words in the request's first message ask, `bench DELAY GAP CHUNKS`, in the format of the path.
//!
//! DELAY is milliseconds before the head, GAP milliseconds between events. CHUNKS is the number of text events of a
//! stream, or 0 for one that never ends and goes as fast as the peer reads. The wish travels in the body because a
//! gateway may drop request headers that it does not know. One line on stdout names the ports; the end of stdin ends
//! the process, so that none is left behind.

use crate::http::{self, Body};
use crate::script::{Script, reply};
use crate::wire::Format;
use crate::{Args, Result};
use memchr::memmem;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

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
    let replies = [Format::OpenAi, Format::Anthropic, Format::Gemini].map(reply);
    let mut buf = Vec::with_capacity(64 * 1024);
    while let Some((path, body)) = request(&mut socket, &mut buf).await? {
        let format = Format::of_path(&path);
        let wish = Wish::of(&path, &body);
        if wish.delay > 0 {
            sleep(Duration::from_millis(wish.delay)).await;
        }
        if wish.stream {
            stream(&mut socket, format, &wish)
                .await
                .map_err(|e| e.to_string())?;
        } else {
            socket
                .write_all(&replies[format as usize])
                .await
                .map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Reads one request; returns its path and the front of its body, or `None` when the peer has closed.
async fn request(socket: &mut TcpStream, buf: &mut Vec<u8>) -> Result<Option<(String, Vec<u8>)>> {
    let (mut kept, mut body): (Vec<u8>, Option<Body>) = (Vec::new(), None);
    let mut path = String::new();
    loop {
        if body.is_none()
            && let Some(head) = http::head(buf, Some(Body::Length(0)))?
        {
            buf.drain(..head.size);
            body = Some(head.body);
            path = head.second_word;
        }
        if let Some(body) = &mut body {
            let took = body.feed(buf, |b| {
                let room = KEPT.saturating_sub(kept.len());
                kept.extend_from_slice(&b[..b.len().min(room)]);
            })?;
            buf.drain(..took);
            if body.is_done() {
                return Ok(Some((path, kept)));
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
    fn of(path: &str, body: &[u8]) -> Wish {
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
            stream: has(b"\"stream\":true") || path.contains(":stream"),
            usage: has(b"\"include_usage\":true"),
        }
    }
}

async fn stream(socket: &mut TcpStream, format: Format, wish: &Wish) -> std::io::Result<()> {
    let script = Script::of(format, wish.usage);
    socket.write_all(&script.opening).await?;
    if wish.chunks == 0 {
        let block = script.text.repeat(16);
        loop {
            socket.write_all(&block).await?;
        }
    }
    let start = Instant::now();
    for k in 1..wish.chunks {
        sleep_until(start + Duration::from_millis(k * wish.gap)).await;
        socket.write_all(&script.text).await?;
    }
    socket.write_all(&script.ending).await
}
