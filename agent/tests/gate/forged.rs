//! Messages over HTTP/2 that are none there, or might be two where they go on: frames by hand, since no library sends them. Each is
//! refused, reaches nobody, and is recorded by name, whatever its sender does then.

use tokio::io::AsyncReadExt;
use weir::tls::{Protocol, Spoken};
use weir_core::mask::Masked;
use weir_core::record::{Body, CallResult, Direction, MessageLabel};

use crate::peer2::{self, Client};
use crate::stage::{OK, Peer, Plan, SERVER, Stage, call, post, soon};

const HTTP2: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http2 };
const TRANSLATED: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http1 };
const UPGRADED: Spoken = Spoken { by_client: Protocol::Http1, by_server: Protocol::Http2 };

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const PROTOCOL_ERROR: u8 = 1;
const INTERNAL_ERROR: u8 = 2;
const ENDS: u8 = 1;
const ENDS_HEADERS: u8 = 4;

const MALFORMED: &str = "http2_malformed: ";
const UNREADABLE: &str = "http2_unreadable: ";
const BAD_TRAILER: &str = "bad_trailer: ";

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, stream], payload].concat()
}

type Fields<'a> = &'a [(&'a [u8], &'a [u8])];

/// A head's fields as they are, each under a name of its own (RFC 7541, 6.2.2).
fn block(fields: Fields<'_>) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const METHOD: (&[u8], &[u8]) = (b":method", b"POST");
const SCHEME: (&[u8], &[u8]) = (b":scheme", b"https");
const PATH: (&[u8], &[u8]) = (b":path", b"/mcp");
const AUTHORITY: (&[u8], &[u8]) = (b":authority", SERVER.as_bytes());
const TYPE: (&[u8], &[u8]) = (b"content-type", b"application/json");
const STATUS: (&[u8], &[u8]) = (b":status", b"200");

/// A call whose head has these fields behind those that every one has.
fn request(fields: Fields<'_>) -> Vec<u8> {
    whole(&[&[METHOD, SCHEME, PATH, AUTHORITY, TYPE], fields].concat(), call(1, "forged").as_bytes())
}

/// A message: its head, and all of its body.
fn whole(fields: Fields<'_>, body: &[u8]) -> Vec<u8> {
    [frame(HEADERS, ENDS_HEADERS, 1, &block(fields)), frame(DATA, ENDS, 1, body)].concat()
}

/// A message with a trailer.
fn trailed(head: Fields<'_>, body: &[u8], trailer: Fields<'_>) -> Vec<u8> {
    [
        frame(HEADERS, ENDS_HEADERS, 1, &block(head)),
        frame(DATA, 0, 1, body),
        frame(HEADERS, ENDS_HEADERS | ENDS, 1, &block(trailer)),
    ]
    .concat()
}

/// The forms of requests, and as what they are recorded.
fn requests() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let length = call(1, "forged").len().to_string();
    let (length, zeros) = (length.as_bytes(), format!("0{length}"));
    let body = call(1, "forged");
    let pseudo = |fields: Fields<'_>| whole(fields, body.as_bytes());
    let trailer = |name: &[u8]| {
        let head = [METHOD, SCHEME, PATH, AUTHORITY, TYPE, (b"trailer", name)];
        trailed(&head, body.as_bytes(), &[(name, b"3")])
    };
    vec![
        ("connection", request(&[(b"connection", b"keep-alive")]), MALFORMED),
        ("transfer-encoding", request(&[(b"transfer-encoding", b"chunked")]), MALFORMED),
        ("upgrade", request(&[(b"upgrade", b"h2c")]), MALFORMED),
        ("te", request(&[(b"te", b"gzip")]), MALFORMED),
        ("a pseudo-field twice", request(&[PATH]), MALFORMED),
        ("a pseudo-field late", pseudo(&[METHOD, SCHEME, AUTHORITY, TYPE, PATH]), MALFORMED),
        ("no method", pseudo(&[SCHEME, PATH, AUTHORITY, TYPE]), MALFORMED),
        ("no path", pseudo(&[METHOD, SCHEME, AUTHORITY, TYPE]), MALFORMED),
        ("an answer's status", pseudo(&[METHOD, SCHEME, PATH, AUTHORITY, STATUS, TYPE]), MALFORMED),
        (
            "CR LF in the path",
            pseudo(&[METHOD, SCHEME, (b":path", b"/ HTTP/1.1\r\nx: y"), AUTHORITY, TYPE]),
            MALFORMED,
        ),
        ("a space in the path", pseudo(&[METHOD, SCHEME, (b":path", b"/a b"), AUTHORITY, TYPE]), MALFORMED),
        (
            "CR LF in the authority",
            pseudo(&[METHOD, SCHEME, PATH, (b":authority", b"mcp.test\r\nx: y"), TYPE]),
            MALFORMED,
        ),
        ("a length too great", request(&[(b"content-length", b"9999")]), MALFORMED),
        ("a length too small", request(&[(b"content-length", b"3")]), MALFORMED),
        ("two lengths", request(&[(b"content-length", length), (b"content-length", b"3")]), MALFORMED),
        ("a length with a sign", request(&[(b"content-length", b"+3")]), MALFORMED),
        ("a length that is a list", request(&[(b"content-length", b"3, 3")]), MALFORMED),
        ("CR LF in a value", request(&[(b"x-a", b"b\r\nx-c: d")]), UNREADABLE),
        ("LF in a value", request(&[(b"x-a", b"b\nx-c: d")]), UNREADABLE),
        ("NUL in a value", request(&[(b"x-a", b"b\0")]), UNREADABLE),
        ("CR LF in a name", request(&[(b"x-a: b\r\nx-c", b"d")]), UNREADABLE),
        ("a capital letter", request(&[(b"X-a", b"b")]), UNREADABLE),
        ("a space in a name", request(&[(b"x a", b"b")]), UNREADABLE),
        ("a colon in a name", request(&[(b"host:", b"b")]), UNREADABLE),
        ("an unknown pseudo-field", pseudo(&[METHOD, SCHEME, PATH, (b":host", b"x"), AUTHORITY]), UNREADABLE),
        (
            "CR LF in the method",
            pseudo(&[(b":method", b"POST / HTTP/1.1\r\n"), SCHEME, PATH, AUTHORITY]),
            UNREADABLE,
        ),
        ("a body without a head", frame(DATA, ENDS, 1, body.as_bytes()), UNREADABLE),
        // What HTTP/2 takes, and HTTP/1.1 does not.
        (
            "a length twice",
            request(&[(b"content-length", length), (b"content-length", length)]),
            "length_repeated: ",
        ),
        ("a length with a zero", request(&[(b"content-length", zeros.as_bytes())]), "length_malformed: "),
        ("two hosts", request(&[(b"host", b"mcp.test"), (b"host", b"b.test")]), "two_hosts: "),
        ("a length in disguise", request(&[(b"content_length", b"3")]), "bad_header_name: "),
        ("a coding in disguise", request(&[(b"transfer_encoding", b"chunked")]), "bad_header_name: "),
        ("a length behind the body", trailer(b"content-length"), BAD_TRAILER),
        ("a length in disguise behind it", trailer(b"content_length"), BAD_TRAILER),
        ("a session behind the body", trailer(b"mcp-session-id"), BAD_TRAILER),
    ]
}

