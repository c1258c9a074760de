use super::*;

/// What a direction's bytes come to: how many are good, and what the fault behind them is.
fn fed(mut framing: Framing, pieces: &[&[u8]]) -> (usize, Result<bool, Ambiguous>) {
    let mut good = 0;
    for piece in pieces {
        match framing.feed(piece) {
            Ok(()) => good += piece.len(),
            Err(fault) => return (good + fault.good, Err(fault.what)),
        }
    }
    (good, Ok(framing.is_between_messages()))
}

fn responses(asked: &[Asked]) -> Framing {
    let mut framing = Framing::of_responses();
    asked.iter().for_each(|asked| framing.expect(*asked));
    framing
}

/// The answer is the same for the bytes as a whole, one by one, and cut in two anywhere.
fn in_any_pieces(new: impl Fn() -> Framing, bytes: &[u8]) -> (usize, Result<bool, Ambiguous>) {
    let whole = fed(new(), &[bytes]);
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(fed(new(), &each), whole, "byte by byte: {:?}", String::from_utf8_lossy(bytes));
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 500 * 5) {
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(fed(new(), &[head, tail]), whole, "cut at {cut}: {:?}", String::from_utf8_lossy(bytes));
    }
    whole
}

fn request(bytes: impl AsRef<[u8]>) -> Result<bool, Ambiguous> {
    in_any_pieces(Framing::of_requests, bytes.as_ref()).1
}

fn response(asked: &[Asked], bytes: impl AsRef<[u8]>) -> Result<bool, Ambiguous> {
    in_any_pieces(|| responses(asked), bytes.as_ref()).1
}

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: a.test\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\n";

#[test]
fn plain_requests_pass_and_end_where_they_end() {
    for whole in [
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost:a.test\r\n\r\n",
        "DELETE /mcp?a=b%20c HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: \t a.test \t \r\nX-Empty:\r\nX-Latin: \u{e4}\r\n\r\n",
        "POST http://a.test/mcp HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:\t12 \r\n\r\n\r\n\r\n\0 \n \x7f\r\n\r",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\na\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nServer-Timing: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\naPOST / HTTP/1.1\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: foo, Keep-Alive\r\n\r\nGET / HTTP/1.0\r\n\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        assert_eq!(request(whole), Ok(true), "{whole:?}");
        let cut = &whole.as_bytes()[..whole.trim_end_matches("\r\n").len() - 1];
        assert_eq!(request(cut), Ok(false), "cut short: {whole:?}");
    }
}

