//! When a segment is sealed: by age, by advice, on demand; one with heartbeats alone seldom.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::epoch::Frames;
use super::super::{LONGEST_ADVISED, LedgerError, MAX_SEALED_BY_AGE, RETRY_AFTER};
use super::Writer;

impl Writer {
    /// How old a segment with more than heartbeats may grow.
    pub(super) fn seal_after(&self) -> Duration {
        self.advised.unwrap_or_default().min(LONGEST_ADVISED).max(self.config.seal_after)
    }

    /// To whoever asks how the writer fares.
    pub(super) fn tell_seal_after(&self) {
        let ms = u64::try_from(self.seal_after().as_millis()).unwrap_or(u64::MAX);
        self.vitals.seal_after.store(ms, Ordering::Relaxed);
    }

    pub(super) fn seal_by_age(&mut self) {
        if self.seal_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        // Whatever comes of it, not at once again.
        self.seal_at = Some(Instant::now() + self.seal_after().max(RETRY_AFTER));
        if self.shelf().usage().segments <= MAX_SEALED_BY_AGE
            && let Err(error) = self.seal()
        {
            tracing::error!(%error, "the active segment could not be sealed");
        }
    }

    pub(super) fn seal_if_older(&mut self, age: Duration) -> Result<bool, LedgerError> {
        if self.active_since.is_some_and(|since| since.elapsed() >= age) { self.seal() } else { Ok(false) }
    }

    pub(super) fn seal(&mut self) -> Result<bool, LedgerError> {
        let ended = self.ended.is_some();
        self.end_epoch()?;
        let Self { spool, epoch, book, config, .. } = self;
        let frames = Frames { epoch, after: &epoch.tree, book, ended: None, time_us: (config.clock)() };
        let sealed = spool.seal(&frames)?;
        self.sealed();
        Ok(sealed || ended)
    }

    pub(super) fn tell_sealed(&self) {
        let below = self.spool.sealed_below();
        self.sealed_below.send_if_modified(|now| std::mem::replace(now, below) != below);
    }

    /// There is a new active segment.
    pub(super) fn sealed(&mut self) {
        (self.active_since, self.seal_at, self.idle) = (None, None, true);
        self.leaves.clear();
        self.covered();
        self.tell_sealed();
    }
}
