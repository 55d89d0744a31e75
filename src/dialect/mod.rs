//! Wire formats. `enum Dialect` holds the only `match` over them; each dialect is a folder of pure translation without
//! IO or clock. A new one is a folder, an arm here, and a folder of golden files.

pub mod anthropic;
mod dropped;
pub mod google;
pub mod openai;
mod relay;
pub mod sse;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize as _, Deserializer};
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};

pub use dropped::Dropped;
pub use relay::{EventDecoder, Relay, Translated};

use crate::chat::{Endpoint, Failure, Keepsake, Scan, Usage};
use crate::settings::{Backend, BackendType};

/// Largest single event in bytes: room for an image in base64, an end for an endless line.
const EVENT_LIMIT: usize = 16 << 20;

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
    /// Who is asked.
    pub backend: &'a Backend,
    /// The request's id, for identities that a provider leaves out.
    pub id: &'a str,
    /// Seconds since 1970, for the same purpose.
    pub now: u64,
    /// What was kept for a tool call's id.
    pub recall: &'a dyn Fn(&str) -> Option<Arc<str>>,
    /// Images that were fetched, by their addresses.
    pub images: &'a HashMap<String, Image>,
}

impl Ask<'_> {
    /// Backend and model: what they sign, they alone understand.
    pub fn origin(&self) -> String {
        format!("{}/{}", self.backend.name, self.model)
    }

    /// What was kept with a tool call for this very model.
    fn kept(&self, call: &str) -> Option<String> {
        let state = (self.recall)(call)?;
        Keepsake::for_model(&state, self.model).map(str::to_owned)
    }
}

/// An image that was fetched.
#[derive(Debug)]
pub struct Image {
    /// Media type, as its bytes show.
    pub media: &'static str,
    /// Its bytes.
    pub base64: String,
}

/// A request in the provider's form.
pub struct Encoded {
    /// Bodies to send: one, but for embeddings in several parts.
    pub bodies: SmallVec<[Bytes; 1]>,
    /// Fields left out because the provider does not know them.
    pub dropped: SmallVec<[Box<str>; 4]>,
    /// Headers for this request alone.
    pub headers: Vec<(&'static str, String)>,
}

impl Encoded {
    /// A request of one body.
    pub fn new(body: Bytes, dropped: SmallVec<[Box<str>; 4]>) -> Self {
        Self { bodies: smallvec![body], dropped, headers: Vec::new() }
    }
}

/// A whole reply in the client's form.
#[derive(Debug)]
pub struct Whole {
    /// Body to answer with.
    pub body: Bytes,
    /// Tokens, if reported.
    pub usage: Option<Usage>,
    /// What must be kept for later requests.
    pub keepsakes: Vec<Keepsake>,
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

/// A loss of translation: what becomes of a field that the provider does not have as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lossy {
    /// The field of the OpenAI API.
    pub field: &'static str,
    /// What becomes of it.
    pub rule: &'static str,
}

/// What a dialect knows about one backend, worked out once.
#[derive(Debug)]
pub enum Codec {
    /// OpenAI and its types.
    OpenAi(openai::Quirks),
    /// Anthropic.
    Anthropic,
    /// Google.
    Google,
}

impl Dialect {
    /// The dialect a backend speaks.
    pub fn of(backend: &Backend) -> Self {
        match backend.wire_type() {
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

    /// The codec for a backend.
    pub fn codec(backend: &Backend) -> Codec {
        match Self::of(backend) {
            Self::OpenAi => Codec::OpenAi(openai::Quirks::of(backend)),
            Self::Anthropic => Codec::Anthropic,
            Self::Google => Codec::Google,
        }
    }

    /// What is lost on the way to a dialect, for people.
    pub fn lossy(self) -> &'static [Lossy] {
        match self {
            Self::OpenAi => &[],
            Self::Anthropic => anthropic::LOSSY,
            Self::Google => google::LOSSY,
        }
    }

    /// Whether clients' bytes may pass through unread: only to the dialect they speak.
    pub fn passes_bytes(self) -> bool {
        self == Self::OpenAi
    }
}

impl Codec {
    /// The address of an endpoint; `path` is the part behind the version, such as `/chat/completions`.
    pub fn url(&self, backend: &Backend, endpoint: Endpoint, path: &str, model: &str, stream: bool) -> String {
        match self {
            Self::OpenAi(_) => openai::url(backend, endpoint, path, model),
            Self::Anthropic => anthropic::url(backend, endpoint, path),
            Self::Google => google::url(backend, endpoint, path, model, stream),
        }
    }

    /// Whether the address depends on the model.
    pub fn model_in_url(&self, backend: &Backend) -> bool {
        match self {
            Self::OpenAi(_) => backend.kind == BackendType::Azure && backend.api_version.is_some(),
            Self::Anthropic => false,
            Self::Google => true,
        }
    }

