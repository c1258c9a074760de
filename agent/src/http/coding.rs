//! Content encodings (RFC 9110, 8.4.1; RFC 8878, RFC 7932): an encoded body comes in as it arrives, what it says goes out, for whoever
//! must read it. What is passed on is never touched. No more comes out than there is room for, however little comes in.

use std::io::{self, Write};

use http::header::{self, HeaderMap, HeaderValue};

/// The largest window of zstd that is decoded: 8 MiB, which RFC 8878 asks of every decoder.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Brotli's output is gathered in pieces of this size.
const BROTLI_BUFFER: usize = 8 << 10;

/// Those that can be decoded, in the order in which they are offered.
pub const KNOWN: [&str; 4] = ["gzip", "br", "zstd", "deflate"];

/// A body that cannot be decoded. Its sender is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodingError {
    #[error("the content encoding {0:?} cannot be read here; send gzip, br, deflate, zstd or none")]
    Unknown(String),
    #[error("the body is not {0}, as its Content-Encoding says")]
    Malformed(&'static str),
    #[error("decoded, the body is over {limit} bytes")]
    TooLarge { limit: usize },
}

/// What an encoding is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
    Deflate,
}

impl Coding {
    /// How the content is encoded; `None` if it is not. More than one encoding on top of each other cannot be read.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, CodingError> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let all: Vec<String> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()).collect();
        let all = all.join(",");
        let mut named = all.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "identity"));
        let coding = match named.next() {
            None => return Ok(None),
            Some("gzip" | "x-gzip") => Coding::Gzip,
            Some("br") => Coding::Brotli,
            Some("zstd") => Coding::Zstd,
            Some("deflate") => Coding::Deflate,
            Some(_) => return Err(CodingError::Unknown(all)),
        };
        if named.next().is_some() { Err(CodingError::Unknown(all)) } else { Ok(Some(coding)) }
    }

    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
            Coding::Deflate => "deflate",
        }
    }
}

/// Leaves of an Accept-Encoding what can be decoded here, so that each answer can be read. The client's own order and
/// weights stay.
pub fn only_known(headers: &mut HeaderMap) {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let offered: Vec<String> = values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    if offered.is_empty() {
        return;
    }
    let name = |item: &str| item.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let all: Vec<&str> = offered.iter().flat_map(|value| value.split(',')).map(str::trim).collect();
    let known: Vec<&str> = all
        .iter()
        .copied()
        .filter(|item| {
            matches!(name(item).as_str(), "identity" | "x-gzip") || KNOWN.contains(&name(item).as_str())
        })
        .collect();
    if known.len() == all.len() {
        return;
    }
    let known = if known.is_empty() { "identity".to_owned() } else { known.join(", ") };
    if let Ok(known) = HeaderValue::from_str(&known) {
        headers.insert(header::ACCEPT_ENCODING, known);
    }
}

/// Decodes one body.
pub struct Decoder {
    coding: Coding,
    state: State,
}

/// What came out, as far as there is room.
#[derive(Debug, Default)]
struct Sink {
    out: Vec<u8>,
    room: usize,
    overflown: bool,
}

