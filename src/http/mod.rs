//! The HTTP surface: the route table on one screen. Everything that is not fixed here goes to the front end, which
//! matches the configured routes.

mod admin;
mod auth;
mod body;
mod front;
mod health;
mod models;
mod passthrough;
mod reply;
mod routes;
mod span;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use actix_web::web;

use crate::actors::director::Director;
use crate::actors::slots::{Shared, Slots};

pub use span::{RequestSpan, request_id_header};

/// What the handlers of one worker work with.
pub struct Gateway {
    /// This worker's actors.
    pub slots: Rc<Slots>,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// For /admin.
    pub director: Addr<Director>,
    /// By pool index: silence before an SSE comment while nothing has come yet.
    keep_alive: Vec<Option<Duration>>,
    /// When the process started.
    pub started: tokio::time::Instant,
}

impl Gateway {
    /// Prepares the handlers of one worker.
    pub fn new(slots: Rc<Slots>, director: Addr<Director>, started: tokio::time::Instant) -> Self {
        let shared = Arc::clone(&slots.shared);
        let settings = &shared.settings;
        let shortest = |pool: &Arc<crate::settings::Pool>| {
            pool.members.iter().filter_map(|member| settings.backends[*member].keep_alive).min()
        };
        let keep_alive = settings.pools.iter().map(shortest).collect();
        Self { slots, shared, director, keep_alive, started }
    }
}

/// The fixed routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/health", web::get().to(health::health))
        .route("/ready", web::get().to(health::ready))
        .service(
            web::scope("/admin/api")
                .route("/state", web::get().to(admin::state))
                .route("/requests", web::get().to(admin::requests))
                .route("/requests/{id}", web::delete().to(admin::cancel))
                .route("/backends/{name}/restart", web::post().to(admin::restart))
                .default_service(web::to(reply::unknown_path)),
        )
        // A scope is matched by its prefix; a pattern here would cost every request a search.
        .service(web::scope("/v1/models").route("", web::get().to(models::list)).route("/{id:.*}", web::get().to(models::one)))
        .default_service(web::to(front::serve));
}
