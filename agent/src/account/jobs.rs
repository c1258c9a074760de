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
    closed: bool,
    /// Since when it has had no process.
    over: Option<Instant>,
}

impl Jobs {
    pub fn new() -> Self {
        let mut jobs = Self { known: BTreeMap::new() };
        jobs.begin(STRAY_JOB, "stray".to_owned(), Extent::Always);
        jobs
    }

    pub fn begin(&mut self, job: u64, name: String, extent: Extent) {
        self.known.entry(job).or_insert(Job { name, extent, stated: None, closed: false, over: None });
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
            let Some(known) = self.known.get_mut(&job) else { continue };
            let is_new =
                known.stated != Some(*own) && (known.stated.is_some() || *own != JobCounts::default());
            let has_ended = !alive.contains(&job) && !known.extent.is_populated();
            known.over = has_ended.then(|| known.over.unwrap_or_else(Instant::now));
            let closes = has_ended && (is_new || !known.closed && known.stated.is_some());
            if closes || all && is_new {
                due.push((job, known.name.clone(), has_ended));
            }
        }
        due
    }

    pub fn stated(&mut self, job: u64, counts: JobCounts, closed: bool) {
        if let Some(known) = self.known.get_mut(&job) {
            known.stated = Some(counts);
            known.closed = closed;
        }
    }

    /// Takes out the jobs that have had no process for a while and can have none any more, and of which nothing is left to be
    /// stated: also those that never did anything, or they would fill the kernel's table.
    pub fn gone(&mut self, counts: &BTreeMap<u64, JobCounts>, now: Instant) -> Vec<u64> {
        let is_gone = |job: &u64, known: &Job| {
            // The kernel had no room for it, or does not know it yet.
            let Some(own) = counts.get(job) else {
                return matches!(known.extent, Extent::Cgroup(_)) && known.extent.is_gone();
            };
            let is_stated = match known.stated {
                Some(stated) => known.closed && stated == *own,
                None => *own == JobCounts::default(),
            };
            known.over.is_some_and(|since| now.saturating_duration_since(since) >= STAYS)
                && is_stated
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

    fn later() -> Instant {
        Instant::now() + STAYS
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
        assert_eq!(jobs.gone(&one, Instant::now()), Vec::<u64>::new(), "its sockets may still be somewhere");
        assert_eq!(jobs.gone(&one, later()), [7]);
    }

    #[test]
    fn a_job_that_did_nothing_is_let_go_when_it_is_over() {
        let mut jobs = Jobs::new();
        let idle = BTreeMap::from([(7, counts(0))]);
        let alive = BTreeMap::from([(1, tag(7))]);
        jobs.due(&idle, &alive, true);
        assert_eq!(jobs.gone(&idle, later()), Vec::<u64>::new());
        jobs.due(&idle, &BTreeMap::new(), true);
        assert_eq!(jobs.gone(&idle, Instant::now()), Vec::<u64>::new());
        assert_eq!(jobs.gone(&idle, later()), [7]);
    }

    #[test]
    fn a_closed_job_that_came_to_life_again_is_not_let_go() {
        let mut jobs = Jobs::new();
        let (one, alive) = (BTreeMap::from([(7, counts(1))]), BTreeMap::from([(1, tag(7))]));
        assert_eq!(jobs.due(&one, &BTreeMap::new(), false).len(), 1);
        jobs.stated(7, counts(1), true);
        jobs.due(&one, &alive, false);
        assert_eq!(jobs.gone(&one, later()), Vec::<u64>::new());
        jobs.due(&one, &BTreeMap::new(), false);
        assert_eq!(jobs.gone(&one, later()), [7]);
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
