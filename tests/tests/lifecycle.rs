//! What holds without an agent, and against root: hooks that outlive their agent, in the failure mode that the operator
//! chose; hooks that are put back when root takes them off; and an end that leaves nothing.

#[path = "lifecycle/root.rs"]
mod root;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::places::binary;
use weir_tests::world::{CLIENT_DEADLINE, SHIP_DEADLINE};
use weir_tests::{ClientKind, World, WorldPlan, until};

use root::Attack;

/// Connects to each host and port, and says what came of it: an errno's name, or what the other end said first.
const ATTEMPT: &str = r#"
import errno, socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=30) as made:
            made.settimeout(10)
            print("ok", flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, repr(error)), flush=True)
"#;

/// What the connects of a job end with.
fn attempt(world: &World, places: &[String]) -> Result<Vec<String>> {
    let mut command = vec![world.setup.python().into(), "-c".into(), ATTEMPT.into()];
    command.extend(places.iter().map(Into::into));
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    Ok(job.stdout()?.lines().map(str::to_owned).collect())
}

/// The MCP server, by both families and by its v4-mapped address.
fn server(world: &World) -> Vec<String> {
    ["127.0.0.1", "::ffff:127.0.0.1"].map(|host| format!("{host}:{}", world.server.port())).into()
}

fn weir(arguments: &[&str], config: &Path) -> Result<Output> {
    Command::new(binary("weir")?).args(arguments).arg("--config").arg(config).output().context("running weir")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The folder of pins and the files in it.
fn pinned(world: &World) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![world.pins.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    Ok(files)
}

#[test]
fn a_killed_agent_leaves_what_it_reads_refused_with_the_chosen_error_and_tells_of_it_when_it_is_back()
-> Result<()> {
    let failure = "errno = \"EHOSTUNREACH\"";
    let mut world = World::start(&WorldPlan { failure, ..WorldPlan::default() })?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let elsewhere = [format!("127.0.0.1:{}", other.local_addr()?.port())];
    ensure!(attempt(&world, &server(&world))? == ["ok", "ok"]);
    let before = world.agent.status()?.connects;
    world.agent.daemon().kill()?;
    // Read destinations are closed; others are open unless the operator says otherwise.
    ensure!(attempt(&world, &server(&world))? == ["EHOSTUNREACH", "EHOSTUNREACH"]);
    ensure!(attempt(&world, &elsewhere)? == ["ok"]);
    ensure!(world.server.executed()?.is_empty());

    world.agent.start_again()?;
    let after = world.agent.status()?.connects;
    ensure!((after.refused, after.passed) == (before.refused + 2, before.passed + 1), "{before:?} {after:?}");
    let told = |verdict: &str, count| {
        let question = format!(
            "SELECT * FROM flows WHERE connect_reason = 'no_agent' AND connect_verdict = '{verdict}'"
        );
        world.sql_until(count, &question)
    };
    for row in told("refused", 2)? {
        ensure!(row["server_port"] == world.server.port() && row["flow_treatment"] == "refused", "{row}");
    }
    ensure!(told("passed", 1)?[0]["server_port"] == other.local_addr()?.port());
    // And all is as before.
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo"])?;
    ensure!(told.first("echo")?.ok && told.issuer.as_deref() == Some(world.agent.status()?.ca.common_name()));
    Ok(())
}

#[test]
fn a_killed_agent_that_is_to_fail_open_lets_connects_pass_and_tells_of_them_when_it_is_back() -> Result<()> {
    let mut world = World::start(&WorldPlan { failure: "intercepted = \"open\"", ..WorldPlan::default() })?;
    let weirs = world.agent.status()?.ca.common_name().to_owned();
    world.agent.daemon().kill()?;
    let plan = world.job_in(&world.selected, world.server.trust());
    let told = plan
        .client(ClientKind::Python, &world.server.url("localhost"), &["--calls", "echo"])?
        .finish(CLIENT_DEADLINE)?;
    ensure!(told.first("echo")?.ok && told.issuer.as_deref() != Some(&weirs), "{told:?}");
    world.agent.start_again()?;
    let question = "SELECT * FROM flows WHERE connect_reason = 'no_agent' AND connect_verdict = 'passed'";
    for row in world.sql_until(1, question)? {
        ensure!(row["server_port"] == world.server.port() && row["flow_treatment"] == "passed", "{row}");
    }
    Ok(())
}

#[test]
fn a_clean_end_leaves_the_hooks_in_force_and_detach_takes_them_away_once_and_for_all() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    let config = world.agent.config().to_path_buf();
    let refused = weir(&["agent", "--detach"], &config)?;
    let pid = world.agent.status()?.pid.to_string();
    ensure!(refused.status.code() == Some(1) && said(&refused).contains(&pid), "{}", said(&refused));
    ensure!(attempt(&world, &server(&world))? == ["ok", "ok"]);

    ensure!(world.agent.daemon().terminate()?.success());
    ensure!(attempt(&world, &server(&world))? == ["ECONNREFUSED", "ECONNREFUSED"]);
    ensure!(pinned(&world)?.iter().any(|path| path.ends_with("maps/EPOCH")));

    let detached = weir(&["agent", "--detach"], &config)?;
    ensure!(detached.status.success() && said(&detached).contains("detached"), "{}", said(&detached));
    ensure!(!world.pins.path().exists());
    // The server itself answers, with nobody between.
    ensure!(attempt(&world, &server(&world))? == ["ok", "ok"]);
    let again = weir(&["agent", "--detach"], &config)?;
    ensure!(again.status.success() && said(&again).contains("nothing"), "{}", said(&again));

    world.agent.start_again()?;
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo"])?;
    ensure!(told.issuer.as_deref() == Some(world.agent.status()?.ca.common_name()), "{told:?}");
    Ok(())
}

