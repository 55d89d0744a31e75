//! The signed assertion by which a service account asks for a token. Source: google-auth 2.62.2 for Python, read
//! 2026-11-22.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::RSA_PKCS1_SHA256;
use serde_json::{Value, json};

use crate::settings::ServiceAccount;

/// Whom assertions are for: always this, wherever they are posted.
const AUDIENCE: &str = "https://oauth2.googleapis.com/token";
/// What tokens are for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Longest life of an assertion that is accepted, in seconds.
const LIFE: u64 = 3_600;

/// An assertion made now, in seconds since 1970; `None` when the key cannot sign.
pub(super) fn assertion(account: &ServiceAccount, now: u64) -> Option<String> {
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(id) = &account.key_id {
        header["kid"] = json!(id);
    }
    let claims = json!({ "iss": account.email, "scope": SCOPE, "aud": AUDIENCE, "iat": now, "exp": now + LIFE });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let mut text = format!("{}.{}", encode(&header), encode(&claims));
    let pair = account.key.pair();
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).ok()?;
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    Some(text)
}
