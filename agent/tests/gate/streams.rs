//! Streams of HTTP/2 whose ends do what they may: take small pieces, reset, leave in the middle, or say a length that is not so.

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use weir::tls::{Protocol, Spoken};
use weir_core::record::{Body, CallResult, MessageLabel};

use crate::forged::frame;
use crate::peer2::{Client, JSON, Server, all, send};
use crate::stage::{OK, Plan, Stage, call, soon};

const HTTP2: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http2 };
const TRANSLATED: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http1 };

async fn stage(spoken: Spoken) -> Stage {
    Stage::of(Plan { spoken, ..Plan::default() }).await
}

/// A text that is no message, and of which no two places are alike.
fn long() -> Bytes {
    (0..200_000_u32).map(|n| format!("{n:06} ")).collect::<String>().into()
}

#[tokio::test]
async fn long_bodies_go_both_ways_in_the_pieces_that_either_side_has_room_for() {
    let (mut stage, long) = (stage(HTTP2).await, long());
    let server = stage.accept().await.0;
    let mut server = Server::of(server, h2::server::Builder::new().initial_window_size(1000)).await;
    let mut client = Client::of(&stage, h2::client::Builder::new().initial_window_size(777)).await;
    let (told, mut body) = client.ask(("POST", "/copy"), &[("trailer", "x-sum")], false).await;
    let sending = long.clone();
    let sent = tokio::spawn(async move { send(&mut body, sending).await });
    let mut asked = server.request().await;
    let mut answer = asked.begin(200, &[], false);
    let copied = tokio::spawn(async move {
        let mut copied = Vec::new();
        while let Some(data) = asked.body.data().await {
            let data = data.unwrap();
            asked.body.flow_control().release_capacity(data.len()).unwrap();
            copied.extend_from_slice(&data);
        }
        let mut rest = Bytes::from(copied.clone());
        while !rest.is_empty() {
            answer.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|context| answer.poll_capacity(context)).await.unwrap().unwrap();
            answer.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
        }
        let sum = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), "7".parse().unwrap())]);
        answer.send_trailers(sum).unwrap();
        copied
    });
    let (got, trailers) = all(told.answer().await.unwrap().into_body()).await.unwrap();
    soon(sent).await.unwrap();
    assert!(soon(copied).await.unwrap() == long && got == long);
    assert_eq!(trailers.unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn a_client_that_resets_a_streamed_answer_is_gone_for_its_server_too() {
    let mut stage = stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    let (told, mut asking) = client.ask(("GET", "/mcp"), &[("accept", "text/event-stream")], true).await;
    let mut asked = server.request().await;
    let mut events = asked.begin(200, &[("content-type", "text/event-stream")], false);
    events.send_data(Bytes::from_static(b": one\n\n"), false).unwrap();
    let mut body = told.answer().await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), ": one\n\n");
    asking.send_reset(Reason::CANCEL);
    let reset = soon(std::future::poll_fn(|context| events.poll_reset(context))).await.unwrap();
    assert_eq!(reset, Reason::CANCEL);
}

#[tokio::test]
async fn a_stream_that_its_server_resets_is_reset_for_its_client_with_the_same_reason() {
    let mut stage = stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    for (said, told) in [
        (Reason::REFUSED_STREAM, Reason::REFUSED_STREAM),
        (Reason::ENHANCE_YOUR_CALM, Reason::ENHANCE_YOUR_CALM),
        (Reason::HTTP_1_1_REQUIRED, Reason::HTTP_1_1_REQUIRED),
        // What its server has against Weir's own connection is no fault of the client's.
        (Reason::PROTOCOL_ERROR, Reason::INTERNAL_ERROR),
        // That all is well is not so without an answer.
        (Reason::NO_ERROR, Reason::INTERNAL_ERROR),
    ] {
        stage.forget_events();
        let waiting = client.call(&call(1, "echo")).await;
        server.request().await.reply.send_reset(said);
        assert_eq!(waiting.whole().await.unwrap_err().reason(), Some(told), "{said:?}");
        assert_eq!(stage.outcome().await.result, CallResult::UpstreamFailed);
        // Nor is half an answer a whole one.
        stage.forget_events();
        let waiting = client.call(&call(2, "echo")).await;
        let mut asked = server.request().await;
        let mut stream = asked.begin(200, &[("content-type", "text/event-stream")], false);
        stream.send_data(Bytes::from_static(b": one\n\n"), false).unwrap();
        let mut body = waiting.answer().await.unwrap().into_body();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), ": one\n\n");
        stream.send_reset(said);
        assert!(all(body).await.is_err(), "{said:?}");
        assert_eq!(stage.outcome().await.result, CallResult::UpstreamFailed);
    }
    assert!(!stage.dialled_again());
}

