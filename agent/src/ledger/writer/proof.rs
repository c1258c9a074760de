//! The writer's part of the proof: leaves of what is on disk come in; checkpoints in time, the ends of epochs, changes of
//! the key, and what the agent says of silence and of its clocks go out. A tree never has a leaf that is not on disk.

use std::time::Instant;

use weir_core::evidence::rotation::Rotation;
use weir_core::evidence::{EvidenceError, Hash, TreeState};
use weir_core::record::Body;

use super::super::epoch::{Epoch, Frames};
use super::super::item::{Answer, HEARTBEAT, Item};
use super::super::takeup::{ROTATED, STATEMENT};
use super::super::{CHECKPOINT_EVERY, LedgerError, Rotated, Standing, Unsealed};
use super::Writer;
use crate::spool::SpoolError;

impl Writer {
    pub(super) fn say_begun(&mut self, why: Option<&str>) {
        let Some(why) = why else { return };
        tracing::warn!(epoch = self.epoch.tree.epoch, why, "another epoch of the log begins");
        let detail = [
            ("epoch", self.epoch.tree.epoch.to_string()),
            ("first_seq", self.epoch.tree.first_seq.to_string()),
            ("reason", why.to_owned()),
        ];
        let event = self.agent_event("log.epoch_begun", detail);
        self.put(Item::new(event, Answer::Note, None));
    }

    /// A group is in the active segment.
    pub(super) fn on_disk(&mut self, leaves: Vec<Hash>, idle: bool) {
        let (was_idle, first) = (self.idle, self.spool.active_events() == leaves.len() as u64);
        if first {
            self.leaves.clear();
            self.active_since = Some(Instant::now());
        }
        self.idle = idle && (first || was_idle);
        if first || (was_idle && !self.idle) {
            let age = if self.idle { self.config.idle_seal_after } else { self.seal_after() };
            // A segment that was idle is as young as its first event that was none.
            self.seal_at = Some(Instant::now() + age);
        }
        self.leaves.extend(leaves);
        self.pulse.wrote();
        self.bare_since = Some(self.bare_since.unwrap_or(self.pulse.now()));
        self.covered();
        *self.vitals.standing() = self.standing();
    }

    /// Notes whether the active segment ends with a checkpoint.
    pub(super) fn covered(&mut self) {
        if self.spool.is_covered() || self.spool.active_events() == 0 {
            (self.covered_at, self.bare_since) = (self.pulse.now(), None);
        }
    }

    pub(super) fn standing(&self) -> Standing {
        let tree = &self.epoch.tree;
        Standing { epoch: tree.epoch, first_seq: tree.first_seq, size: tree.frontier.size() }
    }

    /// Says that the clock was set, or that nothing happens, when that is so.
    pub(super) fn look_at_the_clocks(&mut self) {
        if let Some(step) = self.pulse.step() {
            tracing::warn!(step_us = step.step_us, "the wall clock was set");
            let detail = [("wall_us", step.wall_us.to_string()), ("step_us", step.step_us.to_string())];
            let event = self.agent_event("clock.step", detail);
            // Before what has the new time.
            self.waiting.push_front(Box::new(Item::new(event, Answer::Note, None)));
        }
        if self.waiting.is_empty() && self.pulse.silence_left().is_zero() {
            let detail = [("open_calls", self.book.len().to_string())];
            self.put(Item::of(self.agent_event(HEARTBEAT, detail)));
            // Whatever comes of it, not at once again.
            self.pulse.wrote();
        }
    }

    /// Writes a checkpoint when events have waited for one long enough.
    pub(super) fn cover_in_time(&mut self) {
        let late = |since| self.pulse.now().saturating_sub(since) >= CHECKPOINT_EVERY;
        if !self.bare_since.is_some_and(late) {
            return;
        }
        let Self { spool, epoch, book, config, .. } = self;
        let frames = Frames { epoch, after: &epoch.tree, book, ended: None, time_us: (config.clock)() };
        let covered = spool.checkpoint(&frames);
        if let Err(error) = covered {
            tracing::error!(%error, "a checkpoint could not be written");
        }
        // A segment that cannot take it is given up by the next group, and closed then.
        self.bare_since = None;
        self.covered();
    }

