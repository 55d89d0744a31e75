//! Wire formats. `enum Dialect` holds the only `match` over them; each dialect is a folder of pure translation without
//! IO or clock. A new one is a folder, an arm here, and a folder of golden files.

pub mod openai;
pub mod sse;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::chat::{Endpoint, Failure, Scan, Usage};
use crate::settings::{Backend, BackendType};

/// A wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI Chat Completions and what is compatible with it.
    OpenAi,
    /// Anthropic Messages.
    Anthropic,
    /// Google Gemini.
    Google,
}

/// One request as the dialect sees it.
pub struct Ask<'a> {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// The client's body.
    pub body: &'a Bytes,
    /// Places and features of the body.
    pub scan: &'a Scan,
    /// The model id to send.
    pub model: &'a str,
    /// Fields that the operator says the host refuses.
    pub drop_fields: &'a [String],
    /// The request's id, for identities that a provider leaves out.
    pub id: &'a str,
    /// Seconds since 1970, for the same purpose.
    pub now: u64,
}

/// A request in the provider's form.
pub struct Encoded {
    /// Body to send.
    pub body: Bytes,
    /// Fields left out because the provider does not know them.
    pub dropped: SmallVec<[Box<str>; 4]>,
}

/// A whole reply in the client's form.
#[derive(Debug)]
pub struct Whole {
    /// Body to answer with.
    pub body: Bytes,
    /// Tokens, if reported.
    pub usage: Option<Usage>,
}

/// What the provider's error reply looks like to the classifier.
pub struct ErrorReply<'a> {
    /// Status code.
    pub status: u16,
    /// What the reply's headers ask to wait.
    pub retry_after: Option<std::time::Duration>,
    /// Body, possibly cut.
    pub body: &'a [u8],
}

/// What a dialect knows about one backend, worked out once.
#[derive(Debug)]
pub enum Codec {
    /// OpenAI and its types.
    OpenAi(openai::Quirks),
}

impl Dialect {
    /// The dialect a backend type speaks.
    pub fn of(kind: BackendType) -> Self {
        match kind {
            BackendType::OpenAi | BackendType::Azure | BackendType::Meta | BackendType::Mistral | BackendType::Simulated => {
                Self::OpenAi
            }
            BackendType::Anthropic => Self::Anthropic,
            BackendType::Google => Self::Google,
        }
    }

    /// Name for spans and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
        }
    }

    /// The codec for a backend; `None` while the dialect is not built.
    pub fn codec(backend: &Backend) -> Option<Codec> {
        match Self::of(backend.kind) {
            Self::OpenAi => Some(Codec::OpenAi(openai::Quirks::of(backend))),
            Self::Anthropic | Self::Google => None,
        }
    }
}

impl Codec {
    /// The address of an endpoint; `path` is the part behind the version, such as `/chat/completions`.
    pub fn url(&self, backend: &Backend, endpoint: Endpoint, path: &str, model: &str) -> String {
        match self {
            Self::OpenAi(_) => openai::url(backend, endpoint, path, model),
        }
    }

    /// Whether the address depends on the model.
    pub fn model_in_url(&self, backend: &Backend) -> bool {
        match self {
            Self::OpenAi(_) => backend.kind == BackendType::Azure && backend.api_version.is_some(),
        }
    }

    /// Headers that every request carries, the credential among them.
    pub fn headers(&self, backend: &Backend) -> Vec<(String, String)> {
        match self {
            Self::OpenAi(_) => openai::headers(backend),
        }
    }

    /// The request in the provider's form.
    ///
    /// # Errors
    /// A failure of class `Caller` when the request cannot be said in this dialect.
    pub fn encode(&self, ask: &Ask<'_>) -> Result<Encoded, Failure> {
        match self {
            Self::OpenAi(quirks) => openai::encode(quirks, ask),
        }
    }

    /// The failure that an error reply means.
    pub fn failure(&self, reply: &ErrorReply<'_>) -> Failure {
        match self {
            Self::OpenAi(_) => openai::failure(reply),
        }
    }

    /// Checks and, where needed, translates a whole reply.
    ///
    /// # Errors
    /// `Malformed` for what is not a reply, or the failure that an error inside a 200 means.
    pub fn decode(&self, ask: &Ask<'_>, body: Bytes) -> Result<Whole, Failure> {
        match self {
            Self::OpenAi(quirks) => openai::decode(quirks, ask, body),
        }
    }

    /// The state machine for a streamed reply.
    pub fn relay(&self, ask: &Ask<'_>) -> openai::Relay {
        match self {
            Self::OpenAi(quirks) => openai::Relay::new(quirks, ask),
        }
    }
}
