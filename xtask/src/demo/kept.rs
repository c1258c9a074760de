//! What `--keep` leaves running: how to talk to it, and how it is ended later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weir_tests::places::binary;
use weir_tests::{Setup, World, cgroup, pins, until};

/// Leaves the world running, writes down what it is, and says how to talk to it.
pub fn leave(world: &mut World) -> Result<()> {
    let processes: Vec<Value> = world
        .daemons()
        .iter()
        .map(|daemon| Ok(json!({ "pid": daemon.pid(), "started": started(daemon.pid())? })))
        .collect::<Result<_>>()?;
    let kept = json!({ "processes": processes, "cgroup": world.parent().path(), "folder": world.folder(), "pins": world.pins.path() });
    std::fs::write(record(&world.setup), kept.to_string())?;
    world.keep();
    let [weir, collector] = ["weir", "weir-collector"].map(binary);
    let (weir, collector) = (weir?, collector?);
    let (agent, question) = (world.agent.config().display(), world.collector.config().display());
    let trust = world.agent.trust();
    println!("\nAll of it goes on running. Talk to it:");
    println!("   {} status --config {agent}", weir.display());
    println!("   {} --config {question} query --named calls", collector.display());
    println!(
        "   {} --config {question} query 'SELECT kind, count() FROM events GROUP BY kind'",
        collector.display()
    );
    println!("   {} --config {question} approvals list", collector.display());
    println!(
        "   curl -u \"default:$(cat {})\" --data 'SHOW TABLES FROM weir' {}",
        world.store.secret().display(),
        world.store.url()
    );
    println!("A call of your own through it, from the watched cgroup:");
    println!(
        "   sh -c 'echo $$ > {}/cgroup.procs; NODE_EXTRA_CA_CERTS={} exec {} {} {} --calls echo,delete_repo'",
        world.selected.path().display(),
        trust.extra.display(),
        world.setup.node().display(),
        world.setup.client_file("client.mjs").display(),
        world.server.url("localhost"),
    );
    println!("End it:\n   cargo xtask demo --stop");
    Ok(())
}

/// Ends what an earlier demo left running, if one did.
pub fn stop() -> Result<()> {
    let record = record(&Setup::locate()?);
    let Ok(text) = std::fs::read_to_string(&record) else { return Ok(()) };
    let kept: Value = serde_json::from_str(&text).with_context(|| format!("reading {}", record.display()))?;
    for process in kept["processes"].as_array().into_iter().flatten() {
        if let (Some(pid), Some(start)) = (process["pid"].as_u64(), process["started"].as_u64()) {
            end(pid.try_into()?, start)?;
        }
    }
    if let Some(path) = kept["pins"].as_str() {
        pins::detach(Path::new(path))?;
    }
    if let Some(path) = kept["cgroup"].as_str() {
        cgroup::remove(Path::new(path))?;
    }
    if let Some(folder) = kept["folder"].as_str().map(Path::new).filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::remove_file(&record)?;
    println!("What an earlier demo left running has ended.");
    Ok(())
}

fn record(setup: &Setup) -> PathBuf {
    setup.folder().join("kept.json")
}

/// When a process started, in ticks since boot: with its pid it names one process and no other.
fn started(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): field 22; the second field is in parentheses and may hold anything.
    let rest = stat.rsplit_once(") ").context("no command in its stat")?.1;
    anyhow::ensure!(!rest.starts_with('Z'), "it has ended, and nobody has asked how");
    rest.split(' ').nth(19).context("a short stat")?.parse().context("a start time that is no number")
}

/// Ends the very process that was started then, and not one that has its pid now.
fn end(pid: u32, start: u64) -> Result<()> {
    let alive = || started(pid).is_ok_and(|now| now == start);
    if alive() {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)
            .with_context(|| format!("ending the process {pid}"))?;
        until("a kept process to end", Duration::from_secs(15), || Ok((!alive()).then_some(())))?;
    }
    Ok(())
}
