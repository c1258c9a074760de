//! What a job may make the gate keep, and for how long; and that everything ends.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use weir::config::Limits;
use weir::http::Served;
use weir_core::record::{Body, CallResult, HoldEnd, MessageLabel};

use crate::REFUSED;
use crate::stage::{OK, Peer, Plan, SERVER, Stage, call, post, soon};

fn limits() -> Limits {
    Limits { request_body: 1000, message: 1000, buffered: 4000, holds: 2, ..Limits::default() }
}

const JSON: &str = "Content-Type: application/json";

#[tokio::test]
async fn a_body_at_its_limit_passes_and_one_past_it_does_not() {
    let mut stage = Stage::of(Plan { limits: limits(), ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let padded = |length: usize| call(1, "echo") + &" ".repeat(length - call(1, "echo").len());
    let answer = client.begin(post(padded(1000)));
    assert_eq!(server.request().await.1.len(), 1000);
    server.answer(OK).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
    let (status, _, text) = client.ask(post(padded(1001))).await;
    assert!(status == 400 && text.contains("over 1000 bytes"), "{text}");
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_job_that_keeps_half_of_the_memory_gets_no_more() {
    let mut stage = Stage::of(Plan { limits: limits(), ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let head = format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\n{JSON}\r\nContent-Length: 1000\r\n\r\n");
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let (mut stream, _) = stage.connect();
        soon(stream.write_all((head.clone() + &"x".repeat(999)).as_bytes())).await.unwrap();
        stalled.push(stream);
    }
    let refused = soon(async {
        loop {
            let (status, _, text) = stage.client().await.ask(post(call(1, "delete_repo"))).await;
            if status == 503 {
                return text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(refused.contains("no room"), "{refused}");
    drop(stalled);
    let (status, _, _) = soon(async {
        loop {
            let answer = stage.client().await.ask(post(call(1, "delete_repo"))).await;
            if answer.0 == 200 {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(status, 200);
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_body_that_pauses_is_given_up_and_so_is_a_head() {
    let limits = Limits {
        client_timeout: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
    let mut server = stage.accept().await;
    for (request, answer) in [
        (
            format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\n{JSON}\r\nContent-Length: 10\r\n\r\nabc"),
            "HTTP/1.1 408 ",
        ),
        ("POST /mcp HTTP/1.1\r\nHos".to_owned(), ""),
        (String::new(), ""),
    ] {
        let (mut stream, served) = stage.connect();
        soon(stream.write_all(request.as_bytes())).await.unwrap();
        let read = Peer::new(stream).closed().await;
        assert!(read.starts_with(answer) && read.is_empty() == answer.is_empty(), "{request}: {read}");
        assert_eq!(soon(served).await.unwrap(), Served::Closed);
    }
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_head_past_its_limit_is_refused() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let mut request = post(call(1, "echo"));
    request.headers_mut().insert("x-long", "x".repeat(weir::http::MAX_HEAD).parse().unwrap());
    assert_eq!(client.ask(request).await.0, 431);
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn an_event_past_the_limit_is_passed_on_and_said_to_be_unread() {
    let mut stage = Stage::of(Plan { limits: limits(), ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    let events = format!("data: {}\n\ndata: {OK}\n\n", "x".repeat(5000));
    server.say(&format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{events}")).await;
    drop(server);
    assert_eq!(soon(answer).await.unwrap().unwrap().1, events);
    assert_eq!(stage.outcome().await.result, CallResult::Ok);
    let unparsed = stage.messages(MessageLabel::Unparsed, 1).await;
    assert!(
        unparsed.len() == 1 && unparsed[0].is_empty(),
        "one word, and what is cut may be half a secret: {unparsed:?}"
    );
}

#[tokio::test]
async fn nobody_decides_and_the_hold_expires() {
    for accept in ["application/json, text/event-stream", "application/json"] {
        let plan = Plan { deadline: Duration::from_millis(100), ..Plan::default() };
        let mut stage = Stage::of(plan).await;
        let mut server = stage.accept().await;
        let mut request = post(call(1, "deploy"));
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let (status, headers, text) = stage.client().await.ask(request).await;
        assert!(status == 200 && text.contains(REFUSED) && text.contains("in time"), "{text}");
        assert_eq!(text.starts_with(": weir"), headers["content-type"] == "text/event-stream", "{text}");
        assert_eq!(stage.outcome().await.result, CallResult::Expired);
        assert!(stage.untouched(&mut server));
    }
}

#[tokio::test]
async fn a_collector_that_hangs_or_answers_nonsense_keeps_no_hold_beyond_its_deadline() {
    let nonsense = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"what\":1";
    let refusal = r#"{"reason":"malformed","message":"no"}"#;
    let refused = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{refusal}", refusal.len());
    for says in ["", nonsense, &refused, "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n{"] {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("collector.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (says, (asked, mut was_asked)) = (says.to_owned(), tokio::sync::mpsc::unbounded_channel());
        let collector = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = asked.send(());
                let _ = stream.write_all(says.as_bytes()).await;
                open.push(stream);
            }
        });
        let deadline = Duration::from_millis(300);
        let mut stage = Stage::of(Plan { collector: Some(socket), deadline, ..Plan::default() }).await;
        let gate = stage.gate.clone();
        let carrying = tokio::spawn(async move { gate.approvals.run().await });
        let mut server = stage.accept().await;
        let (_, _, text) = stage.client().await.ask(post(call(1, "deploy"))).await;
        assert!(text.contains("in time"), "{text}");
        assert_eq!(stage.outcome().await.result, CallResult::Expired);
        soon(was_asked.recv()).await.unwrap();
        assert!(stage.untouched(&mut server));
        carrying.abort();
        collector.abort();
    }
}

#[tokio::test]
async fn a_job_has_so_many_holds_and_each_ends_with_its_client() {
    let mut stage = Stage::of(Plan { limits: limits(), ..Plan::default() }).await;
    let mut server = stage.accept().await;
    for _ in 0..2 {
        let mut waiting = stage.client().await;
        let answer = waiting.begin(post(call(1, "deploy")));
        stage.recorded(|events| events.iter().any(|e| matches!(e, Body::Intent(_))).then_some(())).await;
        let refused = soon(async {
            loop {
                let (_, _, text) = stage.client().await.ask(post(call(2, "deploy"))).await;
                if text.contains("as many calls as may be") {
                    return text;
                }
            }
        });
        assert!(refused.await.contains(REFUSED));
        answer.abort();
        drop(waiting);
        let gone = |event: &Body<_>| matches!(event, Body::Decision(d) if d.decision == HoldEnd::ClientGone);
        stage.recorded(|events| events.iter().any(gone).then_some(())).await;
    }
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn the_end_closes_what_does_not_finish_and_the_record_of_it() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut held, mut streaming) = (stage.client().await, stage.client().await);
    let held = held.begin(post(call(1, "deploy")));
    let answer = streaming.begin(post(call(2, "echo")));
    server.request().await;
    server.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: waiting\n\n").await;
    stage
        .recorded(|events| {
            (events.iter().filter(|e| matches!(e, Body::Intent(_))).count() == 2).then_some(())
        })
        .await;
    let finished = soon(stage.gate.tasks.end(Duration::from_millis(50), Duration::from_secs(20))).await;
    assert!(!finished && soon(answer).await.unwrap().is_err());
    assert!(soon(held).await.unwrap().is_err());
    stage.gate.ledger.shutdown().await.unwrap();
    let ends: Vec<CallResult> = stage
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Body::Outcome(outcome) => Some(outcome.result),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [CallResult::Aborted, CallResult::Aborted]);
    assert_eq!(server.closed().await, "");
}

#[tokio::test]
async fn an_answers_head_past_its_limit_is_no_answer() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    let long = "x".repeat(weir::http::MAX_HEAD);
    server.say(&format!("HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: 0\r\n\r\n")).await;
    assert!(soon(answer).await.unwrap().is_err());
    assert_eq!(stage.outcome().await.result, CallResult::UpstreamFailed);
}
