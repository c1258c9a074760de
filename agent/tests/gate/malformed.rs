//! JSON as test suites of parsers have it, and events as no server should send them: each row with what becomes of it. What
//! passes passes to the letter; what is refused never reaches the server.

use http::Request;
use weir_core::mask::Masked;
use weir_core::record::{Body, CallResult, MessageLabel, Unread};

use crate::stage::{OK, SERVER, Stage, call, post, soon};

/// A call whose argument is this text.
fn with_argument(json: &[u8]) -> Vec<u8> {
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"glance","arguments":{"a":"#;
    [call.as_bytes(), json, b"}}}"].concat()
}

/// JSON that every parser takes.
fn plain() -> Vec<Vec<u8>> {
    let texts: &[&str] = &[
        "{}",
        "[]",
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1",
        "1.0",
        "0.1",
        "1e5",
        "1E+2",
        "1e-2",
        "-0.5E0",
        "123456789012345678901234567890",
        "0.1234567890123456789012345678901234567890",
        "[1,[2,[3]]]",
        "{\"\":0}",
        "{\"a\":{\"a\":{\"a\":1}}}",
        "\"\"",
        "\" \"",
        "\"\u{e4}\"",
        "\"\u{1f600}\"",
        "\"\\u00e4\"",
        "\"\\ud83d\\ude00\"",
        "\"\\u0000\"",
        "\"\\u001f\"",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\u{7f}\"",
        "\"\u{2028}\u{2029}\"",
        "\"\u{feff}\"",
        "\"\u{fffe}\"",
        "\"\\uFFFF\"",
        " \t\r\n[ 1 ,\n2 ]\t",
        "\"/*no comment*/\"",
    ];
    let deep = format!("{}1{}", "[".repeat(90), "]".repeat(90));
    texts.iter().map(|text| text.as_bytes().to_vec()).chain([deep.into_bytes()]).collect()
}

/// What is no JSON, or what some parsers take and some do not, or for different things; and what the record says of it.
fn odd() -> Vec<(Vec<u8>, Unread)> {
    let texts: &[&[u8]] = &[
        b"",
        b"[1,]",
        b"[,1]",
        b"[1,,2]",
        b"[1 2]",
        b"[1",
        b"1]",
        b"[1}",
        b"[[]",
        b"{\"a\":1,}",
        b"{,\"a\":1}",
        b"{\"a\" 1}",
        b"{\"a\"::1}",
        b"{\"a\":1 \"b\":2}",
        b"{\"a\"}",
        b"{a:1}",
        b"{'a':1}",
        b"{1:1}",
        b"{[1]:1}",
        b"{\"a\":}",
        b"'a'",
        b"01",
        b"-01",
        b"+1",
        b".5",
        b"-.5",
        b"1.",
        b"1.e5",
        b"1e",
        b"1e+",
        b"1eE2",
        b"0x10",
        b"1_000",
        b"1,000",
        b"--1",
        b"- 1",
        b"NaN",
        b"-NaN",
        b"Infinity",
        b"-Infinity",
        b"inf",
        b"True",
        b"nul",
        b"nulll",
        b"undefined",
        b"None",
        b"\"\\x41\"",
        b"\"\\u12\"",
        b"\"\\u{41}\"",
        b"\"\\U0041\"",
        b"\"\\a\"",
        b"\"\\",
        b"\"a",
        b"\"\n\"",
        b"\"\t\"",
        b"\"\0\"",
        b"\"\x1f\"",
        b"\"a\"b",
        b"\"\" \"\"",
        b"/*c*/1",
        b"1//c\n",
        b"#c\n1",
        b"\x0c1",
        b"\x0b1",
        b"\xc2\xa01",
        b"\xef\xbb\xbf1",
        b"\xe2\x80\xa81",
        b"\"\xff\"",
        b"\"\xc0\x80\"",
        b"\"\xc1\xbf\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\"\xe4\"",
        b"\xef\xbc\x91",
        b"1}}} {",
        b"\\u0031",
        b"$",
        b"<null>",
        b"[\"a\",\n",
        b"{\"a\":1}}",
        b"@",
    ];
    // Read in one way here, and in another there.
    let two_ways: &[&[u8]] = &[
        b"1e999",
        b"-1e999",
        b"\"\\ud800\"",
        b"\"\\ude00\\ud83d\"",
        b"\"\\ud800\\n\"",
        b"{\"a\":1,\"a\":2}",
        b"{\"a\":1,\"\\u0061\":2}",
        b"[{\"b\":{\"c\":1,\"c\":1}}]",
    ];
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let open = "[".repeat(100_000).into_bytes();
    let objects = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500)).into_bytes();
    let because = |texts: &[&[u8]], why| texts.iter().map(|text| (text.to_vec(), why)).collect::<Vec<_>>();
    let nested = [deep(200), deep(10_000), objects].map(|text| (text, Unread::TooDeep));
    let unclosed = [(open, Unread::NotJson)];
    [because(texts, Unread::NotJson), because(two_ways, Unread::Ambiguous), nested.into(), unclosed.into()]
        .concat()
}