#[test]
fn each_ambiguous_head_of_a_request_is_refused_by_its_name() {
    use Ambiguous as A;
    let fields: &[(&str, A)] = &[
        ("A: b\nC: d\r\n", A::BareLf),
        ("A: b\n\r\n", A::BareLf),
        ("A: b\rC: d\r\n", A::BareCr),
        ("A: b\r\r\n", A::BareCr),
        ("A: b\r\n c\r\n", A::ObsFold),
        ("Content-Length: 1\r\n\t2\r\n", A::ObsFold),
        ("A: \0\r\n", A::NulOrControl),
        ("A\0: b\r\n", A::NulOrControl),
        ("A: \x0b\r\n", A::NulOrControl),
        ("Content-Length: \x7f1\r\n", A::NulOrControl),
        ("Content-Length : 5\r\n", A::SpaceBeforeColon),
        ("Transfer-Encoding\t: chunked\r\n", A::SpaceBeforeColon),
        (": a\r\n", A::BadHeaderName),
        ("A\r\n", A::BadHeaderName),
        ("A(b): c\r\n", A::BadHeaderName),
        ("\u{e4}: c\r\n", A::BadHeaderName),
        ("Content_Length: 5\r\n", A::BadHeaderName),
        ("transfer_encoding: chunked\r\n", A::BadHeaderName),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", A::LengthAndChunked),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", A::LengthAndChunked),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", A::LengthRepeated),
        ("Content-Length: 5\r\ncontent-length: 5\r\n", A::LengthRepeated),
        ("Content-Length: 5, 5\r\n", A::LengthMalformed),
        ("Content-Length:\r\n", A::LengthMalformed),
        ("Content-Length: +5\r\n", A::LengthMalformed),
        ("Content-Length: -5\r\n", A::LengthMalformed),
        ("Content-Length: 05\r\n", A::LengthMalformed),
        ("Content-Length: 00\r\n", A::LengthMalformed),
        ("Content-Length: 0x5\r\n", A::LengthMalformed),
        ("Content-Length: 5 5\r\n", A::LengthMalformed),
        ("Content-Length: 5;\r\n", A::LengthMalformed),
        ("Content-Length: \u{b2}\r\n", A::LengthMalformed),
        ("Content-Length: 9223372036854775808\r\n", A::LengthMalformed),
        ("Content-Length: 18446744073709551617\r\n", A::LengthMalformed),
        ("Content-Length: 00000000000000000000000000000000000005\r\n", A::LengthMalformed),
        ("Transfer-Encoding:\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: identity\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: gzip, chunked\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chunked, chunked\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chunked,\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chunked;q=1\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: \"chunked\"\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: xchunked\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chun ked\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: \u{a0}chunked\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", A::NotPlainlyChunked),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", A::NotPlainlyChunked),
        ("host: b.test\r\n", A::TwoHosts),
    ];
    for (field, expected) in fields {
        let bytes = format!("{POST}{field}\r\nGET /stolen HTTP/1.1\r\n\r\n");
        let (good, what) = in_any_pieces(Framing::of_requests, bytes.as_bytes());
        assert_eq!(what, Err(*expected), "{field:?}");
        assert!(good < POST.len() + field.len() + 2, "the head of {field:?} got through");
    }
    let lines: &[(&str, A)] = &[
        ("GET  / HTTP/1.1\r\n", A::BadRequestLine),
        (" GET / HTTP/1.1\r\n", A::BadRequestLine),
        ("GET\t/ HTTP/1.1\r\n", A::BadRequestLine),
        ("GET / HTTP/1.1 \r\n", A::BadVersion),
        ("GET /a b HTTP/1.1\r\n", A::BadVersion),
        ("GET /\r\n", A::BadRequestLine),
        ("GET / HTTP/1.1\n", A::BareLf),
        ("\nGET / HTTP/1.1\r\n", A::BareLf),
        ("\r\n\r\nGET / HTTP/1.1\r\n", A::BadRequestLine),
        ("\rGET / HTTP/1.1\r\n", A::BareCr),
        ("GET /\0 HTTP/1.1\r\n", A::NulOrControl),
        ("\0GET / HTTP/1.1\r\n", A::NulOrControl),
        ("G(T / HTTP/1.1\r\n", A::BadRequestLine),
        ("GET / HTTP/1.2\r\n", A::BadVersion),
        ("GET / HTTP/2.0\r\n", A::BadVersion),
        ("GET / http/1.1\r\n", A::BadVersion),
        ("GET / HTTP/1.1x\r\n", A::BadVersion),
        ("GET / HTTP/11\r\n", A::BadVersion),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", A::BadVersion),
        ("GET / HTTP/1.1\r\n A: b\r\n", A::ObsFold),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", A::ChunkedInHttp10),
        ("GET / HTTP/1.1\r\nContent-Length: 5\r\n", A::BodyWhereNone),
        ("HEAD / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", A::BodyWhereNone),
        ("CONNECT a:443 HTTP/1.1\r\nContent-Length: 5\r\n", A::BodyWhereNone),
        ("CONNECT a:443 HTTP/1.1\r\n", A::BytesAfterConnect),
        ("GET / HTTP/1.1\r\nConnection: a, close\r\n", A::BytesAfterClose),
        ("GET / HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive\r\n", A::BytesAfterClose),
        ("GET / HTTP/1.0\r\n", A::BytesAfterClose),
    ];
    for (line, expected) in lines {
        assert_eq!(request(format!("{line}\r\nGET / HTTP/1.1\r\n\r\n")), Err(*expected), "{line:?}");
    }
}

