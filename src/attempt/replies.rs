//! What becomes of a provider's reply: a whole one is checked and translated, a stream is held until its first content,
//! an error is read and classified.

use std::time::{Duration, SystemTime};

use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use send_wrapper::SendWrapper;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::Station;
use super::call::{Answer, AnswerBody, AnswerHeaders, Call};
use super::end::End;
use super::flight::FlightGuard;
use super::live::{LiveBody, Meter, Upstream};
use super::transport::Incoming;
use crate::chat::{Endpoint, Failure, FailureClass, Phase, Usage};
use crate::dialect::{Ask, Codec, ErrorReply};
use crate::settings::BackendType;
use crate::unix_time::unix_time;

/// Bytes of an error reply that are read.
const ERROR_BODY: usize = 64 << 10;
/// Headers of a passed-through reply that the client gets beside those of every reply: what the body is, which part of
/// it and of which version, and where to go instead.
static PASSED: [HeaderName; 10] = [
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::RETRY_AFTER,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LOCATION,
];
/// Bytes held while a stream has no content yet.
const PRELUDE: usize = 1 << 20;

/// What an answer is made of before its body is known.
pub(super) struct Head<'a> {
    pub(super) call: &'a Call,
    pub(super) model: &'a str,
    pub(super) station: &'a Station,
    pub(super) attempts: u32,
    pub(super) dropped: SmallVec<[Box<str>; 4]>,
}

impl Head<'_> {
    fn answer(self, headers: AnswerHeaders, body: AnswerBody, usage: Option<Usage>) -> Box<Answer> {
        Box::new(Answer {
            status: StatusCode::OK,
            headers,
            body,
            backend: std::sync::Arc::clone(&self.station.backend),
            model: self.model.into(),
            attempts: self.attempts,
            dropped: self.dropped,
            first_content: Instant::now().duration_since(self.call.started),
            usage,
        })
    }
}

/// The body of a whole reply, checked to be whole.
pub(super) async fn whole_body(incoming: &mut Incoming, ends: Instant, limit: u64) -> Result<Bytes, Failure> {
    let declared = content_length(incoming.headers());
    let body = match within(ends, collect(incoming, limit)).await {
        Some(body) => body?,
        None => {
            return Err(Failure::new(FailureClass::Timeout(Phase::Total), "the provider's reply was not whole in time"));
        }
    };
    if declared.is_some_and(|declared| declared != body.len() as u64) {
        return Err(Failure::new(FailureClass::Malformed, "the provider's reply was cut before its end"));
    }
    Ok(body)
}

/// Answers with a whole reply; `before` holds the replies to earlier parts of the request.
pub(super) async fn whole_reply(
    head: Head<'_>,
    ask: &Ask<'_>,
    mut before: SmallVec<[Bytes; 1]>,
    mut incoming: Incoming,
    flight: &mut Option<FlightGuard>,
    ends: Instant,
) -> Result<Box<Answer>, Failure> {
    before.push(whole_body(&mut incoming, ends, head.station.backend.max_reply).await?);
    let codec = &head.station.codec;
    let whole = codec.decode(ask, &before)?;
    let usage = whole.usage.unwrap_or_else(|| {
        let output = if ask.endpoint == Endpoint::Embeddings { 0 } else { whole.body.len() as u64 / 4 };
        Usage::estimate(ask.body.len(), output)
    });
    if let Some(flight) = flight.take() {
        flight.note_first_content();
        flight.keep(&whole.keepsakes);
        flight.settle(End::Served, Some(usage));
    }
    let headers = client_headers(head.station, incoming.headers(), ask.now);
    Ok(head.answer(headers, AnswerBody::Full(whole.body), Some(usage)))
}

/// Answers with a stream once it has content.
pub(super) async fn stream_reply(
    head: Head<'_>,
    ask: &Ask<'_>,
    mut incoming: Incoming,
    flight: &mut Option<FlightGuard>,
    ends: Instant,
    total_ends: Instant,
) -> Result<Box<Answer>, Failure> {
    let content_type = incoming.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
        return Err(not_a_stream(&head.station.codec, incoming, ends).await);
    }
    let codec = &head.station.codec;
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
    flight.note_first_content();
    let headers = client_headers(head.station, incoming.headers(), ask.now);
    flight.go_live(Upstream::new(incoming, Meter::Events(Box::new(relay)), ask.body.len(), total_ends));
    let body = AnswerBody::Live(SendWrapper::new(LiveBody::new(flight)));
    Ok(head.answer(headers, body, None))
}

