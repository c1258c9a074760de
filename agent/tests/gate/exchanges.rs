//! HTTP as clients and servers speak it, through the gate: what one may rely on, and what must not get through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use tokio::io::AsyncWriteExt;
use weir::http::Served;
use weir::ledger::Clock;
use weir_core::record::{AgentEvent, CallResult};

use crate::stage::{OK, Peer, Plan, SERVER, Stage, call, post, soon};

#[tokio::test]
async fn a_connection_carries_one_exchange_after_the_other() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let cases = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", 200, ""),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\netag: \"x\"\r\n\r\n", 304, ""),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, "abc"),
        (
            "GET",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            200,
            "abc",
        ),
        ("DELETE", "HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 2\r\n\r\nno", 405, "no"),
    ];
    for (method, said, status, body) in cases {
        let request = Request::builder().method(method).uri("/mcp").header("host", SERVER);
        let answer = client.begin(request.body(Default::default()).unwrap());
        server.request().await;
        server.say(said).await;
        let (told, text) = soon(answer).await.unwrap().unwrap();
        assert_eq!((told.as_u16(), text.as_str()), (status, body), "{said}");
    }
    let (head, _) = {
        let answer = client.begin(post(call(1, "echo")));
        let request = server.request().await;
        server.answer(OK).await;
        assert_eq!(soon(answer).await.unwrap().unwrap().1, OK);
        request
    };
    assert!(head.starts_with("post /mcp http/1.1\r\n") && head.contains("\r\ncontent-length: "), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
}

#[tokio::test]
async fn an_answer_of_http_1_0_is_whole_when_its_connection_closes() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    server.say(&format!("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{OK}")).await;
    drop(server);
    assert_eq!(soon(answer).await.unwrap().unwrap().1, OK);
    // The client's connection lives on, and the server is dialled again.
    let answer = client.begin(post(call(1, "echo")));
    let mut server = stage.accept().await;
    server.request().await;
    server.answer(OK).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().1, OK);
}

#[tokio::test]
async fn a_server_that_closed_between_two_requests_is_dialled_again_and_asked_once() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    for _ in 0..3 {
        let answer = client.begin(post(call(1, "echo")));
        server.request().await;
        server.answer(OK).await;
        assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
        drop(server);
        let answer = client.begin(post(call(1, "echo")));
        server = stage.accept().await;
        assert!(server.request().await.1.contains("echo"));
        server.answer(OK).await;
        assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
        assert!(stage.untouched(&mut server));
    }
}

#[tokio::test]
async fn a_connection_that_its_server_closes_between_two_requests_is_let_go_before_the_next() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    server.answer(OK).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
    server.leave().await;
    assert_eq!(server.closed().await, "");
    assert!(!stage.dialled_again());
}

#[tokio::test]
async fn a_request_whose_server_closed_after_reading_it_is_not_sent_again() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    drop(server);
    assert!(soon(answer).await.unwrap().is_err());
    assert_eq!(stage.outcome().await.result, CallResult::UpstreamFailed);
    assert!(!stage.dialled_again());
}