/// A client's end of a connection, whose greetings were exchanged.
async fn client(stage: &Stage) -> Peer {
    let mut client = Peer::new(stage.connect().0);
    client.say_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.say_bytes(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(next(&mut client).await.0, SETTINGS);
    client
}

/// The next frame's kind and payload.
async fn next(peer: &mut Peer) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    soon(peer.0.read_exact(&mut head)).await.expect("the connection was closed");
    let [_, high, low, kind, ..] = head;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    soon(peer.0.read_exact(&mut payload)).await.unwrap();
    (kind, payload)
}

/// Waits for what refuses a stream or the connection: with which frame, and for which reason.
async fn refusal(peer: &mut Peer) -> (u8, u8) {
    loop {
        let (kind, payload) = next(peer).await;
        let reason = match kind {
            RST_STREAM => payload.get(..4),
            GOAWAY => payload.get(4..8),
            HEADERS => panic!("it was answered"),
            _ => continue,
        };
        let [0, 0, 0, reason] = *reason.unwrap() else { panic!("{kind} for {reason:?}") };
        return (kind, reason);
    }
}

/// Which direction's messages were recorded as ambiguous, and how.
async fn recorded(stage: &Stage) -> Vec<(Direction, String)> {
    let noted = |body: &Body<Masked<String>>| match body {
        Body::Message(message) if message.label == MessageLabel::Ambiguous => {
            Some((message.direction, message.payload.text.as_str().to_owned()))
        }
        _ => None,
    };
    let all = |events: &[Body<_>]| events.iter().filter_map(noted).collect::<Vec<_>>();
    stage.recorded(|events| Some(all(events)).filter(|all| !all.is_empty())).await
}

