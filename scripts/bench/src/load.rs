//! The clients: a closed loop of keep-alive connections, or clients that never read.
//!
//! All counting happens inside one window after a warm-up. The process under test is read at the same two moments,
//! through the kernel's CPU clock of that process: nanoseconds, all its threads, also those that have ended. After the
//! window each connection finishes what it carries, so that every single reply and stream is checked to its end. The
//! first thing that is not as it should be ends the process with status 1.

use crate::http::{self, Body};
use crate::wire::{Answer, request};
use crate::{Args, Result};
use memchr::memchr_iter;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// No reply in any measure takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(args: &Args) -> Result<()> {
    match args.text("mode", "reply").as_str() {
        "reply" | "stream" => window(args).await,
        "unread" => unread(args).await,
        other => Err(format!("unknown mode {other}")),
    }
}

/// What all connections share.
struct Run {
    port: u64,
    request: Vec<u8>,
    answer: Answer,
    /// Text events asked for; `None` for plain replies.
    chunks: Option<u64>,
    counting: Cell<bool>,
    stop: Cell<bool>,
    requests: Cell<u64>,
    /// The same, but within the window or not.
    all_requests: Cell<u64>,
    events: Cell<u64>,
    reconnects: Cell<u64>,
    /// Nanoseconds until the whole reply, and until the first text event.
    whole: RefCell<Vec<u64>>,
    first: RefCell<Vec<u64>>,
}

async fn window(args: &Args) -> Result<()> {
    let conns = args.number("conns", 1)?;
    let streams = args.text("mode", "reply") == "stream";
    let run = Rc::new(Run {
        port: args.number("port", 0)?,
        request: request(args, streams)?,
        answer: Answer::of(args)?,
        chunks: streams.then_some(args.number("chunks", 200)?),
        counting: Cell::new(false),
        stop: Cell::new(false),
        requests: Cell::new(0),
        all_requests: Cell::new(0),
        events: Cell::new(0),
        reconnects: Cell::new(0),
        whole: RefCell::default(),
        first: RefCell::default(),
    });
    // Arrivals are spread over this time; in step they would come as one burst for the whole run.
    let spread = Duration::from_millis(args.number("spread", 0)?);
    let clients: Vec<_> = (0..conns)
        .map(|i| {
            let run = run.clone();
            spawn_local(async move {
                sleep(spread * i as u32 / conns as u32).await;
                if let Err(why) = client(&run).await {
                    eprintln!("load: connection {i}: {why}");
                    std::process::exit(1);
                }
            })
        })
        .collect();
    let pid = args.number("pid", 0)?;
    sleep(Duration::from_millis(args.number("warmup", 300)?)).await;
    run.counting.set(true);
    let (began, cpu_before) = (Instant::now(), cpu_ns(pid)?);
    let (user_before, kernel_before) = split(pid)?;
    sleep(Duration::from_millis(args.number("window", 1000)?)).await;
    let (took, cpu) = (began.elapsed(), cpu_ns(pid)? - cpu_before);
    let (user, kernel) = split(pid)?;
    let (user, kernel) = (user - user_before, kernel - kernel_before);
    run.counting.set(false);
    run.stop.set(true);
    for client in clients {
        client.await.map_err(|e| e.to_string())?;
    }
    if run.requests.get() == 0 && run.events.get() == 0 {
        return Err("nothing was answered within the window".to_owned());
    }
    println!(
        "{{\"requests\":{},\"all_requests\":{},\"events\":{},\"seconds\":{:.6},\"cpu_ns\":{cpu},\"user_ticks\":{user},\"kernel_ticks\":{kernel},\"reconnects\":{},\"whole\":{},\"first\":{}}}",
        run.requests.get(),
        run.all_requests.get(),
        run.events.get(),
        took.as_secs_f64(),
        run.reconnects.get(),
        percentiles(&run.whole),
        percentiles(&run.first),
    );
    Ok(())
}

async fn client(run: &Run) -> Result<()> {
    let mut socket = connect(run.port).await?;
    let mut buf = Vec::with_capacity(64 * 1024);
    while !run.stop.get() {
        let close = timeout(PATIENCE, exchange(run, &mut socket, &mut buf)).await;
        if close.map_err(|_| format!("no whole reply within {PATIENCE:?}"))?? {
            run.reconnects.set(run.reconnects.get() + 1);
            socket = connect(run.port).await?;
        }
    }
    Ok(())
}

async fn connect(port: u64) -> Result<TcpStream> {
    let socket = TcpStream::connect(("127.0.0.1", port as u16))
        .await
        .map_err(|e| format!("connect: {e}"))?;
    socket.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(socket)
}

