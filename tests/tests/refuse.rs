//! What policy refuses, and what it cannot read without doubt, never reaches the server; the client is told, the record
//! says so, and the session lives on.

#[path = "refuse/legacy.rs"]
mod legacy;
#[path = "refuse/rewrite.rs"]
mod rewrite;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::raw::{Request, call};
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Scheme, World, WorldPlan};

/// The code of a refusal.
const REFUSED: i64 = -31403;

fn executed(world: &World) -> Result<Vec<String>> {
    Ok(world.server.executed()?.into_iter().map(|call| call.nonce).collect())
}

#[test]
fn a_refused_call_is_a_clean_error_and_the_session_lives_on() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    for (kind, number) in ClientKind::BOTH.into_iter().zip(1..) {
        let nonce = kind.name();
        let told =
            world.converse(kind, "localhost", &["--calls", "echo,delete_repo,echo", "--nonce", nonce])?;
        let [before, refused, after] = &told.calls[..] else { anyhow::bail!("{told:?}") };
        ensure!(before.ok && after.ok && told.sessions_lost == 0, "{told:?}");
        ensure!(!refused.ok && refused.code == Some(REFUSED), "{refused:?}");
        let message = refused.message.clone().unwrap_or_default();
        ensure!(message.contains("refused by Weir") && message.contains("no-deletes"), "{message}");
        let ran = executed(&world)?;
        ensure!(ran.contains(&before.nonce) && ran.contains(&after.nonce), "{ran:?}");

        let question = "SELECT * FROM calls WHERE policy_action = 'deny' AND result != 'open' ORDER BY seq";
        let rows = world.sql_until(number, question)?;
        let row = &rows[number - 1];
        ensure!(row["policy_rule"] == "no-deletes" && row["result"] == "refused", "{row}");
        ensure!(row["gen_ai_tool_name"] == "delete_repo", "{row}");
        ensure!(row["arguments"].as_str().is_some_and(|text| text.contains(&refused.nonce)), "{row}");
        // The calls around it went over the same session, where the client's revision has one.
        let sessions = world.sql(&format!(
            "SELECT count(DISTINCT mcp_session_id) AS sessions FROM calls \
             WHERE gen_ai_tool_name != '' AND position(arguments, '{nonce}-') > 0"
        ))?;
        ensure!(sessions[0]["sessions"] == json!(1) || sessions[0]["sessions"] == json!("1"), "{sessions:?}");
    }
    ensure!(world.server.executed()?.iter().all(|call| call.tool == "echo"));
    Ok(())
}

#[test]
fn a_batch_with_one_refused_call_is_refused_as_a_whole() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let echo = |id| call(id, "echo", json!({"text": "hello", "nonce": format!("batch-{id}")}));
    let delete = call(2, "delete_repo", json!({"repo": "payments", "nonce": "batch-2"}));
    let batch = json!([echo(1), delete, {"jsonrpc": "2.0", "method": "notifications/progress"}, echo(3)]);
    let alone = echo(4).to_string();
    let requests = [Request::mcp(batch.to_string()), Request::mcp(alone)];
    let answers = world.raw_session("localhost", &requests)?;
    let response = answers[0].response()?;
    ensure!(response.status == 200, "{response:?}");
    let errors: Vec<Value> = serde_json::from_value(response.json()?)?;
    let told: Vec<_> = errors.iter().map(|e| (e["id"].as_i64(), e["error"]["code"].as_i64())).collect();
    ensure!(told == [1, 2, 3].map(|id| (Some(id), Some(REFUSED))), "{errors:?}");
    // The session is the same, and what comes after passes.
    ensure!(answers[1].response()?.json()?["result"]["isError"] != json!(true), "{answers:?}");
    ensure!(executed(&world)? == ["batch-4"], "{:?}", executed(&world)?);

    let rows = world.sql_until(
        3,
        "SELECT policy_action AS action, result FROM calls WHERE position(arguments, 'batch-') > 0 \
         AND position(arguments, 'batch-4') = 0 AND result != 'open' ORDER BY seq",
    )?;
    let verdicts: Vec<_> = rows.iter().map(|row| (row["action"].as_str(), row["result"].as_str())).collect();
    let refused = |action| (Some(action), Some("refused"));
    ensure!(verdicts == [refused("allow"), refused("deny"), refused("allow")], "{rows:?}");
    Ok(())
}

#[test]
fn a_call_in_the_form_of_a_notification_is_refused_in_silence() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut notification = call(1, "delete_repo", json!({"repo": "payments", "nonce": "silent"}));
    notification.as_object_mut().map(|members| members.remove("id"));
    let after = call(2, "echo", json!({"text": "hello", "nonce": "after"}));
    let requests = [notification, after].map(|body| Request::mcp(body.to_string()));
    let answers = world.raw_session("localhost", &requests)?;
    let response = answers[0].response()?;
    ensure!(response.status == 202 && response.body.is_empty(), "{response:?}");
    ensure!(answers[1].response()?.status == 200, "{answers:?}");
    ensure!(executed(&world)? == ["after"], "{:?}", executed(&world)?);
    let rows = world.sql_until(1, "SELECT * FROM calls WHERE policy_action = 'deny' AND result != 'open'")?;
    ensure!(rows[0]["result"] == "refused" && rows[0]["jsonrpc_request_id"] == "", "{}", rows[0]);
    Ok(())
}

