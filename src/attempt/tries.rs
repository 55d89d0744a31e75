//! The tries of one job at one backend: the failure table's retries, each try under its phase limits.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_http::header::{self, HeaderName, HeaderValue};
use actix_http::{Method, StatusCode};
use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::call::{Answer, Call, Ledger};
use super::fetch::Images;
use super::flight::FlightGuard;
use super::replies::{Head, collect, error_reply, pass_through, stream_reply, whole_body, whole_reply};
use super::transport::{Address, Incoming, Outgoing, OutgoingBody, SendFailure};
use super::{Station, redact};
use crate::balance::back_off;
use crate::chat::{Endpoint, Failure, FailureClass, Phase, Retry};
use crate::dialect::Ask;
use crate::telemetry::otlp;
use crate::unix_time::unix_time;

/// A rate limit's delay up to this is waited for at the same backend.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// A provider that asks to wait longer than this is not waited for.
const LONG_WAIT: Duration = Duration::from_secs(4);
/// A request body beyond this is not sent again after its connection broke.
const RESEND_LIMIT: usize = 256 << 10;

/// What an attempt ends with, before its reply is sent.
pub enum Verdict {
    /// Served, or being served: the answer's body carries the flight on.
    Answer(Box<Answer>),
    /// Failed.
    Failed(Failure),
}

/// Runs the tries of a job; `model` is the backend's own name of what is asked for.
pub async fn work(
    station: &Rc<Station>,
    call: &Call,
    model: &str,
    ledger: &mut Ledger,
    flight: &mut Option<FlightGuard>,
) -> Verdict {
    let backend = &station.backend;
    station.budget.borrow_mut().earn(Instant::now().into_std());
    // Fetched once for all tries.
    let mut images = None;
    let mut resent = false;
    let mut tries_here = 0;
    loop {
        ledger.attempts += 1;
        tries_here += 1;
        ledger.sent = false;
        let span = attempt_span(station, call, model, ledger.attempts);
        let inside = span.clone();
        if let Some(flight) = flight {
            flight.begin_try(span);
        }
        let result = one_try(station, call, model, ledger, flight, &mut images, !resent).instrument(inside).await;
        let failure = match result {
            Ok(answer) => return Verdict::Answer(answer),
            Err(failure) => failure,
        };
        if failure.class == FailureClass::Unsupported && !ledger.sent {
            // Nothing was asked of anybody.
            ledger.attempts -= 1;
        }
        if failure.class == FailureClass::Timeout(Phase::Head) {
            station.transport.doubt_connections();
        }
        let failure = redact(backend, station.minter.as_deref(), failure);
        if let Some(flight) = flight {
            flight.within_span(|| log_failure(&failure));
            if otlp::traces() {
                flight.trace_failure(&failure);
            }
        }
        let retry = if failure.forbids_retry { Retry::Never } else { failure.class.verdict().retry_here };
        // A connection of the pool may have been dead already: then this try does not count.
        let may_go_on = ledger.sent || ledger.attempts < ledger.max_attempts;
        let at_once =
            retry == Retry::OnceAtOnce && !resent && may_go_on && !call.is_gone(ledger.sent) && is_resendable(call, ledger);
        if let Some(flight) = flight
            && !at_once
        {
            flight.report(&failure, ledger.sent);
        }
        let wait = match retry {
            Retry::OnceAtOnce if at_once => {
                resent = true;
                if let Some(flight) = flight {
                    flight.tell_failure(&failure);
                }
                if !ledger.sent {
                    failed_here(flight.as_ref(), failure.class);
                }
                continue;
            }
            Retry::BackOff => Some(failure.retry_after.unwrap_or_else(|| back_off(tries_here, fastrand::f64()))),
            Retry::WhenTold => failure.retry_after.filter(|wait| *wait <= SHORT_WAIT),
            Retry::Never | Retry::OnceAtOnce => None,
        };
        let again = wait.filter(|wait| {
            tries_here <= backend.max_retries
                && !flight.as_ref().is_some_and(|flight| flight.is_probe())
                && ledger.attempts < ledger.max_attempts
                && *wait <= LONG_WAIT
                && Instant::now() + *wait < call.deadline
                && !call.is_gone(ledger.sent)
                && station.budget.borrow_mut().spend(Instant::now().into_std())
        });
        match again {
            Some(wait) => {
                failed_here(flight.as_ref(), failure.class);
                tokio::time::sleep(wait).await;
            }
            None => return Verdict::Failed(failure),
        }
    }
}

fn log_failure(failure: &Failure) {
    let class = failure.class.word();
    tracing::info!(target: "attempt", class, status = failure.status, reason = failure.unquoted(), "attempt failed");
}

fn failed_here(flight: Option<&FlightGuard>, class: FailureClass) {
    if let Some(flight) = flight {
        flight.note_failed_try(class);
    }
}

/// After a broken connection a large body is not sent again: the provider may be at work on it.
fn is_resendable(call: &Call, ledger: &Ledger) -> bool {
    !ledger.sent || call.body.len() <= RESEND_LIMIT
}

