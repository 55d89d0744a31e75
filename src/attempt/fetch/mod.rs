//! Images by address, for dialects that cannot pass an address on. The client names the address, so nothing about it is
//! trusted: [`Guard`](super::guard::Guard) decides where connections go, and every limit is the gateway's own.

mod sniff;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix_http::Uri;
use actix_http::header::{self, HeaderMap};
use awc::error::{ConnectError, SendRequestError};
use awc::{Client, ClientResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::call::BodyHold;
use super::dial::Dialer;
use super::guard::{Guard, NotPublic};
use super::http_client::client;
use super::transport::Incoming;
use super::transport_errors::name_error;
use crate::chat::{Failure, FailureClass};
use crate::dialect::Image;
use crate::settings::{Backend, ImageUrls, format_size};

/// Bytes of one image, and of all images of a request together.
const LIMIT: u64 = 20 << 20;
/// Images of a request.
const MOST: usize = 100;
/// Images fetched at once for a request.
const AT_ONCE: usize = 4;
/// Time for one image.
const TIME: Duration = Duration::from_secs(20);
/// Redirects that are followed.
const REDIRECTS: usize = 3;
/// Longest host name that is repeated.
const HOST_LIMIT: usize = 100;

/// Fetches images for one provider generation, on its thread.
pub struct Fetcher {
    client: Client,
    guard: Rc<Guard>,
    connect: Duration,
    held: Arc<AtomicU64>,
    held_limit: u64,
}

/// The images of a request by their addresses. Their bytes count among those of request bodies until it is dropped.
#[derive(Debug, Default)]
pub struct Images {
    by_url: HashMap<String, Image>,
    _hold: Option<BodyHold>,
}

impl Deref for Images {
    type Target = HashMap<String, Image>;

    fn deref(&self) -> &Self::Target {
        &self.by_url
    }
}

/// What the images of one request may still bring.
struct Allowance {
    left: u64,
    hold: BodyHold,
    /// Bytes that the process may hold.
    limit: u64,
}

impl Fetcher {
    /// The fetcher of a backend; `None` for one that takes addresses. `held` and `held_limit` are those of request bodies.
    pub fn of(backend: &Backend, tls: &Arc<ClientConfig>, held: &Arc<AtomicU64>, held_limit: u64) -> Option<Self> {
        let ImageUrls::Fetch { hosts } = &backend.image_urls else { return None };
        let guard = Rc::new(Guard::new(hosts.clone()));
        let dialer = Dialer::guarded(backend.network.proxy.clone(), Rc::clone(&guard));
        // A connection that is kept would be used without a look at its address.
        let client = client(dialer, backend, tls, Duration::ZERO);
        Some(Self { client, guard, connect: backend.timeouts.connect, held: Arc::clone(held), held_limit })
    }

    /// Fetches each address once, a few at a time, until then. Dropping the future ends what is under way.
    ///
    /// # Errors
    /// A failure of class `Unsupported` that names the first image which cannot be had, and why; of class `Overloaded` when
    /// the gateway holds as many bytes as it may.
    pub async fn fetch_all<'a>(&self, urls: impl IntoIterator<Item = &'a str>, ends: Instant) -> Result<Images, Failure> {
        let urls: HashSet<&str> = urls.into_iter().collect();
        if urls.len() > MOST {
            return Err(refused(None, &format!("a request may name at most {MOST}")));
        }
        let hold = BodyHold::new(&self.held);
        let allowance = RefCell::new(Allowance { left: LIMIT, hold, limit: self.held_limit });
        let fetching = urls.into_iter().map(|url| {
            let allowance = &allowance;
            async move { Ok::<_, Failure>((url.to_owned(), self.fetch(url, ends, allowance).await?)) }
        });
        let by_url = futures_util::stream::iter(fetching).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(Images { by_url, _hold: Some(allowance.into_inner().hold) })
    }

    async fn fetch(&self, url: &str, ends: Instant, allowance: &RefCell<Allowance>) -> Result<Image, Failure> {
        let first = Url::parse(url).map_err(|_| refused(None, "its address is not a URL"))?;
        let host = first.host_str().filter(|host| host.len() <= HOST_LIMIT).map(str::to_owned);
        let ends = ends.min(Instant::now() + TIME);
        match timeout_at(ends, self.follow(first, allowance)).await {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(Trouble::Refused(reason))) => Err(refused(host.as_deref(), &reason)),
            Ok(Err(Trouble::Full)) => {
                Err(Failure::new(FailureClass::Overloaded, "the gateway holds as many bytes of requests as it may"))
            }
            Err(_) => Err(refused(host.as_deref(), "it did not come in time")),
        }
    }

    /// Fetches an address and follows its redirects, each checked like the first.
    async fn follow(&self, first: Url, allowance: &RefCell<Allowance>) -> Result<Image, Trouble> {
        let mut url = first;
        for hop in 0..=REDIRECTS {
            let result = match self.check(&url) {
                Ok(()) => self.get(&url).await,
                Err(reason) => Err(reason),
            };
            let response = match result {
                Ok(response) => response,
                // Where a redirect leads is not the client's to know.
                Err(Unreached::Forbidden(_)) if hop > 0 => {
                    return Err("it is redirected to an address that may not be fetched".into());
                }
                Err(Unreached::Forbidden(reason)) => return Err(reason.into()),
                Err(Unreached::Failed(reason)) => return Err(Trouble::Refused(reason.into())),
            };
            match response.status().as_u16() {
                200..=299 => return read(response, allowance).await,
                301 | 302 | 303 | 307 | 308 => url = target(&url, response.headers())?,
                status => return Err(Trouble::Refused(format!("its host answered with status {status}").into())),
            }
        }
        Err("it is redirected too often".into())
    }

    fn check(&self, url: &Url) -> Result<(), Unreached> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_listed = url.port_or_known_default().is_some_and(|port| self.guard.lists(host, port));
        if host.is_empty() || !(url.scheme() == "https" || (url.scheme() == "http" && is_listed)) {
            return Err(Unreached::Forbidden("only https addresses are fetched"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Unreached::Forbidden("its address holds a user name or password"));
        }
        Ok(())
    }

    async fn get(&self, url: &Url) -> Result<ClientResponse, Unreached> {
        let uri = Uri::try_from(url.as_str()).map_err(|_| Unreached::Forbidden("its address is not a URL"))?;
        let request = self
            .client
            .get(uri)
            .insert_header((header::ACCEPT, "image/*"))
            .insert_header((header::ACCEPT_ENCODING, "identity"))
            .insert_header((header::USER_AGENT, concat!("stagedoor/", env!("CARGO_PKG_VERSION"))));
        request.send().await.map_err(|error| match &error {
            // A name that does not resolve looks like one that resolves to the inside: names there are not told.
            SendRequestError::Connect(ConnectError::Resolver(_) | ConnectError::NoRecords) => Unreached::Forbidden(NOT_PUBLIC),
            SendRequestError::Connect(ConnectError::Io(io)) if io.get_ref().is_some_and(|inner| inner.is::<NotPublic>()) => {
                Unreached::Forbidden(NOT_PUBLIC)
            }
            _ => Unreached::Failed(name_error(&error, "its host", self.connect).failure.message),
        })
    }
}