/// Bodies that some server might act on and that policy cannot read, each by what is wrong with it; with what else the
/// request's head then says.
fn unreadable() -> Vec<(&'static str, String, Option<&'static str>)> {
    let delete =
        |id: u32| call(id, "delete_repo", json!({"repo": "payments", "nonce": "hidden"})).to_string();
    let plain = |name, body: String| (name, body, None);
    vec![
        plain("a method twice", delete(1).replacen("{", "{\"method\":\"ping\",", 1)),
        plain("a method twice, once escaped", delete(1).replacen("{", "{\"m\\u0065thod\":\"ping\",", 1)),
        plain("params twice", delete(1).replacen("{", "{\"params\":{\"name\":\"echo\"},", 1)),
        plain("a tool's name twice", delete(1).replacen("\"name\"", "\"name\":\"echo\",\"name\"", 1)),
        plain("an argument twice", delete(1).replacen("\"repo\"", "\"repo\":\"a\",\"repo\"", 1)),
        plain("no jsonrpc", delete(1).replacen("\"jsonrpc\":\"2.0\",", "", 1)),
        plain("another jsonrpc", delete(1).replacen("2.0", "2.1", 1)),
        plain("a method and a result", delete(1).replacen("{", "{\"result\":{},", 1)),
        plain("a batch with a broken member", format!("[{},{{\"method\":\"tools/call\"}}]", delete(1))),
        plain("a comment", delete(1).replacen("{", "{/* */", 1)),
        plain("a comma too many", delete(1).replacen("}}}", "}},}", 1)),
        plain("a byte-order mark", format!("\u{ef}\u{bb}\u{bf}{}", delete(1))),
        plain("two values", format!("{}{}", delete(1), delete(2))),
        plain("not UTF-8", delete(1).replacen("payments", "\u{ff}", 1)),
        plain(
            "too deep",
            delete(1).replacen("\"payments\"", &format!("{}{}", "[".repeat(999), "]".repeat(999)), 1),
        ),
        plain("too large", delete(1).replacen("payments", &"x".repeat(70_000), 1)),
        ("an encoding", delete(1), Some("Content-Encoding: gzip")),
        ("an unknown encoding", delete(1), Some("Content-Encoding: identity, gzip")),
    ]
}

#[test]
fn a_body_that_policy_cannot_read_without_doubt_never_reaches_the_server() -> Result<()> {
    let rules = format!("{}\n[limits]\nrequest_body = 65536\n", weir_tests::world::RULES);
    let world = World::start(&WorldPlan { rules, ..WorldPlan::default() })?;
    let bodies = unreadable();
    let request = |(_, body, header): &(_, String, Option<&str>)| {
        let request = Request::mcp(body.clone());
        header.map_or(request.clone(), |line| request.header(line))
    };
    let answers = world.raw_session("localhost", &bodies.iter().map(request).collect::<Vec<_>>())?;
    for ((name, ..), answer) in bodies.iter().zip(&answers) {
        let response = answer.response()?;
        ensure!(response.status == 400, "{name}: {response:?}");
        let told = response.json()?;
        ensure!(told["id"].is_null() && told["error"]["code"] == REFUSED, "{name}: {told}");
    }
    ensure!(executed(&world)?.is_empty(), "{:?}", executed(&world)?);
    let rows = world.sql_until(
        bodies.len(),
        "SELECT payload FROM events WHERE message_label = 'unreadable' ORDER BY seq",
    )?;
    ensure!(rows.len() == bodies.len(), "{rows:?}");
    for ((name, ..), row) in bodies.iter().zip(&rows) {
        // The line of the request, and why.
        let payload = row["payload"].as_str().unwrap_or_default();
        ensure!(payload.starts_with("POST /mcp: ") && payload.len() > 20, "{name}: {payload}");
    }
    ensure!(world.number("SELECT count() FROM calls WHERE gen_ai_tool_name = 'delete_repo'")? == 0);
    Ok(())
}

#[test]
fn a_request_for_another_host_than_the_proven_one_goes_nowhere() -> Result<()> {
    let world = World::start(&WorldPlan { names: vec!["localhost", "other.test"], ..WorldPlan::default() })?;
    let body = |id| call(id, "echo", json!({"text": "hello", "nonce": format!("host-{id}")})).to_string();
    let port = world.server.port();
    let requests = [
        Request::mcp(body(1)).replace("Host", format!("Host: other.test:{port}")),
        Request::mcp(body(2)).header("Host: other.test"),
        Request::mcp(body(3)).replace("Host", "X-No-Host: 1"),
        Request::mcp(body(4)).replace("Host", "Host: 127.0.0.1"),
        // The port says nothing of who is meant, and neither does the case.
        Request::mcp(body(5)).replace("Host", format!("Host: LOCALHOST:{port}")),
    ];
    let answers = world.raw_session("localhost", &requests)?;
    let statuses: Vec<_> = answers.iter().map(|a| a.response().map(|r| r.status)).collect::<Result<_>>()?;
    // Two hosts in one head are two ways to read it: that is no HTTP here, whoever is meant.
    ensure!(statuses[..4] == [421, 400, 421, 421], "{answers:?}");
    let recorded =
        world.sql_until(3, "SELECT payload FROM events WHERE message_label = 'misdirected' ORDER BY seq")?;
    let named = |at: usize| recorded[at]["payload"].as_str().unwrap_or_default();
    ensure!(recorded.len() == 3 && named(0).contains("\"other.test\"") && named(0).contains("\"localhost\""));
    ensure!(executed(&world)?.iter().all(|nonce| nonce == "host-5"), "{:?}", executed(&world)?);
    Ok(())
}

