//! What cannot be recorded is a gap with its reason and its number, never silence: an agent that is killed with connections in
//! its hands, and a ring that had no room. By what the collector reads back, both sums close exactly.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use weir_ebpf::{CONNECTS_BYTES, FlowOrigin};
use weir_tests::places::free_port;
use weir_tests::wait::until;
use weir_tests::world::{CLIENT_DEADLINE, World, WorldPlan};

/// Connects that many times to a port and keeps the connections until its input ends.
const HOLDS: &str = r#"
import socket, sys
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) for _ in range(int(sys.argv[2]))]
for made in held: made.sendall(b"hello")
try:
    for made in held:
        while made.recv(1): pass
except OSError: pass
"#;

/// Connects that many times to a port at which nobody listens.
const KNOCKS: &str = r#"
import socket, sys
for _ in range(int(sys.argv[2])):
    made = socket.socket()
    assert made.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 111
    made.close()
"#;

fn python(world: &World, script: &str, arguments: &[String]) -> Vec<std::ffi::OsString> {
    let mut command = vec![world.setup.python().into(), "-c".into(), script.into()];
    command.extend(arguments.iter().map(Into::into));
    command
}

/// Waits until the watched cgroup's job is closed with so many connects of a verdict; gives its key.
fn closed(world: &World, verdict: &str, connects: u64) -> Result<String> {
    let question = format!(
        "SELECT job_key FROM jobs WHERE job_closed AND job_name = '{}' AND kernel_connects['{verdict}'] = {connects}",
        world.selected.path().display(),
    );
    let rows = until("the job's last sums", CLIENT_DEADLINE, || Ok(world.sql(&question)?.into_iter().next()));
    let row = rows.with_context(|| format!("{:?}", world.sql("SELECT * FROM jobs")))?;
    Ok(row["job_key"].as_str().context("a key")?.to_owned())
}

/// The gaps that the agent recorded: verdict and reason, and how many.
fn gaps(world: &World) -> Result<BTreeMap<(String, String), u64>> {
    let rows = world.sql(
        "SELECT connect_verdict AS verdict, gap_reason AS reason, toString(sum(gap_count)) AS number
         FROM events WHERE kind = 'gap' GROUP BY verdict, reason",
    )?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| Ok(((text(&row["verdict"]), text(&row["reason"])), text(&row["number"]).parse()?)))
        .collect()
}

fn sums_close(world: &World, job: &str) -> Result<()> {
    world.until_shipped()?;
    let output = world.collector.attempt(&["completeness", "--job", job, "--json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn an_agent_killed_with_connections_in_its_hands_leaves_a_gap_for_each_of_them() -> Result<()> {
    const HELD: u64 = 5;
    let mut world = World::start(&WorldPlan::default())?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let port = server.local_addr()?.port();
    // Relayed, and kept open by both sides.
    let (reached, arrivals) = mpsc::channel();
    std::thread::spawn(move || server.incoming().flatten().try_for_each(|made| reached.send(made)));
    let arguments = [port.to_string(), HELD.to_string()];
    let mut job = world.job().command(&python(&world, HOLDS, &arguments))?;
    // Who is here was taken by the agent before.
    let held = (0..HELD).map(|_| arrivals.recv_timeout(CLIENT_DEADLINE)).collect::<Result<Vec<_>, _>>()?;
    let connects =
        format!("SELECT count() FROM flows WHERE connect_verdict = 'redirected' AND server_port = {port}");
    ensure!(world.number(&connects)? == 0, "they are recorded when they end");
    world.agent.daemon().kill()?;
    job.wait(CLIENT_DEADLINE)?;
    drop(held);
    world.agent.start_again()?;
    let key = closed(&world, "redirected", HELD)?;
    world.until_shipped()?;
    let expected = BTreeMap::from([(("redirected".to_owned(), "agent_ended".to_owned()), HELD)]);
    ensure!(gaps(&world)? == expected, "{:?}", gaps(&world)?);
    ensure!(world.number(&connects)? == 0);
    let detail =
        world.sql("SELECT event_detail['destination'] AS destination FROM events WHERE kind = 'gap'")?;
    ensure!(detail.iter().all(|row| row["destination"] == format!("127.0.0.1:{port}")), "{detail:?}");
    sums_close(&world, &key)
}

#[test]
fn connects_for_which_the_ring_has_no_room_are_a_gap_of_exactly_their_number() -> Result<()> {
    // What an event takes: its head of eight bytes, and itself.
    const ROOM: u64 = CONNECTS_BYTES as u64 / (size_of::<FlowOrigin>() as u64 + 8);
    const OVER: u64 = 300;
    let mut world = World::start(&WorldPlan::default())?;
    let port = free_port()?;
    // An agent that does not read.
    world.agent.daemon().signal(Signal::SIGSTOP)?;
    let arguments = [port.to_string(), (ROOM + OVER).to_string()];
    let mut job = world.job().command(&python(&world, KNOCKS, &arguments))?;
    let ended = job.wait(CLIENT_DEADLINE);
    world.agent.daemon().signal(Signal::SIGCONT)?;
    ensure!(ended?.success(), "{}", job.stderr()?);
    let key = closed(&world, "unanswered", ROOM + OVER)?;
    world.until_shipped()?;
    let told = world.number("SELECT count() FROM flows WHERE connect_verdict = 'unanswered'")?;
    let lost = gaps(&world)?;
    let number = lost.get(&("unanswered".to_owned(), "ring_full".to_owned())).copied().unwrap_or(0);
    // The ring keeps a little room of its own.
    ensure!((OVER..OVER + 16).contains(&number) && lost.len() == 1, "{lost:?}");
    ensure!(told + number == ROOM + OVER, "{told} told, {number} lost, {} made", ROOM + OVER);
    sums_close(&world, &key)
}
