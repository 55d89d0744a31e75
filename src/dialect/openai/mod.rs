//! The OpenAI dialect: what can pass as bytes does, and the differences between its types are a table of [`Quirks`].

mod address;
mod embeddings;
mod error;
mod messages;
mod normal;
mod pattern;
mod quirks;
mod request;
mod response;
mod stream;
mod strict;
mod write;

pub use address::{headers, url};
pub use error::{failure, failure_in_reply};
pub use quirks::Quirks;
pub use request::encode;
pub use response::{decode, usage_in_tail};
pub(super) use stream::DONE;
pub use stream::{Relay, error_event};
pub use write::{ChunkWriter, ReplyWriter};
