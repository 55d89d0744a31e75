//! What kind of image some bytes are, by how they begin: a server's word is not taken for it.

/// Bytes that are enough to tell.
pub(super) const ENOUGH: usize = 64;

/// The media type of an image that models take; `None` for anything else.
pub(super) fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        [size @ .., _, _, _, _] if bytes.get(4..8) == Some(b"ftyp") => {
            let length = size.first_chunk().map_or(0, |size| u32::from_be_bytes(*size));
            heif(bytes.get(8..).unwrap_or_default(), usize::try_from(length).unwrap_or(usize::MAX))
        }
        _ => None,
    }
}

/// A HEIF container by its brands: the major one, a version, then the compatible ones up to the end of the box.
fn heif(brands: &[u8], length: usize) -> Option<&'static str> {
    let (major, rest) = brands.split_first_chunk::<4>()?;
    let compatible = rest.get(4..rest.len().min(length.saturating_sub(12))).unwrap_or_default();
    let has = |wanted: &[&[u8; 4]]| compatible.chunks_exact(4).any(|brand| wanted.iter().any(|wanted| *wanted == brand));
    match major {
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => Some("image/heic"),
        // AVIF is in the same container.
        b"mif1" | b"msf1" if has(&[b"avif", b"avis"]) => None,
        b"mif1" | b"msf1" if has(&[b"heic", b"heix"]) => Some("image/heic"),
        b"mif1" | b"msf1" | b"heif" => Some("image/heif"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_by_its_first_bytes() {
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\n...."[..], Some("image/png")),
            (b"\xff\xd8\xff\xe0", Some("image/jpeg")),
            (b"GIF89a", Some("image/gif")),
            (b"GIF87a", Some("image/gif")),
            (b"RIFF\0\0\0\0WEBPVP8 ", Some("image/webp")),
            (b"RIFF\0\0\0\0WAVEfmt ", None),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Some("image/heic")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Some("image/heic")),
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1heic", Some("image/heif")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", None),
            (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", None),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", None),
            (b"\0\0\0\x18ftypmif1", Some("image/heif")),
            (b"\0\0\0\x18ftyp", None),
            (b"\x89PNG", None),
            (b"<svg xmlns", None),
            (b"BM....", None),
            (b"", None),
        ] {
            assert_eq!(media_type(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