#[tokio::test]
async fn a_client_that_resets_in_its_body_has_not_said_all_whatever_it_says() {
    for reason in [Reason::CANCEL, Reason::NO_ERROR] {
        let mut stage = stage(HTTP2).await;
        let mut server = Server::accept(&mut stage).await;
        let mut client = Client::new(&stage).await;
        let (_told, mut body) = client.ask(("POST", "/mcp"), &JSON, false).await;
        body.send_data(call(1, "broken_off").into(), false).unwrap();
        // What came is there when it resets, as another call is that came behind it.
        for id in 2..=4 {
            let other = client.call(&call(id, "echo")).await;
            let mut asked = server.request().await;
            body.send_reset(reason);
            asked.answer(OK);
            let sent = all(asked.body).await.unwrap().0;
            assert_eq!(sent, call(id, "echo").as_bytes(), "{reason:?}");
            assert_eq!(other.whole().await.unwrap().0, 200);
        }
    }
}

#[tokio::test]
async fn a_length_that_is_not_the_bodys_is_a_fault_of_the_stream_either_way() {
    let mut stage = stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    let body = call(1, "echo");
    for length in [body.len() - 1, body.len() + 1, 0] {
        let length = length.to_string();
        let headers = [JSON[0], ("content-length", length.as_str())];
        let (told, mut stream) = client.ask(("POST", "/mcp"), &headers, false).await;
        let _ = stream.send_data(body.clone().into(), true);
        assert_eq!(told.whole().await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR), "{length}");
    }
    let twice = [JSON[0], ("content-length", "3"), ("content-length", "4")];
    let (told, _stream) = client.ask(("POST", "/mcp"), &twice, false).await;
    assert_eq!(told.whole().await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    assert!(server.untouched());
    for length in ["1", "3"] {
        let (told, _) = client.ask(("GET", "/page"), &[], true).await;
        let mut stream = server.request().await.begin(200, &[("content-length", length)], false);
        let _ = stream.send_data(Bytes::from_static(b"ab"), true);
        assert!(told.whole().await.is_err(), "{length}");
    }
    let told = client.call(&call(2, "echo")).await;
    server.request().await.answer(OK);
    assert_eq!(told.whole().await.unwrap().0, 200);
}

#[tokio::test]
async fn answers_without_a_body_keep_the_length_they_tell() {
    let cases = [("HEAD", 200), ("GET", 304)];
    let has_ended = |(head, body): (http::response::Parts, h2::RecvStream), status: u16| {
        assert_eq!((head.status.as_u16(), &head.headers["content-length"]), (status, &"7".parse().unwrap()));
        assert!(body.is_end_stream());
    };
    let mut stage = stage(TRANSLATED).await;
    let mut server = stage.accept().await;
    let mut client = Client::new(&stage).await;
    for (method, status) in cases {
        let (told, _) = client.ask((method, "/page"), &[], true).await;
        server.request().await;
        server.say(&format!("HTTP/1.1 {status} X\r\ncontent-length: 7\r\n\r\n")).await;
        has_ended(told.answer().await.unwrap().into_parts(), status);
    }
    let mut stage = self::stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    for (method, status) in cases {
        let (told, _) = client.ask((method, "/page"), &[], true).await;
        server.request().await.begin(status, &[("content-length", "7")], true);
        has_ended(told.answer().await.unwrap().into_parts(), status);
    }
    // One whose server does not end it has a head all the same, and no more.
    let (told, _) = client.ask(("HEAD", "/page"), &[], true).await;
    let mut open = server.request().await.begin(200, &[("content-length", "7")], false);
    let mut answer = told.answer().await.unwrap();
    assert_eq!(answer.headers()["content-length"], "7");
    open.send_data(Bytes::new(), true).unwrap();
    assert!(soon(answer.body_mut().data()).await.is_none_or(|data| data.is_ok_and(|data| data.is_empty())));
}

#[tokio::test]
async fn a_server_that_leaves_answers_what_it_has_and_is_dialled_again_for_the_next() {
    let mut stage = stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    let first = client.call(&call(1, "echo")).await;
    let mut asked = server.request().await;
    server.leave().await;
    // It has heard of it when something comes behind it.
    asked.say(102, &[]);
    let mut first = first;
    assert_eq!(first.before().await.unwrap().status(), 102);
    let second = client.call(&call(2, "echo")).await;
    let mut next = Server::accept(&mut stage).await;
    next.request().await.answer(&OK.replace("\"id\":1", "\"id\":2"));
    assert_eq!(second.whole().await.unwrap().0, 200);
    asked.answer(OK);
    assert_eq!(first.whole().await.unwrap(), (200, OK.to_owned()));
    // The one that left is not used again because it answered last.
    let third = client.call(&call(3, "echo")).await;
    next.request().await.answer(&OK.replace("\"id\":1", "\"id\":3"));
    assert_eq!(third.whole().await.unwrap().0, 200);
    assert!(!stage.dialled_again());
}

