//! A body in chunks, with its trailers (RFC 9112, 7.1).

use super::fields::Fields;
use super::{Ambiguous, MAX_HEAD, MAX_LENGTH};

/// The most digits of a chunk's size: as many as the largest number has.
const MAX_DIGITS: usize = 16;

/// A body that is being read.
#[derive(Debug, Default)]
pub(super) enum Chunks {
    #[default]
    Start,
    Size {
        digits: usize,
        size: u64,
    },
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// With how many bytes of them there were.
    Trailers(Fields, usize),
}

impl Chunks {
    /// Takes some bytes, at least one; whether the body is over with them.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), Ambiguous> {
        let Some(&byte) = bytes.first() else { return Ok((0, false)) };
        *self = match self {
            Chunks::Start => Chunks::Size { digits: 1, size: digit(byte).ok_or_else(|| no_size(byte))? },
            Chunks::Size { size, .. } if byte == b'\r' => Chunks::SizeLf(*size),
            Chunks::Size { digits, size } => {
                let digit = digit(byte).ok_or_else(|| no_size(byte))?;
                let (digits, size) = (*digits + 1, size.checked_mul(16).map(|size| size + digit));
                match size.filter(|&size| digits <= MAX_DIGITS && size <= MAX_LENGTH) {
                    Some(size) => Chunks::Size { digits, size },
                    None => return Err(Ambiguous::BadChunkSize),
                }
            }
            Chunks::SizeLf(0) if byte == b'\n' => Chunks::Trailers(Fields::of_trailers(), 0),
            Chunks::SizeLf(size) if byte == b'\n' => Chunks::Data(*size),
            Chunks::SizeLf(_) => return Err(Ambiguous::BareCr),
            Chunks::Data(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Chunks::DataCr;
                }
                return Ok((taken, false));
            }
            Chunks::DataCr if byte == b'\r' => Chunks::DataLf,
            Chunks::DataLf if byte == b'\n' => Chunks::Start,
            Chunks::DataCr | Chunks::DataLf => return Err(Ambiguous::BadChunkEnd),
            Chunks::Trailers(fields, read) => {
                let taken = fields.skip(bytes).min(MAX_HEAD.saturating_sub(*read)).max(1);
                *read += taken;
                if *read > MAX_HEAD {
                    return Err(Ambiguous::HeadTooLarge);
                }
                let is_over = taken == 1 && fields.step(byte)?.is_some();
                return Ok((taken, is_over));
            }
        };
        Ok((1, false))
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

fn no_size(byte: u8) -> Ambiguous {
    match byte {
        b';' => Ambiguous::ChunkExtension,
        b'\n' => Ambiguous::BareLf,
        _ => Ambiguous::BadChunkSize,
    }
}
