//! The simulated provider behind a socket: `stagedoor simulate`.

use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::json;

use super::{Refused, SimulatedBody, Simulator};
use crate::chat::Endpoint;
use crate::settings::Simulated;

/// Serves the simulated provider on a listener, with one worker.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(listener: TcpListener, settings: Simulated) -> std::io::Result<Server> {
    let numbers = Arc::default();
    let server = HttpServer::new(move || {
        let simulator = web::Data::new(Simulator::new(settings.clone(), Arc::clone(&numbers)));
        App::new()
            .app_data(simulator)
            .app_data(web::PayloadConfig::new(256 << 20))
            .route("/v1/models", web::get().to(models))
            .default_service(web::post().to(answer))
    });
    Ok(server.workers(1).tcp_nodelay(true).h1_allow_half_closed(false).disable_signals().listen(listener)?.run())
}

async fn models() -> HttpResponse {
    HttpResponse::Ok().json(
        json!({ "object": "list", "data": [{ "id": "simulated", "object": "model", "created": 0, "owned_by": "stagedoor" }] }),
    )
}

async fn answer(request: HttpRequest, body: Bytes, simulator: web::Data<Simulator>) -> HttpResponse {
    let reply = match simulator.reply(Endpoint::of_path(request.path()), &body).await {
        Ok(reply) => reply,
        // Unwinding ends the connection's task without a word: to the client the connection broke.
        Err(Refused::Connect | Refused::Reset) => std::panic::resume_unwind(Box::new("simulated reset")),
    };
    let mut response = HttpResponse::build(StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    response.insert_header(("x-stagedoor-simulated", "true"));
    response.insert_header((header::CONTENT_TYPE, if reply.is_stream { "text/event-stream" } else { "application/json" }));
    if let Some(after) = reply.retry_after {
        response.insert_header((header::RETRY_AFTER, format!("{}", after.as_secs_f64())));
    }
    match reply.length {
        Some(length) => response.no_chunking(length).streaming(Steps(reply.body)),
        None => response.streaming(Steps(reply.body)),
    }
}

struct Steps(SimulatedBody);

impl Stream for Steps {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(cx).map(|step| step.map(|chunk| chunk.map_err(|failure| std::io::Error::other(failure.message))))
    }
}