async fn is_recorded(stage: &Stage, direction: Direction, name: &str, what: &str) {
    let recorded = recorded(stage).await;
    let is_so = |(of, text): &(Direction, String)| *of == direction && text.starts_with(what);
    assert!(recorded.len() == 1 && recorded.iter().all(is_so), "{name}: {recorded:?}");
}

/// Only what is sent now reaches the server.
async fn reaches_its_server(stage: &mut Stage, mut server: Peer, protocol: Protocol) {
    let mut client = Client::new(stage).await;
    let told = client.call(&call(1, "echo")).await;
    let body = match protocol {
        Protocol::Http1 => {
            let body = server.request().await.1;
            server.answer(OK).await;
            body.into_bytes()
        }
        Protocol::Http2 => {
            let mut server = peer2::Server::of(server.0, &h2::server::Builder::new()).await;
            let mut asked = server.request().await;
            let mut body = Vec::new();
            while let Some(data) = soon(asked.body.data()).await {
                body.extend_from_slice(&data.unwrap());
            }
            asked.answer(OK);
            body
        }
    };
    assert_eq!(body, call(1, "echo").as_bytes());
    assert_eq!(told.whole().await.unwrap().0, 200);
}

#[tokio::test]
async fn a_forged_request_is_refused_and_recorded_and_reaches_no_server() {
    for spoken in [TRANSLATED, HTTP2] {
        for (name, forged, what) in requests() {
            let mut stage = Stage::of(Plan { spoken, ..Plan::default() }).await;
            let server = stage.accept().await;
            let mut client = client(&stage).await;
            client.say_bytes(&forged).await;
            if [MALFORMED, UNREADABLE].contains(&what) {
                // A client that has said all is refused, too.
                client.leave().await;
            }
            let kind = if what == UNREADABLE { GOAWAY } else { RST_STREAM };
            // What is wrong behind a body ends the exchange that has begun.
            let reason = if what == BAD_TRAILER { INTERNAL_ERROR } else { PROTOCOL_ERROR };
            assert_eq!(refusal(&mut client).await, (kind, reason), "{name}");
            drop(client);
            is_recorded(&stage, Direction::ClientToServer, name, what).await;
            reaches_its_server(&mut stage, server, spoken.by_server).await;
        }
    }
}

