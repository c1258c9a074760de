//! What is malformed, through the real agent: each row by its name, with the status that the client gets, the label in the
//! record, and what reached a server that keeps each byte it is sent.

#[path = "malformed/answers.rs"]
mod answers;
#[path = "malformed/handshakes.rs"]
mod handshakes;
#[path = "malformed/requests.rs"]
mod requests;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use serde_json::Value;
use weir_tests::bytes::{End, Recorder, Talk};
use weir_tests::world::RULES;
use weir_tests::{World, WorldPlan};

/// A row's own address: by it the row is known at the server.
fn address(row: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 1, 0, u8::try_from(row + 1).expect("fewer rows")))
}

/// A world whose agent reads what goes to the recorder.
fn world(recorder: &Recorder) -> Result<World> {
    let listed = format!("\n[[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = [{}]\n", recorder.port());
    World::start(&WorldPlan { rules: format!("{RULES}{listed}"), ..WorldPlan::default() })
}

fn talk(row: usize, recorder: &Recorder, send: Vec<String>) -> Talk {
    Talk { host: address(row).to_string(), port: recorder.port(), send, tls: None, end: End::Wait }
}

/// The flow of a client's port, and the messages in it, each as `label payload`.
fn recorded(world: &World, port: u16) -> Result<(Value, Vec<String>)> {
    let flow = world.sql_until(1, &format!("SELECT * FROM flows WHERE client_port = {port}"))?.remove(0);
    let id = flow["flow_id"].as_str().context("a flow without an id")?;
    let rows = world.sql(&format!(
        "SELECT message_label, message_direction, payload FROM messages WHERE flow_id = '{id}' ORDER BY seq"
    ))?;
    let texts = rows.iter().map(|row| {
        let text = |column: &str| row[column].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("message_direction"), text("message_label"), text("payload"))
    });
    Ok((flow, texts.collect()))
}

/// A call of a tool.
fn call(tool: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#
    )
}