#[tokio::test]
async fn json_that_every_parser_takes_passes_to_the_letter() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    for text in plain() {
        let body = with_argument(&text);
        let answer = client.begin(post(body.clone()));
        let (_, got) = server.request().await;
        assert_eq!(got.as_bytes(), body);
        server.answer(OK).await;
        assert_eq!(soon(answer).await.unwrap().unwrap().0, 200, "{got}");
        soon(client.0.ready()).await.unwrap();
    }
}

#[tokio::test]
async fn json_that_some_parsers_refuse_or_read_otherwise_never_reaches_the_server() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let rows = odd();
    for (text, _) in &rows {
        let (status, _, answer) = stage.client().await.ask(post(with_argument(text))).await;
        let shown = text.escape_ascii().to_string();
        let shown = shown.get(..60).unwrap_or(&shown);
        assert!(status == 400 && answer.contains("-31403"), "{shown}: {status} {answer}");
        assert!(stage.untouched(&mut server), "{shown} reached the server");
    }
    let reason = |event: &Body<Masked<String>>| match event {
        Body::Message(message) if message.label == MessageLabel::Unreadable => Some(message.unread),
        _ => None,
    };
    let all = |events: &[Body<Masked<String>>]| events.iter().filter_map(reason).collect::<Vec<_>>();
    let reasons = stage.recorded(|events| Some(all(events)).filter(|all| all.len() >= rows.len())).await;
    assert_eq!(reasons.len(), rows.len());
    for ((text, why), reason) in rows.iter().zip(reasons) {
        assert_eq!(reason, Some(*why), "{:.60}", text.escape_ascii().to_string());
    }
}

/// What becomes of a whole body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    Refused,
    /// Policy denies what it calls: 200, and an error of JSON-RPC.
    Denied,
    Passes,
}
use Becomes::{Denied, Passes, Refused};

