//! How a hold ends when nobody approves it in time, or nobody waits for it any more: the call never goes upstream,
//! whatever is signed afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, World, WorldPlan, until};

use super::{ARRIVES, Held, REFUSED, column, held};

const WHY: &str = "Change CHG-7 was agreed on Monday";
/// Asks for a deployment as a client does that takes no event stream, and prints what it is answered.
const PLAIN_CLIENT: &str = include_str!("plain_client.py");

/// An approval that comes too late says so, and changes nothing.
fn approved_too_late(world: &World, held: &Held, end: &str) -> Result<()> {
    let late = world.approver.approve(&world.collector, &held.id, WHY)?;
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    let said = String::from_utf8_lossy(&late.stderr);
    assert_eq!(said.trim(), format!("weir-collector: the hold {} is no longer open: {end}", held.id));
    assert_eq!(held.executed(world)?, 0, "approved after its end, it ran");
    Ok(())
}

#[test]
fn a_call_that_nobody_decides_in_time_is_refused_and_its_session_lives_on() -> Result<()> {
    let world = World::start(&WorldPlan { deadline: "2s", ..WorldPlan::default() })?;
    for kind in ClientKind::BOTH {
        let mut held = held(&world, kind, kind.name(), "deploy,echo", &[])?;
        let told = held.job.finish(CLIENT_DEADLINE)?;
        let call = told.first("deploy")?;
        assert_eq!((call.ok, call.code), (false, Some(REFUSED)), "{call:?}");
        let message = call.message.as_deref().unwrap_or_default();
        assert!(message.contains("nobody approved it in time") && message.contains(&held.id), "{message}");
        assert!(call.took() >= Duration::from_secs(2), "{call:?}");
        assert!(told.first("echo")?.ok, "the session lives on: {told:?}");
        assert_eq!(held.recorded_as(&world, "expired")?["decision"], "expired");
        assert_eq!(column(&held.decisions(&world)?, "approver"), [""]);
        approved_too_late(&world, &held, "expired")?;
    }
    Ok(())
}

#[test]
fn a_call_whose_client_is_gone_never_runs_even_if_it_is_approved_afterwards() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut all = Vec::new();
    for kind in ClientKind::BOTH {
        let mut held = held(&world, kind, kind.name(), "deploy", &[])?;
        held.job.signal_client(Signal::SIGKILL)?;
        all.push(held);
    }
    // One that takes no events gives Weir nothing to notice by but the connection's end.
    let mut silent = plain_client(&world, "silent")?;
    silent.job.signal_client(Signal::SIGKILL)?;
    all.push(silent);
    for held in &all {
        assert_eq!(held.recorded_as(&world, "client_gone")?["decision"], "client_gone");
        approved_too_late(&world, held, "client_gone")?;
        assert_eq!(column(&held.decisions(&world)?, "decision"), ["client_gone"]);
    }
    Ok(())
}

#[test]
fn a_call_that_its_client_cancels_never_runs_even_if_it_is_approved_afterwards() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    for kind in ClientKind::BOTH {
        // Both SDKs give a call up when its time is over, and tell the server; the session goes on, here with
        // more calls that are held.
        let calls = "deploy,deploy,deploy,deploy,deploy";
        let mut held = held(&world, kind, kind.name(), calls, &["--timeout-ms", "2000"])?;
        let job = &held.job;
        until("the client to give up", ARRIVES, || Ok((!job.told()?.calls.is_empty()).then_some(())))?;
        assert_eq!(held.recorded_as(&world, "client_gone")?["decision"], "client_gone");
        approved_too_late(&world, &held, "client_gone")?;
        assert!(held.job.ended()?.is_none(), "{kind:?} was to be there still");
    }
    Ok(())
}

