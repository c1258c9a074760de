//! How what goes nowhere is answered, by revision and by what the client takes.

use super::REFUSED;
use super::stage::{OK, Stage, call, post};
use weir_core::record::MessageLabel;

const REVISION: &str = "2026-07-28";

#[tokio::test]
async fn a_client_that_takes_events_alone_is_refused_in_one() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let mut request = post(call(1, "delete_repo"));
    request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    let (status, head, text) = client.ask(request).await;
    assert!(status == 200 && head["content-type"] == "text/event-stream", "{status} {head:?}");
    assert!(
        text.starts_with("event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"error\"")
            && text.contains(REFUSED)
    );
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_request_whose_headers_and_body_differ_is_answered_as_its_revision_says_and_goes_nowhere() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let with = |version: &str, name: &str| {
        let mut request = post(call(1, "echo"));
        for (header, value) in
            [("mcp-protocol-version", version), ("mcp-method", "tools/call"), ("mcp-name", name)]
        {
            request.headers_mut().insert(header, value.parse().unwrap());
        }
        request
    };
    let (status, head, text) = client.ask(with(REVISION, "delete_repo")).await;
    assert!(status == 400 && head["content-type"] == "application/json", "{status} {head:?}");
    assert!(text.contains(r#""id":1,"error":{"code":-32020"#) && text.contains("mcp-name"), "{text}");
    assert!(stage.untouched(&mut server));
    let told = stage.messages(MessageLabel::HeadersDiffer, 1).await;
    assert!(told[0].starts_with("POST /mcp") && told[0].contains("mcp-name"), "{told:?}");
    // Where they agree, and in a revision that does not know them, the request goes on as it is.
    for (version, name) in [(REVISION, "echo"), ("2025-11-25", "delete_repo")] {
        let asked = client.begin(with(version, name));
        let (head, body) = server.request().await;
        assert!(head.contains(&format!("mcp-name: {name}")) && body == call(1, "echo"), "{head}");
        server.answer(OK).await;
        assert_eq!(asked.await.unwrap().unwrap().0, 200);
    }
    // An unknown method is the server's to refuse.
    let unknown = r#"{"jsonrpc":"2.0","id":2,"method":"own/method"}"#;
    let asked = client.begin(post(unknown));
    assert_eq!(server.request().await.1, unknown);
    let body = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"Method not found"}}"#;
    server.say(&format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    let (status, text) = asked.await.unwrap().unwrap();
    assert!(status == 404 && text == body, "{status} {text}");
}