const NOT_PUBLIC: &str = "its host has no public address";

/// Why no reply came.
enum Unreached {
    /// The address may not be fetched.
    Forbidden(&'static str),
    /// Its host does not answer.
    Failed(String),
}

/// Why there is no image.
enum Trouble {
    /// The reason for the client.
    Refused(Cow<'static, str>),
    /// The gateway holds as many bytes as it may.
    Full,
}

impl From<&'static str> for Trouble {
    fn from(reason: &'static str) -> Self {
        Self::Refused(reason.into())
    }
}

/// The image in a reply.
async fn read(response: ClientResponse, allowance: &RefCell<Allowance>) -> Result<Image, Trouble> {
    let too_large = || Trouble::Refused(format!("the images of a request may have {} at most", format_size(LIMIT)).into());
    let declared = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > allowance.borrow().left) {
        return Err(too_large());
    }
    let mut incoming = Incoming::Http(Box::new(response.into()));
    let mut bytes = BytesMut::new();
    let mut mime = None;
    while let Some(chunk) = std::future::poll_fn(|cx| incoming.poll_next(cx)).await {
        let chunk = chunk.map_err(|_| BROKE_OFF)?;
        allowance.borrow_mut().take(chunk.len() as u64, too_large)?;
        bytes.extend_from_slice(&chunk);
        if mime.is_none() && bytes.len() >= sniff::ENOUGH {
            mime = Some(sniff::media_type(&bytes).ok_or(NOT_AN_IMAGE)?);
        }
    }
    if declared.is_some_and(|declared| declared != bytes.len() as u64) {
        return Err(BROKE_OFF.into());
    }
    let mime = mime.or_else(|| sniff::media_type(&bytes)).ok_or(NOT_AN_IMAGE)?;
    Ok(Image { media: mime, base64: STANDARD.encode(&bytes) })
}

const BROKE_OFF: &str = "its transfer broke off";
const NOT_AN_IMAGE: &str = "it is not a PNG, JPEG, GIF, WebP or HEIF image";

impl Allowance {
    fn take(&mut self, bytes: u64, too_large: impl FnOnce() -> Trouble) -> Result<(), Trouble> {
        self.left = self.left.checked_sub(bytes).ok_or_else(too_large)?;
        if self.hold.grow(bytes, self.limit) { Ok(()) } else { Err(Trouble::Full) }
    }
}

/// Where a redirect leads.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Trouble> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    location.and_then(|location| from.join(location).ok()).ok_or_else(|| "it is redirected to nowhere".into())
}

fn refused(host: Option<&str>, reason: &str) -> Failure {
    let at = host.map(|host| format!(" at {host}")).unwrap_or_default();
    Failure {
        status: Some(400),
        param: Some("messages".into()),
        code: Some("invalid_image_url".into()),
        // Another provider may fetch it itself.
        ..Failure::new(FailureClass::Unsupported, format!("the image{at} cannot be fetched: {reason}"))
    }
}

#[cfg(test)]
mod tests;
