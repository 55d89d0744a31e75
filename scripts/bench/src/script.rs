//! The bytes that the upstream answers with, in each format: made once, then only written.

use crate::wire::Format;

/// Size of a plain reply's body and of one OpenAI event, as real ones are.
pub const REPLY_BYTES: usize = 600;
const EVENT_BYTES: usize = 296;

/// A stream: what opens it up to the first text, each further text, and its end.
pub struct Script {
    pub opening: Vec<u8>,
    pub text: Vec<u8>,
    pub ending: Vec<u8>,
}

impl Script {
    /// `usage` is what only OpenAI asks: whether totals are wanted.
    pub fn of(format: Format, usage: bool) -> Script {
        let (before, text, mut ending) = match format {
            Format::OpenAi => openai(usage),
            Format::Anthropic => anthropic(),
            Format::Gemini => gemini(),
        };
        let mut opening =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
            cache-control: no-cache\r\nx-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec();
        opening.extend(before);
        opening.extend(&text);
        ending.extend(b"0\r\n\r\n");
        Script {
            opening,
            text,
            ending,
        }
    }
}

type Parts = (Vec<u8>, Vec<u8>, Vec<u8>);

fn openai(usage: bool) -> Parts {
    // Like OpenAI: a null `usage` in every event once the totals are asked for.
    let field = if usage { ",\"usage\":null" } else { "" };
    let opening = event(
        r#"{"role":"assistant","content":"","refusal":null}"#,
        "null",
        field,
    );
    let mut ending = event("{}", "\"stop\"", field);
    if usage {
        ending.extend(chunk(
            r#"{"id":"chatcmpl-BenchBenchBenchBenchBenchBench1","object":"chat.completion.chunk","created":1750000000,"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":200,"total_tokens":219,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}"#,
        ));
    }
    ending.extend(chunk("[DONE]"));
    (
        opening,
        event(r#"{"content":" word"}"#, "null", field),
        ending,
    )
}

/// One event of `EVENT_BYTES`, filled up with the field OpenAI itself pads with.
fn event(delta: &str, finish: &str, usage: &str) -> Vec<u8> {
    let front = format!(
        r#"{{"id":"chatcmpl-BenchBenchBench","object":"chat.completion.chunk","created":1750000000,"model":"gpt-4o-2024-08-06","service_tier":"default","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{usage},"obfuscation":""#
    );
    let frame = "data: ".len() + "\"}\n\n".len();
    let padding = EVENT_BYTES.saturating_sub(front.len() + frame);
    chunk(&format!(
        "{front}{}\"}}",
        "q7Zx"
            .repeat(EVENT_BYTES)
            .get(..padding)
            .unwrap_or_default()
    ))
}

fn anthropic() -> Parts {
    let named = |data: &str| {
        let name = data.split('"').nth(3).unwrap_or_default();
        framed(&format!("event: {name}\ndata: {data}\n\n"))
    };
    let opening = [
        named(
            r#"{"type":"message_start","message":{"id":"msg_01BenchBenchBenchBench","type":"message","role":"assistant","content":[],"model":"claude-haiku-4-5","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":19,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}"#,
        ),
        named(
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        ),
        named(r#"{"type":"ping"}"#),
    ];
    let text =
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" word"}}"#;
    let ending = [
        named(r#"{"type":"content_block_stop","index":0}"#),
        named(
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":200}}"#,
        ),
        named(r#"{"type":"message_stop"}"#),
    ];
    (opening.concat(), named(text), ending.concat())
}

fn gemini() -> Parts {
    let part = |text: &str, finish: &str| {
        chunk(&format!(
            r#"{{"candidates":[{{"content":{{"role":"model","parts":[{{"text":"{text}"}}]}}{finish},"index":0}}],"usageMetadata":{{"promptTokenCount":19,"candidatesTokenCount":200,"totalTokenCount":219,"promptTokensDetails":[{{"modality":"TEXT","tokenCount":19}}]}},"modelVersion":"gemini-3.5-flash","responseId":"BenchBenchBenchBench"}}"#
        ))
    };
    let finish = r#","finishReason":"STOP""#;
    (Vec::new(), part(" word", ""), part("", finish))
}

/// One event as one chunk of the body.
fn chunk(data: &str) -> Vec<u8> {
    framed(&format!("data: {data}\n\n"))
}

fn framed(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// A plain reply, head and all.
pub fn reply(format: Format) -> Vec<u8> {
    let (front, back) = match format {
        Format::OpenAi => (
            r#"{"id":"chatcmpl-BenchBenchBench","object":"chat.completion","created":1750000000,"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":""#,
            r#"","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":30,"total_tokens":49,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"system_fingerprint":"fp_0123456789"}"#,
        ),
        Format::Anthropic => (
            r#"{"id":"msg_01BenchBenchBenchBench","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[{"type":"text","text":""#,
            r#""}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":19,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":30,"service_tier":"standard"}}"#,
        ),
        Format::Gemini => (
            r#"{"candidates":[{"content":{"role":"model","parts":[{"text":""#,
            r#""}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":19,"candidatesTokenCount":30,"totalTokenCount":49,"promptTokensDetails":[{"modality":"TEXT","tokenCount":19}]},"modelVersion":"gemini-3.5-flash","responseId":"BenchBenchBenchBench"}"#,
        ),
    };
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    let body = format!(
        "{front}{}{back}",
        &text[..REPLY_BYTES - front.len() - back.len()]
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