#[test]
fn each_ambiguous_body_in_chunks_is_refused_by_its_name() {
    use Ambiguous as A;
    for (body, expected) in [
        ("0x3\r\nabc\r\n", A::BadChunkSize),
        ("+3\r\nabc\r\n", A::BadChunkSize),
        ("-3\r\nabc\r\n", A::BadChunkSize),
        (" 3\r\nabc\r\n", A::BadChunkSize),
        ("3 \r\nabc\r\n", A::BadChunkSize),
        ("3\t\r\nabc\r\n", A::BadChunkSize),
        ("\r\nabc\r\n", A::BadChunkSize),
        ("g\r\n", A::BadChunkSize),
        ("3_0\r\n", A::BadChunkSize),
        ("8000000000000000\r\n", A::BadChunkSize),
        ("10000000000000003\r\nabc\r\n", A::BadChunkSize),
        ("00000000000000003\r\nabc\r\n", A::BadChunkSize),
        ("3;a=b\r\nabc\r\n", A::ChunkExtension),
        ("3;\nabc\r\n", A::ChunkExtension),
        ("0;\r\n\r\n", A::ChunkExtension),
        ("3\nabc\r\n", A::BareLf),
        ("3\rabc\r\n", A::BareCr),
        ("3\r\nabcd\r\n", A::BadChunkEnd),
        ("3\r\nab\r\n0\r\n\r\n", A::BadChunkEnd),
        ("3\r\nabc\n0\r\n\r\n", A::BadChunkEnd),
        ("3\r\nabc\r0\r\n\r\n", A::BadChunkEnd),
        ("3\r\nabc0\r\n\r\n", A::BadChunkEnd),
        ("0\r\n\n", A::BareLf),
        ("0\r\n\rX", A::BareCr),
        ("0\r\nContent-Length: 5\r\n\r\n", A::BadTrailer),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", A::BadTrailer),
        ("0\r\nhost: b\r\n\r\n", A::BadTrailer),
        ("0\r\nAuthorization: b\r\n\r\n", A::BadTrailer),
        ("0\r\nMcp_Session-Id: b\r\n\r\n", A::BadTrailer),
        ("0\r\nMcp-Name: b\r\n\r\n", A::BadTrailer),
        ("0\r\nContent_Length: 5\r\n\r\n", A::BadHeaderName),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", A::SpaceBeforeColon),
        ("0\r\n\r\nGET /x\r\n\r\n", A::BadRequestLine),
    ] {
        let bytes = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{body}");
        assert_eq!(request(&bytes), Err(expected), "{body:?}");
        let bytes = format!("{OK}Transfer-Encoding: chunked\r\n\r\n{body}");
        let expected = if body.contains("/x") { A::Unasked } else { expected };
        assert_eq!(response(&[Asked::Other], &bytes), Err(expected), "{body:?}");
    }
}

