//! Nearly all events of a stream are alike but for a text or two. Those are recognised here by comparing bytes, and need
//! not be read one by one.

use std::ops::Range;

use smallvec::SmallVec;

use crate::chat::Lexer;

/// Bytes of the largest event that can be a pattern.
const LARGEST: usize = 4 << 10;
/// So many of its texts may change.
const TEXTS: usize = 4;
/// A stream whose events differ in more than their texts stops learning after so many.
const LESSONS: u32 = 16;
const PREFIX: &[u8] = b"data: ";

/// Places of strings, quotes included, in order.
pub(super) type Texts = SmallVec<[Range<usize>; TEXTS]>;

/// Notes a string as one that may change; those for which there is no room may not.
pub(super) fn note(texts: &mut Texts, place: Range<usize>) {
    if texts.len() < TEXTS {
        texts.push(place);
    }
}

/// The last event that was learned. Those that have the same bytes outside its texts mean the same.
#[derive(Default)]
pub(super) struct Pattern {
    event: Vec<u8>,
    /// Places in the event.
    texts: Texts,
    lessons: u32,
}

impl Pattern {
    /// Whether this event is like the one learned, and valid JSON as that was.
    pub(super) fn fits(&self, event: &[u8]) -> bool {
        let (mut rest, mut known) = (event, 0);
        for text in &self.texts {
            let Some(behind) = rest.strip_prefix(&self.event[known..text.start]) else { return false };
            let Ok(other) = Lexer::new(behind).string() else { return false };
            (rest, known) = (&behind[other.end..], text.end);
        }
        !self.texts.is_empty() && *rest == self.event[known..]
    }

    /// Events learned so far.
    #[cfg(test)]
    pub(super) fn lessons(&self) -> u32 {
        self.lessons
    }

    /// Learns an event, whole with its blank line, whose data are these, in one line. `texts` are places within the data where
    /// another string would change nothing.
    pub(super) fn learn(&mut self, event: &[u8], data: &[u8], texts: &[Range<usize>]) {
        let is_plain = event.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(data));
        // A line that ends in CR may have its LF in the next chunk.
        if !is_plain || !event.ends_with(b"\n") || event.len() > LARGEST || self.lessons == LESSONS {
            return;
        }
        self.lessons += 1;
        self.event.clear();
        self.event.extend_from_slice(event);
        self.texts.clear();
        self.texts.extend(texts.iter().map(|text| text.start + PREFIX.len()..text.end + PREFIX.len()));
    }
}
