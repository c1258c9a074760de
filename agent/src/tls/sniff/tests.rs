use std::io::Write;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// What a rustls client begins with.
fn hello(name: &str, alpn: &[&[u8]], post_quantum: bool) -> Vec<u8> {
    let mut provider = default_provider();
    provider.kx_groups = if post_quantum { vec![kx_group::X25519MLKEM768] } else { vec![kx_group::X25519] };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of at most `size` bytes each.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in hello[5..].chunks(size) {
        out.extend_from_slice(&hello[..3]);
        out.extend_from_slice(&u16::try_from(piece.len()).unwrap().to_be_bytes());
        out.write_all(piece).unwrap();
    }
    out
}

fn once(bytes: &[u8]) -> Sniffed {
    Sniffer::default().push(bytes)
}

fn byte_by_byte(bytes: &[u8]) -> (usize, Sniffed) {
    let mut sniffer = Sniffer::default();
    for (count, byte) in (1..).zip(bytes) {
        match sniffer.push(&[*byte]) {
            Sniffed::NeedMore => {}
            certain => return (count, certain),
        }
    }
    (bytes.len(), Sniffed::NeedMore)
}

fn asked_for(sniffed: Sniffed) -> Option<String> {
    match sniffed {
        Sniffed::Tls(hello) => hello.sni.map(|name| name.as_ref().to_owned()),
        other => panic!("not TLS: {other:?}"),
    }
}

#[test]
fn a_client_hello_tells_its_name_and_protocols() {
    let Sniffed::Tls(hello) = once(&hello("mcp.example.test", &[b"h2", b"http/1.1"], false)) else {
        panic!()
    };
    assert_eq!(hello.sni.as_ref().map(AsRef::as_ref), Some("mcp.example.test"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
}

#[test]
fn a_client_hello_is_read_byte_by_byte_and_not_before_its_last() {
    let bytes = hello("mcp.example.test", &[b"http/1.1"], false);
    let (count, sniffed) = byte_by_byte(&bytes);
    assert_eq!(count, bytes.len());
    assert_eq!(asked_for(sniffed).as_deref(), Some("mcp.example.test"));
}

#[test]
fn a_post_quantum_hello_split_over_records_and_segments_is_read() {
    let whole = hello("mcp.example.test", &[], true);
    assert!(whole.len() > 1400, "no post-quantum share in {} bytes", whole.len());
    for size in [1, 7, 512, 1200] {
        let bytes = in_records(&whole, size);
        assert_eq!(asked_for(once(&bytes)).as_deref(), Some("mcp.example.test"), "records of {size}");
        let (count, sniffed) = byte_by_byte(&bytes);
        assert_eq!((count, asked_for(sniffed).as_deref()), (bytes.len(), Some("mcp.example.test")));
    }
}

/// With its length before it, in `width` bytes.
fn sized(width: usize, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len().to_be_bytes();
    [&length[length.len() - width..], bytes].concat()
}

/// A hello by hand with a value that means nothing in each list (RFC 8701), as browsers send them, and with an
/// encrypted hello that is none.
fn greasy(name: &str) -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &sized(2, content)].concat();
    let share = |group: u16, key: &[u8]| [&group.to_be_bytes()[..], &sized(2, key)].concat();
    let shares = [share(0x2a2a, &[0]), share(0x11ec, &[7; 1216]), share(0x1d, &[9; 32])].concat();
    let named = [&[0][..], &sized(2, name.as_bytes())].concat();
    let protocols = [sized(1, b"\x8a\x8a"), sized(1, b"h2"), sized(1, b"http/1.1")].concat();
    let sealed = [&[0, 0, 1, 0, 1, 77][..], &sized(2, &[5; 32]), &sized(2, &[6; 208])].concat();
    let extensions = [
        extension(0x1a1a, &[]),
        extension(0, &sized(2, &named)),
        extension(10, &sized(2, &[0x2a, 0x2a, 0x11, 0xec, 0, 0x1d])),
        extension(13, &sized(2, &[0x0a, 0x0a, 4, 3, 8, 4])),
        extension(16, &sized(2, &protocols)),
        extension(43, &sized(1, &[0x3a, 0x3a, 3, 4, 3, 3])),
        extension(51, &sized(2, &shares)),
        extension(0xfe0d, &sealed),
        extension(0x4a4a, &[0]),
    ];
    let hello = [
        &[3, 3][..],
        &[1; 32],
        &sized(1, &[2; 32]),
        &sized(2, &[0x5a, 0x5a, 0x13, 1, 0x13, 2, 0xc0, 0x2b]),
        &sized(1, &[0]),
        &sized(2, &extensions.concat()),
    ];
    let message = [&[1][..], &sized(3, &hello.concat())].concat();
    [&[0x16, 3, 1][..], &sized(2, &message)].concat()
}

