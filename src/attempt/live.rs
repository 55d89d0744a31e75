//! The live body: a reply pulled by its client, metered, bounded, and always ended in a way the client can tell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

use super::end::{Cut, End};
use super::flight::FlightGuard;
use super::transport::Incoming;
use crate::chat::{Failure, FailureClass, Keepsake, Usage};
use crate::dialect::Relay;
use crate::dialect::openai::{error_event, usage_in_tail};
use crate::error::GatewayError;
use crate::settings::Backend;

/// A comment that keeps a silent connection alive.
pub const COMMENT: &[u8] = b": keep-alive\n\n";
/// Bytes of a passed-through reply that are kept to find its usage.
const TAIL: usize = 16 << 10;

/// What turns the provider's bytes into the client's.
pub enum Meter {
    /// A stream of the dialect.
    Events(Box<Relay>),
    /// Anything, unread but for the usage in its tail.
    Bytes {
        /// The last bytes that passed.
        tail: Vec<u8>,
        /// Bytes that should still come, by the reply's own length.
        remaining: Option<u64>,
    },
}

/// The upstream half of a live body; its flight holds it, so that the provider can end it.
///
/// Between two events of a stream its memory leaves the processor's caches. So what each event touches lies together, first.
#[repr(C)]
pub struct Upstream {
    meter: Meter,
    bytes: Source,
    /// What ends the stream once everything before it is delivered.
    failed: Option<Box<Failure>>,
    last_pull: Instant,
    last_emit: Instant,
    /// When a piece of the reply was last given to the reader.
    last_piece: Option<Instant>,
    /// Since when the reader waits for the provider; `None` while it is the reader's turn.
    waiting_since: Option<Instant>,
    wants_comment: bool,
    /// Whether the provider's bytes have ended: they must not be asked for again.
    is_over: bool,
    /// Whether the reader must be woken: what it waits for has come.
    needs_wake: bool,
    /// When the stream must be over.
    ends_by: Instant,
    /// Bytes of the request, for estimates.
    request_bytes: usize,
}

/// The provider's bytes, with what was seen of them before the reader asked.
struct Source {
    incoming: Incoming,
    seen: Option<Option<Result<Bytes, Box<Failure>>>>,
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Box<Failure>>>> {
        match self.seen.take() {
            Some(seen) => Poll::Ready(seen),
            None => self.incoming.poll_next(cx),
        }
    }

    /// Whether something has come; it is kept for the reader.
    fn look(&mut self) -> bool {
        if self.seen.is_none()
            && let Poll::Ready(seen) = self.incoming.poll_next(&mut Context::from_waker(Waker::noop()))
        {
            self.seen = Some(seen);
        }
        self.seen.is_some()
    }
}

impl Upstream {
    /// Starts with what was read up to the first content.
    pub fn new(incoming: Incoming, meter: Meter, request_bytes: usize, ends_by: Instant) -> Self {
        let now = Instant::now();
        let bytes = Source { incoming, seen: None };
        Self {
            bytes,
            meter,
            request_bytes,
            ends_by,
            last_pull: now,
            last_emit: now,
            last_piece: None,
            waiting_since: None,
            wants_comment: false,
            failed: None,
            is_over: false,
            needs_wake: false,
        }
    }

    /// Tokens as reported, else estimated.
    pub fn usage_or_estimate(&self) -> Usage {
        match &self.meter {
            Meter::Events(relay) => relay.usage().unwrap_or_else(|| Usage::estimate(self.request_bytes, relay.content_events())),
            Meter::Bytes { tail, .. } => usage_in_tail(tail).unwrap_or_else(|| Usage { estimated: true, ..Usage::default() }),
        }
    }

    /// What must be kept for later requests.
    fn keepsakes(&mut self) -> Vec<Keepsake> {
        match &mut self.meter {
            Meter::Events(relay) => relay.keepsakes(),
            Meter::Bytes { .. } => Vec::new(),
        }
    }

    /// Events with content so far.
    pub fn content_events(&self) -> u64 {
        match &self.meter {
            Meter::Events(relay) => relay.content_events(),
            Meter::Bytes { .. } => 0,
        }
    }

    /// The limit that has passed, if one has.
    pub fn overdue(&mut self, now: Instant, backend: &Backend) -> Option<Cut> {
        if now >= self.ends_by {
            return Some(Cut::Total);
        }
        match self.waiting_since {
            Some(since) if now.duration_since(since) >= backend.timeouts.idle => {
                // A reader that is not polled cannot tell silence from data it has not fetched: look.
                if !self.bytes.look() {
                    return Some(Cut::Idle);
                }
                // It is the reader's turn from now on.
                self.waiting_since = None;
                self.last_pull = now;
                self.needs_wake = true;
                None
            }
            None if now.duration_since(self.last_pull) >= backend.client_stall => Some(Cut::Stall),
            Some(_) | None => None,
        }
    }

