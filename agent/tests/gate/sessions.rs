//! Sessions: what each message belongs to, in every revision, over whichever stream it comes. The exchanges are written
//! after the revisions' schemas; what is recorded of them is told in one line each.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use weir::config::Limits;
use weir_core::mask::Masked;
use weir_core::record::{Body, CallResult, Direction, MessageLabel, Unread};

use crate::stage::{Peer, Plan, SERVER, Stage, call, post, soon};

/// What was recorded, each thing in a line. Calls and server's requests are numbered as they come.
fn told(events: &[Body<Masked<String>>]) -> Vec<String> {
    let (mut calls, mut asked) = (HashMap::new(), HashMap::new());
    let mut lines = Vec::new();
    for event in events {
        let (mut line, marks) = match event {
            Body::Intent(intent) => {
                let next = calls.len() + 1;
                calls.insert(intent.call_id.clone(), next);
                let mcp = &intent.mcp;
                let mut line = format!("c{next} {}", mcp.method.as_str());
                for part in [&mcp.tool, &mcp.request_id, &mcp.protocol_version] {
                    line += &part.as_ref().map_or_else(String::new, |part| format!(" {}", part.as_str()));
                }
                line += if mcp.session.is_some() { " in" } else { "" };
                (line, &mcp.marks)
            }
            Body::Outcome(outcome) => {
                let mut line = format!("c{} = {}", calls[&outcome.call_id], outcome.result.as_str());
                line += &outcome.unread.map_or_else(String::new, |why| format!(" {}", why.as_str()));
                (line, &outcome.marks)
            }
            Body::Message(message) => {
                let way = if message.direction == Direction::ClientToServer { ">" } else { "<" };
                let mut line = format!("{way} {}", message.label.as_str());
                if !message.method.is_empty() {
                    line += &format!(" {}", message.method.as_str());
                }
                line +=
                    &message.request_id.as_ref().map_or_else(String::new, |id| format!(" {}", id.as_str()));
                if let Some(id) = &message.message_id {
                    let next = asked.len() + 1;
                    asked.insert(id.clone(), next);
                    line += &format!(" m{next}");
                }
                if let Some(id) = &message.answers {
                    line += &format!(" to m{}", asked[id]);
                }
                if let Some(call) = &message.call_id {
                    line += &format!(" of c{}", calls[call]);
                }
                (line, &message.marks)
            }
            _ => continue,
        };
        if let Some(call) = &marks.regards {
            line += &format!(" regards c{}", calls[call]);
        }
        if let Some(id) = &marks.regards_message {
            line += &format!(" regards m{}", asked[id]);
        }
        line += if marks.tool_digest.is_some() { " listed" } else { "" };
        line += if marks.begins_session.is_some() { " begins" } else { "" };
        line += if marks.task.is_some() { " task" } else { "" };
        line += &marks.result_type.as_ref().map_or_else(String::new, |kind| format!(" {}", kind.as_str()));
        line += &marks.odd.iter().map(|odd| format!(" {}!", odd.as_str())).collect::<String>();
        lines.push(line);
    }
    lines
}

/// One exchange: a request's body (a GET or DELETE without one), and what the server answers.
struct Said {
    request: Request<Full<Bytes>>,
    answer: String,
}

