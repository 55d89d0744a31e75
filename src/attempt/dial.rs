//! How a connection is made: directly or through a proxy's CONNECT tunnel, with Nagle's algorithm off.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::Uri;
use actix_rt::net::{ActixStream, Ready};
use actix_service::Service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use base64::Engine as _;
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use url::Url;

use super::framing::adapt;
use super::guard::{Guard, NotPublic};
use super::large::take_left;

/// Longest reply head of a proxy in bytes.
const PROXY_HEAD: usize = 8 << 10;

/// How long one address may be silent before the next is tried as well.
const STAGGER: Duration = Duration::from_millis(250);
/// A silent connection is probed after so long, so often, and given up after so many probes.
const IDLE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// A connection on which nothing that was sent is acknowledged for so long is given up.
#[cfg(target_os = "linux")]
const UNHEARD: Duration = Duration::from_secs(30);

/// Makes connections for a client.
#[derive(Clone)]
pub(super) struct Dialer {
    proxy: Option<Url>,
    /// Connections that are open.
    open: Arc<AtomicU64>,
    /// Decides about addresses, where clients name the hosts.
    guard: Option<Rc<Guard>>,
}

impl Dialer {
    /// Dials through the proxy, if there is one.
    pub(super) fn new(proxy: Option<Url>) -> Self {
        Self { proxy, open: Arc::default(), guard: None }
    }

    /// Counts its open connections there.
    pub(super) fn counted_in(self, open: &Arc<AtomicU64>) -> Self {
        Self { open: Arc::clone(open), ..self }
    }

    /// Dials only what the guard admits. A name is resolved once, here: what was checked is what is dialled, by a proxy too.
    pub(super) fn guarded(proxy: Option<Url>, guard: Rc<Guard>) -> Self {
        Self { proxy, open: Arc::default(), guard: Some(guard) }
    }
}

impl Service<ConnectInfo<Uri>> for Dialer {
    type Response = Connection<Uri, Socket>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, target: ConnectInfo<Uri>) -> Self::Future {
        let Self { proxy, open, guard } = self.clone();
        Box::pin(async move {
            let uri = target.request().clone();
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = target.port();
            let stream = match (&proxy, &guard) {
                (None, None) => {
                    let addresses = resolve(&host, port).await?;
                    connect(&addresses).await.map_err(ConnectError::Io)?
                }
                (None, Some(guard)) => {
                    let addresses = resolve_guarded(guard, &host, port).await?;
                    connect(&addresses).await.map_err(ConnectError::Io)?
                }
                (Some(proxy), None) => tunnel(proxy, &host, port).await.map_err(ConnectError::Io)?,
                (Some(proxy), Some(guard)) => {
                    let addresses = resolve_guarded(guard, &host, port).await?;
                    tunnel_to_any(proxy, &addresses).await?
                }
            };
            stream.set_nodelay(true).map_err(ConnectError::Io)?;
            watch_over(&stream).map_err(ConnectError::Io)?;
            Ok(Connection::new(uri, Socket::new(stream, Counted::one_of(&open))))
        })
    }
}

/// A connection to the first of these addresses that answers. The next is tried when one fails, and beside one that is
/// silent: a host with a dead address is not dead (RFC 8305).
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut rest = alternating(addresses).into_iter().peekable();
    let mut trying = FuturesUnordered::new();
    let mut result = Err(io::ErrorKind::NotFound.into());
    loop {
        match rest.next() {
            Some(address) => trying.push(TcpStream::connect(address)),
            None if trying.is_empty() => return result,
            None => {}
        }
        tokio::select! {
            Some(tried) = trying.next() => {
                result = tried;
                if result.is_ok() {
                    return result;
                }
            }
            () = tokio::time::sleep(STAGGER), if rest.peek().is_some() => {}
        }
    }
}

/// The addresses in their order, the protocols by turns.
fn alternating(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first = |address: &&SocketAddr| addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4());
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().partition(is_first);
    let most = first.len().max(second.len());
    (0..most).flat_map(|place| [first.get(place), second.get(place)]).flatten().copied().collect()
}

/// Lets the kernel end a connection whose other end is gone without a word, as behind a router that has forgotten it.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new().with_time(IDLE).with_interval(PROBE).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNHEARD))?;
    Ok(())
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.map_err(|error| ConnectError::Resolver(Box::new(error)))?.collect())
}

async fn resolve_guarded(guard: &Guard, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let addresses = resolve(host, port).await?;
    if guard.admits(host, port, &addresses) { Ok(addresses) } else { Err(ConnectError::Io(io::Error::other(NotPublic))) }
}

thread_local! {
    static SAW_END: Cell<bool> = const { Cell::new(false) };
}

