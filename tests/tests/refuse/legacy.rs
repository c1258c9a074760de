//! HTTP+SSE of 2024-11-05, with the official client for it: answers come on the session's stream, and so do Weir's. What is
//! posted gets 202 in any case; any other answer makes that client wait for ever.

use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::approver::next_hold;
use weir_tests::client::Conversation;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{Job, World, WorldPlan};

use super::{REFUSED, executed};

const CLIENT: &str = include_str!("legacy.py");

fn client(world: &World, nonce: &str, tools: &[&str]) -> Result<Job> {
    let words =
        [world.setup.python().into(), "-c".into(), CLIENT.into(), world.server.url("localhost").into()];
    let more = std::iter::once(nonce.into()).chain(tools.iter().map(Into::into));
    let command: Vec<std::ffi::OsString> = words.into_iter().chain(more).collect();
    world.job().command(&command)
}

fn finish(mut job: Job) -> Result<Conversation> {
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{} {}", job.stdout()?, job.stderr()?);
    Conversation::read(&job.stdout()?)
}

#[test]
fn on_the_older_transport_a_refusal_comes_on_the_stream_and_the_session_lives_on() -> Result<()> {
    let world = World::start(&WorldPlan { legacy_sse: true, ..WorldPlan::default() })?;
    let told = finish(client(&world, "old", &["echo", "delete_repo", "echo"])?)?;
    let [before, refused, after] = &told.calls[..] else { anyhow::bail!("{told:?}") };
    ensure!(before.ok && after.ok, "{told:?}");
    let message = refused.message.as_deref().unwrap_or_default();
    ensure!(refused.code == Some(REFUSED) && message.contains("no-deletes"), "{refused:?}");
    ensure!(refused.took() < Duration::from_secs(10), "it was waited for: {refused:?}");
    ensure!(executed(&world)? == ["old-0", "old-2"], "{:?}", executed(&world)?);
    let rows = world.sql_until(
        3,
        "SELECT gen_ai_tool_name AS tool, result FROM calls WHERE gen_ai_tool_name != '' AND result != 'open' ORDER BY seq",
    )?;
    let ended: Vec<_> = rows.iter().map(|row| (row["tool"].as_str(), row["result"].as_str())).collect();
    let row = |tool, result| (Some(tool), Some(result));
    ensure!(ended == [row("echo", "ok"), row("delete_repo", "refused"), row("echo", "ok")], "{rows:?}");
    Ok(())
}

#[test]
fn on_the_older_transport_a_held_call_is_answered_on_the_stream_when_it_is_decided() -> Result<()> {
    let world = World::start(&WorldPlan { legacy_sse: true, keepalive: "300ms", ..WorldPlan::default() })?;
    let why = "Change CHG-7 was agreed on Monday";
    for (nonce, approves) in [("yes", true), ("no", false)] {
        let job = client(&world, nonce, &["deploy", "echo"])?;
        let (id, _) = next_hold(&world.collector, CLIENT_DEADLINE)?;
        let answered = match approves {
            true => world.approver.approve(&world.collector, &id, why)?,
            false => world.approver.refuse(&world.collector, &id, why)?,
        };
        ensure!(answered.status.success(), "{answered:?}");
        let told = finish(job)?;
        let (deploy, echo) = (told.first("deploy")?, told.first("echo")?);
        ensure!(deploy.ok == approves && echo.ok, "{told:?}");
        ensure!(approves || deploy.code == Some(REFUSED), "{deploy:?}");
        let ran = executed(&world)?.contains(&format!("{nonce}-0"));
        ensure!(ran == approves, "{nonce}: {:?}", executed(&world)?);
    }
    Ok(())
}