#[tokio::test]
async fn of_requests_that_wait_for_a_servers_room_only_those_go_elsewhere_that_never_went_out() {
    let mut stage = stage(HTTP2).await;
    let stream = stage.accept().await.0;
    let mut server = Server::of(stream, h2::server::Builder::new().max_concurrent_streams(1)).await;
    let mut client = Client::new(&stage).await;
    let settled = client.call(&call(1, "echo")).await;
    server.request().await.answer(OK);
    assert_eq!(settled.whole().await.unwrap().0, 200);
    stage.forget_events();
    let first = client.call(&call(2, "echo")).await;
    let _asked = server.request().await;
    let mut others = Vec::new();
    for id in 3..=6 {
        others.push(client.call(&call(id, "echo")).await);
    }
    let intents = |events: &[Body<_>]| events.iter().filter(|e| matches!(e, Body::Intent(_))).count();
    stage.recorded(|events| (intents(events) == 5).then_some(())).await;
    server.die().await;
    assert!(first.whole().await.is_err());
    let mut dialled = stage.all_dialled();
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Some(stream) = dialled.recv().await {
            let mut server = Server::of(stream, &h2::server::Builder::new()).await;
            asked.push(tokio::spawn(async move {
                loop {
                    server.request().await.answer(OK);
                }
            }));
        }
    });
    let mut failed = 0;
    for other in others {
        failed += usize::from(other.whole().await.is_err());
    }
    serving.abort();
    // The one that waited at the server's door may have gone out, as far as anybody knows here.
    assert!(failed <= 1, "{failed}");
    let failures = |events: &[Body<_>]| {
        let is_failed =
            |e: &&Body<_>| matches!(e, Body::Outcome(o) if o.result == CallResult::UpstreamFailed);
        events.iter().filter(is_failed).count()
    };
    stage.recorded(|events| (failures(events) == 1 + failed).then_some(())).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_its_servers_room_keeps_no_other_waiting() {
    let mut stage = stage(HTTP2).await;
    let stream = stage.accept().await.0;
    let mut server = Server::of(stream, h2::server::Builder::new().max_concurrent_streams(1)).await;
    let mut client = Client::new(&stage).await;
    let settled = client.call(&call(1, "echo")).await;
    server.request().await.answer(OK);
    assert_eq!(settled.whole().await.unwrap().0, 200);
    let first = client.call(&call(2, "echo")).await;
    let mut asked = server.request().await;
    for _ in 0..3 {
        let (told, mut body) = client.ask(("POST", "/mcp"), &JSON, false).await;
        body.send_data(call(9, "echo").into(), true).unwrap();
        body.send_reset(Reason::CANCEL);
        drop(told);
    }
    let last = client.call(&call(3, "echo")).await;
    asked.answer(OK);
    assert_eq!(first.whole().await.unwrap().0, 200);
    loop {
        let mut asked = server.request().await;
        let body = soon(asked.body.data()).await;
        if body.is_some_and(|data| data.is_ok_and(|data| data == call(3, "echo"))) {
            asked.answer(OK);
            break;
        }
    }
    assert_eq!(last.whole().await.unwrap().0, 200);
    assert!(!stage.dialled_again());
}

#[tokio::test]
async fn a_tunnel_is_not_made_and_the_connection_lives_on() {
    let mut stage = stage(HTTP2).await;
    let mut server = Server::accept(&mut stage).await;
    let mut client = Client::new(&stage).await;
    let (told, mut through) = client.ask(("CONNECT", ""), &[], false).await;
    through.send_data(Bytes::from_static(b"\x16\x03"), false).unwrap();
    assert_eq!(told.answer().await.unwrap().status(), 501);
    let told = client.call(&call(1, "echo")).await;
    server.request().await.answer(OK);
    assert_eq!(told.whole().await.unwrap().0, 200);
    assert_eq!(stage.messages(MessageLabel::Unreadable, 1).await.len(), 1);
}

#[tokio::test]
async fn a_server_whose_heads_are_out_of_order_has_answered_nothing() {
    const HEADERS: u8 = 1;
    const ENDS_HEADERS: u8 = 4;
    const ENDS: u8 = 1;
    let status = |text: &[u8; 3]| [&[0x08, 3], text.as_slice()].concat();
    let data = frame(0, ENDS, 1, b"ab");
    let cases = [
        // What comes before an answer, as all of it.
        frame(HEADERS, ENDS_HEADERS | ENDS, 1, &status(b"103")),
        // A body behind it, and no answer.
        [frame(HEADERS, ENDS_HEADERS, 1, &status(b"103")), data.clone()].concat(),
        data,
        // An answer that changes the protocol.
        frame(HEADERS, ENDS_HEADERS | ENDS, 1, &status(b"101")),
        // No status, and one that is none.
        frame(HEADERS, ENDS_HEADERS | ENDS, 1, &[]),
        frame(HEADERS, ENDS_HEADERS | ENDS, 1, &status(b"099")),
    ];
    for said in cases {
        let mut stage = stage(HTTP2).await;
        let mut server = stage.accept().await;
        let mut client = Client::new(&stage).await;
        let told = client.call(&call(1, "echo")).await;
        server.say_bytes(&frame(4, 0, 0, &[])).await;
        server.say_bytes(&frame(4, 1, 0, &[])).await;
        // The stream is open when its call is here.
        let name = call(1, "echo");
        server.until_bytes(name.as_bytes()).await;
        server.say_bytes(&said).await;
        assert!(told.whole().await.is_err(), "{said:?}");
        assert_eq!(stage.outcome().await.result, CallResult::UpstreamFailed, "{said:?}");
    }
}
