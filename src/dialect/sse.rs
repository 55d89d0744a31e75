//! Bytes to server-sent events, cut at any byte: CRLF, CR, comments, multi-line data, a missing final blank line.
//!
//! [`Splitter`] yields whole raw events without copying them where it can; [`data`] reads one.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2;

/// Splits a byte stream at blank lines.
#[derive(Debug)]
pub struct Splitter {
    /// Bytes of an event whose end has not come yet.
    partial: BytesMut,
    /// Whether the scan stands at the beginning of a line.
    at_line_start: bool,
    /// Whether the last byte was a CR, so that a LF now belongs to it.
    after_cr: bool,
    /// Whether the first event is still to come: it may begin with a byte-order mark.
    is_first: bool,
    /// Largest event in bytes.
    limit: usize,
}

/// An event grew beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {0} bytes")]
pub struct TooLarge(pub usize);

impl Splitter {
    /// Starts; `limit` bounds one event and so the memory held.
    pub fn new(limit: usize) -> Self {
        Self { partial: BytesMut::new(), at_line_start: true, after_cr: false, is_first: true, limit }
    }

    /// Takes bytes in and hands every whole event (with its blank line) to `each`.
    ///
    /// # Errors
    /// [`TooLarge`], after which the splitter must not be used again.
    pub fn feed(&mut self, mut chunk: Bytes, mut each: impl FnMut(Bytes)) -> Result<(), TooLarge> {
        while let Some(length) = self.find_end(&chunk) {
            let tail = chunk.split_to(length);
            let event = if self.partial.is_empty() {
                tail
            } else {
                self.partial.extend_from_slice(&tail);
                self.partial.split().freeze()
            };
            let event = self.without_mark(event);
            if event.len() > self.limit {
                return Err(TooLarge(self.limit));
            }
            each(event);
        }
        if self.partial.len() + chunk.len() > self.limit {
            return Err(TooLarge(self.limit));
        }
        self.partial.extend_from_slice(&chunk);
        Ok(())
    }

    /// Whether the last event is whole and nothing of the next has come.
    pub fn is_between_events(&self) -> bool {
        self.partial.is_empty() && self.at_line_start && !self.after_cr
    }

    /// What remains at the end of the stream: an event without its blank line, if there is one.
    pub fn finish(&mut self) -> Option<Bytes> {
        let rest = self.partial.split().freeze();
        let rest = self.without_mark(rest);
        (!rest.iter().all(u8::is_ascii_whitespace)).then_some(rest)
    }

    /// The event; the first of the stream without its byte-order mark, which means something nowhere else.
    fn without_mark(&mut self, mut event: Bytes) -> Bytes {
        if std::mem::take(&mut self.is_first) && event.starts_with(b"\xef\xbb\xbf") {
            event.advance(3);
        }
        event
    }

    /// Offset behind the blank line that ends the present event, if it lies within `chunk`.
    fn find_end(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < chunk.len() {
            if self.after_cr {
                self.after_cr = false;
                if chunk[at] == b'\n' {
                    at += 1;
                    continue;
                }
            }
            if self.at_line_start && matches!(chunk[at], b'\n' | b'\r') {
                self.after_cr = chunk[at] == b'\r';
                at += 1;
                // A LF that belongs to this CR is left to the next event, where it means nothing.
                if self.after_cr && chunk.get(at) == Some(&b'\n') {
                    self.after_cr = false;
                    at += 1;
                }
                return Some(at);
            }
            match memchr2(b'\n', b'\r', &chunk[at..]) {
                Some(offset) => {
                    at += offset;
                    self.after_cr = chunk[at] == b'\r';
                    self.at_line_start = true;
                    at += 1;
                }
                None => {
                    self.at_line_start = false;
                    return None;
                }
            }
        }
        None
    }
}

/// The data of a raw event, its lines joined with LF; `None` when it has none, as a comment.
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    // Nearly every event is one line: `data: ...` LF LF.
    if let Some(rest) = event.strip_prefix(b"data: ".as_slice())
        && let Some(line) = rest.strip_suffix(b"\n\n".as_slice())
        && memchr2(b'\n', b'\r', line).is_none()
    {
        return Some(Cow::Borrowed(line));
    }
    let mut joined: Option<Cow<'_, [u8]>> = None;
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let value = match line.strip_prefix(b"data".as_slice()) {
            Some([]) => &[][..],
            Some([b':', rest @ ..]) => rest.strip_prefix(b" ".as_slice()).unwrap_or(rest),
            _ => continue,
        };
        joined = Some(match joined {
            None => Cow::Borrowed(value),
            Some(before) => {
                let mut all = before.into_owned();
                all.push(b'\n');
                all.extend_from_slice(value);
                Cow::Owned(all)
            }
        });
    }
    joined
}

/// Whether an event has data and comments only. Clients keep an `id` for all that follows, and the official Python client
/// then takes the next comment for an event.
pub fn is_bare(event: &[u8]) -> bool {
    let mut lines = event.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.all(|line| line.is_empty() || line.starts_with(b"data:") || line.starts_with(b":") || line == b"data")
}

/// Writes one event with the given data; what stands on several lines stays so.
pub fn event(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 8);
    for line in data.split(|byte| *byte == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::new(1 << 20);
        let mut events = Vec::new();
        let mut keep = |event: Bytes| {
            if let Some(data) = data(&event) {
                events.push(String::from_utf8(data.into_owned()).unwrap());
            }
        };
        for chunk in chunks {
            splitter.feed(Bytes::copy_from_slice(chunk), &mut keep).unwrap();
        }
        if let Some(rest) = splitter.finish() {
            keep(rest);
        }
        events
    }

    #[test]
    fn every_form_of_the_format_is_read() {
        let stream = "\u{feff}data: a\n\n: comment\n\ndata:b\r\n\r\nevent: x\rdata: c\r\rdata: d1\ndata: d2\n\nid: 1\n\ndata: \u{2028}\n\ndata: last";
        assert_eq!(read(&[stream.as_bytes()]), ["a", "b", "c", "d1\nd2", "\u{2028}", "last"]);
    }

    #[test]
    fn a_byte_order_mark_within_the_stream_is_text_wherever_it_is_cut() {
        let stream = "\u{feff}data: a\r\n\r\n\u{feff}data: b\n\n";
        for cut in 0..stream.len() {
            let (before, after) = stream.as_bytes().split_at(cut);
            assert_eq!(read(&[before, after]), ["a"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut splitter = Splitter::new(1_000);
        let mut fed = 0;
        let refused = loop {
            fed += 100;
            if let Err(error) = splitter.feed(Bytes::from_static(&[b'x'; 100]), |_| ()) {
                break error;
            }
            assert!(fed < 2_000);
        };
        assert_eq!(refused, TooLarge(1_000));
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]
    }

    proptest! {
        #[test]
        fn a_stream_cut_at_any_byte_gives_the_same_events(
            events in prop::collection::vec((prop::collection::vec("[a-z{}\": \u{2028}é]{0,12}", 1..3), line_end(), any::<bool>()), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (lines, end, comment) in &events {
                if *comment {
                    stream.extend_from_slice(format!(": ping{end}{end}").as_bytes());
                }
                for line in lines {
                    stream.extend_from_slice(format!("data: {line}{end}").as_bytes());
                }
                stream.extend_from_slice(end.as_bytes());
                expected.push(lines.join("\n"));
            }
            let mut places: Vec<usize> = cuts.iter().map(|cut| if stream.is_empty() { 0 } else { cut.index(stream.len()) }).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let chunks: Vec<&[u8]> = places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&chunks), expected);
        }
    }
}
