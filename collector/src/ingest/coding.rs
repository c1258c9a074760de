//! `content-encoding: zstd`: an encoded body comes in, the decoded one goes out, bounded in size and in the memory that
//! decoding takes, whatever the body claims of itself.

use std::io::Read;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use weir_core::wire::{Reason, Refusal};

use super::refusal;

/// The furthest that a body may refer back, as a power of two: 8 MiB, what the format asks each decoder to support.
const WINDOW_LOG: u32 = 23;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Zstd,
}

impl Coding {
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut all = headers.get_all(CONTENT_ENCODING).iter();
        match (all.next().map(|value| value.as_bytes()), all.next()) {
            (None, _) => Ok(Coding::Plain),
            (Some(b"zstd"), None) => Ok(Coding::Zstd),
            _ => Err(refusal(Reason::Malformed, "of content encodings the wire knows zstd alone")),
        }
    }

    /// The most bytes that a body of at most `limit` bytes has on its way: zstd adds little to what it cannot shorten.
    pub fn room(self, limit: usize) -> usize {
        match self {
            Coding::Plain => limit,
            Coding::Zstd => limit + (limit >> 8) + 1024,
        }
    }

    /// The body as it was before it was encoded, at most `limit` bytes. Not for a runtime's thread.
    pub fn decoded(self, body: Bytes, limit: usize) -> Result<Bytes, Refusal> {
        if self == Coding::Plain {
            return Ok(body);
        }
        let broken = |e: std::io::Error| refusal(Reason::Malformed, format!("the body is no zstd: {e}"));
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&*body).map_err(broken)?;
        decoder.window_log_max(WINDOW_LOG).map_err(broken)?;
        let mut decoded = Vec::new();
        decoder.take(limit as u64 + 1).read_to_end(&mut decoded).map_err(broken)?;
        if decoded.len() > limit {
            return Err(refusal(
                Reason::Malformed,
                format!("the body is larger than {limit} bytes when decoded"),
            ));
        }
        Ok(decoded.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zstd(bytes: &[u8]) -> Bytes {
        ::zstd::encode_all(bytes, 3).unwrap().into()
    }

    #[test]
    fn a_body_is_decoded_up_to_its_limit() {
        let body = vec![b'a'; 1000];
        assert_eq!(Coding::Zstd.decoded(zstd(&body), 1000).unwrap(), body);
        let refused = Coding::Zstd.decoded(zstd(&body), 999).unwrap_err();
        assert_eq!(refused.reason, Reason::Malformed);
        assert!(refused.message.contains("larger than 999 bytes"), "{refused}");
    }

    #[test]
    fn a_bomb_is_refused_without_being_decoded() {
        // A gigabyte in some ten thousand bytes, by one frame upon another.
        let frame = ::zstd::encode_all(std::io::repeat(0).take(64 << 20), 3).unwrap();
        let bomb = Bytes::from(frame.repeat(16));
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        assert!(Coding::Zstd.decoded(bomb, 1 << 20).unwrap_err().message.contains("larger"));
    }

    #[test]
    fn a_window_that_needs_much_memory_is_refused() {
        let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::copy(&mut std::io::repeat(7).take(1 << 20), &mut encoder).unwrap();
        let wide = encoder.finish().unwrap();
        assert!(Coding::Zstd.decoded(wide.into(), 8 << 20).is_err());
    }

    #[test]
    fn what_is_cut_off_or_no_zstd_is_refused() {
        let whole = zstd(&vec![b'x'; 100_000]);
        for bad in [Bytes::from_static(b"plain"), whole.slice(..whole.len() - 3)] {
            assert_eq!(Coding::Zstd.decoded(bad, 1 << 20).unwrap_err().reason, Reason::Malformed);
        }
    }

    #[test]
    fn other_codings_are_refused() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, value.parse().unwrap());
            Coding::of(&headers)
        };
        assert_eq!(Coding::of(&HeaderMap::new()).unwrap(), Coding::Plain);
        assert_eq!(of("zstd").unwrap(), Coding::Zstd);
        assert!(of("gzip").is_err() && of("zstd, zstd").is_err());
    }
}
