//! Messages rewritten for providers that refuse what OpenAI accepts. Contents stay raw: an image is never decoded.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Message fields that are meant for one provider and handed back by clients that keep what they got.
pub(super) const PRIVATE: &[&str] = &["thinking_blocks", "extra_content"];
/// These, and message fields that carry replayed reasoning.
pub(super) const REASONING: &[&str] =
    &["reasoning", "reasoning_content", "thinking_blocks", "extra_content", "cache_control", "is_error"];
/// Message fields that hosts of the plain kind refuse.
pub(super) const FOREIGN: &[&str] = &[
    "name",
    "reasoning",
    "reasoning_content",
    "refusal",
    "annotations",
    "audio",
    "thinking_blocks",
    "extra_content",
    "cache_control",
    "is_error",
];

/// Leaves the given fields out of every message and its tool calls, and keeps everything else as it is.
pub(super) fn without(messages: &[u8], fields: &[&str]) -> Result<Vec<u8>, serde_json::Error> {
    let mut list: Vec<indexed::Message<'_>> = serde_json::from_slice(messages)?;
    for message in &mut list {
        message.0.retain(|(name, _)| !fields.contains(&&**name));
        for (name, value) in &mut message.0 {
            let has = |word: &str| memchr::memmem::find(value.get().as_bytes(), word.as_bytes()).is_some();
            let is_affected = match &**name {
                // The index of a streamed call comes back too from clients that keep what they got.
                "tool_calls" => has("\"extra_content\"") || has("\"index\""),
                "content" => value.get().starts_with('[') && has("\"cache_control\""),
                _ => false,
            };
            if is_affected {
                *value = Cow::Owned(crate::dialect::raw(list_without(value, fields)?));
            }
        }
    }
    serde_json::to_vec(&list)
}

/// Tool calls, content parts or tools without the given fields.
pub(super) fn list_without(list: &RawValue, fields: &[&str]) -> Result<String, serde_json::Error> {
    let mut list: Vec<indexed::Message<'_>> = serde_json::from_str(list.get())?;
    for entry in &mut list {
        entry.0.retain(|(name, _)| name != "index" && !fields.contains(&&**name));
    }
    serde_json::to_string(&list)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<Vec<Call<'a>>>,
    #[serde(borrow)]
    tool_call_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    prefix: Option<bool>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    function: Function<'a>,
}

#[derive(Deserialize, Serialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
    #[serde(borrow)]
    arguments: &'a RawValue,
}

#[derive(Serialize)]
struct StrictMessage<'a> {
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Cow<'a, RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<StrictCall<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<bool>,
}

#[derive(Serialize)]
struct StrictCall<'a> {
    id: String,
    r#type: &'static str,
    function: &'a Function<'a>,
}

/// Mistral's schema: nothing but the known fields, nine-character tool-call ids, `system` for `developer`, an assistant
/// between tool and user, `prefix` on a trailing assistant.
pub(super) fn strict(messages: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let list: Vec<Message<'_>> = serde_json::from_slice(messages)?;
    let mut ids = Ids::of(&list);
    let mut out: Vec<StrictMessage<'_>> = Vec::with_capacity(list.len() + 1);
    for message in &list {
        let role = match &*message.role {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            role => return Err(serde::de::Error::custom(format!("this backend's provider knows no role `{role}`"))),
        };
        if role == "user" && out.last().is_some_and(|last| last.role == "tool") {
            out.push(bridge());
        }
        let calls = message.tool_calls.as_ref().filter(|calls| !calls.is_empty()).map(|calls| {
            calls
                .iter()
                .map(|call| StrictCall {
                    id: ids.nine(call.id.as_deref().unwrap_or_default()),
                    r#type: "function",
                    function: &call.function,
                })
                .collect()
        });
        let says = |content: &&RawValue| !matches!(content.get(), "null" | "\"\"" | "[]");
        let content = match message.content {
            // An assistant that says nothing is refused, so its refusal is what it said.
            content if role == "assistant" => content.filter(says).or_else(|| message.refusal.filter(says)),
            content => content.filter(|content| content.get() != "null"),
        };
        if role == "assistant" && content.is_none() && calls.is_none() {
            continue;
        }
        let content = content.map(strict_content).transpose()?;
        out.push(StrictMessage {
            role,
            content,
            tool_calls: calls,
            tool_call_id: message.tool_call_id.as_deref().map(|id| ids.nine(id)),
            name: if role == "tool" { message.name.as_deref() } else { None },
            prefix: message.prefix,
        });
    }
    if let Some(last) = out.last_mut()
        && last.role == "assistant"
        && last.tool_calls.is_none()
    {
        last.prefix = Some(true);
    }
    serde_json::to_vec(&out)
}

fn bridge<'a>() -> StrictMessage<'a> {
    StrictMessage {
        role: "assistant",
        content: RawValue::from_string("\"Understood.\"".into()).ok().map(Cow::Owned),
        tool_calls: None,
        tool_call_id: None,
        name: None,
        prefix: None,
    }
}

