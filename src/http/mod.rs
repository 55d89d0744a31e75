//! The HTTP surface: the route table on one screen. Everything that is not fixed here goes to the front end, which
//! matches the configured routes.

mod acts;
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
mod stories;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use actix_web::{FromRequest, Handler, Resource, Responder, web};

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
        .service(get("/health").route(web::get().to(health::health)))
        .service(get("/ready").route(web::get().to(health::ready)))
        .service(
            web::scope("/admin/api")
                .service(get("/state").route(web::get().to(admin::state)))
                .service(get("/requests").route(web::get().to(stories::list)))
                .service(
                    only("/requests/{id}", reply::only_get_or_delete)
                        .route(web::get().to(stories::one))
                        .route(web::delete().to(acts::cancel)),
                )
                .service(act("/backends/{name}/restart").route(web::post().to(acts::restart)))
                .service(act("/backends/{name}/drain").route(web::post().to(acts::drain)))
                .service(act("/backends/{name}/resume").route(web::post().to(acts::resume)))
                .service(act("/backends/{name}/reset").route(web::post().to(acts::reset)))
                .service(act("/backends/{name}/weight").route(web::post().to(acts::weight)))
                .default_service(web::to(reply::unknown_path)),
        )
        // A scope is matched by its prefix; a pattern here would cost every request a search.
        .service(
            web::scope("/v1/models")
                .service(get("").route(web::get().to(models::list)))
                .service(get("/{id:.*}").route(web::get().to(models::one))),
        )
        .default_service(web::to(front::serve));
}

/// A fixed path that takes GET; other methods are told so.
fn get(path: &str) -> Resource {
    web::resource(path).default_service(web::to(reply::only_get))
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
