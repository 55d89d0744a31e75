//! The conversation as Google takes it: instructions apart, two roles, one response for each function call in the order
//! of the calls, thought signatures back on the parts they came with.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::catalogue::GoogleRules;
use crate::chat::Failure;
use crate::chat::request::{
    BEGIN, CONTINUE, CalledFunction, Content as Said, Drawn, ExtraContent, Message, Part as SaidPart, Request, Role, Text,
    ToolCall, caller, check_calls, data_url, image_type, unsupported,
};
use crate::dialect::{Ask, raw};

/// One turn.
#[derive(Debug, Serialize)]
pub(super) struct Content<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) role: &'static str,
    pub(super) parts: Vec<Part<'a>>,
}

/// One part: exactly one of its kinds, with what stands beside it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Part<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline_data: Option<Blob<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_data: Option<FileData<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_response: Option<FunctionResponse<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thought_signature: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_resolution: Option<MediaResolution>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blob<'a> {
    mime_type: Cow<'a, str>,
    data: Cow<'a, str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FileData<'a> {
    file_uri: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mime_type: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct FunctionCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: &'a str,
    args: Cow<'a, RawValue>,
}

#[derive(Debug, Serialize)]
struct FunctionResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: &'a str,
    response: Cow<'a, RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part<'a>>,
}

#[derive(Debug, Serialize)]
struct MediaResolution {
    level: &'static str,
}

impl<'a> Part<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    fn inline(mime_type: impl Into<Cow<'a, str>>, data: impl Into<Cow<'a, str>>) -> Self {
        Self { inline_data: Some(Blob { mime_type: mime_type.into(), data: data.into() }), ..Self::default() }
    }

    fn file(file_uri: &'a str, mime_type: Option<&'static str>) -> Self {
        Self { file_data: Some(FileData { file_uri, mime_type }), ..Self::default() }
    }
}

/// The conversation in Google's form.
pub(super) struct Conversation<'a> {
    pub(super) system: Vec<Part<'a>>,
    pub(super) contents: Vec<Content<'a>>,
    /// Fields of messages that are left out.
    pub(super) lost: BTreeSet<&'static str>,
}

/// Addresses of images that the gateway must fetch before the request can be said.
///
/// # Errors
/// A body that is not a chat request.
pub fn image_urls(body: &[u8]) -> Result<HashSet<String>, Failure> {
    let request = Request::read(body)?;
    let mut urls = HashSet::new();
    for message in &request.messages {
        let Said::Parts(parts) = &message.content else { continue };
        for image in parts.iter().filter_map(|part| part.image_url.as_ref()) {
            if image.url.starts_with("http") {
                urls.insert(image.url.to_string());
            }
        }
    }
    Ok(urls)
}

/// Translates the messages.
pub(super) fn conversation<'a>(
    messages: &'a [Message<'a>],
    rules: &'a GoogleRules,
    ask: &'a Ask<'a>,
) -> Result<Conversation<'a>, Failure> {
    let current = messages.iter().rposition(|message| message.role == Role::User).unwrap_or(0);
    let mut building = Building {
        system: Vec::new(),
        contents: Vec::new(),
        calls: Vec::new(),
        images: Vec::new(),
        notes: Vec::new(),
        lost: BTreeSet::new(),
        origin: ask.origin(),
        rules,
        ask,
        current,
    };
    for (place, message) in messages.iter().enumerate() {
        building.take(place, message)?;
    }
    building.end(messages.len())
}

/// A call that waits for its result.
struct Waiting<'a> {
    id: &'a str,
    sent_id: Option<&'a str>,
    name: &'a str,
    result: Option<Part<'a>>,
}

struct Building<'a> {
    system: Vec<Part<'a>>,
    contents: Vec<Content<'a>>,
    calls: Vec<Waiting<'a>>,
    /// Images of results that older models take in a turn of their own only.
    images: Vec<Part<'a>>,
    /// Instructions that came between a call and its result and wait for their place.
    notes: Vec<Part<'a>>,
    /// Fields of messages that are left out.
    lost: BTreeSet<&'static str>,
    /// This backend and model.
    origin: String,
    rules: &'a GoogleRules,
    ask: &'a Ask<'a>,
    /// Where the current turn begins: with the last thing the user said.
    current: usize,
}

