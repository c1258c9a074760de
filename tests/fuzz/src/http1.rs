//! The framing of HTTP/1.1: the same in any pieces, and what is let through has the length that httparse, which is
//! hyper's own parser, and hyper's rules give it.

use httparse::Status;
use weir_core::http1::{Ambiguous, Asked, Framing};

use crate::pieces::{cut_by_first, pieces};

const ASKED: [Asked; 4] = [Asked::Other, Asked::Head, Asked::Other, Asked::Connect];

pub fn run(bytes: &[u8]) {
    let (cut, bytes) = cut_by_first(bytes);
    let asks = cut % 2 == 0;
    let new = || match asks {
        true => Framing::of_requests(),
        false => {
            let mut framing = Framing::of_responses();
            ASKED.iter().for_each(|asked| framing.expect(*asked));
            framing
        }
    };
    let whole = fed(new(), std::iter::once(bytes));
    assert_eq!(fed(new(), pieces(bytes, cut / 2)), whole, "in pieces and as a whole");
    let good = bytes.get(..whole.0).unwrap_or_default();
    match asks {
        true => requests(good, &whole),
        false => responses(good, &whole),
    }
}

type Fed = (usize, Result<bool, Ambiguous>);

fn fed<'a>(mut framing: Framing, pieces: impl Iterator<Item = &'a [u8]>) -> Fed {
    let mut good = 0;
    for piece in pieces {
        match framing.feed(piece) {
            Ok(()) => good += piece.len(),
            Err(fault) => return (good + fault.good, Err(fault.what)),
        }
    }
    (good, Ok(framing.is_between_messages()))
}

/// Each message of what was let through has one length alone, and they follow one another without a rest.
fn requests(mut good: &[u8], whole: &Fed) {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(good) {
            Ok(Status::Complete(length)) => length,
            // What is cut short here must not count as whole there. Empty lines alone are no request.
            Ok(Status::Partial) => {
                let empty = good.iter().all(|byte| b"\r\n".contains(byte));
                assert!(empty || whole.1 != Ok(true), "a request that httparse wants more of");
                return;
            }
            // A target that is no UTF-8: it is refused there.
            Err(httparse::Error::Token) if std::str::from_utf8(good).is_err() => return,
            Err(error) => panic!("httparse: {error}"),
        };
        let method = request.method.unwrap_or_default();
        if method == "CONNECT" {
            return;
        }
        let framed = Framed::of(request.headers, request.version);
        good = good.get(length..).unwrap_or_default();
        let body = match framed {
            Framed::Chunked => chunks(good),
            Framed::Length(length) => usize::try_from(length).ok().filter(|length| *length <= good.len()),
            Framed::None => Some(0),
        };
        match body {
            Some(body) => good = good.get(body..).unwrap_or_default(),
            None => return assert_ne!(whole.1, Ok(true), "a body that is cut short"),
        }
        if good.is_empty() {
            return;
        }
    }
}

fn responses(mut good: &[u8], whole: &Fed) {
    let mut asked = ASKED.iter();
    let mut next = asked.next();
    while !good.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(good) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return assert_ne!(whole.1, Ok(true), "a response that is cut short"),
            Err(error) => panic!("httparse: {error}"),
        };
        let framed = Framed::of(response.headers, response.version);
        let status = response.code.unwrap_or_default();
        good = good.get(length..).unwrap_or_default();
        // As in hyper's `Client::decoder`.
        let body = match (status, next, framed) {
            (101, _, _) => return,
            (100..200, _, _) => {
                continue;
            }
            (204 | 304, _, _) | (_, Some(Asked::Head), _) => Some(0),
            (200..300, Some(Asked::Connect), _) | (_, _, Framed::None) => return,
            (_, _, Framed::Chunked) => chunks(good),
            (_, _, Framed::Length(length)) => {
                usize::try_from(length).ok().filter(|length| *length <= good.len())
            }
        };
        next = asked.next();
        match body {
            Some(body) => good = good.get(body..).unwrap_or_default(),
            None => return assert_ne!(whole.1, Ok(true), "a body that is cut short"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Framed {
    None,
    Chunked,
    Length(u64),
}

impl Framed {
    fn of(fields: &[httparse::Header<'_>], version: Option<u8>) -> Self {
        let values = |name: &str| -> Vec<&str> {
            let named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            named
                .map(|field| std::str::from_utf8(field.value).expect("a framing field that is no text"))
                .collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "more than one field frames the body");
        assert!(codings.is_empty() || version == Some(1), "a coding in HTTP/1.0");
        match (codings.first(), lengths.first()) {
            (Some(coding), _) => {
                assert!(coding.eq_ignore_ascii_case("chunked"), "{coding:?}");
                Framed::Chunked
            }
            (None, Some(length)) => Framed::Length(length.parse().expect("a length that is no number")),
            (None, None) => Framed::None,
        }
    }
}

/// How long a body in chunks is, with its trailers; `None` for one that is cut short.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..)?;
        let (line, size) = match httparse::parse_chunk_size(rest).expect("a chunk's size") {
            Status::Complete(read) => read,
            Status::Partial => return None,
        };
        at += line;
        if size == 0 {
            let mut fields = [httparse::EMPTY_HEADER; 100];
            return match httparse::parse_headers(bytes.get(at..)?, &mut fields).expect("trailers") {
                Status::Complete((length, _)) => Some(at + length),
                Status::Partial => None,
            };
        }
        at = at.checked_add(usize::try_from(size).ok()?)?;
        let end = bytes.get(at..)?.get(..2)?;
        assert_eq!(end, b"\r\n", "the end of a chunk");
        at += 2;
    }
}
