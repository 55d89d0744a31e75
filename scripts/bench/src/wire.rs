//! What the clients send and what they must get, in each format.

use crate::script::REPLY_BYTES;
use crate::{Args, Result};
use memchr::memmem;

/// A wire format.
#[derive(Clone, Copy, PartialEq)]
pub enum Format {
    OpenAi,
    Anthropic,
    Gemini,
}

impl Format {
    fn of_word(word: &str) -> Result<Format> {
        match word {
            "openai" => Ok(Format::OpenAi),
            "anthropic" => Ok(Format::Anthropic),
            "gemini" => Ok(Format::Gemini),
            _ => Err(format!("unknown format {word}")),
        }
    }

    pub fn of_path(path: &str) -> Format {
        if path.ends_with("/messages") {
            Format::Anthropic
        } else if path.contains(":generateContent") || path.contains(":streamGenerateContent") {
            Format::Gemini
        } else {
            Format::OpenAi
        }
    }
}

/// What a client must get.
pub struct Answer {
    format: Format,
    /// The upstream speaks another format than the client.
    translated: bool,
}

impl Answer {
    /// `--format` is the client's, `--upstream` the one behind it, if another.
    pub fn of(args: &Args) -> Result<Answer> {
        let word = args.text("format", "openai");
        let upstream = args.text("upstream", &word);
        Ok(Answer {
            format: Format::of_word(&word)?,
            translated: Format::of_word(&upstream)? != Format::of_word(&word)?,
        })
    }

    pub fn is_whole(&self, body: &[u8]) -> bool {
        // The gateway may write another `model`, so the length has some play; a translation has its own.
        let size = self.translated || body.len().abs_diff(REPLY_BYTES) < 40;
        let usage = match self.format {
            Format::OpenAi => "\"usage\":{\"prompt_tokens\":19",
            Format::Anthropic => "\"usage\":{\"input_tokens\":19",
            Format::Gemini => "\"usageMetadata\":{\"promptTokenCount\":19",
        };
        let has = |text: &str| memmem::find(body, text.as_bytes()).is_some();
        size && body.ends_with(b"}") && has(usage) && has("The quick brown fox")
    }

    pub fn ends(&self, tail: &[u8]) -> bool {
        tail.ends_with(match self.format {
            Format::OpenAi => b"data: [DONE]\n\n",
            Format::Anthropic => b"data: {\"type\":\"message_stop\"}\n\n",
            Format::Gemini => b"\"responseId\":\"BenchBenchBenchBench\"}\n\n",
        })
    }

    /// How many events a stream has beside its texts, at least and at most; totals are not asked for.
    pub fn events_beside_text(&self) -> (u64, u64) {
        match self.format {
            // Role, finish, [DONE]; a translation may join the role to the first text.
            Format::OpenAi => (if self.translated { 2 } else { 3 }, 3),
            Format::Anthropic => (6, 6),
            Format::Gemini => (1, 1),
        }
    }
}

/// The whole request. The wish to the mock comes first, the model last, as the official SDK for Python orders them.
pub fn request(args: &Args, stream: bool) -> Result<Vec<u8>> {
    let format = Format::of_word(&args.text("format", "openai"))?;
    let wish = [("delay", 0), ("gap", 0), ("chunks", 200)]
        .map(|(name, default)| args.number(name, default));
    let [delay, gap, chunks] = wish;
    let wish = format!("bench {} {} {}", delay?, gap?, chunks?);
    let size = args.number("bytes", 400)? as usize;
    let (path, body) = match format {
        Format::OpenAi => openai(&wish, size, &args.text("model", "gpt-4o"), stream),
        Format::Anthropic => anthropic(&wish, size, stream),
        Format::Gemini => gemini(&wish, size, stream),
    };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer bench\r\n\
         user-agent: stagedoor-bench\r\naccept: application/json\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.as_bytes(), body.as_bytes()].concat())
}

/// Turns of several KB of text each, as a conversation over documents has, up to a size.
fn turns(body: &mut String, size: usize, mut turn: impl FnMut(&str, &str) -> String) {
    for number in 0.. {
        let room = size.saturating_sub(body.len() + 160).min(6000);
        let role = ["user", "assistant"][number % 2];
        *body += &turn(role, &prose(room, number));
        if body.len() + 200 >= size {
            break;
        }
    }
}

fn openai(wish: &str, size: usize, model: &str, stream: bool) -> (&'static str, String) {
    // The wish stands in a text: not every field survives a translation.
    let mut body = format!(
        r#"{{"messages":[{{"role":"system","content":"{wish} You are a helpful assistant."}}"#
    );
    turns(&mut body, size, |role, text| {
        format!(r#",{{"role":"{role}","content":"{text}"}}"#)
    });
    body += &format!("],\"model\":\"{model}\",\"temperature\":0.7,\"max_tokens\":1024");
    body += if stream { ",\"stream\":true}" } else { "}" };
    ("/v1/chat/completions", body)
}

fn anthropic(wish: &str, size: usize, stream: bool) -> (&'static str, String) {
    let mut body = format!(
        r#"{{"max_tokens":1024,"system":[{{"type":"text","text":"{wish} You are a helpful assistant."}}],"messages":["#
    );
    let mut comma = "";
    turns(&mut body, size, |role, text| {
        let comma = std::mem::replace(&mut comma, ",");
        format!(r#"{comma}{{"role":"{role}","content":"{text}"}}"#)
    });
    body += "],\"model\":\"claude-haiku-4-5\",\"temperature\":0.7";
    body += if stream { ",\"stream\":true}" } else { "}" };
    ("/v1/messages", body)
}

fn gemini(wish: &str, size: usize, stream: bool) -> (&'static str, String) {
    let mut body = format!(
        r#"{{"systemInstruction":{{"parts":[{{"text":"{wish} You are a helpful assistant."}}]}},"contents":["#
    );
    let mut comma = "";
    turns(&mut body, size, |role, text| {
        let comma = std::mem::replace(&mut comma, ",");
        let role = if role == "user" { "user" } else { "model" };
        format!(r#"{comma}{{"role":"{role}","parts":[{{"text":"{text}"}}]}}"#)
    });
    body += r#"],"generationConfig":{"temperature":0.7,"maxOutputTokens":1024}}"#;
    let path = if stream {
        "/v1beta/models/gemini-3.5-flash:streamGenerateContent?alt=sse"
    } else {
        "/v1beta/models/gemini-3.5-flash:generateContent"
    };
    (path, body)
}

/// Text with the escapes and the letters beyond ASCII that real prompts have.
fn prose(bytes: usize, seed: usize) -> String {
    const WORDS: [&str; 12] = [
        "the ",
        "request ",
        "café ",
        "that ",
        "carries ",
        "a \\\"quoted\\\" ",
        "document,\\n",
        "which ",
        "– always – ",
        "holds ",
        "evidence. ",
        "naïve ",
    ];
    let mut text = String::with_capacity(bytes + 16);
    let mut at = seed;
    while text.len() < bytes {
        at = at
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        text += WORDS[(at >> 33) % WORDS.len()];
    }
    text
}
