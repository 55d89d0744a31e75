//! Reads a request's body within its limits, without a copy where it comes in one piece.

use std::future::{Future as _, poll_fn};
use std::task::{Context, Waker};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::{Version, header};
use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use crate::actors::slots::Shared;
use crate::attempt::BodyHold;
use crate::error::GatewayError;
use crate::settings::format_size;

/// Bytes of a body for which room is made before they come.
const AHEAD: usize = 1 << 20;

/// Reads the whole body.
///
/// # Errors
/// Too large, too slow, broken off, or too many bytes held by all requests together.
pub(super) async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    shared: &Shared,
) -> Result<(Bytes, BodyHold), GatewayError> {
    let server = &shared.settings.server;
    let mut reading = std::pin::pin!(collect(request, payload, shared));
    // Most bodies come with their head, yet are there only at the second look. An HTTP/1 connection looks whenever it has
    // read something; a waker left behind at the first look would only have it look once more, for nothing.
    let mut looked = request.version() >= Version::HTTP_2;
    let looking = poll_fn(|cx| match std::mem::replace(&mut looked, true) {
        false => reading.as_mut().poll(&mut Context::from_waker(Waker::noop())),
        true => reading.as_mut().poll(cx),
    });
    match tokio::time::timeout(server.body_timeout, looking).await {
        Ok(result) => result,
        Err(_) => Err(GatewayError::BodyTimeout(Duration::from_secs(server.body_timeout.as_secs()))),
    }
}

async fn collect(request: &HttpRequest, mut payload: web::Payload, shared: &Shared) -> Result<(Bytes, BodyHold), GatewayError> {
    let server = &shared.settings.server;
    let too_large = || GatewayError::BodyTooLarge { limit: format_size(server.max_body) };
    let declared = content_length(request);
    if declared.is_some_and(|declared| declared > server.max_body) {
        return Err(too_large());
    }
    // Counted as it comes: a few that declare much and send nothing must not keep everybody out.
    let mut hold = BodyHold::new(&shared.body_bytes);
    let Some(first) = payload.next().await else {
        return Ok((Bytes::new(), hold));
    };
    let first = first.map_err(|_| GatewayError::BodyRead)?;
    if declared == Some(first.len() as u64) {
        return if hold.grow(first.len() as u64, server.max_body_in_flight) {
            Ok((first, hold))
        } else {
            Err(GatewayError::BodiesInFlight)
        };
    }
    let expected = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(first.len() * 2);
    let mut all = BytesMut::with_capacity(expected.min(AHEAD));
    let mut next = Some(first);
    while let Some(chunk) = next {
        if (all.len() + chunk.len()) as u64 > server.max_body {
            return Err(too_large());
        }
        if !hold.grow(chunk.len() as u64, server.max_body_in_flight) {
            return Err(GatewayError::BodiesInFlight);
        }
        all.extend_from_slice(&chunk);
        next = payload.next().await.transpose().map_err(|_| GatewayError::BodyRead)?;
    }
    Ok((all.freeze(), hold))
}

/// The declared length of a request's body.
pub(super) fn content_length(request: &HttpRequest) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the body is declared as JSON, or not declared at all.
pub(super) fn is_json(request: &HttpRequest) -> bool {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else {
        return true;
    };
    let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let ending = kind.len().checked_sub(b"+json".len()).and_then(|start| kind.get(start..));
    kind.eq_ignore_ascii_case(b"application/json") || ending.is_some_and(|ending| ending.eq_ignore_ascii_case(b"+json"))
}
