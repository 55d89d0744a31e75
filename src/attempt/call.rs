//! What travels with a request: the call itself, its ledger, and the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix_http::header::{HeaderName, HeaderValue};
use actix_http::{Method, StatusCode};
use bytes::Bytes;
use send_wrapper::SendWrapper;
use smallvec::SmallVec;
use std::sync::Mutex;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Span;

use super::live::LiveBody;
use crate::balance::Moment;
use crate::chat::{Endpoint, Failure, Scan, Usage};
use crate::error::GatewayError;
use crate::settings::{Backend, format_size};
use crate::story::Trail;

/// One client request, immutable from the front end on.
#[derive(Debug)]
pub struct Call {
    /// The request's id.
    pub id: Arc<str>,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// Places and features of the body.
    pub scan: Scan,
    /// The whole body; empty when it is streamed through.
    pub body: Bytes,
    /// Returns the body's bytes to the process-wide total.
    pub hold: BodyHold,
    /// Where the model to ask for begins in [`Scan::model`]; `None` asks every member for its default.
    pub model_at: Option<usize>,
    /// When the request must be answered.
    pub deadline: Instant,
    /// When the front end took it.
    pub started: Instant,
    /// The same as a moment.
    pub began: Moment,
    /// The root span.
    pub span: Span,
    /// Present on paths that pass through.
    pub passthrough: Option<Box<Passthrough>>,
    /// Whether anything was sent to a provider: then a lost request is not submitted again.
    pub touched: AtomicBool,
    /// Whether it may be sent more than once; where not, it is neither hedged nor tried again once it was sent.
    pub repeatable: bool,
    /// Whether it is an operator's own, which asks a backend even if it is drained or its circuit is open.
    pub insistent: bool,
    /// Key of its conversation, where its pool keeps conversations together.
    pub conversation: Option<u64>,
    /// What has happened to it.
    pub trail: Arc<Trail>,
}

impl Call {
    /// How long ago it was taken.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.began)
    }

    /// The model asked for; `None` stands for the member's default.
    pub fn requested_model(&self) -> Option<&str> {
        self.model_at.and_then(|at| self.scan.model.as_deref()?.get(at..))
    }

    /// Whether a stream is asked for.
    pub fn is_stream(&self) -> bool {
        self.scan.stream && matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
    }

    /// Whether it can not be asked again; `sent` says that it may have reached a provider. What passes through is not sent
    /// again then unless its method changes nothing, since its meaning is not known here; and a streamed body is gone once it
    /// was begun.
    pub fn is_gone(&self, sent: bool) -> bool {
        if sent && !self.repeatable {
            return true;
        }
        self.passthrough.as_ref().is_some_and(|passthrough| {
            let begun =
                passthrough.stream.as_ref().is_some_and(|stream| stream.payload.lock().is_ok_and(|payload| payload.is_none()));
            begun || (sent && !passthrough.method.is_safe())
        })
    }
}

/// What a passed-through request has beside its body.
#[derive(Debug)]
pub struct Passthrough {
    /// Method.
    pub method: Method,
    /// Path behind the version, with its query.
    pub path: String,
    /// Client headers that may go upstream.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, when it is streamed through; taken by the first attempt that sends it.
    pub stream: Option<StreamedBody>,
}

/// A request body that is read while it is sent.
#[derive(Debug)]
pub struct StreamedBody {
    /// Declared length.
    pub length: Option<u64>,
    /// The client's bytes, on the worker that received them.
    pub payload: Mutex<Option<SendWrapper<PayloadStream>>>,
}

/// A client's payload.
pub struct PayloadStream(pub std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Bytes, std::io::Error>>>>);

impl std::fmt::Debug for PayloadStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PayloadStream")
    }
}

/// A streamed body has gone beyond so many bytes.
#[derive(Debug, Error)]
#[error("{}", GatewayError::BodyTooLarge { limit: format_size(*.0) })]
pub struct BodyTooLong(pub u64);