#[tokio::test]
async fn a_forged_request_is_recorded_though_its_client_has_left_and_a_hundred_of_them_once() {
    // What is behind a body is looked at by who reads it, for whom then nobody waits.
    for (name, forged, what) in requests().into_iter().filter(|(.., what)| *what != BAD_TRAILER) {
        let stage = Stage::of(Plan { spoken: TRANSLATED, ..Plan::default() }).await;
        let mut client = client(&stage).await;
        client.say_bytes(&forged).await;
        drop(client);
        is_recorded(&stage, Direction::ClientToServer, name, what).await;
    }
    let stage = Stage::of(Plan { spoken: TRANSLATED, ..Plan::default() }).await;
    let (stream, served) = stage.connect();
    let mut client = Peer::new(stream);
    client.say_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.say_bytes(&frame(SETTINGS, 0, 0, &[])).await;
    let forged = block(&[METHOD, SCHEME, PATH, AUTHORITY, (b"connection", b"close")]);
    for stream in (1..=199).step_by(2) {
        client.say_bytes(&frame(HEADERS, ENDS_HEADERS | ENDS, stream, &forged)).await;
        assert_eq!(refusal(&mut client).await, (RST_STREAM, PROTOCOL_ERROR));
    }
    drop(client);
    soon(served).await.unwrap();
    is_recorded(&stage, Direction::ClientToServer, "a hundred", MALFORMED).await;
}

/// The forms of answers, and as what they are recorded.
fn answers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let answer = |fields: Fields<'_>| whole(&[&[STATUS, TYPE], fields].concat(), OK.as_bytes());
    let length = OK.len().to_string();
    let length = length.as_bytes();
    vec![
        ("CR LF in a value", answer(&[(b"x-a", b"b\r\nx-c: d")]), UNREADABLE),
        ("CR LF CR LF in a value", answer(&[(b"x-a", b"b\r\n\r\nHTTP/1.1 200 OK")]), UNREADABLE),
        ("NUL in a value", answer(&[(b"x-a", b"\0")]), UNREADABLE),
        ("a capital letter", answer(&[(b"X-a", b"b")]), UNREADABLE),
        ("transfer-encoding", answer(&[(b"transfer-encoding", b"chunked")]), MALFORMED),
        ("connection", answer(&[(b"connection", b"close")]), MALFORMED),
        ("no status", whole(&[TYPE], OK.as_bytes()), MALFORMED),
        ("two lengths", answer(&[(b"content-length", length), (b"content-length", b"3")]), MALFORMED),
        (
            "a length twice",
            answer(&[(b"content-length", length), (b"content-length", length)]),
            "length_repeated: ",
        ),
        ("a length in disguise", answer(&[(b"content_length", b"3")]), "bad_header_name: "),
        (
            "a length behind the body",
            trailed(&[STATUS, TYPE], OK.as_bytes(), &[(b"content-length", b"3")]),
            BAD_TRAILER,
        ),
    ]
}

#[tokio::test]
async fn a_forged_answer_reaches_no_client_and_is_recorded() {
    for spoken in [UPGRADED, HTTP2] {
        for (name, forged, what) in answers() {
            let mut stage = Stage::of(Plan { spoken, ..Plan::default() }).await;
            let mut server = stage.accept().await;
            let asks = call(1, "echo");
            let told = match spoken.by_client {
                Protocol::Http1 => {
                    let mut client = stage.client().await;
                    tokio::spawn(
                        async move { client.begin(post(asks)).await.unwrap().map(drop).map_err(drop) },
                    )
                }
                Protocol::Http2 => {
                    let mut client = Client::new(&stage).await;
                    tokio::spawn(
                        async move { client.call(&asks).await.whole().await.map(drop).map_err(drop) },
                    )
                }
            };
            server.say_bytes(&frame(SETTINGS, 0, 0, &[])).await;
            server.say_bytes(&frame(SETTINGS, 1, 0, &[])).await;
            server.until_bytes(call(1, "echo").as_bytes()).await;
            server.say_bytes(&forged).await;
            assert!(soon(told).await.unwrap().is_err(), "{name}");
            let outcome = stage.outcome().await;
            assert_eq!(outcome.result, CallResult::UpstreamFailed, "{name}");
            is_recorded(&stage, Direction::ServerToClient, name, what).await;
        }
    }
}
