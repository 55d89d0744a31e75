//! The HTTP surface: the route table on one screen. Everything that is not fixed here goes to the front end, which
//! matches the configured routes.

mod admin;
mod auth;
mod body;
mod front;
mod health;
mod metrics;
mod models;
mod passthrough;
mod reply;
mod request_log;
mod routes;
mod span;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor as _, Addr};
use actix_web::{FromRequest, Handler, Resource, Responder, guard, web};

use crate::actors::director::Director;
use crate::actors::slots::{Shared, Slots};
use crate::monitor::{Monitor, Ticks};
use admin::{EndedSessions, Guesses};

pub use span::{RequestSpan, finish_reply};

/// What the handlers of one worker work with.
pub struct Gateway {
    /// This worker's actors.
    pub slots: Rc<Slots>,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// For acts.
    pub director: Addr<Director>,
    /// For what operators see.
    pub monitor: Addr<Monitor>,
    /// The same once a second.
    pub ticks: Ticks,
    /// Wrong tokens.
    guesses: Arc<Guesses>,
    /// Sessions that were ended before their time.
    ended: Arc<EndedSessions>,
    /// By pool index: silence before an SSE comment while nothing has come yet.
    keep_alive: Vec<Option<Duration>>,
}

/// What the operator's side of every worker is made of.
#[derive(Clone)]
pub struct Operations {
    /// For acts.
    pub director: Addr<Director>,
    /// For what operators see.
    pub monitor: Addr<Monitor>,
    /// The same once a second.
    pub ticks: Ticks,
    guesses: Arc<Guesses>,
    ended: Arc<EndedSessions>,
}

impl Operations {
    /// Starts the monitor beside a director.
    pub fn start(shared: &Arc<Shared>, director: &Addr<Director>) -> Self {
        let (monitor, ticks) = Monitor::new(Arc::clone(shared), director.clone());
        Self { director: director.clone(), monitor: monitor.start(), ticks, guesses: Arc::default(), ended: Arc::default() }
    }
}

impl Gateway {
    /// Prepares the handlers of one worker.
    pub fn new(slots: Rc<Slots>, operations: Operations) -> Self {
        let shared = Arc::clone(&slots.shared);
        let settings = &shared.settings;
        let shortest = |pool: &Arc<crate::settings::Pool>| {
            pool.members.iter().filter_map(|member| settings.backends[*member].keep_alive).min()
        };
        let keep_alive = settings.pools.iter().map(shortest).collect();
        let Operations { director, monitor, ticks, guesses, ended } = operations;
        Self { slots, shared, director, monitor, ticks, guesses, ended, keep_alive }
    }
}

/// The fixed routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(read("/health", health::health))
        .service(read("/ready", health::ready))
        .service(read("/metrics", metrics::show))
        .configure(admin::routes)
        // A scope is matched by its prefix; a pattern here would cost every request a search.
        .service(web::scope("/v1/models").service(read("", models::list)).service(read("/{id:.*}", models::one)))
        .default_service(web::to(front::serve));
}

/// A fixed path that is read, by GET or HEAD; other methods are told so.
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    only(path, reply::only_read).route(web::route().guard(guard::Any(guard::Get()).or(guard::Head())).to(handler))
}

/// A fixed path that takes GET; other methods are told so.
fn get(path: &str) -> Resource {
    only(path, reply::only_get)
}

/// A fixed path that takes POST.
fn act(path: &str) -> Resource {
    only(path, reply::only_post)
}

/// A fixed path with another answer to wrong methods.
fn only<F, Args>(path: &str, refusal: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).default_service(web::to(refusal))
}
