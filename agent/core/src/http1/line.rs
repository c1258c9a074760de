//! A message's first line.

use super::{Ambiguous, MAX_HEAD};

/// What a first line says of its message's framing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Started {
    pub method: Method,
    /// Zero of a request.
    pub status: u16,
    pub is_http11: bool,
}

/// A method, as far as framing depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Method {
    /// Its first bytes; `len` goes on counting behind them.
    bytes: [u8; 8],
    len: usize,
}

impl Method {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
        }
        self.len += 1;
    }

    fn is(&self, name: &[u8]) -> bool {
        self.bytes.get(..self.len) == Some(name)
    }

    pub fn is_connect(&self) -> bool {
        self.is(b"CONNECT")
    }

    /// Whether some servers do not read a body (RFC 9110, 9.3.1), so that they would take it for a request.
    pub fn has_no_body(&self) -> bool {
        [&b"GET"[..], b"HEAD", b"TRACE", b"CONNECT"].iter().any(|name| self.is(name))
    }
}

/// A first line that is being read.
#[derive(Debug)]
pub(super) struct StartLine {
    at: At,
    bytes: usize,
    started: Started,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Method,
    /// Whether it has any byte yet.
    Target(bool),
    /// So many bytes of `HTTP/1.x` were read.
    RequestVersion(usize),
    StatusVersion(usize),
    /// So many digits of it were read.
    Status(usize),
    Reason,
    Lf,
}

/// What the digit of the minor version follows.
const HTTP1: &[u8] = b"HTTP/1.";

impl StartLine {
    /// `before`: bytes of the head that came before it.
    pub fn of_request(before: usize) -> Self {
        Self { at: At::Method, bytes: before, started: Started::default() }
    }

    pub fn of_response() -> Self {
        Self { at: At::StatusVersion(0), bytes: 0, started: Started::default() }
    }

    /// The bytes of the head so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes bytes that change nothing.
    pub fn skip(&mut self, bytes: &[u8]) -> usize {
        let plain = match self.at {
            At::Target(true) => bytes.iter().take_while(|&&byte| is_of_target(byte)).count(),
            _ => 0,
        };
        let taken = plain.min(MAX_HEAD.saturating_sub(self.bytes));
        self.bytes += taken;
        taken
    }

    /// Takes one byte; hands out the line with its last one.
    pub fn step(&mut self, byte: u8) -> Result<Option<Started>, Ambiguous> {
        self.bytes += 1;
        if self.bytes > MAX_HEAD {
            return Err(Ambiguous::HeadTooLarge);
        }
        self.at = match (self.at, byte) {
            (At::Lf, b'\n') => return Ok(Some(self.started)),
            (At::Lf, _) => return Err(Ambiguous::BareCr),
            (_, b'\n') => return Err(Ambiguous::BareLf),
            (At::Method, b' ') if self.started.method.len > 0 => At::Target(false),
            (At::Method, byte) if is_of_token(byte) => {
                self.started.method.push(byte);
                At::Method
            }
            (At::Target(true), b' ') => At::RequestVersion(0),
            (At::Target(_), byte) if is_of_target(byte) => At::Target(true),
            // A second empty line, or HTTP/0.9.
            (At::Method | At::Target(_), b'\r') => return Err(Ambiguous::BadRequestLine),
            (At::Method | At::Target(_), _) => return Err(odd(byte, Ambiguous::BadRequestLine)),
            (At::RequestVersion(8), b'\r') => At::Lf,
            (At::RequestVersion(read), byte) => At::RequestVersion(self.version(read, byte)?),
            (At::StatusVersion(8), b' ') => At::Status(0),
            (At::StatusVersion(read), byte) => At::StatusVersion(self.version(read, byte)?),
            (At::Status(read @ 0..3), b'0'..=b'9') => {
                self.started.status = self.started.status * 10 + u16::from(byte - b'0');
                At::Status(read + 1)
            }
            (At::Status(3), _) if self.started.status < 100 => return Err(Ambiguous::BadStatusLine),
            (At::Status(3), b' ') => At::Reason,
            (At::Status(3) | At::Reason, b'\r') => At::Lf,
            (At::Reason, byte) if is_of_value(byte) => At::Reason,
            (At::Status(_) | At::Reason, _) => return Err(odd(byte, Ambiguous::BadStatusLine)),
        };
        Ok(None)
    }

    /// One more byte of `HTTP/1.1` or `HTTP/1.0`.
    fn version(&mut self, read: usize, byte: u8) -> Result<usize, Ambiguous> {
        match (HTTP1.get(read), byte) {
            (Some(&expected), byte) if byte == expected => {}
            (None, b'0' | b'1') if read == HTTP1.len() => self.started.is_http11 = byte == b'1',
            _ => return Err(odd(byte, Ambiguous::BadVersion)),
        }
        Ok(read + 1)
    }
}

/// A byte that does not belong where it is.
fn odd(byte: u8, otherwise: Ambiguous) -> Ambiguous {
    match byte {
        b'\r' => Ambiguous::BareCr,
        b'\t' => otherwise,
        0..0x20 | 0x7f => Ambiguous::NulOrControl,
        _ => otherwise,
    }
}

fn is_of_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// RFC 9110, 5.6.2.
pub(super) fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110, 5.5.
pub(super) fn is_of_value(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}
