//! A secret in arguments, in a result or on a command line reaches whom it is for, and is nowhere in what Weir keeps, ships,
//! shows or logs, however much it logs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_tests::approver::next_hold;
use weir_tests::raw::{Request, call};
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, World, WorldPlan};

/// Secrets that nobody has, put together here so that no scanner takes them for real ones: by its form in a result, by its
/// form in arguments and on a command line, by its name, in a request's line, and in a body that cannot be read.
fn secrets() -> [(&'static str, String); 6] {
    [
        ("an AWS key", "AK".to_owned() + "IA" + "Q3EGRT7WLMZ5UXH2"),
        ("the server's GitHub token", "gh".to_owned() + "p_" + "u8Zk3VtQ1wYx7RbN5mLd0HsJc2FgTa9EoPi6"),
        ("the clients' GitHub token", "gh".to_owned() + "p_" + "w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3"),
        ("a password", "correct-horse-battery".to_owned()),
        ("an npm token", "np".to_owned() + "m_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"),
        ("a GitLab token", "gl".to_owned() + "pat-" + "Zx9Yw8Vu7Ts6Rq5Po4Nm"),
    ]
}

fn assert_no_secret(place: &str, bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for (name, secret) in secrets() {
        if let Some(at) = text.find(&secret) {
            let around = text.get(text.floor_char_boundary(at.saturating_sub(200))..at).unwrap_or_default();
            anyhow::bail!("{name} is in {place}, after {around:?}");
        }
    }
    Ok(())
}

/// Every file below a folder, but for those that hold what the world itself was given.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        match () {
            () if kind.is_dir() => found.extend(files(&entry.path())?),
            () if kind.is_file() => found.push(entry.path()),
            () => {}
        }
    }
    Ok(found)
}

fn no_secret_on_disk(world: &World) -> Result<usize> {
    let mut looked_at = 0;
    for name in ["agent.log", "collector.log", "store.log"].map(|name| world.folder().join(name)) {
        assert_no_secret(&name.display().to_string(), &std::fs::read(&name)?)?;
        looked_at += 1;
    }
    for file in [files(world.agent.state())?, files(&world.folder().join("store"))?].concat() {
        // The store merges and drops files of its own as it likes.
        let Ok(bytes) = std::fs::read(&file) else { continue };
        assert_no_secret(&file.display().to_string(), &bytes)?;
        looked_at += 1;
    }
    Ok(looked_at)
}

fn no_secret_in_the_store(world: &World) -> Result<()> {
    for table in ["events", "calls", "flows", "holds", "decisions"] {
        let rows = world.collector.run(&["query", "--json", &format!("SELECT * FROM {table}")])?;
        ensure!(rows.len() > 100, "{table} is empty: {rows}");
        assert_no_secret(table, rows.as_bytes())?;
    }
    for arguments in [&["approvals", "list", "--all"][..], &["approvals", "list", "--all", "--json"]] {
        assert_no_secret("the list of approvals", world.collector.run(arguments)?.as_bytes())?;
    }
    Ok(())
}

/// A client whose result, arguments and command line hold secrets; it must see them.
fn a_call_with_secrets(world: &World, kind: ClientKind) -> Result<()> {
    let [(_, aws), (_, servers), (_, clients), (_, password), ..] = secrets();
    let arguments = json!({"text": format!("use {clients}"), "password": password}).to_string();
    let told =
        world.converse(kind, "localhost", &["--calls", "echo,read_config", "--arguments", &arguments])?;
    let (echo, config) = (told.first("echo")?, told.first("read_config")?);
    let text = config.text.clone().unwrap_or_default();
    ensure!(text.contains(&aws) && text.contains(&servers), "{text}");
    ensure!(echo.text.as_deref() == Some(&format!("use {clients}")), "{echo:?}");
    Ok(())
}

