//! Who may be asked for its own memory. A process can make its reader wait for as long as it likes (a page of its arguments that never
//! comes), and the reader is a thread of ours.
//!
//! Enters: a job. Leaves: a turn, or none. Must never: let one job hold the turns of all, nor ask a job again of which a reader is
//! still waited for past its time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module.
#[derive(Debug)]
pub struct Readers {
    all: Arc<Semaphore>,
    /// At a time.
    of_a_job: usize,
    jobs: Arc<Mutex<HashMap<u64, Load>>>,
}

/// Of the turns that a job has.
#[derive(Debug, Default)]
struct Load {
    now: usize,
    late: usize,
}

/// A reader's; given back when it is dropped, by the thread that read.
#[derive(Debug)]
pub struct Turn {
    jobs: Arc<Mutex<HashMap<u64, Load>>>,
    job: u64,
    late: Late,
    _of_all: OwnedSemaphorePermit,
}

/// Says of a turn that its time is over, and the reader still away.
#[derive(Debug, Clone, Default)]
pub struct Late(Arc<Mutex<Told>>);

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Told {
    #[default]
    InTime,
    Late,
    Over,
}

impl Readers {
    /// So many at a time, of one job a quarter of them.
    pub fn new(all: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_a_job: (all / 4).max(1), jobs: Arc::default() }
    }

    /// Waits for as long as that for others. None: the process is not to be asked now.
    pub async fn turn(&self, job: u64, patience: Duration) -> Option<Turn> {
        if !self.has_room(job) {
            return None;
        }
        let permit = tokio::time::timeout(patience, self.all.clone().acquire_owned()).await.ok()?.ok()?;
        self.begin(job, permit)
    }

    /// The same without a wait.
    pub fn turn_now(&self, job: u64) -> Option<Turn> {
        if !self.has_room(job) {
            return None;
        }
        self.begin(job, self.all.clone().try_acquire_owned().ok()?)
    }

    fn has_room(&self, job: u64) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.get(&job).is_none_or(|load| load.late == 0 && load.now < self.of_a_job)
    }

    fn begin(&self, job: u64, permit: OwnedSemaphorePermit) -> Option<Turn> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let load = jobs.entry(job).or_default();
        if load.late > 0 || load.now >= self.of_a_job {
            return None;
        }
        load.now += 1;
        Some(Turn { jobs: self.jobs.clone(), job, late: Late::default(), _of_all: permit })
    }

    /// Its reader is not waited for any more: until it comes back, the job is not asked.
    pub fn is_late(&self, job: u64, late: &Late) {
        let mut told = late.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == Told::InTime {
            *told = Told::Late;
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.entry(job).or_default().late += 1;
        }
    }
}

impl Turn {
    pub fn late(&self) -> Late {
        self.late.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut told = self.late.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_late = std::mem::replace(&mut *told, Told::Over) == Told::Late;
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = jobs.get_mut(&self.job) {
            load.now = load.now.saturating_sub(1);
            load.late = load.late.saturating_sub(usize::from(was_late));
            if load.now == 0 && load.late == 0 {
                jobs.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_gets_a_quarter_of_the_turns_and_another_still_gets_its_own() {
        let readers = Readers::new(8);
        let held = [readers.turn_now(1), readers.turn_now(1)];
        assert!(held.iter().all(Option::is_some));
        assert!(readers.turn_now(1).is_none());
        assert!(readers.turn_now(2).is_some());
        drop(held);
        assert!(readers.turn_now(1).is_some());
        assert!(readers.jobs.lock().unwrap().is_empty(), "nothing is kept of jobs without readers");
    }

    #[tokio::test]
    async fn a_job_whose_reader_is_late_is_not_asked_until_it_is_back() {
        let readers = Readers::new(8);
        let stuck = readers.turn_now(1).unwrap();
        readers.is_late(1, &stuck.late());
        // Twice is once.
        readers.is_late(1, &stuck.late());
        assert!(readers.turn_now(1).is_none());
        assert!(readers.turn(1, Duration::MAX).await.is_none(), "nor waited for");
        assert!(readers.turn(2, Duration::MAX).await.is_some());
        let late = stuck.late();
        drop(stuck);
        // It came back at the very moment at which it was given up.
        readers.is_late(1, &late);
        assert!(readers.turn_now(1).is_some());
    }

    #[tokio::test]
    async fn when_all_turns_are_taken_one_waits_no_longer_than_its_patience() {
        let readers = Readers::new(4);
        let held: Vec<_> = (0..4).map(|job| readers.turn_now(job).unwrap()).collect();
        assert!(readers.turn(9, Duration::from_millis(1)).await.is_none());
        drop(held);
        assert!(readers.turn(9, Duration::from_millis(1)).await.is_some());
    }
}
