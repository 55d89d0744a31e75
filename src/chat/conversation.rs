//! What tells one conversation from another: the head of its prompt, which stays the same while it grows.

use std::hash::{DefaultHasher, Hasher as _};

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

use super::Scan;

/// A key of the conversation that a chat request goes on with: a digest of its messages up to the first one of the user.
/// `None` where there is no such message. What follows that message is not read.
pub fn conversation_key(body: &[u8], scan: &Scan) -> Option<u64> {
    let mut key = None;
    let mut messages = serde_json::Deserializer::from_slice(scan.value(body, "messages")?);
    // Stopped in the middle, it complains of what it has not read.
    let _ = messages.deserialize_seq(Head(&mut key));
    key
}

/// Reads messages until it has the key.
struct Head<'k>(&'k mut Option<u64>);

impl<'de> Visitor<'de> for Head<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut messages: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            role: std::borrow::Cow<'a, str>,
        }
        let mut digest = DefaultHasher::new();
        while let Some(message) = messages.next_element::<&RawValue>()? {
            digest.write(message.get().as_bytes());
            let role = serde_json::from_str::<Message<'_>>(message.get()).map(|message| message.role);
            if role.is_ok_and(|role| role == "user") {
                *self.0 = Some(digest.finish());
                break;
            }
        }
        Ok(())
    }
}

/// A key of a conversation that its client names.
pub fn named_key(name: &[u8]) -> u64 {
    let mut digest = DefaultHasher::new();
    digest.write(name);
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::super::{Shape, scan};
    use super::*;

    fn key(messages: &str) -> Option<u64> {
        let body = format!(r#"{{"model":"m","messages":{messages}}}"#);
        conversation_key(body.as_bytes(), &scan(body.as_bytes(), Shape::Chat).unwrap())
    }

    #[test]
    fn a_conversation_keeps_its_key_while_it_grows() {
        let first = r#"[{"role":"system","content":"s"},{"role":"user","content":"hi"}"#;
        let start = key(&format!("{first}]"));
        assert!(start.is_some());
        assert_eq!(key(&format!(r#"{first},{{"role":"assistant","content":"ho"}},{{"role":"user","content":"so"}}]"#)), start);
        assert_ne!(key(r#"[{"role":"system","content":"s"},{"role":"user","content":"other"}]"#), start);
        assert_eq!(key(r#"[{"role":"system","content":"s"}]"#), None);
    }
}