impl<'a> Building<'a> {
    fn take(&mut self, place: usize, message: &'a Message<'a>) -> Result<(), Failure> {
        let is_later = matches!(message.role, Role::User | Role::Assistant);
        if is_later {
            self.results(place)?;
        }
        self.lost.extend(message.losses().filter(|field| match *field {
            "messages.image_url.detail" => !self.rules.media_resolution,
            "messages.images" => message.role != Role::Assistant,
            _ => true,
        }));
        if message.is_marked() {
            self.lost.insert("cache_control");
        }
        match message.role {
            Role::System | Role::Developer => {
                let parts = self.parts(&message.content, place)?;
                if parts.iter().any(|part| part.text.is_none()) {
                    let field = format!("messages[{place}].content");
                    return Err(unsupported(&field, format!("`{field}`: Google takes text only as instructions")));
                }
                if self.contents.is_empty() {
                    self.system.extend(parts);
                } else {
                    let noted = parts.into_iter().filter_map(|part| part.text);
                    let noted: Vec<Part<'a>> = noted.map(|text| Part::text(format!("Note from the operator: {text}"))).collect();
                    match self.calls.is_empty() {
                        true => self.add("user", noted),
                        false => self.notes.extend(noted),
                    }
                }
            }
            Role::User => {
                let mut parts = self.parts(&message.content, place)?;
                if parts.is_empty() || parts.iter().all(|part| part.text.is_none()) {
                    // A turn must not vanish, and some models demand a text beside an image.
                    parts.push(Part::text(" "));
                }
                self.add("user", parts);
            }
            Role::Assistant => self.assistant(place, message)?,
            Role::Tool | Role::Function => self.result(place, message)?,
        }
        Ok(())
    }

    /// Appends to the last turn of the same role, unless that holds results, or begins a new one.
    fn add(&mut self, role: &'static str, parts: Vec<Part<'a>>) {
        if parts.is_empty() {
            return;
        }
        // A turn holds results alone, or none.
        let has_results = |turn: &Content<'_>| turn.parts.first().is_some_and(|part| part.function_response.is_some());
        match self.contents.last_mut() {
            Some(last) if last.role == role && !has_results(last) => last.parts.extend(parts),
            _ => self.contents.push(Content { role, parts }),
        }
    }

    fn assistant(&mut self, place: usize, message: &'a Message<'a>) -> Result<(), Failure> {
        let mut parts = self.parts(&message.content, place)?;
        if let Some(refusal) = message.refusal.as_ref().filter(|refusal| !refusal.is_empty()) {
            parts.push(Part::text(&**refusal));
        }
        match message.drawn() {
            Some(pictures) => {
                for drawn in pictures {
                    parts.push(self.drawn(drawn, place)?);
                }
            }
            None if message.images.is_some() => drop(self.lost.insert("messages.images")),
            None => {}
        }
        if let Some(signature) = signature(message.extra_content.as_ref(), &self.origin).filter(|_| self.rules.signatures) {
            match parts.iter_mut().rfind(|part| part.text.is_some()) {
                Some(last) => last.thought_signature = Some(Cow::Borrowed(signature)),
                None => parts.push(Part { thought_signature: Some(Cow::Borrowed(signature)), ..Part::text("") }),
            }
        }
        for (index, call) in message.tool_calls.iter().flatten().enumerate() {
            let field = format!("messages[{place}].tool_calls[{index}]");
            let Some(function) = &call.function else {
                return Err(unsupported(&field, format!("`{field}` is not a call of a function")));
            };
            let id = call.id.as_deref().unwrap_or_default();
            let mut part = self.call(id, function, &field)?;
            part.thought_signature = self.signature_of(place, index, id, call, function);
            parts.push(part);
        }
        if let Some(function) = &message.function_call {
            let mut part = self.call("", function, &format!("messages[{place}].function_call"))?;
            part.thought_signature = self.placeholder(place, 0);
            parts.push(part);
        }
        self.add("model", parts);
        Ok(())
    }

    fn call(&mut self, id: &'a str, function: &'a CalledFunction<'a>, field: &str) -> Result<Part<'a>, Failure> {
        check_calls(self.calls.len(), field)?;
        let sent_id = Some(id).filter(|id| self.rules.call_ids && is_own_id(id));
        self.calls.push(Waiting { id, sent_id, name: &function.name, result: None });
        let call = FunctionCall { id: sent_id, name: &function.name, args: function.object(field)? };
        Ok(Part { function_call: Some(call), ..Part::default() })
    }

    /// The signature of a call: the client's echo, else the gateway's memory, else the placeholder where the API
    /// demands one.
    fn signature_of(
        &self,
        place: usize,
        index: usize,
        id: &str,
        call: &'a ToolCall<'a>,
        function: &'a CalledFunction<'a>,
    ) -> Option<Cow<'a, str>> {
        if !self.rules.signatures {
            return None;
        }
        let echoed = signature(call.extra_content.as_ref(), &self.origin).or(function.thought_signature.as_deref());
        if let Some(echoed) = echoed {
            return Some(Cow::Borrowed(echoed));
        }
        if let Some(kept) = self.ask.kept(id) {
            return Some(Cow::Owned(kept));
        }
        self.placeholder(place, index)
    }

