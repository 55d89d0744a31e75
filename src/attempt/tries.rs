//! The tries of one job at one backend: the failure table's retries, each try under its phase limits.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use send_wrapper::SendWrapper;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::call::{Answer, AnswerBody, AnswerHeaders, Call, Ledger};
use super::flight::{End, FlightGuard};
use super::live::{LiveBody, Meter, Upstream};
use super::transport::{Address, Incoming, Outgoing, OutgoingBody, SendFailure};
use super::{Station, redact};
use crate::balance::back_off;
use crate::chat::{Endpoint, Failure, FailureClass, Phase, Retry};
use crate::dialect::{Ask, Codec, ErrorReply};

/// A rate limit's delay up to this is waited for at the same backend.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// A provider that asks to wait longer than this is not waited for.
const LONG_WAIT: Duration = Duration::from_secs(4);
/// A request body beyond this is not sent again after its connection broke.
const RESEND_LIMIT: usize = 256 << 10;
/// Bytes of an error reply that are read.
const ERROR_BODY: usize = 64 << 10;
/// Bytes held while a stream has no content yet.
const PRELUDE: usize = 1 << 20;

/// What an attempt ends with, before its reply is sent.
pub enum Verdict {
    /// Served, or being served: the answer's body carries the flight on.
    Answer(Box<Answer>),
    /// Failed.
    Failed(Failure),
}

