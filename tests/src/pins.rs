//! A folder of pins for each agent: what outlives an agent must not outlive its test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::places::binary;

/// Where a bpffs is; the agent mounts one if there is none.
const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "weir-test-";

/// A folder of our own on the bpffs. Dropping it detaches what an agent left there, so the agent must be gone by then.
#[derive(Debug)]
pub struct PinFolder {
    path: PathBuf,
    kept: bool,
}

impl PinFolder {
    /// A fresh one, not yet made: the agent makes it. Its name holds its maker's pid, by which the leftovers of makers that
    /// are gone are known; those are swept away first.
    pub fn fresh(kind: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{kind}-{}-{number}", std::process::id());
        Self { path: Path::new(BPFFS).join(name), kept: false }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it in place when dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for PinFolder {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = detach(&self.path)
        {
            eprintln!("the pins in {} stay behind: {error:#}", self.path.display());
        }
    }
}

/// As an operator does it: `weir agent --detach`.
pub fn detach(folder: &Path) -> Result<()> {
    let place = tempfile::tempdir()?;
    let config = place.path().join("weir.toml");
    let state = place.path().join("no-state");
    std::fs::write(
        &config,
        format!("tenant = \"t\"\nstate_dir = {state:?}\n\n[kernel]\npin_dir = {folder:?}\n"),
    )?;
    let said = Command::new(binary("weir")?).args(["agent", "--detach", "--config"]).arg(&config).output()?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

/// One that an agent still uses (of a demo that goes on running) refuses to go, and stays.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(BPFFS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| maker(name).ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            let _ = detach(&entry.path());
        }
    }
}

/// The pid in a folder's name.
fn maker(name: &str) -> Result<u32> {
    let mut parts = name.strip_prefix(PREFIX).context("not one of ours")?.rsplit('-');
    parts.next().context("no number")?.parse::<u32>()?;
    Ok(parts.next().context("no pid")?.parse()?)
}
