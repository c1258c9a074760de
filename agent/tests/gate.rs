//! The gate's promise: nothing goes upstream that is not allowed and on disk, each call has one outcome whatever
//! either side does, and what a client may rely on holds.

#[path = "gate/bodies.rs"]
mod bodies;
#[path = "gate/bounds.rs"]
mod bounds;
#[path = "gate/exchanges.rs"]
mod exchanges;
#[path = "gate/forged.rs"]
mod forged;
#[path = "gate/generated.rs"]
mod generated;
#[path = "gate/interim.rs"]
mod interim;
#[path = "gate/ladder.rs"]
mod ladder;
#[path = "gate/legacy.rs"]
mod legacy;
#[path = "gate/malformed.rs"]
mod malformed;
#[path = "gate/peer2.rs"]
mod peer2;
#[path = "gate/refusals.rs"]
mod refusals;
#[path = "gate/revisions.rs"]
mod revisions;
#[path = "gate/rewrites.rs"]
mod rewrites;
#[path = "gate/script.rs"]
mod script;
#[path = "gate/sessions.rs"]
mod sessions;
#[path = "gate/stage.rs"]
mod stage;
#[path = "gate/streams.rs"]
mod streams;
#[path = "gate/unread.rs"]
mod unread;
#[path = "gate/upgrades.rs"]
mod upgrades;
#[path = "gate/versions.rs"]
mod versions;

use stage::{OK, Plan, SERVER, Stage, call, post, soon};
use weir::config::Limits;
use weir::spool::faulty::Fault;
use weir_core::record::{Body, CallResult, Durability, MessageLabel};

const REFUSED: &str = r#""code":-31403"#;

#[tokio::test]
async fn a_denied_call_never_reaches_the_server() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let batch = format!("[{},{}]", call(1, "echo"), call(2, "delete_repo"));
    for body in [call(1, "delete_repo"), batch] {
        let (status, _, text) = client.ask(post(body)).await;
        assert!(status == 200 && text.contains(REFUSED) && text.contains("no-deletes"), "{status} {text}");
    }
    assert!(stage.untouched(&mut server));
    assert_eq!(stage.outcome().await.result, CallResult::Refused);
}

