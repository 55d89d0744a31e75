//! Embeddings of the Gemini API (in batches) and of Vertex AI (`predict`, or one text at a time).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::address::bare;
use super::error::failure_in;
use super::fields::EMBEDDING_CARRIED;
use super::response::UsageMetadata;
use crate::catalogue::{Embedding, VertexMethod};
use crate::chat::request::{Text, caller, unsupported};
use crate::chat::{Failure, FailureClass, Usage, count};
use crate::dialect::{Ask, Dropped, Encoded, Whole};

/// Texts in one request of the Gemini API, for models that the catalogue does not know.
const BATCH: usize = 100;
/// Parts that one request of a client may become.
const MAX_PARTS: usize = 256;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    input: Input<'a>,
    dimensions: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input<'a> {
    One(#[serde(borrow)] Text<'a>),
    Many(#[serde(borrow)] Vec<Text<'a>>),
    Tokens(#[expect(dead_code, reason = "what else there is cannot be said")] serde_json::Value),
}

impl<'a> Request<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(body).map_err(|error| caller("input", format!("the request cannot be read: {error}")))
    }

    fn texts(&self) -> Result<&[Text<'a>], Failure> {
        let texts = match &self.input {
            Input::One(text) => std::slice::from_ref(text),
            Input::Many(texts) => texts,
            Input::Tokens(_) => {
                return Err(unsupported("input", "`input` must be text for Google: it takes no token ids".into()));
            }
        };
        if texts.is_empty() { Err(caller("input", "`input` is empty".into())) } else { Ok(texts) }
    }
}

/// How texts go into requests.
enum Form {
    /// `batchEmbedContents`.
    Batch(usize),
    /// `predict`.
    Predict(usize),
    /// `embedContent`.
    Single,
}

fn form(ask: &Ask<'_>) -> Form {
    let rules = rules(ask);
    match (&ask.backend.vertex, rules) {
        (None, rules) => Form::Batch(rules.map_or(BATCH, |rules| rules.batch)),
        (Some(_), Some(rules)) if rules.vertex == VertexMethod::EmbedContent => Form::Single,
        (Some(_), rules) => Form::Predict(rules.and_then(|rules| rules.vertex_batch).unwrap_or(1)),
    }
}

fn rules<'a>(ask: &'a Ask<'_>) -> Option<&'a Embedding> {
    ask.backend.catalogue.google(bare(ask.model)).embedding.as_ref()
}

#[derive(Serialize)]
struct Content<'a> {
    parts: [PartText<'a>; 1],
}

#[derive(Serialize)]
struct PartText<'a> {
    text: &'a str,
}

fn content(text: &str) -> Content<'_> {
    Content { parts: [PartText { text }] }
}

/// The request, in as many parts as the API's limits demand.
pub(super) fn encode(ask: &Ask<'_>) -> Result<Encoded, Failure> {
    let request = Request::read(ask.body)?;
    let texts = request.texts()?;
    let dropped = Dropped::unknown(ask, EMBEDDING_CARRIED, &[])?;
    let dimensions = request.dimensions;
    let form = form(ask);
    let size = match form {
        Form::Batch(size) | Form::Predict(size) => size.max(1),
        Form::Single => 1,
    };
    if texts.len().div_ceil(size) > MAX_PARTS {
        let most = MAX_PARTS * size;
        return Err(unsupported(
            "input",
            format!("`input` has {} texts; at most {most} can be sent for this model", texts.len()),
        ));
    }
    let name = format!("models/{}", bare(ask.model));
    let bodies: SmallVec<[Bytes; 1]> = texts
        .chunks(size)
        .map(|texts| {
            let body = match form {
                Form::Batch(_) => {
                    let one = |text: &Text<'_>| {
                        let mut one = json!({ "model": name, "content": content(text) });
                        if let Some(dimensions) = dimensions {
                            one["outputDimensionality"] = json!(dimensions);
                        }
                        one
                    };
                    json!({ "requests": texts.iter().map(one).collect::<Vec<_>>() })
                }
                Form::Predict(_) => {
                    let instances: Vec<Value> = texts.iter().map(|text| json!({ "content": &**text })).collect();
                    match dimensions {
                        Some(dimensions) => {
                            json!({ "instances": instances, "parameters": { "outputDimensionality": dimensions } })
                        }
                        None => json!({ "instances": instances }),
                    }
                }
                Form::Single => match dimensions {
                    Some(dimensions) => json!({
                        "content": content(&texts[0]),
                        "embedContentConfig": { "outputDimensionality": dimensions },
                    }),
                    None => json!({ "content": content(&texts[0]) }),
                },
            };
            Bytes::from(body.to_string())
        })
        .collect();
    Ok(Encoded { bodies, ..Encoded::new(Bytes::new(), dropped.finish()) })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    #[serde(default)]
    embeddings: Vec<Vector>,
    embedding: Option<Vector>,
    #[serde(default)]
    predictions: Vec<Prediction>,
    usage_metadata: Option<UsageMetadata>,
}

