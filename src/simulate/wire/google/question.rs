//! What a request in Google's words asks.

use std::borrow::Cow;

use serde_json::Value;

use super::{field, list, text, texts};
use crate::simulate::answer::{Format, Question, Tool};

/// Reads a request; `None` when it has no contents.
pub(super) fn question(request: &Value) -> Option<Question<'_>> {
    let parts = list(request.get("contents")?.as_array()?.last()?.get("parts"));
    let result = field(parts.last()?, "functionResponse");
    let config = field(request, "generationConfig");
    let thinking = config.and_then(|config| field(config, "thinkingConfig"));
    Some(Question {
        text: result.map_or_else(|| texts(parts), result_text),
        after_tool: result.is_some(),
        tools: tools(request),
        parallel: true,
        format: config.map_or(Format::Text, format),
        thinks: thinking.and_then(|thinking| field(thinking, "includeThoughts")) == Some(&Value::Bool(true)),
    })
}

fn result_text(result: &Value) -> String {
    let response = result.get("response").unwrap_or(&Value::Null);
    let output = response.get("output").or_else(|| response.get("error")).unwrap_or(response);
    output.as_str().map_or_else(|| output.to_string(), str::to_owned)
}

fn tools(request: &Value) -> Vec<Tool<'_>> {
    let config = field(request, "toolConfig").and_then(|config| field(config, "functionCallingConfig"));
    if config.is_some_and(|config| text(config, "mode").eq_ignore_ascii_case("none")) {
        return Vec::new();
    }
    let allowed = list(config.and_then(|config| field(config, "allowedFunctionNames")));
    let declared = list(request.get("tools")).iter().flat_map(|tool| list(field(tool, "functionDeclarations")));
    let all = declared.map(|function| Tool {
        name: text(function, "name"),
        parameters: field(function, "parametersJsonSchema").or_else(|| function.get("parameters")),
    });
    all.filter(|tool| allowed.is_empty() || allowed.iter().any(|name| name == tool.name)).collect()
}

fn format(config: &Value) -> Format<'_> {
    if field(config, "responseMimeType").and_then(Value::as_str) != Some("application/json") {
        return Format::Text;
    }
    let schema = field(config, "responseJsonSchema").or_else(|| field(config, "responseSchema"));
    schema.map_or(Format::Json, |schema| Format::Schema(Cow::Borrowed(schema)))
}
