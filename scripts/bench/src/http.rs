//! HTTP/1.1 framing for both directions: message heads and bodies, cut at any byte.

use crate::Result;
use memchr::{memchr, memmem};

/// A longer head is a mistake of the peer.
const MAX_HEAD: usize = 16 * 1024;

pub struct Head {
    /// Bytes up to and including the blank line.
    pub size: usize,
    /// The middle word of the first line: a status, or a path.
    pub second_word: String,
    pub body: Body,
    /// The peer closes after this message.
    pub close: bool,
}

/// Reads a head, or `None` while it is incomplete. `bare` is the framing of a message that declares none.
pub fn head(bytes: &[u8], bare: Option<Body>) -> Result<Option<Head>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > MAX_HEAD {
            Err("endless head".to_owned())
        } else {
            Ok(None)
        };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| "head is not text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let second_word = first
        .split(' ')
        .nth(1)
        .ok_or_else(|| format!("bad first line: {first}"))?
        .to_owned();
    let (mut body, mut close) = (None, false);
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("bad header line: {line}"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            body = Some(Body::Length(
                value
                    .parse()
                    .map_err(|_| format!("bad content-length: {value}"))?,
            ));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(format!("unknown transfer-encoding: {value}"));
            }
            body = Some(Body::Size {
                size: 0,
                digits: 0,
                extension: false,
            });
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    let body = body
        .or(bare)
        .ok_or_else(|| format!("no body framing in: {text}"))?;
    Ok(Some(Head {
        size: end + 4,
        second_word,
        body,
        close,
    }))
}

/// What remains of a body; the last four belong to the chunked coding.
#[derive(Clone, Copy)]
pub enum Body {
    Length(usize),
    Size {
        size: usize,
        digits: u32,
        extension: bool,
    },
    Data(usize),
    DataEnd,
    Trailer {
        line: usize,
    },
    Done,
}

impl Body {
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Done | Body::Length(0))
    }

    /// Gives the body's bytes in `input` to `sink`; returns how much of `input` belonged to this message.
    pub fn feed(&mut self, input: &[u8], mut sink: impl FnMut(&[u8])) -> Result<usize> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            let rest = &input[at..];
            match self {
                Body::Length(left) | Body::Data(left) => {
                    let n = rest.len().min(*left);
                    sink(&rest[..n]);
                    *left -= n;
                    at += n;
                    if matches!(self, Body::Data(0)) {
                        *self = Body::DataEnd;
                    }
                }
                Body::Size {
                    size,
                    digits,
                    extension,
                } => {
                    at += 1;
                    match (rest[0], (rest[0] as char).to_digit(16)) {
                        (b'\n', _) if *digits == 0 => return Err("chunk without a size".to_owned()),
                        (b'\n', _) if *size == 0 => *self = Body::Trailer { line: 0 },
                        (b'\n', _) => *self = Body::Data(*size),
                        (b'\r', _) => {}
                        (b';', _) => *extension = true,
                        _ if *extension => {}
                        (_, Some(digit)) if *digits < 8 => {
                            *size = *size * 16 + digit as usize;
                            *digits += 1;
                        }
                        _ => return Err("bad chunk size".to_owned()),
                    }
                }
                Body::DataEnd => {
                    at += 1;
                    match rest[0] {
                        b'\r' => {}
                        b'\n' => {
                            *self = Body::Size {
                                size: 0,
                                digits: 0,
                                extension: false,
                            }
                        }
                        _ => return Err("chunk longer than its size".to_owned()),
                    }
                }
                Body::Trailer { line } => match memchr(b'\n', rest) {
                    Some(end) => {
                        let blank = *line == 0 && (end == 0 || rest[..end] == *b"\r");
                        at += end + 1;
                        *self = if blank {
                            Body::Done
                        } else {
                            Body::Trailer { line: 0 }
                        };
                    }
                    // A lone CR at a cut must not make the blank line look filled.
                    None => {
                        *line += rest.iter().filter(|b| **b != b'\r').count();
                        at += rest.len();
                    }
                },
                Body::Done => unreachable!("the loop ends at a finished body"),
            }
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"4;x=1\r\nWiki\r\n5\r\npedia\r\n0\r\nt: 1\r\n\r\n";

    #[test]
    fn a_chunked_body_is_the_same_however_it_is_cut() {
        for cut in 1..CHUNKED.len() {
            let (mut body, mut seen) = (
                Body::Size {
                    size: 0,
                    digits: 0,
                    extension: false,
                },
                Vec::new(),
            );
            for piece in [&CHUNKED[..cut], &CHUNKED[cut..], b"NEXT"] {
                let took = body.feed(piece, |b| seen.extend_from_slice(b)).unwrap();
                assert_eq!(took, if piece == b"NEXT" { 0 } else { piece.len() });
            }
            assert!(body.is_done());
            assert_eq!(seen, b"Wikipedia");
        }
    }

    #[test]
    fn a_chunk_that_overruns_its_size_is_an_error() {
        let mut body = Body::Size {
            size: 0,
            digits: 0,
            extension: false,
        };
        assert!(body.feed(b"1\r\nab\r\n", |_| {}).is_err());
    }

    #[test]
    fn a_reply_without_framing_is_an_error() {
        assert!(head(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n", None).is_err());
        let got = head(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", None)
            .unwrap()
            .unwrap();
        assert!(got.second_word == "200" && matches!(got.body, Body::Length(7)));
    }
}
