//! How an attempt can fail: classified once by the dialect, decided by table ever after.

use std::sync::Arc;
use std::time::Duration;

/// The closed list of failure classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The request itself is at fault.
    Caller,
    /// The request cannot be said to this backend.
    Unsupported,
    /// The backend does not have the model.
    ModelUnknown,
    /// The backend's key is refused.
    Credential,
    /// The backend's account is out of money or quota.
    Billing,
    /// Too many requests.
    RateLimited,
    /// The provider says it is overloaded.
    Overloaded,
    /// The provider failed.
    Server,
    /// No connection, or it broke before any reply byte.
    Socket,
    /// A limit of the gateway passed.
    Timeout(Phase),
    /// The reply is not what the dialect promises.
    Malformed,
    /// A panic in the gateway's own code.
    Crashed,
}

/// Which limit passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Making the connection.
    Connect,
    /// Waiting for the status line.
    Head,
    /// Waiting for a stream's first content.
    FirstContent,
    /// Silence within a reply.
    Idle,
    /// The whole attempt.
    Total,
}

impl FailureClass {
    /// The same for people, with the word that stands in metrics and logs.
    pub fn in_words(self) -> String {
        let words = match self {
            Self::Caller => "the requests are at fault",
            Self::Unsupported => "it cannot be asked for this",
            Self::ModelUnknown => "it does not have the model",
            Self::Credential => "it refuses the key",
            Self::Billing => "its account has no money or quota",
            Self::RateLimited => "it limits the rate",
            Self::Overloaded => "it is overloaded",
            Self::Server => "it answers with errors",
            Self::Socket => "its connections fail",
            Self::Malformed => "its replies are broken",
            Self::Timeout(Phase::Connect) => "no connection in time",
            Self::Timeout(Phase::Head) => "no answer in time",
            Self::Timeout(Phase::FirstContent) => "no content in time",
            Self::Timeout(Phase::Idle) => "it falls silent within replies",
            Self::Timeout(Phase::Total) => "its streams take too long",
            Self::Crashed => "an internal fault",
        };
        format!("{words} ({})", self.word())
    }

    /// Name for logs, metrics and error codes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Unsupported => "unsupported",
            Self::ModelUnknown => "model_unknown",
            Self::Credential => "credential",
            Self::Billing => "billing",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Server => "server_error",
            Self::Socket => "socket",
            Self::Timeout(Phase::Connect) => "timeout_connect",
            Self::Timeout(Phase::Head) => "timeout_head",
            Self::Timeout(Phase::FirstContent) => "timeout_first_content",
            Self::Timeout(Phase::Idle) => "timeout_idle",
            Self::Timeout(Phase::Total) => "timeout_total",
            Self::Malformed => "malformed",
            Self::Crashed => "crashed",
        }
    }

    /// Whether it speaks against the backend: what a client is to mend does not.
    pub fn is_backends(self) -> bool {
        !matches!(self, Self::Caller | Self::Unsupported | Self::ModelUnknown)
    }

    /// Every class, for statistics by index.
    pub const ALL: [Self; 16] = [
        Self::Caller,
        Self::Unsupported,
        Self::ModelUnknown,
        Self::Credential,
        Self::Billing,
        Self::RateLimited,
        Self::Overloaded,
        Self::Server,
        Self::Socket,
        Self::Timeout(Phase::Connect),
        Self::Timeout(Phase::Head),
        Self::Timeout(Phase::FirstContent),
        Self::Timeout(Phase::Idle),
        Self::Timeout(Phase::Total),
        Self::Malformed,
        Self::Crashed,
    ];

    /// What to do about it before first content.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Caller => Verdict { retry_here: Retry::Never, next_member: false },
            Self::Unsupported | Self::ModelUnknown | Self::Credential | Self::Billing | Self::Malformed | Self::Crashed => {
                Verdict { retry_here: Retry::Never, next_member: true }
            }
            Self::RateLimited => Verdict { retry_here: Retry::WhenTold, next_member: true },
            Self::Overloaded | Self::Server | Self::Timeout(Phase::Connect) => {
                Verdict { retry_here: Retry::BackOff, next_member: true }
            }
            Self::Socket => Verdict { retry_here: Retry::OnceAtOnce, next_member: true },
            Self::Timeout(Phase::Head | Phase::FirstContent | Phase::Idle | Phase::Total) => {
                Verdict { retry_here: Retry::Never, next_member: true }
            }
        }
    }

    /// How telling it is for the client when several attempts failed in different ways: higher wins.
    pub fn weight(self) -> u8 {
        match self {
            Self::Caller => 10,
            Self::RateLimited => 8,
            Self::Overloaded => 7,
            Self::Billing => 6,
            Self::Timeout(_) => 5,
            Self::Server => 4,
            Self::Malformed | Self::Socket => 3,
            Self::Credential | Self::Unsupported => 2,
            Self::ModelUnknown | Self::Crashed => 1,
        }
    }
}

