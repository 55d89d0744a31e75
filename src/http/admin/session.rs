//! Sessions: a browser trades its token once for a cookie that no script can read and no other site can send. Nothing is
//! kept of them here but which have been ended: the cookie says until when it holds, signed with a key made of the token. A
//! new token ends them all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use actix_web::cookie::{Cookie, SameSite, time};
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{Role, Way, check_token, enter, peer, same_origin};
use super::{Problem, Refused, object, whole};
use crate::http::{Gateway, reply};
use crate::settings::Settings;
use crate::unix_time::unix_time;

const COOKIE: &str = "stagedoor_admin";
/// How long a session holds.
const LASTS: Duration = Duration::from_secs(12 * 3_600);
/// Ended sessions that are remembered.
const REMEMBERED: usize = 1_024;

/// Sessions that were ended before their time, by cookie: a copy must not go on.
#[derive(Default)]
pub(crate) struct EndedSessions(Mutex<HashMap<String, (Role, u64)>>);

impl EndedSessions {
    /// Notes one that would have held until `ends`, in seconds of Unix time.
    fn note(&self, cookie: &str, role: Role, ends: u64, now: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, ends)| *ends > now);
        if known.len() >= REMEMBERED {
            // A reader's first: whoever may only look must not be able to bring an operator's back.
            let worth = |(_, (role, ends)): &(&String, &(Role, u64))| (*role == Role::Operator, *ends);
            let first = known.iter().min_by_key(worth).map(|(cookie, _)| cookie.clone());
            first.map(|first| known.remove(&first));
        }
        known.insert(cookie.to_owned(), (role, ends));
    }

    fn is(&self, cookie: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(cookie)
    }
}

/// What one has to know to enter.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// The admin token, or the one that may only look.
    token: String,
}

/// Who one is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session {
    /// What one may do.
    role: Role,
    /// By what one has entered.
    way: Way,
}

/// Who the caller is.
#[utoipa::path(get, path = "/admin/api/session", tag = "session", responses((status = 200, body = Session), (status = 401, body = Problem)))]
pub(super) async fn show(request: HttpRequest) -> Result<HttpResponse, Refused> {
    let visitor = enter(&request, false).await?;
    Ok(HttpResponse::Ok().json(Session { role: visitor.role, way: visitor.way }))
}

/// Trades a token for a session cookie.
#[utoipa::path(
    post, path = "/admin/api/session", tag = "session", request_body = Login, security(()),
    responses((status = 200, body = Session), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 413, body = Problem), (status = 429, body = Problem))
)]
pub(super) async fn begin(request: HttpRequest, body: Result<web::Bytes, actix_web::Error>) -> Result<HttpResponse, Refused> {
    same_origin(&request)?;
    let gateway = request.app_data::<std::rc::Rc<Gateway>>().cloned().ok_or_else(Refused::internal)?;
    let Ok(Login { token }) = object(&whole(body)?) else {
        return Err(Refused::new(StatusCode::BAD_REQUEST, "the body is `{\"token\": \"...\"}`", "invalid_value"));
    };
    let role = check_token(&gateway, &token, peer(&request)).await?;
    tracing::info!(target: "audit", act = "login", role = role.word(), address = peer(&request).map(tracing::field::display), "operator's act");
    let ends = unix_time().as_secs() + LASTS.as_secs();
    let value = sealed(role, ends, &gateway.shared.settings).ok_or_else(Refused::internal)?;
    let mut cookie = cookie(&request, value);
    cookie.set_max_age(time::Duration::seconds(i64::try_from(LASTS.as_secs()).unwrap_or(i64::MAX)));
    Ok(HttpResponse::Ok().cookie(cookie).json(Session { role, way: Way::Session }))
}

/// Ends the session.
#[utoipa::path(delete, path = "/admin/api/session", tag = "session", security(()), responses((status = 204), (status = 403, body = Problem)))]
pub(super) async fn end(request: HttpRequest) -> Result<HttpResponse, Refused> {
    same_origin(&request)?;
    let gateway = request.app_data::<std::rc::Rc<Gateway>>().ok_or_else(Refused::internal)?;
    let now = unix_time().as_secs();
    for value in values(&request) {
        // What is none of ours fills no memory.
        if let Some((role, ends)) = opened(&value, &gateway.shared.settings, now) {
            gateway.ended.note(&value, role, ends, now);
        }
    }
    let mut cookie = cookie(&request, String::new());
    cookie.make_removal();
    Ok(HttpResponse::NoContent().cookie(cookie).finish())
}