#[test]
fn values_that_mean_nothing_change_nothing() {
    let whole = greasy("mcp.example.test");
    for bytes in [in_records(&whole, 500), in_records(&whole, 1), whole] {
        let Sniffed::Tls(hello) = once(&bytes) else { panic!("{:?}", once(&bytes)) };
        assert_eq!(hello.sni.as_ref().map(AsRef::as_ref), Some("mcp.example.test"));
        assert_eq!(hello.alpn, [&b"\x8a\x8a"[..], b"h2", b"http/1.1"]);
        assert_eq!(byte_by_byte(&bytes), (bytes.len(), Sniffed::Tls(hello)));
    }
}

#[test]
fn a_name_is_lower_cased() {
    let mut bytes = hello("mcp.example.test", &[], false);
    let at = bytes.windows(16).position(|window| window == b"mcp.example.test").unwrap();
    bytes[at..at + 16].copy_from_slice(b"MCP.eXample.TEST");
    assert_eq!(asked_for(once(&bytes)).as_deref(), Some("mcp.example.test"));
}

#[test]
fn a_name_that_is_no_dns_name_is_refused_and_an_address_counts_for_none() {
    let mut bytes = hello("mcp.example.test", &[], false);
    let at = bytes.windows(16).position(|window| window == b"mcp.example.test").unwrap();
    bytes[at..at + 16].copy_from_slice(b"mcp.exa\0ple.test");
    assert_eq!(once(&bytes), Sniffed::Other(Unreadable::BrokenHello));
    bytes[at..at + 16].copy_from_slice(b"111.112.113.114.");
    assert!(!matches!(once(&bytes), Sniffed::Tls(ClientHello { sni: Some(_), .. })));
    assert_eq!(asked_for(once(&hello("192.0.2.1", &[], false))), None);
}

#[test]
fn a_handshake_that_is_no_client_hello_is_named() {
    assert_eq!(once(&[0x16, 3, 1, 0, 4, 2, 0, 0, 0]), Sniffed::Other(Unreadable::BrokenHello));
    assert_eq!(once(&[0x16, 9, 9, 0, 4]), Sniffed::Other(Unreadable::BrokenHello));
    assert_eq!(once(&[0x16, 3, 1, 0xff, 0xff]), Sniffed::Other(Unreadable::BrokenHello));
    assert_eq!(once(&[0x16, 3, 1, 0, 4, 1]), Sniffed::NeedMore);
}

#[test]
fn http_is_told_by_its_first_words() {
    for request in [
        "POST /mcp HTTP/1.1\r\n",
        "GET /",
        "GET ",
        "POST  /mcp",
        "POST\t/mcp",
        "DELETE http://a.test/ HTTP/1.1",
        "CONNECT a.test:443 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "purge /x",
        "\r\n\nPOST /mcp",
    ] {
        assert_eq!(once(request.as_bytes()), Sniffed::Http(Protocol::Http1), "{request:?}");
        assert_eq!(byte_by_byte(request.as_bytes()).1, Sniffed::Http(Protocol::Http1), "{request:?}");
    }
}

#[test]
fn http2_in_clear_text_is_known_by_its_preface() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04";
    assert_eq!(once(preface), Sniffed::Http(Protocol::Http2));
    assert_eq!(byte_by_byte(preface).1, Sniffed::Http(Protocol::Http2));
}

