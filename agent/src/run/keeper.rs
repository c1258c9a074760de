//! The keeper: a second process that outlives a killed `weir run` for as long as it takes to clean up. It
//! waits until its standard input ends, which also happens when the first process dies, and then kills what
//! is left in the cgroup and removes it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::cgroup::{self, Cgroup};

/// The names of cgroups made here begin with this; the pid and start time of their `weir run` follow.
const PREFIX: &str = "weir-run-";
/// How long processes may take to die.
const KILL: Duration = Duration::from_secs(30);

/// A running keeper.
pub(super) struct Keeper {
    process: Child,
    name: String,
}

impl Keeper {
    /// Starts the keeper of a cgroup that is still to be made.
    pub fn start() -> Result<Self> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), own_start_time()?);
        let program = std::env::current_exe().context("cannot find weir's own program")?;
        let process = Command::new(program)
            .arg("keep-cgroup")
            .arg(&name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Out of reach of what a terminal or a shell sends to the command's group.
            .process_group(0)
            .spawn()
            .context("cannot start the keeper")?;
        Ok(Self { process, name })
    }

    /// Relative to the cgroup2 mount.
    pub fn cgroup_name(&self) -> &str {
        &self.name
    }

    /// The cgroup is gone; so may the keeper.
    pub fn finish(mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The keeper's own life: `weir keep-cgroup NAME`.
pub fn keep(name: &str) -> Result<()> {
    let mut nothing = [0; 1];
    while std::io::stdin().read(&mut nothing).is_ok_and(|read| read > 0) {}
    let path = cgroup::mount_point()?.join(name);
    if path.exists() {
        remove(path)?;
    }
    // A `weir run` inside this one was killed with its keeper just now.
    sweep_stale();
    Ok(())
}

fn remove(path: PathBuf) -> Result<()> {
    let cgroup = Cgroup::adopt(path)?;
    cgroup.kill(KILL)?;
    Ok(cgroup.remove()?)
}

/// The first life of a command: `weir enter-cgroup PATH -- COMMAND ...` moves itself there and becomes it.
///
/// # Errors
/// Returns only when it could not: the exit code is 127 for a command that is not there, else 126.
pub fn enter(cgroup: &Path, command: &[OsString]) -> (i32, anyhow::Error) {
    let Some((program, arguments)) = command.split_first() else {
        return (126, anyhow::anyhow!("no command was given"));
    };
    if let Err(error) = std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()) {
        return (126, anyhow::Error::new(error).context(format!("cannot enter {}", cgroup.display())));
    }
    // Killed with its `weir run`, it makes no call that nobody intercepts. Should that have died before this line,
    // the keeper ends the command.
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return (126, anyhow::Error::new(error).context("cannot tie the command to its weir run"));
    }
    let error = Command::new(program).args(arguments).exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    (code, anyhow::Error::new(error).context(format!("cannot run {}", program.to_string_lossy())))
}

/// Marks a cgroup as in use for as long as the file lives: also for those who do not see its `weir run`, which may be in
/// another pid namespace.
pub(super) fn mark_in_use(cgroup: &Path) -> Result<File> {
    let folder = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
    folder.try_lock().with_context(|| format!("cannot lock {}", cgroup.display()))?;
    Ok(folder)
}

/// Removes the cgroups of earlier `weir run`s whose process and keeper were both killed.
pub(super) fn sweep_stale() {
    let Ok(mount) = cgroup::mount_point() else { return };
    let Ok(entries) = std::fs::read_dir(&mount) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((pid, started)) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'))
        else {
            continue;
        };
        let alive = pid.parse().ok().and_then(start_time_of).is_some_and(|own| own.to_string() == started);
        if alive || mark_in_use(&entry.path()).is_err() {
            continue;
        }
        if let Err(error) = remove(entry.path()) {
            tracing::warn!(%error, cgroup = %entry.path().display(), "a stale cgroup stays");
        }
    }
}

fn own_start_time() -> Result<u64> {
    start_time_of(std::process::id()).context("cannot read /proc/self/stat; is /proc mounted?")
}

/// None for a process that has ended, also while its parent has not asked for its exit code.
fn start_time_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.get(stat.rfind(')')? + 1..)?.trim_ascii_start().chars().next()?;
    if matches!(state, 'Z' | 'X') { None } else { crate::identity::start_time(&stat) }
}
