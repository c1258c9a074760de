//! Each revision's exchanges, from the first message to the last: what every message belongs to.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::script::{accepted, asks, events, json, notification, request, result, stream, told};
use crate::stage::{Stage, call, soon};

/// One exchange: a request's body (a GET or DELETE without one), and what the server answers.
struct Said {
    request: Request<Full<Bytes>>,
    answer: String,
}

/// The same with a member that JSON-RPC does not know.
fn more_of(message: &str) -> String {
    message.replacen('{', r#"{"more":{"of":"it"},"#, 1)
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
    let task = r#"{"resultType":"task","taskId":"t9","status":"working","createdAt":"x","lastUpdatedAt":"x","ttl":null}"#;
    let status = notification("notifications/tasks", r#"{"taskId":"t9","status":"input_required"}"#);
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
        said(&more_of(&request("6", "ping", "{}")), json(&more_of(&result("6", r#"{"resultType":"tea"}"#)))),
        said(&request("7", "tools/call", &with(r#""name":"slow","#)), json(&result("7", task))),
        said(
            &request("8", "tasks/update", &with(r#""taskId":"t9","inputResponses":{},"#)),
            events(&[&status, &result("8", "{}")]),
        ),
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
        "c7 ping 6 2026-07-28 unknown_member!",
        "c7 = ok tea unknown_result_type! unknown_member!",
        "c8 tools/call slow 7 2026-07-28",
        "c8 = ok task task",
        "c9 tasks/update 8 2026-07-28 regards c8 task",
        "< notification notifications/tasks of c8 task",
        "c9 = ok",
    ];
    assert_eq!(played(exchanges, expected.len()).await, expected);
}
