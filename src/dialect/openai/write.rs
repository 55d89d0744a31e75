//! Writes replies in the client's form from the pieces that other dialects' decoders find: chunk by chunk, or whole.
//! Texts arrive as JSON literals and are copied as they are.

use bytes::{Bytes, BytesMut};

use crate::chat::{Piece, Sink, Usage};
use crate::dialect::Ask;

/// Identity of one reply, as every part of it repeats it.
struct Identity {
    id: String,
    created: u64,
    model: String,
}

impl Identity {
    fn new(ask: &Ask<'_>) -> Self {
        Self { id: inside(ask.id), created: ask.now, model: inside(ask.model) }
    }

    fn learn(&mut self, id: &str, model: &str) {
        if !id.is_empty() {
            id.clone_into(&mut self.id);
        }
        if !model.is_empty() {
            model.clone_into(&mut self.model);
        }
    }

    fn open(&self, out: &mut impl Extend<u8>, object: &str) {
        let Self { id, created, model } = self;
        let text = format!(
            "{{\"id\":\"chatcmpl-{id}\",\"object\":\"{object}\",\"created\":{created},\"model\":\"{model}\",\"choices\":["
        );
        out.extend(text.into_bytes());
    }
}

/// The inside of the JSON literal of a text.
fn inside(text: &str) -> String {
    let literal = serde_json::Value::from(text).to_string();
    literal[1..literal.len() - 1].to_owned()
}

/// The inside of a literal.
fn bare(literal: &str) -> &str {
    literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(literal)
}

/// Writes the chunks of a stream.
pub struct ChunkWriter {
    identity: Identity,
    /// What stands before the choice in every chunk.
    head: Vec<u8>,
    /// What stands behind it.
    tail: &'static [u8],
    /// Choices that have got their role.
    begun: u64,
    /// Who signs: a literal of backend and model.
    origin: String,
}

impl ChunkWriter {
    /// Starts with an identity of our own.
    pub fn new(ask: &Ask<'_>) -> Self {
        let tail: &'static [u8] = if ask.scan.include_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        let mut writer = Self { identity: Identity::new(ask), head: Vec::new(), tail, begun: 0, origin: origin(ask) };
        writer.make_head();
        writer
    }

    fn make_head(&mut self) {
        self.head = b"data: ".to_vec();
        self.identity.open(&mut self.head, "chat.completion.chunk");
    }

    /// Takes over the provider's identity.
    pub fn identify(&mut self, id: &str, model: &str) {
        self.identity.learn(id, model);
        self.make_head();
    }

    /// The event that carries a piece.
    pub fn chunk(&mut self, choice: u32, piece: &Piece<'_>) -> Bytes {
        let mut out = BytesMut::with_capacity(self.head.len() + 160 + size(piece));
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(choice).as_bytes());
        out.extend_from_slice(b",\"delta\":{");
        let bit = 1u64.checked_shl(choice).unwrap_or(0);
        if self.begun & bit == 0 {
            self.begun |= bit;
            out.extend_from_slice(b"\"role\":\"assistant\"");
            if !matches!(piece, Piece::Text(_)) {
                out.extend_from_slice(b",\"content\":null");
            }
            if has_delta(piece) {
                out.extend_from_slice(b",");
            }
        }
        self.write_delta(&mut out, piece);
        out.extend_from_slice(b"}");
        match piece {
            Piece::Logprobs(list) => {
                out.extend_from_slice(b",\"logprobs\":{\"content\":");
                out.extend_from_slice(list.as_bytes());
                out.extend_from_slice(b",\"refusal\":null},\"finish_reason\":null}");
            }
            Piece::Finish { reason, native } => {
                out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":\"");
                out.extend_from_slice(reason.word().as_bytes());
                out.extend_from_slice(b"\"");
                write_native(&mut out, native.as_deref());
                out.extend_from_slice(b"}");
            }
            _ => out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}"),
        }
        out.extend_from_slice(self.tail);
        out.freeze()
    }

    fn write_delta(&self, out: &mut BytesMut, piece: &Piece<'_>) {
        match piece {
            Piece::Text(text) => put(out, &["\"content\":", text]),
            Piece::Reasoning(text) => put(out, &["\"reasoning_content\":", text, ",\"reasoning\":", text]),
            Piece::Refusal(text) => put(out, &["\"refusal\":", text]),
            Piece::ThinkingBlocks(list) => {
                put(out, &["\"thinking_blocks\":", list, ",\"extra_content\":{\"origin\":", &self.origin, "}"]);
            }
            Piece::Signature(text) => write_signature(out, text, &self.origin),
            Piece::Annotations(list) => put(out, &["\"annotations\":", list]),
            Piece::Image { .. } => {
                put(out, &["\"images\":["]);
                write_image(out, piece, &self.origin);
                put(out, &["]"]);
            }
            Piece::Call { index, .. } => {
                put(out, &["\"tool_calls\":[{\"index\":", itoa::Buffer::new().format(*index), ","]);
                write_call(out, piece, &self.origin);
                put(out, &["]"]);
            }
            Piece::Arguments { index, text } => {
                let place = &mut itoa::Buffer::new();
                put(out, &["\"tool_calls\":[{\"index\":", place.format(*index), ",\"function\":{\"arguments\":", text, "}}]"]);
            }
            Piece::Logprobs(_) | Piece::Finish { .. } => {}
        }
    }

    /// The event that carries the usage alone.
    pub fn usage(&self, usage: &Usage) -> Bytes {
        let mut out = BytesMut::from(&self.head[..]);
        out.extend_from_slice(b"],\"usage\":");
        out.extend_from_slice(usage.to_openai().to_string().as_bytes());
        out.extend_from_slice(b"}\n\n");
        out.freeze()
    }
}