#[tokio::test]
async fn bodies_that_hide_a_denied_call_are_refused_and_what_is_no_message_passes() {
    let denied = call(1, "delete_repo");
    let wide = |of: fn(u16) -> [u8; 2]| denied.encode_utf16().flat_map(of).collect::<Vec<u8>>();
    let rows: Vec<(&str, Vec<u8>, Becomes)> = vec![
        ("plain", denied.clone().into(), Denied),
        ("its name in escapes", denied.replace("delete_repo", "delete\\u005frepo").into(), Denied),
        ("its method in escapes", denied.replace("tools/call", "tools\\/\\u0063all").into(), Denied),
        ("no id", denied.replace("\"id\":1,", "").into(), Denied),
        ("a null id", denied.replace("\"id\":1", "\"id\":null").into(), Denied),
        ("spaces around it", format!(" \r\n\t{denied}\n\n").into(), Denied),
        ("a batch", format!("[{denied}]").into(), Denied),
        ("a batch in a batch", format!("[[{denied}]]").into(), Refused),
        ("a number beside it", format!("[{denied},7]").into(), Refused),
        ("a null beside it", format!("[null,{denied}]").into(), Refused),
        ("twice without an array", format!("{denied}{denied}").into(), Refused),
        ("lines of JSON", format!("{denied}\n{denied}\n").into(), Refused),
        ("something behind it", format!("{denied};").into(), Refused),
        ("a NUL behind it", format!("{denied}\0").into(), Refused),
        ("a byte-order mark", format!("\u{feff}{denied}").into(), Refused),
        ("UTF-16, the small end first", wide(u16::to_le_bytes), Refused),
        ("UTF-16, the great end first", wide(u16::to_be_bytes), Refused),
        ("UTF-32", denied.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(), Refused),
        ("a method twice", denied.replace("\"id\"", "\"method\":\"ping\",\"id\"").into(), Refused),
        ("a name twice", denied.replace("\"name\"", "\"name\":\"echo\",\"name\"").into(), Refused),
        ("params twice", denied.replace("\"id\"", "\"params\":{\"name\":\"echo\"},\"id\"").into(), Refused),
        ("a method in other letters", denied.replace("method", "Method").into(), Refused),
        ("a name in other letters", denied.replace("\"name\"", "\"Name\"").into(), Refused),
        ("params in other letters", denied.replace("params", "Params").into(), Refused),
        ("no version", denied.replace("\"jsonrpc\":\"2.0\",", "").into(), Refused),
        ("another version", denied.replace("\"2.0\"", "\"1.0\"").into(), Refused),
        ("a version that is a number", denied.replace("\"2.0\"", "2.0").into(), Refused),
        ("an object for an id", denied.replace("\"id\":1", "\"id\":{}").into(), Refused),
        ("true for an id", denied.replace("\"id\":1", "\"id\":true").into(), Refused),
        ("an array for a name", denied.replace("\"delete_repo\"", "[\"delete_repo\"]").into(), Refused),
        ("a result beside it", denied.replace("\"id\"", "\"result\":{},\"id\"").into(), Refused),
        ("cut off", denied.get(..denied.len() - 1).unwrap_or_default().into(), Refused),
        ("nothing", Vec::new(), Passes),
        ("an object of something else", br#"{"client_name":"x"}"#.to_vec(), Passes),
        ("an array of something else", b"[1,2,3]".to_vec(), Passes),
        ("a number", b"7".to_vec(), Passes),
    ];
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    for (name, body, becomes) in rows {
        let mut client = stage.client().await;
        if becomes == Passes {
            let answer = client.begin(post(body.clone()));
            assert_eq!(server.request().await.1.as_bytes(), body, "{name}");
            server.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            assert_eq!(soon(answer).await.unwrap().unwrap().0, 200, "{name}");
            continue;
        }
        let (status, _, answer) = client.ask(post(body)).await;
        let told = match (becomes, status.as_u16()) {
            // A notification has nobody to answer to.
            (Denied, 200) => answer.contains("no-deletes"),
            (Denied, 202) => answer.is_empty(),
            (Refused, 400) => answer.contains("-31403"),
            _ => false,
        };
        assert!(told, "{name}: {status} {answer}");
        assert!(stage.untouched(&mut server), "{name} reached the server");
    }
}

/// What a server says as events, and why the call's answer was not read, if it was not; each passes to the letter.
#[tokio::test]
async fn events_of_every_form_pass_to_the_letter_and_are_read_or_said_to_be_unread() {
    let huge = "x".repeat(3 << 20);
    let rows: Vec<(&str, String, Option<Unread>)> = vec![
        ("LF", format!("event: message\ndata: {OK}\n\n"), None),
        ("CRLF", format!("event: message\r\ndata: {OK}\r\n\r\n"), None),
        ("CR", format!("event: message\rdata: {OK}\r\r"), None),
        ("all of them", format!("event: message\ndata: {OK}\r\r\n"), None),
        ("no space", format!("data:{OK}\n\n"), None),
        ("a byte-order mark", format!("\u{feff}data: {OK}\n\n"), None),
        ("comments", format!(": a\n:\n: b\ndata: {OK}\n: c\n\n"), None),
        (
            "lines",
            "data: {\"jsonrpc\":\"2.0\",\ndata: \"id\":1,\ndata:\ndata: \"result\":{}}\n\n".into(),
            None,
        ),
        ("unknown fields", format!("x: y\nz\ndata: {OK}\nretry: no number\n\n"), None),
        ("an id with a NUL", format!("id: a\0b\ndata: {OK}\n\n"), None),
        ("an event without data before it", format!("id: 7\n\nevent: ping\n\ndata: {OK}\n\n"), None),
        ("cut before its empty line", format!("data: {OK}\n"), None),
        ("cut before its line's end", format!("data: {OK}"), None),
        ("a huge line before it", format!("data: {huge}\n\ndata: {OK}\n\n"), None),
        ("a huge comment before it", format!(": {huge}\n\ndata: {OK}\n\n"), None),
        ("a huge line alone", format!("data: {huge}\n\n"), Some(Unread::TooLarge)),
        ("a huge line without an end", format!("data: {huge}"), Some(Unread::TooLarge)),
        ("data that is no JSON", "data: {\"jsonrpc\"\n\n".into(), Some(Unread::NotJson)),
    ];
    for (name, events, expected) in rows {
        let mut stage = Stage::new().await;
        let mut server = stage.accept().await;
        let mut client = stage.client().await;
        let request: Request<_> = post(call(1, "echo"));
        assert_eq!(request.headers()["host"], SERVER);
        let answer = client.begin(request);
        server.request().await;
        let head = format!("content-type: text/event-stream\r\ncontent-length: {}", events.len());
        server.say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{events}")).await;
        let (status, heard) = soon(answer).await.unwrap().unwrap();
        assert!(status == 200 && heard == events, "{name} did not pass to the letter");
        let outcome = stage.outcome().await;
        let result = expected.map_or(CallResult::Ok, |_| CallResult::Unparsed);
        assert_eq!((outcome.result, outcome.unread), (result, expected), "{name}");
        let flows = stage.events().iter().filter(|body| matches!(body, Body::Intent(_))).count();
        assert_eq!(flows, 1, "{name}");
    }
}