/// Bytes counted against the total of bodies in flight; returned when dropped.
#[derive(Debug)]
pub struct BodyHold {
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl BodyHold {
    /// Starts with nothing.
    pub fn new(total: &Arc<AtomicU64>) -> Self {
        Self { total: Arc::clone(total), bytes: 0 }
    }

    /// Counts further bytes unless the total would pass `limit`.
    pub fn grow(&mut self, bytes: u64, limit: u64) -> bool {
        let before = self.total.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        before + bytes <= limit
    }
}

impl Drop for BodyHold {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What has been tried for a request so far; travels with the job.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Members that could not carry the request and so were asked nothing.
    pub passed_over: u16,
    /// Leaves whose attempts failed.
    pub tried: SmallVec<[u16; 8]>,
    /// How long the next try may take, where that is less than its member's own limits.
    pub limit: Option<Duration>,
    /// Leaves that were full.
    pub saturated: SmallVec<[u16; 4]>,
    /// Tries made, retries included.
    pub attempts: u32,
    /// Most tries allowed.
    pub max_attempts: u32,
    /// Whether the present try may have reached its provider.
    pub sent: bool,
    /// The most telling failure so far.
    pub worst: Option<Box<Failure>>,
    /// Whether the job may wait for a permit: nobody else can take it.
    pub may_queue: bool,
    /// Which of them it waits at next, where it may.
    pub queue_turn: usize,
    /// Leaves whose circuits refused it although they looked as if it might pass.
    pub shut: SmallVec<[u16; 4]>,
    /// Whether a circuit has refused it as a last resort: then the circuit answers.
    pub refused: bool,
    /// How often it came back without having been tried.
    pub moves: u32,
    /// Since when it waits for a permit.
    pub queued_at: Option<Instant>,
    /// Since when it waits for a member to start.
    pub parked_at: Option<Instant>,
}

impl Ledger {
    /// Where it waited it waits no longer: every member is asked again.
    pub fn forget_queues(&mut self) {
        self.saturated.clear();
        self.may_queue = false;
        self.queue_turn = 0;
    }

    /// Keeps the failure that tells the client most.
    pub fn note(&mut self, failure: Failure) {
        if self.worst.as_ref().is_none_or(|worst| failure.class.weight() >= worst.class.weight()) {
            self.worst = Some(Box::new(failure));
        }
    }
}

/// The reply sender of a caller.
pub type ReplySender = oneshot::Sender<Reply>;
/// What a caller gets.
pub type Reply = Result<Box<Answer>, GatewayError>;

/// Response headers taken over from a provider.
pub type AnswerHeaders = SmallVec<[(HeaderName, HeaderValue); 2]>;

/// A served request.
#[derive(Debug)]
pub struct Answer {
    /// Status; 200 except on paths that pass through.
    pub status: StatusCode,
    /// Headers from the provider that the client may see.
    pub headers: AnswerHeaders,
    /// Body.
    pub body: AnswerBody,
    /// Who served.
    pub backend: Arc<Backend>,
    /// The model that was asked for upstream.
    pub model: Box<str>,
    /// Tries made.
    pub attempts: u32,
    /// Request fields left out for this backend.
    pub dropped: SmallVec<[Box<str>; 4]>,
    /// Time from the front end to the first content, or to the whole reply.
    pub first_content: Duration,
    /// Tokens of a whole reply.
    pub usage: Option<Usage>,
}

/// Body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// Whole.
    Full(Bytes),
    /// Pulled by the client; stays on its worker.
    Live(SendWrapper<LiveBody>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chat::FailureClass;

    proptest! {
        #[test]
        fn a_ledger_keeps_the_most_telling_failure_and_the_last_of_equals(classes in prop::collection::vec(0usize..16, 1..20)) {
            let mut ledger = Ledger::default();
            for (number, class) in classes.iter().enumerate() {
                ledger.note(Failure::new(FailureClass::ALL[*class], number.to_string()));
            }
            let weight = |class: &usize| FailureClass::ALL[*class].weight();
            let best = classes.iter().map(weight).max().unwrap_or_default();
            let last = classes.iter().rposition(|class| weight(class) == best).unwrap_or_default();
            let worst = ledger.worst.unwrap();
            prop_assert_eq!((worst.class.weight(), worst.message), (best, last.to_string()));
        }

        /// Wherever a job has waited and whoever has given it back: once its queues are forgotten, nobody is full for it, while
        /// who was tried and what was spent stays.
        #[test]
        fn a_ledger_forgets_queues_and_nothing_else(tried in prop::collection::vec(0u16..64, 0..8), full in prop::collection::vec(0u16..64, 0..8), attempts in 0u32..9) {
            let mut ledger = Ledger {
                tried: tried.iter().copied().collect(),
                saturated: full.iter().copied().collect(),
                queue_turn: full.len(),
                may_queue: true,
                attempts,
                ..Ledger::default()
            };
            ledger.forget_queues();
            prop_assert!(ledger.saturated.is_empty() && !ledger.may_queue && ledger.queue_turn == 0);
            prop_assert_eq!((ledger.tried.to_vec(), ledger.attempts), (tried, attempts));
        }
    }
}
