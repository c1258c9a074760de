//! `weir run`: a command in a cgroup of its own, under interception, with its calls listed at the end. Whatever
//! ends it, nothing stays behind: the hooks live as long as this process, and a keeper (another process, in a
//! group of its own) removes the cgroup and all in it should this one be killed.

mod keeper;
mod listing;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal as Number;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use keeper::{enter, keep};

use crate::cgroup::Cgroup;
use crate::config::{Config, Select};
use crate::daemon::Agent;
use crate::kernel::check_host;
use crate::ledger::LedgerError;
use crate::spool::SpoolError;
use keeper::Keeper;
use listing::{Listing, Report};

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
        let report = self.report.as_deref().map(Report::create).transpose()?;
        keeper::sweep_stale();
        let keeper = Keeper::start()?;
        let cgroup = Cgroup::create(keeper.cgroup_name())?;
        let in_use = keeper::mark_in_use(cgroup.path())?;
        let listing = Listing::default();
        let agent = start_agent(config, cgroup.path(), &listing).await?;
        let mut signals = Signals::take()?;
        let mut child = spawn(&self.command, cgroup.path(), &agent)?;
        let code = exit_code(signals.pass_on_until_ended(&mut child).await?);
        let ended = end(cgroup, agent).await;
        drop(in_use);
        keeper.finish();
        listing.print();
        let told = report.map_or(Ok(()), |report| report.write(&listing));
        match ended.and(told) {
            // The command did what it was to do, and Weir did not.
            Err(error) if code == 0 => Err(error),
            Err(error) => {
                tracing::error!("{error:#}");
                Ok(code)
            }
            Ok(()) => Ok(code),
        }
    }

    fn configuration(&self) -> Result<Config> {
        Ok(match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::built_in(self.state_dir.clone()),
        })
    }
}

/// What the command left running goes with it; its last calls are written as they ended.
async fn end(cgroup: Cgroup, agent: Agent) -> Result<()> {
    let (cgroup, killed) = tokio::task::spawn_blocking(move || {
        let killed = cgroup.kill(KILL);
        (cgroup, killed)
    })
    .await?;
    // Each of them, whatever became of the one before.
    let stopped = agent.stop().await;
    let removed = killed.and_then(|()| cgroup.remove());
    stopped?;
    Ok(removed?)
}

async fn start_agent(mut config: Config, cgroup: &Path, listing: &Listing) -> Result<Agent> {
    config.select = Select::only(cgroup);
    config.listen = Default::default();
    // Nothing is to stay behind.
    config.kernel.pin_dir = None;
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

/// The signals that end a command. They come to this process, and are for the command.
struct Signals {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    /// From here on they end this process no more.
    fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn pass_on_until_ended(&mut self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            let received = tokio::select! {
                status = child.wait() => return Ok(status?),
                _ = self.terminate.recv() => Number::SIGTERM,
                _ = self.hangup.recv() => Number::SIGHUP,
                _ = self.interrupt.recv() => Number::SIGINT,
                _ = self.quit.recv() => Number::SIGQUIT,
            };
            // A terminal sends these two to the command as well.
            let from_terminal = matches!(received, Number::SIGINT | Number::SIGQUIT) && in_foreground();
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).filter(|_| !from_terminal) {
                let _ = kill(Pid::from_raw(pid), received);
            }
        }
    }
}

/// Whether the terminal that this process belongs to, if any, sends it what is typed.
fn in_foreground() -> bool {
    use std::os::fd::AsFd;
    std::fs::File::open("/dev/tty").is_ok_and(|terminal| {
        nix::unistd::tcgetpgrp(terminal.as_fd()).is_ok_and(|group| group == nix::unistd::getpgrp())
    })
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
