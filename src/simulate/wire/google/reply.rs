//! What is said in Google's words: a response with everything, or one for each new part.

use serde_json::{Value, json};

use crate::simulate::answer::{Content, SIGNATURE, Says, THOUGHT};

/// A reply to write down.
pub(super) struct Reply<'a> {
    /// Model as asked for.
    pub model: &'a str,
    /// Tokens of the request.
    pub prompt: u64,
    /// What is said.
    pub says: &'a Says,
    /// Number of the request, from 1.
    pub number: u64,
}

impl Reply<'_> {
    /// The whole response.
    pub(super) fn whole(&self) -> Value {
        let thought = self.says.thinks.then(|| json!({ "text": THOUGHT.concat(), "thought": true }));
        let mut parts: Vec<Value> = thought.into_iter().collect();
        match &self.says.content {
            Content::Words(words) => parts.push(self.signed(json!({ "text": words.concat() }))),
            Content::Calls(_) => parts.extend(self.calls()),
        }
        let candidate = json!({ "content": { "role": "model", "parts": parts }, "finishReason": "STOP", "index": 0 });
        self.response(&candidate, self.says.tokens(), self.says.thought_tokens())
    }

    /// The responses of a stream: each a whole one that holds only what is new.
    pub(super) fn chunks(&self) -> Vec<Value> {
        let mut chunks = Vec::new();
        let (mut said, mut thought) = (0, 0);
        let candidate = |part: Value| json!({ "content": { "role": "model", "parts": [part] }, "index": 0 });
        for piece in self.says.thinks.then_some(THOUGHT).into_iter().flatten() {
            thought += 1;
            chunks.push(self.response(&candidate(json!({ "text": piece, "thought": true })), said, thought));
        }
        match &self.says.content {
            Content::Words(words) => {
                for word in words {
                    said += 1;
                    chunks.push(self.response(&candidate(json!({ "text": word })), said, thought));
                }
            }
            Content::Calls(calls) => {
                let each = self.says.tokens() / calls.len().max(1) as u64;
                for part in self.calls() {
                    said += each;
                    chunks.push(self.response(&candidate(part), said, thought));
                }
            }
        }
        let ending = self.signed(json!({ "text": "" }));
        let candidate = json!({ "content": { "role": "model", "parts": [ending] }, "finishReason": "STOP", "index": 0 });
        chunks.push(self.response(&candidate, said, thought));
        chunks
    }

    /// The first call carries the signature, whether thoughts are shown or not; its siblings carry none.
    fn calls(&self) -> Vec<Value> {
        let Content::Calls(calls) = &self.says.content else { return Vec::new() };
        let mut parts: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(place, call)| {
                let id = format!("fc_simulated_{:08}_{place}", self.number);
                json!({ "functionCall": { "id": id, "name": call.name, "args": call.arguments } })
            })
            .collect();
        if let Some(first) = parts.first_mut() {
            first["thoughtSignature"] = json!(SIGNATURE);
        }
        parts
    }

    /// A last text part, with the signature of the thoughts before it.
    fn signed(&self, mut part: Value) -> Value {
        if self.says.thinks && !self.says.calls() {
            part["thoughtSignature"] = json!(SIGNATURE);
        }
        part
    }

    fn response(&self, candidate: &Value, said: u64, thought: u64) -> Value {
        let mut usage = json!({ "promptTokenCount": self.prompt });
        // Zeros are left out.
        for (name, count) in
            [("candidatesTokenCount", said), ("totalTokenCount", self.prompt + said + thought), ("thoughtsTokenCount", thought)]
        {
            if count > 0 {
                usage[name] = json!(count);
            }
        }
        json!({ "candidates": [candidate], "usageMetadata": usage, "modelVersion": self.model,
            "responseId": format!("simulated{:08}", self.number) })
    }
}
