//! Who may call: client keys, and the operator's token.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::GatewayError;
use crate::settings::{ClientKey, Settings};

/// The caller's name; none where anybody may call.
///
/// Keys are compared as digests in constant time, all of them on every call.
///
/// # Errors
/// No key, or an unknown one.
pub(super) fn client(request: &HttpRequest, settings: &Settings) -> Result<Option<Arc<str>>, GatewayError> {
    if settings.keys.is_empty() {
        return Ok(None);
    }
    let key = bearer(request).ok_or(GatewayError::NoKey)?;
    let digest: [u8; 32] = Sha256::digest(key).into();
    let mut found: Option<&ClientKey> = None;
    for known in &settings.keys {
        if bool::from(known.digest.ct_eq(&digest)) {
            found = Some(known);
        }
    }
    found.map(|known| Some(Arc::clone(&known.name))).ok_or(GatewayError::WrongKey)
}

/// Whether this is an operator. `is_act` demands the same origin where no token protects.
///
/// # Errors
/// No token or a wrong one; without a configured token, a request that did not come from this machine.
pub(super) fn operator(request: &HttpRequest, settings: &Settings, is_act: bool) -> Result<(), GatewayError> {
    if let Some(token) = &settings.admin_token {
        let given: [u8; 32] = Sha256::digest(bearer(request).ok_or(GatewayError::NoKey)?).into();
        let wanted: [u8; 32] = Sha256::digest(token.expose()).into();
        return if bool::from(given.ct_eq(&wanted)) { Ok(()) } else { Err(GatewayError::WrongKey) };
    }
    let from_here = request.peer_addr().is_some_and(|peer| peer.ip().is_loopback());
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let host = text("host").unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let is_local = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let is_forwarded =
        request.headers().keys().any(|name| name == header::FORWARDED || name.as_str().starts_with("x-forwarded-"));
    let origin = text("origin");
    let same_origin = origin.is_none_or(|origin| origin.split_once("://").is_some_and(|(_, rest)| rest == host));
    let same_site = text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    if from_here && is_local && !is_forwarded && (!is_act || (same_origin && same_site)) {
        Ok(())
    } else {
        Err(GatewayError::NoKey)
    }
}

fn bearer(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}
