//! What a `weir run` has made while it runs, looked for again when it is over: its cgroup, its processes, the kernel's
//! programs and links that it holds, and anything pinned.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weir_tests::machine::cgroup2_mount;
use weir_tests::until;

/// How long what a killed `weir run` leaves to others may take to be gone.
const CLEANS_UP: Duration = Duration::from_secs(20);

/// The cgroups that the `weir run` with this pid has made.
pub fn cgroups_of(pid: u32) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cgroup2_mount()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("weir-run-{pid}-")) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A process by its pid and start time, so that no other is taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    started: String,
}

impl Process {
    /// None when there is no such process, or nothing but what its parent has not yet asked for.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        let (state, started) = (fields.first()?, fields.get(19)?);
        (!matches!(*state, "Z" | "X")).then(|| Self { pid, started: (*started).to_owned() })
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

/// All that a running `weir run` has made.
#[derive(Debug)]
pub struct Traces {
    pub weir: Process,
    pub keeper: Process,
    pub cgroup: PathBuf,
    /// The processes in the cgroup.
    pub processes: Vec<Process>,
    /// `link_id` and `prog_id` lines of the descriptors that it holds.
    kernel: BTreeSet<String>,
    pins: BTreeSet<PathBuf>,
}

impl Traces {
    /// Looks at a `weir run` whose command is running.
    pub fn of(pid: u32) -> Result<Self> {
        let weir = Process::of(pid).context("weir run is gone")?;
        let cgroups = cgroups_of(pid)?;
        let [cgroup] = cgroups.as_slice() else { bail!("{} cgroups", cgroups.len()) };
        let processes: Vec<_> = members(cgroup)?.into_iter().filter_map(Process::of).collect();
        let keeper = children(pid)?.into_iter().find(|child| command_line(*child).contains("keep-cgroup"));
        let keeper = keeper.and_then(Process::of).context("weir run has no keeper")?;
        let kernel = held_by(pid);
        ensure!(
            kernel.iter().filter(|line| line.starts_with("link_id")).count() >= 3,
            "its links: {kernel:?}"
        );
        Ok(Self { weir, keeper, cgroup: cgroup.clone(), processes, kernel, pins: pins() })
    }

    /// Waits until nothing of it is left.
    pub fn until_gone(&self) -> Result<()> {
        until("what weir run has made to be gone", CLEANS_UP, || Ok(self.left().is_empty().then_some(())))
            .with_context(|| format!("left are {:?}", self.left()))
    }

    /// What is left of it.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for process in [&self.weir, &self.keeper].into_iter().chain(&self.processes) {
            if process.is_alive() {
                left.push(format!("{process:?}: {}", command_line(process.pid)));
            }
        }
        left.extend(self.cgroup.exists().then(|| self.cgroup.display().to_string()));
        let holders = processes().into_iter().map(|pid| (pid, held_by(pid)));
        left.extend(holders.filter_map(|(pid, held)| {
            let ours: Vec<_> = held.intersection(&self.kernel).collect();
            (!ours.is_empty()).then(|| format!("{pid} holds {ours:?}"))
        }));
        left.extend(pins().difference(&self.pins).map(|pin| pin.display().to_string()));
        left
    }
}

/// The processes of a cgroup.
pub fn members(cgroup: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

pub fn command_line(pid: u32) -> String {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}

fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("children"))?;
        found.extend(text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(found)
}

/// The kernel's programs and links behind a process's descriptors (proc_pid_fdinfo(5)).
fn held_by(pid: u32) -> BTreeSet<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("link_id:") || line.starts_with("prog_id:")).collect()
}

/// Whatever is pinned on this host.
fn pins() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/sys/fs/bpf")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}
