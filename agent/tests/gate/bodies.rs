//! Bodies that are encoded, streamed, late or large: each goes on as it came, and no call gets through in one unread.

use std::io::Write;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use weir_core::mask::Masked;
use weir_core::record::{Body, CallResult, MessageLabel};

use crate::stage::{OK, Peer, SERVER, Stage, call, post, soon};

/// What goes through a request body's encoding.
fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn deflate(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::stream::encode_all(text.as_bytes(), 1).unwrap()
}

/// Brotli without compression (RFC 7932, 9.2): one stored block, and the last, empty one.
fn brotli(text: &str) -> Vec<u8> {
    let bits = (u32::try_from(text.len() - 1).unwrap() << 4) | (1 << 20);
    [&bits.to_le_bytes()[..3], text.as_bytes(), &[0b11]].concat()
}

#[tokio::test]
async fn an_encoded_call_is_read_by_policy_and_goes_on_as_it_came() {
    for (coding, encode) in
        [("gzip", gzip as fn(&str) -> Vec<u8>), ("deflate", deflate), ("br", brotli), ("zstd", zstd)]
    {
        goes_on_as_it_came(coding, encode).await;
    }
}

async fn goes_on_as_it_came(coding: &'static str, encode: fn(&str) -> Vec<u8>) {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let encoded = |tool: &str| {
        let mut request = post(encode(&call(1, tool)));
        request.headers_mut().insert("content-encoding", http::HeaderValue::from_static(coding));
        request
    };
    let (status, _, text) = client.ask(encoded("delete_repo")).await;
    assert!(status == StatusCode::OK && text.contains("-31403"), "{text}");
    assert!(stage.untouched(&mut server));
    let answer = client.begin(encoded("echo"));
    let (head, body) = server.request_bytes().await;
    let same = head.contains(&format!("content-encoding: {coding}\r\n")) && body == encode(&call(1, "echo"));
    assert!(same, "{head}");
    // The answer is encoded, too: read for the record, and passed on as it is.
    let told = encode(OK);
    let head = format!(
        "content-type: application/json\r\ncontent-encoding: {coding}\r\ncontent-length: {}",
        told.len()
    );
    server.say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
    server.say_bytes(&told).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().1, String::from_utf8_lossy(&told));
    let answered = |events: &[Body<Masked<String>>]| {
        events.iter().find_map(|event| match event {
            Body::Outcome(outcome) if outcome.result == CallResult::Ok => {
                Some(outcome.payload.text.as_str().to_owned())
            }
            _ => None,
        })
    };
    assert_eq!(stage.recorded(answered).await, "{}", "{coding}: the result, decoded");
}

#[tokio::test]
async fn an_encoding_that_hides_what_is_called_is_refused() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let denied = call(1, "delete_repo");
    for (coding, body) in [
        ("gzip", denied.clone().into_bytes()),
        ("gzip, gzip", gzip(&denied)),
        ("compress", b"\x1f\x9d\x90{".to_vec()),
        ("zstd", gzip(&denied)),
    ] {
        let mut request = post(body);
        request.headers_mut().insert("content-encoding", coding.parse().unwrap());
        let (status, _, text) = client.ask(request).await;
        assert!(status.is_client_error() && text.contains("unreadable"), "{coding}: {status} {text}");
    }
    assert!(stage.untouched(&mut server));
    assert_eq!(stage.messages(MessageLabel::Unreadable, 4).await.len(), 4);
}

#[tokio::test]
async fn a_body_that_is_no_json_goes_on_as_it_comes_with_its_trailers() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, _served) = stage.connect();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {SERVER}\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    soon(stream.write_all(head.as_bytes())).await.unwrap();
    soon(stream.write_all(b"5\r\nfirst\r\n")).await.unwrap();
    // The server has the beginning while the client has not said the rest.
    assert!(server.until(b"first\r\n").await.to_ascii_lowercase().contains("transfer-encoding: chunked"));
    soon(stream.write_all(b"6\r\nsecond\r\n0\r\nX-Sum: 7\r\n\r\n")).await.unwrap();
    assert!(server.until(b"\r\n\r\n").await.to_ascii_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"));
    server.say("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await;
    assert!(Peer::new(stream).until(b"\r\n\r\n").await.starts_with("HTTP/1.1 201 "));
    assert_eq!(stage.messages(MessageLabel::Http, 1).await, ["POST /upload -> 201"]);
}

#[tokio::test]
async fn the_trailers_of_an_answer_reach_a_client_that_takes_them() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, _served) = stage.connect();
    let request = format!("GET /x HTTP/1.1\r\nHost: {SERVER}\r\nTE: trailers\r\nConnection: te\r\n\r\n");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let (head, _) = server.request().await;
    assert!(head.contains("te: trailers\r\n"), "{head}");
    server
        .say("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await;
    let mut client = Peer::new(stream);
    assert!(client.until(b"abc\r\n").await.to_ascii_lowercase().contains("\r\ntrailer: x-sum\r\n"));
    assert_eq!(client.until(b"\r\n\r\n").await.to_ascii_lowercase(), "0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn json_that_comes_late_behind_a_head_that_tells_nothing_never_reaches_the_server() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, _served) = stage.connect();
    let denied = call(1, "delete_repo");
    let head = format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nContent-Length: {}\r\n\r\n", denied.len());
    soon(stream.write_all(head.as_bytes())).await.unwrap();
    // Its head goes on, since the client may wait for an answer to it; what comes then is judged before it does.
    server.until(b"\r\n\r\n").await;
    soon(stream.write_all(denied.as_bytes())).await.unwrap();
    assert_eq!(server.closed().await, "");
}

#[tokio::test]
async fn a_stream_that_lives_on_is_passed_on_as_it_comes() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, _served) = stage.connect();
    let request = format!("GET /mcp HTTP/1.1\r\nHost: {SERVER}\r\nAccept: text/event-stream\r\n\r\n");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    server.request().await;
    server.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    let mut peer = Peer::new(stream);
    peer.until(b"\r\n\r\n").await;
    for n in 0..5 {
        let event = format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/n{n}\"}}\n\n");
        server.say(&event).await;
        assert!(peer.until(b"\n\n").await.ends_with(&event));
    }
    assert_eq!(stage.messages(MessageLabel::Notification, 5).await.len(), 5);
    drop(peer);
    assert_eq!(server.closed().await, "");
}

#[tokio::test]
async fn large_answers_pass_whole_though_they_are_not_read() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let body = format!("{}\"{}\"}}", OK.trim_end_matches("{}}").to_owned() + "{\"x\":", "y".repeat(3 << 20));
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    server.answer(&body).await;
    let (status, text) = soon(answer).await.unwrap().unwrap();
    assert!(status == StatusCode::OK && text == body);
    let outcome = stage.outcome().await;
    assert_eq!((outcome.result, outcome.payload.bytes), (CallResult::Unparsed, body.len() as u64));
    assert!(
        outcome.payload.truncated && outcome.payload.text.as_str().len() <= stage.gate.limits.record_payload
    );
}
