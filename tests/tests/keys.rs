//! The key that signs a host's log, from the command line to the collector: it is shown, changed while calls go on, and kept
//! over a kill; the collector follows from the first key to the last and cosigns all of it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::places::binary;
use weir_tests::{ClientKind, World, WorldPlan, until};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// What `weir ... --json` says.
fn weir(world: &World, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(binary("weir")?)
        .args(arguments)
        .args(["--json", "--config"])
        .arg(world.agent.config())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no JSON")
}

fn call(world: &World, nonce: &str) -> Result<()> {
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo", "--nonce", nonce])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    Ok(())
}

#[test]
fn a_key_is_shown_changed_under_way_and_kept_over_a_kill_and_the_collector_follows() -> Result<()> {
    let mut world = World::start(&WorldPlan { kind: "keys", ..WorldPlan::default() })?;
    let first = weir(&world, &["key", "show"])?;
    ensure!(first["epoch"] == 1 && first["first_seq"] == 0, "{first}");
    call(&world, "before")?;
    let second = weir(&world, &["key", "rotate"])?;
    ensure!(second["epoch"] == 2 && second["key"] != first["key"], "{second}");
    call(&world, "between")?;
    world.agent.daemon().kill()?;
    world.agent.start_again()?;
    call(&world, "after")?;
    world.until_shipped()?;

    let shown = weir(&world, &["key", "show"])?;
    ensure!(shown["key"] == second["key"] && shown["rotation"].is_string(), "{shown}");
    let known = world.sql("SELECT key FROM identities ORDER BY epoch")?;
    let keys: Vec<_> = known.iter().map(|row| row["key"].clone()).collect();
    ensure!(keys == [first["key"].clone(), second["key"].clone()], "{keys:?}");
    until("the collector to have witnessed what there is", DEADLINE, || {
        let status = weir(&world, &["status"])?;
        let (standing, witnessed) = (&status["evidence"]["standing"], &status["evidence"]["witnessed"]);
        ensure!(standing["epoch"] == 2, "{status}");
        Ok((witnessed["epoch"] == 2 && witnessed["size"] == standing["size"]).then_some(()))
    })?;
    let told = world.sql(
        "SELECT event_name, count() AS n FROM events WHERE kind = 'agent' AND event_name IN \
         ('policy.loaded', 'key.rotated', 'log.epoch_begun', 'ship.unproven', 'ship.key_refused', 'witness.fork') \
         GROUP BY event_name ORDER BY event_name",
    )?;
    let names: Vec<_> = told.iter().map(|row| row["event_name"].clone()).collect();
    ensure!(names == ["key.rotated", "policy.loaded"], "{told:?}");
    Ok(())
}
