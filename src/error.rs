//! The closed list of ways a request can fail, and what each looks like to a client of the OpenAI API.

use std::sync::Arc;
use std::time::Duration;

use crate::chat::{Failure, FailureClass, ScanError};

/// Why the gateway does not serve a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GatewayError {
    /// The body is not JSON, or a field that the gateway reads is wrong.
    #[error("{0}")]
    Body(#[from] ScanError),
    /// The body was cut off or its transfer broke.
    #[error("the request body could not be read")]
    BodyRead,
    /// The body did not come in time.
    #[error("the request body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    /// The body is too large.
    #[error("the request body is larger than the limit of {limit}")]
    BodyTooLarge {
        /// Limit in words.
        limit: String,
    },
    /// Too many bytes of bodies are held already.
    #[error("the gateway holds as many request bodies as it may; try again shortly")]
    BodiesInFlight,
    /// The content type is not JSON.
    #[error("the content type must be application/json")]
    ContentType,
    /// No client key.
    #[error("no API key was given; send it as `Authorization: Bearer <key>`")]
    NoKey,
    /// A wrong client key.
    #[error("the API key is not known to this gateway")]
    WrongKey,
    /// A web page of another site, where nobody needs a key.
    #[error("requests that a web page of another site sends are refused while no auth.keys are configured")]
    CrossSite,
    /// No route.
    #[error("there is no route for {path}")]
    UnknownPath {
        /// The requested path.
        path: String,
    },
    /// A path that could mean something else upstream.
    #[error("the path holds a segment or character that cannot be passed on")]
    BadPath,
    /// A route, but not for this method.
    #[error("the method {method} is not allowed here; use {allow}")]
    Method {
        /// The requested method.
        method: String,
        /// The allowed ones.
        allow: String,
    },
    /// No backend of the route has the model.
    #[error("the model `{model}` does not exist on this route or has no backend that serves it")]
    UnknownModel {
        /// The requested model.
        model: String,
    },
    /// A request named no model but a backend or pool, which has none of its own.
    #[error("`{name}` has no `defaultModel`: ask for a model of it, as `{name}/<model>`")]
    NoModel {
        /// The backend or pool.
        name: String,
    },
    /// The requested model names a backend or pool that is configured and left out.
    #[error("`{name}` is configured but left out: a variable that it needs is not set, as `stagedoor check` says")]
    LeftOut {
        /// Which one.
        name: String,
    },
    /// A path that is passed through leads to a backend of another dialect.
    #[error("backend `{backend}` speaks the {dialect} dialect; only chat completions and embeddings are translated for it")]
    Untranslated {
        /// Which backend.
        backend: Arc<str>,
        /// Its dialect.
        dialect: &'static str,
    },
    /// A path that is passed through leads to several backends.
    #[error("a path that is passed through needs a route to one backend; `{pool}` has several")]
    PassthroughPool {
        /// Which pool.
        pool: Arc<str>,
    },
    /// Every backend of the pool is failed or starting.
    #[error("no backend of `{pool}` can take requests now: {reason}")]
    NoBackend {
        /// Which pool.
        pool: Arc<str>,
        /// Why not.
        reason: String,
    },
    /// All permits are taken, and the queue is full or the wait in it was too long.
    #[error("backend `{backend}` is at its limit of concurrent requests and {}", if *waited { "none ended in time" } else { "its queue is full" })]
    Saturated {
        /// Which backend.
        backend: Arc<str>,
        /// Whether the request has waited in its queue.
        waited: bool,
    },
    /// The deadline passed before an answer.
    #[error("the request was not answered within its deadline")]
    Deadline,
    /// The attempt was ended by a drain deadline or an operator.
    #[error("the request was ended by {by}")]
    Cut {
        /// Who or what.
        by: &'static str,
        /// Whether it was meant for this very request, so that sending it again is wrong.
        is_final: bool,
    },
    /// An actor died while it held the request.
    #[error("an internal fault ended the request")]
    Internal,
    /// An upstream attempt failed and nothing else was left to try.
    #[error("{}", .0.message)]
    Upstream(Box<Failure>),
}

/// The HTTP form of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorForm {
    /// Status code.
    pub status: u16,
    /// `error.type`.
    pub kind: String,
    /// `error.code`.
    pub code: Option<String>,
    /// `error.param`.
    pub param: Option<String>,
    /// `error.message`.
    pub message: String,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Whether a client library must not retry by itself.
    pub is_final: bool,
}

/// Longest wait that is passed on: the official Python client gives up beyond 120 s, the Node client sleeps for any.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(120);

/// The wait that is asked for where none is known.
const SOON: Duration = Duration::from_secs(1);

