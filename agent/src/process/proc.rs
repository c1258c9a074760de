//! What /proc says of a process. Each text is bounded, and may be what the process itself chose.
//!
//! Enters: a process's number. Leaves: plain facts, or none when the process is gone. Must never: read from a process's own
//! memory on a path that must not wait: [`environment`] and [`command_line`] do, and a process can make their reader wait.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most bytes that are read of one file.
const MAX_FILE: u64 = 256 << 10;
/// Clock ticks in which /proc counts, and the nanoseconds of one (USER_HZ is 100 on all that Weir runs on).
pub const NANOS_A_TICK: u64 = 10_000_000;

/// What can be read without the process's help.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Clock ticks since boot.
    pub start_ticks: u64,
    pub parent: u32,
    pub comm: String,
    pub executable: String,
    pub uid: u32,
    pub gid: u32,
    /// In the cgroup2 hierarchy.
    pub cgroup: String,
    pub netns: u32,
    pub mount_ns: u32,
    pub pid_ns: u32,
}

impl Facts {
    pub fn read(pid: u32) -> Option<Self> {
        let folder = folder(pid);
        let stat = text(&folder.join("stat"))?;
        let status = text(&folder.join("status"))?;
        let facts = Self {
            start_ticks: start_ticks(&stat)?,
            parent: field(&stat, 4)?.try_into().ok()?,
            comm: comm(&stat).to_owned(),
            // A kernel thread has none, and a zombie has none any more.
            executable: executable(pid).unwrap_or_default(),
            uid: effective(&status, "Uid:")?,
            gid: effective(&status, "Gid:")?,
            cgroup: cgroup2_path(&text(&folder.join("cgroup"))?).unwrap_or_default(),
            netns: namespace(&folder, "net"),
            mount_ns: namespace(&folder, "mnt"),
            pid_ns: namespace(&folder, "pid"),
        };
        // Still the same process: what was read is of one.
        (start_ticks_of(pid)? == facts.start_ticks).then_some(facts)
    }
}

/// When a process began, clock ticks since boot.
pub fn start_ticks_of(pid: u32) -> Option<u64> {
    start_ticks(&text(&folder(pid).join("stat"))?)
}

/// Field 22 of a /proc/PID/stat. Field 2 may hold spaces and parentheses.
pub fn start_ticks(stat: &str) -> Option<u64> {
    field(stat, 22)
}

pub fn executable(pid: u32) -> Option<String> {
    Some(std::fs::read_link(folder(pid).join("exe")).ok()?.to_string_lossy().into_owned())
}

/// The path in the cgroup2 hierarchy.
pub fn cgroup(pid: u32) -> Option<String> {
    cgroup2_path(&text(&folder(pid).join("cgroup"))?)
}

/// From the process's memory: may wait. Arguments are separated by zeros.
pub fn command_line(pid: u32) -> Option<String> {
    text(&folder(pid).join("cmdline"))
}

/// From the process's memory: may wait.
pub fn environment(pid: u32) -> Option<HashMap<String, String>> {
    let text = text(&folder(pid).join("environ"))?;
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    Some(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// All processes.
pub fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub fn folder(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

pub fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Fields are counted from 1, as proc(5) does; those from 3 on.
fn field(stat: &str, n: usize) -> Option<u64> {
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

fn comm(stat: &str) -> &str {
    let name = stat.find('(').zip(stat.rfind(')')).and_then(|(from, to)| stat.get(from + 1..to));
    name.unwrap_or_default()
}

/// The second number of a line of /proc/PID/status.
fn effective(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The line `0::/path`.
pub fn cgroup2_path(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The number in `net:[4026531840]`; 0 when it cannot be read.
fn namespace(folder: &Path, name: &str) -> u32 {
    let link = std::fs::read_link(folder.join("ns").join(name)).unwrap_or_default();
    let link = link.to_string_lossy();
    let number = link.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
    number.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b) {}", fields.join(" "));
        assert_eq!((start_ticks(&stat), comm(&stat)), (Some(22), "a) b"));
        assert_eq!((start_ticks("7 (a"), start_ticks("7 (a) R")), (None, None));
    }

    #[test]
    fn this_very_process_is_described() {
        let facts = Facts::read(std::process::id()).unwrap();
        assert!(facts.start_ticks > 0 && facts.netns > 0 && facts.executable.starts_with('/'), "{facts:?}");
        assert_eq!(facts.parent, std::os::unix::process::parent_id());
        assert_eq!(Facts::read(u32::MAX), None);
    }
}