    /// Whether the client has heard nothing for so long that a comment is due, or must be woken for another reason.
    pub fn wants_comment(&mut self, now: Instant, backend: &Backend) -> bool {
        if std::mem::take(&mut self.needs_wake) {
            return true;
        }
        let is_stream = matches!(self.meter, Meter::Events(_));
        let silent = backend.keep_alive.is_some_and(|silence| now.duration_since(self.last_emit) >= silence);
        if is_stream && silent && self.waiting_since.is_some() {
            self.wants_comment = true;
            return true;
        }
        false
    }

    /// Reads once from the provider: ready when the meter has taken something in, or at the end.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Box<Failure>>> {
        Poll::Ready(match std::task::ready!(self.bytes.poll_next(cx)) {
            Some(Ok(chunk)) => self.meter.feed(chunk).map_err(Box::new),
            Some(Err(failure)) => {
                self.is_over = true;
                Err(failure)
            }
            None => {
                self.is_over = true;
                self.meter.finish().map_err(Box::new)
            }
        })
    }
}

impl Meter {
    /// Takes a chunk in.
    pub fn feed(&mut self, chunk: Bytes) -> Result<(), Failure> {
        match self {
            Self::Events(relay) => relay.feed(chunk),
            Self::Bytes { .. } => Ok(()),
        }
    }

    /// Checks that the reply is whole at its end.
    pub fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Events(relay) => relay.finish(),
            Self::Bytes { remaining, .. } => match remaining {
                Some(0) | None => Ok(()),
                Some(missing) => {
                    Err(Failure::new(FailureClass::Malformed, format!("the provider's reply ended {missing} bytes too early")))
                }
            },
        }
    }
}

/// A reply that its client pulls.
pub struct LiveBody {
    flight: FlightGuard,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

impl std::fmt::Debug for LiveBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveBody").field("ending", &self.ending()).finish_non_exhaustive()
    }
}

impl LiveBody {
    /// Takes over a flight whose upstream half is set.
    pub fn new(flight: FlightGuard) -> Self {
        Self { flight, state: State::Open }
    }

    /// Whether the body consists of server-sent events.
    pub fn is_events(&self) -> bool {
        self.flight.upstream.borrow().as_ref().is_none_or(|upstream| matches!(upstream.meter, Meter::Events(_)))
    }

    /// How the reply ended; while it has not, what an end now would mean.
    pub fn ending(&self) -> (End, Usage) {
        self.flight.ending().unwrap_or_else(|| {
            let usage = self.flight.upstream.borrow().as_ref().map(Upstream::usage_or_estimate).unwrap_or_default();
            (End::Cancelled, usage)
        })
    }

