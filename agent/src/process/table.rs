//! The table of processes, by number and start. Pure: it reads no clock and no file.
//!
//! Enters: what the kernel told of processes, in order. Leaves: what a process was at a moment, also after it ended. Must
//! never: let an entry of a living process go, or give out one process's entry for another of the same number.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weir_core::mask::Masked;
use weir_core::record::{Ancestor, Job};

/// How many programs that a process became are kept: its first, and its latest.
const IMAGES: usize = 8;
/// How many ancestors are kept of a process.
pub const ANCESTORS: usize = 16;

/// Names a process for as long as the host runs: its number, and when it began, in nanoseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub pid: u32,
    pub start: u64,
}

/// What was known of a process.
#[derive(Debug, Clone)]
pub struct Process {
    pub key: Key,
    pub uid: u32,
    pub gid: u32,
    /// The job under which its connects are counted.
    pub job: u64,
    /// Its number, and its path if that is known.
    pub cgroup: (u64, Masked<String>),
    pub netns: u32,
    pub mount_ns: u32,
    pub pid_ns: u32,
    /// Empty without a container.
    pub container_id: String,
    /// The nearest first.
    pub parents: Vec<Arc<Ancestor<Masked<String>>>>,
    /// What it ran, the oldest first; never empty.
    pub images: Vec<Image>,
    /// The CI job, by the variables of its environment, or by those of the process that it comes from.
    pub ci: Arc<Job<Masked<String>>>,
    /// Whether it, or one that it comes from, was recorded as a stdio server.
    pub stdio: bool,
    /// Nanoseconds since boot.
    pub exited: Option<u64>,
}

/// A program that a process ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Nanoseconds since boot.
    pub since: u64,
    pub executable: Masked<String>,
    pub command_line: Masked<String>,
}

impl Process {
    /// What it ran at a moment.
    pub fn image(&self, at: u64) -> Option<&Image> {
        self.images.iter().rev().find(|image| image.since <= at).or_else(|| self.images.first())
    }

    /// As an ancestor of those that it makes.
    pub fn ancestor(&self) -> Ancestor<Masked<String>> {
        let executable = self.images.last().map(|image| image.executable.clone()).unwrap_or_default();
        Ancestor { pid: self.key.pid, start_time: Some(ticks(self.key.start)), executable }
    }

    pub fn became(&mut self, image: Image) {
        if self.images.len() >= IMAGES {
            self.images.remove(1);
        }
        self.images.push(image);
    }
}

/// How long and how many entries of processes that ended are kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub ended: usize,
    pub age: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    by_pid: HashMap<u32, BTreeMap<u64, Process>>,
    /// In the order in which they ended.
    ended: VecDeque<(u64, Key)>,
    bounds: Bounds,
    evicted: u64,
}

impl Table {
    pub fn new(bounds: Bounds) -> Self {
        Self { by_pid: HashMap::new(), ended: VecDeque::new(), bounds, evicted: 0 }
    }

    pub fn put(&mut self, process: Process) {
        self.by_pid.entry(process.key.pid).or_default().insert(process.key.start, process);
    }

    pub fn of(&self, key: Key) -> Option<&Process> {
        self.by_pid.get(&key.pid)?.get(&key.start)
    }

    pub fn of_mut(&mut self, key: Key) -> Option<&mut Process> {
        self.by_pid.get_mut(&key.pid)?.get_mut(&key.start)
    }

    /// The process that had this number at that moment.
    pub fn at(&self, pid: u32, at: u64) -> Option<&Process> {
        let (_, process) = self.by_pid.get(&pid)?.range(..=at).next_back()?;
        // After its end another may have had the number, of which nothing is known.
        process.exited.is_none_or(|exited| at <= exited).then_some(process)
    }

    pub fn forget(&mut self, key: Key) {
        if let Some(starts) = self.by_pid.get_mut(&key.pid) {
            starts.remove(&key.start);
            if starts.is_empty() {
                self.by_pid.remove(&key.pid);
            }
        }
    }

    /// The process has ended. Its entry stays for a while.
    pub fn exited(&mut self, key: Key, at: u64) {
        if let Some(process) = self.of_mut(key)
            && process.exited.is_none()
        {
            process.exited = Some(at);
            self.ended.push_back((at, key));
        }
        self.evict(at);
    }

