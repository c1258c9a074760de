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

/// The key of the watched cgroup's job, once it is closed with so many redirected connects.
fn closed(world: &World, redirected: u64) -> Result<String> {
    let question = format!(
        "SELECT job_key FROM jobs WHERE job_closed AND job_name = '{}' AND kernel_connects['redirected'] = {redirected}",
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
    let job = closed(&world, made)?;
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
