//! While the collector or the store is away, or the agent is started anew, calls go on and their records wait in the spool;
//! later they arrive, each once and none missing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;
use weir_tests::{ClientKind, World, WorldPlan};

/// Calls of both clients, all of which must succeed.
fn calls_go_on(world: &World, phase: &str) -> Result<()> {
    for kind in ClientKind::BOTH {
        let nonce = format!("{phase}-{}", kind.name());
        let told = world.converse(kind, "localhost", &["--calls", "echo,count,echo", "--nonce", &nonce])?;
        ensure!(told.calls.len() == 3 && told.calls.iter().all(|call| call.ok), "{phase}: {told:?}");
    }
    Ok(())
}

fn waiting(world: &World) -> Result<u64> {
    Ok(world.agent.status()?.spool.unshipped_events)
}

/// Records wait, and not one more of them has come to the store than before.
fn nothing_arrives(world: &World, before: u64) -> Result<u64> {
    let now = waiting(world)?;
    // Six calls have an intent and an outcome each.
    ensure!(now >= before + 12, "{now} events wait, and {before} did before");
    Ok(now)
}

/// All that the server executed is in the store with one intent and one outcome; no event is missing or there twice.
fn each_arrived_once(world: &World, phases: usize) -> Result<()> {
    world.until_shipped()?;
    let executed: BTreeSet<String> = world.server.executed()?.into_iter().map(|call| call.nonce).collect();
    ensure!(executed.len() == phases * 6, "{executed:?}");
    let rows = world.sql_until(
        phases * 6,
        "SELECT arguments, result FROM calls WHERE gen_ai_tool_name != '' AND result = 'ok' ORDER BY origin, seq",
    )?;
    let nonce = |row: &Value| -> Option<String> {
        let arguments: Value = serde_json::from_str(row["arguments"].as_str()?).ok()?;
        Some(arguments["arguments"]["nonce"].as_str()?.to_owned())
    };
    let recorded: Vec<String> = rows.iter().filter_map(nonce).collect();
    ensure!(recorded.len() == executed.len(), "{} calls recorded: {recorded:?}", recorded.len());
    ensure!(recorded.into_iter().collect::<BTreeSet<_>>() == executed, "executed {executed:?}");
    for (what, question) in [
        ("events twice", "SELECT origin, seq, count() FROM events GROUP BY origin, seq HAVING count() > 1"),
        (
            "calls with several ends",
            "SELECT call_id FROM events WHERE kind = 'outcome' GROUP BY call_id HAVING count() > 1",
        ),
        ("gaps", "SELECT * FROM gaps"),
    ] {
        let found = world.sql(question)?;
        ensure!(found.is_empty(), "{what}: {found:?}");
    }
    Ok(())
}

#[test]
fn records_wait_for_the_collector_the_store_and_a_new_agent_and_arrive_once() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    let origin = world.agent.status()?.origin;

    world.collector.daemon().terminate()?;
    calls_go_on(&world, "no-collector")?;
    let waited = nothing_arrives(&world, 0)?;

    // The log goes on where it was, in the same place.
    world.agent.daemon().terminate()?;
    world.agent.start_again()?;
    ensure!(
        world.agent.status()?.origin == origin && waiting(&world)? >= waited,
        "records were lost on the way"
    );
    calls_go_on(&world, "new-agent")?;
    nothing_arrives(&world, waited)?;

    world.collector.start_again()?;
    each_arrived_once(&world, 2)?;

    world.store.daemon().kill()?;
    calls_go_on(&world, "no-store")?;
    nothing_arrives(&world, 0)?;
    world.store.start_again()?;
    each_arrived_once(&world, 3)?;
    let boots = world.number("SELECT uniq(boot) FROM events")?;
    ensure!(boots == 2, "{boots} starts of the agent are in the record");
    Ok(())
}

#[test]
fn without_any_collector_the_spool_keeps_everything() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    world.collector.daemon().terminate()?;
    world.store.daemon().kill()?;
    calls_go_on(&world, "alone")?;
    let waited = nothing_arrives(&world, 0)?;
    // However the agent ends, what it acknowledged is on disk.
    world.agent.daemon().kill()?;
    world.agent.start_again()?;
    ensure!(waiting(&world)? >= waited, "{} events wait, and {waited} did", waiting(&world)?);
    world.store.start_again()?;
    world.collector.start_again()?;
    each_arrived_once(&world, 1)
}
