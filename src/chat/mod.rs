//! The neutral vocabulary of a conversation: what a request is, how it may fail, what it used. Plain values, no IO.

mod conversation;
mod event;
mod failure;
mod json;
pub mod request;
mod scan;
mod usage;

pub use conversation::{conversation_key, named_key};
pub use event::{FinishReason, Keepsake, Piece, Sink};
pub use failure::{Failure, FailureClass, Phase, Retry, Verdict};
pub use json::{JsonError, Lexer, unquote};
pub use scan::{Features, Field, Scan, ScanError, Shape, scan};
pub use usage::Usage;
pub(crate) use usage::count;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// Any other path, passed through.
    Passthrough,
}

impl Endpoint {
    /// The endpoint that a path means.
    pub fn of_path(path: &str) -> Self {
        if path.ends_with("/chat/completions") {
            Self::Chat
        } else if path.ends_with("/completions") {
            Self::Completions
        } else if path.ends_with("/embeddings") {
            Self::Embeddings
        } else {
            Self::Passthrough
        }
    }

    /// Name for spans and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Passthrough => "passthrough",
        }
    }
}
