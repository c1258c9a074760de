//! Shares: what each job may take of what all jobs have in common: connections, open calls, holds, sessions, and bytes
//! kept in memory. No job gets more than half of any, so one that takes all it can leaves room for others. A job is
//! known by the cgroup that the kernel saw it in.

mod calm;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::gate::MAX_SESSIONS;
use crate::ledger::MAX_OPEN_RECORDS;

pub use calm::{Calm, FORGIVEN_AFTER, Turn};

/// All that there is to share.
#[derive(Debug)]
pub struct Shares {
    most: Most,
    all: Share,
    jobs: Mutex<HashMap<u64, Weak<Share>>>,
}

/// What one job may take, what it has taken, and how long it has to wait if it misbehaves.
#[derive(Debug)]
pub struct Share {
    flows: Pool,
    calls: Pool,
    holds: Pool,
    sessions: Pool,
    bytes: Pool,
    calm: Calm,
}

/// Places taken out of a share, until this is dropped.
#[derive(Debug)]
pub struct Taken(#[expect(dead_code, reason = "held for its drop")] [OwnedSemaphorePermit; 2]);

/// Bytes that are kept in memory, until this is dropped.
#[derive(Debug)]
pub struct Kept {
    pool: Pool,
    taken: Option<[OwnedSemaphorePermit; 2]>,
}

/// A job's part of something, within what all have of it.
#[derive(Debug, Clone)]
struct Pool {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy)]
struct Most {
    flows: usize,
    calls: usize,
    holds: usize,
    bytes: usize,
}

impl Shares {
    pub fn new(limits: &Limits) -> Self {
        let Limits { flows, holds, buffered: bytes, .. } = *limits;
        let most = Most { flows, calls: MAX_OPEN_RECORDS, holds, bytes };
        let pool = |places| {
            let all = Arc::new(Semaphore::new(places));
            Pool { own: all.clone(), all }
        };
        let all = Share {
            flows: pool(most.flows),
            calls: pool(most.calls),
            holds: pool(holds),
            sessions: pool(MAX_SESSIONS),
            bytes: pool(bytes),
            calm: Calm::default(),
        };
        Self { most, all, jobs: Mutex::default() }
    }

    /// Whether no connection is open.
    pub fn no_flows(&self) -> bool {
        self.all.flows.all.available_permits() == self.most.flows
    }

    /// The share of the job in this cgroup; the same one for as long as anybody holds it.
    pub fn of(&self, cgroup: u64) -> Arc<Share> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = jobs.get(&cgroup).and_then(Weak::upgrade) {
            return share;
        }
        jobs.retain(|_, share| share.strong_count() > 0);
        let half = |all: &Pool, places: usize| Pool {
            own: Arc::new(Semaphore::new(places.div_ceil(2))),
            all: all.all.clone(),
        };
        let share = Arc::new(Share {
            flows: half(&self.all.flows, self.most.flows),
            calls: half(&self.all.calls, self.most.calls),
            holds: half(&self.all.holds, self.most.holds),
            sessions: half(&self.all.sessions, MAX_SESSIONS),
            bytes: half(&self.all.bytes, self.most.bytes),
            calm: Calm::default(),
        });
        jobs.insert(cgroup, Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// Room for a connection.
    pub fn flow(&self) -> Option<Taken> {
        self.flows.take(1).map(Taken)
    }

    /// Room for a call between its intent and its outcome.
    pub fn call(&self) -> Option<Taken> {
        self.calls.take(1).map(Taken)
    }

    /// Room for a call that waits for a human.
    pub fn hold(&self) -> Option<Taken> {
        self.holds.take(1).map(Taken)
    }

    /// Room for what is known of a session.
    pub fn session(&self) -> Option<Taken> {
        self.sessions.take(1).map(Taken)
    }

    /// What becomes of the job's connections after a flood.
    pub fn calm(&self) -> &Calm {
        &self.calm
    }

    /// Room for content in memory: none yet.
    pub fn keep(&self) -> Kept {
        Kept { pool: self.bytes.clone(), taken: None }
    }
}

impl Kept {
    /// Makes room for so many bytes more. Without it they must not be kept.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let Some([own, all]) = self.pool.take(bytes) else { return false };
        match &mut self.taken {
            Some([kept_own, kept_all]) => {
                kept_own.merge(own);
                kept_all.merge(all);
            }
            None => self.taken = Some([own, all]),
        }
        true
    }

    /// Makes room for so many bytes in all, or gives back what is more.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        let now = self.taken.as_ref().map_or(0, |[own, _]| own.num_permits());
        if bytes > now {
            return self.grow(bytes - now);
        }
        for permits in self.taken.iter_mut().flatten() {
            drop(permits.split(now - bytes));
        }
        true
    }
}

impl Pool {
    fn take(&self, places: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let places = u32::try_from(places).ok()?;
        let own = self.own.clone().try_acquire_many_owned(places).ok()?;
        let all = self.all.clone().try_acquire_many_owned(places).ok()?;
        Some([own, all])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares::new(&Limits { flows: 5, holds: 2, buffered: 100, ..Limits::default() })
    }

    #[test]
    fn a_job_gets_half_and_all_jobs_get_no_more_than_there_is() {
        let shares = shares();
        let (one, two) = (shares.of(1), shares.of(2));
        let taken: Vec<_> = (0..3).filter_map(|_| one.flow()).collect();
        assert!(taken.len() == 3 && one.flow().is_none() && shares.of(1).flow().is_none());
        let others: Vec<_> = (0..3).filter_map(|_| two.flow()).collect();
        assert!(others.len() == 2 && two.flow().is_none());
        drop(taken);
        assert!(!shares.no_flows());
        drop(others);
        assert!(shares.no_flows());
        assert!(two.flow().is_some() && one.flow().is_some());
        let hold = one.hold();
        assert!(hold.is_some() && one.hold().is_none() && two.hold().is_some());
        assert!(one.call().is_some());
    }

    #[test]
    fn bytes_are_taken_and_given_back() {
        let shares = shares();
        let (one, two) = (shares.of(1), shares.of(2));
        let mut kept = one.keep();
        assert!(kept.grow(30) && kept.grow(20) && !kept.grow(1) && !kept.resize(51));
        let mut others = two.keep();
        assert!(others.grow(50) && !two.keep().grow(1));
        assert!(kept.resize(10) && kept.resize(50) && kept.resize(0) && kept.resize(0));
        drop(others);
        assert!(kept.grow(50) && !one.keep().grow(1));
        drop(kept);
        assert!(one.keep().grow(50));
    }

    #[test]
    fn nothing_stays_of_a_job_that_is_gone() {
        let shares = shares();
        for cgroup in 0..1000 {
            drop(shares.of(cgroup));
        }
        let _kept = shares.of(1000);
        assert_eq!(shares.jobs.lock().unwrap().len(), 1);
    }
}