#[tokio::test]
async fn what_some_server_might_read_as_a_call_never_reaches_one() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let denied = call(1, "delete_repo");
    let wide: Vec<u8> = denied.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bodies = [
        (format!("[7,{denied}]").into_bytes(), "application/json"),
        (denied.replace("\"method\"", "\"Method\"").into_bytes(), "application/json"),
        (denied.replace("\"delete_repo\"", "[\"delete_repo\"]").into_bytes(), "application/json"),
        (wide, "text/plain"),
        (format!("\u{feff}{denied}").into_bytes(), "text/plain"),
        (format!("{denied} and more").into_bytes(), "application/octet-stream"),
    ];
    for (body, content_type) in bodies {
        let mut request = post(body.clone());
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        let (status, _, text) = client.ask(request).await;
        assert!(
            status == 400 && text.contains(REFUSED),
            "{status} {text} {}",
            String::from_utf8_lossy(&body)
        );
        // A body that was refused before its end ends the connection.
        client = stage.client().await;
    }
    assert!(stage.untouched(&mut server));
    assert_eq!(stage.messages(MessageLabel::Unreadable, 6).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_rule_says_best_effort_goes_before_its_intent_is_on_disk_and_not_when_it_cannot_be() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let held = stage.disk.hold_syncs();
    let answer = client.begin(post(call(1, "glance")));
    assert!(server.request().await.1.contains("glance"));
    assert!(!stage.events().iter().any(|event| matches!(event, Body::Intent(_))), "it waited for the disk");
    drop(held);
    server.answer(OK).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
    assert_eq!(stage.outcome().await.result, CallResult::Ok);
    let said = stage.events().into_iter().find_map(|event| match event {
        Body::Intent(intent) => Some(intent.durability),
        _ => None,
    });
    assert_eq!(said, Some(Durability::BestEffort));
    assert_eq!(stage.gate.ledger.health().unwaited_intents, 1);
    // The disk is known to be full by a call that waited: what need not wait is refused, too.
    stage.disk.set_capacity(Some(stage.disk.used()));
    for tool in ["echo", "glance"] {
        let (status, _, text) = client.ask(post(call(2, tool))).await;
        assert!(status == 200 && text.contains("cannot be recorded"), "{tool}: {status} {text}");
    }
    assert!(stage.untouched(&mut server));
    // ... until something could be written again.
    stage.disk.set_capacity(None);
    for tool in ["echo", "glance"] {
        soon(client.0.ready()).await.unwrap();
        let answer = client.begin(post(call(3, tool)));
        assert!(server.request().await.1.contains(tool));
        server.answer(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#).await;
        assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_is_on_disk_before_the_server_sees_a_byte() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let held = stage.disk.hold_syncs();
    let answer = client.begin(post(call(1, "echo")));
    let disk = stage.disk.clone();
    assert!(
        tokio::task::spawn_blocking(move || disk.wait_for_held_sync(std::time::Duration::from_secs(20)))
            .await
            .unwrap()
    );
    assert!(stage.untouched(&mut server));
    drop(held);
    assert!(server.request().await.1.contains("echo"));
    let intents = stage.events().iter().filter(|event| matches!(event, Body::Intent(_))).count();
    assert_eq!(intents, 1);
    server.answer(OK).await;
    assert_eq!(soon(answer).await.unwrap().unwrap().0, 200);
}

#[tokio::test]
async fn a_call_that_cannot_be_recorded_is_refused() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    for ahead in 0..50 {
        stage.disk.fail_at(stage.disk.operations() + ahead, Fault::Eio);
    }
    let (status, _, text) = client.ask(post(call(1, "echo"))).await;
    assert!(status == 200 && text.contains(REFUSED) && text.contains("cannot be recorded"), "{text}");
    assert!(stage.untouched(&mut server));
    stage.disk.mend();
    let answer = client.begin(post(call(2, "echo")));
    assert!(server.request().await.1.contains("\"id\":2"));
    server.answer(r#"{"jsonrpc":"2.0","id":2,"result":{}}"#).await;
    assert!(soon(answer).await.unwrap().unwrap().1.contains("result"));
}

/// Asks for a call, answers with `said`, and gives what the client read and what was recorded.
async fn answered(said: &str) -> (Result<String, hyper::Error>, Stage) {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    server.say(said).await;
    drop(server);
    let read = soon(answer).await.unwrap().map(|(_, text)| text);
    (read, stage)
}

fn json(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn each_way_to_answer_a_call_has_its_outcome() {
    use CallResult::*;
    let failed = r#"{"jsonrpc":"2.0","id":1,"result":{"isError":true}}"#;
    let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"m"}}"#;
    let anonymous = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32020,"message":"m"}}"#;
    let other = r#"{"jsonrpc":"2.0","id":"1","result":{}}"#;
    let batch = format!("[{other},{OK}]");
    let events = |data: &[&str]| {
        let events: String = data.iter().map(|data| format!("data: {data}\n\n")).collect();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hi\n\n{events}"
        )
    };
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{}}"#;
    let asks = r#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}"#;
    let cases = [
        (json("200 OK", OK), Ok, Some(200), None),
        (json("200 OK", failed), ToolError, Some(200), None),
        (json("200 OK", error), Error, Some(200), Some(-32601)),
        (json("400 Bad Request", anonymous), Error, Some(400), Some(-32020)),
        (json("400 Bad Request", "{}"), Error, Some(400), None),
        (json("200 OK", other), Unparsed, Some(200), None),
        (json("200 OK", &batch), Ok, Some(200), None),
        (json("200 OK", "{"), Unparsed, Some(200), None),
        (json("202 Accepted", ""), Unanswered, Some(202), None),
        (OK.len().to_string(), UpstreamFailed, None, None),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".into(),
            UpstreamFailed,
            None,
            None,
        ),
        (events(&[progress, asks, OK, progress]), Ok, Some(200), None),
        (events(&[progress]), Unanswered, Some(200), None),
        (events(&[other]), Unanswered, Some(200), None),
        (events(&["nonsense", OK]), Ok, Some(200), None),
        (
            json("200 OK", OK).replace("content-length: 3", "content-length: 9"),
            UpstreamFailed,
            Some(200),
            None,
        ),
        (json("200 OK", OK).replace("content-type", "x-type"), Ok, Some(200), None),
        (
            json("200 OK", "secret").replacen("content-type", "content-encoding: gzip\r\ncontent-type", 1),
            Unparsed,
            Some(200),
            None,
        ),
    ];
    for (said, result, status, code) in cases {
        let (read, stage) = answered(&said).await;
        let outcome = stage.outcome().await;
        assert_eq!(
            (outcome.result, outcome.http_status, outcome.error_code),
            (result, status, code),
            "{said}"
        );
        assert_eq!(read.is_err(), result == UpstreamFailed, "{said}: {read:?}");
        assert!(!outcome.payload.text.as_str().contains("secret"), "{outcome:?}");
        let outcomes = stage.events().iter().filter(|event| matches!(event, Body::Outcome(_))).count();
        assert_eq!(outcomes, 1, "{said}");
    }
}