    /// Lets go of what ended long ago, and of the oldest ended past the bound, which is counted.
    pub fn evict(&mut self, now: u64) {
        let age = u64::try_from(self.bounds.age.as_nanos()).unwrap_or(u64::MAX);
        while let Some((at, key)) = self.ended.front().copied() {
            let is_old = now.saturating_sub(at) > age;
            if !is_old && self.ended.len() <= self.bounds.ended {
                break;
            }
            self.ended.pop_front();
            self.evicted += u64::from(!is_old);
            self.forget(key);
        }
    }

    /// How many entries had to go before their time.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn len(&self) -> usize {
        self.by_pid.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// Those that have not ended.
    pub fn living(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values().flat_map(BTreeMap::values).filter(|process| process.exited.is_none())
    }
}

/// Clock ticks, as /proc counts them.
pub fn ticks(nanos: u64) -> u64 {
    nanos / super::proc::NANOS_A_TICK
}

#[cfg(test)]
mod tests {
    use weir_core::mask::{MaskKey, Masker};

    use super::*;

    fn process(pid: u32, start: u64) -> Process {
        let text = Masker::new(MaskKey::new([1; 32]));
        let image =
            |since, name: &str| Image { since, executable: text.text(name), command_line: text.text(name) };
        Process {
            key: Key { pid, start },
            uid: 0,
            gid: 0,
            job: 1,
            cgroup: (2, text.text("/a")),
            netns: 3,
            mount_ns: 4,
            pid_ns: 5,
            container_id: String::new(),
            parents: Vec::new(),
            images: vec![image(start, "sh"), image(start + 5, "curl")],
            ci: Arc::default(),
            stdio: false,
            exited: None,
        }
    }

    fn table(ended: usize) -> Table {
        Table::new(Bounds { ended, age: Duration::from_secs(1) })
    }

    #[test]
    fn a_number_given_out_again_names_the_process_of_its_time() {
        let mut table = table(10);
        table.put(process(7, 100));
        assert!(table.at(7, 99).is_none() && table.at(8, 100).is_none());
        table.exited(Key { pid: 7, start: 100 }, 200);
        table.put(process(7, 300));
        assert_eq!(table.at(7, 150).unwrap().key.start, 100);
        assert_eq!(table.at(7, 200).unwrap().key.start, 100);
        assert!(table.at(7, 250).is_none(), "whoever it was");
        assert_eq!(table.at(7, 300).unwrap().key.start, 300);
    }

    #[test]
    fn a_process_is_shown_with_the_program_that_it_ran_at_the_time() {
        let process = process(7, 100);
        let at = |at| process.image(at).unwrap().executable.as_str().to_owned();
        assert_eq!(
            (at(99), at(104), at(105), at(900)),
            ("sh".into(), "sh".into(), "curl".into(), "curl".into())
        );
    }

    #[test]
    fn a_process_that_becomes_many_programs_keeps_the_first_and_the_latest() {
        let mut process = process(7, 100);
        for since in 200..300 {
            let image = process.images[0].clone();
            process.became(Image { since, ..image });
        }
        assert_eq!(process.images.len(), IMAGES);
        assert_eq!((process.images[0].since, process.images[IMAGES - 1].since), (100, 299));
    }

    #[test]
    fn only_what_ended_goes_and_what_goes_early_is_counted() {
        let mut table = table(10);
        for pid in 1..=100 {
            table.put(process(pid, 1));
        }
        for pid in 1..=50 {
            table.exited(Key { pid, start: 1 }, 1000 + u64::from(pid));
        }
        assert_eq!((table.len(), table.evicted()), (60, 40));
        assert_eq!(table.living().count(), 50);
        assert!(table.at(40, 500).is_none() && table.at(41, 500).is_some() && table.at(99, 500).is_some());
        // Age is no loss.
        table.evict(5_000_000_000);
        assert_eq!((table.len(), table.evicted()), (50, 40));
    }

    #[test]
    fn an_end_that_is_told_twice_is_one() {
        let mut table = table(1);
        table.put(process(7, 100));
        table.exited(Key { pid: 7, start: 100 }, 200);
        table.exited(Key { pid: 7, start: 100 }, 300);
        assert_eq!((table.len(), table.evicted()), (1, 0));
        assert!(table.at(7, 250).is_none());
    }
}
