//! Each connect of a job that the kernel counted has its row in ClickHouse, or is named. The clients say how many they
//! made, the hooks how many they counted, and the check counts rows as it reads them back: three sides that share nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::places::free_port;
use weir_tests::{ClientKind, World, WorldPlan, until};

/// A job's end is seen within a second, and stated; then it is shipped.
const CLOSED: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(60);

/// What `weir-collector completeness` says: whether the sums close, and its lines.
fn checked(world: &World, arguments: &[&str]) -> Result<(bool, Vec<Value>)> {
    let output = world.collector.attempt(&[&["completeness", "--json"], arguments].concat())?;
    let lines = String::from_utf8(output.stdout)?;
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let closes = match output.status.code() {
        Some(0) => true,
        Some(1) if !lines.is_empty() => false,
        _ => anyhow::bail!("weir-collector completeness: {}", String::from_utf8_lossy(&output.stderr)),
    };
    Ok((closes, lines))
}

/// Numbers of one verdict's line: what the kernel counted and what is recorded.
fn sums(lines: &[Value], verdict: &str) -> (u64, u64) {
    let line = lines.iter().find(|line| line["verdict"] == verdict);
    let number = |name: &str| line.and_then(|line| line[name].as_u64()).unwrap_or(0);
    (number("kernel"), number("recorded"))
}

/// The agent's own gaps of one verdict, by reason.
fn explained(lines: &[Value], verdict: &str) -> BTreeMap<String, u64> {
    let line = lines.iter().find(|line| line["verdict"] == verdict);
    let gaps = line.and_then(|line| line["gaps"].as_object()).into_iter().flatten();
    gaps.map(|(reason, n)| (reason.clone(), n.as_u64().unwrap_or(0))).collect()
}

/// What was found, by verdict and reason.
fn found(lines: &[Value]) -> BTreeMap<(String, String), i64> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = BTreeMap::new();
    for line in lines {
        for one in line["findings"].as_array().into_iter().flatten() {
            let missing = one["missing"].as_i64().unwrap_or(0);
            *found.entry((text(&line["verdict"]), text(&one["reason"]))).or_default() += missing;
        }
    }
    found
}

/// The key of the watched cgroup's job, once it is closed with so many connects that were redirected, and that nobody answered.
/// Between two commands it may have been closed with fewer.
fn closed(world: &World, redirected: u64, unanswered: u64) -> Result<String> {
    let question = format!(
        "SELECT job_key FROM jobs WHERE job_closed AND job_name = '{}' AND kernel_connects['redirected'] = {redirected} \
         AND kernel_connects['unanswered'] = {unanswered}",
        world.selected.path().display(),
    );
    let rows = until("the job's last sums", CLOSED, || {
        let rows = world.sql(&question)?;
        Ok((!rows.is_empty()).then_some(rows))
    });
    let rows = rows.with_context(|| format!("{:?}", world.sql("SELECT * FROM jobs")))?;
    ensure!(rows.len() == 1, "{rows:?}");
    Ok(rows[0]["job_key"].as_str().context("a key")?.to_owned())
}

/// For some seconds, or until a file is there, from two threads: connects on which the MCP server never hears a word,
/// connects to a port at which nobody listens, and datagrams to the server's port, as many of each, with a pause of so many
/// ms. Tells how many. (What there is no room for is reset.)
const BUSY: &str = "
import os, socket, sys, threading, time
server, nobody, seconds, pause = map(int, sys.argv[1:5])
end, made = time.monotonic() + seconds, []
def busy():
    while time.monotonic() < end and not os.path.exists(sys.argv[5]):
        with socket.socket() as s:
            assert s.connect_ex(('127.0.0.1', server)) in (0, 104)
        with socket.socket() as s:
            assert s.connect_ex(('127.0.0.1', nobody)) == 111
        with socket.socket(type=socket.SOCK_DGRAM) as s:
            assert s.connect_ex(('127.0.0.1', server)) == 1
        made.append(1)
        time.sleep(pause / 1000)
threads = [threading.Thread(target=busy) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(made))
";

/// Connects to a loopback port at which nobody listens: so many are refused as the kernel would.
fn knock(world: &World, times: u64) -> Result<()> {
    let port = free_port()?;
    let script = format!(
        "import socket\nfor _ in range({times}):\n s = socket.socket()\n assert s.connect_ex(('127.0.0.1', {port})) == 111\n"
    );
    let command: [OsString; 3] = [world.setup.python().into(), "-c".into(), script.into()];
    let exit = world.job().command(&command)?.wait(DEADLINE)?;
    ensure!(exit.success(), "{exit}");
    Ok(())
}