#[tokio::test]
async fn what_else_comes_with_an_answer_is_recorded_with_its_call() {
    let message = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"token":"correct-horse"}}"#;
    let events = format!("data: {message}\n\ndata: {{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{}}}}\n\n");
    let said =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}");
    let (read, stage) = answered(&said).await;
    assert_eq!(read.unwrap(), events);
    let outcome = stage.outcome().await;
    let noted = |body: &Body<_>| match body {
        Body::Message(message) if message.label == MessageLabel::Notification => Some(message.clone()),
        _ => None,
    };
    let noted = stage.recorded(|events| events.iter().find_map(noted)).await;
    assert_eq!(noted.call_id, Some(outcome.call_id));
    assert!(!noted.payload.text.as_str().contains("correct-horse"), "{noted:?}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_call() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(call(1, "echo")));
    server.request().await;
    answer.abort();
    drop(client);
    assert_eq!(stage.outcome().await.result, CallResult::ClientGone);
    assert_eq!(server.closed().await, "", "the server sees it leave, too");
}

#[tokio::test]
async fn what_is_no_call_is_recorded_though_its_client_leaves() {
    let client_timeout = std::time::Duration::from_millis(200);
    let limits = Limits { client_timeout, ..Limits::default() };
    let mut stage = Stage::of(Plan { limits, ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let request = http::Request::delete("/mcp/k3y5Of4n7A2b9XyZ?code=correct-horse").header("host", SERVER);
    let answer = client.begin(request.body(Default::default()).unwrap());
    server.request().await;
    answer.abort();
    drop(client);
    let noted = stage.messages(MessageLabel::Http, 1).await.remove(0);
    assert!(
        noted.starts_with("DELETE /mcp/[masked:path-key:") && noted.ends_with(" -> the client left"),
        "{noted}"
    );
    assert!(!noted.contains("correct-horse"), "{noted}");
}

#[tokio::test]
async fn notifications_are_calls_without_an_answer() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let answer = client.begin(post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#));
    server.request().await;
    server.say("HTTP/1.1 202 Accepted\r\n\r\n").await;
    drop(server);
    assert_eq!(soon(answer).await.unwrap().unwrap(), (http::StatusCode::ACCEPTED, String::new()));
    assert_eq!(stage.outcome().await.result, CallResult::Ok);
}

#[tokio::test]
async fn a_clients_response_goes_on_without_a_call() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let response = r#"{"jsonrpc":"2.0","id":9,"result":{"role":"user"}}"#;
    let answer = client.begin(post(response));
    assert_eq!(server.request().await.1, response);
    server.say("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(soon(answer).await.unwrap().unwrap().0, 202);
    assert_eq!(stage.messages(MessageLabel::UnaskedResponse, 1).await, [r#"{"role":"user"}"#]);
    assert!(!stage.events().iter().any(|event| matches!(event, Body::Intent(_))));
}
