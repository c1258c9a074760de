//! What could not be read, in either direction: its record says why, and never pretends to more.

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
