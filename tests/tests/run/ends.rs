//! The ways a `weir run` can end, and that each of them leaves nothing.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_tests::machine::cgroup2_mount;
use weir_tests::places::binary;
use weir_tests::{ClientKind, until};

use super::traces::{Process, Traces, cgroups_of, members};
use super::{Place, Ran, finish};

const STARTS: Duration = Duration::from_secs(30);
/// Makes an MCP call, tells that it has, and waits for a line (or the end of its input).
const CALL_AND_WAIT: &str = "\"$@\" > /dev/null || exit 98; echo ready; read line; exit 5";

/// Runs its arguments at a terminal, types Ctrl-C once they are ready, and ends as they do.
const TERMINAL: &str = include_str!("terminal.py");

/// A `weir run` whose command has made a call and waits.
struct Running {
    child: Child,
    /// Its end lets the command go on.
    stdin: Option<ChildStdin>,
    traces: Traces,
}

impl Running {
    /// `script` is for a shell that has the client's command as its arguments, and says `ready`.
    fn start(place: &Place, script: &str) -> Result<Self> {
        let output = place.path("output");
        let client = place.client(ClientKind::Python, "echo");
        let mut command = vec!["sh".into(), "-c".into(), script.into(), "sh".into()];
        command.extend(client);
        let mut weir = place.weir_run(&[], &command)?;
        let mut child = weir.stdin(Stdio::piped()).stdout(File::create(&output)?).process_group(0).spawn()?;
        let stdin = child.stdin.take();
        until("the command to be ready", STARTS, || {
            ensure!(child.try_wait()?.is_none(), "weir run has ended");
            Ok(std::fs::read_to_string(&output)?.contains("ready\n").then_some(()))
        })?;
        let traces = Traces::of(child.id())?;
        Ok(Self { child, stdin, traces })
    }

    fn signal(&self, process: &Process, signal: Signal) -> Result<()> {
        ensure!(process.is_alive(), "{process:?} is gone");
        Ok(kill(Pid::from_raw(process.pid.cast_signed()), signal)?)
    }

    /// Lets the command end.
    fn goes_on(mut self) -> Result<Ran> {
        drop(self.stdin.take());
        self.ended()
    }

    /// Waits for the end of `weir run`, and that nothing is left.
    fn ended(mut self) -> Result<Ran> {
        // Its input stays open: nothing but what was done to it ends it.
        let stdin = self.stdin.take();
        let ran = Ran::of(self.child.wait_with_output()?);
        self.traces.until_gone()?;
        drop(stdin);
        Ok(ran)
    }
}

#[test]
fn nothing_is_left_of_a_run_that_ends_by_itself() -> Result<()> {
    let place = Place::new()?;
    let ran = Running::start(&place, CALL_AND_WAIT)?.goes_on()?;
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.stderr.contains("tools/call echo"), "{ran:?}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_run_whose_command_dies_by_a_signal() -> Result<()> {
    let place = Place::new()?;
    let running = Running::start(&place, CALL_AND_WAIT)?;
    running.signal(running.traces.processes.first().context("no process")?, Signal::SIGKILL)?;
    let ran = running.ended()?;
    assert_eq!(ran.code, Some(128 + 9), "{ran:?}");
    assert!(ran.stderr.contains("tools/call echo"), "its calls are listed all the same: {ran:?}");
    Ok(())
}

#[test]
fn what_the_command_leaves_behind_ends_with_the_run() -> Result<()> {
    let place = Place::new()?;
    // A daemon that will not end, in a session of its own, in a cgroup that it made below the run's.
    let script = format!(
        "below={}$(grep ^0:: /proc/self/cgroup | cut -c4-)/below; mkdir $below; \
         setsid sh -c 'echo $$ > '$below'/cgroup.procs; trap \"\" TERM HUP INT; while :; do sleep 1000; done' \
         < /dev/null > /dev/null 2>&1 & {CALL_AND_WAIT}",
        cgroup2_mount()?.display()
    );
    let running = Running::start(&place, &script)?;
    let below = running.traces.cgroup.join("below");
    let daemon = until("the daemon to be in its cgroup", STARTS, || Ok(members(&below)?.first().copied()))?;
    let daemon = Process::of(daemon).context("no daemon")?;
    let ran = running.goes_on()?;
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(!daemon.is_alive() && !below.exists());
    Ok(())
}

#[test]
fn a_signal_to_the_run_is_passed_on_to_the_command() -> Result<()> {
    let place = Place::new()?;
    for (signal, name, code) in
        [(Signal::SIGTERM, "TERM", 3), (Signal::SIGINT, "INT", 4), (Signal::SIGHUP, "HUP", 6)]
    {
        let script = format!(
            "trap 'exit {code}' {name}; \"$@\" > /dev/null; echo ready; while :; do sleep 0.05; done"
        );
        let running = Running::start(&place, &script)?;
        running.signal(&running.traces.weir, signal)?;
        let ran = running.ended()?;
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stderr.contains("tools/call echo"), "{ran:?}");
    }
    // And one that the command does not catch ends it.
    let running = Running::start(&place, CALL_AND_WAIT)?;
    running.signal(&running.traces.weir, Signal::SIGTERM)?;
    assert_eq!(running.ended()?.code, Some(128 + 15));
    Ok(())
}

