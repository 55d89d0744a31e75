//! The client's body in the form that the backend's type takes: fields kept as bytes, and only what its quirks demand
//! replaced. Without an edit the very bytes go upstream.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::quirks::{Messages, OutputLimit, Quirks, wants_completion_tokens};
use super::{messages, strict};
use crate::chat::request::unsupported;
use crate::chat::{Endpoint, Failure};
use crate::dialect::{Ask, Encoded};

/// What becomes of one field.
pub(super) enum Edit {
    Keep,
    Drop,
    /// A new quoted key (if any) and a new value.
    Replace(Option<&'static str>, Cow<'static, [u8]>),
}

/// The request in the provider's form.
///
/// # Errors
/// `Unsupported` when the type cannot say what the request says.
pub fn encode(quirks: &Quirks, ask: &Ask<'_>) -> Result<Encoded, Failure> {
    if matches!(ask.model, "." | "..") {
        return Err(blame("model", "a model id of dots only would mean another path".into()));
    }
    if ask.endpoint == Endpoint::Passthrough {
        return Ok(Encoded::new(with_model(ask), SmallVec::new()));
    }
    let mut dropped: SmallVec<[Box<str>; 4]> = SmallVec::new();
    let mut edits: SmallVec<[Edit; 12]> = SmallVec::with_capacity(ask.scan.fields.len());
    let mut edited = false;
    let mut present = 0u32;
    // Only where one is there.
    let wanted_limit = || limit_name(quirks, ask);
    // The newer name wins where it says something.
    let says = |name: &str| ask.scan.fields.iter().any(|field| field.name(ask.body) == name && field.value(ask.body) != b"null");
    let surplus = match (has(ask, "max_tokens"), has(ask, "max_completion_tokens")) {
        (true, true) if says("max_completion_tokens") => Some("max_tokens"),
        (true, true) => Some("max_completion_tokens"),
        (true, false) | (false, _) => None,
    };

    for field in &ask.scan.fields {
        let name = field.name(ask.body);
        let value = field.value(ask.body);
        for (bit, (added, _)) in quirks.add.iter().enumerate() {
            present |= u32::from(*added == name) << bit;
        }
        let edit = match &*name {
            "model" => model(ask),
            "messages" => rewrite_messages(quirks, ask, value)?,
            limit if surplus == Some(limit) => Edit::Drop,
            "max_tokens" | "max_completion_tokens" => match wanted_limit() {
                Some(wanted) if wanted != name => Edit::Replace(Some(wanted), Cow::Owned(value.to_vec())),
                _ => Edit::Keep,
            },
            "stream_options" => stream_options(quirks, ask, value),
            "stop" if quirks.completion_style && value.first() == Some(&b'"') => {
                Edit::Replace(None, Cow::Owned([b"[".as_slice(), value, b"]"].concat()))
            }
            "logprobs" if quirks.completion_style && ask.endpoint == Endpoint::Chat && value == b"true" => {
                Edit::Replace(None, Cow::Borrowed(b"1"))
            }
            "logprobs" if quirks.completion_style && value == b"false" => Edit::Drop,
            name if quirks.messages == Messages::Strict && strict::knows(ask.endpoint, name) => strict::field(name, value)?,
            "tools" if quirks.messages == Messages::WithoutReasoning => unmarked_tools(value),
            _ => by_table(quirks, ask, &name, value),
        };
        let says_nothing = value == b"null" || (&*name, value) == ("logprobs", b"false".as_slice());
        if matches!(edit, Edit::Drop) && !says_nothing && !matches!(&*name, "stream_options" | "max_tokens") {
            dropped.push(name.into());
        }
        edited |= !matches!(edit, Edit::Keep);
        edits.push(edit);
    }

    let asks_usage =
        ask.scan.stream && quirks.stream_usage && ask.endpoint != Endpoint::Embeddings && !has(ask, "stream_options");
    let additions = quirks.add.iter().enumerate().filter(|(bit, _)| ask.endpoint == Endpoint::Chat && present & (1 << bit) == 0);
    if !edited && !asks_usage && additions.clone().next().is_none() {
        return Ok(Encoded::new(ask.body.clone(), dropped));
    }
    let mut out = Object::with_capacity(ask.body.len() + 64);
    for (field, edit) in ask.scan.fields.iter().zip(&edits) {
        let key = field.key(ask.body);
        match edit {
            Edit::Keep => out.field(key, field.value(ask.body)),
            Edit::Drop => {}
            Edit::Replace(None, value) => out.field(key, value),
            Edit::Replace(Some(name), value) => out.field(quote(name).as_bytes(), value),
        }
    }
    for (_, (name, value)) in additions {
        out.field(quote(name).as_bytes(), value.as_bytes());
    }
    if asks_usage {
        out.field(b"\"stream_options\"", b"{\"include_usage\":true}");
    }
    Ok(Encoded::new(out.finish(), dropped))
}

