//! What a client is told before its answer (1xx), over HTTP/1.1 and HTTP/2 on either side.

use bytes::Bytes;
use h2::Reason;
use tokio::io::AsyncWriteExt;
use weir::tls::{Protocol, Spoken};
use weir_core::record::CallResult;

use crate::peer2::{self, Asked, JSON, Told, all};
use crate::stage::{HTTP1, OK, Peer, Plan, SERVER, Stage, call, soon};

const HTTP2: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http2 };
const DOWN: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http1 };
const UP: Spoken = Spoken { by_client: Protocol::Http1, by_server: Protocol::Http2 };

async fn stage(spoken: Spoken) -> Stage {
    Stage::of(Plan { spoken, ..Plan::default() }).await
}

/// A server that has a request.
enum Answering {
    Http1(Peer),
    Http2(Box<Asked>, #[expect(dead_code, reason = "it drives the connection")] peer2::Server),
}

impl Answering {
    async fn next(stage: &mut Stage, by_server: Protocol) -> Self {
        match by_server {
            Protocol::Http1 => {
                let mut server = stage.accept().await;
                server.request().await;
                Self::Http1(server)
            }
            Protocol::Http2 => {
                let mut server = peer2::Server::accept(stage).await;
                Self::Http2(Box::new(server.request().await), server)
            }
        }
    }

    async fn say(&mut self, status: u16, link: &str) {
        match self {
            Self::Http1(server) => server.say(&format!("HTTP/1.1 {status} X\r\nlink: {link}\r\n\r\n")).await,
            Self::Http2(asked, _) => asked.say(status, &[("link", link)]),
        }
    }

    async fn answer(&mut self) {
        match self {
            Self::Http1(server) => server.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab").await,
            Self::Http2(asked, _) => {
                let mut stream = asked.begin(200, &[("content-length", "2")], false);
                stream.send_data(Bytes::from_static(b"ab"), true).unwrap();
            }
        }
    }
}

/// A client that waits for its answer.
enum Waiting {
    Http1(Peer),
    /// The connection ends with its client.
    Http2(Told, peer2::Client),
}

impl Waiting {
    async fn ask(stage: &Stage, by_client: Protocol) -> Self {
        match by_client {
            Protocol::Http1 => {
                let (mut stream, _served) = stage.connect();
                let request = format!("GET /page HTTP/1.1\r\nHost: {SERVER}\r\n\r\n");
                soon(stream.write_all(request.as_bytes())).await.unwrap();
                Self::Http1(Peer::new(stream))
            }
            Protocol::Http2 => {
                let mut client = peer2::Client::new(stage).await;
                let (told, _) = client.ask(("GET", "/page"), &[], true).await;
                Self::Http2(told, client)
            }
        }
    }

    /// The status and the link of the next head before the answer.
    async fn before(&mut self) -> (u16, String) {
        match self {
            Self::Http1(client) => {
                let head = client.until(b"\r\n\r\n").await;
                let link = head.lines().find_map(|line| line.strip_prefix("link: ")).unwrap();
                (head.split(' ').nth(1).unwrap().parse().unwrap(), link.to_owned())
            }
            Self::Http2(told, _) => {
                let head = told.before().await.expect("the answer came first");
                (head.status().as_u16(), head.headers()["link"].to_str().unwrap().to_owned())
            }
        }
    }

