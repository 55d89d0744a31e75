//! The one borrowing scan of a request body: where its top-level fields are, and which features it uses.
//!
//! The places travel with the request, so that a later splice is a copy and not a second parse.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;

use super::json::{JsonError, Lexer, unquote};

/// What stands in the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Image parts.
    pub images: bool,
    /// Replayed reasoning, or what one provider wants back: only some hosts accept it.
    pub replayed: bool,
}

/// A top-level field: its name, and the places of its quoted key and of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Place in [`KNOWN`], or that of no name.
    known: u8,
    key: (u32, u32),
    value: (u32, u32),
}

/// Names of fields that the gateway reads or that a provider may want changed; the first [`WATCHED`] may stand only
/// once, since a duplicate could be read one way here and another way by the provider.
const KNOWN: [&str; 45] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "tools",
    "response_format",
    "logprobs",
    "modalities",
    "audio",
    "input",
    "encoding_format",
    "max_tokens",
    "max_completion_tokens",
    "functions",
    "tool_choice",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "user",
    "metadata",
    "store",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "top_logprobs",
    "parallel_tool_calls",
    "service_tier",
    "reasoning_effort",
    "prediction",
    "prompt_cache_key",
    "safety_identifier",
    "verbosity",
    "dimensions",
    "prompt",
    "suffix",
    "function_call",
    "web_search_options",
    "prompt_cache_options",
    "prompt_cache_retention",
    "moderation",
    "min_tokens",
    "top_k",
    "repetition_penalty",
];
const WATCHED: usize = 16;
/// Top-level fields at most.
const MAX_FIELDS: usize = 1_000;

impl Field {
    /// The name, unescaped.
    pub fn name<'b>(&self, body: &'b [u8]) -> Cow<'b, str> {
        match KNOWN.get(usize::from(self.known)) {
            Some(name) => Cow::Borrowed(name),
            None => unquote(self.key(body)).unwrap_or_default(),
        }
    }

    /// The quoted key as it stands in the body.
    pub fn key<'b>(&self, body: &'b [u8]) -> &'b [u8] {
        &body[self.key.0 as usize..self.key.1 as usize]
    }

    /// The value as it stands in the body.
    pub fn value<'b>(&self, body: &'b [u8]) -> &'b [u8] {
        &body[self.value.0 as usize..self.value.1 as usize]
    }
}

fn known(name: &str) -> Option<usize> {
    KNOWN.iter().position(|known| *known == name)
}

/// What a scan finds.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Every top-level field, in order.
    pub fields: SmallVec<[Field; 12]>,
    /// The requested model.
    pub model: Option<Box<str>>,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether the usage event of a stream is asked for.
    pub include_usage: bool,
    /// What its messages hold.
    pub features: Features,
}

impl Scan {
    /// The value of the field with this name, as it stands in the body.
    pub fn value<'b>(&self, body: &'b [u8], name: &str) -> Option<&'b [u8]> {
        self.fields.iter().find(|field| field.name(body) == name).map(|field| field.value(body))
    }

    /// Whether there is a field with this name.
    pub fn has(&self, body: &[u8], name: &str) -> bool {
        self.fields.iter().any(|field| field.name(body) == name)
    }
}

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A key or the model is not UTF-8.
    #[error("the body is not UTF-8")]
    Encoding,
    /// More top-level fields than any request has.
    #[error("the body has more than {MAX_FIELDS} top-level fields")]
    Fields,
    /// Larger than places can tell.
    #[error("a JSON body must be smaller than 4 GiB")]
    Size,
    /// A field that the gateway reads has the wrong type or stands twice.
    #[error("`{field}` {reason}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What kind of body is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `model` and `messages` are required.
    Chat,
    /// `model` is required.
    Model,
    /// Nothing is required.
    Free,
}