fn attempt_span(station: &Station, call: &Call, model: &str, number: u32) -> Span {
    info_span!(
        parent: &call.span,
        "attempt",
        "gen_ai.provider.name" = &*station.backend.name,
        "gen_ai.request.model" = model,
        attempt = number,
        outcome = Empty,
        class = Empty,
        first_content_seconds = Empty,
        "gen_ai.usage.input_tokens" = Empty,
        "gen_ai.usage.output_tokens" = Empty,
        // Only traces show these.
        status = Empty,
        absorbed = Empty,
        usage_estimated = Empty,
        "gen_ai.operation.name" = Empty,
        "gen_ai.request.stream" = Empty,
    )
}

async fn one_try(
    station: &Rc<Station>,
    call: &Call,
    model: &str,
    ledger: &mut Ledger,
    flight: &mut Option<FlightGuard>,
    images: &mut Option<Images>,
    pooled: bool,
) -> Result<Box<Answer>, Failure> {
    let backend = &station.backend;
    let now = Instant::now();
    let limits = backend.timeouts;
    let own_limit = if call.is_stream() { limits.first_content } else { limits.attempt };
    let attempt_ends = call.deadline.min(now + ledger.limit.map_or(own_limit, |limit| limit.min(own_limit)));
    let is_upload = call.passthrough.as_ref().is_some_and(|passthrough| passthrough.stream.is_some());
    // A streamed upload takes as long as its client takes.
    let head_ends = if is_upload { call.deadline.min(now + limits.total) } else { attempt_ends.min(now + limits.head) };

    let codec = &station.codec;
    if station.fetcher.is_some() && images.is_none() {
        // Kept on the heap: what few requests need must not make the task of every request larger.
        *images = Some(Box::pin(fetch_images(station, call, attempt_ends)).await?);
    }
    let none = HashMap::new();
    let ask = Ask {
        endpoint: call.endpoint,
        body: &call.body,
        scan: &call.scan,
        model,
        backend,
        id: &call.id,
        now: unix_time().as_secs(),
        recall: &|id| station.memory.recall(id, now),
        images: images.as_deref().unwrap_or(&none),
    };
    let make = || codec.url(backend, call.endpoint, path_of(call), model, call.is_stream());
    let Formed { method, url, headers, parts, body, dropped } = form(station, call, &ask, &make)?;
    call.touched.store(true, Ordering::Relaxed);
    let pooled = pooled && may_meet_a_dead_connection(call, &method);
    let mut replies: SmallVec<[Bytes; 1]> = SmallVec::new();
    for part in parts {
        let body = OutgoingBody::Full(part);
        let request =
            Outgoing { endpoint: call.endpoint, method: Method::POST, url: url.clone(), headers: &headers, body, pooled };
        replies.push(Box::pin(send_part(station, request, ledger, attempt_ends)).await?);
    }
    let request = Outgoing { endpoint: call.endpoint, method, url, headers: &headers, body, pooled };
    let incoming = head_of(station.send(request, head_ends), ledger, head_ends).await?;
    if let Some(flight) = flight {
        flight.note_head();
        if otlp::traces() {
            flight.trace_status(incoming.status().as_u16());
        }
    }

    if incoming.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::new(FailureClass::Malformed, "the provider's reply switches protocols, which was not asked for"));
    }
    let head = Head { call, model, station, attempts: ledger.attempts, dropped };
    // A refused credential is the operator's to mend, and the provider's words may quote it.
    let is_refused = matches!(incoming.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if call.passthrough.is_some() && !is_refused {
        return Ok(pass_through(head, incoming, flight, call.deadline.min(now + limits.total)));
    }
    let status = incoming.status();
    if !status.is_success() {
        let failure = Box::pin(error_reply(station, incoming, attempt_ends)).await;
        // A key without the right to one path is good for the others.
        let is_about_the_path = call.passthrough.is_some() && status == StatusCode::FORBIDDEN;
        return Err(if is_about_the_path { Failure { class: FailureClass::Caller, ..failure } } else { failure });
    }
    if let Some(encoding) = incoming.headers().get(header::CONTENT_ENCODING).filter(|value| *value != "identity") {
        let encoding = encoding.to_str().unwrap_or("unknown").to_owned();
        return Err(Failure::new(
            FailureClass::Malformed,
            format!("the provider's reply is encoded as {encoding}, which was not asked for"),
        ));
    }
    if call.is_stream() {
        stream_reply(head, &ask, incoming, flight, attempt_ends, call.deadline.min(now + limits.total)).await
    } else {
        whole_reply(head, &ask, replies, incoming, flight, attempt_ends).await
    }
}

/// A request as its backend takes it.
struct Formed<'a> {
    method: Method,
    url: Address<'a>,
    headers: Cow<'a, [(HeaderName, HeaderValue)]>,
    /// All parts but the last, where it must be sent in several.
    parts: SmallVec<[Bytes; 1]>,
    /// The last part.
    body: OutgoingBody,
    /// Fields that are left out.
    dropped: SmallVec<[Box<str>; 4]>,
}

