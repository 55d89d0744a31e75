//! Who may call: client keys. Who may operate is decided in `admin`.

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

/// The key or token that a request carries.
pub(super) fn bearer(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}
