//! What is changed on its way, and that nothing else is.

use serde_json::{Value, json};
use weir::config::Limits;
use weir_core::policy::{Action, Durability, Mask, Policy, Rule, When};
use weir_core::record::MessageLabel;

use super::stage::{OK, Peer, Plan, Stage, call, post};

const TOKEN: &str = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
const LIMIT: usize = 2000;

fn rule(id: &str, tool: &str, action: Action, mask: Option<Mask>) -> Rule {
    let when = When { tool: Some(tool.into()), ..When::default() };
    Rule { id: id.into(), when, action, durability: Durability::Strict, mask }
}

async fn stage() -> (Stage, Peer) {
    let rules = vec![
        rule("no-deletes", "delete_*", Action::Deny, None),
        rule("reads", "read_*", Action::Allow, Some(Mask::Results)),
        rule("logins", "login", Action::Allow, Some(Mask::Arguments)),
    ];
    let policy = Policy::new(rules, Action::Allow).unwrap().hiding_denied_tools(true);
    let limits = Limits { message: LIMIT, ..Limits::default() };
    let mut stage = Stage::of(Plan { policy, limits, ..Plan::default() }).await;
    let server = stage.accept().await;
    (stage, server)
}

/// The whole of an HTTP answer.
fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

const CHECKED: &str = "etag: \"x\"\r\ndigest: sha-256=x\r\nmcp-session-id: s-1";