/// Runs the tries of a job.
pub async fn work(
    station: &Rc<Station>,
    call: &Call,
    ledger: &mut Ledger,
    flight: &mut Option<FlightGuard>,
    only: bool,
) -> Verdict {
    let backend = &station.backend;
    let Some(codec) = &station.codec else {
        return Verdict::Failed(Failure::new(FailureClass::Malformed, "this backend's dialect is not built"));
    };
    let model = backend.native_model(call.requested_model(), only || call.passthrough.is_some()).unwrap_or_default();
    station.budget.borrow_mut().earn();
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
        let result = one_try(station, codec, call, model, ledger, flight, !resent).instrument(inside).await;
        let failure = match result {
            Ok(answer) => return Verdict::Answer(answer),
            Err(failure) => failure,
        };
        let failure = redact(backend, failure);
        if let Some(flight) = flight {
            flight.within_span(|| log_failure(&failure));
        }
        let wait = match failure.class.verdict().retry_here {
            Retry::OnceAtOnce if !resent && !is_gone(call, ledger) && is_resendable(call, ledger) => {
                // A stale connection of the pool is nobody's failure, so it is not counted as one.
                resent = true;
                continue;
            }
            Retry::BackOff => Some(failure.retry_after.unwrap_or_else(|| back_off(tries_here, fastrand::f64()))),
            Retry::WhenTold => failure.retry_after.filter(|wait| *wait <= SHORT_WAIT),
            Retry::Never | Retry::OnceAtOnce => None,
        };
        let again = wait.filter(|wait| {
            tries_here <= backend.max_retries
                && ledger.attempts < ledger.max_attempts
                && *wait <= LONG_WAIT
                && Instant::now() + *wait < call.deadline
                && !is_gone(call, ledger)
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
    tracing::info!(target: "attempt", class, status = failure.status, reason = %failure.message, "attempt failed");
}

fn failed_here(flight: Option<&FlightGuard>, class: FailureClass) {
    if let Some(flight) = flight {
        flight.note_failed_try(class);
    }
}

/// What passes through is not sent again once it may have reached the provider, since its meaning is not known here; and
/// a streamed body is gone once it was begun.
fn is_gone(call: &Call, ledger: &Ledger) -> bool {
    let is_safe = |method: &Method| *method == Method::GET || *method == Method::HEAD;
    call.passthrough.as_ref().is_some_and(|passthrough| {
        let begun =
            passthrough.stream.as_ref().is_some_and(|stream| stream.payload.lock().is_ok_and(|payload| payload.is_none()));
        begun || (ledger.sent && !is_safe(&passthrough.method))
    })
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
    )
}

async fn one_try(
    station: &Rc<Station>,
    codec: &Codec,
    call: &Call,
    model: &str,
    ledger: &mut Ledger,
    flight: &mut Option<FlightGuard>,
    pooled: bool,
) -> Result<Box<Answer>, Failure> {
    let backend = &station.backend;
    let now = Instant::now();
    let limits = backend.timeouts;
    let attempt_ends = call.deadline.min(now + if call.is_stream() { limits.first_content } else { limits.attempt });
    let is_upload = call.passthrough.as_ref().is_some_and(|passthrough| passthrough.stream.is_some());
    // A streamed upload takes as long as its client takes.
    let head_ends = if is_upload { call.deadline.min(now + limits.total) } else { attempt_ends.min(now + limits.head) };

    let ask = Ask {
        endpoint: call.endpoint,
        body: &call.body,
        scan: &call.scan,
        model,
        drop_fields: &backend.drop_fields,
        id: &call.id,
        now: unix_seconds(),
    };
    let mut dropped = SmallVec::new();
    let make = || codec.url(backend, call.endpoint, path_of(call), model);
    let (method, headers, url, body) = match &call.passthrough {
        None => {
            let encoded = codec.encode(&ask)?;
            dropped = encoded.dropped;
            let known = Address::Known { model: codec.model_in_url(backend).then_some(model), make: &make };
            (Method::POST, &[][..], known, OutgoingBody::Full(encoded.body))
        }
        Some(passthrough) => {
            let body = match &passthrough.stream {
                Some(stream) => {
                    let payload = stream.payload.lock().ok().and_then(|mut payload| payload.take());
                    let payload =
                        payload.ok_or_else(|| Failure::new(FailureClass::Socket, "the request body was sent already"))?;
                    OutgoingBody::Stream { length: stream.length, bytes: payload.take().0 }
                }
                None => OutgoingBody::Full(codec.encode(&ask)?.body),
            };
            (passthrough.method.clone(), passthrough.headers.as_slice(), Address::Own(make()), body)
        }
    };
    call.touched.store(true, Ordering::Relaxed);
    // It cannot be sent again either when a connection of the pool turns out to be dead.
    // Neither is a large body, so neither may meet one.
    let is_safe = method == Method::GET || method == Method::HEAD;
    let pooled = pooled && (call.passthrough.is_none() || is_safe) && call.body.len() <= RESEND_LIMIT;
    let request = Outgoing { endpoint: call.endpoint, method, url, headers, body, pooled };
    let incoming = match timeout_at(head_ends, station.transport.send(request)).await {
        Ok(Ok(incoming)) => {
            ledger.sent = true;
            incoming
        }
        Ok(Err(SendFailure { failure, sent })) => {
            ledger.sent |= sent;
            return Err(failure);
        }
        Err(_) => {
            ledger.sent = true;
            return Err(Failure::new(
                FailureClass::Timeout(Phase::Head),
                format!("no answer from the provider within {:?}", head_ends - now),
            ));
        }
    };

    let head = Head { call, model, backend, attempts: ledger.attempts, dropped };
    // A refused credential is the operator's to mend, and the provider's words may quote it.
    let is_refused = matches!(incoming.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if call.passthrough.is_some() && !is_refused {
        return Ok(pass_through(head, incoming, flight, call.deadline.min(now + limits.total)));
    }
    if !incoming.status().is_success() {
        return Err(error_reply(codec, incoming, attempt_ends).await);
    }
    if let Some(encoding) = incoming.headers().get(header::CONTENT_ENCODING).filter(|value| *value != "identity") {
        let encoding = encoding.to_str().unwrap_or("unknown").to_owned();
        return Err(Failure::new(
            FailureClass::Malformed,
            format!("the provider's reply is encoded as {encoding}, which was not asked for"),
        ));
    }
    if call.is_stream() {
        stream_reply(head, codec, &ask, incoming, flight, attempt_ends, call.deadline.min(now + limits.total)).await
    } else {
        whole_reply(head, codec, &ask, incoming, flight, attempt_ends, backend.max_reply).await
    }
}

fn path_of(call: &Call) -> &str {
    match (&call.passthrough, call.endpoint) {
        (Some(passthrough), _) => &passthrough.path,
        (None, Endpoint::Completions) => "/completions",
        (None, Endpoint::Embeddings) => "/embeddings",
        (None, Endpoint::Chat | Endpoint::Passthrough) => "/chat/completions",
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What an answer is made of before its body is known.
struct Head<'a> {
    call: &'a Call,
    model: &'a str,
    backend: &'a std::sync::Arc<crate::settings::Backend>,
    attempts: u32,
    dropped: SmallVec<[Box<str>; 4]>,
}

impl Head<'_> {
    fn answer(self, headers: AnswerHeaders, body: AnswerBody, usage: Option<crate::chat::Usage>) -> Box<Answer> {
        Box::new(Answer {
            status: StatusCode::OK,
            headers,
            body,
            backend: std::sync::Arc::clone(self.backend),
            model: self.model.into(),
            attempts: self.attempts,
            dropped: self.dropped,
            first_content: Instant::now().duration_since(self.call.started),
            usage,
        })
    }
}

async fn whole_reply(
    head: Head<'_>,
    codec: &Codec,
    ask: &Ask<'_>,
    mut incoming: Incoming,
    flight: &mut Option<FlightGuard>,
    ends: Instant,
    limit: u64,
) -> Result<Box<Answer>, Failure> {
    let declared = content_length(incoming.headers());
    let body = match within(ends, collect(&mut incoming, limit)).await {
        Some(body) => body?,
        None => {
            return Err(Failure::new(FailureClass::Timeout(Phase::Total), "the provider's reply was not whole in time"));
        }
    };
    if declared.is_some_and(|declared| declared != body.len() as u64) {
        return Err(Failure::new(FailureClass::Malformed, "the provider's reply was cut before its end"));
    }
    let whole = codec.decode(ask, body)?;
    let usage = whole.usage.unwrap_or_else(|| crate::chat::Usage::estimate(ask.body.len(), whole.body.len() as u64 / 4));
    if let Some(flight) = flight.take() {
        flight.note_first_content(Instant::now(), head.attempts);
        flight.settle(End::Served, Some(usage));
    }
    Ok(head.answer(client_headers(incoming.headers()), AnswerBody::Full(whole.body), Some(usage)))
}

async fn stream_reply(
    head: Head<'_>,
    codec: &Codec,
    ask: &Ask<'_>,
    mut incoming: Incoming,
    flight: &mut Option<FlightGuard>,
    ends: Instant,
    total_ends: Instant,
) -> Result<Box<Answer>, Failure> {
    let content_type = incoming.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
        return Err(not_a_stream(incoming, ends).await);
    }
    let mut relay = codec.relay(ask);
    let mut read = 0;
    while !relay.has_content() {
        let chunk = timeout_at(ends, std::future::poll_fn(|cx| incoming.poll_next(cx))).await.map_err(|_| {
            Failure::new(FailureClass::Timeout(Phase::FirstContent), "the provider's stream brought no content in time")
        })?;
        match chunk {
            Some(chunk) => {
                let chunk = chunk?;
                read += chunk.len();
                relay.feed(chunk)?;
            }
            None => {
                relay.finish()?;
                break;
            }
        }
        if read > PRELUDE && !relay.has_content() {
            return Err(Failure::new(FailureClass::Malformed, "the provider's stream has no content in its first MiB"));
        }
    }
    let Some(flight) = flight.take() else {
        return Err(Failure::new(FailureClass::Crashed, "the attempt had settled before its answer"));
    };
    flight.note_first_content(Instant::now(), head.attempts);
    let headers = client_headers(incoming.headers());
    let upstream = Upstream::new(incoming, Meter::Events(Box::new(relay)), ask.body.len(), total_ends);
    *flight.upstream.borrow_mut() = Some(upstream);
    let body = AnswerBody::Live(SendWrapper::new(LiveBody::new(flight)));
    Ok(head.answer(headers, body, None))
}

/// A passed-through reply is committed at its head, whatever its status.
fn pass_through(head: Head<'_>, incoming: Incoming, flight: &mut Option<FlightGuard>, ends: Instant) -> Box<Answer> {
    let status = incoming.status();
    let mut headers = client_headers(incoming.headers());
    for name in
        [header::CONTENT_TYPE, header::CONTENT_DISPOSITION, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::RETRY_AFTER]
    {
        if let Some(value) = incoming.headers().get(&name) {
            headers.push((name, value.clone()));
        }
    }
    let has_body = incoming.status() != StatusCode::NO_CONTENT
        && incoming.status() != StatusCode::NOT_MODIFIED
        && head.call.passthrough.as_ref().is_none_or(|passthrough| passthrough.method != Method::HEAD);
    let body = match flight.take() {
        Some(flight) => {
            flight.note_first_content(Instant::now(), head.attempts);
            let meter = Meter::Bytes { tail: Vec::new(), remaining: content_length(incoming.headers()).filter(|_| has_body) };
            *flight.upstream.borrow_mut() = Some(Upstream::new(incoming, meter, head.call.body.len(), ends));
            AnswerBody::Live(SendWrapper::new(LiveBody::new(flight)))
        }
        None => AnswerBody::Full(Bytes::new()),
    };
    let mut answer = head.answer(headers, body, None);
    answer.status = status;
    answer
}

/// Awaits a future until then; what is ready at once needs no timer.
async fn within<F: Future>(ends: Instant, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().now_or_never() {
        Some(ready) => Some(ready),
        None => timeout_at(ends, future).await.ok(),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect(body: &mut Incoming, limit: u64) -> Result<Bytes, Failure> {
    let mut first = None;
    let mut all = BytesMut::new();
    while let Some(chunk) = std::future::poll_fn(|cx| body.poll_next(cx)).await {
        let chunk = chunk?;
        if (all.len() + chunk.len() + first.as_ref().map_or(0, Bytes::len)) as u64 > limit {
            let limit = crate::settings::format_size(limit);
            return Err(Failure::new(
                FailureClass::Malformed,
                format!("the provider's reply is larger than the limit of {limit}"),
            ));
        }
        // Most replies are one chunk, which needs no copy.
        match (first.take(), all.is_empty()) {
            (None, true) => first = Some(chunk),
            (Some(before), _) => {
                all.reserve(before.len() + chunk.len());
                all.extend_from_slice(&before);
                all.extend_from_slice(&chunk);
            }
            (None, false) => all.extend_from_slice(&chunk),
        }
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

/// The failure that a reply with an error status means.
async fn error_reply(codec: &Codec, mut incoming: Incoming, ends: Instant) -> Failure {
    let mut body = BytesMut::new();
    let reading = async {
        while let Some(Ok(chunk)) = std::future::poll_fn(|cx| incoming.poll_next(cx)).await {
            body.extend_from_slice(&chunk);
            if body.len() >= ERROR_BODY {
                break;
            }
        }
    };
    // The status alone says enough when the body does not come.
    let _ = timeout_at(ends, reading).await;
    let reply = ErrorReply { status: incoming.status().as_u16(), retry_after: retry_after(incoming.headers()), body: &body };
    codec.failure(&reply)
}

/// A success that is not a stream although one was asked for: an error object, or something else altogether.
async fn not_a_stream(mut incoming: Incoming, ends: Instant) -> Failure {
    let content_type = incoming
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("no content type")
        .to_owned();
    let body = timeout_at(ends, collect(&mut incoming, ERROR_BODY as u64)).await;
    let tree = body.ok().and_then(Result::ok).and_then(|body| serde_json::from_slice(&body).ok());
    tree.and_then(|tree| crate::dialect::openai::failure_in_reply(&tree)).unwrap_or_else(|| {
        Failure::new(FailureClass::Malformed, format!("the provider answered with {content_type} where a stream was asked for"))
    })
}

/// What a reply's headers ask to wait: milliseconds, seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(Duration::from_secs(86_400)));
    if let Some(millis) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return seconds(millis / 1_000.0);
    }
    let after = text("retry-after")?;
    if let Ok(number) = after.parse::<f64>() {
        return seconds(number);
    }
    let date = httpdate::parse_http_date(after).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO).min(Duration::from_secs(86_400)))
}

/// Headers of a provider that a client may see: rate limits, and the provider's request id under a name of its own.
fn client_headers(headers: &HeaderMap) -> AnswerHeaders {
    const IDS: &[&str] = &["x-request-id", "apim-request-id", "mistral-correlation-id"];
    let mut out = AnswerHeaders::new();
    let mut has_id = false;
    for (name, value) in headers {
        if name.as_str().starts_with("x-ratelimit-")
            || name.as_str() == "openai-processing-ms"
            || name.as_str() == "x-stagedoor-simulated"
        {
            out.push((name.clone(), value.clone()));
        } else if !has_id && IDS.contains(&name.as_str()) {
            has_id = true;
            out.push((HeaderName::from_static("x-upstream-request-id"), value.clone()));
        }
    }
    out
}

/// Opens a connection with the cheapest request, so that the first jobs of a generation find one; the reply is ignored.
pub async fn warm_up(station: Rc<Station>) {
    let Some(codec) = &station.codec else { return };
    let url = codec.url(&station.backend, Endpoint::Passthrough, "/models", "");
    let json = [(header::ACCEPT, HeaderValue::from_static("application/json"))];
    let request = Outgoing {
        endpoint: Endpoint::Passthrough,
        method: Method::GET,
        url: Address::Own(url),
        headers: &json,
        body: OutgoingBody::Full(Bytes::new()),
        pooled: true,
    };
    let warming = async {
        if let Ok(mut incoming) = station.transport.send(request).await {
            // Read to the end, else the connection is not kept.
            let _ = collect(&mut incoming, 8 << 20).await;
        }
    };
    let _ = tokio::time::timeout(station.backend.timeouts.connect * 2, warming).await;
}
