//! `weir run`: a command in a cgroup of its own, under interception, with its calls listed at the end. Whatever
//! ends it, nothing stays behind: the hooks live as long as this process, and a keeper (another process, in a
//! session of its own) removes the cgroup and all in it should this one be killed.

mod keeper;
mod listing;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

pub use keeper::{enter, keep};

use crate::cgroup::Cgroup;
use crate::config::{Config, Select};
use crate::daemon::Agent;
use crate::kernel::check_host;
use crate::ledger::LedgerError;
use crate::spool::SpoolError;
use keeper::Keeper;
use listing::Listing;

/// How many `weir run`s may share one state folder at a time; each has a log of its own.
const SLOTS: usize = 64;
/// How long processes that the command left behind may take to die.
const KILL: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug)]
pub struct Run {
    pub config: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub command: Vec<OsString>,
    /// Where the calls go as JSON lines, besides the table on standard error.
    pub report: Option<PathBuf>,
}

impl Run {
    /// Runs the command; returns the exit code to end with: the command's, or 128 + the signal that ended it.
    pub async fn execute(self) -> Result<i32> {
        let config = self.configuration()?;
        check_host()?;
        keeper::sweep_stale();
        let keeper = Keeper::start()?;
        let cgroup = Cgroup::create(keeper.cgroup_name())?;
        let listing = Listing::default();
        let agent = start_agent(config, cgroup.path(), &listing).await?;
        let mut child = spawn(&self.command, cgroup.path(), &agent)?;
        let status = wait(&mut child).await?;
        // What the command left running goes with it, and its last calls are written as they ended.
        let cgroup = tokio::task::spawn_blocking(move || cgroup.kill(KILL).map(|()| cgroup)).await??;
        agent.stop().await?;
        cgroup.remove()?;
        keeper.finish();
        listing.print();
        if let Some(path) = &self.report {
            listing.write(path).with_context(|| format!("cannot write the report {}", path.display()))?;
        }
        Ok(exit_code(status))
    }

    fn configuration(&self) -> Result<Config> {
        Ok(match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::built_in(self.state_dir.clone()),
        })
    }
}

async fn start_agent(mut config: Config, cgroup: &Path, listing: &Listing) -> Result<Agent> {
    config.select = Select { cgroups: vec![cgroup.to_owned()] };
    config.listen = Default::default();
    let slots = config.state_dir.join("run");
    for slot in 0..SLOTS {
        let config = Config { state_dir: slots.join(slot.to_string()), ..config.clone() };
        match Agent::start(config, Some(listing.tap())).await {
            Err(error) if is_taken(&error) => continue,
            started => return started,
        }
    }
    bail!("{SLOTS} other `weir run`s use {}; wait for one to end, or pass --state-dir", slots.display())
}

fn is_taken(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<LedgerError>() {
        Some(LedgerError::Spool(error)) => matches!(**error, SpoolError::Locked { .. }),
        _ => false,
    }
}

/// The command starts inside the cgroup: what `enter` becomes never had a socket outside.
fn spawn(command: &[OsString], cgroup: &Path, agent: &Agent) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find weir's own program")?;
    Command::new(program)
        .arg("enter-cgroup")
        .arg(cgroup)
        .arg("--")
        .args(command)
        .envs(agent.environment())
        .stdin(Stdio::inherit())
        .spawn()
        .context("cannot start the command")
}

/// Waits for the command; signals to this process are passed on to it.
async fn wait(child: &mut Child) -> Result<ExitStatus> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    loop {
        let received = tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hangup.recv() => Signal::SIGHUP,
            _ = interrupt.recv() => Signal::SIGINT,
            _ = quit.recv() => Signal::SIGQUIT,
        };
        // A terminal sends these two to the command as well.
        let from_terminal = matches!(received, Signal::SIGINT | Signal::SIGQUIT) && in_foreground();
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).filter(|_| !from_terminal) {
            let _ = kill(Pid::from_raw(pid), received);
        }
    }
}

fn in_foreground() -> bool {
    use std::os::fd::AsFd;
    let stdin = std::io::stdin();
    nix::unistd::tcgetpgrp(stdin.as_fd()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

impl Listing {
    fn tap(&self) -> crate::ledger::Tap {
        let listing = self.clone();
        Arc::new(move |event| listing.see(event))
    }
}