/// About how long a piece is.
fn size(piece: &Piece<'_>) -> usize {
    match piece {
        Piece::Text(text)
        | Piece::Reasoning(text)
        | Piece::Refusal(text)
        | Piece::ThinkingBlocks(text)
        | Piece::Signature(text)
        | Piece::Arguments { text, .. } => text.len(),
        Piece::Image { media, data, signature, .. } => media.len() + data.len() + signature.map_or(0, str::len),
        Piece::Call { id, name, arguments, signature, .. } => {
            id.len() + name.len() + arguments.len() + signature.map_or(0, str::len)
        }
        Piece::Logprobs(list) | Piece::Annotations(list) => list.len(),
        Piece::Finish { .. } => 32,
    }
}

fn has_delta(piece: &Piece<'_>) -> bool {
    !matches!(piece, Piece::Finish { .. } | Piece::Logprobs(_))
}

fn put(out: &mut BytesMut, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Backend and model as a literal: a signature means something to these alone.
fn origin(ask: &Ask<'_>) -> String {
    serde_json::Value::from(ask.origin()).to_string()
}

fn write_signature(out: &mut BytesMut, signature: &str, origin: &str) {
    put(out, &["\"extra_content\":{\"google\":{\"thought_signature\":", signature, "},\"origin\":", origin, "}"]);
}

/// A call without its opening brace and index.
fn write_call(out: &mut BytesMut, piece: &Piece<'_>, origin: &str) {
    let Piece::Call { id, name, arguments, signature, .. } = piece else { return };
    put(out, &["\"id\":", id, ",\"type\":\"function\",\"function\":{\"name\":", name, ",\"arguments\":", arguments, "}"]);
    if let Some(signature) = signature {
        put(out, &[","]);
        write_signature(out, signature, origin);
    }
    put(out, &["}"]);
}

fn write_image(out: &mut BytesMut, piece: &Piece<'_>, origin: &str) {
    let Piece::Image { index, media, data, signature } = piece else { return };
    let place = &mut itoa::Buffer::new();
    put(out, &["{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:", bare(media), ";base64,", bare(data), "\"},\"index\":"]);
    put(out, &[place.format(*index)]);
    if let Some(signature) = signature {
        put(out, &[","]);
        write_signature(out, signature, origin);
    }
    put(out, &["}"]);
}

fn write_native(out: &mut BytesMut, native: Option<&str>) {
    if let Some(native) = native {
        out.extend_from_slice(b",\"native_finish_reason\":");
        out.extend_from_slice(native.as_bytes());
    }
}

/// A member of an object whose objects are written already; nothing if there are none.
fn write_list(out: &mut BytesMut, name: &str, objects: &[BytesMut]) {
    for (place, object) in objects.iter().enumerate() {
        match place {
            0 => put(out, &[",\"", name, "\":["]),
            _ => put(out, &[","]),
        }
        out.extend_from_slice(object);
    }
    if !objects.is_empty() {
        put(out, &["]"]);
    }
}

/// What has come of one choice of a whole reply; texts without their quotes.
#[derive(Default)]
struct Gathered {
    text: Option<String>,
    reasoning: String,
    refusal: String,
    blocks: Option<String>,
    calls: Vec<BytesMut>,
    images: Vec<BytesMut>,
    signature: Option<String>,
    logprobs: Option<String>,
    annotations: Option<String>,
    finish: Option<(&'static str, Option<String>)>,
}

/// Gathers the pieces of a whole reply and writes it.
pub struct ReplyWriter {
    identity: Identity,
    choices: Vec<Gathered>,
    /// Who signs: a literal of backend and model.
    origin: String,
}

/// More choices than any request may ask for.
const MAX_CHOICES: u32 = 128;

impl ReplyWriter {
    /// Starts with an identity of our own.
    pub fn new(ask: &Ask<'_>) -> Self {
        Self { identity: Identity::new(ask), choices: Vec::new(), origin: origin(ask) }
    }

    /// Whether no piece has come.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The body.
    pub fn finish(self, usage: Option<&Usage>) -> Bytes {
        let mut out = BytesMut::with_capacity(512);
        self.identity.open(&mut out, "chat.completion");
        for (index, choice) in self.choices.into_iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(b",");
            }
            out.extend_from_slice(format!("{{\"index\":{index},\"message\":").as_bytes());
            choice.write(&mut out, &self.origin);
            out.extend_from_slice(b"}");
        }
        out.extend_from_slice(b"]");
        if let Some(usage) = usage {
            out.extend_from_slice(b",\"usage\":");
            out.extend_from_slice(usage.to_openai().to_string().as_bytes());
        }
        out.extend_from_slice(b"}");
        out.freeze()
    }
}