/// Scans a body. Its structure, escapes and control characters are checked; whether texts that only the provider reads
/// are UTF-8 is left to the provider, since a second pass over a large body would cost as much as the scan.
///
/// # Errors
/// [`ScanError`] for anything that is not a JSON object of the expected shape.
pub fn scan(body: &[u8], shape: Shape) -> Result<Scan, ScanError> {
    if u32::try_from(body.len()).is_err() {
        return Err(ScanError::Size);
    }
    let mut found = Scan::default();
    let mut seen = 0u64;
    let mut lexer = Lexer::new(body);
    lexer.object::<ScanError>(|lexer, key| {
        let name = unquote(&body[key.clone()]).ok_or(ScanError::Encoding)?;
        let place = known(&name);
        if let Some(bit) = place.filter(|bit| *bit < WATCHED) {
            if seen & (1 << bit) != 0 {
                return Err(ScanError::Field { field: KNOWN[bit], reason: "stands twice in the body" });
            }
            seen |= 1 << bit;
        }
        let value = match &*name {
            "messages" => messages(lexer, body, &mut found.features)?,
            _ => lexer.value()?,
        };
        if let Some(bit) = place {
            found.read(KNOWN[bit], &body[value.clone()])?;
        }
        if found.fields.len() == MAX_FIELDS {
            return Err(ScanError::Fields);
        }
        let short = |range: Range<usize>| (u32::try_from(range.start).unwrap_or(0), u32::try_from(range.end).unwrap_or(0));
        let known = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX);
        found.fields.push(Field { known, key: short(key), value: short(value) });
        Ok(())
    })?;
    lexer.end()?;
    let lacks = |field: &str| known(field).is_some_and(|bit| seen & (1 << bit) == 0);
    if shape != Shape::Free && found.model.is_none() {
        return Err(ScanError::Field { field: "model", reason: "is required" });
    }
    if shape == Shape::Chat && lacks("messages") {
        return Err(ScanError::Field { field: "messages", reason: "is required" });
    }
    Ok(found)
}

impl Scan {
    fn read(&mut self, field: &'static str, value: &[u8]) -> Result<(), ScanError> {
        let wrong = |reason| Err(ScanError::Field { field, reason });
        match field {
            "model" => match unquote(value) {
                Some(model) if model.is_empty() => return wrong("must not be empty"),
                Some(model) if model.len() > 256 => return wrong("is longer than 256 bytes"),
                Some(model) if model.chars().any(char::is_control) => {
                    return wrong("must not hold control characters");
                }
                Some(model) => self.model = Some(model.into()),
                None if value.first() == Some(&b'"') => return Err(ScanError::Encoding),
                None => return wrong("must be a string"),
            },
            "stream" => match value {
                b"true" => self.stream = true,
                b"false" | b"null" => {}
                _ => return wrong("must be true or false"),
            },
            "n" if value == b"null" => {}
            "n" => match std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()) {
                Some(1..) => {}
                Some(0) | None => return wrong("must be a whole number from 1"),
            },
            "stream_options" => self.include_usage = stream_options(value)?,
            _ => {}
        }
        Ok(())
    }
}

fn stream_options(value: &[u8]) -> Result<bool, ScanError> {
    if value == b"null" {
        return Ok(false);
    }
    let mut include = false;
    let wrong = ScanError::Field { field: "stream_options", reason: "must be an object with include_usage true or false" };
    if value.first() != Some(&b'{') {
        return Err(wrong);
    }
    Lexer::new(value).object::<ScanError>(|lexer, key| {
        let inner = lexer.value()?;
        if matches!(unquote(&value[key]), Some(name) if name == "include_usage") {
            match &value[inner] {
                b"true" => include = true,
                b"false" | b"null" => include = false,
                _ => return Err(wrong.clone()),
            }
        }
        Ok(())
    })?;
    Ok(include)
}