#[test]
fn uninstall_ends_what_it_is_told_to_and_leaves_what_is_not_weirs() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    let (config, state) = (world.agent.config().to_path_buf(), world.agent.state().to_path_buf());
    let refused = weir(&["uninstall"], &config)?;
    ensure!(refused.status.code() == Some(1) && said(&refused).contains("--force"), "{}", said(&refused));
    ensure!(state.join("ca/ca.pem").exists() && attempt(&world, &server(&world))? == ["ok", "ok"]);

    let gone = weir(&["uninstall", "--force"], &config)?;
    ensure!(gone.status.success(), "{}", said(&gone));
    for part in ["ended", "detached", &state.join("ca").to_string_lossy(), "kept"] {
        ensure!(said(&gone).contains(part), "{part}: {}", said(&gone));
    }
    ensure!(world.agent.daemon().wait(SHIP_DEADLINE)?.success());
    ensure!(!world.pins.path().exists() && !state.join("ca").exists() && state.join("spool").exists());
    ensure!(attempt(&world, &server(&world))? == ["ok", "ok"]);

    let purged = weir(&["uninstall", "--purge"], &config)?;
    ensure!(purged.status.success() && !state.exists(), "{}", said(&purged));
    ensure!(weir(&["uninstall", "--purge"], &config)?.status.success());
    Ok(())
}

#[test]
fn weir_run_pins_nothing() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    ensure!(world.agent.daemon().terminate()?.success());
    let config = world.agent.config().to_path_buf();
    ensure!(weir(&["agent", "--detach"], &config)?.status.success());
    let run = Command::new(binary("weir")?)
        .args(["run", "--config"])
        .arg(&config)
        .args(["--", "test", "!", "-e"])
        .arg(world.pins.path())
        .output()?;
    ensure!(run.status.success() && !world.pins.path().exists(), "{}", said(&run));
    Ok(())
}

#[test]
fn hooks_that_root_lays_hands_on_are_put_back_and_recorded_with_the_jobs_that_ran() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    let mut waiting = world.job().command(&["sleep".into(), "600".into()])?;
    let told = |state: &str, count: usize| -> Result<Vec<serde_json::Value>> {
        world.sql_until(
            count,
            &format!(
                "SELECT event_detail['link'] AS link, event_detail['cgroup'] AS cgroup, \
                 event_detail['mended'] AS mended, event_detail['jobs'] AS jobs, \
                 event_detail['processes'] AS processes FROM events \
                 WHERE event_name = 'tamper.hook_detached' AND event_detail['state'] = '{state}'"
            ),
        )
    };
    let issuer = world.agent.status()?.ca.common_name().to_owned();
    for attack in [Attack::Detach, Attack::Update, Attack::Unpin] {
        let touched = root::attack(&world, attack)?;
        ensure!(!touched.is_empty(), "{attack:?} reached nothing");
        let rows = told(attack.state(), touched.len())?;
        ensure!(rows.len() == touched.len(), "{attack:?}: {touched:?} {rows:?}");
        for row in &rows {
            ensure!(row["mended"] == "yes", "{row}");
            let processes = row["processes"].as_str().unwrap_or_default();
            ensure!(processes.contains(" sleep"), "{row}");
            let job = format!("-{:016x}", root::cgroup_id(&world)?);
            ensure!(row["jobs"].as_str().is_some_and(|jobs| jobs.contains(&job)), "{row}");
        }
        // What was taken off is there again, and leads to Weir.
        let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo"])?;
        ensure!(told.issuer.as_deref() == Some(&issuer), "{attack:?}: {told:?}");
    }
    ensure!(world.agent.daemon().log().contains("laid hands on a hook"));
    // The pins are as they were: without the agent all holds still.
    world.agent.daemon().kill()?;
    ensure!(attempt(&world, &server(&world))? == ["ECONNREFUSED", "ECONNREFUSED"]);
    waiting.kill()?;
    Ok(())
}

/// How long the hooks may be off: the watch looks once a second.
#[test]
fn a_detached_hook_is_back_within_seconds() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let touched = root::attack(&world, Attack::Detach)?;
    ensure!(!touched.is_empty());
    until("the hooks to be back", Duration::from_secs(5), || {
        Ok((root::links(&world)?.len() >= touched.len()).then_some(()))
    })
}
