//! Replies that actix-http reads differently from what they say: ones without a length that end with their connection,
//! and interim ones before the real one. Where the bytes are not encrypted they are set right before they are read.
//!
//! Source: RFC 9112, section 6.3; RFC 9110, section 15.2.

/// Makes the first bytes of a reply such as actix-http reads them rightly. A reply that says nothing of its length gets the
/// version for which it is read to the connection's end. Returns how many bytes of interim replies stand before it.
///
/// A head that is not whole yet is left as it is.
pub(super) fn adapt(reply: &mut [u8]) -> usize {
    let mut begin = 0;
    while let Some(head) = Head::read(&reply[begin..]) {
        if matches!(head.status, 100 | 102..=199) {
            begin += head.length;
            continue;
        }
        if !head.is_framed && !matches!(head.status, 101 | 204 | 304) {
            reply[begin + VERSION.len() - 1] = b'0';
        }
        break;
    }
    begin
}

const VERSION: &[u8] = b"HTTP/1.1";

struct Head {
    status: u16,
    /// Bytes, with the empty line.
    length: usize,
    /// Whether it says where its body ends.
    is_framed: bool,
}

impl Head {
    /// The head of this version's reply, if it is whole, or says how it is framed.
    fn read(reply: &[u8]) -> Option<Self> {
        let status = reply.strip_prefix(VERSION)?.get(1..4)?;
        let status = std::str::from_utf8(status).ok()?.parse().ok()?;
        let mut at = 0;
        loop {
            let end = at + memchr::memchr(b'\n', &reply[at..])?;
            let line = &reply[at..end];
            at = end + 1;
            if matches!(line, b"" | b"\r") {
                return Some(Self { status, length: at, is_framed: false });
            }
            // An interim reply has no body, whatever it says.
            if frames(line) && status >= 200 {
                return Some(Self { status, length: at, is_framed: true });
            }
        }
    }
}

fn frames(line: &[u8]) -> bool {
    let is = |name: &[u8]| line.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
    matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) && (is(b"content-length:") || is(b"transfer-encoding:"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn adapted(reply: &str) -> String {
        let mut bytes = reply.as_bytes().to_vec();
        let begin = adapt(&mut bytes);
        String::from_utf8(bytes[begin..].to_vec()).unwrap()
    }

    #[test]
    fn a_reply_without_length_is_read_to_the_end_of_its_connection() {
        for head in
            ["HTTP/1.1 200 OK\r\ncontent-type: a\r\n\r\n", "HTTP/1.1 500 \r\nConnection: close\r\n\r\n", "HTTP/1.1 200\n\n"]
        {
            let reply = format!("{head}body content-length: 3");
            assert_eq!(adapted(&reply), reply.replacen("HTTP/1.1", "HTTP/1.0", 1));
        }
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\nTRANSFER-encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnot: whole\r\n",
            "HTTP/1.1 20",
            "",
        ] {
            let reply = format!("{head}body");
            assert_eq!(adapted(&reply), reply);
        }
    }

    #[test]
    fn interim_replies_are_left_out() {
        let last = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(adapted(&format!("{interim}{last}")), last);
        assert_eq!(adapted(interim), "");
        let open = "HTTP/1.1 200 OK\r\n\r\nhi";
        assert_eq!(adapted(&format!("{interim}{open}")), open.replace("1.1", "1.0"));
    }

    proptest! {
        #[test]
        fn nothing_but_the_version_of_a_reply_is_ever_changed(bytes in prop::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
            let mut reply = if head { [b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat() } else { bytes };
            let before = reply.clone();
            let begin = adapt(&mut reply);
            prop_assert_eq!(begin, 0);
            prop_assert_eq!(reply.len(), before.len());
            let changed: Vec<usize> = (0..reply.len()).filter(|at| reply[*at] != before[*at]).collect();
            prop_assert!(changed.is_empty() || changed == [VERSION.len() - 1]);
        }
    }
}
