//! Cgroups of our own under the cgroup2 mount: made, joined, emptied and removed. Never the root cgroup, never another's.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machine::cgroup2_mount;
use crate::wait::until;

/// A cgroup of our own. Dropping it ends the processes in it and removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    kept: bool,
}

impl Cgroup {
    /// A fresh cgroup right under the mount. Its name holds its maker's pid, by which the leftovers of makers that are
    /// gone are known: those of the same `kind` are swept away first.
    pub fn fresh(kind: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mount = cgroup2_mount()?;
        let prefix = format!("weir-{kind}-");
        sweep(&mount, &prefix)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::make(mount.join(format!("{prefix}{}-{number}", std::process::id())))
    }

    /// A child cgroup.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        std::fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Self { path, kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let text = std::fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Leaves it in place when dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.path) {
            eprintln!("the cgroup {} stays behind: {error:#}", self.path.display());
        }
    }
}

/// Ends what runs in the cgroup and below it, and removes all of it.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Kills every process of this cgroup and of those below (Linux 5.14).
    std::fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("emptying {}", path.display()))?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    until("a cgroup's processes to be gone", Duration::from_secs(10), || match std::fs::remove_dir(path) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(None),
        Err(error) => Err(error.into()),
    })
}

fn sweep(mount: &Path, prefix: &str) -> Result<()> {
    for entry in std::fs::read_dir(mount)? {
        let entry = entry?;
        let name = entry.file_name();
        let maker =
            name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next()?.parse::<u32>().ok());
        if let Some(maker) = maker
            && !Path::new(&format!("/proc/{maker}")).exists()
        {
            remove(&entry.path())?;
        }
    }
    Ok(())
}
