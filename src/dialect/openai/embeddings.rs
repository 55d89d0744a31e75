//! Embeddings in the encoding the client asked for, whatever the provider answered.
//!
//! The official Node SDK decodes base64 unconditionally when it asked for it: a float list would become garbage there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::chat::{Failure, FailureClass};
use crate::dialect::Ask;

/// Re-encodes the vectors of a reply if they are not in the asked encoding.
pub(super) fn reencode(ask: &Ask<'_>, body: Bytes) -> Result<Bytes, Failure> {
    let wants_base64 = ask.scan.value(ask.body, "encoding_format") == Some(b"\"base64\"");
    let mut reply: Map<String, Value>;
    {
        #[derive(serde::Deserialize)]
        struct Peek<'a> {
            #[serde(borrow)]
            data: Vec<Entry<'a>>,
        }
        #[derive(serde::Deserialize)]
        struct Entry<'a> {
            #[serde(borrow)]
            embedding: &'a RawValue,
        }
        let peek: Peek<'_> =
            serde_json::from_slice(&body).map_err(|error| malformed(&format!("embeddings cannot be read: {error}")))?;
        let is_vector = |entry: &Entry<'_>| entry.embedding.get().starts_with(['"', '[']);
        if !peek.data.iter().all(is_vector) {
            return Err(malformed("an embedding is neither a list of numbers nor base64 of floats"));
        }
        if peek.data.iter().all(|entry| entry.embedding.get().starts_with('"') == wants_base64) {
            return Ok(body);
        }
        reply = serde_json::from_slice(&body).map_err(|error| malformed(&error.to_string()))?;
    }
    for entry in reply.get_mut("data").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(vector) = entry.get_mut("embedding") else {
            continue;
        };
        let converted = match &*vector {
            Value::Array(numbers) if wants_base64 => pack(numbers),
            Value::String(text) if !wants_base64 => unpack(text),
            other => Some(other.clone()),
        };
        *vector = converted.ok_or_else(|| malformed("an embedding is neither a list of numbers nor base64 of floats"))?;
    }
    serde_json::to_vec(&reply).map(Bytes::from).map_err(|error| malformed(&error.to_string()))
}

fn pack(numbers: &[Value]) -> Option<Value> {
    let mut bytes = Vec::with_capacity(numbers.len() * 4);
    for number in numbers {
        #[expect(clippy::cast_possible_truncation, reason = "the wire format is 32-bit floats")]
        let float = number.as_f64()? as f32;
        bytes.extend_from_slice(&float.to_le_bytes());
    }
    Some(Value::String(STANDARD.encode(bytes)))
}

fn unpack(text: &str) -> Option<Value> {
    let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() % 4 == 0)?;
    let floats = bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
    Some(Value::Array(floats.map(|float| Value::from(f64::from(float))).collect()))
}

fn malformed(message: &str) -> Failure {
    Failure::new(FailureClass::Malformed, message)
}