/// One request and its reply, checked; returns whether the peer announced that it closes.
async fn exchange(run: &Run, socket: &mut TcpStream, buf: &mut Vec<u8>) -> Result<bool> {
    let began = Instant::now();
    socket
        .write_all(&run.request)
        .await
        .map_err(|e| format!("write: {e}"))?;
    buf.clear();
    let (mut seen, mut head) = (Seen::default(), None::<(Body, bool)>);
    let mut first = None;
    loop {
        if socket
            .read_buf(buf)
            .await
            .map_err(|e| format!("read: {e}"))?
            == 0
        {
            return Err("closed before the reply was whole".to_owned());
        }
        let mut from = 0;
        if head.is_none() {
            let Some(got) = http::head(buf, None)? else {
                continue;
            };
            if got.second_word != "200" {
                return Err(format!(
                    "unexpected reply: {}",
                    String::from_utf8_lossy(buf)
                ));
            }
            from = got.size;
            head = Some((got.body, got.close));
        }
        let Some((body, close)) = &mut head else {
            unreachable!("set above")
        };
        let events = seen.events;
        let took = body.feed(&buf[from..], |b| seen.add(b, run.chunks.is_some()))?;
        if run.counting.get() {
            run.events.set(run.events.get() + seen.events - events);
        }
        // The first event carries only the role.
        if seen.events >= 2 && first.is_none() {
            first = Some(began.elapsed());
        }
        if !body.is_done() {
            buf.clear();
            continue;
        }
        if from + took != buf.len() {
            return Err("bytes after the end of the reply".to_owned());
        }
        seen.check(run)?;
        run.all_requests.set(run.all_requests.get() + 1);
        if run.counting.get() {
            run.requests.set(run.requests.get() + 1);
            run.whole
                .borrow_mut()
                .push(began.elapsed().as_nanos() as u64);
            run.first
                .borrow_mut()
                .extend(first.map(|f| f.as_nanos() as u64));
        }
        return Ok(*close);
    }
}

/// What a body held: for a stream the number of events and the end, otherwise all of it.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    events: u64,
    line_ended: bool,
}

impl Seen {
    fn add(&mut self, bytes: &[u8], stream: bool) {
        if !stream {
            return self.bytes.extend_from_slice(bytes);
        }
        for at in memchr_iter(b'\n', bytes) {
            let blank = if at == 0 {
                self.line_ended
            } else {
                bytes[at - 1] == b'\n'
            };
            self.events += u64::from(blank);
        }
        self.line_ended = bytes.last().map_or(self.line_ended, |b| *b == b'\n');
        self.bytes.extend_from_slice(bytes);
        let surplus = self.bytes.len().saturating_sub(64);
        self.bytes.drain(..surplus);
    }

    fn check(&self, run: &Run) -> Result<()> {
        let Some(chunks) = run.chunks else {
            return if run.answer.is_whole(&self.bytes) {
                Ok(())
            } else {
                Err(format!(
                    "wrong body: {}",
                    String::from_utf8_lossy(&self.bytes)
                ))
            };
        };
        if !run.answer.ends(&self.bytes) {
            return Err(format!(
                "stream ends with: {}",
                String::from_utf8_lossy(&self.bytes)
            ));
        }
        let (least, most) = run.answer.events_beside_text();
        if !(chunks + least..=chunks + most).contains(&self.events) {
            return Err(format!("{} events for {chunks} texts", self.events));
        }
        Ok(())
    }
}

/// Asks for endless streams and reads none of them.
async fn unread(args: &Args) -> Result<()> {
    let request = request(args, true)?;
    let mut sockets = Vec::new();
    for _ in 0..args.number("conns", 1)? {
        let mut socket = connect(args.number("port", 0)?).await?;
        socket
            .write_all(&request)
            .await
            .map_err(|e| format!("write: {e}"))?;
        sockets.push(socket);
    }
    sleep(Duration::from_millis(args.number("window", 1000)?)).await;
    // A look without taking: a refusal must not pass for a frugal stream.
    for socket in &sockets {
        let mut start = [0; 12];
        let n = timeout(PATIENCE, socket.peek(&mut start))
            .await
            .map_err(|_| "no reply")?
            .map_err(|e| e.to_string())?;
        if start[..n] != *b"HTTP/1.1 200" {
            return Err(format!(
                "unexpected reply: {}",
                String::from_utf8_lossy(&start[..n])
            ));
        }
    }
    println!("{{}}");
    Ok(())
}

/// CPU time of a process so far; 0 if there is none to watch.
fn cpu_ns(pid: u64) -> Result<u64> {
    if pid == 0 {
        return Ok(0);
    }
    let (mut clock, mut now) = (
        0,
        libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
    );
    // SAFETY: both calls only write to the two values they are given.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as i32, &mut clock) != 0
            || libc::clock_gettime(clock, &mut now) != 0
    };
    if failed {
        Err(format!("process {pid} is gone"))
    } else {
        Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }
}

/// Clock ticks of a process so far in its own code and in the kernel, as the kernel has sampled them.
fn split(pid: u64) -> Result<(u64, u64)> {
    if pid == 0 {
        return Ok((0, 0));
    }
    let gone = || format!("process {pid} is gone");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| gone())?;
    // What follows the name, which may hold anything, from the third field on.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(gone)?;
    let mut ticks = rest.split_whitespace().skip(11).map(str::parse);
    match (ticks.next(), ticks.next()) {
        (Some(Ok(user)), Some(Ok(kernel))) => Ok((user, kernel)),
        _ => Err(gone()),
    }
}

/// `{"p50":..,"p99":..}` in microseconds, or `null`.
fn percentiles(samples: &RefCell<Vec<u64>>) -> String {
    let mut samples = samples.borrow_mut();
    samples.sort_unstable();
    let at = |q: usize| samples[(samples.len() - 1) * q / 100] as f64 / 1000.0;
    if samples.is_empty() {
        "null".to_owned()
    } else {
        format!("{{\"p50\":{:.2},\"p99\":{:.2}}}", at(50), at(99))
    }
}
