//! A disk that is really full: calls that cannot be recorded are refused in clear words, refusals are still recorded out of the
//! reserve, everything else lives on, and all goes on by itself when there is room.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weir_tests::mounts::own_mounts;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{Call, ClientKind, Job, World, WorldPlan, until};

/// The file system of the agent's state, and what of it the spool may have: its reserve is a sixteenth.
const STATE: u64 = 24 << 20;
const SPOOL: &str = "\n[spool]\nmax_bytes = 16777216\n";
const RESERVE: u64 = 1 << 20;
/// The code of a refusal.
const REFUSED: i64 = -31403;
const UNRECORDED: &str = "cannot be recorded now; try again later";
/// Calls of each kind that are waited for.
const SOME: usize = 3;
const DEADLINE: Duration = Duration::from_secs(60);

/// A client that calls one tool again and again, in one session.
struct Client(Job);

impl Client {
    fn start(world: &World, tool: &str) -> Result<Self> {
        let options = ["--load", "--in-flight", "1", "--tool", tool, "--nonce", tool];
        Ok(Self(world.start_client(ClientKind::Python, "localhost", &options)?))
    }

    /// Waits until it tells of some more calls of a kind.
    fn until_more(&self, what: &str, kind: impl Fn(&Call) -> bool) -> Result<()> {
        let number = || anyhow::Ok(self.0.told()?.calls.iter().filter(|call| kind(call)).count());
        let before = number()?;
        until(what, DEADLINE, || Ok((number()? >= before + SOME).then_some(())))
            .with_context(|| format!("it tells {:?}", self.0.told().map(|told| told.calls.last().cloned())))
    }

    /// Lets it end, and gives all that it told.
    fn end(mut self) -> Result<Vec<Call>> {
        self.0.signal_client(Signal::SIGTERM)?;
        let told = self.0.finish(CLIENT_DEADLINE)?;
        ensure!(told.sessions_lost == 0, "the session broke");
        Ok(told.calls)
    }
}

fn refused(call: &Call, why: &str) -> bool {
    let message = call.message.as_deref().unwrap_or_default();
    call.code == Some(REFUSED) && message.contains("refused by Weir") && message.contains(why)
}

#[test]
fn on_a_full_disk_calls_are_refused_refusals_recorded_and_with_room_all_goes_on() -> Result<()> {
    own_mounts()?;
    let rules = format!("{SPOOL}{}", weir_tests::world::RULES);
    let plan = WorldPlan { kind: "full", state_bytes: Some(STATE), rules, ..WorldPlan::default() };
    let mut world = World::start(&plan)?;
    let reserve = world.agent.state().join("spool/reserve");
    let echo = Client::start(&world, "echo")?;
    let delete = Client::start(&world, "delete_repo")?;
    let denied = |call: &Call| refused(call, "no-deletes");
    echo.until_more("calls to pass", |call| call.ok)?;
    delete.until_more("calls to be refused by policy", denied)?;
    ensure!(reserve.metadata()?.len() == RESERVE, "the reserve has {} bytes", reserve.metadata()?.len());

    // Stopped, it takes nothing, so that the log makes no room by being shipped.
    world.collector.daemon().signal(Signal::SIGSTOP)?;
    let filler = fill(world.agent.state())?;
    echo.until_more("calls to be refused for want of room", |call| refused(call, UNRECORDED))?;
    delete.until_more("calls to be refused by policy on the full disk", denied)?;
    // A call that cannot be recorded tries to have it back, so that for a moment it may be there.
    until("refusals to be written out of the reserve", DEADLINE, || Ok((!reserve.exists()).then_some(())))?;
    let status = world.agent.status()?;
    ensure!(status.ready, "{status:?}");

    std::fs::remove_file(&filler)?;
    world.collector.daemon().signal(Signal::SIGCONT)?;
    echo.until_more("calls to pass again", |call| call.ok)?;
    delete.until_more("calls to be refused by policy again", denied)?;
    ensure!(reserve.metadata().context("the reserve")?.len() == RESERVE, "it was not taken back");

    let (echoed, deleted) = (echo.end()?, delete.end()?);
    let executed: HashSet<String> = world.server.executed()?.into_iter().map(|call| call.nonce).collect();
    for call in &echoed {
        ensure!(call.ok || refused(call, UNRECORDED), "{call:?}");
        ensure!(call.ok == executed.contains(&call.nonce), "{call:?}, and what was executed says otherwise");
    }
    ensure!(
        !deleted.iter().any(|call| call.ok || executed.contains(&call.nonce)),
        "a refused call was executed"
    );
    world.until_shipped()?;
    let recorded = |result: &str| -> Result<HashSet<String>> {
        let rows = world.sql(&format!(
            "SELECT JSONExtractString(arguments, 'arguments', 'nonce') AS nonce FROM calls WHERE result = '{result}' AND gen_ai_tool_name != ''"
        ))?;
        rows.iter().map(|row| Ok(row["nonce"].as_str().context("a nonce")?.to_owned())).collect()
    };
    let nonces = |calls: &[Call], which: &dyn Fn(&Call) -> bool| -> HashSet<String> {
        calls.iter().filter(|call| which(call)).map(|call| call.nonce.clone()).collect()
    };
    // Neither more nor fewer.
    for (result, told) in [("ok", nonces(&echoed, &|call| call.ok)), ("refused", nonces(&deleted, &denied))] {
        let recorded = recorded(result)?;
        let differ: Vec<_> = recorded.symmetric_difference(&told).collect();
        ensure!(differ.is_empty(), "{result}: {} recorded, {} told; {differ:?}", recorded.len(), told.len());
    }
    ensure!(world.sql("SELECT * FROM gaps")?.is_empty(), "the log has gaps");
    Ok(())
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
