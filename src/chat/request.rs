//! A chat request as its client wrote it, typed for translation into other dialects. Texts and raw values borrow from
//! the body: an image is neither copied nor decoded by reading it.

mod thinking;
mod tools;

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use thinking::{Effort, Thinking, ThinkingKind};
pub use tools::{
    AllowedTool, AllowedTools, CalledFunction, Choice, ChoiceMode, ExtraContent, Function, FunctionName, GoogleContent,
    NamedChoice, Tool, ToolCall, ToolChoice, check_calls, schema_tree,
};

use super::{Failure, FailureClass};

/// Text that borrows where it holds no escape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// The fields of a request that translation reads; the scan has found the names of all others.
#[derive(Debug, Deserialize)]
pub struct Request<'a> {
    /// The conversation.
    #[serde(borrow)]
    pub messages: Vec<Message<'a>>,
    /// Output limit, older name.
    pub max_tokens: Option<u64>,
    /// Output limit.
    pub max_completion_tokens: Option<u64>,
    /// Sampling.
    pub temperature: Option<f64>,
    /// Sampling.
    pub top_p: Option<f64>,
    /// Sampling, an extension.
    pub top_k: Option<u64>,
    /// Texts that end the answer.
    #[serde(borrow)]
    pub stop: Option<Stop<'a>>,
    /// Seed of the sampling.
    pub seed: Option<i64>,
    /// Choices.
    pub n: Option<u64>,
    /// Penalty.
    pub frequency_penalty: Option<f64>,
    /// Penalty.
    pub presence_penalty: Option<f64>,
    /// Whether log probabilities are asked for.
    pub logprobs: Option<bool>,
    /// How many alternatives of each token.
    pub top_logprobs: Option<u64>,
    /// Tools.
    #[serde(borrow)]
    pub tools: Option<Vec<Tool<'a>>>,
    /// Tools, older form.
    #[serde(borrow)]
    pub functions: Option<Vec<Function<'a>>>,
    /// Which tool.
    #[serde(borrow)]
    pub tool_choice: Option<ToolChoice<'a>>,
    /// Which function, older form.
    #[serde(borrow)]
    pub function_call: Option<ToolChoice<'a>>,
    /// Whether several calls may be made at once.
    pub parallel_tool_calls: Option<bool>,
    /// Form of the answer.
    #[serde(borrow)]
    pub response_format: Option<Format<'a>>,
    /// How hard to think.
    pub reasoning_effort: Option<Effort>,
    /// Anthropic's own field, an extension.
    pub thinking: Option<Thinking>,
    /// Cache marker for the whole request, an extension.
    #[serde(borrow)]
    pub cache_control: Option<&'a RawValue>,
    /// The user behind the request.
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
    /// The user behind the request, newer name.
    #[serde(borrow)]
    pub safety_identifier: Option<Text<'a>>,
    /// Price class.
    #[serde(borrow)]
    pub service_tier: Option<Text<'a>>,
    /// Kinds of output.
    #[serde(borrow)]
    pub modalities: Option<Vec<Text<'a>>>,
}

/// `stop`: one text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Stop<'a> {
    /// One.
    One(#[serde(borrow)] Text<'a>),
    /// Several.
    Many(#[serde(borrow)] Vec<Text<'a>>),
}

impl<'a> Stop<'a> {
    /// The texts, without empty ones, which providers refuse.
    pub fn texts(&self) -> impl Iterator<Item = &Text<'a>> {
        let all = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        };
        all.iter().filter(|text| !text.is_empty())
    }
}

