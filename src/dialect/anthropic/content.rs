//! Content blocks as Anthropic takes them, and the parts of OpenAI messages as such blocks.

use std::borrow::Cow;

use base64::Engine as _;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::chat::Failure;
use crate::chat::request::{Content, File, ImageUrl, Part, Text, data_url, image_type, unsupported};

/// A content block.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text {
        text: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    Image {
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    Document {
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    ToolUse {
        id: Cow<'a, str>,
        name: &'a str,
        input: Cow<'a, RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    ToolResult {
        tool_use_id: Cow<'a, str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Block<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a RawValue>,
    },
    /// A thinking block, handed back as it was handed out.
    #[serde(untagged)]
    Thinking(Cow<'a, RawValue>),
}

/// Where an image or a document comes from.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
    Url { url: &'a str },
    Text { media_type: &'static str, data: String },
    File { file_id: &'a str },
}

impl<'a> Block<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text { text: text.into(), cache_control: None }
    }

    /// Marks the block as the end of a prefix worth caching.
    pub(super) fn mark(&mut self, marker: Option<&'a RawValue>) {
        let Some(marker) = marker else { return };
        match self {
            Self::Text { cache_control, .. }
            | Self::Image { cache_control, .. }
            | Self::Document { cache_control, .. }
            | Self::ToolUse { cache_control, .. }
            | Self::ToolResult { cache_control, .. } => *cache_control = Some(marker),
            Self::Thinking(_) => {}
        }
    }
}

/// The blocks of a message's content. Texts of white space only are left out: the API refuses them.
pub(super) fn blocks<'a>(content: &'a Content<'a>, place: usize) -> Result<Vec<Block<'a>>, Failure> {
    match content {
        Content::None => Ok(Vec::new()),
        Content::Text(text) => Ok(text_block(text, None).into_iter().collect()),
        Content::Parts(parts) => {
            let mut blocks = Vec::with_capacity(parts.len());
            for (index, part) in parts.iter().enumerate() {
                let field = || format!("messages[{place}].content[{index}]");
                blocks.extend(block(part, &field)?);
            }
            Ok(blocks)
        }
    }
}

fn text_block<'a>(text: &'a Text<'a>, cache_control: Option<&'a RawValue>) -> Option<Block<'a>> {
    (!text.trim().is_empty()).then(|| Block::Text { text: Cow::Borrowed(text), cache_control })
}

fn block<'a>(part: &'a Part<'a>, field: &dyn Fn() -> String) -> Result<Option<Block<'a>>, Failure> {
    let cache_control = part.cache_control;
    Ok(match (&*part.kind, part) {
        ("text", Part { text: Some(text), .. }) | ("refusal", Part { refusal: Some(text), .. }) => {
            text_block(text, cache_control)
        }
        ("image_url", Part { image_url: Some(image), .. }) => {
            Some(Block::Image { source: image_source(image, field)?, cache_control })
        }
        ("file", Part { file: Some(file), .. }) => Some(document(file, cache_control, field)?),
        (kind, _) => {
            let field = field();
            return Err(unsupported(&field, format!("`{field}` of type `{kind}` cannot be sent to Anthropic")));
        }
    })
}

fn image_source<'a>(image: &'a ImageUrl<'a>, field: &dyn Fn() -> String) -> Result<Source<'a>, Failure> {
    let refuse = |why: &str| {
        let field = format!("{}.image_url", field());
        Err(unsupported(&field, format!("`{field}` {why}")))
    };
    let url: &str = &image.url;
    if let Some((declared, data)) = data_url(url) {
        // The declared type must match the bytes, and clients often declare another.
        let media_type = image_type(data).unwrap_or(if declared == "image/jpg" { "image/jpeg" } else { declared });
        return match media_type {
            "image/png" | "image/jpeg" | "image/gif" | "image/webp" => Ok(Source::Base64 { media_type, data }),
            other => refuse(&format!("is of type `{other}`; Anthropic takes png, jpeg, gif and webp")),
        };
    }
    match url.starts_with("https://") {
        true => Ok(Source::Url { url }),
        false => refuse("must be a base64 data: URL or an https URL for Anthropic"),
    }
}

fn document<'a>(
    file: &'a File<'a>,
    cache_control: Option<&'a RawValue>,
    field: &dyn Fn() -> String,
) -> Result<Block<'a>, Failure> {
    let refuse = |why: &str| {
        let field = format!("{}.file", field());
        Err(unsupported(&field, format!("`{field}` {why}")))
    };
    let title = file.filename.as_deref().filter(|name| !name.is_empty());
    let source = match (&file.file_data, &file.file_id) {
        (Some(data), _) => match data_url(data) {
            Some(("application/pdf", data)) => Source::Base64 { media_type: "application/pdf", data },
            Some((media, data)) if media.starts_with("text/") || media == "application/json" => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(data).ok();
                match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
                    Some(text) => Source::Text { media_type: "text/plain", data: text },
                    None => return refuse("holds text that is not base64 of UTF-8"),
                }
            }
            Some((media, _)) => return refuse(&format!("is of type `{media}`; Anthropic takes PDF and text")),
            None => return refuse("must be a base64 data: URL"),
        },
        (None, Some(id)) if id.starts_with("file_") => Source::File { file_id: id },
        (None, Some(_)) => return refuse("names a file that another provider holds"),
        (None, None) => return refuse("holds neither data nor an id"),
    };
    Ok(Block::Document { source, title, cache_control })
}

/// An id in the letters that Anthropic takes: the same one, or a name made from it that is always the same.
pub(super) fn legal_id(id: &str) -> Cow<'_, str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !id.is_empty() && id.len() <= 256 && id.bytes().all(legal) {
        return Cow::Borrowed(id);
    }
    let digest = Sha256::digest(id.as_bytes());
    let letters: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Cow::Owned(format!("call_{letters}"))
}