#[test]
fn a_job_cannot_choose_its_servers_name_in_plain_text() -> Result<()> {
    let rules = "[[rule]]\nid = \"by-name\"\nwhen = { server = \"localhost\" }\naction = \"allow\"\n\
                 [[rule]]\nid = \"others\"\naction = \"deny\"\n";
    let plan = WorldPlan { scheme: Scheme::Http, rules: rules.into(), ..WorldPlan::default() };
    let world = World::start(&plan)?;
    let body = call(1, "echo", json!({"text": "hello", "nonce": "named"})).to_string();
    let claims = Request::mcp(body).replace("Host", format!("Host: localhost:{}", world.server.port()));
    let answers = world.raw("127.0.0.1", &[claims])?;
    let told = answers[0].response()?.json()?;
    ensure!(told["error"]["code"] == REFUSED && told["id"] == 1, "{told}");
    ensure!(executed(&world)?.is_empty());
    let rows = world.sql_until(1, "SELECT * FROM calls")?;
    ensure!(rows[0]["server_name"] == "127.0.0.1" && rows[0]["policy_rule"] == "others", "{}", rows[0]);
    Ok(())
}

/// A server that answers one request, and gives all that it has read once its peer is done.
fn answers_one(listener: TcpListener) -> JoinHandle<Result<String>> {
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(CLIENT_DEADLINE))?;
        let (mut read, mut part) = (Vec::new(), [0; 65_536]);
        while !read.ends_with(b"the end\r\n0\r\n\r\n") {
            let more = connection.read(&mut part)?;
            ensure!(more > 0, "it ended early, after {:?}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&part[..more]);
        }
        connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        connection.read_to_end(&mut read)?;
        Ok(String::from_utf8(read)?)
    })
}

#[test]
fn a_length_that_is_said_in_two_ways_reaches_no_server_that_could_read_it_in_another() -> Result<()> {
    let content = "x=1POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\nthe end";
    let body = format!("{:x}\r\n{content}\r\n0\r\n\r\n", content.len());
    let (short, chunked) = ("Content-Length: 3", "Transfer-Encoding: chunked");
    // What is not refused goes on as it came, with one length.
    let cases: [(&[&str], bool); 9] = [
        (&[chunked], true),
        (&[short, chunked], false),
        (&[chunked, short], false),
        (&[short, "Connection: content-length", chunked], false),
        (&["Transfer-Encoding : chunked", short], false),
        (&["Transfer-Encoding: xchunked", short], false),
        (&["Transfer-Encoding: chunked, identity", short], false),
        (&[short, "Content-Length: 4"], false),
        (&["Content-Length: +3"], false),
    ];
    let servers = cases.map(|_| TcpListener::bind("127.0.0.1:0"));
    let servers = servers.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    let ports = servers.iter().map(|server| Ok(server.local_addr()?.port())).collect::<Result<Vec<u16>>>()?;
    let rules = format!("[[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = {ports:?}\n");
    let world = World::start(&WorldPlan { rules, ..WorldPlan::default() })?;
    for (((lengths, passes), server), port) in cases.into_iter().zip(servers).zip(ports) {
        let (server, _idle) = if passes { (Some(answers_one(server)), None) } else { (None, Some(server)) };
        let request = Request::new("POST /form HTTP/1.1").body(body.clone()).without("Content-Length");
        let request = lengths.iter().fold(request, |request, line| request.header(*line));
        let answers = world.raw_to("127.0.0.1", port, Scheme::Http, &[request])?;
        let status = answers[0].response()?.status;
        ensure!(status == if passes { 204 } else { 400 }, "{lengths:?}: {answers:?}");
        let Some(server) = server else { continue };
        let read = server.join().map_err(|_| anyhow::anyhow!("the server broke"))??;
        let (head, rest) = read.split_once("\r\n\r\n").context("no head")?;
        let head = head.to_ascii_lowercase();
        ensure!(rest == body, "{lengths:?}: {read:?}");
        ensure!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{read:?}");
    }
    let refused = cases.iter().filter(|(_, passes)| !passes).count();
    let rows = world.sql_until(refused, "SELECT * FROM flows WHERE flow_end = 'unreadable'")?;
    ensure!(rows.len() == refused, "{rows:?}");
    Ok(())
}
