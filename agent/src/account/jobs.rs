//! The jobs that are accounted for: what each is called, and whether it has ended.
//!
//! Enters: the hooks' counts and tags. Leaves: the jobs whose sums are to be stated. Must never: call a job ended in whose
//! cgroup a process is, or that a living process is tagged with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weir_ebpf::{JobCounts, STRAY_JOB, Tag};

/// How long a job that is closed and gone stays in the tables: a socket of its may still be in somebody's hands.
const STAYS: Duration = Duration::from_secs(60);

/// How far a job reaches, and so when it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// As long as the cgroup, or one below it, holds a process, or one that came from there lives.
    Cgroup(PathBuf),
    /// As long as a process of its lineage lives.
    Lineage,
    /// Without end: a user's, or what belongs to no job.
    Always,
}

#[derive(Debug)]
pub(super) struct Jobs {
    known: BTreeMap<u64, Job>,
}

#[derive(Debug)]
struct Job {
    name: String,
    extent: Extent,
    stated: Option<JobCounts>,
    closed: Option<Instant>,
}

impl Jobs {
    pub fn new() -> Self {
        let mut jobs = Self { known: BTreeMap::new() };
        jobs.begin(STRAY_JOB, "stray".to_owned(), Extent::Always);
        jobs
    }

    pub fn begin(&mut self, job: u64, name: String, extent: Extent) {
        self.known.entry(job).or_insert(Job { name, extent, stated: None, closed: None });
    }

    /// Which sums are to be stated: number, name, and whether the job has ended. With `all`, those of jobs that go on, too.
    pub fn due(
        &mut self,
        counts: &BTreeMap<u64, JobCounts>,
        tags: &BTreeMap<u32, Tag>,
        all: bool,
    ) -> Vec<(u64, String, bool)> {
        let alive: BTreeSet<u64> = tags.values().map(|tag| tag.job).collect();
        let mut due = Vec::new();
        for (&job, own) in counts {
            // A job of lineage's begins in the kernel; it may be known there first.
            self.begin(job, format!("job {job:x}"), Extent::Lineage);
            let Some(known) = self.known.get(&job) else { continue };
            let is_new =
                known.stated != Some(*own) && (known.stated.is_some() || *own != JobCounts::default());
            let has_ended = !alive.contains(&job) && !known.extent.is_populated();
            let closes = has_ended && (is_new || known.closed.is_none() && known.stated.is_some());
            if closes || all && is_new {
                due.push((job, known.name.clone(), has_ended));
            }
        }
        due
    }

    pub fn stated(&mut self, job: u64, counts: JobCounts, closed: bool) {
        if let Some(known) = self.known.get_mut(&job) {
            known.stated = Some(counts);
            known.closed = closed.then(Instant::now);
        }
    }

    /// Takes out the jobs that are closed for a while and can have no process any more.
    pub fn gone(&mut self, counts: &BTreeMap<u64, JobCounts>) -> Vec<u64> {
        let is_gone = |job: &u64, known: &Job| {
            known.closed.is_some_and(|at| at.elapsed() >= STAYS)
                && known.stated == counts.get(job).copied()
                && known.extent.is_gone()
        };
        let gone: Vec<u64> =
            self.known.iter().filter(|(job, known)| is_gone(job, known)).map(|(job, _)| *job).collect();
        self.known.retain(|job, _| !gone.contains(job));
        gone
    }
}

impl Extent {
    fn is_populated(&self) -> bool {
        match self {
            // Yes, if that cannot be told; a cgroup that is gone holds nothing.
            Extent::Cgroup(path) => match std::fs::read_to_string(path.join("cgroup.events")) {
                Ok(events) => !events.lines().any(|line| line == "populated 0"),
                Err(error) => path.exists() || error.kind() != std::io::ErrorKind::NotFound,
            },
            Extent::Lineage => false,
            Extent::Always => true,
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Extent::Cgroup(path) => !path.exists(),
            Extent::Lineage => true,
            Extent::Always => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(redirected: u64) -> JobCounts {
        let mut counts = JobCounts::default();
        counts.verdicts[0] = redirected;
        counts
    }

    fn tag(job: u64) -> Tag {
        Tag { job, process_start: 1, flags: 0, by_executable: 0 }
    }

    #[test]
    fn a_job_is_closed_when_its_last_process_is_gone_and_again_when_its_sums_change() {
        let mut jobs = Jobs::new();
        jobs.begin(7, "release".into(), Extent::Lineage);
        let alive = BTreeMap::from([(1, tag(7))]);
        let one = BTreeMap::from([(7, counts(1))]);
        assert_eq!(jobs.due(&one, &alive, false), []);
        assert_eq!(jobs.due(&one, &alive, true), [(7, "release".into(), false)]);
        jobs.stated(7, counts(1), false);
        assert_eq!(jobs.due(&one, &alive, true), []);
        assert_eq!(jobs.due(&one, &BTreeMap::new(), false), [(7, "release".into(), true)]);
        jobs.stated(7, counts(1), true);
        assert_eq!(jobs.due(&one, &BTreeMap::new(), true), []);
        assert_eq!(jobs.due(&BTreeMap::from([(7, counts(2))]), &BTreeMap::new(), false).len(), 1);
        assert_eq!(jobs.gone(&one), Vec::<u64>::new(), "its sockets may still be somewhere");
    }

    #[test]
    fn a_job_that_did_nothing_is_not_stated_and_strays_never_end() {
        let mut jobs = Jobs::new();
        jobs.begin(7, "idle".into(), Extent::Lineage);
        let idle = BTreeMap::from([(7, counts(0)), (STRAY_JOB, counts(0))]);
        assert_eq!(jobs.due(&idle, &BTreeMap::new(), true), []);
        let strays = BTreeMap::from([(STRAY_JOB, counts(3))]);
        assert_eq!(jobs.due(&strays, &BTreeMap::new(), true), [(STRAY_JOB, "stray".into(), false)]);
    }
}
