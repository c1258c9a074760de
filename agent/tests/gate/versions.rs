//! HTTP/2 through the gate: with servers of either version, one connection's exchanges beside each other, its limits and its end.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use weir::config::Limits;
use weir::http::{Body, BodyError, Served, body_of_pieces, full};
use weir::tls::{Protocol, Spoken};
use weir_core::record::{CallResult, MessageLabel};

use crate::stage::{OK, Plan, SERVER, Stage, call, soon};

const HTTP2: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http2 };
const TRANSLATED: Spoken = Spoken { by_client: Protocol::Http2, by_server: Protocol::Http1 };

/// A request that came to the server, and where its answer goes.
type Asked = (Request<Incoming>, oneshot::Sender<Response<Body>>);

/// A server of HTTP/2 at the other end of a connection, which the test answers for.
fn server(stream: DuplexStream) -> (mpsc::UnboundedReceiver<Asked>, JoinHandle<hyper::Result<()>>) {
    let (asked, asks) = mpsc::unbounded_channel();
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(
        TokioIo::new(stream),
        service_fn(move |request| {
            let (sender, answer) = oneshot::channel();
            let _ = asked.send((request, sender));
            async move { answer.await.map_err(|_| BodyError("no answer".into())) }
        }),
    );
    (asks, tokio::spawn(connection))
}

async fn client(stage: &Stage) -> (SendRequest<Body>, JoinHandle<Served>) {
    let (stream, served) = stage.connect();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (sender, served)
}

fn post(body: Body) -> Request<Body> {
    Request::post(format!("https://{SERVER}/mcp"))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body)
        .unwrap()
}

fn json(text: &'static str) -> Response<Body> {
    Response::builder().header("content-type", "application/json").body(full(text)).unwrap()
}

async fn text(body: Incoming) -> String {
    String::from_utf8(soon(body.collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn stage(spoken: Spoken, limits: Limits) -> Stage {
    Stage::of(Plan { spoken, limits, ..Plan::default() }).await
}

#[tokio::test]
async fn exchanges_of_one_connection_go_beside_each_other_over_one_connection() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, _served) = client(&stage).await;
    let mut ask = |n| (u64::from(n), sender.send_request(post(full(call(n, "echo")))));
    let mut answers: BTreeMap<u64, _> = (1..=3_u32).map(&mut ask).collect();
    // In whatever order they come.
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(soon(asks.recv()).await.unwrap());
    }
    // The last is answered first.
    for (request, reply) in asked.into_iter().rev() {
        let (head, body) = request.into_parts();
        assert_eq!((head.version, head.uri.host()), (Version::HTTP_2, Some(SERVER)));
        assert!(!head.headers.contains_key("host") && !head.headers.contains_key("connection"));
        let sent: serde_json::Value = serde_json::from_str(&text(body).await).unwrap();
        let id = sent["id"].as_u64().unwrap();
        let said = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"n":{id}}}}}"#);
        let body = full(said.clone());
        let _ =
            reply.send(Response::builder().header("content-type", "application/json").body(body).unwrap());
        let answer = answers.remove(&id).expect("it was asked once");
        let (head, body) = soon(answer).await.unwrap().into_parts();
        assert_eq!((head.status, text(body).await), (StatusCode::OK, said));
    }
    assert!(!stage.dialled_again());
    let ok = |events: &[weir_core::record::Body<_>]| {
        let is_ok = |event: &&weir_core::record::Body<_>| matches!(event, weir_core::record::Body::Outcome(outcome) if outcome.result == CallResult::Ok);
        (events.iter().filter(is_ok).count() == 3).then_some(())
    };
    stage.recorded(ok).await;
}

