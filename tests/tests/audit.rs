//! What an auditor sees of a real agent's log: over a change of its key and a kill it is clean, for both verifiers, and not any
//! more when its last events are taken away.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::places::{Setup, binary, workspace};
use weir_tests::{ClientKind, World, WorldPlan};

fn key(world: &World, act: &str) -> Result<Value> {
    let mut weir = Command::new(binary("weir")?);
    let output = weir.args(["key", act, "--json", "--config"]).arg(world.agent.config()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no JSON")
}

/// `weir-collector` with arguments: its exit code and what it said.
fn collector(world: &World, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = world.collector.attempt(arguments)?;
    let told = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&told).into_owned()))
}

fn call(world: &World, nonce: &str) -> Result<()> {
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo", "--nonce", nonce])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    Ok(())
}

#[test]
fn a_real_agents_log_is_clean_over_a_changed_key_and_a_kill_until_its_end_is_cut_off() -> Result<()> {
    let mut world = World::start(&WorldPlan { kind: "audit", ..WorldPlan::default() })?;
    let first = key(&world, "show")?;
    call(&world, "before")?;
    key(&world, "rotate")?;
    call(&world, "between")?;
    world.agent.daemon().kill()?;
    world.agent.start_again()?;
    call(&world, "after")?;
    world.until_shipped()?;

    let trust = world.collector.attempt(&["trust"])?;
    let pinned: Value = serde_json::from_slice(&trust.stdout).context("a trust file")?;
    ensure!(
        pinned["logs"][0]["key"] == first["key"],
        "what the host says and what the store does differ: {pinned}"
    );
    let trust_file = world.folder().join("trust.json");
    std::fs::write(&trust_file, &trust.stdout)?;
    let trust = trust_file.to_str().context("UTF-8")?;
    let verify = ["verify", "--trust", trust];
    let (code, told) = collector(&world, &verify)?;
    ensure!(code == Some(0) && told.contains("2 epochs") && told.contains("clean: "), "{code:?} {told}");

    let export = world.folder().join("records.tar.zst");
    let path = export.to_str().context("UTF-8")?;
    let (code, told) = collector(&world, &["export", "-o", path])?;
    ensure!(code == Some(0), "{told}");
    let (code, told) = collector(&world, &["verify", "--trust", trust, "--export", path])?;
    ensure!(code == Some(0) && told.contains("clean: "), "{code:?} {told}");
    let second = || -> Result<(Option<i32>, String)> {
        let mut python = Command::new(Setup::locate()?.python());
        let output = python.arg(workspace().join("docs/verify.py")).args([&export, &trust_file]).output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        ))
    };
    let (code, told) = second()?;
    ensure!(code == Some(0), "{code:?} {told}");

    // The agent ends, and an auditor pins what there is. Then somebody with the store's secret takes the last segment away, with all
    // that witnessed it.
    world.agent.daemon().terminate()?;
    let last = world.collector.attempt(&["trust"])?;
    std::fs::write(&trust_file, &last.stdout)?;
    let cut = world.number("SELECT max(first_seq) FROM batches")?;
    for (table, number) in
        [("events", "seq + 1"), ("batches", "last_seq + 1"), ("checkpoints", "first_seq + tree_size")]
    {
        let delete = format!("ALTER TABLE {table} DELETE WHERE {number} > {cut} SETTINGS mutations_sync = 2");
        world.store.execute(&delete)?;
    }
    let (code, told) = collector(&world, &["verify", "--settle", "0", "--trust", trust])?;
    ensure!(
        code == Some(1) && (told.contains("rolled_back: log") || told.contains("truncated: log")),
        "{told}"
    );
    ensure!(told.contains(&format!("event {cut}")) || told.contains(&format!("events {cut} to")), "{told}");
    Ok(())
}
