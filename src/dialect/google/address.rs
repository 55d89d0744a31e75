//! Addresses of the Gemini API and of Vertex AI; the model and the method are part of them.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::catalogue::VertexMethod;
use crate::chat::request::unsupported;
use crate::chat::{Endpoint, Failure};
use crate::settings::Backend;

/// What must not stand in a segment of a path.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b':');

/// The model's own id, without the prefixes that some clients write.
pub(super) fn bare(model: &str) -> &str {
    let model = model.strip_prefix("publishers/google/").or_else(|| model.strip_prefix("google/")).unwrap_or(model);
    model.strip_prefix("models/").unwrap_or(model)
}

/// Refuses ids that would mean another address.
pub(super) fn check_model(model: &str) -> Result<(), Failure> {
    let bare = bare(model);
    let inner = bare.strip_prefix("tunedModels/").unwrap_or(bare);
    if inner.is_empty() || inner.contains(['/', '?', '&', '#', '\\']) || inner.contains("..") || inner == "." {
        return Err(unsupported("model", format!("`{model}` cannot be the id of a Google model")));
    }
    Ok(())
}

/// The address of a request.
pub fn url(backend: &Backend, endpoint: Endpoint, path: &str, model: &str, stream: bool) -> String {
    let model = bare(model);
    let version = backend.api_version.as_deref().unwrap_or("v1beta");
    if endpoint == Endpoint::Passthrough {
        let publisher = if backend.vertex.is_some() { "/publishers/google" } else { "" };
        return format!("{}/{version}{publisher}{path}", backend.base);
    }
    let method = match (endpoint, stream) {
        (Endpoint::Embeddings, _) => embedding_method(backend, model),
        (_, true) => "streamGenerateContent?alt=sse",
        (_, false) => "generateContent",
    };
    let base = &backend.base;
    let resource = match &backend.vertex {
        Some(vertex) => {
            let place = format!("projects/{}/locations/{}", vertex.project, vertex.location);
            // A tuned model is known by the number of its endpoint.
            let is_endpoint = !model.is_empty() && model.bytes().all(|byte| byte.is_ascii_digit());
            let collection = if is_endpoint { "endpoints" } else { "publishers/google/models" };
            format!("{place}/{collection}/{}", utf8_percent_encode(model, SEGMENT))
        }
        None => match model.strip_prefix("tunedModels/") {
            Some(tuned) => format!("tunedModels/{}", utf8_percent_encode(tuned, SEGMENT)),
            None => format!("models/{}", utf8_percent_encode(model, SEGMENT)),
        },
    };
    format!("{base}/{version}/{resource}:{method}")
}

fn embedding_method(backend: &Backend, model: &str) -> &'static str {
    let rules = backend.catalogue.google(model).embedding.as_ref();
    match (&backend.vertex, rules.map(|rules| rules.vertex)) {
        (None, _) => "batchEmbedContents",
        (Some(_), Some(VertexMethod::EmbedContent)) => "embedContent",
        (Some(_), _) => "predict",
    }
}

/// Headers that every request carries; the key never stands in an address.
pub fn headers(backend: &Backend) -> Vec<(String, String)> {
    let key = backend.credential.as_ref();
    key.map(|key| ("x-goog-api-key".to_owned(), key.expose().to_owned())).into_iter().collect()
}