#[derive(Deserialize)]
struct Vector {
    #[serde(default)]
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Prediction {
    embeddings: Predicted,
}

#[derive(Deserialize)]
struct Predicted {
    values: Vec<f32>,
    statistics: Option<Statistics>,
}

#[derive(Deserialize)]
struct Statistics {
    #[serde(default, deserialize_with = "count")]
    token_count: Option<u64>,
}

/// A list of embeddings of the OpenAI API.
#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Value,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Encoding,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Encoding {
    Floats(Vec<f32>),
    Base64(String),
}

/// The replies to all parts as one reply of the OpenAI API.
pub(super) fn decode(ask: &Ask<'_>, bodies: &[Bytes]) -> Result<Whole, Failure> {
    let wants_base64 = ask.scan.value(ask.body, "encoding_format") == Some(b"\"base64\"");
    let asked = Request::read(ask.body)?;
    let expected = asked.texts()?.len();
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(expected);
    let mut tokens = 0u64;
    let mut reported = Usage::default();
    for body in bodies {
        if let Some(failure) = failure_in(body) {
            return Err(failure);
        }
        let reply: Reply = serde_json::from_slice(body)
            .map_err(|_| Failure::new(FailureClass::Malformed, "the provider's reply holds no embeddings"))?;
        reported.prompt_tokens += reply.usage_metadata.map_or(0, |usage| usage.usage().prompt_tokens);
        vectors.extend(reply.embeddings.into_iter().chain(reply.embedding).map(|vector| vector.values));
        for prediction in reply.predictions {
            let counted = prediction.embeddings.statistics.and_then(|statistics| statistics.token_count);
            tokens = tokens.saturating_add(counted.unwrap_or(0));
            vectors.push(prediction.embeddings.values);
        }
    }
    if vectors.len() != expected || vectors.iter().any(Vec::is_empty) {
        let what = format!("the provider answered {} embeddings for {expected} texts", vectors.len());
        return Err(Failure::new(FailureClass::Malformed, what));
    }
    reported.prompt_tokens = reported.prompt_tokens.max(tokens);
    let usage = (reported.prompt_tokens > 0).then_some(reported);
    let shown = usage.unwrap_or_else(|| Usage::estimate(ask.body.len(), 0));
    let entry = |(index, mut vector): (usize, Vec<f32>)| {
        to_unit_length(&mut vector);
        let embedding = match wants_base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                Encoding::Base64(STANDARD.encode(bytes))
            }
            false => Encoding::Floats(vector),
        };
        Entry { object: "embedding", index, embedding }
    };
    let list = List {
        object: "list",
        data: vectors.into_iter().enumerate().map(entry).collect(),
        model: ask.model,
        usage: json!({ "prompt_tokens": shown.prompt_tokens, "total_tokens": shown.prompt_tokens }),
    };
    let body = serde_json::to_vec(&list).map_err(|error| Failure::new(FailureClass::Malformed, error.to_string()))?;
    Ok(Whole { body: Bytes::from(body), usage, keepsakes: Vec::new() })
}

/// Clients of the OpenAI API take every vector for one of unit length; shortened ones of some models are not.
fn to_unit_length(vector: &mut [f32]) {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for number in vector {
            #[expect(clippy::cast_possible_truncation, reason = "the wire format is 32-bit floats")]
            let scaled = (f64::from(*number) / length) as f32;
            *number = scaled;
        }
    }
}
