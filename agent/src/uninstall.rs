//! Taking Weir off a host: what outlives an agent, and what it put on the disk.
//!
//! Enters: the configuration that the agent had. Leaves: one line for each thing that was removed. Must never: remove
//! what Weir did not make, or anything below a running agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::admin;
use crate::config::Config;
use crate::kernel::pins::{self, PinError};
use crate::spool::{KEY_FILE, KEY_MAKING, KEY_NEXT, WITNESS_FILE, WITNESS_MAKING, WITNESSED_FILE};

/// How long an agent may take to end: more than it gives its connections, its last events and its last shipment.
const END: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(50);

/// What an agent keeps in its state folder. Jobs may trust the CA for as long as its key is there.
const CA: &str = "ca";
const STATE: [&str; 3] = ["keys", "spool", "run"];
/// The log's key, and what the collector witnessed.
const STATE_FILES: [&str; 6] = [KEY_FILE, KEY_NEXT, KEY_MAKING, WITNESS_FILE, WITNESSED_FILE, WITNESS_MAKING];

/// Why something stays.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error(
        "the agent with pid {pid} is running: end it first (`systemctl stop weir-agent`, or `kill {pid}`){or}"
    )]
    Running { pid: u32, or: &'static str },
    #[error("the agent with pid {pid} does not end: look at its log, and end it with `kill -9 {pid}`")]
    StillRunning { pid: u32 },
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// What is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The records, keys and all else in the state folder too.
    pub purge: bool,
    /// A running agent is ended first.
    pub force: bool,
}

/// Takes hooks and tables away: from here on no connect is led, refused or counted. None there is no error.
pub async fn detach(config: &Config) -> Result<Vec<String>, UninstallError> {
    if let Some(pid) = running(config).await {
        return Err(UninstallError::Running { pid, or: "" });
    }
    unpin(config)
}

/// Takes away all that Weir put on the host, in the order in which it stops to matter.
pub async fn uninstall(config: &Config, plan: Plan) -> Result<Vec<String>, UninstallError> {
    let mut told = Vec::new();
    if let Some(pid) = running(config).await {
        if !plan.force {
            return Err(UninstallError::Running { pid, or: ", or pass --force" });
        }
        end(pid).await?;
        told.push(format!("ended      the agent with pid {pid}"));
    }
    told.extend(unpin(config)?);
    let state = &config.state_dir;
    told.extend(remove_tree(&state.join(CA))?);
    told.extend(remove_file(&admin::socket(state))?);
    if plan.purge {
        for name in STATE {
            told.extend(remove_tree(&state.join(name))?);
        }
        for name in STATE_FILES {
            told.extend(remove_file(&state.join(name))?);
        }
        told.extend(remove_empty(state)?);
    } else if state.exists() {
        told.push(format!("kept       {} (records and keys; --purge removes them)", state.display()));
    }
    Ok(told)
}

async fn running(config: &Config) -> Option<u32> {
    admin::status(&config.state_dir).await.ok().map(|status| status.pid)
}

/// SIGTERM, and a wait until the process is gone.
async fn end(pid: u32) -> Result<(), UninstallError> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let signalled = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    signalled.map_err(|e| failed("end the agent", &process)(e.into()))?;
    let deadline = Instant::now() + END;
    // One that has ended and was not waited for by its parent has no program any more.
    while fs::read_link(process.join("exe")).is_ok() {
        if Instant::now() >= deadline {
            return Err(UninstallError::StillRunning { pid });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn unpin(config: &Config) -> Result<Vec<String>, UninstallError> {
    let Some(folder) = &config.kernel.pin_dir else { return Ok(Vec::new()) };
    let gone = pins::remove(folder)?;
    Ok(vec![if gone {
        format!("detached   hooks and tables in {}", folder.display())
    } else {
        format!("nothing    pinned in {}", folder.display())
    }])
}

fn remove_tree(path: &Path) -> Result<Option<String>, UninstallError> {
    told(path, fs::remove_dir_all(path))
}

fn remove_file(path: &Path) -> Result<Option<String>, UninstallError> {
    told(path, fs::remove_file(path))
}

/// What is in it is not Weir's, so it stays.
fn remove_empty(path: &Path) -> Result<Option<String>, UninstallError> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Ok(Some(format!("kept       {} (it holds what is not Weir's)", path.display())))
        }
        removed => told(path, removed),
    }
}

fn told(path: &Path, removed: io::Result<()>) -> Result<Option<String>, UninstallError> {
    match removed {
        Ok(()) => Ok(Some(format!("removed    {}", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> UninstallError + 'a {
    move |source| UninstallError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn purge_removes_what_is_weirs_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        for name in ["ca", "keys", "spool", "somebody-elses"] {
            fs::create_dir_all(state.join(name)).unwrap();
        }
        let mut config = Config::built_in(state.clone());
        config.kernel.pin_dir = Some("/sys/fs/bpf/weir-none".into());
        let told = uninstall(&config, Plan { purge: false, force: false }).await.unwrap();
        assert!(!state.join("ca").exists() && state.join("spool").exists(), "{told:?}");
        let told = uninstall(&config, Plan { purge: true, force: false }).await.unwrap();
        assert!(told.iter().any(|line| line.starts_with("kept")), "{told:?}");
        fs::remove_dir(state.join("somebody-elses")).expect("only what is not Weir's is left");
        uninstall(&config, Plan { purge: true, force: false }).await.unwrap();
        assert!(!state.exists());
        let told = uninstall(&config, Plan { purge: true, force: false }).await.unwrap();
        assert_eq!(told, ["nothing    pinned in /sys/fs/bpf/weir-none"]);
    }
}
