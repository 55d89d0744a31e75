//! The HTTP client of one provider generation: its connections, and addresses worked out once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::TryFrom;
use std::future::{Future, poll_fn, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::Duration;

use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_http::{Method, Payload, RequestHead, RequestHeadType, ResponseHead, StatusCode, Uri, Version, uri::Scheme};
use actix_service::Service as _;
use awc::error::SendRequestError;
use awc::{Client, Connect, Connector};
use futures_util::future::{Either, LocalBoxFuture};
use rustls::ClientConfig;

use super::dial::Dialer;
use super::large::{LARGE, in_one_poll, with_length};
use super::send_body::SendBody;
use super::transport::{Address, HttpReply, Incoming, Outgoing, OutgoingBody, SendFailure};
use super::transport_errors::{name_error, unsendable};
use crate::chat::{Endpoint, Failure, FailureClass};
use crate::settings::Backend;

/// Addresses kept at most: models that become part of an address come from clients.
const KNOWN_LIMIT: usize = 256;
/// How long an idle connection is kept.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Sends a request over the connections of one connector: its head, headers that go over the head's own, and its body.
///
/// awc's `Client` does the same, but wraps request and reply in larger things of its own on the way.
type Connections = Box<dyn Fn(Rc<RequestHead>, Option<HeaderMap>, SendBody) -> Sending>;
type Sending = LocalBoxFuture<'static, Result<(ResponseHead, Payload), SendRequestError>>;

/// Connections that share their load. With HTTP/2 it is one connection, and awc must never be made to wait for a place on
/// it: whoever leaves while waiting ends that connection for all who ride on it, and so does its age. So there are as many
/// lanes as it takes.
struct Lane {
    connections: Connections,
    /// Requests and replies under way.
    riding: Cell<usize>,
}

impl Lane {
    fn open(backend: &Backend, tls: &Arc<ClientConfig>, open: &Arc<AtomicU64>) -> Rc<Self> {
        Rc::new(Self { connections: connections(backend, tls, open, KEEP_ALIVE), riding: Cell::new(0) })
    }
}

/// A request's place on a lane, which is kept open by it.
pub(super) struct Ride(Rc<Lane>);

impl Ride {
    fn on(lane: Rc<Lane>) -> Self {
        lane.riding.set(lane.riding.get() + 1);
        Self(lane)
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.0.riding.set(self.0.riding.get() - 1);
    }
}

/// What has become of the connections since they were last looked at.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Use {
    /// There are none.
    #[default]
    Unopened,
    /// Something was sent.
    Busy,
    /// Nothing was sent.
    Idle,
}

/// The client of one provider generation.
pub struct HttpClient {
    /// Keep connections for the next request; replaced when they may have served as many as they should.
    lanes: RefCell<Vec<Rc<Lane>>>,
    /// Makes a connection for each request.
    fresh: Connections,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// By endpoint, where the address is always the same.
    fixed: RefCell<[Option<Rc<RequestHead>>; 4]>,
    /// By endpoint and model, where the model is part of the address.
    by_model: RefCell<HashMap<(Endpoint, bool, String), Rc<RequestHead>>>,
    sent: Cell<u64>,
    state: Cell<Use>,
    backend: Arc<Backend>,
    tls: Arc<ClientConfig>,
    /// Connections that are open.
    open: Arc<AtomicU64>,
}

