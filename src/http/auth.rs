//! Who may call: client keys. Who may operate is decided in `admin`.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::GatewayError;
use crate::settings::{ClientKey, Settings, is_loopback};

/// The caller's name; none where anybody may call.
///
/// Keys are compared as digests in constant time, all of them on every call.
///
/// # Errors
/// No key, or an unknown one; without keys, on this machine, a web page of another site.
pub(super) fn client(request: &HttpRequest, settings: &Settings) -> Result<Option<Arc<str>>, GatewayError> {
    if settings.keys.is_empty() {
        let is_foreign = comes_from_a_foreign_page(request) && settings.is_loopback();
        return if is_foreign { Err(GatewayError::CrossSite) } else { Ok(None) };
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

/// Whether a browser sends it for a page that is not this machine's: any page could otherwise spend the operator's money, and
/// one whose name leads to this machine read the answers. Only browsers say where a request comes from.
fn comes_from_a_foreign_page(request: &HttpRequest) -> bool {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return false };
    let origin = origin.to_str().unwrap_or("null");
    match origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) {
        Some(authority) => {
            let host = match authority.strip_prefix('[') {
                Some(rest) => rest.split(']').next(),
                None => authority.split(':').next(),
            };
            !host.is_some_and(|host| is_loopback(host) || host.ends_with(".localhost"))
        }
        // Applications and extensions have schemes of their own.
        None => origin == "null",
    }
}

/// The key or token that a request carries.
pub(super) fn bearer(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}