impl Sink for ReplyWriter {
    fn identify(&mut self, id: &str, model: &str) {
        self.identity.learn(id, model);
    }

    fn piece(&mut self, choice: u32, piece: &Piece<'_>) {
        let place = choice.min(MAX_CHOICES) as usize;
        if self.choices.len() <= place {
            self.choices.resize_with(place + 1, Gathered::default);
        }
        self.choices[place].take(piece, &self.origin);
    }
}

impl Gathered {
    fn take(&mut self, piece: &Piece<'_>, origin: &str) {
        match piece {
            Piece::Text(text) => self.text.get_or_insert_default().push_str(bare(text)),
            Piece::Reasoning(text) => self.reasoning.push_str(bare(text)),
            Piece::Refusal(text) => self.refusal.push_str(bare(text)),
            Piece::ThinkingBlocks(list) => self.blocks = Some((*list).to_owned()),
            Piece::Signature(text) => self.signature = Some((*text).to_owned()),
            Piece::Logprobs(list) => self.logprobs = Some(list.clone()),
            Piece::Annotations(list) => self.annotations = Some(list.clone()),
            Piece::Call { .. } => {
                let mut call = BytesMut::from("{");
                write_call(&mut call, piece, origin);
                self.calls.push(call);
            }
            Piece::Image { .. } => {
                let mut image = BytesMut::new();
                write_image(&mut image, piece, origin);
                self.images.push(image);
            }
            // A whole reply has its arguments whole.
            Piece::Arguments { .. } => {}
            Piece::Finish { reason, native } => self.finish = Some((reason.word(), native.as_deref().map(str::to_owned))),
        }
    }

    /// The message and what follows it in its choice.
    fn write(self, out: &mut BytesMut, origin: &str) {
        put(out, &["{\"role\":\"assistant\",\"content\":"]);
        match &self.text {
            Some(text) => put(out, &["\"", text, "\""]),
            None if self.calls.is_empty() && self.refusal.is_empty() => put(out, &["\"\""]),
            None => put(out, &["null"]),
        }
        match self.refusal.is_empty() {
            true => put(out, &[",\"refusal\":null"]),
            false => put(out, &[",\"refusal\":\"", &self.refusal, "\""]),
        }
        if !self.reasoning.is_empty() {
            let text = &self.reasoning;
            put(out, &[",\"reasoning_content\":\"", text, "\",\"reasoning\":\"", text, "\""]);
        }
        if let Some(list) = &self.blocks {
            put(out, &[",\"thinking_blocks\":", list, ",\"extra_content\":{\"origin\":", origin, "}"]);
        }
        if let Some(signature) = &self.signature {
            put(out, &[","]);
            write_signature(out, signature, origin);
        }
        if let Some(list) = &self.annotations {
            put(out, &[",\"annotations\":", list]);
        }
        write_list(out, "images", &self.images);
        write_list(out, "tool_calls", &self.calls);
        match &self.logprobs {
            Some(list) => put(out, &["},\"logprobs\":{\"content\":", list, ",\"refusal\":null},\"finish_reason\":"]),
            None => put(out, &["},\"logprobs\":null,\"finish_reason\":"]),
        }
        let (reason, native) = self.finish.unwrap_or(("stop", None));
        put(out, &["\"", reason, "\""]);
        write_native(out, native.as_deref());
    }
}