/// What the failure table says about a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the same backend is tried again.
    pub retry_here: Retry,
    /// Whether another member may be tried.
    pub next_member: bool,
}

/// Whether and how the same backend is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Not at all.
    Never,
    /// After an exponential back-off with full jitter.
    BackOff,
    /// After the delay the provider asked for, if that is short.
    WhenTold,
    /// Once, at once, on a fresh connection.
    OnceAtOnce,
}

/// One failed attempt, in the words that a client may see.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What it is.
    pub class: FailureClass,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// What happened; never holds a secret or a host name of ours.
    pub message: String,
    /// The provider's error type.
    pub kind: Option<String>,
    /// The field the provider blames.
    pub param: Option<String>,
    /// The provider's error code.
    pub code: Option<String>,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// Who failed; set by the attempt.
    pub backend: Option<Arc<str>>,
    /// Tries made for the request until then; set by the pool.
    pub attempts: u32,
    /// Headers of the provider's reply that the client may see.
    pub headers: Vec<(String, String)>,
    /// Whether the provider says that asking it again cannot help.
    pub forbids_retry: bool,
    /// Whether it speaks against nobody: what a model makes of a request may be the request's doing.
    pub is_excused: bool,
}

impl From<Box<Failure>> for Failure {
    fn from(failure: Box<Failure>) -> Self {
        *failure
    }
}

impl Failure {
    /// A failure with nothing but a class and a message.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self {
            class,
            status: None,
            message: message.into(),
            kind: None,
            param: None,
            code: None,
            retry_after: None,
            backend: None,
            attempts: 0,
            headers: Vec::new(),
            forbids_retry: false,
            is_excused: false,
        }
    }

    /// The message as logs and operators see it: without what it quotes of the request, as far as that can be told. Validators
    /// repeat the value that they refuse.
    pub fn unquoted(&self) -> String {
        let end = ["'input':", "\"input\":", "input_value="].iter().filter_map(|mark| self.message.find(mark)).min();
        let mut out = String::with_capacity(self.message.len());
        let mut rest = &self.message[..end.unwrap_or(self.message.len())];
        let mut before = ' ';
        while let Some(at) = rest.find(['\'', '"']) {
            let (text, quoted) = rest.split_at(at);
            out.push_str(text);
            before = text.chars().next_back().unwrap_or(before);
            let (mark, inner) = quoted.split_at(1);
            let length = inner.find(mark).unwrap_or(inner.len());
            // Within a word it is an apostrophe.
            if before.is_alphanumeric() || length <= QUOTED {
                out.push_str(mark);
                rest = inner;
            } else {
                out.push_str(&format!("{mark}…"));
                rest = &inner[length..];
            }
            before = '…';
        }
        out.push_str(rest);
        if end.is_some() {
            out.push('…');
        }
        out
    }
}

/// Bytes of a quotation that may be a field's name or a value's kind, and no text of a prompt to speak of.
const QUOTED: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_of_the_request_is_left_out() {
        let unquoted = |message: &str| Failure::new(FailureClass::Caller, message).unquoted();
        for plain in [
            "max_tokens must be at most 4096, don't ask for more than the model's context can't hold, which isn't much",
            "Invalid value: 'xhigh'. Supported values are: 'low', 'medium' and 'high'.",
            "field 'messages[0].content' is missing",
            "it isn't quoted at the end'",
            "",
        ] {
            assert_eq!(unquoted(plain), plain);
        }
        let long = "a secret question that is much too long to be the name of a field";
        assert_eq!(unquoted(&format!("cannot read '{long}' here")), "cannot read '…' here");
        assert_eq!(unquoted(&format!("cannot read \"{long}")), "cannot read \"…");
        let validator = "1 validation error: [{'loc': ('body', 'n'), 'msg': 'Field required', 'input': {'content': 'SECRET'}}]";
        assert_eq!(unquoted(validator), "1 validation error: [{'loc': ('body', 'n'), 'msg': 'Field required', …");
        assert_eq!(unquoted("bad [type=int, input_value='SECRET', input_type=str]"), "bad [type=int, …");
    }

    proptest::proptest! {
        #[test]
        fn any_message_can_be_told(message in ".{0,200}") {
            Failure::new(FailureClass::Caller, message).unquoted();
        }
    }
}
