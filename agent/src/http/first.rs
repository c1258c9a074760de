//! A body's first bytes: whether some reader could find JSON in what they begin. Bytes come in as they arrive, encoded or not; the
//! answer goes out as soon as it is certain.

use super::coding::{Coding, CodingError, Decoder};

/// The most white space (and byte-order marks, and zeros of wide encodings) that may stand before the first character. Behind more of it
/// a body is taken for JSON, and read whole.
const MOST_BLANK: usize = 4096;

/// What a body begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Too few bytes to tell.
    Unknown,
    /// What a lenient parser may read as JSON's objects or arrays.
    Json,
    Other,
}

impl First {
    /// Of the first bytes as they are: behind a byte-order mark, in UTF-16 or UTF-32, or with something behind it.
    pub fn of(bytes: &[u8]) -> Self {
        let blank =
            |byte: &u8| matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff) || byte.is_ascii_whitespace();
        match bytes.iter().find(|byte| !blank(byte)) {
            Some(b'{' | b'[') => First::Json,
            Some(_) => First::Other,
            None if bytes.len() > MOST_BLANK => First::Json,
            None => First::Unknown,
        }
    }
}

/// Reads a body's beginning.
#[derive(Debug)]
pub(super) struct Start {
    decoder: Option<Decoder>,
    raw: Vec<u8>,
    decoded: Vec<u8>,
}

impl Start {
    pub fn new(coding: Option<Coding>) -> Result<Self, CodingError> {
        let decoder = coding.map(Decoder::new).transpose()?;
        Ok(Self { decoder, raw: Vec::new(), decoded: Vec::new() })
    }

    /// Takes the next bytes. Both readings count, that of a server which decodes and that of one which does not.
    pub fn push(&mut self, data: &[u8]) -> Result<First, CodingError> {
        // Behind the first character nothing matters.
        self.raw.extend_from_slice(data.get(..data.len().min(MOST_BLANK + 1)).unwrap_or_default());
        let raw = First::of(&self.raw);
        let Some(decoder) = &mut self.decoder else { return Ok(raw) };
        if raw == First::Json {
            return Ok(raw);
        }
        match decoder.first(data, &mut self.decoded, MOST_BLANK + 1) {
            Ok(()) => Ok(First::of(&self.decoded)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_seen_in_any_encoding() {
        let text = "\u{feff}{\"jsonrpc\":\"2.0\"}";
        let wide: Vec<u16> = text.encode_utf16().collect();
        let bytes = |of: fn(u16) -> [u8; 2]| wide.iter().copied().flat_map(of).collect::<Vec<u8>>();
        let long: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        for body in [text.as_bytes(), &bytes(u16::to_le_bytes), &bytes(u16::to_be_bytes), &long, b" \n[1,2]x"]
        {
            assert_eq!(First::of(body), First::Json, "{body:?}");
        }
        for body in [&b"grant_type=client_credentials"[..], b"--boundary\r\n{", b"\x1f\x8b\x08\x00{"] {
            assert_eq!(First::of(body), First::Other, "{body:?}");
        }
        assert_eq!(First::of(b""), First::Unknown);
        assert_eq!(First::of(b" \n"), First::Unknown);
        assert_eq!(First::of(&[b' '; MOST_BLANK + 1]), First::Json);
    }

    #[test]
    fn a_beginning_in_pieces_is_judged_at_its_first_character() {
        let mut start = Start::new(None).unwrap();
        assert_eq!(start.push(b" "), Ok(First::Unknown));
        assert_eq!(start.push(b"\r\n"), Ok(First::Unknown));
        assert_eq!(start.push(b"[1"), Ok(First::Json));
        let mut start = Start::new(None).unwrap();
        assert_eq!(start.push(b"a{"), Ok(First::Other));
    }
}