/// A passed-through reply is committed at its head, whatever its status.
pub(super) fn pass_through(head: Head<'_>, incoming: Incoming, flight: &mut Option<FlightGuard>, ends: Instant) -> Box<Answer> {
    let status = incoming.status();
    let mut headers = client_headers(head.station, incoming.headers(), 0);
    for name in &PASSED {
        if let Some(value) = incoming.headers().get(name) {
            headers.push((name.clone(), value.clone()));
        }
    }
    let has_body = head.call.passthrough.as_ref().is_none_or(|passthrough| passthrough.method != Method::HEAD);
    let body = match flight.take() {
        // By its status it has no body, whatever it says: bytes behind it would be read as the next reply.
        Some(flight) if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => {
            flight.note_first_content();
            flight.settle(End::Served, Some(Usage::default()));
            AnswerBody::Full(Bytes::new())
        }
        Some(flight) => {
            if !(status.is_success() || status.is_redirection()) {
                flight.note_refusal(refusal(status, incoming.headers()).as_ref());
            }
            flight.note_first_content();
            let meter = Meter::Bytes { tail: Vec::new(), remaining: content_length(incoming.headers()).filter(|_| has_body) };
            flight.go_live(Upstream::new(incoming, meter, head.call.body.len(), ends));
            AnswerBody::Live(SendWrapper::new(LiveBody::new(flight)))
        }
        None => AnswerBody::Full(Bytes::new()),
    };
    let mut answer = head.answer(headers, body, None);
    answer.status = status;
    answer
}

/// What a status that is passed through says about the backend's health.
fn refusal(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    let class = match status.as_u16() {
        429 => FailureClass::RateLimited,
        503 | 529 => FailureClass::Overloaded,
        500.. => FailureClass::Server,
        _ => return None,
    };
    Some(Failure { retry_after: retry_after(headers), ..Failure::new(class, "") })
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

pub(super) async fn collect(body: &mut Incoming, limit: u64) -> Result<Bytes, Failure> {
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
pub(super) async fn error_reply(station: &Station, mut incoming: Incoming, ends: Instant) -> Failure {
    // A refusal for a rate limit says most about it.
    let now = unix_time().as_secs();
    let headers = client_headers(station, incoming.headers(), now);
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
    let forbids_retry = incoming.headers().get("x-should-retry").is_some_and(|value| value.as_bytes() == b"false");
    let text = |(name, value): (HeaderName, HeaderValue)| Some((name.to_string(), value.to_str().ok()?.to_owned()));
    let headers = headers.into_iter().filter_map(text).collect();
    Failure { headers, forbids_retry, ..station.codec.failure(&reply) }
}

/// A success that is not a stream although one was asked for: an error object, or something else altogether.
async fn not_a_stream(codec: &Codec, mut incoming: Incoming, ends: Instant) -> Failure {
    let content_type = incoming
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("no content type")
        .to_owned();
    let body = timeout_at(ends, collect(&mut incoming, ERROR_BODY as u64)).await;
    let body = body.ok().and_then(Result::ok);
    body.and_then(|body| codec.failure_in(&body)).unwrap_or_else(|| {
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

/// Hosts without keys are given anything as one: `1`, `x`, `EMPTY`. What is shorter than this is no secret.
const SHORTEST_KEY: usize = 8;

/// Headers of a provider that a client may see: rate limits, and the provider's request id under a name of its own.
fn client_headers(station: &Station, headers: &HeaderMap, now: u64) -> AnswerHeaders {
    const IDS: &[&str] = &["x-request-id", "request-id", "apim-request-id", "mistral-correlation-id"];
    let mut out = AnswerHeaders::new();
    let mut has_id = false;
    let key = station.backend.credential.as_ref().map(|key| key.expose().as_bytes()).filter(|key| key.len() >= SHORTEST_KEY);
    let is_simulated = station.backend.kind == BackendType::Simulated;
    for (name, value) in headers {
        // A provider that sends the key back must not give it to clients. Most values are too short to hold it.
        if key.is_some_and(|key| value.len() >= key.len() && memchr::memmem::find(value.as_bytes(), key).is_some()) {
            continue;
        }
        if name.as_str().starts_with("x-ratelimit-") {
            station.headroom.note(name.as_str(), value.to_str().unwrap_or_default());
            out.push((name.clone(), value.clone()));
        } else if name.as_str() == "openai-processing-ms" || (is_simulated && name.as_str() == "x-stagedoor-simulated") {
            out.push((name.clone(), value.clone()));
        } else if !has_id && IDS.contains(&name.as_str()) {
            has_id = true;
            out.push((HeaderName::from_static("x-upstream-request-id"), value.clone()));
        } else if let Some((name, value)) =
            value.to_str().ok().and_then(|text| station.codec.rate_limit(name.as_str(), text, now))
        {
            station.headroom.note(&name, &value);
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                out.push((name, value));
            }
        }
    }
    out
}
