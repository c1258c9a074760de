//! What a connection begins with: told the same in any pieces, and the name of a ClientHello as another reader,
//! written for this alone, reads it.

use weir::tls::{ClientHello, Sniffed, Sniffer};

use crate::pieces::{cut_by_first, pieces};

pub fn run(bytes: &[u8]) {
    let (cut, bytes) = cut_by_first(bytes);
    let whole = sniffed(std::iter::once(bytes));
    let told = sniffed(pieces(bytes, cut));
    assert_eq!(told, whole, "in pieces and as a whole");
    if let Sniffed::Tls(ClientHello { sni, .. }) = &whole {
        let read = server_name(bytes);
        let told = sni.as_ref().map(|name| name.as_ref().to_owned());
        if let Some(told) = &told {
            assert_eq!(told, &told.to_ascii_lowercase());
        }
        // An address instead of a name counts for none.
        let is_address = |name: &String| name.parse::<std::net::IpAddr>().is_ok();
        let read = read.map(|name| name.to_ascii_lowercase()).filter(|name| !is_address(name));
        let read = read.map(|name| name.strip_suffix('.').map(str::to_owned).unwrap_or(name));
        assert_eq!(told, read, "the name, as two readers read it");
    }
}

fn sniffed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Sniffed {
    let mut sniffer = Sniffer::default();
    let (mut last, mut all) = (Sniffed::NeedMore, Vec::new());
    for piece in pieces {
        let sniffed = sniffer.push(piece);
        all.extend_from_slice(piece);
        if last != Sniffed::NeedMore {
            assert_eq!(sniffed, last, "what was certain stays");
        }
        last = sniffed;
    }
    assert_eq!(sniffer.into_bytes(), all, "what was seen is kept");
    last
}

/// Reads a fixed number of bytes at a time.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What a length of so many bytes stands before.
    fn block(&mut self, length: usize) -> Option<Reader<'a>> {
        let length = self.number(length)?;
        self.take(length).map(Reader)
    }
}

/// The host name in the first handshake message, if it is a ClientHello that has one (RFC 8446, 4.1.2; RFC 6066, 3).
fn server_name(bytes: &[u8]) -> Option<String> {
    let mut records = Reader(bytes);
    let mut handshake = Vec::new();
    while records.number(1) == Some(22) {
        records.take(2)?;
        let Some(fragment) = records.block(2) else { break };
        handshake.extend_from_slice(fragment.0);
    }
    let mut handshake = Reader(&handshake);
    if handshake.number(1)? != 1 {
        return None;
    }
    let mut hello = handshake.block(3)?;
    hello.take(2 + 32)?;
    hello.block(1)?;
    hello.block(2)?;
    hello.block(1)?;
    let mut extensions = hello.block(2)?;
    while let Some(kind) = extensions.number(2) {
        let mut extension = extensions.block(2)?;
        if kind != 0 {
            continue;
        }
        let mut names = extension.block(2)?;
        while let Some(kind) = names.number(1) {
            let name = names.block(2)?;
            if kind == 0 {
                return String::from_utf8(name.0.to_vec()).ok();
            }
        }
    }
    None
}