/// What the gate answers to a request's bytes, until it closes; and whether the server saw any of it.
async fn raw(stage: &mut Stage, server: &mut Peer, request: &str) -> (String, bool) {
    let (mut stream, served) = stage.connect();
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    let read = Peer::new(stream).closed().await;
    soon(served).await.unwrap();
    (read, !stage.untouched(server))
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_never_reaches_the_server() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let denied = call(1, "delete_repo");
    let (host, length) = (format!("Host: {SERVER}"), format!("Content-Length: {}", denied.len()));
    let json = "Content-Type: application/json";
    let requests = [
        format!("POST /mcp HTTP/1.1\r\n{host}\r\n{length}\r\nContent-Length: 3\r\n\r\n{denied}"),
        format!("POST /mcp HTTP/1.1\r\n{host}\r\n{length}, 3\r\n\r\n{denied}"),
        format!("POST /mcp HTTP/1.1\r\n{host}\r\nContent-Length: +{}\r\n\r\n{denied}", denied.len()),
        format!(
            "POST /mcp HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked, identity\r\n{length}\r\n\r\n{denied}"
        ),
        format!("POST /mcp HTTP/1.0\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!(
            "POST /mcp HTTP/1.1\r\n{host} \r\n{json}\r\nContent-Encoding: identity\r\nContent-Encoding: gzip\r\n{length}\r\n\r\n{denied}"
        ),
        format!("POST /mcp HTTP/1.1\r\nHost : {SERVER}\r\n{length}\r\n\r\n{denied}"),
        format!("CONNECT {SERVER}:443 HTTP/1.1\r\n{host}\r\n\r\n"),
        format!(
            "POST /mcp HTTP/1.1\r\nHost: user@{SERVER}\r\n{json}\r\n{length}\r\n\r\n{}",
            call(1, "echo    ")
        ),
        format!("POST https://other.test/mcp HTTP/1.1\r\n{host}\r\n{json}\r\n{length}\r\n\r\n{denied}"),
        format!("POST /mcp HTTP/1.1\r\n{json}\r\n{length}\r\n\r\n{denied}"),
        "\r\n\r\n\0\0\0".to_owned(),
    ];
    for request in requests {
        let (answer, reached) = raw(&mut stage, &mut server, &request).await;
        assert!(!reached, "{request}\n{answer}");
        assert!(!answer.starts_with("HTTP/1.1 2"), "{request}\n{answer}");
    }
}

#[tokio::test]
async fn the_length_that_goes_upstream_is_the_bodys() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let body = call(1, "echo");
    let chunked = format!("{:x}\r\n{body}\r\n0\r\nX-Trailer: 1\r\n\r\n", body.len());
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: keep-alive, Host, Content-Length, X-Own\r\nX-Own: 1\r\n\r\n{chunked}"
    );
    let (mut stream, _served) = stage.connect();
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let (head, got) = server.request().await;
    assert_eq!(got, body);
    let lengths: Vec<_> = head.lines().filter(|line| line.starts_with("content-length")).collect();
    assert_eq!(lengths, [format!("content-length: {}", body.len())]);
    assert!(head.contains(&format!("host: {SERVER}\r\n")), "{head}");
    assert!(!head.contains("x-own") && !head.contains("trailer") && !head.contains("transfer-"), "{head}");
    server.answer(OK).await;
    let mut peer = Peer::new(stream);
    assert!(peer.until(b"}}").await.ends_with(OK));
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (stream, _served) = stage.connect();
    let mut peer = Peer::new(stream);
    let body = call(1, "echo");
    peer.say(&format!(
        "POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    ))
    .await;
    assert_eq!(peer.until(b"\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    peer.say(&body).await;
    let (head, got) = server.request().await;
    assert!(got == body && !head.contains("expect"), "{head}");
    server.answer(OK).await;
    assert!(peer.until(b"}}").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_client_of_http_1_0_is_answered_and_its_connection_closed() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, served) = stage.connect();
    let body = call(1, "echo");
    let request = format!(
        "POST /mcp HTTP/1.0\r\nHost: {SERVER}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    server.request().await;
    server
        .say(&format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{OK}\r\n0\r\n\r\n",
            OK.len()
        ))
        .await;
    let read = Peer::new(stream).closed().await;
    assert!(read.ends_with(&format!("\r\n\r\n{OK}")) && !read.contains("chunked"), "{read}");
    assert_eq!(soon(served).await.unwrap(), Served::Closed);
}

#[tokio::test]
async fn what_a_server_says_before_its_answer_reaches_the_client_before_it() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    for (version, told) in [("1.1", true), ("1.0", false)] {
        let (mut stream, _served) = stage.connect();
        let request = format!("GET /page HTTP/{version}\r\nHost: {SERVER}\r\n\r\n");
        soon(stream.write_all(request.as_bytes())).await.unwrap();
        server.request().await;
        server.say("HTTP/1.1 103 Early Hints\r\nlink: </x.css>; rel=preload\r\n\r\n").await;
        let mut client = Peer::new(stream);
        if told {
            let hints = client.until(b"\r\n\r\n").await;
            assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </x.css>; rel=preload\r\n\r\n");
        }
        server.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab").await;
        let answer = client.until(b"\r\n\r\nab").await;
        assert!(answer.starts_with(&format!("HTTP/{version} 200 ")), "{answer}");
    }
}

#[tokio::test]
async fn half_a_connection_is_enough_for_an_exchange_that_is_no_call() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, served) = stage.connect();
    let request = format!("POST /form HTTP/1.1\r\nHost: {SERVER}\r\nContent-Length: 3\r\n\r\na=1");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    server.until(b"a=1").await;
    server.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab").await;
    assert!(Peer::new(stream).closed().await.ends_with("\r\n\r\nab"));
    assert_eq!(soon(served).await.unwrap(), Served::Closed);
    // One that has not said all it announced is not there any more.
    let (mut stream, served) = stage.connect();
    soon(stream.write_all(request.trim_end_matches("=1").as_bytes())).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    assert_eq!(soon(served).await.unwrap(), Served::Broken);
}

