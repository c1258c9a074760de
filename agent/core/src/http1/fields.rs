//! The fields of a head, or of trailers, up to the empty line behind them. Kept of them is what frames a message,
//! and no more at a time than one word.

use super::line::{is_of_token, is_of_value};
use super::{Ambiguous, MAX_FIELDS, MAX_LENGTH};

/// What a head's fields say of its message's framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Framed {
    pub length: Option<u64>,
    pub is_chunked: bool,
    pub hosts: usize,
    pub close: bool,
    pub keep_alive: bool,
}

/// What belongs into a head, since it frames, routes, proves or describes the whole message (RFC 9110, 6.5.1).
const NO_TRAILERS: [&[u8]; 19] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"keep-alive",
    b"origin",
    b"proxy-authorization",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-forwarded-for",
];
/// MCP's own fields belong into a head, too.
const NO_TRAILERS_OF_MCP: &[u8] = b"mcp-";

/// The fields that frame a message, which none may resemble: a server that hands fields on as variables (CGI,
/// WSGI) takes `_` for `-`.
const FRAMING: [&[u8]; 4] = [b"connection", b"content-length", b"host", b"transfer-encoding"];

/// Fields that are being read.
#[derive(Debug)]
pub(super) struct Fields {
    of: Of,
    at: At,
    name: Word,
    value: Word,
    count: usize,
    framed: Framed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Head,
    Trailers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    Name,
    Value(Value),
    LineLf(Value),
    EndLf,
}

/// What a field's value is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Length,
    Coding,
    Connection,
    Any,
}

impl Fields {
    pub fn of_head() -> Self {
        Self::new(Of::Head)
    }

    pub fn of_trailers() -> Self {
        Self::new(Of::Trailers)
    }

    fn new(of: Of) -> Self {
        let (name, value) = (Word::default(), Word::default());
        Self { of, at: At::LineStart, name, value, count: 0, framed: Framed::default() }
    }

    /// How many of the bytes change nothing.
    pub fn skip(&self, bytes: &[u8]) -> usize {
        match self.at {
            At::Value(Value::Any) => bytes.iter().take_while(|&&byte| is_of_value(byte)).count(),
            _ => 0,
        }
    }

    /// Takes one byte; hands out what all of them say with the last one.
    pub fn step(&mut self, byte: u8) -> Result<Option<Framed>, Ambiguous> {
        self.at = match (self.at, byte) {
            (At::EndLf, b'\n') => return Ok(Some(self.framed)),
            (At::LineLf(of), b'\n') => {
                self.end_of_value(of)?;
                At::LineStart
            }
            (At::EndLf | At::LineLf(_), _) => return Err(Ambiguous::BareCr),
            (_, b'\n') => return Err(Ambiguous::BareLf),
            (At::LineStart, b'\r') => At::EndLf,
            (At::LineStart, b' ' | b'\t') => return Err(Ambiguous::ObsFold),
            (At::LineStart | At::Name, byte) if is_of_token(byte) => {
                self.name.push(byte.to_ascii_lowercase());
                At::Name
            }
            (At::Name, b':') => At::Value(self.end_of_name()?),
            (At::Name, b' ' | b'\t') => return Err(Ambiguous::SpaceBeforeColon),
            (At::Name, b'\r') | (At::LineStart, b':') => return Err(Ambiguous::BadHeaderName),
            (At::Value(of), b'\r') => At::LineLf(of),
            (At::Value(of), byte) if is_of_value(byte) => {
                match of {
                    Value::Any => {}
                    Value::Connection if byte == b',' => self.end_of_option(),
                    Value::Connection => self.value.push(byte.to_ascii_lowercase()),
                    Value::Length | Value::Coding => self.value.push(byte),
                }
                At::Value(of)
            }
            (_, 0..0x20 | 0x7f) => return Err(Ambiguous::NulOrControl),
            _ => return Err(Ambiguous::BadHeaderName),
        };
        Ok(None)
    }

    fn end_of_name(&mut self) -> Result<Value, Ambiguous> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(Ambiguous::HeadTooLarge);
        }
        let name = std::mem::take(&mut self.name);
        let plain = name.with_hyphens();
        if FRAMING.iter().any(|framing| plain.is(framing) && !name.is(framing)) {
            return Err(Ambiguous::BadHeaderName);
        }
        if self.of == Of::Trailers {
            return match is_of_heads(&plain) {
                true => Err(Ambiguous::BadTrailer),
                false => Ok(Value::Any),
            };
        }
        self.value = Word::default();
        match () {
            () if name.is(b"content-length") => match self.framed.length {
                Some(_) => Err(Ambiguous::LengthRepeated),
                None => Ok(Value::Length),
            },
            () if name.is(b"transfer-encoding") => match self.framed.is_chunked {
                true => Err(Ambiguous::NotPlainlyChunked),
                false => Ok(Value::Coding),
            },
            () if name.is(b"connection") => Ok(Value::Connection),
            () if name.is(b"host") => {
                self.framed.hosts += 1;
                Ok(Value::Any)
            }
            () => Ok(Value::Any),
        }
    }

    fn end_of_value(&mut self, of: Value) -> Result<(), Ambiguous> {
        match of {
            Value::Any => {}
            Value::Connection => self.end_of_option(),
            Value::Length => {
                let length = self.value.whole().and_then(plain_number);
                self.framed.length = Some(length.ok_or(Ambiguous::LengthMalformed)?);
            }
            Value::Coding => {
                let coding = self.value.whole();
                if !coding.is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
                    return Err(Ambiguous::NotPlainlyChunked);
                }
                self.framed.is_chunked = true;
            }
        }
        Ok(())
    }

    fn end_of_option(&mut self) {
        let option = std::mem::take(&mut self.value);
        match option.whole() {
            Some(b"close") => self.framed.close = true,
            Some(b"keep-alive") => self.framed.keep_alive = true,
            _ => {}
        }
    }
}

/// Whether a field with this name, in lower case, belongs into a head and into no trailers.
pub fn belongs_into_head(name: &[u8]) -> bool {
    let mut word = Word::default();
    name.iter().for_each(|byte| word.push(*byte));
    is_of_heads(&word.with_hyphens())
}

fn is_of_heads(plain: &Word) -> bool {
    NO_TRAILERS.iter().any(|one| plain.is(one)) || plain.begins_with(NO_TRAILERS_OF_MCP)
}

/// Decimal digits without a leading zero, up to [`MAX_LENGTH`].
fn plain_number(digits: &[u8]) -> Option<u64> {
    let is_plain = digits.iter().all(u8::is_ascii_digit) && (digits == b"0" || !digits.starts_with(b"0"));
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()?;
    (number <= MAX_LENGTH).then_some(number)
}

/// A word without the spaces around it, kept up to a length that is more than any that matters has.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    bytes: [u8; 32],
    len: usize,
    /// Spaces that belong to it only if more of it follows.
    gap: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if matches!(byte, b' ' | b'\t') {
            self.gap += usize::from(self.len > 0);
            return;
        }
        // What is within a gap does not matter: no word that does has one.
        self.len += std::mem::take(&mut self.gap);
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
        }
        self.len += 1;
    }

    /// `None` for one that is longer than what is kept.
    fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len)
    }

    fn is(&self, word: &[u8]) -> bool {
        self.whole() == Some(word)
    }

    fn begins_with(&self, word: &[u8]) -> bool {
        self.len >= word.len() && self.bytes.starts_with(word)
    }

    fn with_hyphens(mut self) -> Self {
        for byte in &mut self.bytes {
            if *byte == b'_' {
                *byte = b'-';
            }
        }
        self
    }
}
