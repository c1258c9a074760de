//! The first bytes of a connection come in, in any pieces; what protocol they begin goes out, as soon as it
//! is certain. No reading, no waiting, no panic on any bytes; and what was seen is kept, to be replayed.
//!
//! TLS is read by rustls, so a ClientHello that is split over segments and records, as those with
//! post-quantum key shares are, is read like any other.

use std::fmt;

use rustls::pki_types::{DnsName, ServerName};
use rustls::server::{Accepted, Acceptor};

use super::alpn::Protocol;

/// The most bytes that are looked at before the answer is [`Unreadable::TooLong`]. It is also what rustls
/// takes for one handshake message.
pub const MAX_SNIFFED: usize = 64 << 10;

/// The most bytes of empty lines before a request; a client that sends more has something to hide.
const MAX_EMPTY: usize = 64;
/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method of HTTP that is looked for; the registered ones have at most 18 bytes.
const MAX_METHOD: usize = 32;
/// RFC 9110, section 9.1, and RFC 5789.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
/// RFC 8446, section 5.1: the content type of a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// Too few bytes to tell.
    NeedMore,
    Tls(ClientHello),
    /// HTTP in clear text.
    Http(Protocol),
    Other(Unreadable),
}

/// Why the bytes are neither: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Neither TLS nor HTTP.
    Foreign,
    /// A TLS handshake whose ClientHello cannot be read.
    BrokenHello,
    /// More than [`MAX_SNIFFED`] bytes, and still not certain.
    TooLong,
    /// The client said nothing, or too little, in the time that it had.
    Silent,
    /// The client closed before it had said enough.
    Ended,
}

impl Unreadable {
    pub fn label(self) -> &'static str {
        match self {
            Unreadable::Foreign => "foreign",
            Unreadable::BrokenHello => "broken_hello",
            Unreadable::TooLong => "too_long",
            Unreadable::Silent => "silent",
            Unreadable::Ended => "ended",
        }
    }
}

/// What a TLS client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The name it wants, in lower case and without a final dot. None if it named none, or an address
    /// (which RFC 6066 forbids). It is the client's word, and proves nothing.
    pub sni: Option<DnsName<'static>>,
    /// The protocols it offers by ALPN, in its order.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHello {
    fn read(accepted: &Accepted) -> Option<Self> {
        let hello = accepted.client_hello();
        let sni = match hello.server_name() {
            Some(name) => Some(dns_name(name)?),
            None => None,
        };
        let alpn = hello.alpn().map(|protocols| protocols.map(<[u8]>::to_vec).collect()).unwrap_or_default();
        Some(Self { sni, alpn })
    }
}

fn dns_name(name: &str) -> Option<DnsName<'static>> {
    match ServerName::try_from(name.strip_suffix('.').unwrap_or(name)) {
        Ok(ServerName::DnsName(name)) => Some(name.to_lowercase_owned()),
        _ => None,
    }
}

/// Tells a connection's first bytes apart, and keeps them.
#[derive(Default)]
pub struct Sniffer {
    bytes: Vec<u8>,
    stage: Stage,
}

#[derive(Default)]
enum Stage {
    #[default]
    Start,
    /// `fed` of the bytes went to the library.
    Hello {
        acceptor: Box<Acceptor>,
        fed: usize,
    },
    Certain(Sniffed),
}

impl Sniffer {
    /// Takes the bytes that came next. Once the answer is not [`Sniffed::NeedMore`], it stays.
    pub fn push(&mut self, bytes: &[u8]) -> Sniffed {
        self.bytes.extend_from_slice(bytes);
        let sniffed = self.look();
        if sniffed != Sniffed::NeedMore {
            self.stage = Stage::Certain(sniffed.clone());
        }
        sniffed
    }

    /// All bytes that were pushed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn look(&mut self) -> Sniffed {
        if let (Stage::Start, Some(&TLS_HANDSHAKE)) = (&self.stage, self.bytes.first()) {
            self.stage = Stage::Hello { acceptor: Box::default(), fed: 0 };
        }
        let sniffed = match &mut self.stage {
            Stage::Certain(sniffed) => return sniffed.clone(),
            Stage::Hello { acceptor, fed } => {
                let rest = self.bytes.get(*fed..).unwrap_or_default();
                *fed = self.bytes.len();
                feed(acceptor, rest)
            }
            Stage::Start => http(&self.bytes),
        };
        if sniffed == Sniffed::NeedMore && self.bytes.len() >= MAX_SNIFFED {
            return Sniffed::Other(Unreadable::TooLong);
        }
        sniffed
    }
}

impl fmt::Debug for Sniffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes are a payload.
        f.debug_struct("Sniffer").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Sniffed {
    while !bytes.is_empty() {
        // The library takes some kilobytes at a time, and must be asked in between.
        match acceptor.read_tls(&mut bytes) {
            Ok(0) | Err(_) => return Sniffed::Other(Unreadable::BrokenHello),
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return ClientHello::read(&accepted)
                    .map_or(Sniffed::Other(Unreadable::BrokenHello), Sniffed::Tls);
            }
            Err(_) => return Sniffed::Other(Unreadable::BrokenHello),
        }
    }
    Sniffed::NeedMore
}

/// A registered method and white space, or any other token, a space and a path: the words with which mail
/// and chat protocols begin are not HTTP. Empty lines before it count for nothing (RFC 9112, section 2.2);
/// a server would skip them, so they must not hide a request.
fn http(bytes: &[u8]) -> Sniffed {
    let empty = bytes.iter().take(MAX_EMPTY + 1).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if empty > MAX_EMPTY {
        return Sniffed::Other(Unreadable::Foreign);
    }
    let line = bytes.get(empty..).unwrap_or_default();
    let Some(end) = line.iter().take(MAX_METHOD + 1).position(|byte| !is_token(*byte)) else {
        let certain = line.len() > MAX_METHOD;
        return if certain { Sniffed::Other(Unreadable::Foreign) } else { Sniffed::NeedMore };
    };
    let (method, rest) = line.split_at(end);
    match rest {
        [b' ' | b'\t', ..] if METHODS.contains(&method) => Sniffed::Http(Protocol::Http1),
        [b' '] if end > 0 => Sniffed::NeedMore,
        [b' ', b'/', ..] if end > 0 => Sniffed::Http(Protocol::Http1),
        _ if empty == 0 && bytes.starts_with(PREFACE) => Sniffed::Http(Protocol::Http2),
        _ if empty == 0 && PREFACE.starts_with(bytes) => Sniffed::NeedMore,
        _ => Sniffed::Other(Unreadable::Foreign),
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