    async fn answer(self) -> String {
        match self {
            Self::Http1(mut client) => client.until(b"\r\n\r\nab").await,
            Self::Http2(mut told, _client) => {
                assert!(told.before().await.is_none());
                format!("{:?}", told.whole().await.unwrap())
            }
        }
    }
}

#[tokio::test]
async fn what_a_server_says_before_its_answer_reaches_the_client_whichever_http_either_speaks() {
    for spoken in [HTTP1, HTTP2, DOWN, UP] {
        let mut stage = stage(spoken).await;
        let mut client = Waiting::ask(&stage, spoken.by_client).await;
        let mut server = Answering::next(&mut stage, spoken.by_server).await;
        // When the client may go on Weir says itself.
        server.say(100, "</not>").await;
        for (status, link) in [(103, "</a.css>"), (102, "</b.css>"), (103, "</c.css>")] {
            server.say(status, link).await;
            assert_eq!(client.before().await, (status, link.to_owned()), "{spoken:?}");
        }
        server.answer().await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 ") || answer == r#"(200, "ab")"#, "{spoken:?} {answer}");
    }
}

#[tokio::test]
async fn a_client_of_http2_that_asks_first_is_told_once_to_go_on() {
    let said = call(1, "echo");
    for content_type in ["application/json", "text/plain"] {
        let mut stage = stage(DOWN).await;
        let mut client = peer2::Client::new(&stage).await;
        let headers = [("content-type", content_type), ("expect", "100-Continue")];
        let (mut told, mut body) = client.ask(("POST", "/mcp"), &headers, false).await;
        let go_on = told.before().await.expect("it was not told");
        assert_eq!((go_on.status().as_u16(), go_on.headers().len()), (100, 0));
        body.send_data(said.clone().into(), true).unwrap();
        let mut server = stage.accept().await;
        let (head, got) = server.request().await;
        assert!(got == said && !head.contains("expect"), "{head}");
        server.answer(OK).await;
        assert!(told.before().await.is_none());
        assert_eq!(told.whole().await.unwrap(), (200, OK.to_owned()));
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_before_a_body_that_streams() {
    let mut stage = stage(HTTP2).await;
    let mut client = peer2::Client::new(&stage).await;
    let headers = [("content-type", "text/plain"), ("expect", "100-continue")];
    let (mut told, mut body) = client.ask(("POST", "/upload"), &headers, false).await;
    assert_eq!(told.before().await.unwrap().status(), 100);
    body.send_data(Bytes::from_static(b"one "), false).unwrap();
    let mut server = peer2::Server::accept(&mut stage).await;
    let mut asked = server.request().await;
    assert!(!asked.head.headers.contains_key("expect"));
    body.send_data(Bytes::from_static(b"two"), true).unwrap();
    asked.say(103, &[("link", "</a.css>")]);
    assert_eq!(told.before().await.unwrap().status(), 103);
    asked.begin(200, &[], true);
    assert_eq!(all(asked.body).await.unwrap().0, b"one two");
    assert!(told.before().await.is_none());
    assert_eq!(told.whole().await.unwrap().0, 200);
}

#[tokio::test]
async fn who_is_refused_before_the_body_is_read_is_not_told_to_send_it() {
    let mut stage = stage(HTTP2).await;
    let server = peer2::Server::accept(&mut stage).await;
    let mut client = peer2::Client::new(&stage).await;
    let first = ("expect", "100-continue");
    for (header, status) in [(("content-encoding", "odd"), 415), (("host", "other.test"), 421)] {
        let (mut told, _body) = client.ask(("POST", "/mcp"), &[header, first], false).await;
        assert!(told.before().await.is_none());
        assert_eq!(told.answer().await.unwrap().status().as_u16(), status);
    }
    assert!(server.untouched());
}

#[tokio::test]
async fn of_what_is_said_before_an_answer_no_more_goes_on_than_a_head_may_have() {
    let most = weir::http::MAX_HEAD;
    let mut stage = stage(HTTP2).await;
    let mut server = peer2::Server::accept(&mut stage).await;
    let mut client = peer2::Client::new(&stage).await;
    let (mut told, _) = client.ask(("GET", "/page"), &[], true).await;
    let mut asked = server.request().await;
    let link = "x".repeat(most / 4);
    for _ in 0..64 {
        asked.say(103, &[("link", &link)]);
    }
    asked.begin(200, &[], true);
    let mut bytes = 0;
    while let Some(head) = told.before().await {
        bytes += head.headers()["link"].len();
    }
    assert_eq!(bytes, 3 * link.len());
    assert_eq!(told.whole().await.unwrap(), (200, String::new()));
}

#[tokio::test]
async fn nothing_that_frames_a_body_comes_before_an_answer() {
    let mut stage = stage(UP).await;
    let mut client = Waiting::ask(&stage, Protocol::Http1).await;
    let mut server = peer2::Server::accept(&mut stage).await;
    let mut asked = server.request().await;
    asked.say(103, &[("link", "</a.css>"), ("content-length", "0"), ("trailer", "x")]);
    let Waiting::Http1(peer) = &mut client else { unreachable!("it was asked for") };
    assert_eq!(peer.until(b"\r\n\r\n").await, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    asked.begin(200, &[("content-length", "2")], false).send_data(Bytes::from_static(b"ab"), true).unwrap();
    assert!(client.answer().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_told_something_takes_its_call_back() {
    let mut stage = stage(HTTP2).await;
    let mut server = peer2::Server::accept(&mut stage).await;
    let mut client = peer2::Client::new(&stage).await;
    let (mut told, mut body) = client.ask(("POST", "/mcp"), &JSON, false).await;
    body.send_data(call(1, "echo").into(), true).unwrap();
    let mut asked = server.request().await;
    asked.say(103, &[("link", "</a.css>")]);
    assert_eq!(told.before().await.unwrap().status(), 103);
    for _ in 0..8 {
        asked.say(103, &[("link", "</b.css>")]);
    }
    body.send_reset(Reason::CANCEL);
    assert_eq!(asked.reset().await, Reason::CANCEL);
    assert_eq!(stage.outcome().await.result, CallResult::ClientGone);
    // The connections live on.
    let told = client.call(&call(2, "echo")).await;
    server.request().await.answer(OK);
    assert_eq!(told.whole().await.unwrap().0, 200);
}
