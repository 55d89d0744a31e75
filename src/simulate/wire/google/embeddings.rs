//! Google's three ways to ask for embeddings: one text, many requests, and Vertex AI's `predict`.

use serde_json::{Value, json};

use super::{Composed, field, list, text, texts, whole};
use crate::simulate::answer::{dimensions, text_tokens, vector};

/// `embedContent`.
pub(super) fn one(request: &Value) -> Result<Composed, &'static str> {
    let values = vector(&content(request)?, dimensions(wish(request), 1)?);
    Ok(whole(&json!({ "embedding": { "values": values } })))
}

/// `batchEmbedContents`: the model stands within every request, too.
pub(super) fn batch(request: &Value) -> Result<Composed, &'static str> {
    let requests = list(request.get("requests"));
    if requests.is_empty() {
        return Err("requests must not be empty");
    }
    let mut embeddings = Vec::with_capacity(requests.len());
    for request in requests {
        if !text(request, "model").contains("models/") {
            return Err("each request must name its model as models/{model}");
        }
        let values = vector(&content(request)?, dimensions(wish(request), requests.len())?);
        embeddings.push(json!({ "values": values }));
    }
    Ok(whole(&json!({ "embeddings": embeddings })))
}

/// `predict`.
pub(super) fn predict(request: &Value) -> Result<Composed, &'static str> {
    let instances = list(request.get("instances"));
    if instances.is_empty() {
        return Err("instances must not be empty");
    }
    let wish = request.get("parameters").and_then(|parameters| field(parameters, "outputDimensionality"));
    let dimensions = dimensions(wish, instances.len())?;
    let predictions: Vec<Value> = instances
        .iter()
        .map(|instance| {
            let text = text(instance, "content");
            let statistics = json!({ "token_count": text_tokens(text), "truncated": false });
            json!({ "embeddings": { "values": vector(text, dimensions), "statistics": statistics } })
        })
        .collect();
    Ok(whole(&json!({ "predictions": predictions })))
}

/// The dimensions that are wished for: the Gemini API and Vertex AI have them in different places.
fn wish(request: &Value) -> Option<&Value> {
    let config = field(request, "embedContentConfig").unwrap_or(request);
    field(config, "outputDimensionality")
}

fn content(request: &Value) -> Result<String, &'static str> {
    match list(request.pointer("/content/parts")) {
        [] => Err("content must have a part"),
        parts => Ok(texts(parts)),
    }
}