#[test]
fn other_protocols_are_foreign_and_beginnings_wait() {
    for start in [
        "PRI * HTTP/1.1\r\n\r\n",
        "\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1 Debian-2",
        "EHLO mail.example.test",
        "USER anonymous",
        "PING\r\n",
        " / HTTP/1.1",
        "\0\0\0\x08\x04\x52\x16\x2f",
        "{\"jsonrpc\":\"2.0\"}",
    ] {
        assert_eq!(once(start.as_bytes()), Sniffed::Other(Unreadable::Foreign), "{start:?}");
    }
    for start in ["", "P", "POST", "\r\n", "purge ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        assert_eq!(once(start.as_bytes()), Sniffed::NeedMore, "{start:?}");
    }
}

#[test]
fn looking_ends_at_its_limits() {
    assert_eq!(once(&[b'A'; MAX_METHOD]), Sniffed::NeedMore);
    assert_eq!(once(&[b'A'; MAX_METHOD + 1]), Sniffed::Other(Unreadable::Foreign));
    assert_eq!(once(&[b'\n'; MAX_EMPTY]), Sniffed::NeedMore);
    assert_eq!(once(&[b'\n'; MAX_EMPTY + 1]), Sniffed::Other(Unreadable::Foreign));

    // A hello that says it has 60000 bytes, and one that says it has more than is ever read.
    let endless = |length: [u8; 3]| {
        let mut message = vec![1, length[0], length[1], length[2]];
        message.resize(2 * MAX_SNIFFED, 0);
        let mut record = vec![0x16, 3, 1, 0, 0];
        record.extend_from_slice(&message);
        in_records(&record, 1024)
    };
    let bytes = endless([0, 0xea, 0x60]);
    assert_eq!(once(&bytes[..50_000]), Sniffed::NeedMore);
    let mut sniffer = Sniffer::default();
    let answers: Vec<_> = bytes.chunks(1000).map(|piece| sniffer.push(piece)).collect();
    assert!(matches!(answers.last(), Some(Sniffed::Other(_))));
    let mut sniffer = Sniffer::default();
    let end = endless([0xff, 0xff, 0xff]).chunks(1000).map(|piece| sniffer.push(piece)).last();
    assert!(matches!(end, Some(Sniffed::Other(_))), "{end:?}");
}

#[test]
fn an_answer_stays_and_every_byte_is_kept() {
    let mut bytes = hello("a.test", &[], false);
    bytes.extend_from_slice(b"early data, or the next message");
    let mut sniffer = Sniffer::default();
    let first = sniffer.push(&bytes);
    assert!(matches!(first, Sniffed::Tls(_)));
    assert_eq!(sniffer.push(b"GET / HTTP/1.1"), first);
    assert_eq!(sniffer.into_bytes(), [&bytes[..], b"GET / HTTP/1.1"].concat());
}

/// xorshift64*: the same bytes each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, self.byte()),
            2 => {
                let end = (at + self.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let copy = bytes[at..(at + self.below(64)).min(bytes.len())].to_vec();
                bytes.extend_from_slice(&copy);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = self.byte();
                }
            }
        }
    }
}

#[test]
fn no_bytes_make_it_panic_or_forget() {
    let mut random = Random(0x5eed_0001);
    let noise: Vec<u8> = (0..600).map(|_| random.byte()).collect();
    let small = hello("mcp.example.test", &[b"h2", b"http/1.1"], false);
    let beginnings = [
        in_records(&small, 40),
        small,
        in_records(&hello("mcp.example.test", &[], true), 700),
        b"\r\nPOST /mcp HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        [&[0x16, 3, 1], &noise[..]].concat(),
        noise,
    ];
    for round in 0..100_000 {
        let mut bytes = beginnings[round % beginnings.len()].clone();
        for _ in 0..=random.below(6) {
            random.mutate(&mut bytes);
        }
        let mut sniffer = Sniffer::default();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(1 + random.below(rest.len()));
            sniffer.push(piece);
            rest = after;
        }
        assert_eq!(sniffer.into_bytes(), bytes);
    }
}
