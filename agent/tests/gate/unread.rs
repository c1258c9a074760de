//! What could not be read, in either direction: its record says why, and never pretends to more.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use weir::config::Limits;
use weir_core::mask::Masked;
use weir_core::record::{Body, CallResult, MessageLabel, Unread};

use crate::script::{request, result};
use crate::stage::{Plan, Stage, call, post, soon};

#[tokio::test]
async fn a_request_that_is_not_read_says_why() {
    let limits = Limits { request_body: 5000, ..Limits::default() };
    let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let deep = request("1", "ping", &format!("{}{}", "[".repeat(200), "]".repeat(200)));
    let many = format!("[{}]", [r#"{"jsonrpc":"2.0","method":"x"}"#; 129].join(","));
    let cases = [
        (deep, Unread::TooDeep),
        (request("1", "ping", &format!("\"{}\"", "x".repeat(5000))), Unread::TooLarge),
        (many, Unread::TooMany),
        ("{".to_owned(), Unread::NotJson),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"x"}"#.to_owned(), Unread::Ambiguous),
    ];
    for (at, (body, why)) in cases.into_iter().enumerate() {
        let (status, _, _) = stage.client().await.ask(post(body.clone())).await;
        assert_eq!(status, 400, "{body:.80}");
        let of = |event: &Body<Masked<String>>| match event {
            Body::Message(message) if message.label == MessageLabel::Unreadable => message.unread,
            _ => None,
        };
        let all = |events: &[Body<Masked<String>>]| events.iter().filter_map(of).collect::<Vec<_>>();
        let said = stage.recorded(|events| Some(all(events)).filter(|said| said.len() > at)).await;
        assert_eq!(said[at], why, "{body:.80}");
    }
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn an_answer_that_is_not_read_says_why_and_keeps_its_digest() {
    let deep = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let big = format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}"}}"#, "x".repeat(5000));
    let cases = [
        (deep, Unread::TooDeep),
        (big, Unread::TooLarge),
        ("{".to_owned(), Unread::NotJson),
        ("{}".to_owned(), Unread::NotJsonRpc),
        (r#"{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}"#.to_owned(), Unread::Ambiguous),
        (result("2", "{}"), Unread::NoAnswer),
    ];
    for (body, why) in cases {
        let limits = Limits { message: 3000, ..Limits::default() };
        let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let asked = client.begin(post(call(1, "echo")));
        server.request().await;
        server.answer(&body).await;
        assert_eq!(soon(asked).await.unwrap().unwrap().1, body);
        let outcome = stage.outcome().await;
        assert_eq!((outcome.result, outcome.unread), (CallResult::Unparsed, Some(why)), "{body:.80}");
        let digest = (why == Unread::TooLarge).then(|| stage.gate.masker.digest(body.as_bytes()));
        assert_eq!(
            (outcome.payload.digest, outcome.payload.bytes),
            (digest, body.len() as u64),
            "{body:.80}"
        );
    }
}

#[tokio::test]
async fn an_event_that_is_not_read_says_why_and_keeps_its_beginning_its_length_and_its_digest() {
    let big = format!(r#"{{"jsonrpc":"2.0","id":1,"result":[{}1]}}"#, "\"x\",".repeat(1000));
    let deep = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    for (data, why) in [(big, Unread::TooLarge), (deep, Unread::TooDeep), ("{".to_owned(), Unread::NotJson)] {
        for (id, parked) in [("", false), ("id: 7\n", true)] {
            let limits =
                Limits { message: 3000, answer_timeout: Duration::from_millis(100), ..Limits::default() };
            let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
            let mut server = stage.accept().await;
            let mut client = stage.client().await;
            let asked = client.begin(post(call(1, "echo")));
            server.request().await;
            let events = format!("{id}data: {data}\n\n");
            let head = format!("content-type: text/event-stream\r\ncontent-length: {}", events.len());
            server.say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{events}")).await;
            assert_eq!(soon(asked).await.unwrap().unwrap().1, events);
            let outcome = stage.outcome().await;
            assert_eq!(outcome.result, CallResult::Unparsed, "{data:.80}");
            // Of what may still have come on another stream, the message tells.
            assert_eq!(outcome.unread, (!parked).then_some(why), "{data:.80}");
            let events = stage.events();
            let mut unparsed = events.iter().filter_map(|event| match event {
                Body::Message(message) if message.label == MessageLabel::Unparsed => Some(message),
                _ => None,
            });
            let message = unparsed.next().unwrap();
            assert_eq!((message.unread, message.call_id.as_ref()), (Some(why), Some(&outcome.call_id)));
            assert!(parked || message.payload == outcome.payload, "{data:.80}");
            let payload = &message.payload;
            let begins = payload.text.as_str();
            assert!(data.starts_with(begins) && begins.len() >= data.len().min(2900), "{begins}");
            assert_eq!((payload.bytes, payload.truncated), (data.len() as u64, why == Unread::TooLarge));
            let digest = (why == Unread::TooLarge).then(|| stage.gate.masker.digest(data.as_bytes()));
            assert_eq!(payload.digest, digest, "{data:.80}");
            assert_eq!(unparsed.count(), 0);
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_what_its_encoding_says_keeps_the_digest_of_what_came() {
    let answer = result("1", &format!("{:?}", (0..5000).collect::<Vec<u32>>()));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(answer.as_bytes()).unwrap();
    encoder.flush().unwrap();
    let whole = encoder.finish().unwrap();
    // Behind what was flushed the last block begins; there is none of the third kind.
    let flushed = whole.windows(4).rposition(|bytes| bytes == [0, 0, 0xff, 0xff]).unwrap() + 4;
    let broken = [&whole[..flushed], &[7; 100]].concat();
    for (came, kind) in [
        (broken.clone(), "application/json"),
        (broken, "text/event-stream"),
        (whole[..8].to_vec(), "application/json"),
        (b"plain".to_vec(), "application/json"),
    ] {
        let mut stage = Stage::new().await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let asked = client.begin(post(call(1, "echo")));
        server.request().await;
        let head =
            format!("content-type: {kind}\r\ncontent-encoding: gzip\r\ncontent-length: {}", came.len());
        server.say_bytes(&[format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes(), &came].concat()).await;
        drop(soon(asked).await);
        let outcome = stage.outcome().await;
        assert_eq!((outcome.result, outcome.unread), (CallResult::Unparsed, Some(Unread::Encoded)));
        let digest = Some(stage.gate.masker.digest(&came));
        assert_eq!((outcome.payload.digest, outcome.payload.bytes), (digest, came.len() as u64), "{kind}");
    }
}