/// Content parts in Mistral's shapes; borrowed when nothing differs.
fn strict_content(content: &RawValue) -> Result<Cow<'_, RawValue>, serde_json::Error> {
    const DIFFERING: &[&str] =
        &["\"input_audio\"", "\"file\"", "\"refusal\"", "\"prompt_cache_breakpoint\"", "\"cache_control\"", "\"detail\""];
    let text = content.get();
    if !text.starts_with('[') || !DIFFERING.iter().any(|word| memchr::memmem::find(text.as_bytes(), word.as_bytes()).is_some()) {
        return Ok(Cow::Borrowed(content));
    }
    let mut parts: Vec<Map<String, Value>> = serde_json::from_str(text)?;
    for part in &mut parts {
        part.remove("prompt_cache_breakpoint");
        part.remove("cache_control");
        match part.get("type").and_then(Value::as_str) {
            Some("input_audio") => {
                let data = part.get("input_audio").and_then(|audio| audio.get("data")).cloned().unwrap_or(Value::Null);
                part.insert("input_audio".into(), data);
            }
            Some("file") => {
                if let Some(Value::Object(file)) = part.remove("file") {
                    *part = strict_file(&file);
                }
            }
            Some("image_url") => {
                let detail = part.get_mut("image_url").and_then(|image| image.get_mut("detail"));
                if let Some(detail) = detail.filter(|detail| !matches!(detail.as_str(), Some("low" | "auto" | "high"))) {
                    *detail = json!(if detail.is_null() { "auto" } else { "high" });
                }
            }
            Some("refusal") => {
                let text = part.remove("refusal").unwrap_or(Value::Null);
                *part = Map::from_iter([("type".into(), json!("text")), ("text".into(), text)]);
            }
            _ => {}
        }
    }
    RawValue::from_string(serde_json::to_string(&parts)?).map(Cow::Owned)
}

fn strict_file(file: &Map<String, Value>) -> Map<String, Value> {
    let mut part = Map::new();
    match (file.get("file_id"), file.get("file_data")) {
        (Some(id), _) => {
            part.insert("type".into(), json!("file"));
            part.insert("file_id".into(), id.clone());
        }
        (None, data) => {
            part.insert("type".into(), json!("document_url"));
            part.insert("document_url".into(), data.cloned().unwrap_or(Value::Null));
            if let Some(name) = file.get("filename") {
                part.insert("document_name".into(), name.clone());
            }
        }
    }
    part
}

/// Tool-call ids of nine letters and digits, the same for a call and its answer, without collision in a conversation.
struct Ids {
    chosen: HashMap<String, String>,
    taken: HashSet<String>,
}

impl Ids {
    fn of(messages: &[Message<'_>]) -> Self {
        let calls = messages.iter().flat_map(|message| message.tool_calls.iter().flatten()).filter_map(|call| call.id.as_deref());
        let answers = messages.iter().filter_map(|message| message.tool_call_id.as_deref());
        let taken = calls.chain(answers).filter(|id| is_nine(id)).map(str::to_owned).collect();
        Self { chosen: HashMap::new(), taken }
    }

    fn nine(&mut self, id: &str) -> String {
        if is_nine(id) {
            return id.to_owned();
        }
        if let Some(chosen) = self.chosen.get(id) {
            return chosen.clone();
        }
        let mut salt = 0u32;
        let chosen = loop {
            let candidate = digest(id, salt);
            if self.taken.insert(candidate.clone()) {
                break candidate;
            }
            salt += 1;
        };
        self.chosen.insert(id.to_owned(), chosen.clone());
        chosen
    }
}

fn is_nine(id: &str) -> bool {
    id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn digest(id: &str, salt: u32) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let hash = Sha256::new().chain_update(id).chain_update(salt.to_le_bytes()).finalize();
    hash.iter().take(9).map(|byte| char::from(ALPHABET[usize::from(*byte) % 62])).collect()
}

/// A message as its fields in order, values raw.
mod indexed {
    use std::borrow::Cow;
    use std::fmt;

    use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
    use serde::ser::{Serialize, SerializeMap, Serializer};
    use serde_json::value::RawValue;

    pub(super) struct Message<'a>(pub(super) Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

    impl<'de: 'a, 'a> Deserialize<'de> for Message<'a> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Fields;
            impl<'de> Visitor<'de> for Fields {
                type Value = Message<'de>;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a message")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut fields = Vec::new();
                    while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                        fields.push((Cow::Owned(name), Cow::Borrowed(value)));
                    }
                    Ok(Message(fields))
                }
            }
            deserializer.deserialize_map(Fields)
        }
    }

    impl Serialize for Message<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.0.len()))?;
            for (name, value) in &self.0 {
                map.serialize_entry(name, value)?;
            }
            map.end()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_kept_when_they_fit_and_never_collide() {
        let messages: Vec<Message<'_>> = serde_json::from_str(
            r#"[{"role":"assistant","tool_calls":[{"id":"abcDEF123","function":{"name":"f","arguments":"{}"}}]}]"#,
        )
        .unwrap();
        let mut ids = Ids::of(&messages);
        assert_eq!(ids.nine("abcDEF123"), "abcDEF123");
        let first = ids.nine("call_1");
        assert_eq!(ids.nine("call_1"), first);
        ids.taken.insert(digest("call_2", 0));
        assert_eq!(ids.nine("call_2"), digest("call_2", 1));
    }

    proptest! {
        #[test]
        fn distinct_ids_stay_distinct_and_well_formed(names in prop::collection::hash_set("[a-z_0-9]{1,20}", 1..40)) {
            let mut ids = Ids { chosen: HashMap::new(), taken: names.iter().filter(|id| is_nine(id)).cloned().collect() };
            let mapped: HashSet<String> = names.iter().map(|name| ids.nine(name)).collect();
            prop_assert_eq!(mapped.len(), names.len());
            prop_assert!(mapped.iter().all(|id| is_nine(id)));
        }
    }
}