#[test]
fn a_client_that_takes_no_events_gets_plain_json_when_there_is_an_answer() -> Result<()> {
    let world = World::start(&WorldPlan { answers_json: true, ..WorldPlan::default() })?;
    let mut approved = plain_client(&world, "approved")?;
    ensure!(world.approver.approve(&world.collector, &approved.id, WHY)?.status.success());
    ensure!(approved.job.wait(CLIENT_DEADLINE)?.success());
    let told = approved.job.stdout()?;
    assert!(told.contains("200 application/json") && told.contains("deployed to production"), "{told}");
    assert_eq!(approved.executed(&world)?, 1);
    approved.recorded_as(&world, "ok")?;

    let mut refused = plain_client(&world, "refused")?;
    ensure!(world.approver.refuse(&world.collector, &refused.id, WHY)?.status.success());
    ensure!(refused.job.wait(CLIENT_DEADLINE)?.success());
    let told = refused.job.stdout()?;
    assert!(told.contains("200 application/json") && told.contains("-31403") && told.contains(WHY), "{told}");
    assert_eq!(refused.executed(&world)?, 0);
    refused.recorded_as(&world, "refused")?;

    // To one that does take events, a server's plain JSON goes as an event.
    let mut streamed = held(&world, ClientKind::TypeScript, "streamed", "deploy,echo", &[])?;
    ensure!(world.approver.approve(&world.collector, &streamed.id, WHY)?.status.success());
    let told = streamed.job.finish(CLIENT_DEADLINE)?;
    assert!(told.calls.iter().all(|call| call.ok) && told.calls.len() == 2, "{told:?}");
    streamed.recorded_as(&world, "ok")?;
    Ok(())
}

#[test]
fn a_hold_made_while_the_collector_is_down_arrives_late_and_can_be_approved() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    world.collector.daemon().kill()?;
    let arguments = ["--calls", "deploy", "--nonce", "late"];
    let mut job = world.start_client(ClientKind::TypeScript, "localhost", &arguments)?;
    let agent = world.agent.daemon();
    until("the agent to have tried", ARRIVES, || {
        Ok(agent.log().contains("the collector did not take a hold").then_some(()))
    })?;
    world.collector.start_again()?;
    let (id, _) = weir_tests::approver::next_hold(&world.collector, ARRIVES)?;
    // It goes away again between the signature and its way to the agent.
    world.collector.daemon().kill()?;
    let key = world.approver.key.to_string_lossy().into_owned();
    let said = world.collector.run(&[
        "approvals",
        "approve",
        &id,
        "--justification",
        WHY,
        "--key",
        &key,
        "--no-wait",
    ])?;
    assert!(said.contains("signed; the agent has not answered yet"), "{said}");
    ensure!(job.ended()?.is_none(), "nothing released the call");
    world.collector.start_again()?;
    assert!(job.finish(CLIENT_DEADLINE)?.first("deploy")?.ok);
    let held = Held { job, nonce: "late".into(), id, hold: serde_json::Value::Null };
    assert_eq!(held.recorded_as(&world, "ok")?["decision"], "approved");
    assert_eq!(held.executed(&world)?, 1);
    Ok(())
}

#[test]
fn a_hold_does_not_outlive_its_agent() -> Result<()> {
    // Its clients come back while no agent runs, and are to see that it is not Weir.
    let failure = "intercepted = \"open\"";
    let mut world = World::start(&WorldPlan { failure, ..WorldPlan::default() })?;
    // A clean end drops what waits, and says so; of a killed agent's calls nothing more is known.
    for (kind, killed, result) in
        [(ClientKind::Python, true, "unknown"), (ClientKind::TypeScript, false, "aborted")]
    {
        let mut held = held(&world, kind, kind.name(), "deploy", &["--timeout-ms", "15000"])?;
        let ended = match killed {
            true => world.agent.daemon().kill()?,
            false => world.agent.daemon().terminate()?,
        };
        assert_eq!(ended.success(), !killed, "{ended}");
        world.agent.start_again()?;
        let row = held.recorded_as(&world, result)?;
        assert_eq!(row["decision"], "");
        // Signed now, by the right key, it finds nobody who waits for it.
        approved_too_late(&world, &held, result)?;
        assert!(!held.job.finish(CLIENT_DEADLINE)?.first("deploy")?.ok);
        assert_eq!(held.executed(&world)?, 0);
    }
    Ok(())
}

/// Starts a client that takes no event stream, and waits until its call is held.
fn plain_client(world: &World, nonce: &str) -> Result<Held> {
    let (python, url) = (world.setup.python(), world.server.url("localhost"));
    let command = [python.into(), "-c".into(), PLAIN_CLIENT.into(), url.into(), nonce.into()];
    super::held_by(world, world.job().command(&command)?, nonce)
}
