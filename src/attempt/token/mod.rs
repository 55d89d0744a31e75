//! Access tokens of a provider generation: minted once for all who wait, kept, and renewed before they expire.
//!
//! [`Minter`] knows when; how a token is made is its mint, in `exchange` and `metadata`. One mint is under way at most. It
//! runs as a task of its own, so a caller that leaves does not end it for the others.

mod exchange;
mod jwt;
mod metadata;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use actix_http::header::{self, HeaderName, HeaderValue};
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use rustls::ClientConfig;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::exchange::Exchange;
use crate::balance::full_jitter;
use crate::chat::{Failure, FailureClass, Phase};
use crate::settings::{Backend, GoogleCredential, Secret};

/// How long before its end a token is renewed; a short-lived one a tenth of its life before.
/// Source: google-auth 2.62.2 for Python, read 2026-11-22.
const REFRESH_AHEAD: Duration = Duration::from_secs(225);
/// First and longest pause after a renewal that failed.
const RETRY_BASE: Duration = Duration::from_secs(2);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// Longest life of a token that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// Time for one mint, all its tries together.
const MINT_LIMIT: Duration = Duration::from_secs(15);
/// Tokens remembered for redaction: a stream may outlive the token that it began with.
const REMEMBERED: usize = 4;

/// An access token.
#[derive(Debug, Clone)]
pub struct Token {
    secret: Secret,
    bearer: HeaderValue,
    quota_project: Option<HeaderValue>,
}

impl Token {
    /// The headers that a request carries for it.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let quota = self.quota_project.clone().map(|project| (HeaderName::from_static("x-goog-user-project"), project));
        std::iter::once((header::AUTHORIZATION, self.bearer.clone())).chain(quota)
    }
}

/// A token as its issuer gave it.
#[derive(Debug, Clone)]
pub(super) struct Minted {
    secret: Secret,
    life: Duration,
}

type Mint = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Minted, Failure>>>>>;
/// A mint under way: every waiter holds a copy.
type Pending = Shared<oneshot::Receiver<Result<Token, Failure>>>;

/// Makes and keeps the access token of one provider generation, on its thread.
pub struct Minter(Rc<Inner>);

struct Inner {
    backend: Arc<str>,
    mint: Mint,
    quota_project: Option<HeaderValue>,
    current: RefCell<Option<Current>>,
    pending: RefCell<Option<Pending>>,
    /// Waits for the time to renew.
    renewal: RefCell<Option<JoinHandle<()>>>,
    /// Renewals that failed in a row.
    failures: Cell<u32>,
    /// The last tokens, for redaction.
    recent: RefCell<Vec<Secret>>,
}

struct Current {
    token: Token,
    expires: Instant,
}

impl Minter {
    /// The minter of a backend that takes access tokens; `None` for one that does not.
    pub fn of(backend: &Arc<Backend>, tls: &Arc<ClientConfig>) -> Option<Rc<Self>> {
        let vertex = backend.vertex.as_ref()?;
        // The settings admit only what can be sent.
        let quota_project = vertex.credential.quota_project().and_then(|project| HeaderValue::from_str(project).ok());
        let exchange = Exchange::new(backend, vertex.proxy.clone(), tls);
        let (name, backend) = (Arc::clone(&backend.name), Arc::clone(backend));
        let mint = move || {
            let (exchange, backend) = (exchange.clone(), Arc::clone(&backend));
            async move {
                match backend.vertex.as_ref().map(|vertex| &vertex.credential) {
                    Some(GoogleCredential::ServiceAccount(account)) => exchange.by_assertion(account).await,
                    Some(GoogleCredential::User(user)) => exchange.by_refresh_token(user).await,
                    Some(GoogleCredential::Metadata { host }) => metadata::token(&exchange, host.as_deref()).await,
                    None => Err(Failure::new(FailureClass::Credential, "this backend takes no access tokens")),
                }
            }
        };
        Some(Rc::new(Self::new(name, mint, quota_project)))
    }

