//! What a model says, piece by piece, whichever dialect it is spoken in: the vocabulary between a dialect's decoder and
//! the writer of the client's reply. Texts stay JSON literals, so that they are copied and not unescaped on the way.

use std::borrow::Cow;

/// One piece of a reply. Texts are JSON string literals, quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text of the answer.
    Text(&'a str),
    /// Text of the model's thinking.
    Reasoning(&'a str),
    /// A refusal in words.
    Refusal(&'a str),
    /// A picture, which the OpenAI API has no place for: an extension that other gateways share.
    Image {
        /// Place among the pictures of the choice.
        index: u32,
        /// Its media type, a literal.
        media: &'a str,
        /// Itself in base64, a literal.
        data: &'a str,
        /// Google's signature, a literal.
        signature: Option<&'a str>,
    },
    /// A tool call begins.
    Call {
        /// Place among the calls of the choice.
        index: u32,
        /// Its id, a literal.
        id: Cow<'a, str>,
        /// The function's name, a literal.
        name: Cow<'a, str>,
        /// Arguments so far: a literal of JSON as text.
        arguments: Cow<'a, str>,
        /// Google's signature, a literal.
        signature: Option<&'a str>,
    },
    /// More of a call's arguments.
    Arguments {
        /// Place among the calls of the choice.
        index: u32,
        /// A literal of a part of the JSON.
        text: &'a str,
    },
    /// Thinking blocks to be handed back as they are: JSON objects in a list, brackets included. They come once, since
    /// some clients keep only the last of what they do not know.
    ThinkingBlocks(&'a str),
    /// Google's signature on a text, a literal.
    Signature(&'a str),
    /// Log probabilities of tokens: JSON objects in a list, brackets included.
    Logprobs(String),
    /// Sources: JSON objects in a list, brackets included.
    Annotations(String),
    /// The choice is finished.
    Finish {
        /// Why.
        reason: FinishReason,
        /// The provider's own word, when it says more: a literal.
        native: Option<Cow<'a, str>>,
    },
}

impl Piece<'_> {
    /// Whether a client has got something of the answer with it.
    pub fn is_content(&self) -> bool {
        match self {
            Self::Text(text) | Self::Reasoning(text) | Self::Refusal(text) => *text != "\"\"",
            Self::Image { .. } | Self::Call { .. } | Self::Arguments { .. } | Self::Finish { .. } => true,
            Self::ThinkingBlocks(_) | Self::Signature(_) | Self::Logprobs(_) | Self::Annotations(_) => false,
        }
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It was complete.
    Stop,
    /// The limit was reached.
    Length,
    /// Tools are to be called.
    ToolCalls,
    /// The provider withheld the rest.
    ContentFilter,
}

impl FinishReason {
    /// The word of the OpenAI API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// What must come back with a tool call, and which a client may not send back itself: kept by the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepsake {
    /// The call's id, as the client knows it.
    pub call: String,
    /// The model, which alone understands it, and the dialect's own text behind a line break.
    pub state: String,
}

impl Keepsake {
    /// Something that a model wants back with a call.
    pub fn new(call: String, model: &str, state: &str) -> Self {
        Self { call, state: format!("{model}\n{state}") }
    }

    /// The dialect's text in a kept state, if it is for this model.
    pub fn for_model<'s>(state: &'s str, model: &str) -> Option<&'s str> {
        state.strip_prefix(model)?.strip_prefix('\n')
    }
}

/// Takes the pieces of a reply as they are found.
pub trait Sink {
    /// Learns what the provider calls the reply and which model served it: insides of JSON string literals.
    fn identify(&mut self, id: &str, model: &str);

    /// Takes one piece of a choice.
    fn piece(&mut self, choice: u32, piece: &Piece<'_>);
}