/// The body with nothing but its model replaced.
fn with_model(ask: &Ask<'_>) -> Bytes {
    if ask.scan.model.as_deref().is_none_or(|model| model == ask.model) {
        return ask.body.clone();
    }
    let mut out = Object::with_capacity(ask.body.len() + 64);
    for field in &ask.scan.fields {
        match field.name(ask.body) == "model" {
            true => out.field(field.key(ask.body), Value::from(ask.model).to_string().as_bytes()),
            false => out.field(field.key(ask.body), field.value(ask.body)),
        }
    }
    out.finish()
}

fn has(ask: &Ask<'_>, name: &str) -> bool {
    ask.scan.has(ask.body, name)
}

fn quote(name: &str) -> String {
    format!("\"{name}\"")
}

/// The model as the provider is asked for it.
fn model(ask: &Ask<'_>) -> Edit {
    if ask.scan.model.as_deref() == Some(ask.model) {
        return Edit::Keep;
    }
    Edit::Replace(None, Cow::Owned(Value::from(ask.model).to_string().into_bytes()))
}

/// The name of the output limit, if it has to be a certain one. A deployment's name says nothing, the model's that the
/// configuration gives it does.
fn limit_name(quirks: &Quirks, ask: &Ask<'_>) -> Option<&'static str> {
    let is_newer = || {
        let mut named = ask.backend.aliases.iter().filter(|(_, native)| *native == ask.model);
        wants_completion_tokens(ask.model) || named.any(|(alias, _)| wants_completion_tokens(alias))
    };
    match quirks.output_limit {
        OutputLimit::AsWritten => None,
        OutputLimit::ByModel => is_newer().then_some("max_completion_tokens"),
        OutputLimit::Legacy => Some("max_tokens"),
        OutputLimit::Modern => Some("max_completion_tokens"),
    }
}

/// Usage is always asked for in a stream where the type takes it: every request is settled by its tokens.
fn stream_options(quirks: &Quirks, ask: &Ask<'_>, value: &[u8]) -> Edit {
    if !quirks.stream_usage {
        return Edit::Drop;
    }
    if !ask.scan.stream || ask.scan.include_usage {
        return Edit::Keep;
    }
    let mut options = serde_json::from_slice::<Value>(value).unwrap_or(Value::Null);
    match options.as_object_mut() {
        Some(options) => drop(options.insert("include_usage".into(), json!(true))),
        None => options = json!({ "include_usage": true }),
    }
    Edit::Replace(None, Cow::Owned(options.to_string().into_bytes()))
}

fn by_table(quirks: &Quirks, ask: &Ask<'_>, name: &str, value: &[u8]) -> Edit {
    if quirks.drop.contains(&name)
        || ask.backend.drop_fields.iter().any(|field| field == name)
        || quirks.only.is_some_and(|only| value == b"null" || !only.of(ask.endpoint).contains(&name))
    {
        return Edit::Drop;
    }
    if let Some((_, _, new)) = quirks.replace.iter().find(|(field, old, _)| *field == name && old.as_bytes() == value) {
        return if new.is_empty() { Edit::Drop } else { Edit::Replace(None, Cow::Borrowed(new.as_bytes())) };
    }
    match quirks.rename.iter().find(|(old, _)| *old == name) {
        Some((_, new)) => Edit::Replace(Some(new), Cow::Owned(value.to_vec())),
        None => Edit::Keep,
    }
}

fn rewrite_messages(quirks: &Quirks, ask: &Ask<'_>, value: &[u8]) -> Result<Edit, Failure> {
    let rewritten = match quirks.messages {
        Messages::WithoutPrivate | Messages::WithoutReasoning if !ask.scan.features.replayed => {
            return Ok(Edit::Keep);
        }
        Messages::WithoutPrivate => messages::without(value, messages::PRIVATE),
        Messages::WithoutReasoning => messages::without(value, messages::REASONING),
        Messages::Plain => messages::without(value, messages::FOREIGN),
        Messages::Strict => messages::strict(value),
    };
    match rewritten {
        Ok(messages) => Ok(Edit::Replace(None, Cow::Owned(messages))),
        Err(error) => Err(blame("messages", format!("messages cannot be read: {error}"))),
    }
}

/// Tools without the cache markers that other dialects know.
fn unmarked_tools(value: &[u8]) -> Edit {
    if memchr::memmem::find(value, b"\"cache_control\"").is_none() {
        return Edit::Keep;
    }
    let raw = serde_json::from_slice::<&serde_json::value::RawValue>(value);
    match raw.and_then(|tools| messages::list_without(tools, &["cache_control"])) {
        Ok(tools) => Edit::Replace(None, Cow::Owned(tools.into_bytes())),
        Err(_) => Edit::Keep,
    }
}

/// What this type cannot say: another member of the pool may.
pub(super) fn blame(param: &str, message: String) -> Failure {
    unsupported(param, message)
}

/// Writes one object from fields that are already JSON.
struct Object(BytesMut);

impl Object {
    fn with_capacity(bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(bytes);
        out.extend_from_slice(b"{");
        Self(out)
    }

    fn field(&mut self, key: &[u8], value: &[u8]) {
        if self.0.len() > 1 {
            self.0.extend_from_slice(b",");
        }
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(b":");
        self.0.extend_from_slice(value);
    }

    fn finish(mut self) -> Bytes {
        self.0.extend_from_slice(b"}");
        self.0.freeze()
    }
}
