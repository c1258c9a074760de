//! A client that cannot wait for as long as a human takes gets its result all the same: it asks again, and what it asked for
//! first is what runs, once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, World, WorldPlan, until};

use super::{ARRIVES, Held, held, held_by};

const WHY: &str = "Change CHG-7 was agreed on Monday";
const SHORT: &str = "answer_within = \"1s\"";
/// Calls "deploy" as a client does that takes no event stream, again and again while it is told that an approval is pending.
const PATIENT_CLIENT: &str = include_str!("patient_client.py");

fn world(answers_json: bool) -> Result<World> {
    World::start(&WorldPlan { approval: SHORT, answers_json, keepalive: "300ms", ..WorldPlan::default() })
}

/// Waits until the client has asked for its call so often besides the first time.
fn until_asked_again(world: &World, held: &Held, times: usize) -> Result<()> {
    let question = format!(
        "SELECT seq FROM events WHERE kind = 'message' AND message_label = 'request' \
         AND call_id = (SELECT call_id FROM calls WHERE approval_id = '{}' LIMIT 1)",
        held.id
    );
    world.sql_until(times, &question).map(drop)
}

#[test]
fn a_client_of_the_stateless_revision_asks_again_until_its_call_is_approved() -> Result<()> {
    let world = world(false)?;
    let mut approved = held(&world, ClientKind::Python, "rounds", "deploy,echo", &[])?;
    until_asked_again(&world, &approved, 2)?;
    assert_eq!(approved.executed(&world)?, 0);
    ensure!(world.approver.approve(&world.collector, &approved.id, WHY)?.status.success());
    let told = approved.job.finish(CLIENT_DEADLINE)?;
    let call = told.first("deploy")?;
    assert_eq!((call.ok, call.text.as_deref()), (true, Some("deployed to production")), "{call:?}");
    assert!(told.first("echo")?.ok, "the session lives on: {told:?}");
    assert_eq!(approved.executed(&world)?, 1);
    approved.recorded_as(&world, "ok")?;
    let calls = world.number("SELECT count() FROM calls WHERE gen_ai_tool_name = 'deploy'")?;
    assert_eq!(calls, 1, "however often it was asked for, it is one call");

    let mut refused = held(&world, ClientKind::Python, "no", "deploy,echo", &[])?;
    until_asked_again(&world, &refused, 1)?;
    ensure!(world.approver.refuse(&world.collector, &refused.id, WHY)?.status.success());
    let told = refused.job.finish(CLIENT_DEADLINE)?;
    let call = told.first("deploy")?;
    assert!(
        call.code == Some(super::REFUSED) && call.message.as_deref().unwrap_or("").contains(WHY),
        "{call:?}"
    );
    assert!(told.first("echo")?.ok, "the session lives on: {told:?}");
    assert_eq!(refused.executed(&world)?, 0);
    Ok(())
}

#[test]
fn a_client_that_takes_no_events_is_told_what_is_pending_and_gets_it_when_it_calls_again() -> Result<()> {
    let world = world(true)?;
    let (python, url) = (world.setup.python(), world.server.url("localhost"));
    let command = [python.into(), "-c".into(), PATIENT_CLIENT.into(), url.into(), "patient".into()];
    let mut held = held_by(&world, world.job().command(&command)?, "patient")?;
    let pending = format!("pending approval {}", held.id);
    until("the client to be told", ARRIVES, || {
        Ok((held.job.stdout()?.matches(&pending).count() >= 2).then_some(()))
    })?;
    assert_eq!(held.executed(&world)?, 0);
    ensure!(world.approver.approve(&world.collector, &held.id, WHY)?.status.success());
    ensure!(held.job.wait(CLIENT_DEADLINE)?.success(), "{}", held.job.stderr()?);
    let last = held.job.stdout()?.lines().last().map(str::to_owned).context("it said nothing")?;
    assert!(last.contains("deployed to production") && !last.contains("\"isError\":true"), "{last}");
    assert_eq!(held.executed(&world)?, 1);
    held.recorded_as(&world, "ok")?;
    Ok(())
}

#[test]
fn a_client_that_asked_for_progress_sees_it_rise_while_its_call_is_held_and_afterwards() -> Result<()> {
    let rules = "[[rule]]\nid = \"counts\"\nwhen = { tool = \"count\" }\naction = \"hold\"\n".to_owned();
    let plan = WorldPlan { rules, approval: SHORT, keepalive: "300ms", ..WorldPlan::default() };
    let world = World::start(&plan)?;
    for kind in ClientKind::BOTH {
        let mut held = held(&world, kind, kind.name(), "count", &["--arguments", "{\"to\": 5}"])?;
        let waited = until("the client to wait", Duration::from_secs(2), || Ok(held.job.ended()?.map(drop)));
        ensure!(waited.is_err(), "the client ended while its call was held");
        ensure!(world.approver.approve(&world.collector, &held.id, WHY)?.status.success());
        let told = held.job.finish(CLIENT_DEADLINE)?;
        let call = told.first("count")?;
        assert_eq!((call.ok, call.text.as_deref()), (true, Some("counted to 5")), "{call:?}");
        assert!(call.progress > 5 + 2, "five of the server's, and some before: {call:?}");
        assert_eq!(held.executed(&world)?, 1);
    }
    Ok(())
}