/// Says a request in its backend's dialect; what passes through is said as it came.
fn form<'a>(station: &Station, call: &'a Call, ask: &Ask<'a>, make: &'a dyn Fn() -> String) -> Result<Formed<'a>, Failure> {
    let codec = &station.codec;
    let Some(passthrough) = &call.passthrough else {
        let mut encoded = codec.encode(ask)?;
        let last = encoded.bodies.pop().unwrap_or_default();
        let model = codec.model_in_url(&station.backend).then_some(ask.model);
        return Ok(Formed {
            method: Method::POST,
            url: Address::Known { model, stream: call.is_stream(), make },
            headers: encoded.headers.into_iter().filter_map(header_of).collect(),
            parts: encoded.bodies,
            body: OutgoingBody::Full(last),
            dropped: encoded.dropped,
        });
    };
    let body = match &passthrough.stream {
        None => OutgoingBody::Full(codec.encode(ask)?.bodies.pop().unwrap_or_default()),
        Some(stream) => {
            let payload = stream.payload.lock().ok().and_then(|mut payload| payload.take());
            let payload = payload.ok_or_else(|| Failure::new(FailureClass::Socket, "the request body was sent already"))?;
            OutgoingBody::Stream { length: stream.length, bytes: payload.take().0 }
        }
    };
    Ok(Formed {
        method: passthrough.method.clone(),
        url: Address::Own(make()),
        headers: Cow::Borrowed(&passthrough.headers),
        parts: SmallVec::new(),
        body,
        dropped: SmallVec::new(),
    })
}

/// Whether a request may go over a connection of the pool, which may turn out to be dead: it must then be sent again, and
/// neither what must not be repeated nor a large body is.
fn may_meet_a_dead_connection(call: &Call, method: &Method) -> bool {
    let may_resend = call.repeatable && (call.passthrough.is_none() || method.is_safe());
    may_resend && call.body.len() <= RESEND_LIMIT
}

/// Fetches the images that this backend's dialect cannot pass on by their addresses.
async fn fetch_images(station: &Station, call: &Call, ends: Instant) -> Result<Images, Failure> {
    let urls = station.codec.images(call.endpoint, &call.body, &call.scan)?;
    match &station.fetcher {
        Some(fetcher) if !urls.is_empty() => fetcher.fetch_all(urls.iter().map(String::as_str), ends).await,
        Some(_) | None => Ok(Images::default()),
    }
}

/// Sends one part of a request and reads its whole reply; each part has the time of a request of its own.
async fn send_part(station: &Station, request: Outgoing<'_>, ledger: &mut Ledger, ends: Instant) -> Result<Bytes, Failure> {
    let head_ends = ends.min(Instant::now() + station.backend.timeouts.head);
    let mut incoming = head_of(station.send(request, head_ends), ledger, head_ends).await?;
    if !incoming.status().is_success() {
        return Err(error_reply(station, incoming, ends).await);
    }
    whole_body(&mut incoming, ends, station.backend.max_reply).await
}

/// Awaits the head of the reply to a request that is being sent.
async fn head_of(
    sending: impl Future<Output = Result<Incoming, SendFailure>>,
    ledger: &mut Ledger,
    ends: Instant,
) -> Result<Incoming, Failure> {
    let begun = Instant::now();
    match timeout_at(ends, sending).await {
        Ok(Ok(incoming)) => {
            ledger.sent = true;
            Ok(incoming)
        }
        Ok(Err(SendFailure { failure, sent })) => {
            ledger.sent |= sent;
            Err(failure)
        }
        Err(_) => {
            ledger.sent = true;
            // In whole milliseconds: a limit is told as it is written.
            let waited = ends.saturating_duration_since(begun).as_micros().div_ceil(1_000);
            let waited = Duration::from_millis(u64::try_from(waited).unwrap_or(u64::MAX));
            Err(Failure::new(FailureClass::Timeout(Phase::Head), format!("no answer from the provider within {waited:?}")))
        }
    }
}

fn header_of((name, value): (&'static str, String)) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?))
}

fn path_of(call: &Call) -> &str {
    match (&call.passthrough, call.endpoint) {
        (Some(passthrough), _) => &passthrough.path,
        (None, Endpoint::Completions) => "/completions",
        (None, Endpoint::Embeddings) => "/embeddings",
        (None, Endpoint::Chat | Endpoint::Passthrough) => "/chat/completions",
    }
}

/// Opens a connection with the cheapest request, so that the first jobs of a generation find one; the reply is ignored.
pub async fn warm_up(station: Rc<Station>) {
    let url = station.codec.url(&station.backend, Endpoint::Passthrough, "/models", "", false);
    let json = [(header::ACCEPT, HeaderValue::from_static("application/json"))];
    let request = Outgoing {
        endpoint: Endpoint::Passthrough,
        method: Method::GET,
        url: Address::Own(url),
        headers: &json,
        body: OutgoingBody::Full(Bytes::new()),
        pooled: true,
    };
    let limit = station.backend.timeouts.connect * 2;
    let warming = async {
        if let Ok(mut incoming) = station.send(request, Instant::now() + limit).await {
            // Read to the end, else the connection is not kept.
            let _ = collect(&mut incoming, 8 << 20).await;
        }
    };
    let _ = tokio::time::timeout(limit, warming).await;
}