#[tokio::test]
async fn a_client_that_closes_its_half_takes_its_call_back() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, _served) = stage.connect();
    let body = call(1, "echo");
    let head = format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nContent-Length: {}\r\n\r\n", body.len());
    soon(stream.write_all(format!("{head}{body}").as_bytes())).await.unwrap();
    server.request().await;
    soon(stream.shutdown()).await.unwrap();
    assert_eq!(server.closed().await, "");
    assert_eq!(stage.outcome().await.result, CallResult::ClientGone);
}

#[tokio::test]
async fn an_answer_that_could_be_read_in_two_ways_is_refused_and_named() {
    for (said, label) in [
        (
            "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "length_and_chunked",
        ),
        ("content-length: 3\r\ncontent-length: 5\r\n\r\nabcde", "length_repeated"),
        ("x: 1\r\n folded\r\ncontent-length: 2\r\n\r\nab", "obs_fold"),
        ("x: 1\ncontent-length: 2\r\n\r\nab", "bare_lf"),
    ] {
        let mut stage = Stage::new().await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let answer = client.begin(post(call(1, "echo")));
        server.request().await;
        server.say(&format!("HTTP/1.1 200 OK\r\n{said}")).await;
        assert!(soon(answer).await.unwrap().is_err(), "{label}");
        let outcome = stage.outcome().await;
        assert_eq!(outcome.result, CallResult::UpstreamFailed);
        assert!(outcome.payload.text.as_str().contains(label), "{:?}", outcome.payload);
    }
}

#[tokio::test]
async fn how_long_a_call_took_is_right_when_the_wall_clock_is_set_meanwhile() {
    const HOUR_US: u64 = 3_600_000_000;
    const BEGAN_US: u64 = 1_795_300_000_000_000;
    for set_to in
        [BEGAN_US - 8760 * HOUR_US, BEGAN_US - HOUR_US, BEGAN_US + HOUR_US, BEGAN_US + 8760 * HOUR_US]
    {
        let wall_us = Arc::new(AtomicU64::new(BEGAN_US));
        let read = wall_us.clone();
        let clock: Clock = Arc::new(move || read.load(Ordering::SeqCst));
        let mut stage = Stage::of(Plan { clock, ..Plan::default() }).await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let before = Instant::now();
        let answer = client.begin(post(call(1, "echo")));
        server.request().await;
        let open = Instant::now();
        wall_us.store(set_to, Ordering::SeqCst);
        // Any other event: the ledger sees the clock.
        stage.gate.ledger.write(AgentEvent { name: "meanwhile".into(), detail: [].into() }).await.unwrap();
        let least = open.elapsed();
        server.answer(OK).await;
        soon(answer).await.unwrap().unwrap();
        let took = Duration::from_micros(stage.outcome().await.duration_us.unwrap());
        // It is told in whole microseconds.
        assert!(took + Duration::from_micros(1) >= least && took <= before.elapsed(), "{least:?} {took:?}");
    }
}
