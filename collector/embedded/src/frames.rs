//! ClickHouse's own compressed frames (`compress=1` and `decompress=1`).
//!
//! In: plain bytes, or frames. Out: the other. A frame is a 16-byte CityHash128 (version 1.0.2) of all that follows, a
//! method byte, the size of the frame from the method byte on, the size of its content, both 32-bit little-endian,
//! and the content (<https://clickhouse.com/docs/en/native-protocol/compression>). No size is believed before the
//! checksum fits, and none past the caller's limit after that.

use crate::fault::{Fault, code};

const CHECKSUM_BYTES: usize = 16;
const HEADER_BYTES: usize = 9;
/// What one frame of an answer holds.
const FRAME_CONTENT_BYTES: usize = 1 << 20;

const NONE: u8 = 0x02;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;

/// `plain` as LZ4 frames.
pub fn encode(plain: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(plain.len() / 2 + CHECKSUM_BYTES + HEADER_BYTES);
    for content in plain.chunks(FRAME_CONTENT_BYTES) {
        let packed = lz4_flex::block::compress(content);
        let start = frames.len();
        frames.extend_from_slice(&[0; CHECKSUM_BYTES]);
        frames.push(LZ4);
        frames.extend_from_slice(&small(packed.len() + HEADER_BYTES).to_le_bytes());
        frames.extend_from_slice(&small(content.len()).to_le_bytes());
        frames.extend_from_slice(&packed);
        let (checksum, body) = frames[start..].split_at_mut(CHECKSUM_BYTES);
        checksum.copy_from_slice(&checksum_of(body));
    }
    frames
}

/// A frame of `FRAME_CONTENT_BYTES` never nears the limit of 32 bits.
fn small(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// The content of `frames`, which may be at most `limit` bytes.
pub fn decode(frames: &[u8], limit: usize) -> Result<Vec<u8>, Fault> {
    let mut plain = Vec::new();
    let mut rest = frames;
    while !rest.is_empty() {
        let frame = Frame::first_of(rest)?;
        rest = frame.behind;
        let start = plain.len();
        let end = start + frame.content_bytes;
        if end > limit {
            return Err(Fault::new(
                code::QUERY_IS_TOO_LARGE,
                "QUERY_IS_TOO_LARGE",
                format!("the body is larger than {limit} bytes when decompressed: send it in parts"),
            ));
        }
        match frame.method {
            NONE if frame.packed.len() == frame.content_bytes => plain.extend_from_slice(frame.packed),
            LZ4 => {
                plain.resize(end, 0);
                let target = plain.get_mut(start..).unwrap_or_default();
                let unpacked = lz4_flex::block::decompress_into(frame.packed, target);
                if unpacked.ok() != Some(frame.content_bytes) {
                    return Err(broken("an LZ4 frame does not hold what it promises"));
                }
            }
            ZSTD => {
                return Err(Fault::new(
                    code::UNKNOWN_COMPRESSION_METHOD,
                    "UNKNOWN_COMPRESSION_METHOD",
                    "the embedded store takes no zstd frames: use lz4 or none",
                ));
            }
            _ => return Err(broken("a frame has an unknown method or a wrong size")),
        }
    }
    Ok(plain)
}

struct Frame<'f> {
    method: u8,
    content_bytes: usize,
    packed: &'f [u8],
    behind: &'f [u8],
}

impl<'f> Frame<'f> {
    fn first_of(bytes: &'f [u8]) -> Result<Self, Fault> {
        let cut_off = || broken("the last frame is cut off");
        let (checksum, body) = bytes.split_first_chunk::<CHECKSUM_BYTES>().ok_or_else(cut_off)?;
        let (header, _) = body.split_first_chunk::<HEADER_BYTES>().ok_or_else(cut_off)?;
        let [method, a, b, c, d, e, f, g, h] = *header;
        let frame_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        let content_bytes = u32::from_le_bytes([e, f, g, h]) as usize;
        let (frame, behind) = body.split_at_checked(frame_bytes).ok_or_else(cut_off)?;
        let packed = frame.get(HEADER_BYTES..).ok_or_else(|| broken("a frame is smaller than its header"))?;
        if checksum_of(frame) != *checksum {
            return Err(Fault::new(
                code::CHECKSUM_DOESNT_MATCH,
                "CHECKSUM_DOESNT_MATCH",
                "the checksum of a compressed frame does not fit",
            ));
        }
        Ok(Self { method, content_bytes, packed, behind })
    }
}

/// ClickHouse writes the hash's low half first.
fn checksum_of(frame: &[u8]) -> [u8; CHECKSUM_BYTES] {
    cityhash_rs::cityhash_102_128(frame).rotate_right(64).to_le_bytes()
}

fn broken(what: &str) -> Fault {
    Fault::new(code::CANNOT_DECOMPRESS, "CANNOT_DECOMPRESS", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a ClickHouse server sends `SELECT 1 FORMAT TSV` with `compress=1` and `network_compression_method=none`
    /// it would be 2 bytes; this is the same frame built by hand.
    fn stored(content: &[u8]) -> Vec<u8> {
        let size = small(content.len() + HEADER_BYTES).to_le_bytes();
        let body = [&[NONE], size.as_slice(), &small(content.len()).to_le_bytes(), content].concat();
        [checksum_of(&body).as_slice(), &body].concat()
    }

    #[test]
    fn what_is_encoded_comes_back_across_frames() {
        let plain: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let frames = encode(&plain);
        assert!(frames.len() < plain.len());
        assert_eq!(decode(&frames, plain.len()).expect("the content"), plain);
        assert!(encode(&[]).is_empty());
        assert!(decode(&[], 0).expect("nothing").is_empty());
    }

    #[test]
    fn stored_frames_are_taken_and_zstd_is_refused_by_name() {
        assert_eq!(decode(&[stored(b"ab"), stored(b"c")].concat(), 3).expect("the content"), b"abc");
        let mut zstd = stored(b"ab");
        zstd[CHECKSUM_BYTES] = ZSTD;
        let checksum = checksum_of(&zstd[CHECKSUM_BYTES..]);
        zstd[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        let fault = decode(&zstd, 10).expect_err("a refusal");
        assert_eq!(fault.code(), code::UNKNOWN_COMPRESSION_METHOD);
        assert!(fault.to_string().contains("lz4"));
    }

    #[test]
    fn content_past_the_limit_is_refused_before_it_is_unpacked() {
        let frames = encode(&vec![0; 5000]);
        assert!(decode(&frames, 5000).is_ok());
        assert_eq!(decode(&frames, 4999).expect_err("a refusal").code(), code::QUERY_IS_TOO_LARGE);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let frames = encode(b"the rows of a segment, and the rows of a segment");
        for at in 0..frames.len() {
            let mut changed = frames.clone();
            changed[at] ^= 0x10;
            assert!(decode(&changed, 1 << 20).is_err(), "byte {at}");
            if at > 0 {
                assert!(decode(&frames[..at], 1 << 20).is_err(), "cut at {at}");
            }
        }
    }
}
