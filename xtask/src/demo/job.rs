//! The demo's pipeline job, run as ever and through Weir, with a human who answers what is held.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use weir_tests::approver::next_hold;
use weir_tests::job::Job;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Conversation, World, until};

/// How long the approver thinks; long enough for the client to see some keep-alives, one a second.
const THOUGHT: Duration = Duration::from_millis(2500);
pub const JUSTIFICATION: &str = "release 1.4 was signed off in the change meeting";
pub const TICKET: &str = "CHG-2041";

/// One run of the job.
#[derive(Debug)]
pub struct Run {
    /// What each client told, in the order of [`ClientKind::BOTH`].
    pub told: Vec<Conversation>,
    /// The nonces of the calls that the server executed in this run.
    pub executed: BTreeSet<String>,
    /// The connects that the kernel redirected in this run.
    pub redirected: u64,
    /// The calls that were held, as the approver saw them.
    pub held: Vec<serde_json::Value>,
}

/// Outside the watched cgroup: the agent runs, and has no part in it.
pub fn as_ever(world: &World) -> Result<Run> {
    run(world, "plain", world.job_outside().command(&command(world, "plain"))?)
}

/// In the watched cgroup.
pub fn through_weir(world: &World) -> Result<Run> {
    run(world, "weir", world.job().command(&command(world, "weir"))?)
}

/// The one command of both runs; the nonces of the calls begin with the name of the run.
fn command(world: &World, name: &str) -> Vec<OsString> {
    let setup = &world.setup;
    let job = setup.client_file("job.sh");
    let url = world.server.url("localhost");
    vec!["/bin/sh".into(), job.into(), setup.node().into(), setup.python().into(), url.into(), name.into()]
}

fn run(world: &World, name: &str, mut job: Job) -> Result<Run> {
    let redirected = world.agent.status()?.connects.redirected;
    let held = approve_until_ended(world, &mut job)?;
    job.wait(CLIENT_DEADLINE)?;
    let told = Conversation::read_each(&job.stdout()?)?;
    if told.len() != ClientKind::BOTH.len() || told.iter().any(|told| told.failed.is_some()) {
        bail!("the job's clients did not get through:\n{}{}", job.stdout()?, job.stderr()?);
    }
    let executed = world.server.executed()?.into_iter().map(|call| call.nonce);
    Ok(Run {
        told,
        executed: executed.filter(|nonce| nonce.starts_with(name)).collect(),
        redirected: world.agent.status()?.connects.redirected - redirected,
        held,
    })
}

/// Plays the approver for as long as the job runs.
fn approve_until_ended(world: &World, job: &mut Job) -> Result<Vec<serde_json::Value>> {
    let mut held = Vec::new();
    let began = Instant::now();
    while job.ended()?.is_none() {
        if began.elapsed() > CLIENT_DEADLINE {
            bail!("the job does not come to its end:\n{}{}", job.stdout()?, job.stderr()?);
        }
        // A short look each time, so that the job's end is seen as well.
        let Ok((id, hold)) = next_hold(&world.collector, Duration::from_millis(200)) else { continue };
        let seen = Instant::now();
        until("the approver to have thought", THOUGHT * 2, || Ok((seen.elapsed() >= THOUGHT).then_some(())))?;
        let key = world.approver.key.to_str().context("a key path that is not UTF-8")?;
        let said = world.collector.run(&[
            "approvals",
            "approve",
            &id,
            "--justification",
            JUSTIFICATION,
            "--ticket",
            TICKET,
            "--key",
            key,
            "--as",
            &world.approver.principal,
        ])?;
        println!("   {} approved a held call: {}", world.approver.principal, said.trim().replace('\n', " "));
        held.push(hold);
        let still_open = || {
            Ok(next_hold(&world.collector, Duration::ZERO)
                .ok()
                .is_none_or(|(other, _)| other != id)
                .then_some(()))
        };
        until("the approved call to leave the list", Duration::from_secs(20), still_open)?;
    }
    Ok(held)
}
