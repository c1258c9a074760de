//! Processes that were there before they could be followed: they are tagged, described, and said to have had what they
//! have open. One that its tag came to from the kernel, or from an agent before this one, keeps it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use weir_ebpf::{Selected, Tag};

use super::{EXECUTABLE_JOB, Lineage};
use crate::account::Extent;
use crate::process::{Key, Process, proc};

impl Lineage {
    /// Tags the processes that are in a cgroup, and below it, already.
    pub(super) fn seed(&mut self, path: &str, selected: Selected) {
        let Ok(mount) = crate::cgroup::mount_point() else { return };
        let mut folders = vec![mount.join(path)];
        while let Some(folder) = folders.pop() {
            let list = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in list.lines().filter_map(|line| line.parse().ok()) {
                self.seed_process(pid, selected, false);
            }
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(below.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        }
    }

    /// Those that are selected by their executable or user, with all that come from such an executable.
    pub(super) fn seed_others(&mut self) {
        let facts: BTreeMap<u32, proc::Facts> =
            proc::all().into_iter().filter_map(|pid| Some((pid, proc::Facts::read(pid)?))).collect();
        for (pid, own) in &facts {
            let mut above = Some((*pid, own));
            // Bounded: parents of parents can lead in a circle when numbers are given out again meanwhile.
            let executable = (0..facts.len()).find_map(|_| {
                let (pid, process) = above?;
                above = facts.get_key_value(&process.parent).map(|(pid, facts)| (*pid, facts));
                let flags = self.selection.executable(&PathBuf::from(&process.executable))?;
                Some((pid, process.start_ticks, flags))
            });
            if let Some((_, start_ticks, flags)) = executable {
                let job = (start_ticks * proc::NANOS_A_TICK) | EXECUTABLE_JOB;
                self.seed_process(*pid, Selected { job, flags, reserved: 0 }, true);
            } else if let Some(selected) = self.selection.user(own.uid) {
                self.seed_process(*pid, selected, false);
            }
        }
    }

    /// Tags a process that has no tag yet, and describes it.
    fn seed_process(&mut self, pid: u32, selected: Selected, by_executable: bool) {
        if let Ok(Some(tag)) = self.hooks.tag_of(pid) {
            return self.describe_tagged(pid, tag);
        }
        let Some(process) = self.processes.adopt(pid, None, selected.job) else { return };
        let tag = Tag {
            job: selected.job,
            process_start: process.key.start,
            flags: selected.flags,
            by_executable: u32::from(by_executable),
        };
        match self.hooks.seed(pid, tag) {
            // It was tagged by the kernel meanwhile, by its exact start.
            Ok(false) => {
                self.processes.forget(process.key);
                if let Ok(Some(tag)) = self.hooks.tag_of(pid) {
                    self.describe_tagged(pid, tag);
                }
            }
            // It may have ended before it had the tag, which nobody would take away then.
            Ok(true) if proc::start_ticks_of(pid) != Some(crate::process::ticks(process.key.start)) => {
                self.end(process.key);
            }
            Ok(true) => {
                if by_executable {
                    self.begin_job(selected.job, &process);
                }
                self.describe_seeded(&process);
            }
            Err(error) => tracing::error!(%error, pid, "a process could not be tagged"),
        }
    }

    /// One that has its tag from the kernel, or from an agent before this one.
    pub(super) fn describe_tagged(&mut self, pid: u32, tag: Tag) {
        let is_known = self.processes.of(Key { pid, start: tag.process_start }).is_some();
        if !is_known && let Some(process) = self.processes.adopt(pid, Some(tag.process_start), tag.job) {
            // At the start such a tag is of an agent before this one, which has recorded the connections.
            if self.is_following {
                self.describe_seeded(&process);
            } else {
                self.enrich(&process);
            }
        }
    }

    pub(super) fn describe_seeded(&mut self, process: &Process) {
        self.enrich(process);
        for connection in self.sockets.established(process.key.pid) {
            let (local, remote) = (connection.local.to_string(), connection.remote.to_string());
            let protocol = connection.protocol.to_owned();
            let more = [("local", local), ("remote", remote), ("protocol", protocol)];
            self.note("connection.predates", process, more);
        }
    }

    /// Of an executable that runs already.
    fn begin_job(&self, job: u64, process: &Process) {
        let name = process.images.last().map_or("", |image| image.executable.as_str());
        self.accounts.begin(job, name.to_owned(), Extent::Lineage);
        if let Err(error) = self.hooks.account(job) {
            tracing::error!(%error, "a job is not accounted for");
        }
    }
}
