//! TLS that breaks off, at each point that matters: the flow's record says how.

use anyhow::{Result, ensure};
use weir_tests::bytes::{End, Talk, TornTls};
use weir_tests::{World, WorldPlan};

use crate::recorded;

struct Row {
    name: &'static str,
    send: Vec<String>,
    tls: Option<TornTls>,
    end: End,
    /// What the record says: the treatment, and how it ended; two ways where it depends on what came in one segment.
    expected: (&'static str, &'static str),
}

fn plain(name: &'static str, bytes: &str, end: End, flow_end: &'static str) -> Row {
    let send = if bytes.is_empty() { vec![] } else { vec![bytes.to_owned()] };
    Row { name, send, tls: None, end, expected: ("refused", flow_end) }
}

fn torn(
    name: &'static str,
    cut: Option<i32>,
    after: &'static str,
    then: &str,
    end: End,
    expected: (&'static str, &'static str),
) -> Row {
    let tls = TornTls { name: "localhost".into(), cut, after, then: then.into() };
    Row { name, send: vec![], tls: Some(tls), end, expected }
}

fn rows() -> Vec<Row> {
    let inside = |name, words: &str, end, flow_end| Row {
        send: vec![words.to_owned()],
        ..torn(name, None, "done", "", end, ("terminated", flow_end))
    };
    vec![
        plain("nothing at all", "", End::Fin, "closed"),
        plain("one byte", "\x16", End::Fin, "closed"),
        plain("a record's head", "\x16\x03\x01\x02\x00", End::Fin, "closed"),
        plain("an alert first", "\x15\x03\x03\x00\x02\x02\x28", End::Fin, "unreadable"),
        plain(
            "another handshake message first",
            "\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            End::Fin,
            "unreadable",
        ),
        plain("a record that is too long", "\x16\x03\x01\u{ff}\u{ff}", End::Fin, "unreadable"),
        plain("a version that is none", "\x16\x09\x09\x00\x04", End::Fin, "unreadable"),
        plain("SSL 2", "\u{80}\x2e\x01\x00\x02", End::Fin, "unreadable"),
        plain("noise", "\x00\u{ff}\x00\u{ff}", End::Fin, "unreadable"),
        torn("half a ClientHello", Some(100), "hello", "", End::Fin, ("refused", "closed")),
        torn("half a ClientHello, and a reset", Some(100), "hello", "", End::Rst, ("refused", "broken")),
        torn("all but its last byte", Some(-1), "hello", "", End::Fin, ("refused", "closed")),
        torn("a ClientHello, and no more", None, "hello", "", End::Fin, ("terminated", "client_handshake")),
        torn("a ClientHello, and a reset", None, "hello", "", End::Rst, ("terminated", "client_handshake")),
        torn(
            "a ClientHello, and plain text",
            None,
            "hello",
            "GET / HTTP/1.1\r\n\r\n",
            End::Wait,
            ("terminated", "client_handshake"),
        ),
        torn("half of the last flight", None, "half", "", End::Fin, ("terminated", "client_handshake")),
        torn("a handshake, and no more", None, "done", "", End::Fin, ("terminated", "closed")),
        torn(
            "noise behind the handshake",
            None,
            "done",
            "\x17\x03\x03\x00\x10noise, not a record",
            End::Wait,
            ("terminated", "broken client_handshake"),
        ),
        inside("half a request", "POST /mcp HTTP/1.1\r\nHost: loc", End::Fin, "broken"),
    ]
}

#[test]
fn a_handshake_that_breaks_off_is_recorded_by_where_it_did() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let rows = rows();
    let talks: Vec<_> = rows
        .iter()
        .map(|row| Talk {
            host: "127.0.0.1".into(),
            port: world.server.port(),
            send: row.send.clone(),
            tls: row.tls.clone(),
            end: row.end,
        })
        .collect();
    let heard = world.talk(&talks)?;
    let mut faults = Vec::new();
    for (row, heard) in rows.iter().zip(&heard) {
        let (flow, messages) = recorded(&world, heard.port)?;
        let told = (flow["flow_treatment"].as_str().unwrap_or(""), flow["flow_end"].as_str().unwrap_or(""));
        let (treatment, ends) = row.expected;
        if told.0 != treatment || !ends.split(' ').any(|end| end == told.1) {
            faults.push(format!("{} ({:?}): {told:?} {messages:?}\n  {heard:?}", row.name, row.expected));
        }
    }
    ensure!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
    ensure!(world.server.executed()?.is_empty(), "a call was made");
    Ok(())
}