/// Runs a read and says whether a socket of this thread came to its end meanwhile.
///
/// awc reports a chunked body that was cut off as a clean end; only the socket below knows better, and it is read
/// within the poll of the body.
pub(crate) fn watch_end<T>(read: impl FnOnce() -> T) -> (T, bool) {
    SAW_END.set(false);
    let result = read();
    (result, SAW_END.get())
}

/// A TCP connection that tells of its end, and sends what a large body has left to it.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    /// Goes out behind what is being written.
    behind: Bytes,
    /// Goes out before anything else.
    due: Bytes,
    /// Whether something was written since the last read: what comes next is the beginning of a reply.
    awaits_reply: bool,
    #[expect(dead_code, reason = "counts while it lives")]
    counted: Counted,
}

impl Socket {
    fn new(stream: TcpStream, counted: Counted) -> Self {
        Self { stream, behind: Bytes::new(), due: Bytes::new(), awaits_reply: false, counted }
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.due.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.due))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.due.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Counts as open until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicU64>);

impl Counted {
    /// One more.
    pub fn one_of(open: &Arc<AtomicU64>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            if read == 0 && buf.remaining() > 0 {
                SAW_END.set(true);
            }
            if read == 0 || !self.awaits_reply {
                return Poll::Ready(Ok(()));
            }
            let interim = adapt(&mut buf.filled_mut()[before..]);
            if interim > 0 {
                buf.filled_mut().copy_within(before + interim.., before);
                buf.set_filled(before + read - interim);
            }
            if interim < read {
                self.awaits_reply = false;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(cx))?;
        self.awaits_reply = true;
        let left = take_left();
        if !left.is_empty() {
            self.behind = left;
        }
        if self.behind.is_empty() {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        let Self { stream, behind, .. } = &mut *self;
        let written = ready!(Pin::new(stream).poll_write_vectored(cx, &[IoSlice::new(buf), IoSlice::new(behind)]))?;
        if written < buf.len() {
            return Poll::Ready(Ok(written));
        }
        self.due = self.behind.split_off(written - buf.len());
        self.behind.clear();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_due(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    // For TLS, which has nothing behind it.
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl ActixStream for Socket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_read_ready(cx).map(|ready| ready.map(|()| Ready::READABLE))
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_write_ready(cx).map(|ready| ready.map(|()| Ready::WRITABLE))
    }
}

/// A proxy does not let a connection through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyFailure {
    /// It says so.
    #[error("the proxy refused the tunnel with status {0}")]
    Refused(String),
    /// It is not there.
    #[error("the proxy cannot be reached: {0}")]
    Unreachable(String),
}

/// A tunnel to the first of these addresses that the proxy reaches.
async fn tunnel_to_any(proxy: &Url, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut result = Err(ConnectError::NoRecords);
    for address in addresses {
        result = tunnel(proxy, &address.ip().to_string(), address.port()).await.map_err(ConnectError::Io);
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn tunnel(proxy: &Url, host: &str, port: u16) -> std::io::Result<TcpStream> {
    let proxy_host = proxy.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let unreachable = |error: &io::Error| {
        // Names that cannot be resolved have no kind of their own.
        let is_known = error.raw_os_error().is_some();
        let why = if is_known { error.kind().to_string() } else { "its name cannot be resolved".to_owned() };
        io::Error::other(ProxyFailure::Unreachable(why))
    };
    let target_of_proxy = (proxy_host, proxy.port_or_known_default().unwrap_or(80));
    let mut stream = TcpStream::connect(target_of_proxy).await.map_err(|error| unreachable(&error))?;
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n");
    if !proxy.username().is_empty() {
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let pair = format!("{}:{}", decode(proxy.username()), decode(proxy.password().unwrap_or_default()));
        let credentials = base64::engine::general_purpose::STANDARD.encode(pair);
        request.push_str(&format!("proxy-authorization: Basic {credentials}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;

    // Byte by byte: what follows the head belongs to the tunnel.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD {
            return Err(std::io::Error::other("the proxy's reply has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let status = head.split(|byte| *byte == b' ').nth(1);
    if status != Some(b"200") {
        let status = String::from_utf8_lossy(status.unwrap_or_default()).into_owned();
        return Err(std::io::Error::other(ProxyFailure::Refused(status)));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_protocols_take_turns() {
        let all: Vec<SocketAddr> = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"].map(|text| text.parse().unwrap()).into();
        let order: Vec<String> = alternating(&all).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[tokio::test]
    async fn a_dead_or_silent_address_does_not_keep_from_the_next() {
        let well = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // Its queue is full: it answers no further connection.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let address = silent.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            filling.push(stream);
        }
        let found = connect(&[refusing, address, well.local_addr().unwrap()]).await.unwrap();
        assert_eq!(found.peer_addr().unwrap(), well.local_addr().unwrap());
        assert!(connect(&[refusing, refusing]).await.is_err());
        assert!(connect(&[]).await.is_err());
    }
}
