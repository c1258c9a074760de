//! A long-running child process: started with a log file, ended by its pid when its owner goes.
//!
//! It dies with the thread that started it even when that one is killed, unless it is told to outlive it. Its log is shown
//! when a test fails.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a log is shown when a test fails.
const SHOWN_LINES: usize = 60;

/// What to start.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    command: Vec<std::ffi::OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    outlives: bool,
}

impl Program {
    /// `name` is for people; `log` gets stdout and stderr, appended.
    pub fn new(name: &'static str, binary: impl Into<std::ffi::OsString>, log: PathBuf) -> Self {
        Self { name, command: vec![binary.into()], environment: Vec::new(), log, outlives: false }
    }

    pub fn arg(mut self, argument: impl Into<std::ffi::OsString>) -> Self {
        self.command.push(argument.into());
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Lets the process live on when its starter is killed. Its [`Daemon`] still ends it, unless it is kept.
    pub fn outlives(mut self, outlives: bool) -> Self {
        self.outlives = outlives;
        self
    }

    pub fn start(&self) -> Result<Daemon> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        // setpriv becomes the program itself: the pid is the program's.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", if self.outlives { "clear" } else { "KILL" }, "--"]);
        command.args(&self.command).envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Not to be reached by a Ctrl-C meant for us: we end it ourselves, in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", self.name))?;
        Ok(Daemon { name: self.name, child, log: self.log.clone(), kept: false, exit: None })
    }
}

/// A running child process.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
    kept: bool,
    exit: Option<ExitStatus>,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Leaves it running when dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until `ready` gives something; fails at once, with the log, when the process ends instead.
    pub fn until_ready<T>(
        &mut self,
        deadline: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let name = self.name;
        let waited = until(&format!("{name} to be ready"), deadline, || {
            if let Some(found) = ready()? {
                return Ok(Some(found));
            }
            if let Some(exit) = self.ended()? {
                bail!("{name} ended by itself ({exit})");
            }
            Ok(None)
        });
        waited.with_context(|| {
            format!("{name} did not come up; the end of its log:\n{}", tail(&self.log, SHOWN_LINES))
        })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait()?;
        }
        Ok(self.exit)
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // A child that was not waited for keeps its pid, so this never meets another process.
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// kill -9, and wait for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(PATIENCE)
    }

    /// SIGTERM, and wait for the end; SIGKILL when it takes too long.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match self.wait(PATIENCE) {
            Ok(exit) => Ok(exit),
            Err(_) => {
                eprintln!("{} does not end on SIGTERM: it is killed", self.name);
                self.kill()
            }
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        until(&what, deadline, || self.ended())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let broke = matches!(self.ended(), Ok(Some(exit)) if !exit.success() && exit.signal().is_none());
        // Nextest shows the output of failed tests only, and a test may fail by an error as well as by a panic.
        if std::thread::panicking() || broke || std::env::var_os("NEXTEST").is_some() {
            eprintln!(
                "---- the end of {}'s log ({})\n{}",
                self.name,
                self.log.display(),
                tail(&self.log, SHOWN_LINES)
            );
        }
        if !self.kept
            && let Err(error) = self.terminate()
        {
            eprintln!("{} cannot be ended: {error:#}", self.name);
        }
    }
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let Ok(bytes) = std::fs::read(path) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