#[test]
fn a_jobs_sums_close_and_rows_deleted_afterwards_are_named_to_the_number() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut made = 0;
    for (kind, host) in [(ClientKind::TypeScript, "localhost"), (ClientKind::Python, "127.0.0.1")] {
        let told = world.converse(kind, host, &["--calls", "echo,count"])?;
        made += told.tcp_connects.context("the client did not count its connects")?;
    }
    knock(&world, 3)?;
    ensure!(made >= 4, "{made}");
    let job = closed(&world, made, 3)?;
    world.until_shipped()?;

    let (closes, lines) = checked(&world, &["--job", &job])?;
    ensure!(closes && found(&lines).is_empty(), "{lines:?}");
    ensure!(sums(&lines, "redirected") == (made, made), "{lines:?}");
    ensure!(sums(&lines, "unanswered") == (3, 3), "{lines:?}");
    ensure!(checked(&world, &[])?.0, "other jobs, and the logs");

    for (verdict, count) in [("redirected", 3), ("unanswered", 2)] {
        let rows = world.sql(&format!(
            "SELECT seq FROM flows WHERE job_key = '{job}' AND connect_verdict = '{verdict}' ORDER BY seq LIMIT {count}"
        ))?;
        let gone: Vec<String> = rows.iter().map(|row| row["seq"].to_string().replace('"', "")).collect();
        ensure!(gone.len() == count, "{rows:?}");
        let list = gone.join(", ");
        world.store.execute(&format!(
            "ALTER TABLE events DELETE WHERE kind = 'flow' AND seq IN ({list}) SETTINGS mutations_sync = 2"
        ))?;
    }
    let expected: BTreeMap<(String, String), i64> = [("redirected", 3), ("unanswered", 2)]
        .map(|(verdict, n)| ((verdict.to_owned(), "rows_deleted".to_owned()), n))
        .into();
    for arguments in [&["--job", job.as_str()][..], &[]] {
        let (closes, lines) = checked(&world, arguments)?;
        ensure!(!closes && found(&lines) == expected, "{arguments:?}: {lines:?}");
    }
    Ok(())
}

/// A world with a job that is busy for some seconds, or until the check has seen it in a state, while the check looks again
/// and again and must find nothing. How many connects of each kind the job made, and in which states the check saw it.
fn busy(seconds: u32, until: &str, pause_ms: u32) -> Result<(World, u64, BTreeMap<String, u32>)> {
    let every = "[accounting]\nevery = \"1s\"\n";
    let world = World::start(&WorldPlan { rules: every.into(), ..WorldPlan::default() })?;
    let mut command: Vec<OsString> = vec![world.setup.python().into(), "-c".into(), BUSY.into()];
    let arguments = [world.server.port().into(), free_port()?.into(), seconds, pause_ms];
    command.extend(arguments.map(|argument: u32| argument.to_string().into()));
    let enough = world.folder().join("enough");
    command.push(enough.clone().into());
    let mut job = world.job().command(&command)?;
    let mut states = BTreeMap::new();
    while job.ended()?.is_none() {
        let (closes, lines) = checked(&world, &[])?;
        ensure!(closes, "{lines:?}");
        for line in &lines {
            *states.entry(line["state"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        if states.contains_key(until) {
            std::fs::write(&enough, "")?;
        }
    }
    let made: u64 = job.stdout()?.trim().parse().with_context(|| job.stderr().unwrap_or_default())?;
    ensure!(made > 10, "{made}");
    Ok((world, made, states))
}

/// The sums of the job in the end: of each kind of connect, what the kernel counted is what was made, and each has its row
/// but for those whose number is told for the given reason. How many those are.
fn all_are_accounted_for(world: &World, made: u64, gaps: &BTreeMap<&str, &str>) -> Result<u64> {
    let key = closed(world, made, made)?;
    let (closes, lines) = checked(world, &["--job", &key])?;
    ensure!(closes, "{lines:?}");
    let mut unrecorded = 0;
    for verdict in ["redirected", "unanswered", "datagram"] {
        let (kernel, recorded) = sums(&lines, verdict);
        let told = explained(&lines, verdict);
        ensure!(kernel == made && recorded + told.values().sum::<u64>() == made, "{made}: {lines:?}");
        unrecorded += told.values().sum::<u64>();
        ensure!(told.keys().all(|reason| gaps.get(verdict) == Some(&reason.as_str())), "{lines:?}");
    }
    ensure!(checked(world, &[])?.0, "other jobs, and the logs");
    ensure!(world.number("SELECT count() FROM findings")? == 0, "{:?}", world.sql("SELECT * FROM findings"));
    Ok(unrecorded)
}

#[test]
fn a_busy_job_gives_no_false_finding_while_it_runs_and_its_sums_close() -> Result<()> {
    let (world, made, states) = busy(90, "open", 20)?;
    ensure!(states.contains_key("open"), "it was never judged while it ran: {states:?}");
    ensure!(all_are_accounted_for(&world, made, &BTreeMap::new())? == 0, "each has its row");
    Ok(())
}

#[test]
fn of_a_flood_that_nobody_can_record_one_by_one_the_number_is_told() -> Result<()> {
    let (world, made, _) = busy(3, "", 0)?;
    let gaps = [("redirected", "no_room"), ("unanswered", "ring_full"), ("datagram", "ring_full")];
    let unrecorded = all_are_accounted_for(&world, made, &gaps.into())?;
    ensure!(unrecorded > 0, "{made} of each were all recorded: this was no flood");
    Ok(())
}