/// Crosses `messages` and notes the kinds of content parts.
fn messages(lexer: &mut Lexer<'_>, body: &[u8], features: &mut Features) -> Result<Range<usize>, ScanError> {
    const WRONG: ScanError = ScanError::Field { field: "messages", reason: "must be a list of objects" };
    if lexer.peek() != Some(b'[') {
        return Err(WRONG);
    }
    let start = lexer.position();
    lexer.array::<ScanError>(|lexer| {
        if lexer.peek() != Some(b'{') {
            return Err(WRONG);
        }
        lexer.object::<ScanError>(|lexer, key| {
            match &body[key.clone()] {
                b"\"reasoning\""
                | b"\"reasoning_content\""
                | b"\"thinking_blocks\""
                | b"\"extra_content\""
                | b"\"cache_control\""
                | b"\"is_error\"" => {
                    features.replayed = true;
                }
                b"\"tool_calls\"" => {
                    let calls = lexer.value()?;
                    if memchr::memmem::find(&body[calls], b"\"extra_content\"").is_some() {
                        features.replayed = true;
                    }
                    return Ok(());
                }
                _ => {}
            }
            if &body[key] != b"\"content\"" || lexer.peek() != Some(b'[') {
                lexer.value()?;
                return Ok(());
            }
            lexer.array::<ScanError>(|lexer| part(lexer, body, features))
        })
    })?;
    Ok(start..lexer.position())
}

fn part(lexer: &mut Lexer<'_>, body: &[u8], features: &mut Features) -> Result<(), ScanError> {
    if lexer.peek() != Some(b'{') {
        lexer.value()?;
        return Ok(());
    }
    lexer.object::<ScanError>(|lexer, key| {
        let value = lexer.value()?;
        if &body[key.clone()] == b"\"cache_control\"" {
            features.replayed = true;
        }
        if &body[key] == b"\"type\"" {
            features.images |= &body[value] == b"\"image_url\"";
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_yields_its_model_places_and_features() {
        let body = br#"{"mod\u0065l":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"n":2,"tools":[{}],
            "messages":[{"role":"user","content":[{"type":"text","text":"\"type\":\"file\""},{"type":"image_url","image_url":{}}]}]}"#;
        let found = scan(body, Shape::Chat).unwrap();
        assert_eq!(found.model.as_deref(), Some("gpt-4o"));
        assert!(found.stream && found.include_usage);
        assert_eq!(found.features, Features { images: true, replayed: false });
        assert_eq!(found.value(body, "model").unwrap(), b"\"gpt-4o\"");
    }

    #[test]
    fn wrong_types_and_duplicates_name_their_field() {
        let cases = [
            (r#"{"messages":[]}"#, "model"),
            (r#"{"model":1,"messages":[]}"#, "model"),
            (r#"{"model":"","messages":[]}"#, "model"),
            (r#"{"model":"a\nb","messages":[]}"#, "model"),
            (r#"{"model":"a","model":"b","messages":[]}"#, "model"),
            (r#"{"model":"a","mod\u0065l":"b","messages":[]}"#, "model"),
            (r#"{"model":"a"}"#, "messages"),
            (r#"{"model":"a","messages":{}}"#, "messages"),
            (r#"{"model":"a","messages":["x"]}"#, "messages"),
            (r#"{"model":"a","messages":[],"stream":"yes"}"#, "stream"),
            (r#"{"model":"a","messages":[],"n":0}"#, "n"),
            (r#"{"model":"a","messages":[],"n":1.5}"#, "n"),
            (r#"{"model":"a","messages":[],"stream_options":[]}"#, "stream_options"),
            (r#"{"model":"a","messages":[],"stream_options":{"include_usage":1}}"#, "stream_options"),
        ];
        for (body, expected) in cases {
            match scan(body.as_bytes(), Shape::Chat) {
                Err(ScanError::Field { field, .. }) => assert_eq!(field, expected, "{body}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        assert!(matches!(scan(b"[]", Shape::Free), Err(ScanError::Json(_))));
        assert!(matches!(scan(b"{\"\xff\":1}", Shape::Free), Err(ScanError::Encoding)));
    }
}