impl GatewayError {
    /// The HTTP form.
    pub fn form(&self) -> ErrorForm {
        let form = |status, kind: &str, code: &str| ErrorForm {
            status,
            kind: kind.to_owned(),
            code: (!code.is_empty()).then(|| code.to_owned()),
            param: None,
            message: self.to_string(),
            retry_after: None,
            is_final: false,
        };
        let soon = Some(SOON);
        match self {
            Self::Body(ScanError::Field { field, reason }) => {
                let code = if *reason == "is required" { "missing_required_parameter" } else { "invalid_value" };
                ErrorForm { param: Some((*field).to_owned()), ..form(400, "invalid_request_error", code) }
            }
            Self::Body(_) => form(400, "invalid_request_error", "invalid_json"),
            Self::BodyRead => form(400, "invalid_request_error", "incomplete_body"),
            Self::BodyTimeout(_) => form(408, "invalid_request_error", "body_timeout"),
            Self::BodyTooLarge { .. } => form(413, "invalid_request_error", "body_too_large"),
            Self::BodiesInFlight => ErrorForm { retry_after: soon, ..form(503, "server_error", "gateway_overloaded") },
            Self::ContentType => form(415, "invalid_request_error", "unsupported_media_type"),
            Self::NoKey => form(401, "invalid_request_error", "missing_api_key"),
            Self::WrongKey => form(401, "invalid_request_error", "invalid_api_key"),
            Self::CrossSite => form(403, "invalid_request_error", "cross_site"),
            Self::UnknownPath { .. } => form(404, "invalid_request_error", "unknown_path"),
            Self::BadPath => form(400, "invalid_request_error", "invalid_path"),
            Self::Method { .. } => form(405, "invalid_request_error", "method_not_allowed"),
            Self::UnknownModel { .. } | Self::NoModel { .. } | Self::LeftOut { .. } => {
                ErrorForm { param: Some("model".into()), ..form(404, "invalid_request_error", "model_not_found") }
            }
            Self::Untranslated { .. } => {
                ErrorForm { is_final: true, ..form(400, "invalid_request_error", "unsupported_by_backend") }
            }
            Self::PassthroughPool { .. } => {
                ErrorForm { is_final: true, ..form(501, "server_error", "passthrough_needs_one_backend") }
            }
            Self::NoBackend { .. } => ErrorForm { retry_after: soon, ..form(503, "server_error", "no_backend") },
            Self::Saturated { .. } => ErrorForm { retry_after: soon, ..form(503, "server_error", "backend_saturated") },
            Self::Deadline => form(504, "server_error", "deadline_exceeded"),
            Self::Cut { is_final, .. } => {
                let retry_after = soon.filter(|_| !is_final);
                ErrorForm { is_final: *is_final, retry_after, ..form(503, "server_error", "request_cut") }
            }
            Self::Internal => form(500, "server_error", "internal_error"),
            Self::Upstream(failure) => upstream_form(failure),
        }
    }

    /// The class word for logs and spans.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Upstream(failure) => failure.class.word(),
            Self::Body(_)
            | Self::BodyRead
            | Self::BodyTimeout(_)
            | Self::BodyTooLarge { .. }
            | Self::ContentType
            | Self::BadPath => "caller",
            Self::NoKey | Self::WrongKey | Self::CrossSite => "unauthenticated",
            Self::UnknownPath { .. } | Self::Method { .. } => "no_route",
            Self::UnknownModel { .. } | Self::NoModel { .. } | Self::LeftOut { .. } => "model_unknown",
            Self::Untranslated { .. } | Self::PassthroughPool { .. } => "unsupported",
            Self::BodiesInFlight | Self::Saturated { .. } => "saturated",
            Self::NoBackend { .. } => "no_backend",
            Self::Deadline => "deadline",
            Self::Cut { .. } => "cut",
            Self::Internal => "crashed",
        }
    }
}

/// The status that makes the official clients raise the right exception, and the codes they know.
fn upstream_form(failure: &Failure) -> ErrorForm {
    let backend = failure.backend.as_deref().unwrap_or("upstream");
    let own = |text: &str| format!("backend `{backend}`: {text}");
    let (status, kind, code, message, is_final) = match failure.class {
        FailureClass::Caller => (failure.status.unwrap_or(400), "invalid_request_error", None, failure.message.clone(), true),
        FailureClass::Unsupported => (400, "invalid_request_error", Some("unsupported_by_backend"), own(&failure.message), true),
        FailureClass::ModelUnknown => (404, "invalid_request_error", Some("model_not_found"), failure.message.clone(), true),
        // The client's own key is fine: this is the operator's to mend, and the provider's words may quote the key.
        FailureClass::Credential => {
            (502, "server_error", Some("upstream_credential"), own("its provider refused the configured credential"), true)
        }
        FailureClass::Billing => (429, "insufficient_quota", Some("insufficient_quota"), failure.message.clone(), true),
        // Of one model alone, and so no matter of the account.
        FailureClass::RateLimited if failure.code.as_deref() == Some("insufficient_quota") => {
            (429, "insufficient_quota", None, failure.message.clone(), true)
        }
        FailureClass::RateLimited => (429, "rate_limit_error", Some("rate_limit_exceeded"), failure.message.clone(), false),
        FailureClass::Overloaded => (503, "server_error", Some("upstream_overloaded"), own(&failure.message), false),
        FailureClass::Server => {
            let status = if failure.status == Some(504) { 504 } else { 502 };
            (status, "server_error", Some("upstream_error"), own(&failure.message), false)
        }
        FailureClass::Socket => (502, "server_error", Some("upstream_unreachable"), own(&failure.message), false),
        FailureClass::Timeout(_) => (504, "server_error", Some("upstream_timeout"), own(&failure.message), false),
        FailureClass::Malformed => (502, "server_error", Some("upstream_malformed"), own(&failure.message), false),
        FailureClass::Crashed => (500, "server_error", Some("internal_error"), own(&failure.message), false),
    };
    let keeps_own_code = matches!(
        failure.class,
        FailureClass::Caller | FailureClass::Unsupported | FailureClass::Billing | FailureClass::RateLimited
    );
    ErrorForm {
        status,
        kind: failure.kind.clone().filter(|_| failure.class == FailureClass::Caller).unwrap_or_else(|| kind.to_owned()),
        code: failure
            .code
            .clone()
            .filter(|code| keeps_own_code && !code.bytes().all(|b| b.is_ascii_digit()))
            .or_else(|| code.map(str::to_owned)),
        param: failure.param.clone(),
        message,
        // Who says "later" says when.
        retry_after: failure.retry_after.or_else(|| (status == 503).then_some(SOON)).map(|wait| wait.min(RETRY_AFTER_CAP)),
        is_final,
    }
}

impl ErrorForm {
    /// The JSON body.
    pub fn body(&self) -> serde_json::Value {
        serde_json::json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }
}
