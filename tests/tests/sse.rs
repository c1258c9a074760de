//! Streams stay streams: events pass one by one as the server sends them, in answers and on the stream that a session keeps
//! open, and each message in them is recorded.

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::raw::{Request, call};
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Job, World, WorldPlan};

/// How often the server counts, and its pause after each, ms.
const TO: u64 = 5;
const PAUSE: u64 = 200;

#[test]
fn the_events_of_an_answer_come_one_by_one_and_each_is_recorded() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut counted = call(7, "count", json!({"to": TO, "pause_ms": PAUSE, "nonce": "counted"}));
    counted["params"]["_meta"] = json!({"progressToken": "p"});
    let answers = world.raw_session("localhost", &[Request::mcp(counted.to_string())])?;
    let response = answers[0].response()?;
    ensure!(response.headers["content-type"].starts_with("text/event-stream"), "{response:?}");
    // When the data of each event came: the server's pauses are between them.
    let lines = response.body.lines().zip(&response.arrivals);
    let came: Vec<u64> = lines.filter(|(line, _)| line.starts_with("data: {")).map(|(_, at)| *at).collect();
    ensure!(came.len() as u64 == TO + 1, "{response:?}");
    for pair in came.windows(2) {
        ensure!(pair[1] - pair[0] >= PAUSE / 2, "events came together: {came:?}");
    }
    ensure!(response.json()?["id"] == 7, "the answer to the call comes last: {response:?}");

    let rows = world.sql_until(
        TO as usize,
        "SELECT payload FROM events WHERE kind = 'message' AND message_direction = 'server_to_client' \
         AND mcp_method_name = 'notifications/progress' \
         AND call_id = (SELECT call_id FROM calls WHERE gen_ai_tool_name = 'count') ORDER BY seq",
    )?;
    let progress: Vec<Value> = rows
        .iter()
        .map(|row| Ok(serde_json::from_str(row["payload"].as_str().context("no payload")?)?))
        .collect::<Result<_>>()?;
    let told: Vec<_> = progress.iter().filter_map(|params| params["progress"].as_f64()).collect();
    ensure!(told == (1..=TO).map(|n| n as f64).collect::<Vec<_>>(), "{progress:?}");
    Ok(())
}

#[test]
fn each_client_sees_the_same_stream_as_without_weir() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let arguments = json!({"to": TO, "pause_ms": PAUSE}).to_string();
    let options = ["--calls", "count", "--arguments", &arguments];
    for kind in ClientKind::BOTH {
        let url = world.server.url("localhost");
        let was = world.job_outside().client(kind, &url, &options)?.finish(CLIENT_DEADLINE)?;
        let is = world.converse(kind, "localhost", &options)?;
        let (was, is) = (was.first("count")?, is.first("count")?);
        ensure!(was.ok && is.ok && was.text == is.text, "without Weir {was:?}, with it {is:?}");
        ensure!(
            u64::from(is.progress) == TO && was.progress == is.progress,
            "without Weir {was:?}, with it {is:?}"
        );
        let waited = is.waited_with_headers().as_millis() as u64;
        ensure!(waited >= PAUSE * (TO - 1), "the head came {waited} ms before the end: {is:?}");
    }
    Ok(())
}

/// Opens a session and its stream, makes a call over another connection that lets the server tell the session something,
/// and waits for that on the stream.
const LISTENER: &str = r#"
import json, sys, urllib.request
url, opening, calling = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
accept = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
def post(message):
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(message).encode(), accept), timeout=30)
with post(opening) as answer:
    accept["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
post({"jsonrpc": "2.0", "method": "notifications/initialized"}).read()
with urllib.request.urlopen(urllib.request.Request(url, None, accept), timeout=30) as stream:
    print("open", stream.status, stream.headers["Content-Type"], flush=True)
    assert b"announced" in post(calling).read()
    for line in stream:
        if line.startswith(b"data: {"):
            print(line.decode().strip(), flush=True)
            break
"#;

fn listener(world: &World) -> Result<Job> {
    let opening = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "listener", "version": "1"}}});
    let calling = call(1, "announce", json!({"note": "from-raw", "nonce": "announced"}));
    let command: [OsString; 6] = [
        world.setup.python().into(),
        "-c".into(),
        LISTENER.into(),
        world.server.url("localhost").into(),
        opening.to_string().into(),
        calling.to_string().into(),
    ];
    world.job().command(&command)
}

#[test]
fn what_a_server_tells_a_session_on_its_stream_is_passed_on_and_recorded() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut job = listener(&world)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    let output = job.stdout()?;
    ensure!(
        output.starts_with("open 200 text/event-stream") && output.contains("note://from-raw"),
        "{output}"
    );
    // The official TypeScript client opens the stream by itself; the counting gives it the time to.
    let options = ["--calls", "count,announce", "--arguments", r#"{"note": "from-sdk", "to": 5}"#];
    let told = world.converse(ClientKind::TypeScript, "localhost", &options)?;
    ensure!(told.first("announce")?.ok, "{told:?}");

    let question = "SELECT flow_id, payload, call_id FROM events WHERE kind = 'message' \
                    AND message_direction = 'server_to_client' AND mcp_method_name = 'notifications/resources/updated' \
                    ORDER BY seq";
    let rows = world.sql_until(2, question)?;
    for (row, note) in rows.iter().zip(["from-raw", "from-sdk"]) {
        ensure!(
            row["payload"].as_str().is_some_and(|text| text.contains(&format!("note://{note}"))),
            "{row}"
        );
        ensure!(row["call_id"] == "", "it answers no call: {row}");
        // On the stream's connection, which is not the call's.
        let calls = format!(
            "SELECT flow_id FROM calls WHERE gen_ai_tool_name = 'announce' AND position(arguments, '{note}') > 0"
        );
        let calls = world.sql_until(1, &calls)?;
        ensure!(calls[0]["flow_id"] != row["flow_id"], "{row}");
    }
    let gets = world.sql_until(
        2,
        "SELECT payload FROM events WHERE message_label = 'http' AND startsWith(payload, 'GET /mcp -> 200')",
    )?;
    ensure!(gets.len() == 2, "{gets:?}");
    Ok(())
}