    fn pull(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, std::io::Error>>> {
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        if let Some(cut) = self.flight.cut() {
            return Poll::Ready(self.end_by(cut));
        }
        let now = Instant::now();
        let (step, gap, keepsakes) = {
            let mut cell = self.flight.upstream.borrow_mut();
            let Some(upstream) = cell.as_mut() else {
                return Poll::Ready(None);
            };
            upstream.last_pull = now;
            let step = next(upstream, cx, now);
            // The gateway's own comments are no pieces.
            let is_piece = matches!(&step, Step::Emit(bytes) if bytes.as_ptr() != COMMENT.as_ptr());
            let before = if is_piece { upstream.last_piece.replace(now) } else { None };
            (step, before.map(|before| now.duration_since(before)), upstream.keepsakes())
        };
        if let Some(gap) = gap {
            self.flight.note_gap(gap);
        }
        // Kept before the client can have seen the end and ask again.
        self.flight.keep(&keepsakes);
        match step {
            Step::Emit(bytes) => Poll::Ready(Some(Ok(bytes))),
            Step::Wait => {
                self.flight.register(cx);
                Poll::Pending
            }
            Step::Done => {
                let upstream = self.flight.upstream.borrow_mut().take();
                let usage = upstream.as_ref().map(Upstream::usage_or_estimate).unwrap_or_default();
                self.close(End::Served, usage);
                if let Some(upstream) = upstream.filter(|upstream| !upstream.is_over) {
                    linger(upstream.bytes.incoming);
                }
                Poll::Ready(None)
            }
            Step::Fail(failure) => Poll::Ready(self.fail(&failure)),
        }
    }

    fn close(&mut self, end: End, usage: Usage) {
        self.state = State::Ended;
        self.flight.settle(end, Some(usage));
    }

    /// Ends with the typed error event; a body of another kind ends with a broken transfer.
    fn fail(&mut self, failure: &Failure) -> Option<Result<Bytes, std::io::Error>> {
        let upstream = self.flight.upstream.borrow_mut().take();
        let is_events = upstream.as_ref().is_none_or(|upstream| matches!(upstream.meter, Meter::Events(_)));
        let usage = upstream.as_ref().map(Upstream::usage_or_estimate).unwrap_or_default();
        // Before anything is told of it: the provider's words may quote the key.
        let failure = super::redact(&self.flight.backend, self.flight.minter.as_deref(), failure.clone());
        self.flight.note_broken(failure.class, &failure.unquoted());
        self.close(End::Truncated(failure.class), usage);
        let form = GatewayError::Upstream(Box::new(failure)).form();
        Some(last_words(is_events, &form.message, &form.kind, form.code.as_deref().unwrap_or("upstream_error")))
    }

    fn end_by(&mut self, cut: Cut) -> Option<Result<Bytes, std::io::Error>> {
        self.state = State::Ended;
        let message = format!("the stream was ended by {}", cut.words());
        Some(last_words(self.flight.stream, &message, "server_error", "stream_ended"))
    }
}

fn last_words(is_events: bool, message: &str, kind: &str, code: &str) -> Result<Bytes, std::io::Error> {
    if is_events { Ok(error_event(message, kind, code)) } else { Err(std::io::Error::other(message.to_owned())) }
}

enum Step {
    Emit(Bytes),
    Wait,
    Done,
    Fail(Box<Failure>),
}

fn next(upstream: &mut Upstream, cx: &mut Context<'_>, now: Instant) -> Step {
    loop {
        match &mut upstream.meter {
            Meter::Events(relay) => {
                if let Some(bytes) = relay.pop() {
                    upstream.last_emit = now;
                    upstream.waiting_since = None;
                    return Step::Emit(bytes);
                }
                if relay.is_done() {
                    return Step::Done;
                }
                if let Some(failure) = upstream.failed.take() {
                    return Step::Fail(failure);
                }
            }
            Meter::Bytes { tail, remaining } => match upstream.bytes.poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    keep_tail(tail, &chunk);
                    if let Some(remaining) = remaining {
                        *remaining = remaining.saturating_sub(chunk.len() as u64);
                    }
                    upstream.waiting_since = None;
                    return Step::Emit(chunk);
                }
                Poll::Ready(Some(Err(failure))) => return Step::Fail(failure),
                Poll::Ready(None) => {
                    upstream.is_over = true;
                    return match upstream.meter.finish() {
                        Ok(()) => Step::Done,
                        Err(failure) => Step::Fail(Box::new(failure)),
                    };
                }
                Poll::Pending => {
                    upstream.waiting_since.get_or_insert(now);
                    return Step::Wait;
                }
            },
        }
        match upstream.take_in(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(failure)) => upstream.failed = Some(failure),
            Poll::Pending => {
                upstream.waiting_since.get_or_insert(now);
                if std::mem::take(&mut upstream.wants_comment) {
                    upstream.last_emit = now;
                    return Step::Emit(Bytes::from_static(COMMENT));
                }
                return Step::Wait;
            }
        }
    }
}

fn keep_tail(tail: &mut Vec<u8>, chunk: &[u8]) {
    if chunk.len() >= TAIL {
        tail.clear();
        tail.extend_from_slice(&chunk[chunk.len() - TAIL..]);
        return;
    }
    let over = (tail.len() + chunk.len()).saturating_sub(TAIL);
    tail.drain(..over);
    tail.extend_from_slice(chunk);
}

/// Reads the end of a finished stream, so that its connection can be used again.
fn linger(mut bytes: Incoming) {
    let mut cx = Context::from_waker(Waker::noop());
    // Nearly always the end has come with the last event.
    if let Poll::Ready(None | Some(Err(_))) = bytes.poll_next(&mut cx) {
        return;
    }
    actix_rt::spawn(async move {
        let rest = async { while let Some(Ok(_)) = std::future::poll_fn(|cx| bytes.poll_next(cx)).await {} };
        // A provider that keeps the connection open after its last event loses it.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), rest).await;
    });
}

impl Stream for LiveBody {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = &mut *self;
        match catch_unwind(AssertUnwindSafe(|| body.pull(cx))) {
            Ok(step) => step,
            Err(panic) => {
                let reason = super::panic_message(&*panic);
                body.flight.crashed(reason);
                Poll::Ready(body.fail(&Failure::new(FailureClass::Crashed, "an internal fault ended the stream")))
            }
        }
    }
}
