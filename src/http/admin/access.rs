//! Who may enter /admin and /metrics: an operator or a reader by token, by session, or, where no token is configured, from
//! this machine. Acts are for operators and safe from other sites; guessing is slowed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::HeaderName;
use actix_web::http::{StatusCode, Version};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Refused;
use super::session;
use crate::http::{Gateway, auth, reply};
use crate::settings::{Secret, Settings};

/// Pause before a wrong token is answered.
const WRONG_PAUSE: Duration = Duration::from_millis(300);
/// Wrong tokens of one address within [`LOCKED`] before its tokens are not looked at any more.
const GUESSES: u32 = 10;
/// How long.
const LOCKED: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const REMEMBERED: usize = 1_024;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Look and act.
    Operator,
    /// Look.
    Reader,
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Reader => "reader",
        }
    }
}

/// By what somebody has entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// A bearer token.
    Token,
    /// A session that a token has begun.
    Session,
    /// From this machine, since no token is configured.
    Loopback,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Loopback => "loopback",
        }
    }
}

/// Somebody who was let in.
pub(in crate::http) struct Visitor {
    pub(in crate::http) gateway: Rc<Gateway>,
    pub(super) role: Role,
    pub(super) way: Way,
    address: Option<IpAddr>,
}

impl Visitor {
    /// For audit lines: by what, and from where.
    pub(super) fn who(&self) -> String {
        let address = self.address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        format!("{} from {address}", self.way.word())
    }
}

/// Lets somebody in; `is_act` demands an operator, and a request that no other site has caused.
///
/// # Errors
/// No token, a wrong one or one that may only look; without configured tokens, a request from elsewhere; guesses.
pub(in crate::http) async fn enter(request: &HttpRequest, is_act: bool) -> Result<Visitor, Refused> {
    let gateway = request.app_data::<Rc<Gateway>>().map(Rc::clone).ok_or_else(Refused::internal)?;
    let address = peer(request);
    let (role, way) = admit(request, &gateway, address).await?;
    let who = || Visitor { gateway: Rc::clone(&gateway), role, way, address }.who();
    let refused = |why: &'static str| {
        tracing::warn!(target: "audit", method = %request.method(), path = request.path(), by = who(), why, "an act was refused");
    };
    if is_act && role != Role::Operator {
        refused("this token may only look");
        return Err(Refused::new(StatusCode::FORBIDDEN, "this token may look, but not act; use the admin token", "read_only"));
    }
    // A bearer token is sent by nobody's browser on its own.
    if is_act && way != Way::Token {
        same_origin(request).inspect_err(|_| refused("another site has caused it"))?;
    }
    Ok(Visitor { gateway, role, way, address })
}

async fn admit(request: &HttpRequest, gateway: &Gateway, address: Option<IpAddr>) -> Result<(Role, Way), Refused> {
    let settings = &gateway.shared.settings;
    if let Some(token) = auth::bearer(request) {
        if settings.admin_token.is_some() || settings.read_token.is_some() {
            return check_token(gateway, token, address).await.map(|role| (role, Way::Token));
        }
    } else if let Some(role) = session::role(request, gateway) {
        return Ok((role, Way::Session));
    }
    if settings.admin_token.is_none() && is_from_here(request) {
        return Ok((Role::Operator, Way::Loopback));
    }
    let words = if settings.admin_token.is_none() && settings.read_token.is_none() {
        "no admin token is configured (admin.token): only requests from this machine, sent to localhost, are answered"
    } else {
        "no admin token was given; send it as `Authorization: Bearer <token>`, or log in at /admin"
    };
    Err(Refused::new(StatusCode::UNAUTHORIZED, words, "missing_admin_token"))
}

/// What a token may do.
///
/// # Errors
/// A wrong token, after a pause; too many of them from this address.
pub(super) async fn check_token(gateway: &Gateway, token: &str, address: Option<IpAddr>) -> Result<Role, Refused> {
    let guesses = &gateway.guesses;
    if let Some(wait) = guesses.locked(address, Instant::now()) {
        let words = "too many wrong tokens came from this address; wait a minute";
        return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, words, "too_many_guesses").after(wait));
    }
    match role_of(&gateway.shared.settings, token) {
        Some(role) => Ok(role),
        None => {
            guesses.note(address, Instant::now());
            tracing::warn!(target: "audit", address = address.map(tracing::field::display), "a wrong admin token was refused");
            tokio::time::sleep(WRONG_PAUSE).await;
            Err(Refused::new(StatusCode::UNAUTHORIZED, "the admin token is wrong", "invalid_admin_token"))
        }
    }
}

/// Compared as digests in constant time, both of them on every call.
fn role_of(settings: &Settings, token: &str) -> Option<Role> {
    let given: [u8; 32] = Sha256::digest(token).into();
    let is = |known: &Option<Secret>| {
        known.as_ref().is_some_and(|known| {
            let wanted: [u8; 32] = Sha256::digest(known.expose()).into();
            bool::from(wanted.ct_eq(&given))
        })
    };
    match (is(&settings.admin_token), is(&settings.read_token)) {
        (true, _) => Some(Role::Operator),
        (false, true) => Some(Role::Reader),
        (false, false) => None,
    }
}