/// One message.
#[derive(Debug, Deserialize)]
pub struct Message<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(borrow, default)]
    pub content: Content<'a>,
    /// A refusal.
    #[serde(borrow)]
    pub refusal: Option<Text<'a>>,
    /// Calls the assistant made.
    #[serde(borrow, default)]
    pub tool_calls: Option<Vec<ToolCall<'a>>>,
    /// Call the assistant made, older form.
    #[serde(borrow)]
    pub function_call: Option<CalledFunction<'a>>,
    /// Which call a tool message answers.
    #[serde(borrow)]
    pub tool_call_id: Option<Text<'a>>,
    /// Name of the function that an older `function` message answers.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// Anthropic's thinking blocks as they were handed out, an extension.
    #[serde(borrow)]
    pub thinking_blocks: Option<Vec<&'a RawValue>>,
    /// What a provider wants back, an extension.
    #[serde(borrow)]
    pub extra_content: Option<ExtraContent<'a>>,
    /// Cache marker, an extension.
    #[serde(borrow)]
    pub cache_control: Option<&'a RawValue>,
    /// Whether a tool message reports a failure, an extension.
    pub is_error: Option<bool>,
    /// Pictures that the assistant has drawn, an extension; other clients put other things here.
    #[serde(borrow)]
    pub images: Option<&'a RawValue>,
    /// A spoken answer of the assistant, by its id.
    #[serde(borrow)]
    pub audio: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Whether a prefix worth caching is marked in it.
    pub fn is_marked(&self) -> bool {
        let parts = match &self.content {
            Content::Parts(parts) => parts.as_slice(),
            Content::None | Content::Text(_) => &[],
        };
        self.cache_control.is_some() || parts.iter().any(|part| part.cache_control.is_some())
    }

    /// The pictures that the assistant has drawn, if they are ones.
    pub fn drawn(&self) -> Option<Vec<Drawn<'a>>> {
        self.images.and_then(|list| serde_json::from_str(list.get()).ok())
    }

    /// Fields of a message that only the OpenAI API has a place for.
    pub fn losses(&self) -> impl Iterator<Item = &'static str> {
        let parts = match &self.content {
            Content::Parts(parts) => parts.as_slice(),
            Content::None | Content::Text(_) => &[],
        };
        let is_close = |part: &Part<'_>| {
            part.image_url.as_ref().and_then(|image| image.detail.as_deref()).is_some_and(|detail| detail != "auto")
        };
        let name = (self.name.is_some() && self.role != Role::Function).then_some("messages.name");
        let audio = self.audio.is_some().then_some("messages.audio");
        let images = self.images.is_some_and(|list| list.get() != "[]").then_some("messages.images");
        name.into_iter().chain(audio).chain(images).chain(parts.iter().any(is_close).then_some("messages.image_url.detail"))
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, newer name.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
    /// A function's result, older form.
    Function,
}

/// What a message says.
#[derive(Debug, Default)]
pub enum Content<'a> {
    /// Nothing.
    #[default]
    None,
    /// Text.
    Text(Text<'a>),
    /// Parts.
    Parts(Vec<Part<'a>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of content parts or null")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Content<'de>, E> {
                Ok(Content::None)
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Text(Cow::Borrowed(text))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content<'de>, E> {
                Ok(Content::Text(Text(Cow::Owned(text.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content<'de>, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = items.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A part of a message: which fields are there depends on its type.
#[derive(Debug, Deserialize)]
pub struct Part<'a> {
    /// What it is.
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    /// Text.
    #[serde(borrow)]
    pub text: Option<Text<'a>>,
    /// A refusal in an assistant's message.
    #[serde(borrow)]
    pub refusal: Option<Text<'a>>,
    /// An image.
    #[serde(borrow)]
    pub image_url: Option<ImageUrl<'a>>,
    /// A sound.
    #[serde(borrow)]
    pub input_audio: Option<InputAudio<'a>>,
    /// A file.
    #[serde(borrow)]
    pub file: Option<File<'a>>,
    /// Cache marker, an extension.
    #[serde(borrow)]
    pub cache_control: Option<&'a RawValue>,
}

/// An image by address, which may hold the image itself.
#[derive(Debug, Deserialize)]
pub struct ImageUrl<'a> {
    /// `data:` or `https:`.
    #[serde(borrow)]
    pub url: Text<'a>,
    /// How closely to look.
    #[serde(borrow)]
    pub detail: Option<Text<'a>>,
}

/// A picture in an answer of the assistant.
#[derive(Debug, Deserialize)]
pub struct Drawn<'a> {
    /// The picture.
    #[serde(borrow)]
    pub image_url: ImageUrl<'a>,
    /// What a provider wants back with it.
    #[serde(borrow)]
    pub extra_content: Option<ExtraContent<'a>>,
}

/// A sound.
#[derive(Debug, Deserialize)]
pub struct InputAudio<'a> {
    /// Base64.
    #[serde(borrow)]
    pub data: Text<'a>,
    /// `wav`, `mp3`.
    #[serde(borrow)]
    pub format: Text<'a>,
}

/// A file.
#[derive(Debug, Deserialize)]
pub struct File<'a> {
    /// A `data:` address.
    #[serde(borrow)]
    pub file_data: Option<Text<'a>>,
    /// A file that the provider holds.
    #[serde(borrow)]
    pub file_id: Option<Text<'a>>,
    /// Its name.
    #[serde(borrow)]
    pub filename: Option<Text<'a>>,
}

/// `response_format`.
#[derive(Debug, Deserialize)]
pub struct Format<'a> {
    /// `text`, `json_object`, `json_schema`.
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    /// The schema.
    #[serde(borrow)]
    pub json_schema: Option<JsonSchema<'a>>,
}

/// `response_format.json_schema`.
#[derive(Debug, Deserialize)]
pub struct JsonSchema<'a> {
    /// JSON Schema.
    #[serde(borrow)]
    pub schema: Option<&'a RawValue>,
}

/// The text of a turn that the client did not write, where a provider wants the user to begin.
pub const BEGIN: &str = "Begin.";
/// The text of a turn that the client did not write, where a provider wants the user to have the last word.
pub const CONTINUE: &str = "Continue.";