    /// What stands for a lost signature, where the API demands one: on the first call of each step of this turn.
    fn placeholder(&self, place: usize, index: usize) -> Option<Cow<'a, str>> {
        let is_demanded = self.rules.signatures && index == 0 && place > self.current;
        is_demanded.then_some(Cow::Borrowed(self.ask.backend.translation.signature_placeholder.as_str()))
    }

    fn result(&mut self, place: usize, message: &'a Message<'a>) -> Result<(), Failure> {
        let id = message.tool_call_id.as_deref();
        let waiting = self.calls.iter().position(|call| call.result.is_none() && id.is_none_or(|id| call.id == id));
        let Some(position) = waiting else {
            let field = format!("messages[{place}]");
            return Err(caller(&field, format!("`{field}` answers a tool call that was not made just before it")));
        };
        let mut media = Vec::new();
        let mut texts: Vec<Cow<'a, str>> = Vec::new();
        for part in self.parts(&message.content, place)? {
            match part.text {
                Some(text) => texts.push(text),
                None => media.push(part),
            }
        }
        let text = if texts.len() == 1 { texts.swap_remove(0) } else { Cow::Owned(texts.concat()) };
        if !self.rules.result_images {
            self.images.append(&mut media);
        }
        let call = &mut self.calls[position];
        let response = FunctionResponse {
            id: call.sent_id,
            name: call.name,
            response: response(text, message.is_error.unwrap_or(false)),
            parts: media,
        };
        call.result = Some(Part { function_response: Some(response), ..Part::default() });
        Ok(())
    }

    /// Puts the results of the last calls into a turn of their own, in the order of the calls.
    fn results(&mut self, place: usize) -> Result<(), Failure> {
        if self.calls.is_empty() {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(self.calls.len());
        for call in std::mem::take(&mut self.calls) {
            let Some(result) = call.result else {
                let field = format!("messages[{place}]");
                return Err(caller(&field, format!("`{field}`: the tool call `{}` before it has no result", call.id)));
            };
            parts.push(result);
        }
        self.contents.push(Content { role: "user", parts });
        let images = std::mem::take(&mut self.images);
        self.add("user", images);
        let notes = std::mem::take(&mut self.notes);
        self.add("user", notes);
        Ok(())
    }

    fn end(mut self, place: usize) -> Result<Conversation<'a>, Failure> {
        self.results(place)?;
        if self.contents.is_empty() {
            // Instructions alone are something to answer.
            let parts = std::mem::take(&mut self.system);
            self.add("user", parts);
        }
        if self.contents.first().is_none_or(|first| first.role != "user") {
            self.contents.insert(0, Content { role: "user", parts: vec![Part::text(BEGIN)] });
        }
        if self.rules.ends_with_user && self.contents.last().is_some_and(|last| last.role == "model") {
            self.add("user", vec![Part::text(CONTINUE)]);
        }
        Ok(Conversation { system: self.system, contents: self.contents, lost: self.lost })
    }

    /// The parts of a message's content, empty texts left out.
    fn parts(&self, content: &'a Said<'a>, place: usize) -> Result<Vec<Part<'a>>, Failure> {
        let text = |text: &'a Text<'a>| (!text.is_empty()).then(|| Part::text(&**text));
        match content {
            Said::None => Ok(Vec::new()),
            Said::Text(said) => Ok(text(said).into_iter().collect()),
            Said::Parts(parts) => {
                let mut out = Vec::with_capacity(parts.len());
                for (index, part) in parts.iter().enumerate() {
                    let field = || format!("messages[{place}].content[{index}]");
                    match (&*part.kind, part) {
                        ("text", SaidPart { text: Some(said), .. }) | ("refusal", SaidPart { refusal: Some(said), .. }) => {
                            out.extend(text(said));
                        }
                        ("image_url", SaidPart { image_url: Some(_), .. }) => out.push(self.image(part, &field)?),
                        ("input_audio", SaidPart { input_audio: Some(sound), .. }) => {
                            out.push(Part::inline(format!("audio/{}", &*sound.format), &*sound.data));
                        }
                        ("file", SaidPart { file: Some(_), .. }) => out.push(file(part, &field)?),
                        (kind, _) => {
                            let field = field();
                            return Err(unsupported(&field, format!("`{field}` of type `{kind}` cannot be sent to Google")));
                        }
                    }
                }
                Ok(out)
            }
        }
    }

    /// A picture of the model's own, with the signature it came with.
    fn drawn(&self, drawn: Drawn<'a>, place: usize) -> Result<Part<'a>, Failure> {
        let field = format!("messages[{place}].images");
        let refuse = || unsupported(&field, format!("`{field}` must hold base64 data: URLs for Google"));
        let signature = signature(drawn.extra_content.as_ref(), &self.origin).filter(|_| self.rules.signatures);
        let thought_signature = signature.map(|text| Cow::Owned(text.to_owned()));
        let part = match drawn.image_url.url.0 {
            Cow::Borrowed(url) => data_url(url).map(|(media, data)| Part::inline(media, data)),
            Cow::Owned(url) => data_url(&url).map(|(media, data)| Part::inline(media.to_owned(), data.to_owned())),
        };
        Ok(Part { thought_signature, ..part.ok_or_else(refuse)? })
    }

    fn image(&self, part: &'a SaidPart<'a>, field: &dyn Fn() -> String) -> Result<Part<'a>, Failure> {
        let Some(image) = &part.image_url else { return Ok(Part::default()) };
        let url: &'a str = &image.url;
        let mut out = if let Some((declared, data)) = data_url(url) {
            let media = image_type(data).unwrap_or(if declared == "image/jpg" { "image/jpeg" } else { declared });
            Part::inline(media, data)
        } else if let Some(fetched) = self.ask.images.get(url) {
            Part::inline(fetched.media, fetched.base64.as_str())
        } else if url.starts_with("gs://") || url.starts_with("https://") {
            Part::file(url, Some(type_by_name(url)))
        } else {
            let field = format!("{}.image_url", field());
            return Err(unsupported(&field, format!("`{field}` must be a base64 data: URL, an https or a gs URL for Google")));
        };
        if self.rules.media_resolution {
            out.media_resolution = match image.detail.as_deref() {
                Some("low") => Some(MediaResolution { level: "MEDIA_RESOLUTION_LOW" }),
                Some("high") => Some(MediaResolution { level: "MEDIA_RESOLUTION_HIGH" }),
                _ => None,
            };
        }
        Ok(out)
    }
}

