//! The simulated provider in Google's words: `generateContent` and its relatives, at the addresses of the Gemini API and
//! of Vertex AI. Model and method stand in the path, streaming is a method (Gemini API reference, read 2026-11-22).

mod embeddings;
mod question;
mod reply;

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Asked, Composed, Event, Trouble, Turn, Wire, list, text, texts, whole};
use crate::simulate::answer::{prompt_tokens, says};
use question::question;
use reply::Reply;

/// Google Gemini.
pub(super) struct Google;

/// Methods that are answered.
const METHODS: &[&str] =
    &["generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents", "predict"];

impl Wire for Google {
    fn knows(&self, asked: &Asked<'_>) -> bool {
        Target::of(asked).is_some_and(|target| METHODS.contains(&target.method))
    }

    fn answer(&self, asked: &Asked<'_>, request: &Value, turn: &Turn<'_>) -> Result<Composed, &'static str> {
        let target = Target::of(asked).ok_or("the address names no method")?;
        match target.method {
            "embedContent" => embeddings::one(request),
            "batchEmbedContents" => embeddings::batch(request),
            "predict" => embeddings::predict(request),
            "countTokens" => Ok(whole(&json!({ "totalTokens": prompt_tokens(request) }))),
            _ => generate(&target, request, turn),
        }
    }

    fn error(&self, trouble: &Trouble<'_>) -> Value {
        let status = match trouble.status {
            400 => "INVALID_ARGUMENT",
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            409 => "ABORTED",
            429 => "RESOURCE_EXHAUSTED",
            499 => "CANCELLED",
            408 | 504 => "DEADLINE_EXCEEDED",
            500 => "INTERNAL",
            503 => "UNAVAILABLE",
            _ => "UNKNOWN",
        };
        let mut error = json!({ "code": trouble.status, "message": trouble.message, "status": status });
        if let Some(wait) = trouble.retry_after {
            error["details"] = json!([{ "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{}s", wait.as_secs_f64()) }]);
        }
        json!({ "error": error })
    }

    fn malformed(&self) -> &'static [u8] {
        b"data: {\"candidates\":[{\"content\"\n\n"
    }

    fn models(&self) -> Value {
        json!({ "models": [{ "name": "models/simulated", "displayName": "Simulated", "inputTokenLimit": 1_048_576,
            "outputTokenLimit": 65_536, "supportedGenerationMethods": ["generateContent", "countTokens", "embedContent"] }] })
    }

    fn has_retry_header(&self) -> bool {
        false
    }
}

/// What an address names.
struct Target<'a> {
    model: Cow<'a, str>,
    method: &'a str,
    /// Whether a stream comes as events; else as one JSON array.
    events: bool,
}

impl<'a> Target<'a> {
    fn of(asked: &Asked<'a>) -> Option<Self> {
        let (path, query) = asked.target.split_once('?').unwrap_or((asked.target, ""));
        let (front, method) = path.rsplit_once(':')?;
        let (collection, model) = front.rsplit_once('/')?;
        let is_model = ["models", "tunedModels", "endpoints"].iter().any(|name| collection.ends_with(name));
        let model = percent_encoding::percent_decode_str(model).decode_utf8_lossy();
        is_model.then(|| Self { model, method, events: query.split('&').any(|pair| pair == "alt=sse") })
    }
}

fn generate(target: &Target<'_>, request: &Value, turn: &Turn<'_>) -> Result<Composed, &'static str> {
    for (name, refusal) in [
        ("model", "Invalid JSON payload received. Unknown name \"model\": Cannot find field."),
        ("stream", "Invalid JSON payload received. Unknown name \"stream\": Cannot find field."),
    ] {
        if request.get(name).is_some() {
            return Err(refusal);
        }
    }
    let question = question(request).ok_or("contents is not specified")?;
    let says = says(&question, turn.settings.tokens);
    let reply = Reply { model: &target.model, prompt: prompt_tokens(request), says: &says, number: turn.number };
    if target.method == "generateContent" {
        return Ok(whole(&reply.whole()));
    }
    let chunks = reply.chunks();
    if !target.events {
        return Ok(whole(&json!(chunks)));
    }
    let events = chunks.iter().enumerate().map(|(place, chunk)| Event { bytes: Google.frame(chunk), paced: place > 0 });
    Ok(Composed::Events(events.collect()))
}

/// A field under its name, or under the same name in snake case: both are understood, and the SDKs mix them.
fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.get(snake_case(name)))
}

fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{asked, body, data};
    use super::*;
    use crate::settings::SimulatedDialect;

    const MODEL: &str = "/v1beta/models/gemini-x";

    fn send(target: &str, request: &Value) -> Composed {
        asked(SimulatedDialect::Google, target, request).unwrap()
    }

    fn with_tools() -> Value {
        let tool = |name: &str| json!({ "name": name, "parametersJsonSchema": { "type": "object", "properties": { "city": { "type": "string" } } } });
        json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }],
            "tools": [{ "functionDeclarations": [tool("a"), tool("b")] }],
            "generationConfig": { "thinkingConfig": { "include_thoughts": true } } })
    }

    #[test]
    fn addresses_of_both_surfaces_name_model_and_method() {
        for front in
            [MODEL, "/v1/projects/p/locations/global/publishers/google/models/gemini-x", "https://h:1/v1/models/gemini-x"]
        {
            let request = json!({ "contents": [{ "parts": [{ "text": "Hi" }] }] });
            let answer = body(send(&format!("{front}:generateContent"), &request));
            assert_eq!(answer["modelVersion"], "gemini-x", "{front}");
            assert_eq!(answer["candidates"][0]["content"]["parts"][0]["text"], "Simulated answer to: Hi and so");
        }
        let other = body(send("/v1beta/cachedContents", &json!({})));
        assert_eq!(other, json!({ "object": "simulated", "request": 1 }));
    }

    #[test]
    fn thoughts_come_first_and_the_first_call_carries_the_signature() {
        let answer = body(send(&format!("{MODEL}:generateContent"), &with_tools()));
        let parts = &answer["candidates"][0]["content"]["parts"];
        assert_eq!(parts[0], json!({ "text": "An echo of the question will do.", "thought": true }));
        assert_eq!(parts[1]["functionCall"]["args"], json!({ "city": "simulated" }));
        assert!(parts[1]["thoughtSignature"].is_string() && parts[2].get("thoughtSignature").is_none());
        assert_eq!(answer["candidates"][0]["finishReason"], "STOP");
        assert_eq!(answer["usageMetadata"]["thoughtsTokenCount"], 3);
    }

    #[test]
    fn a_stream_is_whole_responses_with_new_parts_and_the_same_totals() {
        let method = format!("{MODEL}:streamGenerateContent");
        let chunks = data(send(&format!("{method}?alt=sse"), &with_tools()));
        assert_eq!(chunks.len(), 3 + 2 + 1);
        let last = &chunks[5];
        assert_eq!(last["candidates"][0]["content"]["parts"], json!([{ "text": "" }]));
        assert_eq!(last["candidates"][0]["finishReason"], "STOP");
        assert!(chunks[4]["candidates"][0].get("finishReason").is_none());
        let whole = body(send(&format!("{MODEL}:generateContent"), &with_tools()));
        assert_eq!(last["usageMetadata"], whole["usageMetadata"]);
        assert_eq!(body(send(&method, &with_tools())).as_array().map(Vec::len), Some(6), "without alt=sse one array comes");
    }

    #[test]
    fn what_stands_in_the_address_is_refused_in_the_body() {
        for name in ["model", "stream"] {
            let mut request = with_tools();
            request[name] = json!(true);
            let refused = asked(SimulatedDialect::Google, &format!("{MODEL}:generateContent"), &request);
            assert!(refused.is_err_and(|why| why.contains(name)));
        }
    }

    #[test]
    fn embeddings_have_the_forms_of_both_surfaces() {
        let content = json!({ "parts": [{ "text": "a" }] });
        let one = body(send(&format!("{MODEL}:embedContent"), &json!({ "content": content, "outputDimensionality": 3 })));
        let request =
            json!({ "model": "models/gemini-x", "content": content, "embedContentConfig": { "outputDimensionality": 3 } });
        let batch = body(send(&format!("{MODEL}:batchEmbedContents"), &json!({ "requests": [request, request] })));
        let instances = json!({ "instances": [{ "content": "a" }], "parameters": { "outputDimensionality": 3 } });
        let predicted = body(send(&format!("{MODEL}:predict"), &instances));
        assert_eq!(one["embedding"]["values"].as_array().map(Vec::len), Some(3));
        assert_eq!(batch["embeddings"], json!([one["embedding"], one["embedding"]]));
        assert_eq!(predicted["predictions"][0]["embeddings"]["values"], one["embedding"]["values"]);
        let nameless = json!({ "requests": [{ "content": content }] });
        assert!(asked(SimulatedDialect::Google, &format!("{MODEL}:batchEmbedContents"), &nameless).is_err());
    }
}