impl<'a> Request<'a> {
    /// Reads a body that the scan has accepted.
    ///
    /// # Errors
    /// A failure of class `Caller` that names the field.
    pub fn read(body: &'a [u8]) -> Result<Self, Failure> {
        let request: Request<'a> = serde_json::from_slice(body).map_err(|_| {
            // Read again, slower, to learn where it went wrong.
            let reader = &mut serde_json::Deserializer::from_slice(body);
            let (path, reason) = match serde_path_to_error::deserialize::<_, Request<'_>>(reader) {
                Err(error) => (error.path().to_string(), error.inner().to_string()),
                Ok(_) => ("messages".to_owned(), "cannot be read".to_owned()),
            };
            // What only this reader takes amiss, another provider's may not.
            let blame = if path.starts_with("messages") { caller } else { unsupported };
            blame(&path, format!("`{path}` is not valid: {reason}"))
        })?;
        if request.messages.is_empty() {
            return Err(caller("messages", "`messages` is empty".into()));
        }
        Ok(request)
    }

    /// The output limit that the client set; zero means none.
    pub fn output_limit(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens).filter(|limit| *limit > 0)
    }

    /// The functions that may be called, in either form.
    ///
    /// # Errors
    /// `Unsupported` for a tool that is not a function.
    pub fn functions(&self) -> Result<Vec<(&Function<'a>, Option<&'a RawValue>)>, Failure> {
        let mut all = Vec::new();
        for (place, tool) in self.tools.iter().flatten().enumerate() {
            match &tool.function {
                Some(function) if &*tool.kind == "function" => all.push((function, tool.cache_control)),
                None if &*tool.kind == "function" => {
                    let field = format!("tools[{place}].function");
                    return Err(caller(&field, format!("`{field}` is missing")));
                }
                _ => {
                    let field = format!("tools[{place}].type");
                    return Err(unsupported(&field, format!("`{field}` is `{}`; only functions can be translated", &*tool.kind)));
                }
            }
        }
        all.extend(self.functions.iter().flatten().map(|function| (function, None)));
        Ok(all)
    }

    /// Which tools may or must be called; `None` when the request does not say.
    ///
    /// # Errors
    /// `Caller` for a form that does not exist.
    pub fn choice(&self) -> Result<Option<Choice<'_>>, Failure> {
        let Some(choice) = self.tool_choice.as_ref().or(self.function_call.as_ref()) else { return Ok(None) };
        let all = |mode| Ok(Some(Choice { mode, only: Vec::new() }));
        let named = match choice {
            ToolChoice::Word(word) => match &**word {
                "auto" => return all(ChoiceMode::Auto),
                "none" => return all(ChoiceMode::None),
                "required" => return all(ChoiceMode::Required),
                other => return Err(caller("tool_choice", format!("`tool_choice` cannot be `{other}`"))),
            },
            ToolChoice::Named(named) => named,
        };
        if let Some(allowed) = &named.allowed_tools {
            let only = allowed.tools.iter().filter_map(|tool| tool.function.as_ref()).map(|function| &*function.name).collect();
            let mode = if &*allowed.mode == "required" { ChoiceMode::Required } else { ChoiceMode::Auto };
            return Ok(Some(Choice { mode, only }));
        }
        match named.function.as_ref().map(|function| &function.name).or(named.name.as_ref()) {
            Some(name) => Ok(Some(Choice { mode: ChoiceMode::One, only: vec![&**name] })),
            None => Err(caller("tool_choice", "`tool_choice` names no function".into())),
        }
    }
}

/// A `data:` address taken apart: media type and base64.
pub fn data_url(url: &str) -> Option<(&str, &str)> {
    let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
    let media = head.strip_suffix(";base64")?;
    Some((media.split(';').next().unwrap_or(media), data))
}

/// The image type that the first bytes of a base64 text show.
pub fn image_type(base64: &str) -> Option<&'static str> {
    // Leading letters of the base64 form of each format's magic bytes.
    const MAGIC: &[(&str, &str)] =
        &[("iVBORw0KGgo", "image/png"), ("/9j/", "image/jpeg"), ("R0lGOD", "image/gif"), ("UklGR", "image/webp")];
    MAGIC.iter().find(|(magic, _)| base64.starts_with(magic)).map(|(_, media)| *media)
}

/// The request's own mistake.
pub fn caller(param: &str, message: String) -> Failure {
    blame(FailureClass::Caller, param, message)
}

/// What a dialect or a model cannot carry: another backend may.
pub fn unsupported(param: &str, message: String) -> Failure {
    blame(FailureClass::Unsupported, param, message)
}

fn blame(class: FailureClass, param: &str, message: String) -> Failure {
    let mut failure = Failure::new(class, message);
    failure.status = Some(400);
    failure.param = Some(param.to_owned());
    failure
}
