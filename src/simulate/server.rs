//! The simulated provider behind a socket: `stagedoor simulate`.

use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::dev::Server;
use actix_web::http::header;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::Stream;

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
            .route("/{version}/models", web::get().to(models))
            .default_service(web::post().to(answer))
    });
    Ok(server.workers(1).tcp_nodelay(true).h1_allow_half_closed(false).disable_signals().listen(listener)?.run())
}

async fn models(simulator: web::Data<Simulator>) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(simulator.models())
}

async fn answer(request: HttpRequest, body: Bytes, simulator: web::Data<Simulator>) -> HttpResponse {
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let reply = match simulator.reply(Endpoint::of_path(request.path()), target, &body).await {
        Ok(reply) => reply,
        // Unwinding ends the connection's task without a word: to the client the connection broke.
        Err(Refused::Connect | Refused::Reset) => std::panic::resume_unwind(Box::new("simulated reset")),
    };
    let mut response = HttpResponse::build(reply.status);
    let mut length = None;
    for (name, value) in &reply.headers {
        if *name == header::CONTENT_LENGTH {
            length = value.to_str().ok().and_then(|text| text.parse().ok());
        } else {
            response.insert_header((name.clone(), value.clone()));
        }
    }
    if let Some(length) = length {
        response.no_chunking(length);
    }
    response.streaming(Steps(reply.body))
}

struct Steps(SimulatedBody);

impl Stream for Steps {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(cx).map(|step| step.map(|chunk| chunk.map_err(|failure| std::io::Error::other(failure.message))))
    }
}
