//! Answers whose framing two readers could take in two ways: the client is given none, and the call's record says why.

use anyhow::{Result, ensure};
use weir_tests::bytes::Recorder;

use crate::{address, call, recorded, talk, world};

/// What the server says, and the label under which it is recorded; none for what is whole.
fn rows() -> Vec<(&'static str, String, Option<&'static str>)> {
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let body = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    let length = format!("Content-Length: {}\r\n", body.len());
    let coded = "Transfer-Encoding: chunked\r\n";
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
    vec![
        ("plain", format!("{ok}{length}\r\n{body}"), None),
        ("in chunks", format!("{ok}{coded}\r\n{chunks}"), None),
        ("up to the connection's end", format!("{ok}\r\n{body}"), None),
        ("behind interim ones", format!("HTTP/1.1 103 Early Hints\r\n\r\n{ok}{length}\r\n{body}"), None),
        ("both lengths", format!("{ok}{length}{coded}\r\n{chunks}"), Some("length_and_chunked")),
        ("one length twice", format!("{ok}{length}{length}\r\n{body}"), Some("length_repeated")),
        ("two lengths", format!("{ok}{length}Content-Length: 2\r\n\r\n{body}"), Some("length_repeated")),
        ("a signed length", format!("{ok}Content-Length: +9\r\n\r\n{body}"), Some("length_malformed")),
        (
            "two codings",
            format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n{chunks}"),
            Some("transfer_encoding_other_than_chunked"),
        ),
        ("chunks in HTTP/1.0", format!("HTTP/1.0 200 OK\r\n{coded}\r\n{chunks}"), Some("chunked_in_http10")),
        (
            "bare LF",
            format!("{ok}{length}\r\n{body}").replace("\r\nContent-Type", "\nContent-Type"),
            Some("bare_lf"),
        ),
        ("obs-fold", format!("{ok}X-A: b\r\n c\r\n{length}\r\n{body}"), Some("obs_fold")),
        ("NUL", format!("{ok}X-A: \0\r\n{length}\r\n{body}"), Some("nul_or_control")),
        (
            "a status of two digits",
            format!("{}{length}\r\n{body}", ok.replace("200", "20")),
            Some("bad_status_line"),
        ),
        ("no HTTP at all", "220 mail.test ready\r\n".into(), Some("bad_version")),
        (
            "a body of 204",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello".into(),
            Some("body_where_none"),
        ),
        ("another answer behind it", format!("{ok}{length}\r\n{body}{poison}"), Some("unasked")),
    ]
}

#[test]
fn ambiguous_answers_reach_no_client_and_are_recorded_by_name() -> Result<()> {
    let recorder = Recorder::start()?;
    let world = world(&recorder)?;
    let rows = rows();
    let body = call("echo");
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: a.test\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut talks = Vec::new();
    for (row, (_, answer, _)) in rows.iter().enumerate() {
        recorder.answer_with(address(row), answer.as_bytes());
        talks.push(talk(row, &recorder, vec![request.clone()]));
    }
    let heard = world.talk(&talks)?;
    world.until_shipped()?;
    let mut faults = Vec::new();
    for ((name, _, label), heard) in rows.iter().zip(&heard) {
        let (_, messages) = recorded(&world, heard.port)?;
        let labelled = |label: &str| {
            messages
                .iter()
                .any(|message| message.starts_with(&format!("server_to_client ambiguous {label}:")))
        };
        let holds = match label {
            // Perhaps behind an interim one.
            None => heard.heard.contains("HTTP/1.1 200 OK\r\n") && heard.heard.contains("\"result\":{}"),
            // What is behind a whole answer does not make that one wrong.
            Some(label @ "unasked") => labelled(label) && !heard.heard.contains("poisoned"),
            Some(label) => labelled(label) && heard.status() != 200 && !heard.heard.contains("\"result\""),
        };
        if !holds {
            faults.push(format!("{name} ({label:?}): {heard:?}\n  {messages:?}"));
        }
    }
    ensure!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
    Ok(())
}