impl HttpClient {
    /// Makes the client; `headers` go with every request,
    /// its open connections are counted in `open`.
    pub fn new(backend: &Arc<Backend>, tls: &Arc<ClientConfig>, headers: Vec<(String, String)>, open: &Arc<AtomicU64>) -> Self {
        let pairs = headers.into_iter().filter_map(|(name, value)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        });
        let mut headers: Vec<_> = pairs.collect();
        headers.push((header::USER_AGENT, HeaderValue::from_static(concat!("stagedoor/", env!("CARGO_PKG_VERSION")))));
        headers.push((header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
        let tls = match backend.network.shared {
            Some(_) => Arc::clone(tls),
            None => {
                let mut alone = ClientConfig::clone(tls);
                alone.alpn_protocols = vec![b"http/1.1".to_vec()];
                Arc::new(alone)
            }
        };
        Self {
            lanes: RefCell::new(vec![Lane::open(backend, &tls, open)]),
            fresh: connections(backend, &tls, open, Duration::ZERO),
            headers,
            fixed: RefCell::default(),
            by_model: RefCell::default(),
            sent: Cell::new(0),
            state: Cell::default(),
            backend: Arc::clone(backend),
            tls,
            open: Arc::clone(open),
        }
    }

    /// The connections for the next request.
    fn lane(&self) -> Rc<Lane> {
        let Some(most) = self.backend.network.shared else { return Rc::clone(&self.lanes.borrow()[0]) };
        let mut lanes = self.lanes.borrow_mut();
        if let Some(lane) = lanes.iter().find(|lane| lane.riding.get() < most) {
            return Rc::clone(lane);
        }
        lanes.push(Lane::open(&self.backend, &self.tls, &self.open));
        Rc::clone(&lanes[lanes.len() - 1])
    }

    /// A request was not answered in time. A shared connection may be dead without having said so: the next requests go over
    /// new ones; what rides on the old ones may finish.
    pub fn doubt_connections(&self) {
        if self.backend.network.shared.is_some() {
            self.begin_anew();
        }
    }

    /// Closes the connections if nothing was sent since the last time this was called; what rides on them may finish. Else
    /// those that a provider has closed would stay half open until the next request, which finds them out.
    pub fn close_idle(&self) {
        match self.state.get() {
            Use::Unopened => {}
            Use::Busy => self.state.set(Use::Idle),
            Use::Idle => {
                self.begin_anew();
                self.state.set(Use::Unopened);
            }
        }
    }

    /// The next requests go over new connections; what rides on the old ones keeps them until its end.
    fn begin_anew(&self) {
        *self.lanes.borrow_mut() = vec![Lane::open(&self.backend, &self.tls, &self.open)];
    }

    /// Sends a request and awaits the reply's head. The future does not hold the request: it is kept small.
    ///
    /// # Errors
    /// A transport failure, named by what it means for a retry.
    pub fn send(&self, request: Outgoing<'_>) -> impl Future<Output = Result<Incoming, SendFailure>> + use<'_> {
        let is_head = request.method == Method::HEAD;
        match self.begin(request) {
            Ok((sending, ride)) => Either::Left(self.finish(sending, ride, is_head)),
            Err(failure) => Either::Right(ready(Err(failure))),
        }
    }

    fn begin(&self, request: Outgoing<'_>) -> Result<(Sending, Option<Ride>), SendFailure> {
        self.replace_connections();
        let (head, extra) = match &request.url {
            Address::Known { model, stream, make } if request.pooled => {
                (self.known(request.endpoint, model.map(|model| (model, *stream)), *make)?, request.headers)
            }
            Address::Known { make, .. } => (self.freeze(&request.method, &make(), &json())?, request.headers),
            Address::Own(url) => (self.freeze(&request.method, url, request.headers)?, &[][..]),
        };
        let extra = || (!extra.is_empty()).then(|| extra.iter().cloned().collect::<HeaderMap>());
        let (head, extra, body) = match request.body {
            OutgoingBody::Full(body) if body.len() >= LARGE && head.uri.scheme() == Some(&Scheme::HTTP) => {
                (with_length(&head, extra(), body.len()), None, SendBody::large(body))
            }
            OutgoingBody::Full(body) => (head, extra(), SendBody::Whole(body)),
            OutgoingBody::Stream { length, bytes } => (head, extra(), SendBody::Stream { length, bytes }),
        };
        Ok(match request.pooled {
            true => {
                self.state.set(Use::Busy);
                let lane = self.lane();
                ((lane.connections)(head, extra, body), Some(Ride::on(lane)))
            }
            false => ((self.fresh)(head, extra, body), None),
        })
    }

    async fn finish(&self, mut sending: Sending, ride: Option<Ride>, is_head: bool) -> Result<Incoming, SendFailure> {
        let step = poll_fn(|cx| in_one_poll(sending.as_mut(), cx).map_or(Poll::Ready(None), |step| step.map(Some)));
        let reply = step.await.ok_or_else(|| unsendable("the request's body could not be sent"))?;
        let (head, payload) = reply.map_err(|error| name_error(&error, "the provider", self.backend.timeouts.connect))?;
        if !is_head && is_unframed(&head) {
            let failure = Failure::new(FailureClass::Malformed, "the provider's reply does not say where its body ends");
            return Err(SendFailure { failure, sent: true });
        }
        Ok(Incoming::Http(Box::new(HttpReply { head, payload, ride })))
    }

    /// Starts with new connections after as many requests as one connection may serve, so that none serves more.
    fn replace_connections(&self) {
        let Some(most) = self.backend.network.max_requests else { return };
        let sent = self.sent.get() + 1;
        self.sent.set(sent);
        if sent > 1 && sent % most == 1 % most {
            self.begin_anew();
        }
    }

    fn known(
        &self,
        endpoint: Endpoint,
        model: Option<(&str, bool)>,
        make: &dyn Fn() -> String,
    ) -> Result<Rc<RequestHead>, SendFailure> {
        let fresh = || self.freeze(&Method::POST, &make(), &json());
        let Some((model, stream)) = model else {
            let mut fixed = self.fixed.borrow_mut();
            let place = &mut fixed[endpoint as usize];
            return match place {
                Some(head) => Ok(Rc::clone(head)),
                None => fresh().inspect(|head| *place = Some(Rc::clone(head))),
            };
        };
        let mut by_model = self.by_model.borrow_mut();
        let key = (endpoint, stream, model.to_owned());
        if let Some(head) = by_model.get(&key) {
            return Ok(Rc::clone(head));
        }
        let head = fresh()?;
        if by_model.len() < KNOWN_LIMIT {
            by_model.insert(key, Rc::clone(&head));
        }
        Ok(head)
    }

    /// The head of a request. An empty list of headers is one for JSON.
    fn freeze(&self, method: &Method, url: &str, headers: &[(HeaderName, HeaderValue)]) -> Result<Rc<RequestHead>, SendFailure> {
        let invalid = || unsendable("the address for this request is not valid");
        let uri = Uri::try_from(url).map_err(|_| invalid())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(invalid());
        }
        let json = json();
        let own = if headers.is_empty() { &json } else { headers };
        let mut head = RequestHead::default();
        head.method = method.clone();
        // No larger than it must be: it is read for every request, and each backend has its own.
        head.headers = HeaderMap::with_capacity(1 + own.len() + self.headers.len());
        head.headers.insert(header::HOST, host_header(&uri).ok_or_else(invalid)?);
        for (name, value) in own.iter().chain(&self.headers) {
            head.headers.insert(name.clone(), value.clone());
        }
        head.uri = uri;
        Ok(Rc::new(head))
    }
}

/// Whether actix-http has taken a reply for one without a body that may well have one: see [`super::framing`].
fn is_unframed(head: &ResponseHead) -> bool {
    head.version == Version::HTTP_11
        && !head.headers.contains_key(header::CONTENT_LENGTH)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The address's host as HTTP/1 names it. Left to itself awc works it out anew, and copies it, for every request.
fn host_header(uri: &Uri) -> Option<HeaderValue> {
    let host = uri.host().filter(|host| !host.is_empty())?;
    match uri.port_u16() {
        None | Some(80 | 443) => HeaderValue::try_from(host).ok(),
        Some(port) => HeaderValue::try_from(format!("{host}:{port}")).ok(),
    }
}

fn json() -> [(HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
}

fn connections(backend: &Backend, tls: &Arc<ClientConfig>, open: &Arc<AtomicU64>, keep_alive: Duration) -> Connections {
    let dialer = Dialer::new(backend.network.proxy.clone()).counted_in(open);
    let connector = connector(dialer, backend, tls, keep_alive).finish();
    Box::new(move |head, extra, body| {
        let connecting = connector.call(Connect { uri: head.uri.clone(), addr: None });
        Box::pin(async move { connecting.await?.send_request(RequestHeadType::Rc(head, extra), body).await })
    })
}

fn connector(dialer: Dialer, backend: &Backend, tls: &Arc<ClientConfig>, keep_alive: Duration) -> Connector<Dialer> {
    Connector::new()
        .connector(dialer)
        .rustls_0_23(Arc::clone(tls))
        // Permits bound what is in flight; awc's own limit would block silently.
        .limit(0)
        .timeout(backend.timeouts.connect)
        .handshake_timeout(backend.timeouts.connect)
        .conn_keep_alive(keep_alive)
        .conn_lifetime(backend.network.max_age)
        // Clients that do not read must not use up the connection's window for the others.
        .initial_window_size(WINDOW)
        .initial_connection_window_size(connection_window(backend.network.shared.unwrap_or(1)))
}

/// Bytes of a stream that a provider may send ahead, with HTTP/2.
const WINDOW: u32 = 128 << 10;

/// Bytes of all streams of a connection: as many as they may have together, within what the protocol allows.
fn connection_window(streams: usize) -> u32 {
    u32::try_from(streams)
        .ok()
        .and_then(|streams| streams.checked_mul(WINDOW))
        .map_or(i32::MAX.unsigned_abs(), |sum| sum.clamp(2 << 20, i32::MAX.unsigned_abs()))
}

/// A client under a backend's limits; the dialer says by which way.
pub(super) fn client(dialer: Dialer, backend: &Backend, tls: &Arc<ClientConfig>, keep_alive: Duration) -> Client {
    Client::builder()
        .connector(connector(dialer, backend, tls, keep_alive))
        .disable_timeout()
        .disable_redirects()
        .no_default_headers()
        .finish()
}

/// TLS settings: the system's roots and extra certificates, HTTP/2 where offered.
///
/// # Errors
/// Text of what is wrong with the extra certificates.
pub fn tls_config(roots: &rustls::RootCertStore, extra_pem: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = roots.clone();
    for certificate in extra_pem.map(CertificateDer::pem_slice_iter).into_iter().flatten() {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The system's trusted certificates.
pub fn system_roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a system certificate cannot be read");
    }
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "system certificates loaded");
    roots
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers whatever comes and leaves its connections open.
    async fn patient() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/chat/completions", listener.local_addr().unwrap());
        actix_rt::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                actix_rt::spawn(async move {
                    let mut buffer = [0; 4_096];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
                    }
                });
            }
        });
        url
    }

    async fn finish(mut reply: Incoming) {
        while let Some(chunk) = poll_fn(|cx| reply.poll_next(cx)).await {
            chunk.unwrap();
        }
    }

    #[actix_rt::test]
    async fn idle_connections_are_closed_and_those_in_use_are_not() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = patient().await;
        let document = "backends: [{ name: b, type: openai, config: { apiKey: k } }]";
        let settings = crate::settings::from_text("test", document, &std::collections::BTreeMap::new()).unwrap();
        let tls = tls_config(&rustls::RootCertStore::empty(), None).unwrap();
        let open = Arc::default();
        let client = HttpClient::new(&settings.backends[0], &tls, Vec::new(), &open);
        let send = async || {
            let request = Outgoing {
                endpoint: Endpoint::Chat,
                method: Method::POST,
                url: Address::Known { model: None, stream: false, make: &|| url.clone() },
                headers: &[],
                body: OutgoingBody::Full(bytes::Bytes::from_static(b"{}")),
                pooled: true,
            };
            client.send(request).await.unwrap_or_else(|failure| panic!("{failure:?}"))
        };
        let riding = send().await;
        (0..3).for_each(|_| client.close_idle());
        assert_eq!(open.load(Ordering::SeqCst), 1, "its body has not been read yet");
        finish(riding).await;
        client.close_idle();
        let closed = async {
            while open.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("it is closed");
        for _ in 0..2 {
            finish(send().await).await;
            client.close_idle();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(open.load(Ordering::SeqCst), 1, "it has been used since");
    }
}