fn file<'a>(part: &'a SaidPart<'a>, field: &dyn Fn() -> String) -> Result<Part<'a>, Failure> {
    let Some(file) = &part.file else { return Ok(Part::default()) };
    let refuse = |why: &str| {
        let field = format!("{}.file", field());
        Err(unsupported(&field, format!("`{field}` {why}")))
    };
    match (&file.file_data, &file.file_id) {
        (Some(data), _) => match data_url(data) {
            Some((media, data)) => Ok(Part::inline(media, data)),
            None => refuse("must be a base64 data: URL"),
        },
        (None, Some(id)) if id.starts_with("https://generativelanguage.googleapis.com/") || id.starts_with("gs://") => {
            Ok(Part::file(id, file.filename.as_deref().map(type_by_name)))
        }
        (None, Some(_)) => refuse("names a file that another provider holds"),
        (None, None) => refuse("holds neither data nor an id"),
    }
}

/// A media type by the end of a name; the API demands one.
fn type_by_name(name: &str) -> &'static str {
    let path = name.split(['?', '#']).next().unwrap_or(name);
    match path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "heic" => "image/heic",
        "pdf" => "application/pdf",
        "txt" => "text/plain",
        _ => "image/jpeg",
    }
}

/// A signature that the client hands back; one of another backend or model would be refused.
fn signature<'a>(extra: Option<&'a ExtraContent<'a>>, origin: &str) -> Option<&'a str> {
    let extra = extra?;
    if extra.origin.as_deref().is_some_and(|other| other != origin) {
        return None;
    }
    extra.google.as_ref()?.thought_signature.as_deref().filter(|text| !text.is_empty())
}

/// Whether Google may have issued an id; those of others and of this gateway begin with known letters.
fn is_own_id(id: &str) -> bool {
    !id.is_empty() && !["call_", "toolu_", "chatcmpl", "fc_call_"].iter().any(|begin| id.starts_with(begin))
}

/// A result as the object it must be.
fn response<'a>(text: Cow<'a, str>, is_error: bool) -> Cow<'a, RawValue> {
    let wrapped = |text: &str| {
        let name = if is_error { "error" } else { "output" };
        Cow::Owned(raw(serde_json::json!({ name: text }).to_string()))
    };
    if is_error || !text.trim_start().starts_with('{') {
        return wrapped(&text);
    }
    match text {
        Cow::Borrowed(text) => match serde_json::from_str::<&'a RawValue>(text) {
            Ok(object) => Cow::Borrowed(object),
            Err(_) => wrapped(text),
        },
        Cow::Owned(text) => match serde_json::from_str::<Box<RawValue>>(&text) {
            Ok(object) => Cow::Owned(object),
            Err(_) => wrapped(&text),
        },
    }
}