#[tokio::test]
async fn a_masked_result_keeps_its_form_and_its_ids_and_nothing_of_its_secret() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let mut request = post(call(1, "read_config"));
    request.headers_mut().insert("accept-encoding", "gzip, br".parse().unwrap());
    let asked = client.begin(request);
    assert!(server.request().await.0.contains("accept-encoding: identity"));
    let text = json!({"token": "abc123", "port": 5}).to_string();
    let result = json!({"content": [{"type": "text", "text": text}], "structuredContent": {"token": "abc123", "port": 5}});
    let message = format!(r#"{{"jsonrpc":"2.0", "id":1,"result":{result},"_own": 1.50}}"#);
    let events = format!(": hi\nid: e-7\nretry: 9\ndata: {message}\n\nid: e-8\ndata:\n\n");
    server.say(&answer(&format!("content-type: text/event-stream\r\n{CHECKED}"), &events)).await;
    let (_, body) = asked.await.unwrap().unwrap();
    assert!(
        body.starts_with(": hi\nid: e-7\nretry: 9\ndata: {\"jsonrpc\":\"2.0\", \"id\":1,\"result\":"),
        "{body}"
    );
    assert!(body.ends_with(",\"_own\": 1.50}\n\nid: e-8\ndata:\n\n") && !body.contains("abc123"), "{body}");
    let data = body.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let value: Value = serde_json::from_str(data).unwrap();
    let copy: Value = serde_json::from_str(value["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(copy, value["result"]["structuredContent"]);
    assert!(copy["token"].as_str().unwrap().starts_with("[masked:secret-name:") && copy["port"] == 5);
    let told = stage.messages(MessageLabel::Rewritten, 1).await;
    assert!(told[0].contains("/structuredContent/token") && !told[0].contains("abc123"), "{told:?}");

    // The same as one JSON text; what spoke of the bytes as they were is gone, and the session is not.
    let asking = client.begin_with_head(post(call(2, "read_config")));
    server.request().await;
    let json = format!(r#"{{"jsonrpc":"2.0","id":2,"result":{{"content":[],"x":"{TOKEN}"}}}}"#);
    server.say(&answer(&format!("content-type: application/json\r\n{CHECKED}"), &json)).await;
    let (head, body) = asking.await.unwrap().unwrap();
    assert!(body.contains("[masked:github-token:") && !body.contains(TOKEN), "{body}");
    assert!(
        head.contains_key("mcp-session-id") && !head.contains_key("etag") && !head.contains_key("digest")
    );
}

#[tokio::test]
async fn tools_that_policy_denies_are_not_listed_and_the_record_says_which() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let asked = client.begin(post(r#"{"jsonrpc":"2.0","id":"l","method":"tools/list"}"#));
    server.request().await;
    let tools = [r#"{"name":"echo"}"#, r#"{"name":"delete_repo"}"#, r#"{"name":"count", "x": 1.0}"#];
    let list = |tools: &[&str]| {
        format!(
            r#"{{"jsonrpc":"2.0","id":"l","result":{{"tools": [{}],"nextCursor":"c"}}}}"#,
            tools.join(",")
        )
    };
    server.answer(&list(&tools)).await;
    let (_, body) = asked.await.unwrap().unwrap();
    assert_eq!(body, list(&[tools[0], tools[2]]));
    let told = stage.messages(MessageLabel::Rewritten, 1).await;
    assert!(told[0].contains(r#""hidden_tools":["delete_repo"]"#), "{told:?}");
}

#[tokio::test]
async fn a_list_of_tools_that_comes_on_a_stream_without_its_request_hides_them_too() {
    let policy =
        Policy::new(vec![rule("no-deletes", "delete_*", Action::Deny, None)], Action::Allow).unwrap();
    let mut stage = Stage::of(Plan { policy: policy.hiding_denied_tools(true), ..Plan::default() }).await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let mut request = post("");
    *request.method_mut() = http::Method::GET;
    let asked = client.begin(request);
    assert!(server.request().await.0.contains("accept-encoding: identity"));
    let events = |tools: &str| {
        let list = format!(r#"{{"jsonrpc":"2.0","id":4,"result":{{"tools":[{tools}]}}}}"#);
        format!("event: endpoint\ndata: /messages?id=1\n\nid: 5\ndata: {list}\n\n: end\n\n")
    };
    let sent = events(r#"{"name":"delete_repo"},{"name":"echo"}"#);
    server.say(&answer("content-type: text/event-stream", &sent)).await;
    assert_eq!(asked.await.unwrap().unwrap().1, events(r#"{"name":"echo"}"#));
    let told = stage.messages(MessageLabel::Rewritten, 1).await;
    assert!(told[0].contains(r#""hidden_tools":["delete_repo"]"#), "{told:?}");
}

#[tokio::test]
async fn arguments_are_masked_in_the_body_and_in_the_headers_that_repeat_them() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"login","arguments":{{"password":"hunter2","note":"{TOKEN}"}}}}}}"#
    );
    let mut request = post(body.clone());
    for (name, value) in [("mcp-param-password", "hunter2"), ("content-digest", "sha-256=:x:")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let asked = client.begin(request);
    let (head, sent) = server.request().await;
    let value: Value = serde_json::from_str(&sent).unwrap();
    let password = value["params"]["arguments"]["password"].as_str().unwrap();
    assert!(password.starts_with("[masked:") && !sent.contains(TOKEN), "{sent}");
    assert!(head.contains(&format!("mcp-param-password: {password}")), "{head}");
    assert!(!head.contains("hunter2") && !head.contains("content-digest"), "{head}");
    // Nothing else of the request is another.
    let note = value["params"]["arguments"]["note"].as_str().unwrap();
    assert_eq!(sent.replace(password, "hunter2").replace(note, TOKEN), body);
    server.answer(OK).await;
    assert_eq!(asked.await.unwrap().unwrap().1, OK);
    assert!(stage.messages(MessageLabel::Rewritten, 1).await[0].contains("/password"));
}

#[tokio::test]
async fn what_must_be_masked_and_cannot_be_is_withheld_with_an_error_and_a_record() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let huge =
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"x":"{}"}}}}"#, TOKEN.repeat(LIMIT / TOKEN.len() + 1));
    for (head, body) in [
        ("content-type: application/json", huge.as_str()),
        ("content-type: application/json\r\ncontent-encoding: gzip", "not gzip at all"),
    ] {
        let asked = client.begin(post(call(1, "read_config")));
        server.request().await;
        server.say(&answer(head, body)).await;
        let (status, body) = asked.await.unwrap().unwrap();
        assert!(status == 200 && body.contains(r#""id":1,"error":{"code":-31403"#), "{body}");
    }
    let asked = client.begin(post(call(1, "read_config")));
    server.request().await;
    server.say(&answer("content-type: text/event-stream", &format!("id: 3\ndata: {huge}\n\n: on\n\n"))).await;
    let (_, body) = asked.await.unwrap().unwrap();
    assert!(
        body.starts_with("id: 3\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"error\"")
            && body.ends_with("\n\n: on\n\n"),
        "{body}"
    );
    assert_eq!(stage.messages(MessageLabel::Withheld, 3).await.len(), 3);
}

#[tokio::test]
async fn what_is_not_rewritten_stays_to_the_byte() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let odd = format!(
        "{{ \"jsonrpc\":\"2.0\",\r\n \"id\" : 1,\"result\":{{\"x\":\"{TOKEN}\",\"n\":1.50,\"requestState\":\"s\"}}}}"
    );
    let stream = format!("\u{feff}: c\r\nid: 1\r\nretry: 5\r\ndata: {odd}\r\n\r\n\r\ndata: cut");
    for (content_type, body) in [("application/json", &odd), ("text/event-stream; charset=utf-8", &stream)] {
        let asking = client.begin_with_head(post(call(1, "echo")));
        server.request().await;
        server.say(&answer(&format!("content-type: {content_type}\r\n{CHECKED}"), body)).await;
        let (head, answered) = asking.await.unwrap().unwrap();
        assert_eq!(
            (&answered, &head["etag"], &head["digest"]),
            (body, &"\"x\"".parse().unwrap(), &"sha-256=x".parse().unwrap())
        );
    }
    // Of a call whose results are masked, what HTTP itself says is not: clients fall back on these.
    for status in ["400 Bad Request", "401 Unauthorized", "404 Not Found", "405 Method Not Allowed"] {
        let asking = client.begin_with_head(post(call(1, "read_config")));
        server.request().await;
        let body = format!(r#"{{"error": "{TOKEN}" }}"#);
        let challenge = "www-authenticate: Bearer resource_metadata=\"https://a.test/.well-known/x\"";
        server.say(&answer(challenge, &body).replace("200 OK", status)).await;
        let (head, answered) = asking.await.unwrap().unwrap();
        assert_eq!(answered, body);
        assert_eq!(head["www-authenticate"], "Bearer resource_metadata=\"https://a.test/.well-known/x\"");
    }
}

#[tokio::test]
async fn what_a_client_says_of_itself_goes_on_to_the_letter() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let body = r#" {"jsonrpc" : "2.0","id":"a\/b","method":"tools/call","params":{"requestState":"s.1","name":"echo","arguments":{"n":1.50}}}"#;
    let said = [
        ("origin", "https://app.test"),
        ("mcp-session-id", "s-1"),
        ("last-event-id", "e-7"),
        ("authorization", "DPoP x"),
        ("dpop", "y"),
    ];
    for (method, path) in [("POST", "/mcp/x?key=1%2F2"), ("GET", "/.well-known/oauth-protected-resource/mcp")]
    {
        let mut request = post(if method == "POST" { body } else { "" });
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in said {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let asking = client.begin_with_head(request);
        let (head, sent) = server.request().await;
        assert!(head.starts_with(&format!("{method} {path} http/1.1\r\n").to_ascii_lowercase()), "{head}");
        for (name, value) in said.into_iter().chain([("host", super::SERVER)]) {
            assert!(
                head.contains(&format!("\r\n{name}: {value}\r\n").to_ascii_lowercase()),
                "{name} in {head}"
            );
        }
        assert_eq!(sent, if method == "POST" { body } else { "" });
        let answered = r#"{"jsonrpc":"2.0" ,"id":"a\/b","result":{"requestState":"s.2"}}"#;
        server.say(&answer("content-type: application/json\r\nmcp-session-id: s-1", answered)).await;
        let (head, text) = asking.await.unwrap().unwrap();
        assert!(text == answered && head["mcp-session-id"] == "s-1", "{text}");
    }
}

#[tokio::test]
async fn where_results_are_masked_a_stream_without_a_call_is_masked_too() {
    let (stage, mut server) = stage().await;
    let mut client = stage.client().await;
    let mut request = post("");
    *request.method_mut() = http::Method::GET;
    let asked = client.begin(request);
    server.request().await;
    let message = |secret: &str| {
        format!("id: 5\ndata: {{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{{\"x\":\"{secret}\"}}}}\n\n")
    };
    server.say(&answer("content-type: text/event-stream", &message(TOKEN))).await;
    let (_, body) = asked.await.unwrap().unwrap();
    assert!(
        body.starts_with("id: 5\ndata: {\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"x\":\"[masked:"),
        "{body}"
    );
}