/// What only a client of one's own making sends.
fn raw_secrets(world: &World) -> Result<()> {
    let [_, _, (_, clients), _, (_, npm), (_, gitlab)] = secrets();
    let escaped: String = clients.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let echo = call(1, "echo", json!({"text": "TEXT", "nonce": "escaped"})).to_string();
    let answers = world.raw_session(
        "localhost",
        &[
            Request::mcp(echo.replace("TEXT", &escaped)),
            Request::new(&format!("GET /files?key={npm} HTTP/1.1"))
                .header(format!("Authorization: Bearer {npm}")),
            Request::mcp(format!("{{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":[\"{gitlab}\"]}}")),
            Request::mcp(format!("{{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"{gitlab}\",\"{gitlab}\":1}}")),
            Request::new("GET / HTTP/1.1").replace("Host", format!("Host: {gitlab}.test")),
        ],
    )?;
    ensure!(answers[0].response()?.json()?["result"]["content"][0]["text"] == clients, "{answers:?}");
    ensure!(answers[2].response()?.status == 400 && answers[4].response()?.status == 421, "{answers:?}");
    let rows = world.sql_until(1, "SELECT payload FROM events WHERE position(payload, '/files?key=') > 0")?;
    ensure!(rows[0]["payload"].as_str().is_some_and(|text| text.contains("[masked:")), "{rows:?}");
    Ok(())
}

/// A call whose arguments hold a secret waits for an approver, who is not shown it.
fn a_held_call_with_a_secret(world: &World) -> Result<()> {
    let mut job = world.start_client(ClientKind::Python, "localhost", &["--calls", "deploy"])?;
    let (id, hold) = next_hold(&world.collector, CLIENT_DEADLINE)?;
    assert_no_secret("the hold", hold.to_string().as_bytes())?;
    let shown = world.collector.run(&["approvals", "show", &id])?;
    ensure!(shown.contains("\"token\":\"[masked:"), "{shown}");
    assert_no_secret("what the approver is shown", shown.as_bytes())?;
    let approved = world.approver.approve(&world.collector, &id, "release 7 is signed off")?;
    ensure!(approved.status.success(), "{approved:?}");
    let told = job.finish(CLIENT_DEADLINE)?;
    ensure!(told.first("deploy")?.ok, "{told:?}");
    Ok(())
}

/// Masked texts can still be joined: the same secret has the same stand-in wherever it was found.
fn stand_ins_agree(world: &World) -> Result<()> {
    let found = world.sql(
        "SELECT DISTINCT arrayJoin(extractAll(canonical, '\\\\[masked:github-token:(p0:[0-9a-f]{16})\\\\]')) AS stand_in \
         FROM events",
    )?;
    ensure!(found.len() == 2, "there are two GitHub tokens: {found:?}");
    Ok(())
}

#[test]
fn no_secret_is_kept_shipped_shown_or_logged() -> Result<()> {
    let mut world = World::start(&WorldPlan { log: "trace", ..WorldPlan::default() })?;
    a_call_with_secrets(&world, ClientKind::TypeScript)?;
    raw_secrets(&world)?;
    a_held_call_with_a_secret(&world)?;
    // Without a collector the spool keeps its records, to be looked at.
    world.collector.daemon().terminate()?;
    a_call_with_secrets(&world, ClientKind::Python)?;
    let waiting = world.agent.status()?.spool.unshipped_events;
    ensure!(waiting > 0, "nothing waits in the spool");
    let spool: Vec<u8> = files(&world.agent.state().join("spool"))?
        .iter()
        .map(std::fs::read)
        .collect::<std::io::Result<Vec<_>>>()?
        .concat();
    ensure!(String::from_utf8_lossy(&spool).contains("[masked:aws-access-key:"), "the spool holds no record");
    let looked_at = no_secret_on_disk(&world)?;
    ensure!(looked_at > 20, "{looked_at} files were looked at");

    world.collector.start_again()?;
    world.until_shipped()?;
    no_secret_in_the_store(&world)?;
    no_secret_on_disk(&world)?;
    stand_ins_agree(&world)?;
    let lines = world
        .sql("SELECT DISTINCT process_command_line AS line FROM calls WHERE gen_ai_tool_name = 'echo'")?;
    let line =
        |part: &str| lines.iter().any(|row| row["line"].as_str().is_some_and(|line| line.contains(part)));
    ensure!(line("use [masked:github-token:") && line("[masked:assigned-secret:"), "{lines:?}");
    Ok(())
}

/// A process of any name, which makes one call without an SDK.
#[test]
fn a_secret_on_a_command_line_is_masked_in_each_record_of_the_process() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let [_, _, (_, token), (_, password), ..] = secrets();
    let url = world.server.url("localhost");
    let script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1].replace('/mcp', '/'))";
    let mut command: Vec<OsString> =
        vec![world.setup.python().into(), "-c".into(), script.into(), url.into()];
    command.extend(["--password", &password, &format!("--token={token}")].map(Into::into));
    let mut job = world.job().command(&command)?;
    job.wait(Duration::from_secs(30))?;
    let rows = world.sql_until(1, "SELECT * FROM flows")?;
    let line = rows[0]["process_command_line"].as_str().context("no command line")?;
    ensure!(line.contains("urllib.request") && line.matches("[masked:").count() == 2, "{line}");
    assert_no_secret("the flow", rows[0].to_string().as_bytes())
}
