//! A validating JSON lexer that yields places instead of values, so that large bodies are read once and never copied.
//!
//! Strings dominate a chat body, and prompts are full of escapes. They are crossed 64 bytes at a time: one mask marks
//! every byte that matters, so that an escape costs a bit operation and not a new search.

use std::borrow::Cow;
use std::ops::Range;

use wide::u8x16;

/// Nesting beyond this is refused, as serde_json does.
const MAX_DEPTH: u32 = 128;

/// Why bytes are not JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON at byte {at}: {what}")]
pub struct JsonError {
    /// Offset of the first byte that does not fit.
    pub at: usize,
    /// What was expected there.
    pub what: &'static str,
}

/// A cursor over one JSON text.
pub struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// Offset of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The error for the present position.
    pub fn error(&self, what: &'static str) -> JsonError {
        JsonError { at: self.at, what }
    }

    /// Crosses white space and shows the next byte without taking it.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                other => return Some(*other),
            }
        }
        None
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), JsonError> {
        if self.peek() != Some(byte) {
            return Err(self.error(what));
        }
        self.at += 1;
        Ok(())
    }

    fn descend(&mut self) -> Result<(), JsonError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.error("the nesting is too deep")) } else { Ok(()) }
    }

    /// Crosses an object and hands each key (place of the quoted text) to `each`, which must cross the value.
    ///
    /// # Errors
    /// Malformed JSON, or what `each` returns.
    pub fn object<E: From<JsonError>>(
        &mut self,
        mut each: impl FnMut(&mut Self, Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect(b'{', "an object is expected")?;
        self.descend()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                self.peek();
                let key = self.string()?;
                self.expect(b':', "`:` is expected")?;
                each(self, key)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.error("`,` or `}` is expected").into()),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Crosses an array; `each` must cross one element.
    ///
    /// # Errors
    /// Malformed JSON, or what `each` returns.
    pub fn array<E: From<JsonError>>(&mut self, mut each: impl FnMut(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.expect(b'[', "an array is expected")?;
        self.descend()?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                each(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.error("`,` or `]` is expected").into()),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Crosses one value of any kind and returns its place.
    ///
    /// # Errors
    /// Malformed JSON.
    pub fn value(&mut self) -> Result<Range<usize>, JsonError> {
        self.value_with_texts(&mut |_| ())
    }

    /// Crosses one value, returns its place and hands the place of every string in it that is no key to `each`, with its quotes.
    ///
    /// # Errors
    /// Malformed JSON.
    pub fn value_with_texts(&mut self, each: &mut impl FnMut(Range<usize>)) -> Result<Range<usize>, JsonError> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => each(self.string()?),
            Some(b'{') => self.object(|lexer, _| lexer.value_with_texts(each).map(drop))?,
            Some(b'[') => self.array(|lexer| lexer.value_with_texts(each).map(drop))?,
            Some(b't') => self.literal(b"true")?,
            Some(b'f') => self.literal(b"false")?,
            Some(b'n') => self.literal(b"null")?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => return Err(self.error("a value is expected")),
        }
        Ok(start..self.at)
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    /// Trailing bytes.
    pub fn end(&mut self) -> Result<(), JsonError> {
        if self.peek().is_some() { Err(self.error("nothing more is expected")) } else { Ok(()) }
    }

    /// Crosses a value and returns it if it is a count: a number that is not negative; floats lose what is behind the point.
    ///
    /// # Errors
    /// Malformed JSON.
    pub fn count(&mut self) -> Result<Option<u64>, JsonError> {
        let place = self.value()?;
        let text = &self.bytes[place];
        if text.len() < 20 && text.iter().all(u8::is_ascii_digit) {
            return Ok(Some(text.iter().fold(0, |count, digit| count * 10 + u64::from(digit - b'0'))));
        }
        Ok(serde_json::from_slice::<f64>(text).ok().filter(|float| *float >= 0.0).map(whole))
    }

    fn literal(&mut self, word: &'static [u8]) -> Result<(), JsonError> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error("a value is expected"))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("a digit is expected")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Crosses a string that begins here; returns its place with the quotes.
    ///
    /// # Errors
    /// Malformed JSON, or no string.
    pub fn string(&mut self) -> Result<Range<usize>, JsonError> {
        let start = self.at;
        if self.bytes.get(self.at) != Some(&b'"') {
            return Err(self.error("a string is expected"));
        }
        self.at += 1;
        // Keys and most values of a reply are short: one look at sixteen bytes finds their end.
        if let Some(block) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<16>) {
            let marks = marks_of_16(block);
            let offset = marks.trailing_zeros() as usize;
            if marks == 0 {
                self.at += block.len();
            } else if block[offset] == b'"' {
                self.at += offset + 1;
                return Ok(start..self.at);
            }
        }
        while let Some(block) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
            if !has_marks(block) {
                self.at += BLOCK;
                continue;
            }
            let base = self.at;
            let mut marks = marks(block);
            self.at += BLOCK;
            while marks != 0 {
                let offset = marks.trailing_zeros() as usize;
                match block[offset] {
                    b'"' => {
                        self.at = base + offset + 1;
                        return Ok(start..self.at);
                    }
                    b'\\' => {
                        let behind = offset + self.escape(base + offset)?;
                        if behind >= BLOCK {
                            self.at = base + behind;
                            break;
                        }
                        marks &= u64::MAX << behind;
                    }
                    _ => return Err(JsonError { at: base + offset, what: CONTROL }),
                }
            }
        }
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at);
                }
                Some(b'\\') => self.at += self.escape(self.at)?,
                Some(0..0x20) => return Err(self.error(CONTROL)),
                Some(_) => self.at += 1,
                None => return Err(self.error("the string does not end")),
            }
        }
    }

    /// Length of the escape that begins here.
    #[inline]
    fn escape(&self, at: usize) -> Result<usize, JsonError> {
        match self.bytes.get(at + 1) {
            Some(next) if SHORT_ESCAPES[usize::from(*next)] => Ok(2),
            _ => self.long_escape(at),
        }
    }

    fn long_escape(&self, at: usize) -> Result<usize, JsonError> {
        match self.bytes.get(at + 1) {
            Some(b'u') => match self.bytes.get(at + 2..at + 6) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(6),
                _ => Err(JsonError { at, what: "four hexadecimal digits are expected" }),
            },
            _ => Err(JsonError { at, what: "this is not an escape" }),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and the caller checked the sign")]
fn whole(number: f64) -> u64 {
    number as u64
}

const BLOCK: usize = 64;
/// Letters behind a backslash that stand for one character.
const SHORT_ESCAPES: [bool; 256] = {
    let mut table = [false; 256];
    let letters = b"\"\\/bfnrt";
    let mut place = 0;
    while place < letters.len() {
        table[letters[place] as usize] = true;
        place += 1;
    }
    table
};
const CONTROL: &str = "a control character in a string must be escaped";

/// Whether there is a quote, backslash or control character: cheaper than where they are, and long texts have few.
fn has_marks(block: &[u8; BLOCK]) -> bool {
    let [a, b, c, d] = [0, 1, 2, 3].map(|part| marked(&block.as_chunks::<16>().0[part]));
    (a | b | c | d).to_bitmask() != 0
}

/// Marks quotes, backslashes and control characters, the first byte in the lowest bit.
fn marks(block: &[u8; BLOCK]) -> u64 {
    let mut all = 0;
    for (place, part) in block.as_chunks::<16>().0.iter().enumerate() {
        all |= u64::from(marks_of_16(part)) << (16 * place);
    }
    all
}

fn marks_of_16(part: &[u8; 16]) -> u32 {
    marked(part).to_bitmask()
}

fn marked(part: &[u8; 16]) -> u8x16 {
    let bytes = u8x16::new(*part);
    // With this bit turned the quote stands right behind the control characters, which stay among themselves.
    let turned = bytes ^ u8x16::splat(0b10);
    let quotes_and_controls = turned.min(u8x16::splat(b'"' ^ 0b10)).simd_eq(turned);
    quotes_and_controls | bytes.simd_eq(u8x16::splat(b'\\'))
}

/// The text of a quoted string; borrowed unless it holds escapes. `None` for what is no string or no Unicode.
pub fn unquote(quoted: &[u8]) -> Option<Cow<'_, str>> {
    let inside = quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inside).is_none() {
        return std::str::from_utf8(inside).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &[u8]) -> bool {
        let mut lexer = Lexer::new(text);
        lexer.value().and_then(|_| lexer.end()).is_ok()
    }

    #[test]
    fn malformed_texts_are_refused_where_they_break() {
        for text in
            ["", "{", "{\"a\"}", "[1,]", "[1 2]", "01", "1.", "\"\n\"", "\"\\x\"", "\"\\u12g4\"", "nul", "{} {}", "{,}", "-"]
        {
            assert!(!accepts(text.as_bytes()), "{text}");
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(!accepts(deep.as_bytes()));
    }

    #[test]
    fn every_byte_is_judged_alike_at_every_place_of_a_long_string() {
        for at in 1..140 {
            for byte in 0..=u8::MAX {
                let mut text = [b'a'; 150];
                (text[0], text[149], text[at]) = (b'"', b'"', byte);
                let fits = byte >= 0x20 && byte != b'"' && byte != b'\\';
                assert_eq!(accepts(&text), fits, "byte {byte:#04x} at {at}");
            }
        }
    }

    fn arbitrary_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((".*", inner), 0..6)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_json_writes_is_accepted(value in arbitrary_json()) {
            prop_assert!(accepts(&serde_json::to_vec(&value).unwrap()));
            prop_assert!(accepts(&serde_json::to_vec_pretty(&value).unwrap()));
        }

        #[test]
        fn long_strings_end_where_serde_json_ends_them(parts in prop::collection::vec("[a-zé\"\\\\\n–]{0,90}", 0..6)) {
            let text = serde_json::to_vec(&parts).unwrap();
            let mut lexer = Lexer::new(&text);
            let mut found = Vec::new();
            lexer.array::<JsonError>(|lexer| lexer.value().map(|place| found.push(place))).unwrap();
            let read: Vec<String> = found.into_iter().map(|place| unquote(&text[place]).unwrap().into_owned()).collect();
            prop_assert_eq!(read, parts);
        }

        #[test]
        fn it_agrees_with_serde_json_on_mutated_texts(value in arbitrary_json(), at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f) {
            let mut text = serde_json::to_vec(&value).unwrap();
            let at = at.index(text.len());
            text[at] = byte;
            // A lone surrogate is left to the provider: both sides of the wire treat it as text.
            let reference = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accepts(&text), reference, "{}", String::from_utf8_lossy(&text));
        }
    }
}