fn json(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn events(data: &[&str]) -> String {
    let body: String = data.iter().map(|data| format!("event: message\ndata: {data}\n\n")).collect();
    stream(&body)
}

fn stream(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn accepted() -> String {
    "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".into()
}

fn asks(method: &str, session: &str, version: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri("/mcp").header("host", SERVER);
    for (name, value) in [("mcp-session-id", session), ("mcp-protocol-version", version)] {
        request = if value.is_empty() { request } else { request.header(name, value) };
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let request = request.header("accept", "application/json, text/event-stream");
    request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

fn request(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

fn notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}

fn result(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

fn initialize(version: &str) -> String {
    let params = format!(
        r#"{{"protocolVersion":"{version}","capabilities":{{}},"clientInfo":{{"name":"c","version":"1"}}}}"#
    );
    request("0", "initialize", &params)
}

fn initialized(version: &str) -> String {
    let text = format!(
        r#"{{"protocolVersion":"{version}","capabilities":{{}},"serverInfo":{{"name":"s","version":"1"}}}}"#
    );
    json(&result("0", &text)).replacen("\r\n", "\r\nMcp-Session-Id: s3cret\r\n", 1)
}

const TOOLS: &str = r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#;

/// Plays the exchanges one after the other; gives what was recorded, once it is as much as is expected.
async fn played(exchanges: Vec<Said>, lines: usize) -> Vec<String> {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    for Said { request, answer } in exchanges {
        let answered = client.begin(request);
        server.request().await;
        server.say(&answer).await;
        soon(answered).await.unwrap().unwrap();
    }
    stage.recorded(|events| Some(told(events)).filter(|told| told.len() >= lines)).await
}

#[tokio::test]
async fn each_revisions_messages_find_what_they_belong_to() {
    let said = |version: &str, body: &str, answer: String| Said {
        request: asks("POST", "s3cret", version, body),
        answer,
    };
    let begun = |version: &str| {
        let version_header = if version == "2025-03-26" { "" } else { version };
        vec![
            Said { request: asks("POST", "", "", &initialize(version)), answer: initialized(version) },
            said(version_header, &notification("notifications/initialized", "{}"), accepted()),
            said(version_header, &request("1", "tools/list", "{}"), json(&result("1", TOOLS))),
        ]
    };
    let beginning = |version: &str| {
        [
            format!("c1 initialize 0 {version}"),
            "c1 = ok begins".into(),
            format!("c2 notifications/initialized {version} in"),
            "c2 = ok".into(),
            format!("c3 tools/list 1 {version} in"),
            "c3 = ok".into(),
        ]
    };

    let batch = format!("[{},{}]", call(2, "echo"), request("\"2\"", "ping", "{}"));
    let batched = format!("[{},{}]", result("\"2\"", "{}"), result("2", r#"{"content":[]}"#));
    let progress = notification("notifications/progress", r#"{"progressToken":"p","progress":1}"#);
    let sampling = request(
        "1",
        "sampling/createMessage",
        r#"{"messages":[],"maxTokens":1,"_meta":{"progressToken":9}}"#,
    );
    let asking = request("2", "tools/call", r#"{"name":"echo","_meta":{"progressToken":"p"}}"#);

    // 2025-03-26: a batch, answered out of order, with ids that differ in their type alone.
    let mut exchanges = begun("2025-03-26");
    exchanges.push(said("", &batch, json(&batched)));
    exchanges.push(Said { request: asks("DELETE", "s3cret", "", ""), answer: accepted() });
    let mut expected = beginning("2025-03-26").to_vec();
    expected.extend(
        [
            "c4 tools/call echo 2 2025-03-26 in listed",
            "c5 ping \"2\" 2025-03-26 in",
            "c5 = ok",
            "c4 = ok",
            "> http",
        ]
        .map(str::to_owned),
    );
    assert_eq!(played(exchanges, expected.len()).await, expected);

    // 2025-06-18: the server asks back; the answers come in posts of their own, one of them twice.
    let mut exchanges = begun("2025-06-18");
    let elicit = request(
        "\"1\"",
        "elicitation/create",
        r#"{"message":"m","requestedSchema":{"type":"object","properties":{}}}"#,
    );
    let answer = [&progress, &sampling, &elicit, &result("2", r#"{"content":[],"isError":true}"#)];
    exchanges.push(said("2025-06-18", &asking, events(&answer.map(String::as_str))));
    for body in [
        notification("notifications/progress", r#"{"progressToken":9,"progress":1}"#),
        result("1", r#"{"role":"assistant","model":"m","content":{"type":"text","text":"t"}}"#),
        result("\"1\"", r#"{"action":"decline"}"#),
        result("1", "{}"),
        result("5", "{}"),
    ] {
        exchanges.push(said("2025-06-18", &body, accepted()));
    }
    let mut expected = beginning("2025-06-18").to_vec();
    expected.extend(
        [
            "c4 tools/call echo 2 2025-06-18 in listed",
            "< notification notifications/progress of c4",
            "< request sampling/createMessage 1 m1 of c4",
            "< request elicitation/create \"1\" m2 of c4",
            "c4 = tool_error",
            "c5 notifications/progress 2025-06-18 in regards m1",
            "c5 = ok",
            "> response sampling/createMessage 1 to m1 of c4",
            "> response elicitation/create \"1\" to m2 of c4",
            "> repeated_response sampling/createMessage 1 to m1 of c4",
            "> unasked_response 5",
        ]
        .map(str::to_owned),
    );
    assert_eq!(played(exchanges, expected.len()).await, expected);

    // 2025-11-25: the server closes the stream, the client takes it up again; tasks; a response that comes twice.
    let mut exchanges = begun("2025-11-25");
    exchanges.push(said("2025-11-25", &asking, stream("id: a-1\nretry: 10\ndata: \n\n")));
    let resumed = format!(
        "id: a-2\ndata: {progress}\n\nid: a-3\ndata: {0}\n\ndata: {0}\n\n",
        result("2", r#"{"content":[]}"#)
    );
    let mut get = asks("GET", "s3cret", "2025-11-25", "");
    get.headers_mut().insert("last-event-id", "a-1".parse().unwrap());
    exchanges.push(Said { request: get, answer: stream(&resumed) });
    let task =
        r#"{"task":{"taskId":"t1","status":"working","createdAt":"x","lastUpdatedAt":"x","ttl":null}}"#;
    let long = request("3", "tools/call", r#"{"name":"slow","task":{"ttl":60000}}"#);
    let status = notification("notifications/tasks/status", r#"{"taskId":"t1","status":"completed"}"#);
    exchanges.push(said("2025-11-25", &long, json(&result("3", task))));
    exchanges.push(said(
        "2025-11-25",
        &request("4", "tasks/result", r#"{"taskId":"t1"}"#),
        events(&[&status, &result("4", "{}")]),
    ));
    let mut expected = beginning("2025-11-25").to_vec();
    expected.extend(
        [
            "c4 tools/call echo 2 2025-11-25 in listed",
            "> http",
            "< notification notifications/progress of c4",
            "c4 = ok",
            "< repeated_response 2 of c4",
            "c5 tools/call slow 3 2025-11-25 in",
            "c5 = ok task",
            "c6 tasks/result 4 2025-11-25 in regards c5 task",
            "< notification notifications/tasks/status of c5 task",
            "c6 = ok",
        ]
        .map(str::to_owned),
    );
    assert_eq!(played(exchanges, expected.len()).await, expected);

    // 2026-07-28: no session; rounds; a subscription that ends without a response; what nobody knows.
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let said = |body: &str, answer: String| Said { request: asks("POST", "", "2026-07-28", body), answer };
    let with = |params: &str| format!("{{{params}{meta}}}");
    let listen =
        request("\"l\"", "subscriptions/listen", &with(r#""notifications":{"toolsListChanged":true},"#));
    let about = r#"{"_meta":{"io.modelcontextprotocol/subscriptionId":"l"}}"#;
    let acknowledged = notification("notifications/subscriptions/acknowledged", about);
    let more = r#"{"resultType":"input_required","inputRequests":{},"requestState":"st4te"}"#;
    let exchanges = vec![
        said(&request("1", "server/discover", &with("")), json(&result("1", r#"{"resultType":"complete"}"#))),
        said(&request("2", "tools/list", &with("")), json(&result("2", TOOLS))),
        said(&request("3", "tools/call", &with(r#""name":"echo","#)), json(&result("3", more))),
        said(
            &request(
                "4",
                "tools/call",
                &with(r#""name":"echo","inputResponses":{},"requestState":"st4te","#),
            ),
            json(&result("4", r#"{"resultType":"complete","content":[]}"#)),
        ),
        said(&listen, events(&[&acknowledged])),
        said(
            &request("5", "tools/brew", &with("")),
            json(r#"{"jsonrpc":"2.0","id":5,"error":{"code":-32601,"message":"m"}}"#),
        ),
        said(&request("6", "ping", "{}"), json(&result("6", r#"{"resultType":"tea"}"#))),
    ];
    let expected = [
        "c1 server/discover 1 2026-07-28",
        "c1 = ok complete",
        "c2 tools/list 2 2026-07-28",
        "c2 = ok",
        "c3 tools/call echo 3 2026-07-28 listed",
        "c3 = ok input_required",
        "c4 tools/call echo 4 2026-07-28 regards c3 listed",
        "c4 = ok complete",
        "c5 subscriptions/listen \"l\" 2026-07-28",
        "< notification notifications/subscriptions/acknowledged of c5",
        "c5 = unanswered",
        "c6 tools/brew 5 2026-07-28 unknown_method!",
        "c6 = error",
        "c7 ping 6 2026-07-28",
        "c7 = ok tea unknown_result_type!",
    ];
    assert_eq!(played(exchanges, expected.len()).await, expected);
}

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

#[tokio::test]
async fn an_answer_that_may_come_elsewhere_is_waited_for_and_not_for_ever() {
    for (comes, left, result_of) in
        [(true, false, "ok"), (false, false, "unanswered"), (false, true, "client_gone")]
    {
        let limits = Limits {
            answer_timeout: Duration::from_millis(if comes { 20_000 } else { 50 }),
            ..Limits::default()
        };
        let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let asked = client.begin(asks("POST", "s", "2025-11-25", &call(1, "echo")));
        server.request().await;
        if left {
            server.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\ndata: \n\n").await;
            asked.abort();
            drop(client);
            server.closed().await;
        } else {
            server.say(&stream("id: 1\ndata: \n\n")).await;
            soon(asked).await.unwrap().unwrap();
            if comes {
                let got = client.begin(asks("GET", "s", "2025-11-25", ""));
                server.request().await;
                server.say(&events(&[&result("1", "{}")])).await;
                soon(got).await.unwrap().unwrap();
            } else {
                stage.outcome().await;
                let got = client.begin(asks("GET", "s", "2025-11-25", ""));
                server.request().await;
                server.say(&events(&[&result("1", "{}")])).await;
                soon(got).await.unwrap().unwrap();
                let late = stage
                    .recorded(|events| told(events).into_iter().find(|line| line.contains("late")))
                    .await;
                assert_eq!(late, "< late_response 1 of c1");
            }
        }
        assert_eq!(stage.outcome().await.result.as_str(), result_of);
    }
}

#[tokio::test]
async fn equal_ids_in_two_sessions_are_two_calls() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    for session in ["a", "b"] {
        let asked = client.begin(asks("POST", session, "2025-11-25", &call(1, session)));
        server.request().await;
        server.say(&stream("id: 1\ndata: \n\n")).await;
        soon(asked).await.unwrap().unwrap();
    }
    let got = client.begin(asks("GET", "b", "2025-11-25", ""));
    server.request().await;
    server.say(&events(&[&result("1", "{}")])).await;
    soon(got).await.unwrap().unwrap();
    let outcome = stage.outcome().await;
    let tool = stage.events().into_iter().find_map(|event| match event {
        Body::Intent(intent) if intent.call_id == outcome.call_id => intent.mcp.tool,
        _ => None,
    });
    assert_eq!(tool.as_ref().map(Masked::as_str), Some("b"));
    // The end of the other session is the end of what waits in it.
    let ended = client.begin(asks("DELETE", "a", "2025-11-25", ""));
    server.request().await;
    server.say(&accepted()).await;
    soon(ended).await.unwrap().unwrap();
    let lines = stage.recorded(|events| Some(told(events)).filter(|lines| lines.len() == 6)).await;
    assert!(lines.contains(&"c1 = unanswered".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_cancellation_names_its_call_and_so_does_the_servers_own() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut one = stage.client().await;
    stage.another_flow().await;
    let (mut other, mut two) = (stage.accept().await, stage.client().await);
    let asked = one.begin(asks("POST", "s", "2025-06-18", &call(7, "echo")));
    server.request().await;
    let roots = request("\"r\"", "roots/list", "{}");
    let cancelled = notification("notifications/cancelled", r#"{"requestId":"r"}"#);
    server.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    server.say(&format!("data: {roots}\n\ndata: {cancelled}\n\n")).await;
    stage.messages(MessageLabel::Notification, 1).await;
    let body = notification("notifications/cancelled", r#"{"requestId":7,"reason":"r"}"#);
    let told_back = two.begin(asks("POST", "s", "2025-06-18", &body));
    other.request().await;
    other.say(&accepted()).await;
    soon(told_back).await.unwrap().unwrap();
    asked.abort();
    drop(one);
    let lines = stage.recorded(|events| Some(told(events)).filter(|lines| lines.len() == 6)).await;
    let expected = [
        "c1 tools/call echo 7 2025-06-18 in",
        "< request roots/list \"r\" m1 of c1",
        "< notification notifications/cancelled of c1 regards m1",
        "c2 notifications/cancelled 2025-06-18 in regards c1",
        "c2 = ok",
        "c1 = client_gone",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_trace_and_a_clients_own_names_are_recorded_and_masked() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let params = r#"{"uri":"file:///srv/x?key=abc","_meta":{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "claudecode/toolUseId":"toolu_1","x-codex-turn-metadata":{"password":"correct-horse"}}}"#;
    let mut request = post(request("1", "resources/read", params));
    request.headers_mut().insert("mcp-protocol-version", "2099-01-01".parse().unwrap());
    let asked = client.begin(request);
    server.request().await;
    server.answer(&result("1", "{}")).await;
    soon(asked).await.unwrap().unwrap();
    stage.outcome().await;
    let intent = stage.events().into_iter().find_map(|event| match event {
        Body::Intent(intent) => Some(intent),
        _ => None,
    });
    let intent = intent.unwrap();
    let marks = &intent.mcp.marks;
    assert_eq!(
        marks.traceparent.as_ref().unwrap().as_str(),
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    );
    assert_eq!(marks.client["claudecode/toolUseId"].as_str(), "toolu_1");
    assert!(marks.client["x-codex-turn-metadata"].as_str().contains("[masked:"), "{marks:?}");
    assert!(marks.resource.as_ref().unwrap().as_str().starts_with("file:///srv/x?key=[masked:"), "{marks:?}");
    assert_eq!(marks.odd.iter().map(|odd| odd.as_str()).collect::<Vec<_>>(), ["unknown_version"]);
    assert_eq!(marks.http_version.as_deref(), Some("1.1"));
    let all = format!("{:?}", stage.events());
    assert!(!all.contains("correct-horse"), "{all}");
    // What is masked can still be shown to be equal.
    assert_eq!(intent.payload.digest.as_deref(), Some(&*stage.gate.masker.digest(params.as_bytes())));
}

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
async fn a_job_that_begins_session_after_session_loses_its_own_oldest() {
    let stage = Stage::new().await;
    let session = |n: usize| {
        let parts = asks("POST", &format!("s{n}"), "", "{}").into_parts().0;
        stage.gate.session_of(&stage.flow, &parts)
    };
    let most = weir::gate::MAX_SESSIONS / 2;
    let first = session(0);
    let others: Vec<_> = (1..most).map(session).collect();
    assert_eq!(stage.gate.sessions.evicted(), 0);
    assert!(std::sync::Arc::ptr_eq(&first, &session(0)), "it is still the same one");
    session(most);
    assert_eq!(stage.gate.sessions.evicted(), 1);
    assert!(std::sync::Arc::ptr_eq(&first, &session(0)), "it was used a moment ago");
    assert!(!std::sync::Arc::ptr_eq(&others[0], &session(1)), "nobody had used this one for longest");
    assert!(std::sync::Arc::ptr_eq(&others[2], &session(3)));
}
