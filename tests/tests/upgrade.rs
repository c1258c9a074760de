//! A hot upgrade: `weir agent --replace` again and again under load, and nobody notices. Plain calls, streaming ones and one
//! that waits for a human go on; the log is one, dense and whole; each process ends when the last it carried has.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weir_tests::approver::next_hold;
use weir_tests::places::binary;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Conversation, Job, World, WorldPlan, until};

const DEADLINE: Duration = Duration::from_secs(60);
/// How often the agent is replaced.
const REPLACEMENTS: usize = 4;
/// Calls that are executed before each replacement, and after the last.
const BETWEEN: usize = 60;

/// What runs all the while: the client, its name, its tool, its arguments, calls at a time.
const LOAD: [(ClientKind, &str, &str, &str, &str); 4] = [
    (ClientKind::Python, "plain-python", "echo", r#"{"delay_ms":200}"#, "12"),
    (ClientKind::TypeScript, "plain-typescript", "echo", r#"{"delay_ms":20}"#, "8"),
    (ClientKind::Python, "stream-python", "count", r#"{"to":6,"pause_ms":100}"#, "4"),
    (ClientKind::TypeScript, "stream-typescript", "count", r#"{"to":12,"pause_ms":100}"#, "4"),
];

fn start(world: &World) -> Result<Vec<Job>> {
    let start = |(kind, name, tool, arguments, at_once)| {
        let options =
            ["--load", "--tool", tool, "--arguments", arguments, "--in-flight", at_once, "--nonce", name];
        world.start_client(kind, "localhost", &options)
    };
    LOAD.into_iter().map(start).collect()
}

fn stop(mut jobs: Vec<Job>) -> Result<Vec<Conversation>> {
    for job in &mut jobs {
        ensure!(job.ended()?.is_none(), "a client ended by itself:\n{}", job.stderr()?);
        job.signal_client(Signal::SIGTERM)?;
    }
    jobs.iter_mut().map(|job| job.finish(CLIENT_DEADLINE)).collect()
}

/// Waits until each of the clients has had so many more answers.
fn until_answered(jobs: &[Job], each: usize) -> Result<()> {
    let before = jobs.iter().map(|job| Ok(job.told()?.calls.len())).collect::<Result<Vec<_>>>()?;
    until("each client to have had answers", DEADLINE, || {
        for (job, before) in jobs.iter().zip(&before) {
            if job.told()?.calls.len() < before + each {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

fn until_executed(world: &World, more: usize) -> Result<()> {
    let goal = world.server.executed()?.len() + more;
    until("calls to be executed", DEADLINE, || Ok((world.server.executed()?.len() >= goal).then_some(())))
}

#[test]
fn agents_replace_one_another_under_load_and_no_call_fails() -> Result<()> {
    let mut world = World::start(&WorldPlan { kind: "upgrade", ..WorldPlan::default() })?;
    // A held call, which none but the first agent carries.
    let mut held = world.start_client(
        ClientKind::TypeScript,
        "localhost",
        &["--calls", "deploy", "--nonce", "held", "--timeout-ms", "120000"],
    )?;
    let (approval, _) = next_hold(&world.collector, DEADLINE)?;
    let jobs = start(&world)?;
    until_answered(&jobs, 5)?;
    let began = Instant::now();

    let (mut replaced, mut pids) = (Vec::new(), BTreeSet::new());
    let origin = world.agent.status()?.origin;
    let listen = world.agent.status()?.listen;
    pids.insert(world.agent.daemon().pid());
    for _ in 0..REPLACEMENTS {
        until_executed(&world, BETWEEN)?;
        replaced.push(world.agent.replace()?);
        eprintln!("replaced after {:?}", began.elapsed());
        let status = world.agent.status()?;
        ensure!(status.origin == origin, "another log: {status:?}");
        ensure!(status.listen.v4 == listen.v4 && status.listen.v6 == listen.v6, "other sockets: {status:?}");
        ensure!(pids.insert(status.pid), "the same process");
    }
    until_answered(&jobs, 5)?;
    until_executed(&world, BETWEEN)?;

    // The first has handed the log on several times by way of others, and its call is approved and answered all the same.
    ensure!(replaced[0].ended()?.is_none(), "the first agent ended with a held call");
    ensure!(held.ended()?.is_none(), "the held call was answered before anybody decided");
    let approved =
        world.approver.approve(&world.collector, &approval, "It was agreed on before the upgrade")?;
    ensure!(approved.status.success(), "{approved:?}");
    let told = held.finish(CLIENT_DEADLINE)?;
    let call = told.first("deploy")?;
    ensure!((call.ok, call.text.as_deref()) == (true, Some("deployed to production")), "{call:?}");

    let told = stop(jobs)?;
    eprintln!("the clients ended after {:?}", began.elapsed());
    for mut old in replaced {
        let exit = old.wait(DEADLINE)?;
        eprintln!("an agent that was replaced ended after {:?}", began.elapsed());
        ensure!(exit.success(), "an agent that was replaced ended with {exit}");
    }
    no_call_failed(&world, &told)?;
    the_log_is_whole(&world)
}

/// All clients' calls, the server's log and the records are the same calls.
fn no_call_failed(world: &World, told: &[Conversation]) -> Result<()> {
    let mut answered = BTreeSet::from(["held-0".to_owned()]);
    for client in told {
        ensure!(client.sessions_lost == 0, "a session was lost: {client:?}");
        for call in &client.calls {
            ensure!(call.ok, "a call failed: {call:?}");
            ensure!(answered.insert(call.nonce.clone()), "answered twice: {call:?}");
        }
    }
    let log = world.server.executed()?;
    let executed: BTreeSet<String> = log.iter().map(|call| call.nonce.clone()).collect();
    ensure!(executed.len() == log.len(), "a call was executed twice");
    ensure!(executed == answered, "{} executed, {} answered", executed.len(), answered.len());
    world.until_shipped()?;
    let question = "SELECT arguments, result FROM calls WHERE gen_ai_tool_name != ''";
    let rows = world.sql_until(executed.len(), question)?;
    let nonce = |row: &Value| -> Option<String> {
        let arguments: Value = serde_json::from_str(row["arguments"].as_str()?).ok()?;
        Some(arguments["arguments"]["nonce"].as_str()?.to_owned())
    };
    let recorded: BTreeSet<String> = rows.iter().filter_map(nonce).collect();
    ensure!(rows.len() == executed.len() && recorded == executed, "{} rows", rows.len());
    let ended_otherwise = rows.iter().find(|row| row["result"] != "ok");
    ensure!(ended_otherwise.is_none(), "{ended_otherwise:?}");
    eprintln!("{} calls", executed.len());
    Ok(())
}

fn the_log_is_whole(world: &World) -> Result<()> {
    for (what, question) in [
        ("gaps", "SELECT * FROM gaps"),
        ("places with two events", "SELECT seq FROM events GROUP BY origin, seq HAVING count() > 1"),
        (
            "intents without one outcome",
            "SELECT call_id, countIf(kind = 'intent') AS i, countIf(kind = 'outcome') AS o FROM events
             WHERE kind IN ('intent', 'outcome') GROUP BY call_id HAVING i != 1 OR o != 1",
        ),
        (
            "hooks that one agent took for tampered with by the other",
            "SELECT event_detail FROM events WHERE event_name = 'tamper.hook_detached'",
        ),
        ("logs besides the first", "SELECT origin FROM events GROUP BY origin ORDER BY min(time) OFFSET 1"),
    ] {
        let found = world.sql(question)?;
        ensure!(found.is_empty(), "{what}: {found:?}");
    }
    let events = |name: &str| {
        let rows = world.sql("SELECT canonical FROM events WHERE kind = 'agent' ORDER BY seq")?;
        let read = |row: &Value| serde_json::from_str::<Value>(row["canonical"].as_str().unwrap_or_default());
        let all = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        anyhow::Ok(all.into_iter().filter(|event| event["body"]["name"] == name).collect::<Vec<_>>())
    };
    let (started, replaced) = (events("agent.started")?, events("agent.replaced")?);
    ensure!(started.len() == REPLACEMENTS + 1 && replaced.len() == REPLACEMENTS, "{started:?} {replaced:?}");
    let with = started.iter().filter(|event| event["body"]["detail"]["replaces"].is_string()).count();
    ensure!(with == REPLACEMENTS, "{started:?}");
    let stopped = events("agent.stopped")?;
    ensure!(stopped.len() == REPLACEMENTS, "each that was replaced said that it ended: {stopped:?}");
    ensure!(stopped.iter().all(|event| event["body"]["detail"]["unknown_calls"] == "0"), "{stopped:?}");
    ensure!(events("agent.lost")?.is_empty(), "one that was replaced was lost");
    let boots: BTreeSet<String> = started.iter().map(|event| event["boot"].to_string()).collect();
    ensure!(boots.len() == REPLACEMENTS + 1, "each process has a boot of its own");
    Ok(())
}

#[test]
fn what_cannot_take_over_leaves_the_running_agent_as_it_was() -> Result<()> {
    let mut world = World::start(&WorldPlan { kind: "upgrade", ..WorldPlan::default() })?;
    let pid = world.agent.daemon().pid();
    let still_serves = |world: &World, nonce: &str| {
        let told =
            world.converse(ClientKind::Python, "localhost", &["--calls", "echo,count", "--nonce", nonce])?;
        ensure!(told.calls.len() == 2 && told.calls.iter().all(|call| call.ok), "{told:?}");
        ensure!(world.agent.status()?.pid == pid, "another agent answers");
        anyhow::Ok(())
    };
    // A second start, without the flag, says what there is and what to do.
    let second =
        Command::new(binary("weir")?).args(["agent", "--config"]).arg(world.agent.config()).output()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(1), "{second:?}");
    ensure!(said.contains(&format!("pid {pid}")) && said.contains("--replace"), "{said}");

    // One of another version.
    let socket = world.agent.state().join("agent.sock");
    let ask = |handover: u32, layout: Option<u64>| -> Result<(UnixStream, String)> {
        let mut stream = UnixStream::connect(&socket)?;
        let hello =
            json!({"ask": "replace", "handover": handover, "layout": layout, "version": "9", "pid": 1});
        writeln!(stream, "{hello}")?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        Ok((stream, line))
    };
    let (_, refused) = ask(99, Some(1))?;
    ensure!(refused.contains("knows hand-over 1, and the new one (version 9) hand-over 99"), "{refused}");
    let (_, refused) = ask(1, Some(999_999))?;
    let layout = refused.split("kernel table layout ").nth(1).context("no layout")?;
    let layout = layout.split(',').next().context("no layout")?.parse()?;
    still_serves(&world, "versions")?;

    // One that dies in the middle, several times.
    for _ in 0..3 {
        // One at a time: who comes while another is being heard is refused.
        drop(until("the agent to hear another", DEADLINE, || {
            let (stream, line) = ask(1, Some(layout))?;
            Ok(line.contains("replacing").then_some(stream))
        })?);
    }
    still_serves(&world, "dead")?;

    // One with a configuration that cannot be.
    let spoilt = world.folder().join("spoilt.toml");
    let text = std::fs::read_to_string(world.agent.config())?;
    let nowhere = text.replace("/job\"]", "/nowhere\"]");
    ensure!(nowhere != text, "no cgroup to spoil in {text}");
    std::fs::write(&spoilt, nowhere)?;
    let failed =
        Command::new(binary("weir")?).args(["agent", "--replace", "--config"]).arg(&spoilt).output()?;
    ensure!(failed.status.code() == Some(1), "{failed:?}");
    still_serves(&world, "spoilt")?;

    // And then it works.
    let mut old = world.agent.replace()?;
    ensure!(old.wait(DEADLINE)?.success(), "the old agent failed");
    Ok(())
}