    /// Headers that every request carries, the credential among them.
    pub fn headers(&self, backend: &Backend) -> Vec<(String, String)> {
        let mut headers = match self {
            Self::OpenAi(_) => return openai::headers(backend),
            Self::Anthropic => anthropic::headers(backend),
            Self::Google => google::headers(backend),
        };
        headers.extend(backend.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        headers
    }

    /// Addresses of images that must be fetched before the request can be said.
    ///
    /// # Errors
    /// A failure of class `Caller` when the body cannot be read.
    pub fn images(&self, endpoint: Endpoint, body: &[u8], scan: &Scan) -> Result<HashSet<String>, Failure> {
        let may_have = endpoint == Endpoint::Chat && scan.features.images;
        match self {
            Self::Google if may_have => google::image_urls(body),
            Self::Google | Self::OpenAi(_) | Self::Anthropic => Ok(HashSet::new()),
        }
    }

    /// The request in the provider's form.
    ///
    /// # Errors
    /// A failure of class `Caller` or `Unsupported` when the request cannot be said in this dialect.
    pub fn encode(&self, ask: &Ask<'_>) -> Result<Encoded, Failure> {
        match self {
            Self::OpenAi(quirks) => openai::encode(quirks, ask),
            Self::Anthropic => anthropic::encode(ask),
            Self::Google => google::encode(ask),
        }
    }

    /// The failure that an error reply means.
    pub fn failure(&self, reply: &ErrorReply<'_>) -> Failure {
        match self {
            Self::OpenAi(_) => openai::failure(reply),
            Self::Anthropic => anthropic::failure(reply),
            Self::Google => google::failure(reply),
        }
    }

    /// Checks and, where needed, translates a whole reply: its bodies, one for each that was sent.
    ///
    /// # Errors
    /// `Malformed` for what is not a reply, or the failure that an error inside a 200 means.
    pub fn decode(&self, ask: &Ask<'_>, bodies: &[Bytes]) -> Result<Whole, Failure> {
        let first = bodies.first().cloned().unwrap_or_default();
        match self {
            Self::OpenAi(quirks) => openai::decode(quirks, ask, first),
            Self::Anthropic => anthropic::decode(ask, &first),
            Self::Google => google::decode(ask, bodies),
        }
    }

    /// The state machine for a streamed reply.
    pub fn relay(&self, ask: &Ask<'_>) -> Relay {
        match self {
            Self::OpenAi(quirks) => Relay::Same(openai::Relay::new(quirks, ask)),
            Self::Anthropic => Relay::Translated(Translated::new(ask, Box::new(anthropic::Events::new(ask)))),
            Self::Google => Relay::Translated(Translated::new(ask, Box::new(google::Events::new(ask)))),
        }
    }

    /// The failure that a success with an error in it means; `None` when there is no error in it.
    pub fn failure_in(&self, body: &[u8]) -> Option<Failure> {
        match self {
            Self::OpenAi(_) => openai::failure_in_reply(&serde_json::from_slice(body).ok()?),
            Self::Anthropic => anthropic::failure_in(body),
            Self::Google => google::failure_in(body),
        }
    }

    /// A rate-limit header of the provider under the name and in the form of the OpenAI API.
    pub fn rate_limit(&self, name: &str, value: &str, now: u64) -> Option<(String, String)> {
        match self {
            Self::Anthropic => anthropic::rate_limit(name, value, now),
            // OpenAI's own pass as they are, and Google sends none.
            Self::OpenAi(_) | Self::Google => None,
        }
    }
}

/// Text that is JSON already, as a value that is copied as it is.
fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// A string as the literal that it is; anything else counts as absent, since literals are copied unread.
fn literal_only<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    let raw = Option::<&'de RawValue>::deserialize(deserializer)?;
    Ok(raw.filter(|raw| raw.get().starts_with('"')))
}

/// The inside of a string literal; `None` for anything else.
fn literal(value: Option<&RawValue>) -> Option<&str> {
    value?.get().strip_prefix('"')?.strip_suffix('"')
}

/// JSON as a literal of the text that it is.
fn stringified(json: &str) -> String {
    serde_json::to_string(json).unwrap_or_else(|_| "\"{}\"".to_owned())
}

/// A message in lower case, without what it quotes: that may be the client's words, which decide about no backend.
fn own_words(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(['\'', '"', '`']) {
        let (text, quoted) = rest.split_at(at);
        out.push_str(text);
        let (mark, inner) = quoted.split_at(1);
        // Within a word it is an apostrophe.
        let is_apostrophe = mark == "'" && text.chars().next_back().is_some_and(char::is_alphanumeric);
        rest = match inner.find(mark).filter(|_| !is_apostrophe) {
            Some(end) => &inner[end + 1..],
            None => inner,
        };
    }
    out.push_str(rest);
    out.to_lowercase()
}

/// Whether an error is about a file or an object that the request refers to: then it says nothing about key or model.
fn blames_a_file(message: &str) -> bool {
    let (all, own) = (message.to_lowercase(), own_words(message));
    ["file", "gs://", "storage.objects", "bucket"].iter().any(|word| all.contains(word))
        && !["model", "api key"].iter().any(|word| own.contains(word))
}

/// Bytes of an error message that are passed on.
const MESSAGE_LIMIT: usize = 2_000;

/// A body that is not JSON: the text itself unless it is a page.
fn plain_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MESSAGE_LIMIT)]);
    let text = text.trim();
    if text.starts_with('<') || text.chars().any(char::is_control) { String::new() } else { shorten(text) }
}

fn shorten(text: &str) -> String {
    if text.len() <= MESSAGE_LIMIT {
        return text.to_owned();
    }
    let mut end = MESSAGE_LIMIT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_decides_nothing() {
        assert_eq!(
            own_words("Decoding failed for \"API key not valid\", don't try 'it' or `that`"),
            "decoding failed for , dont try  or "
        );
        assert_eq!(own_words("an \"open quotation"), "an open quotation");
        assert!(blames_a_file("File not found: file_011"));
        assert!(blames_a_file("Permission 'storage.objects.get' denied on resource"));
        assert!(!blames_a_file("Publisher Model `projects/p/file/x` was not found"));
        assert!(!blames_a_file("Permission denied"));
    }
}