    fn new<F>(backend: Arc<str>, mint: impl Fn() -> F + 'static, quota_project: Option<HeaderValue>) -> Self
    where
        F: Future<Output = Result<Minted, Failure>> + 'static,
    {
        Self(Rc::new(Inner {
            backend,
            mint: Box::new(move || Box::pin(mint())),
            quota_project,
            current: RefCell::default(),
            pending: RefCell::default(),
            renewal: RefCell::default(),
            failures: Cell::new(0),
            recent: RefCell::default(),
        }))
    }

    /// The token to send: the present one while it lives, else a new one. Dropping the future ends nothing.
    ///
    /// # Errors
    /// Why there is none: `Credential` when it is refused, `Socket`, `Timeout`, `Server` or `Overloaded` when the issuer
    /// cannot be had, `Malformed` when its answer is no token.
    pub async fn token(&self) -> Result<Token, Failure> {
        if let Some(token) = self.0.present() {
            return Ok(token);
        }
        let pending = self.0.begin();
        pending.await.unwrap_or_else(|_| Err(Failure::new(FailureClass::Crashed, "an internal fault ended the token exchange")))
    }

    /// Forgets a token that the provider refused, so that the next request has a new one made. Does nothing when that
    /// token was replaced already.
    pub fn reject(&self, token: &Token) {
        let mut current = self.0.current.borrow_mut();
        if current.as_ref().is_some_and(|current| current.token.secret == token.secret) {
            *current = None;
            self.0.stop_renewal();
        }
    }

    /// What must not appear in any message: the present token and those before it.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        self.0.recent.borrow().clone()
    }
}

impl Inner {
    fn present(&self) -> Option<Token> {
        let current = self.current.borrow();
        current.as_ref().filter(|current| Instant::now() < current.expires).map(|current| current.token.clone())
    }

    /// Joins the mint under way, or starts one.
    fn begin(self: &Rc<Self>) -> Pending {
        if let Some(pending) = self.pending.borrow().as_ref().filter(|pending| pending.peek().is_none()) {
            return pending.clone();
        }
        let (done, result) = oneshot::channel();
        let pending = result.shared();
        *self.pending.borrow_mut() = Some(pending.clone());
        let inner = Rc::clone(self);
        actix_rt::spawn(async move {
            let result = inner.mint_once().await;
            inner.pending.borrow_mut().take();
            // Those who asked may have left.
            let _ = done.send(result);
        });
        pending
    }

    async fn mint_once(self: &Rc<Self>) -> Result<Token, Failure> {
        let started = Instant::now();
        let minted = match tokio::time::timeout(MINT_LIMIT, (self.mint)()).await {
            Ok(minted) => minted?,
            Err(_) => {
                let message = format!("no access token within {MINT_LIMIT:?}");
                return Err(Failure::new(FailureClass::Timeout(Phase::Head), message));
            }
        };
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", minted.secret.expose()))
            .map_err(|_| Failure::new(FailureClass::Malformed, "the access token cannot be sent as a header"))?;
        bearer.set_sensitive(true);
        let token = Token { secret: minted.secret, bearer, quota_project: self.quota_project.clone() };
        self.remember(&token.secret);
        let life = minted.life.min(LONGEST_LIFE);
        *self.current.borrow_mut() = Some(Current { token: token.clone(), expires: started + life });
        self.failures.set(0);
        self.renew_at(started + life - REFRESH_AHEAD.min(life / 10));
        Ok(token)
    }

    fn remember(&self, secret: &Secret) {
        let mut recent = self.recent.borrow_mut();
        if !recent.contains(secret) {
            if recent.len() == REMEMBERED {
                recent.remove(0);
            }
            recent.push(secret.clone());
        }
    }

    /// Renews the token then, in the background; requests use the old one meanwhile.
    fn renew_at(self: &Rc<Self>, then: Instant) {
        let inner = Rc::downgrade(self);
        let waiting = actix_rt::spawn(async move {
            tokio::time::sleep_until(then).await;
            if let Some(pending) = Weak::upgrade(&inner).and_then(|inner| inner.begin_renewal()) {
                let result = pending.await;
                if let Some(inner) = Weak::upgrade(&inner)
                    && let Ok(Err(failure)) = result
                {
                    inner.renewal_failed(&failure);
                }
            }
        });
        self.stop_renewal();
        *self.renewal.borrow_mut() = Some(waiting);
    }

    /// A token that has expired meanwhile is replaced when somebody asks for one.
    fn begin_renewal(self: &Rc<Self>) -> Option<Pending> {
        self.present().map(|_| self.begin())
    }

    fn renewal_failed(self: &Rc<Self>, failure: &Failure) {
        let failures = self.failures.get() + 1;
        self.failures.set(failures);
        // Half of it is certain, so that retries never come at once.
        let pause = full_jitter(RETRY_BASE, RETRY_CAP, failures - 1, 0.5 + fastrand::f64() / 2.0);
        tracing::warn!(
            target: "attempt", backend = %self.backend, class = failure.class.word(), reason = %failure.message, pause_seconds = pause.as_secs_f64(), "access token was not renewed"
        );
        self.renew_at(Instant::now() + pause);
    }

    fn stop_renewal(&self) {
        if let Some(waiting) = self.renewal.borrow_mut().take() {
            waiting.abort();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_renewal();
    }
}

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod tests;
