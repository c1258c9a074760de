//! The first revision's HTTP+SSE: what is posted is answered on a stream of its own, whose end is the session's.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::script::{request, result, told};
use crate::stage::{Peer, SERVER, Stage, call, post, soon};

/// A legacy session: the client's stream, the server's end of it, and where to post.
async fn legacy(stage: &mut Stage) -> (Peer, Peer) {
    let mut server = stage.accept().await;
    let (client, _served) = stage.connect();
    let mut client = Peer::new(client);
    client.say(&format!("GET /sse HTTP/1.1\r\nhost: {SERVER}\r\naccept: text/event-stream\r\n\r\n")).await;
    server.request().await;
    server.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    server.say("event: endpoint\r\ndata: /messages/?session_id=0123456789abcdef\r\n\r\n").await;
    client.until(b"cdef\r\n\r\n").await;
    (client, server)
}

fn posted(body: &str) -> Request<Full<Bytes>> {
    let mut request = post(body.to_owned());
    *request.uri_mut() = "/messages/?session_id=0123456789abcdef".parse().unwrap();
    request
}

#[tokio::test]
async fn a_legacy_servers_answers_close_their_calls_in_any_order_and_its_end_closes_the_rest() {
    let mut stage = Stage::new().await;
    let (mut stream, mut pushes) = legacy(&mut stage).await;
    stage.another_flow().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let bodies = [call(1, "echo"), call(2, "echo"), request("\"1\"", "ping", "{}"), call(3, "slow")];
    for (at, body) in bodies.iter().enumerate() {
        let answered = client.begin(posted(body));
        server.request().await;
        if at == 1 {
            // The answer may be here before the post is accepted.
            pushes.say(&format!("event: message\r\ndata: {}\r\n\r\n", result("2", "{}"))).await;
            stream.until(b"}}\r\n\r\n").await;
        }
        server.say("HTTP/1.1 202 Accepted\r\ncontent-length: 8\r\n\r\nAccepted").await;
        assert_eq!(soon(answered).await.unwrap().unwrap().0, 202);
    }
    let sampling = request("1", "sampling/createMessage", "{}");
    for answer in [result("\"1\"", "{}"), sampling, result("1", r#"{"isError":true}"#), result("1", "{}")] {
        pushes.say(&format!("event: message\r\ndata: {answer}\r\n\r\n")).await;
        stream.until(b"\r\n\r\n").await;
    }
    drop(pushes);
    let expected = [
        "< http",
        "> http",
        "c1 tools/call echo 1 in",
        "c2 tools/call echo 2 in",
        "c2 = ok",
        "c3 ping \"1\" in",
        "c4 tools/call slow 3 in",
        "c3 = ok",
        "< request sampling/createMessage 1 m1",
        "c1 = tool_error",
        "< repeated_response 1 of c1",
    ];
    let lines = stage.recorded(|events| Some(told(events)).filter(|told| told.len() > expected.len())).await;
    let (last, lines) = lines.split_last().unwrap();
    let mut lines = lines.to_vec();
    lines[..2].sort_unstable();
    assert_eq!(lines, expected);
    // How a connection ends that nobody ends properly.
    assert!(["c4 = upstream_failed", "c4 = unanswered"].contains(&last.as_str()), "{last}");
}

#[tokio::test]
async fn what_weir_says_on_a_legacy_stream_goes_between_the_servers_events() {
    let mut stage = Stage::new().await;
    let (mut stream, mut pushes) = legacy(&mut stage).await;
    let mut parts = posted("{}").into_parts().0;
    let session = stage.gate.session_of(&stage.flow, &parts);
    parts.uri = "/messages/?session_id=another".parse().unwrap();
    assert!(stage.gate.session_of(&stage.flow, &parts).stream().is_none());
    let writer = session.stream().expect("an open stream");
    pushes.say("event: message\r\ndata: {\"jsonrpc\":\"2.0\",").await;
    stream.until(b"2.0\",").await;
    let says = tokio::spawn(async move { writer.say("event: message\ndata: weir\n\n".into()).await });
    pushes.say("\"method\":\"x\"}\r\n\r\n").await;
    assert_eq!(stream.until(b"weir\n\n").await.matches("\r\n\r\n").count(), 1);
    assert_eq!(soon(says).await.unwrap(), Ok(()));
    drop(pushes);
    stream.until(b"\r\n0\r\n\r\n").await;
    assert!(session.stream().is_none(), "nothing can be said on a stream that is over");
}
