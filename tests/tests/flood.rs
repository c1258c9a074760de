//! A client that floods is thrown out, and its job's next connections wait; another job's do not. Without that, a flood costs the agent's
//! processor over and over, which all jobs have in common.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weir_tests::conformance::Sdk;
use weir_tests::load::ATTACKER;
use weir_tests::places::free_ports;
use weir_tests::{Cgroup, Scheme, SdkServer, World, WorldPlan, until};

/// The first pause. Between three floods are two, of which one may come too late: its connection is accepted in the moment in which the
/// other is thrown out.
const FIRST: Duration = Duration::from_secs(1);
/// Longer than anybody waits for a turn.
const LATE: Duration = Duration::from_secs(60);

#[test]
fn a_job_that_floods_waits_and_no_other_does() -> Result<()> {
    let port = free_ports(1)?.next().context("a port")?;
    let world = World::start(&WorldPlan { more_ports: vec![port], ..WorldPlan::default() })?;
    let server = SdkServer::start(&world, Sdk::Rust, Scheme::Https, port)?;
    let url = server.url("localhost");
    for (attack, times) in [("rapid_reset", 3), ("continuation", 1)] {
        let (bad, good) = (
            world.selected.child(&format!("{attack}-bad"))?,
            world.selected.child(&format!("{attack}-good"))?,
        );
        let command: [OsString; 5] = [
            world.setup.python().into(),
            "-c".into(),
            ATTACKER.into(),
            attack.into(),
            port.to_string().into(),
        ];
        let attacker = world.job_in(&bad, Some(world.agent.trust())).command(&command)?;
        let question = format!(
            "SELECT flow_reason, flow_end, flow_treatment, toUnixTimestamp64Micro(time) AS ended_us FROM flows \
             WHERE flow_reason = 'flooded' AND process_linux_cgroup LIKE '%/{attack}-bad' ORDER BY seq"
        );
        let floods = world.sql_until(times, &question)?;
        ensure!(floods.iter().all(|flood| flood["flow_end"] == "broken"), "{floods:?}");
        ensure!(floods.iter().all(|flood| flood["flow_treatment"] == "terminated"), "{floods:?}");
        // While the job is made to wait.
        answered(&world, &good, &url)?;
        let ends = floods.iter().map(|flood| number(flood, "ended_us")).collect::<Result<Vec<_>>>()?;
        if let [first, _, third, ..] = ends[..] {
            ensure!(u128::from(third - first) >= FIRST.as_micros(), "{attack}: {ends:?}");
        }
        drop(attacker);
        // It was a child of the worker's.
        until("the attacker to be gone", LATE, || {
            for pid in bad.pids()? {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            Ok(bad.pids()?.is_empty().then_some(()))
        })?;
        // It waits for a turn, has one, and is not judged by who was thrown out.
        answered(&world, &bad, &url)?;
    }
    Ok(())
}

/// Asks, and gets whatever answer there is to that.
fn answered(world: &World, cgroup: &Cgroup, url: &str) -> Result<()> {
    let words = ["curl", "--silent", "--show-error", "--max-time", "60", "--output", "/dev/null"];
    let told = ["--write-out", "%{response_code}", url];
    let command: Vec<OsString> = words.iter().chain(&told).map(Into::into).collect();
    let mut job = world.job_in(cgroup, Some(world.agent.trust())).command(&command)?;
    let exit = job.wait(LATE)?;
    ensure!(exit.success() && job.stdout()?.len() == 3, "{}{}", job.stdout()?, job.stderr()?);
    Ok(())
}

/// ClickHouse may quote 64-bit integers in JSON.
fn number(row: &Value, column: &str) -> Result<u64> {
    let value = &row[column];
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).with_context(|| format!("{column} in {row}"))
}