fn cookie(request: &HttpRequest, value: String) -> Cookie<'static> {
    // Who speaks TLS in front of the gateway says so.
    let is_encrypted = reply::text(request, "x-forwarded-proto").eq_ignore_ascii_case("https");
    Cookie::build(COOKIE, value).path("/admin").http_only(true).same_site(SameSite::Strict).secure(is_encrypted).finish()
}

/// What the request's session may do, if it has one that holds.
pub(super) fn role(request: &HttpRequest, gateway: &Gateway) -> Option<Role> {
    let now = unix_time().as_secs();
    let holds = values(request).into_iter().filter(|value| !gateway.ended.is(value));
    holds.filter_map(|value| opened(&value, &gateway.shared.settings, now)).map(|(role, _)| role).next()
}

/// The cookies of a request that may be a session: another application on the same host may have set one of this name.
fn values(request: &HttpRequest) -> Vec<String> {
    let Ok(cookies) = request.cookies() else { return Vec::new() };
    cookies.iter().filter(|cookie| cookie.name() == COOKIE).map(|cookie| cookie.value().to_owned()).collect()
}

fn key(role: Role, settings: &Settings) -> Option<hmac::Key> {
    let token = match role {
        Role::Operator => settings.admin_token.as_ref()?,
        Role::Reader => settings.read_token.as_ref()?,
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
    // What signs sessions must sign nothing else.
    Some(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, b"stagedoor session").as_ref()))
}

/// `role.end.number.signature`; the number tells sessions apart that began in the same second.
fn sealed(role: Role, ends: u64, settings: &Settings) -> Option<String> {
    let text = format!("{}.{ends}.{:016x}", role.word(), fastrand::u64(..));
    let signature = hmac::sign(&key(role, settings)?, text.as_bytes());
    Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// What a cookie's holder may do, and until when.
fn opened(value: &str, settings: &Settings, now: u64) -> Option<(Role, u64)> {
    let (text, signature) = value.rsplit_once('.')?;
    let (role, rest) = text.split_once('.')?;
    let (ends, _) = rest.split_once('.')?;
    let role = [Role::Operator, Role::Reader].into_iter().find(|known| known.word() == role)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    hmac::verify(&key(role, settings)?, text.as_bytes(), &signature).ok()?;
    let ends = ends.parse::<u64>().ok()?;
    (ends > now).then_some((role, ends))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn settings(token: &str) -> Settings {
        let text = format!("admin: {{ token: {token}, readToken: look }}\nbackends: [{{ name: s, type: simulated }}]");
        crate::settings::from_text("test", &text, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_session_holds_until_its_end_and_no_longer_than_its_token() {
        let settings = settings("one");
        let sealed = sealed(Role::Operator, 1_000, &settings).unwrap();
        assert_eq!(opened(&sealed, &settings, 999), Some((Role::Operator, 1_000)));
        assert_eq!(opened(&sealed, &settings, 1_000), None);
        assert_eq!(opened(&sealed, &self::settings("two"), 999), None);
    }

    #[test]
    fn ended_sessions_are_remembered_until_their_time_and_within_bounds() {
        let ended = EndedSessions::default();
        ended.note("a", Role::Operator, 10, 1);
        ended.note("b", Role::Operator, 20, 1);
        assert!(ended.is("a") && ended.is("b") && !ended.is("c"));
        ended.note("c", Role::Reader, 30, 15);
        assert!(!ended.is("a") && ended.is("b"));
        (0..2 * REMEMBERED as u64).for_each(|number| ended.note(&format!("more {number}"), Role::Reader, 100 + number, 15));
        assert_eq!(ended.0.lock().unwrap().len(), REMEMBERED);
        assert!(ended.is(&format!("more {}", 2 * REMEMBERED - 1)));
        assert!(ended.is("b"), "readers do not bring an operator's session back");
    }

    #[test]
    fn a_session_cannot_be_made_into_another() {
        let settings = settings("one");
        let sealed = sealed(Role::Reader, 1_000, &settings).unwrap();
        assert_eq!(opened(&sealed, &settings, 1), Some((Role::Reader, 1_000)));
        for forged in [sealed.replace("reader", "operator"), sealed.replace("1000", "9000"), "operator.9.".into(), "".into()] {
            assert_eq!(opened(&forged, &settings, 1), None, "{forged}");
        }
    }
}