#[test]
fn responses_end_where_their_requests_say() {
    use Asked::{Connect, Head, Other};
    let (one, two) =
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 202\r\nContent-Length: 0\r\n\r\n");
    for (asked, bytes) in [
        (&[Other][..], one.to_owned()),
        (&[Other], "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n".into()),
        (&[Other], format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n{one}")),
        (&[Other, Other, Other], format!("{one}{two}{one}")),
        (&[Head, Other], format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{one}")),
        (&[Head, Other], format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{one}")),
        (&[Other, Other], format!("HTTP/1.1 204 No Content\r\n\r\n{one}")),
        (&[Other, Other], format!("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n{one}")),
        (&[Other, Other], format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n{one}")),
        (
            &[Other, Other],
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n{one}"),
        ),
        (&[Other], "HTTP/1.1 200 OK\r\n\r\nanything\n\0".into()),
        (&[Other], "HTTP/1.0 200 OK\r\n\r\nanything\n\0".into()),
        (&[Other], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\0\0".into()),
        (&[Connect], "HTTP/1.1 200 Connected\r\n\r\n\x16\x03".into()),
        (&[Connect, Other], format!("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno{one}")),
        (&[Other], "HTTP/1.1 999 Not \u{e4}ll is\twell\r\nContent-Length: 0\r\n\r\n".into()),
    ] {
        assert_eq!(response(asked, &bytes), Ok(true), "{bytes:?}");
        if !bytes.ends_with('\0') && !bytes.ends_with('\x03') {
            assert_eq!(response(asked, format!("{bytes}H")), Err(Ambiguous::Unasked), "{bytes:?} and more");
        }
    }
}

#[test]
fn each_ambiguous_response_is_refused_by_its_name() {
    use Ambiguous as A;
    for (bytes, expected) in [
        ("HTTP/1.1 20 OK\r\n", A::BadStatusLine),
        ("HTTP/1.1 2000 OK\r\n", A::BadStatusLine),
        ("HTTP/1.1 099 OK\r\n", A::BadStatusLine),
        ("HTTP/1.1  200 OK\r\n", A::BadStatusLine),
        ("HTTP/1.1\t200 OK\r\n", A::BadVersion),
        ("HTTP/1.1 200 \0\r\n", A::NulOrControl),
        ("HTTP/1.1 200 OK\n", A::BareLf),
        ("HTTP/1.1 200 O\rK\r\n", A::BareCr),
        ("\r\nHTTP/1.1 200 OK\r\n", A::BareCr),
        ("ICY 200 OK\r\n", A::BadVersion),
        ("HTTP/2 200 OK\r\n", A::BadVersion),
        ("HTTP/1.1 200 OK\r\n folded\r\n", A::ObsFold),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n", A::LengthRepeated),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", A::LengthAndChunked),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", A::NotPlainlyChunked),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", A::ChunkedInHttp10),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n", A::BodyWhereNone),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n", A::BodyWhereNone),
        ("HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n", A::BodyWhereNone),
        ("HTTP/1.1 101 Switching\r\nContent-Length: 5\r\n", A::BodyWhereNone),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n", A::BytesAfterClose),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", A::BytesAfterClose),
    ] {
        let bytes = format!("{bytes}\r\nHTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(response(&[Asked::Other; 2], &bytes), Err(expected), "{bytes:?}");
    }
    let to_connect = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(response(&[Asked::Connect], to_connect), Err(A::BodyWhereNone));
    assert_eq!(response(&[], OK), Err(A::Unasked));
}

#[test]
fn a_head_at_the_limits_passes_and_one_past_them_does_not() {
    let fields = |count: usize| format!("{POST}{}\r\n", "a: b\r\n".repeat(count - 1));
    assert_eq!(request(fields(MAX_FIELDS)), Ok(true));
    assert_eq!(request(fields(MAX_FIELDS + 1)), Err(Ambiguous::HeadTooLarge));
    let value = |bytes: usize| format!("{POST}a: {}\r\n\r\n", "x".repeat(bytes - POST.len() - 7));
    assert_eq!(in_any_pieces(Framing::of_requests, value(MAX_HEAD).as_bytes()), (MAX_HEAD, Ok(true)));
    let over = in_any_pieces(Framing::of_requests, value(MAX_HEAD + 1).as_bytes());
    assert_eq!(over, (MAX_HEAD, Err(Ambiguous::HeadTooLarge)));
    let target = |bytes: usize| format!("\r\nGET /{} HTTP/1.1\r\n\r\n", "x".repeat(bytes - 20));
    assert_eq!(request(target(MAX_HEAD)), Ok(true));
    assert_eq!(request(target(MAX_HEAD + 1)), Err(Ambiguous::HeadTooLarge));
    let endless = format!("GET /{}", "x".repeat(2 * MAX_HEAD));
    let over = in_any_pieces(Framing::of_requests, endless.as_bytes());
    assert_eq!(over, (MAX_HEAD, Err(Ambiguous::HeadTooLarge)));
    let trailer = |bytes: usize| {
        format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\na: {}\r\n\r\n", "x".repeat(bytes - 7))
    };
    assert_eq!(request(trailer(MAX_HEAD)), Ok(true));
    assert_eq!(request(trailer(MAX_HEAD + 1)), Err(Ambiguous::HeadTooLarge));
    let longest = format!("{POST}Content-Length: {MAX_LENGTH}\r\n\r\n");
    assert_eq!(request(longest), Ok(false));
    let longest = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{MAX_LENGTH:x}\r\n");
    assert_eq!(request(longest), Ok(false));
}

#[test]
fn no_more_responses_are_expected_than_may_be() {
    let mut framing = responses(&[Asked::Other; MAX_EXPECTED + 1]);
    let ok = format!("{OK}Content-Length: 0\r\n\r\n");
    for _ in 0..MAX_EXPECTED {
        assert_eq!(framing.feed(ok.as_bytes()), Ok(()));
    }
    assert_eq!(framing.feed(ok.as_bytes()), Err(Fault { good: 0, what: Ambiguous::Unasked }));
}

#[test]
fn after_a_fault_there_is_nothing_but_that_fault() {
    let mut framing = Framing::of_requests();
    let bytes = b"GET / HTTP/1.1\r\nA\0";
    assert_eq!(framing.feed(bytes), Err(Fault { good: 17, what: Ambiguous::NulOrControl }));
    framing.switch();
    for more in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\r"] {
        assert_eq!(framing.feed(more), Err(Fault { good: 0, what: Ambiguous::NulOrControl }));
    }
    assert_eq!(framing.feed(b""), Ok(()));
}

#[test]
fn another_protocol_begins_only_where_it_was_changed_to() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut framing = Framing::of_requests();
    assert_eq!(framing.feed(upgrade.as_bytes()), Ok(()));
    framing.switch();
    assert_eq!(framing.feed(b"\x81\x05\0\0\0\0hello"), Ok(()));
    assert_eq!(request(format!("{upgrade}\x01\x05")), Err(Ambiguous::NulOrControl));
    let mut framing = Framing::of_requests();
    assert_eq!(framing.feed(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(()));
    framing.switch();
    assert_eq!(framing.feed(b"\x16\x03\x01"), Ok(()));
}

#[test]
fn each_label_is_one_of_its_own() {
    let labels: std::collections::HashSet<_> = Ambiguous::ALL.iter().map(|what| what.label()).collect();
    assert_eq!(labels.len(), Ambiguous::ALL.len());
}
