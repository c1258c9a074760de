//! How the writer fares: it says so itself, and whoever asks reads it without waiting for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Standing;

/// How the writer fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Calls with an intent on disk and no outcome.
    pub open_calls: u64,
    /// Outcomes that wait for the disk.
    pub owed_outcomes: u64,
    /// Notes that were lost since the start, and intents for which no call waited.
    pub lost_notes: u64,
    /// Intents since the start for which no call waited ([`super::OpenRecord::queue`]).
    pub unwaited_intents: u64,
    /// Groups that could not be written since the start.
    pub failed_groups: u64,
    /// Why the last group could not be written; `None` once one could.
    pub fault: Option<String>,
    /// How old a segment with more than heartbeats grows: as configured, or as the collector advises.
    pub seal_after: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Vitals {
    pub(super) open_calls: AtomicU64,
    pub(super) owed_outcomes: AtomicU64,
    pub(super) lost_notes: AtomicU64,
    pub(super) unwaited: AtomicU64,
    /// The last ordinary thing that was to be written could not be: whatever comes next waits for the disk.
    pub(super) unable: AtomicBool,
    pub(super) failed_groups: AtomicU64,
    /// Milliseconds.
    pub(super) seal_after: AtomicU64,
    fault: Mutex<Option<String>>,
    standing: Mutex<Standing>,
    /// Cancelled when the process to which the log was given is gone.
    pub(super) peer_gone: CancellationToken,
}

impl Vitals {
    pub(super) fn fault(&self) -> MutexGuard<'_, Option<String>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Health {
        Health {
            open_calls: self.open_calls.load(Ordering::Relaxed),
            owed_outcomes: self.owed_outcomes.load(Ordering::Relaxed),
            lost_notes: self.lost_notes.load(Ordering::Relaxed),
            unwaited_intents: self.unwaited.load(Ordering::Relaxed),
            failed_groups: self.failed_groups.load(Ordering::Relaxed),
            fault: self.fault().clone(),
            seal_after: Duration::from_millis(self.seal_after.load(Ordering::Relaxed)),
        }
    }
}
