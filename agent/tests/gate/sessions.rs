//! Sessions: what belongs together over several streams and connections, for how long it is waited for, and whose it is.

use std::time::Duration;

use weir::config::Limits;
use weir_core::mask::Masked;
use weir_core::record::{Body, MessageLabel};

use crate::script::{accepted, asks, events, notification, request, result, stream, told};
use crate::stage::{Plan, Stage, call, post, soon};

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