enum State {
    Gzip(flate2::write::MultiGzDecoder<Sink>),
    Zlib(flate2::write::ZlibDecoder<Sink>),
    /// What some senders call deflate, without zlib's frame around it.
    Raw(flate2::write::DeflateDecoder<Sink>),
    /// Which of the two is told by the first two bytes.
    Deflate(Vec<u8>),
    Brotli(Box<brotli_decompressor::DecompressorWriter<Sink>>),
    Zstd(zstd::stream::write::Decoder<'static, Sink>),
}

impl Decoder {
    pub fn new(coding: Coding) -> Result<Self, CodingError> {
        let sink = Sink::default();
        let state = match coding {
            Coding::Gzip => State::Gzip(flate2::write::MultiGzDecoder::new(sink)),
            Coding::Deflate => State::Deflate(Vec::new()),
            Coding::Brotli => {
                State::Brotli(Box::new(brotli_decompressor::DecompressorWriter::new(sink, BROTLI_BUFFER)))
            }
            Coding::Zstd => {
                let decoder = zstd::stream::write::Decoder::new(sink).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                    Ok(decoder)
                });
                State::Zstd(decoder.map_err(|_| CodingError::Malformed(coding.name()))?)
            }
        };
        Ok(Self { coding, state })
    }

    /// For the body of a message with this head; `None` where it is not encoded.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, CodingError> {
        Coding::of(headers)?.map(Self::new).transpose()
    }

    /// Takes the next bytes, and gives what they say: no more than `limit` bytes.
    pub fn push(&mut self, data: &[u8], limit: usize) -> Result<Vec<u8>, CodingError> {
        let (out, written) = self.write(data, limit)?;
        if written == Written::Overflown {
            return Err(CodingError::TooLarge { limit });
        }
        Ok(out)
    }

    /// Takes the next bytes, and adds what they say to `out`, which needs no more than `most`.
    pub fn first(&mut self, data: &[u8], out: &mut Vec<u8>, most: usize) -> Result<(), CodingError> {
        let room = most.saturating_sub(out.len());
        if room > 0 {
            out.extend(self.write(data, room)?.0);
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8], room: usize) -> Result<(Vec<u8>, Written), CodingError> {
        let malformed = CodingError::Malformed(self.coding.name());
        let mut data = data;
        let joined;
        if let State::Deflate(first) = &mut self.state {
            first.extend_from_slice(data);
            let &[head, check, ..] = first.as_slice() else { return Ok((Vec::new(), Written::All)) };
            joined = std::mem::take(first);
            data = &joined;
            // RFC 1950, 2.2: the method, and a check over both bytes.
            let has_frame = head & 0x0f == 8 && (u16::from(head) << 8 | u16::from(check)) % 31 == 0;
            self.state = match has_frame {
                true => State::Zlib(flate2::write::ZlibDecoder::new(Sink::default())),
                false => State::Raw(flate2::write::DeflateDecoder::new(Sink::default())),
            };
        }
        let written = match &mut self.state {
            State::Gzip(decoder) => through(decoder, data, room, |decoder| decoder.get_mut()),
            State::Zlib(decoder) => through(decoder, data, room, |decoder| decoder.get_mut()),
            State::Raw(decoder) => through(decoder, data, room, |decoder| decoder.get_mut()),
            State::Brotli(decoder) => through(decoder.as_mut(), data, room, |decoder| decoder.get_mut()),
            State::Zstd(decoder) => through(decoder, data, room, |decoder| decoder.get_mut()),
            State::Deflate(_) => return Ok((Vec::new(), Written::All)),
        };
        written.map_err(|_| malformed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    All,
    Overflown,
}

fn through<D: Write>(
    decoder: &mut D,
    data: &[u8],
    room: usize,
    sink: impl Fn(&mut D) -> &mut Sink,
) -> io::Result<(Vec<u8>, Written)> {
    sink(decoder).room = room;
    let written = decoder.write_all(data).and_then(|()| decoder.flush());
    let sink = sink(decoder);
    let out = std::mem::take(&mut sink.out);
    match written {
        _ if sink.overflown => Ok((out, Written::Overflown)),
        Ok(()) => Ok((out, Written::All)),
        Err(error) => Err(error),
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(self.room - self.out.len().min(self.room));
        self.out.extend_from_slice(data.get(..taken).unwrap_or_default());
        if taken < data.len() {
            self.overflown = true;
            return Err(io::Error::other("no room for what comes out"));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("coding", &self.coding).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    const ROOM: usize = 1 << 20;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Brotli without compression (RFC 7932, 9.2): a window of 16 bits, one stored block, and the last, empty one.
    fn brotli(text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len() - 1).unwrap();
        // WBITS 0, ISLAST 0, MNIBBLES 00 (four), MLEN - 1 in 16 bits, ISUNCOMPRESSED 1, and filled up to a byte.
        let bits = (length << 4) | (1 << 20);
        let mut out = bits.to_le_bytes()[..3].to_vec();
        out.extend_from_slice(text);
        out.push(0b11);
        out
    }

    /// [`TEXT`] twenty times, compressed by an encoder of Brotli's own.
    const TWENTY: &[u8] = b"\x1b\x97\x03\x08\x8d\xd4\x62\xcd\x19\xee\x44\x80\x37\x4a\xfd\xb2\xbd\xb1\x52\x08\xcf\x88\x4a\xa7\
        \xaf\x15\xd9\x84\xa2\xca\xe4\x8b\x95\xea\xdf\x7c\x7b\xdd\xd3\x50\x63\x16\x8c\x4e\x09\x80\x18\x48\x7a\x92\x26";
    /// And 8 MiB of zeros.
    const ZEROS: &[u8] = b"\x9b\xff\xff\x7f\xf8\x27\x00\xe2\xb1\x40\x20\xf7\xfe\x0f";

    #[test]
    fn compressed_brotli_is_read_in_any_pieces() {
        for size in [1, 2, 7, TWENTY.len()] {
            let mut decoder = Decoder::new(Coding::Brotli).unwrap();
            let mut out = Vec::new();
            for piece in TWENTY.chunks(size) {
                out.extend(decoder.push(piece, ROOM).unwrap());
            }
            assert_eq!(out, TEXT.repeat(20), "in pieces of {size}");
        }
    }

    #[test]
    fn each_encoding_is_read_in_any_pieces() {
        let zstd = zstd::stream::encode_all(TEXT, 1).unwrap();
        for (coding, encoded) in [
            (Coding::Gzip, gzip(TEXT)),
            (Coding::Deflate, zlib(TEXT)),
            (Coding::Deflate, deflate(TEXT)),
            (Coding::Brotli, brotli(TEXT)),
            (Coding::Zstd, zstd),
        ] {
            for size in [1, 2, 7, encoded.len()] {
                let mut decoder = Decoder::new(coding).unwrap();
                let mut out = Vec::new();
                for piece in encoded.chunks(size) {
                    out.extend(decoder.push(piece, ROOM).unwrap());
                }
                assert_eq!(out, TEXT, "{coding:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn no_more_comes_out_than_there_is_room_for() {
        let zeros = vec![0; 8 << 20];
        for (coding, encoded) in [
            (Coding::Gzip, gzip(&zeros)),
            (Coding::Deflate, zlib(&zeros)),
            (Coding::Zstd, zstd::stream::encode_all(zeros.as_slice(), 1).unwrap()),
            (Coding::Brotli, ZEROS.to_vec()),
        ] {
            assert!(encoded.len() < 64 << 10);
            let mut decoder = Decoder::new(coding).unwrap();
            assert_eq!(
                decoder.push(&encoded, 4096),
                Err(CodingError::TooLarge { limit: 4096 }),
                "{coding:?}"
            );
            let mut first = Vec::new();
            Decoder::new(coding).unwrap().first(&encoded, &mut first, 16).unwrap();
            assert_eq!(first, [0; 16]);
        }
    }

    #[test]
    fn garbage_is_no_encoding() {
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd, Coding::Brotli] {
            let read = Decoder::new(coding).unwrap().push(b"\xff\xfe neither of them", ROOM);
            assert_eq!(read, Err(CodingError::Malformed(coding.name())));
        }
    }

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn one_encoding_is_read_and_no_second_one_hides_behind_it() {
        let of = |values: &[&'static str]| Coding::of(&headers(header::CONTENT_ENCODING, values));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["identity", ""]), Ok(None));
        assert_eq!(of(&["GZIP"]), Ok(Some(Coding::Gzip)));
        for many in [&["gzip, br"][..], &["identity", "gzip", "gzip"], &["compress"], &["gzip;q=1"]] {
            assert!(matches!(of(many), Err(CodingError::Unknown(_))), "{many:?}");
        }
    }

    #[test]
    fn only_what_can_be_read_is_asked_for() {
        for (offered, left) in [
            ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
            ("gzip;q=0.5, compress, *", "gzip;q=0.5"),
            ("dcb", "identity"),
        ] {
            let mut headers = headers(header::ACCEPT_ENCODING, &[offered]);
            only_known(&mut headers);
            assert_eq!(headers[header::ACCEPT_ENCODING], left);
        }
        let mut none = HeaderMap::new();
        only_known(&mut none);
        assert!(none.is_empty());
    }
}