/// Whose connection it is. On a socket of both protocols an address of the old one is written as one of the new.
pub(super) fn peer(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|peer| peer.ip().to_canonical())
}

/// Headers by which proxies say that they pass a request on, beside `Forwarded` and those that begin with `x-forwarded-`.
const PASSED_ON: [&str; 7] = [
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-original-forwarded-for",
    "cf-connecting-ip",
    "true-client-ip",
    "x-envoy-external-address",
];

/// From this machine, asked for under one of its own names, and passed on by nobody, as far as that can be seen: a proxy
/// beside the gateway may hide itself, so that an operator who has one needs a token.
fn is_from_here(request: &HttpRequest) -> bool {
    let from_here = peer(request).is_some_and(|address| address.is_loopback());
    let host = reply::text(request, "host");
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let is_local = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let is_forwarded = request.headers().keys().map(HeaderName::as_str).any(|name| {
            name == "forwarded" || name.starts_with("x-forwarded-") || PASSED_ON.contains(&name)
        })
        // What proxies speak unless they are told otherwise, and no browser or client of today.
        || request.version() == Version::HTTP_10;
    from_here && is_local && !is_forwarded
}

/// Refuses what another site has caused a browser to send.
pub(super) fn same_origin(request: &HttpRequest) -> Result<(), Refused> {
    let host = reply::text(request, "host");
    let origin = reply::text(request, "origin");
    let same_origin = origin.is_empty() || origin.split_once("://").is_some_and(|(_, rest)| rest == host);
    let same_site = matches!(reply::text(request, "sec-fetch-site"), "" | "same-origin" | "none");
    if same_origin && same_site {
        return Ok(());
    }
    Err(Refused::new(StatusCode::FORBIDDEN, "acts are refused when another site asks for them", "cross_site"))
}

/// Wrong tokens by address, and since when they are counted or, once there were too many, since when it is locked; few
/// addresses are remembered.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Guesses {
    /// How long an address has to wait until its tokens are looked at again.
    fn locked(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, since) = known.get(&network(address?))?;
        let left = LOCKED.checked_sub(now.duration_since(*since))?;
        (*count >= GUESSES && !left.is_zero()).then_some(left)
    }

    fn note(&self, address: Option<IpAddr>, now: Instant) {
        let Some(address) = address.map(network) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, since)| now.duration_since(*since) < LOCKED);
        if known.len() >= REMEMBERED && !known.contains_key(&address) {
            let oldest = known.iter().min_by_key(|(_, (_, since))| *since).map(|(address, _)| *address);
            oldest.map(|oldest| known.remove(&oldest));
        }
        let (count, since) = known.entry(address).or_insert((0, now));
        *count += 1;
        if *count == GUESSES {
            *since = now;
        }
    }
}

/// Who holds one address of the new protocol holds its whole network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(own) => IpAddr::V6(Ipv6Addr::from_bits(own.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn an_address_of_the_old_protocol_is_itself_on_a_socket_of_both() {
        let request = |peer: &str| {
            let peer = peer.parse().unwrap();
            TestRequest::get().insert_header(("host", "localhost:8080")).peer_addr(peer).to_http_request()
        };
        assert!(is_from_here(&request("[::ffff:127.0.0.1]:1")) && is_from_here(&request("[::1]:1")));
        assert!(!is_from_here(&request("[::ffff:10.0.0.1]:1")));
        assert_eq!(peer(&request("[::ffff:10.0.0.1]:1")), "10.0.0.1".parse().ok());
    }

    #[test]
    fn an_address_is_locked_after_ten_wrong_tokens_and_others_are_not() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let (ill, well): (Option<IpAddr>, Option<IpAddr>) = ("10.0.0.1".parse().ok(), "10.0.0.2".parse().ok());
        for _ in 0..GUESSES {
            assert_eq!(guesses.locked(ill, now), None);
            guesses.note(ill, now);
        }
        assert_eq!((guesses.locked(ill, now), guesses.locked(well, now)), (Some(LOCKED), None));
        assert_eq!(guesses.locked(ill, now + LOCKED), None);
        // Ten in more than a minute are no guessing.
        for number in 0..20 {
            guesses.note(well, now + Duration::from_secs(number * 7));
            assert_eq!(guesses.locked(well, now + Duration::from_secs(number * 7)), None, "{number}");
        }
    }

    #[test]
    fn a_network_of_the_new_protocol_is_one_address_and_few_are_remembered() {
        let guesses = Guesses::default();
        let now = Instant::now();
        let at = |text: &str| text.parse::<IpAddr>().ok();
        (0..GUESSES).for_each(|_| guesses.note(at("2001:db8::1"), now));
        assert!(guesses.locked(at("2001:db8::2"), now).is_some() && guesses.locked(at("2001:db8:0:1::2"), now).is_none());
        for number in 0..5_000u32 {
            guesses.note(Some(IpAddr::from(number.to_be_bytes())), now);
        }
        assert_eq!(guesses.0.lock().unwrap().len(), REMEMBERED);
    }
}
