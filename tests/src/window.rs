//! How long a job in a network namespace that nobody announced waits: from its first connect, which is refused, to the first
//! that is led to the agent. And what the hook costs that spares it the wait, and a connect that waits until the agent has dialled.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::net::Net;
use crate::places::binary;
use crate::world::{World, WorldPlan};

const DEADLINE: Duration = Duration::from_secs(30);

/// Connects every tenth of a millisecond until one connect passes. Nobody is at that address, and no route leads there: what
/// passes was led to the agent.
const INSIST: &str = "
import json, socket, time
refused, began = 0, None
while True:
    with socket.socket() as made:
        began = began or time.monotonic_ns()
        try:
            made.connect(('192.0.2.1', 443))
            break
        except ConnectionRefusedError:
            refused += 1
            time.sleep(0.0001)
print(json.dumps({'us': (time.monotonic_ns() - began) // 1000, 'refused': refused}), flush=True)
";

/// One job's wait.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Wait {
    /// From before its first connect to after the one that passed.
    pub us: u64,
    pub refused: u64,
}

/// All that was measured, one for each round, sorted.
#[derive(Debug, Clone, Serialize)]
pub struct Windows {
    /// Nobody announced the namespace.
    pub unannounced: Vec<Wait>,
    /// `weir oci-hook` had.
    pub announced: Vec<Wait>,
    /// How long `weir oci-hook` took, from its start to its end.
    pub hook_us: Vec<u64>,
    /// How long a connect to a private address took at which nobody listens: it waits until the agent has dialled.
    pub held_us: Vec<u64>,
}

/// Measures so many rounds, each with a namespace of its own, in one world.
pub fn measure(rounds: usize) -> Result<Windows> {
    let world = World::start(&WorldPlan { kind: "window", ..WorldPlan::default() })?;
    let mut windows =
        Windows { unannounced: Vec::new(), announced: Vec::new(), hook_us: Vec::new(), held_us: Vec::new() };
    for _ in 0..rounds {
        windows.unannounced.push(wait(&world, &Net::new()?)?);
        let net = Net::new()?;
        windows.hook_us.push(announce(&world, &net)?);
        windows.announced.push(wait(&world, &net)?);
        windows.held_us.push(probe(&world, &net)?);
    }
    windows.unannounced.sort_by_key(|wait| wait.us);
    windows.announced.sort_by_key(|wait| wait.us);
    windows.hook_us.sort_unstable();
    windows.held_us.sort_unstable();
    Ok(windows)
}

/// Its last word is how many microseconds it took to be refused.
const PROBE: &str = "
import socket, time
with socket.socket() as made:
    began = time.monotonic_ns()
    assert made.connect_ex(('10.99.0.1', 443)) == 111
    print((time.monotonic_ns() - began) // 1000, flush=True)
";

fn probe(world: &World, net: &Net) -> Result<u64> {
    net.run(&["ip", "address", "add", "10.99.0.1/32", "dev", "lo"])?;
    let script = [world.setup.python().into(), "-c".into(), PROBE.into()];
    let mut job = world.job().command_in(net, &script)?;
    ensure!(job.wait(DEADLINE)?.success(), "{}", job.stderr()?);
    job.stdout()?.trim().parse().context("what the job said")
}

fn wait(world: &World, net: &Net) -> Result<Wait> {
    let script = [world.setup.python().into(), "-c".into(), INSIST.into()];
    let mut job = world.job().command_in(net, &script)?;
    let exit = job.wait(DEADLINE)?;
    ensure!(exit.success(), "the job ended with {exit}: {}", job.stderr()?);
    serde_json::from_str(&job.stdout()?).context("what the job said")
}

fn announce(world: &World, net: &Net) -> Result<u64> {
    let state =
        json!({ "ociVersion": "1.0.2", "id": "a", "status": "creating", "pid": net.pid(), "bundle": "/" });
    let began = Instant::now();
    let mut hook = Command::new(binary("weir")?)
        .args(["oci-hook", "--require", "--config"])
        .arg(world.agent.config())
        .stdin(Stdio::piped())
        .spawn()?;
    hook.stdin.take().context("no stdin")?.write_all(state.to_string().as_bytes())?;
    let exit = hook.wait()?;
    ensure!(exit.success(), "the hook ended with {exit}");
    Ok(u64::try_from(began.elapsed().as_micros())?)
}
