//! Application: binds the socket, starts one shard per worker, drains on shutdown.

use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpServer};
use tokio::net::TcpSocket;
use tokio::time::Instant;
use tracing_actix_web::TracingLogger;

use crate::actors::director::Director;
use crate::actors::slots::Shared;
use crate::actors::{Cancel, CancelRequest};
use crate::attempt::{Counted, Cut};
use crate::http::{Gateway, Operations, RequestSpan, finish_reply, routes};
use crate::settings::{Backend, BackendType, Settings};
use crate::shard::Shard;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 2_048;
/// How long connections may take to send what is left of their last reply.
const FLUSH: Duration = Duration::from_millis(250);
/// How long ended streams may take to tell their clients.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often a drain looks whether the last request has ended.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// A gateway that listens.
pub struct Application {
    server: Server,
    shared: Arc<Shared>,
    director: Addr<Director>,
    address: SocketAddr,
}

impl Application {
    /// Binds and starts the workers; must be called within an actix system.
    ///
    /// # Errors
    /// An address that cannot be bound, or certificates that cannot be used.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        // The process may have installed one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = Arc::new(settings);
        announce(&settings);
        let shared = Shared::new(Arc::clone(&settings)).map_err(anyhow::Error::msg)?;
        let listener = listen(&settings)?;
        let address = listener.local_addr()?;
        let director = Director::new(Arc::clone(&shared)).start();
        let operations = Operations::start(&shared, &director);
        let next_worker = Arc::new(AtomicUsize::new(0));
        let server = &settings.server;
        let workers =
            if server.workers == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { server.workers };

        shared.workers.store(workers, Ordering::Relaxed);
        let factory_shared = Arc::clone(&shared);
        let connections = Arc::clone(&shared.connections);
        let factory_director = director.clone();
        let server = HttpServer::new(move || {
            let worker = next_worker.fetch_add(1, Ordering::Relaxed);
            let slots = Shard::start_worker(&factory_shared, worker, &factory_director);
            let gateway = Rc::new(Gateway::new(slots, operations.clone()));
            App::new().app_data(gateway).configure(routes).wrap_fn(finish_reply).wrap(TracingLogger::<RequestSpan>::new())
        })
        .on_connect(move |_, connection| {
            connection.insert(Counted::one_of(&connections));
        })
        .workers(workers)
        .max_connections(server.max_connections)
        .keep_alive(Duration::from_secs(75))
        .tcp_nodelay(true)
        // A client's end of file ends its request: without this a provider would generate for nobody.
        .h1_allow_half_closed(false)
        .shutdown_timeout(server.drain_timeout.as_secs() + 5)
        .disable_signals()
        .listen(listener)?
        .run();
        tracing::info!(%address, workers, configuration = %settings.source, "listening");
        Ok(Self { server, shared, director, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper { handle: self.server.handle(), shared: Arc::clone(&self.shared), director: self.director.clone() }
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// The server's own failure.
    pub async fn serve(self) -> std::io::Result<()> {
        self.server.await
    }
}

/// Ends an application in order.
#[derive(Clone)]
pub struct Stopper {
    handle: ServerHandle,
    shared: Arc<Shared>,
    director: Addr<Director>,
}

impl Stopper {
    /// Drains: not ready at once, no new connections after the grace, then waits until every request has ended or
    /// the drain timeout has passed. Returns how many requests were cut.
    pub async fn drain(&self) -> u64 {
        let server = &self.shared.settings.server;
        let ends = Instant::now() + server.drain_timeout;
        self.shared.draining.store(true, Ordering::Relaxed);
        tracing::info!(open_requests = self.open(), "draining");
        tokio::time::sleep(server.drain_grace.min(server.drain_timeout)).await;
        // Closes the listener at once; ready when every connection has ended.
        let closed = self.handle.stop(true);
        while self.open() > 0 && Instant::now() < ends {
            tokio::time::sleep(DRAIN_TICK).await;
        }
        let cut = self.cut().await;
        // The last bytes of a reply may still be on their way out: busy connections close behind them, idle ones would
        // stay for their keep-alive.
        let flushed = tokio::time::timeout(FLUSH.min(ends.saturating_duration_since(Instant::now())), closed);
        let _ = flushed.await;
        tracing::info!(cut, "drained");
        cut
    }

    /// Ends the requests that are left and tells their clients why, as far as they listen; returns how many there were.
    pub async fn cut(&self) -> u64 {
        let open = self.open();
        if open > 0 {
            let cancel = Cancel { id: None, backend: None, cut: Cut::Shutdown };
            let _ = self.director.send(CancelRequest(cancel)).await;
            let last = Instant::now() + LAST_WORDS;
            while self.open() > 0 && Instant::now() < last {
                tokio::time::sleep(DRAIN_TICK).await;
            }
        }
        open
    }

    /// Ends at once.
    pub async fn stop(&self) {
        self.handle.stop(false).await;
    }

    fn open(&self) -> u64 {
        self.shared.open_requests.load(Ordering::Relaxed)
    }
}

fn listen(settings: &Settings) -> anyhow::Result<std::net::TcpListener> {
    let (host, port) = (settings.server.host.as_str(), settings.server.port);
    let fail = |error: std::io::Error| anyhow::anyhow!("cannot listen on {host}:{port} (server.host, server.port): {error}");
    let address = (host, port)
        .to_socket_addrs()
        .map_err(fail)?
        // One address: `localhost` means the older protocol where it has two.
        .min_by_key(SocketAddr::is_ipv6)
        .ok_or_else(|| anyhow::anyhow!("server.host: {host} has no address"))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(fail)?;
    socket.set_reuseaddr(true).map_err(fail)?;
    socket.bind(address).map_err(fail)?;
    socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std).map_err(fail)
}

fn announce(settings: &Settings) {
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    let simulated: Vec<&str> = settings.backends.iter().filter(|b| is_simulated(b)).map(|b| &*b.name).collect();
    if !simulated.is_empty() {
        tracing::warn!(backends = simulated.join(", "), "answers of these backends are simulated");
    }
    if settings.admin_token.is_none() && !settings.is_loopback() {
        tracing::warn!("no admin token is set: /admin answers only requests from this machine");
    }
}

fn is_simulated(backend: &Backend) -> bool {
    backend.kind == BackendType::Simulated
}