#[tokio::test]
async fn a_denied_call_is_refused_and_an_authority_that_differs_gets_421() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, _served) = client(&stage).await;
    let answer = soon(sender.send_request(post(full(call(7, "delete_repo"))))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let told = text(answer.into_body()).await;
    assert!(told.contains("-31403") && told.contains(r#""id":7"#), "{told}");
    let elsewhere = [
        Request::post("https://other.test/mcp").body(full(call(1, "echo"))).unwrap(),
        Request::post(format!("https://{SERVER}/mcp"))
            .header("host", "other.test")
            .body(full(call(1, "echo")))
            .unwrap(),
    ];
    for request in elsewhere {
        let answer = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    }
    assert_eq!(stage.messages(MessageLabel::Misdirected, 2).await.len(), 2);
    assert!(asks.try_recv().is_err());
}

#[tokio::test]
async fn a_client_of_http2_reaches_a_server_of_http1_with_each_exchange_on_a_connection_of_its_own() {
    let mut stage = stage(TRANSLATED, Limits::default()).await;
    let mut first = stage.accept().await;
    let (mut sender, _served) = client(&stage).await;
    let mut request = post(full(call(1, "echo")));
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    let one = sender.send_request(request);
    let (head, body) = first.request().await;
    assert!(head.starts_with("post /mcp http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {SERVER}\r\n")) && head.contains("cookie: a=1; b=2\r\n"), "{head}");
    assert_eq!(body, call(1, "echo"));
    // The first is not answered yet.
    let two = sender.send_request(post(full(call(2, "echo"))));
    let mut second = stage.accept().await;
    second.request().await;
    second.answer(&OK.replace("\"id\":1", "\"id\":2")).await;
    assert_eq!(soon(two).await.unwrap().status(), StatusCode::OK);
    first.answer(OK).await;
    assert_eq!(text(soon(one).await.unwrap().into_body()).await, OK);
    assert!(!stage.dialled_again());
}

#[tokio::test]
async fn trailers_and_streams_go_both_ways() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, _served) = client(&stage).await;
    let (said, body) = body_of_pieces();
    let request = Request::post(format!("https://{SERVER}/grpc"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = sender.send_request(request);
    // The client says nothing before it has the head of its answer.
    let (request, reply) = soon(asks.recv()).await.unwrap();
    assert_eq!(request.headers()["te"], "trailers");
    let (answers, answer_body) = body_of_pieces();
    let _ = reply.send(Response::new(answer_body));
    let (_, mut answer) = soon(answer).await.unwrap().into_parts();
    let mut request = request.into_body();
    for n in [b'1', b'2'] {
        said.send(Frame::data(Bytes::copy_from_slice(&[0, n]))).await.unwrap();
        assert_eq!(soon(request.frame()).await.unwrap().unwrap().into_data().unwrap()[1], n);
        answers.send(Frame::data(Bytes::copy_from_slice(&[0, n]))).await.unwrap();
        assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap()[1], n);
    }
    said.end().await;
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]);
    answers.send(Frame::trailers(trailers.clone())).await.unwrap();
    answers.end().await;
    assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert_eq!(stage.messages(MessageLabel::Http, 1).await, ["POST /grpc -> 200"]);
}

#[tokio::test]
async fn a_client_that_takes_one_exchange_back_leaves_the_others() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, _served) = client(&stage).await;
    let taken_back = tokio::spawn(sender.send_request(post(full(call(1, "echo")))));
    let (_first, mut reply) = soon(asks.recv()).await.unwrap();
    let other = sender.send_request(post(full(call(2, "echo"))));
    let (_second, other_reply) = soon(asks.recv()).await.unwrap();
    taken_back.abort();
    // The server sees it.
    soon(reply.closed()).await;
    let _ = other_reply.send(json(r#"{"jsonrpc":"2.0","id":2,"result":{}}"#));
    assert_eq!(soon(other).await.unwrap().status(), StatusCode::OK);
    let gone = |events: &[weir_core::record::Body<_>]| {
        let is_gone = |event: &weir_core::record::Body<_>| matches!(event, weir_core::record::Body::Outcome(outcome) if outcome.result == CallResult::ClientGone);
        events.iter().any(is_gone).then_some(())
    };
    stage.recorded(gone).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_open_ends_at_the_limit_and_one_with_a_stream_does_not() {
    let idle = Duration::from_millis(100);
    let mut stage =
        stage(HTTP2, Limits { idle_timeout: idle, client_timeout: idle, ..Limits::default() }).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, served) = client(&stage).await;
    let stream = Request::get(format!("https://{SERVER}/mcp")).body(full("")).unwrap();
    let answer = sender.send_request(stream);
    let (_, reply) = soon(asks.recv()).await.unwrap();
    let (events, body) = body_of_pieces();
    let _ = reply.send(Response::builder().header("content-type", "text/event-stream").body(body).unwrap());
    let (_, mut answer) = soon(answer).await.unwrap().into_parts();
    // For much longer than the limit.
    tokio::time::sleep(idle * 4).await;
    assert!(!served.is_finished());
    events.send(Frame::data(Bytes::from_static(b": still there\n\n"))).await.unwrap();
    assert!(soon(answer.frame()).await.unwrap().is_ok());
    events.end().await;
    assert!(soon(answer.collect()).await.unwrap().to_bytes().is_empty());
    assert_eq!(soon(served).await.unwrap(), Served::Closed);
}

#[tokio::test]
async fn when_the_agent_retires_the_client_is_told_and_what_is_open_goes_on() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, served) = client(&stage).await;
    let open = sender.send_request(post(full(call(1, "echo"))));
    let (_, reply) = soon(asks.recv()).await.unwrap();
    stage.gate.tasks.retire();
    let _ = reply.send(json(OK));
    assert_eq!(text(soon(open).await.unwrap().into_body()).await, OK);
    assert_eq!(soon(served).await.unwrap(), Served::Closed);
    assert!(soon(sender.ready()).await.is_err() || soon(sender.send_request(post(full("")))).await.is_err());
}

#[tokio::test]
async fn a_head_past_the_limit_is_refused_in_http2_too() {
    let mut stage = stage(HTTP2, Limits::default()).await;
    let (mut asks, _running) = server(stage.accept().await.0);
    let (mut sender, _served) = client(&stage).await;
    let mut request = post(full(call(1, "echo")));
    request.headers_mut().insert("x-long", "x".repeat(weir::http::MAX_HEAD).parse().unwrap());
    let answer = soon(sender.send_request(request)).await;
    assert!(answer.is_err() || answer.unwrap().status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert!(asks.try_recv().is_err());
}
