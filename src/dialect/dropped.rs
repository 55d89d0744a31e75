//! Which fields of a request are left out on the way to a foreign dialect: found in one place, told to the client.

use smallvec::SmallVec;

use super::Ask;
use crate::chat::Failure;
use crate::chat::request::unsupported;

/// Names of fields that are left out.
#[derive(Debug, Default)]
pub struct Dropped(SmallVec<[Box<str>; 4]>);

impl Dropped {
    /// Starts with the top-level fields that the dialect does not know; those that say nothing are not worth a word.
    ///
    /// # Errors
    /// `Unsupported` for a field of `refused` that asks for something.
    pub fn unknown(ask: &Ask<'_>, carried: &[&str], refused: &[&str]) -> Result<Self, Failure> {
        let mut dropped = Self::default();
        for field in &ask.scan.fields {
            let name = field.name(ask.body);
            if says_nothing(field.value(ask.body)) {
                continue;
            }
            if refused.contains(&&*name) {
                let kind = ask.backend.kind.word();
                return Err(unsupported(&name, format!("`{name}` cannot be asked of a {kind} backend")));
            }
            if !carried.contains(&&*name) {
                dropped.0.push(name.into());
            }
        }
        Ok(dropped)
    }

    /// Adds a field if it was left out or changed.
    pub fn note(&mut self, field: &str, was_dropped: bool) {
        if was_dropped && !self.0.iter().any(|known| **known == *field) {
            self.0.push(field.into());
        }
    }

    /// The names.
    pub fn finish(self) -> SmallVec<[Box<str>; 4]> {
        self.0
    }
}

fn says_nothing(value: &[u8]) -> bool {
    matches!(value, b"null" | b"false" | b"0" | b"0.0" | b"[]" | b"{}" | b"\"\"")
}