    pub(super) fn unsealed(&self) -> Option<Unsealed> {
        let events = self.leaves.len() as u64;
        if events == 0 || self.ended.is_some() {
            return None;
        }
        let note = self.epoch.sign(&self.epoch.tree, (self.config.clock)());
        let first_seq = self.spool.next_seq() - events;
        Some(Unsealed { note, first_seq, leaves: self.leaves.clone(), epoch: self.epoch.signed() })
    }

    /// Another epoch follows, whose first segment is to begin before anything else is written.
    fn follow(&mut self, next: Epoch) {
        let tree = &self.epoch.tree;
        let last = self.ended.take().unwrap_or_else(|| self.epoch.sign(tree, (self.config.clock)()));
        self.ended = Some(last);
        self.epoch = next;
        self.leaves.clear();
        *self.vitals.standing() = self.standing();
    }

    /// Closes the segment in which an epoch ended, if it is not closed yet, and begins one of the epoch that follows.
    pub(super) fn end_epoch(&mut self) -> Result<(), SpoolError> {
        let Some(ended) = &self.ended else { return Ok(()) };
        let Self { spool, epoch, book, .. } = self;
        spool.turn(&Frames { epoch, after: &epoch.tree, book, ended: Some(ended), time_us: 0 })?;
        self.ended = None;
        self.sealed();
        self.settle_key();
        Ok(())
    }

    /// Tries again what could not be done when an epoch ended.
    pub(super) fn end_what_is_over(&mut self) {
        if let Err(error) = self.end_epoch() {
            tracing::error!(%error, "the segment in which an epoch ended cannot be closed yet");
        }
        self.settle_key();
    }

    /// Puts the key that signs in the place of the one before, which signs no more.
    pub(super) fn settle_key(&mut self) {
        if self.unsettled {
            match self.keys.settle() {
                Ok(()) => self.unsettled = false,
                // The log says which of the two it is.
                Err(error) => tracing::error!(%error, "the log's new key is not in the old one's place yet"),
            }
        }
    }

    pub(super) fn begin_epoch(&mut self, why: &str) -> Result<(), LedgerError> {
        if self.epoch.tree.frontier.size() > 0 {
            self.end_epoch()?;
            self.follow(self.epoch.following(self.spool.next_seq())?);
            self.say_begun(Some(why));
        }
        self.commit_all()
    }

    pub(super) fn rotate_key(&mut self) -> Result<Rotated, LedgerError> {
        // Before anything changes: a file that is open to others is refused at the next start, whichever key is in it.
        self.keys.are_closed()?;
        self.end_epoch()?;
        if self.unsettled {
            self.keys.settle()?;
            self.unsettled = false;
        }
        let next = self.keys.next_or_new()?;
        let first_seq = self.spool.next_seq() + 1;
        let rotation = Rotation::next(self.epoch.log.clone(), first_seq, &next)?;
        let statement = rotation.signed(&self.epoch.signing, &next)?.to_string();
        let detail = [("epoch", rotation.epoch.to_string()), ("first_seq", first_seq.to_string())];
        let Body::Agent(mut event) = self.agent_event(ROTATED, detail) else {
            return Err(EvidenceError::Rotation("it has no event").into());
        };
        event.detail.insert(STATEMENT.to_owned(), rotation.recordable(&self.epoch.signing, &next)?);
        // Nothing else waits, so it is a group of its own.
        self.put(Item::of(Body::Agent(event)));
        self.commit()?;
        let tree = TreeState::begin(rotation.epoch, first_seq);
        let epoch = Epoch::of(&self.epoch.log, tree, next, Some(statement))?;
        let rotated = Rotated { key: epoch.key.clone(), epoch: rotation.epoch, first_seq };
        self.unsettled = true;
        self.follow(epoch);
        if let Err(error) = self.end_epoch() {
            tracing::error!(%error, "the new key's first segment cannot be begun yet");
        }
        Ok(rotated)
    }
}