#[test]
fn what_is_typed_at_a_terminal_reaches_the_command_once() -> Result<()> {
    let place = Place::new()?;
    // Its standard input is elsewhere; the terminal is the one that it belongs to.
    let script = "n=0; trap 'n=$((n+1))' INT; echo ready; sleep 1; sleep 1; echo caught $n; exit 8";
    let weir = place.weir_run(&[], &["sh", "-c", script])?;
    let mut command = Command::new(place.setup.python());
    command.args(["-c", TERMINAL]).args(std::iter::once(weir.get_program()).chain(weir.get_args()));
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(8), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("caught 1") && said.contains("weir: 0 MCP calls"), "{said}");
    Ok(())
}

#[test]
fn the_keeper_cleans_up_after_a_killed_run() -> Result<()> {
    let place = Place::new()?;
    let running = Running::start(&place, CALL_AND_WAIT)?;
    running.signal(&running.traces.weir, Signal::SIGKILL)?;
    assert_eq!(running.ended()?.code, None);
    // The same with all of its process group at once, as a shell or a runner does it.
    let running = Running::start(&place, CALL_AND_WAIT)?;
    kill(Pid::from_raw(-running.traces.weir.pid.cast_signed()), Signal::SIGKILL)?;
    assert_eq!(running.ended()?.code, None);
    // And the next one finds its log in order.
    let ran = place.run(&[], &["true"])?;
    assert!(ran.code == Some(0) && ran.stderr.ends_with("weir: 0 MCP calls\n"), "{ran:?}");
    Ok(())
}

#[test]
fn a_run_whose_keeper_is_gone_cleans_up_by_itself() -> Result<()> {
    let place = Place::new()?;
    let running = Running::start(&place, CALL_AND_WAIT)?;
    running.signal(&running.traces.keeper, Signal::SIGKILL)?;
    let ran = running.goes_on()?;
    assert_eq!(ran.code, Some(5), "{ran:?}");
    Ok(())
}

#[test]
fn the_next_run_sweeps_what_a_killed_run_and_its_killed_keeper_left() -> Result<()> {
    let place = Place::new()?;
    // The daemon does not go with its parent, as the command does.
    let running = Running::start(&place, &format!("setsid sleep 1000 & {CALL_AND_WAIT}"))?;
    let other = Running::start(&place, CALL_AND_WAIT)?;
    // The keeper first: it would be quicker than the second signal.
    running.signal(&running.traces.keeper, Signal::SIGKILL)?;
    running.signal(&running.traces.weir, Signal::SIGKILL)?;
    let first = &running.traces;
    until("both to have ended", STARTS, || {
        Ok((!first.weir.is_alive() && !first.keeper.is_alive()).then_some(()))
    })?;
    // Swept by now only if another test's run came between.
    assert!(!first.cgroup.exists() || !members(&first.cgroup)?.is_empty(), "the daemon is left");
    let ran = place.run(&[], &["true"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!first.cgroup.exists(), "the next run sweeps what is left");
    // Also before anybody has asked for their exit codes. A run that lives is left alone.
    running.ended()?;
    assert!(other.traces.cgroup.exists() && other.traces.weir.is_alive());
    assert_eq!(other.goes_on()?.code, Some(5));
    Ok(())
}

#[test]
fn a_run_inside_a_killed_run_goes_with_it() -> Result<()> {
    let place = Place::new()?;
    let text = |path: std::path::PathBuf| format!("'{}'", path.display());
    let (weir, config) = (text(binary("weir")?), text(place.config.clone()));
    let script = format!("exec {weir} run --config {config} -- sh -c 'echo ready; exec sleep 1000'");
    let running = Running::start(&place, &script)?;
    let has_cgroup = |process: &&Process| cgroups_of(process.pid).is_ok_and(|found| !found.is_empty());
    let inner = running.traces.processes.iter().find(has_cgroup).context("no weir run inside")?;
    let inner = Traces::of(inner.pid)?;
    running.signal(&running.traces.weir, Signal::SIGKILL)?;
    inner.until_gone()?;
    running.ended()?;
    Ok(())
}

#[test]
fn a_log_that_cannot_be_written_is_told_and_the_commands_own_failure_given_back() -> Result<()> {
    let place = Place::new()?;
    for (code, given) in [(5, 5), (0, 1)] {
        let script = CALL_AND_WAIT
            .replace("exit 5", &format!("rm -rf '{}'; exit {code}", place.path("state").display()));
        let ran = Running::start(&place, &script)?.goes_on()?;
        assert_eq!(ran.code, Some(given), "{ran:?}");
        assert!(ran.stderr.contains("the last events were lost"), "{ran:?}");
        assert!(ran.stderr.contains("tools/call echo"), "{ran:?}");
    }
    Ok(())
}

#[test]
fn a_run_that_cannot_start_leaves_nothing_and_runs_nothing() -> Result<()> {
    let place = Place::new()?;
    let ran_at_all = place.path("ran");
    let touch = ["touch", ran_at_all.to_str().context("not UTF-8")?];
    let report = place.path("no such folder/report.jsonl");
    let cases: [(&[&str], i32, &str); 2] = [
        (&["--report", report.to_str().context("not UTF-8")?], 1, "cannot write the report"),
        (&["--report"], 2, "--report"),
    ];
    for (options, code, sentence) in cases {
        let ran = place.run(options, &touch)?;
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stderr.contains(sentence), "{ran:?}");
    }
    let broken = place.path("broken.toml");
    std::fs::write(&broken, "tenant = \"x\"\nstate_dir = 7\n")?;
    let mut weir = super::weir_run()?;
    let ran = finish(weir.arg("--config").arg(&broken).arg("--").args(touch))?;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("broken.toml:2:13:"), "{ran:?}");
    assert!(!ran_at_all.exists());
    Ok(())
}
