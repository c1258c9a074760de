//! A disk that is really full: calls that cannot be recorded are refused in clear words, refusals are still recorded out of the
//! reserve, everything else lives on, and all goes on by itself when there is room.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use weir_tests::mounts::own_mounts;
use weir_tests::{Call, ClientKind, World, WorldPlan};

/// The file system of the agent's state, and what of it the spool may have: its reserve is a sixteenth.
const STATE: u64 = 24 << 20;
const SPOOL: &str = "\n[spool]\nmax_bytes = 16777216\n";
const RESERVE: u64 = 1 << 20;
/// The code of a refusal.
const REFUSED: i64 = -31403;
/// Calls that a client makes on the full disk. Each writes some kilobytes: the first may find room in a block that is begun.
const CALLS: &str = "echo,echo,echo,echo,echo,echo,delete_repo,echo,delete_repo";

#[test]
fn on_a_full_disk_calls_are_refused_refusals_recorded_and_with_room_all_goes_on() -> Result<()> {
    own_mounts()?;
    let rules = format!("{SPOOL}{}", weir_tests::world::RULES);
    let plan = WorldPlan { kind: "full", state_bytes: Some(STATE), rules, ..WorldPlan::default() };
    let world = World::start(&plan)?;
    let reserve = world.agent.state().join("spool/reserve");
    let before =
        world.converse(ClientKind::Python, "localhost", &["--calls", "echo", "--nonce", "before"])?;
    ensure!(before.calls.iter().all(|call| call.ok), "{before:?}");
    ensure!(reserve.metadata()?.len() == RESERVE, "the reserve has {} bytes", reserve.metadata()?.len());

    let filler = fill(world.agent.state())?;
    let full = world.converse(ClientKind::Python, "localhost", &["--calls", CALLS, "--nonce", "full"])?;
    ensure!(full.sessions_lost == 0, "the session broke: {full:?}");
    let (policy, others): (Vec<&Call>, Vec<&Call>) =
        full.calls.iter().partition(|call| call.tool == "delete_repo");
    for call in &policy {
        ensure!(call.code == Some(REFUSED) && says(call, "no-deletes"), "{call:?}");
    }
    let unrecorded: Vec<_> = others.iter().filter(|call| !call.ok).collect();
    for call in &unrecorded {
        ensure!(
            call.code == Some(REFUSED) && says(call, "cannot be recorded now; try again later"),
            "{call:?}"
        );
    }
    ensure!(unrecorded.len() >= 2, "the disk was not full: {full:?}");
    let executed = world.server.executed()?;
    for call in &full.calls {
        let ran = executed.iter().any(|executed| executed.nonce == call.nonce);
        ensure!(ran == call.ok, "{call:?}, and it was executed: {ran}");
    }
    ensure!(!reserve.exists(), "refusals were written without the reserve");
    // The agent answers, and says what is wrong.
    let status = world.agent.status()?;
    ensure!(status.ready, "{status:?}");

    std::fs::remove_file(&filler)?;
    let after =
        world.converse(ClientKind::Python, "localhost", &["--calls", "echo,echo", "--nonce", "after"])?;
    ensure!(after.calls.iter().all(|call| call.ok), "{after:?}");
    ensure!(reserve.metadata().context("the reserve")?.len() == RESERVE, "it was not taken back");

    world.until_shipped()?;
    for call in &policy {
        let rows = world.sql_until(1, &calls_of(&call.nonce))?;
        ensure!(rows[0]["policy_rule"] == "no-deletes" && rows[0]["result"] == "refused", "{rows:?}");
    }
    for call in [&before, &full, &after].iter().flat_map(|told| &told.calls).filter(|call| call.ok) {
        let rows = world.sql_until(1, &calls_of(&call.nonce))?;
        ensure!(rows.len() == 1 && rows[0]["result"] == "ok", "{rows:?}");
    }
    ensure!(world.sql("SELECT * FROM gaps")?.is_empty(), "the log has gaps");
    Ok(())
}

fn calls_of(nonce: &str) -> String {
    format!("SELECT * FROM calls WHERE position(arguments, '\"{nonce}\"') > 0 AND result != 'open'")
}

fn says(call: &Call, what: &str) -> bool {
    call.message
        .as_deref()
        .is_some_and(|message| message.contains("refused by Weir") && message.contains(what))
}

/// Fills the file system to its last block.
fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("filler");
    let mut file = File::create(&path)?;
    for block in [64 << 10, 512] {
        let block = vec![0; block];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(path)
}
