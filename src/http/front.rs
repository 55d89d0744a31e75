//! The front end: authenticates, bounds and scans the body, finds the route, fixes the deadline, sends one dispatch,
//! awaits one reply. It knows no provider.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::http::header::HeaderName;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;

use super::reply;
use super::request_log::RequestLog;
use super::routes::{self, Matched};
use super::{Gateway, auth, body, passthrough, span};
use crate::actors::Dispatch;
use crate::attempt::{BodyHold, Call, Passthrough, Reply};
use crate::chat::{Endpoint, Scan, Shape, conversation_key, named_key, scan};
use crate::error::GatewayError;
use crate::settings::Affinity;

/// `x-stagedoor-repeat: never` forbids to send a request to a provider more than once.
const X_REPEAT: HeaderName = HeaderName::from_static("x-stagedoor-repeat");

/// Serves every request that is not on a fixed path.
pub(super) async fn serve(request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let Some(gateway) = request.app_data::<Rc<Gateway>>().map(Rc::clone) else {
        return reply::error(&GatewayError::Internal);
    };
    let mut log = RequestLog::new(&gateway, Span::current());
    match take(&gateway, &request, payload, &mut log).await {
        Ok((call, pool)) => dispatch(&gateway, call, pool, log).await,
        Err(error) => {
            log.refused(span::id_of(&request));
            reply::respond(Err(error), log)
        }
    }
}

/// Everything up to the dispatch: the call, and the index of its pool.
async fn take(
    gateway: &Rc<Gateway>,
    request: &HttpRequest,
    payload: web::Payload,
    log: &mut RequestLog,
) -> Result<(Arc<Call>, usize), GatewayError> {
    let settings = &gateway.shared.settings;
    log.caller = auth::client(request, settings)?;
    let matched = routes::find(settings, request)?;
    log.routed(matched.route);
    log.operation = Some(matched.endpoint.word());
    let started = Instant::now();
    let taken = read(gateway, request, payload, matched.endpoint).await?;

    let (pool, model_at) = target(gateway, &matched, taken.scan.model.as_deref())?;
    let plan = &settings.pools[pool];
    log.pool = Some(Arc::clone(&plan.name));
    let conversation = plan.affinity.as_ref().and_then(|affinity| conversation(request, affinity, &taken));
    let limit = matched.route.and_then(|route| route.deadline).unwrap_or(plan.deadline);
    let call = Call {
        id: span::id_of(request),
        endpoint: matched.endpoint,
        scan: taken.scan,
        body: taken.body,
        hold: taken.hold,
        model_at,
        deadline: started + limit,
        started,
        began: gateway.shared.clock.at(started),
        span: log.span(),
        passthrough: taken.passthrough,
        touched: AtomicBool::new(false),
        repeatable: is_repeatable(request),
        insistent: false,
        conversation,
        trail: Arc::default(),
    };
    let call = Arc::new(call);
    log.opened(&call, pool);
    Ok((call, pool))
}

/// Whether the client allows that a provider gets the request more than once.
fn is_repeatable(request: &HttpRequest) -> bool {
    request.headers().get(&X_REPEAT).is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"never"))
}

/// The key of a request's conversation: named by a header, else by the head of its prompt.
fn conversation(request: &HttpRequest, affinity: &Affinity, taken: &Taken) -> Option<u64> {
    match request.headers().get(affinity.header.as_str()) {
        Some(name) => Some(named_key(name.as_bytes())),
        None => conversation_key(&taken.body, &taken.scan),
    }
}

struct Taken {
    body: Bytes,
    hold: BodyHold,
    scan: Scan,
    passthrough: Option<Box<Passthrough>>,
}

async fn read(
    gateway: &Gateway,
    request: &HttpRequest,
    payload: web::Payload,
    endpoint: Endpoint,
) -> Result<Taken, GatewayError> {
    let shape = match endpoint {
        Endpoint::Chat => Shape::Chat,
        Endpoint::Completions | Endpoint::Embeddings => Shape::Model,
        Endpoint::Passthrough => {
            let taken = passthrough::take(request, payload, &gateway.shared).await?;
            return Ok(Taken { body: taken.body, hold: taken.hold, scan: taken.scan, passthrough: Some(taken.passthrough) });
        }
    };
    if !body::is_json(request) {
        return Err(GatewayError::ContentType);
    }
    let (body, hold) = body::read(request, payload, &gateway.shared).await?;
    let scan = scan(&body, shape)?;
    Ok(Taken { body, hold, scan, passthrough: None })
}

/// The pool that serves a request, and where in the requested model the id to ask its members for begins.
fn target(gateway: &Gateway, matched: &Matched<'_>, model: Option<&str>) -> Result<(usize, Option<usize>), GatewayError> {
    let settings = &gateway.shared.settings;
    let offset = |rest: Option<&str>| rest.and_then(|rest| Some(model?.len() - rest.len()));
    Ok(match (matched.route.and_then(|route| route.pool), model) {
        (Some(pool), Some(model)) => {
            let name = &*settings.pools[pool].name;
            match model.strip_prefix(name) {
                Some("") => (pool, None),
                Some(rest) if rest.len() > 1 && rest.starts_with('/') => (pool, Some(name.len() + 1)),
                _ => (pool, Some(0)),
            }
        }
        (Some(pool), None) => (pool, None),
        (None, Some(model)) => {
            if let Some(name) = settings.left_out(model) {
                return Err(GatewayError::LeftOut { name: name.to_owned() });
            }
            let (pool, rest) = settings.by_model(model);
            (pool, offset(rest))
        }
        (None, None) => (0, None),
    })
}

async fn dispatch(gateway: &Rc<Gateway>, call: Arc<Call>, pool: usize, log: RequestLog) -> HttpResponse {
    if !call.is_stream() {
        return reply::respond(ask(Rc::clone(gateway), call, pool).await, log);
    }
    let mut answer: Pin<Box<dyn Future<Output = Reply>>> = Box::pin(ask(Rc::clone(gateway), call, pool));
    match gateway.keep_alive[pool] {
        None => reply::respond(answer.await, log),
        Some(silence) => match tokio::time::timeout(silence, &mut answer).await {
            Ok(answer) => reply::respond(answer, log),
            Err(_) => reply::commit_early(answer, silence, log),
        },
    }
}

/// Asks the pool; once more if an actor died with the request before anything was sent.
async fn ask(gateway: Rc<Gateway>, call: Arc<Call>, pool: usize) -> Reply {
    for _ in 0..2 {
        let Some(sending) = gateway.slots.pool(pool).map(|address| address.send(Dispatch(Arc::clone(&call)))) else {
            break;
        };
        match sending.await {
            Ok(reply) => return reply,
            Err(_) if call.touched.load(Ordering::Relaxed) => break,
            // The supervisor replaces it in its next turn.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    Err(GatewayError::Internal)
}
