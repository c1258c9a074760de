//! Where an epoch ends, and where a log does: what was witnessed and did not come, and what came and was not witnessed.

use super::{Epoch, Held, Log, Source};
use crate::evidence::verify::LogSummary;
use crate::evidence::verify::finding::{Findings, Kind};

/// Microseconds between heartbeats are not less than this: so many witnessed leaves may wait for their segment.
const HEARTBEAT_US: i64 = 60_000_000;
/// Leaves that may be witnessed beyond one for each heartbeat.
const SLACK: i64 = 2;

impl Log {
    /// The epoch is over: another begins, or the log ends.
    pub(super) fn end_epoch(&mut self, at_the_end: bool, findings: &mut Findings) {
        self.end_batch(findings);
        let Some(epoch) = self.epoch.take() else { return };
        if let Some(hole) = epoch.hole {
            let why = "no epoch has these numbers, and the agent tells of no loss";
            findings.push(self.find(Kind::Deleted, epoch.number, hole, "log", why));
        }
        let witnessed = epoch.first_seq.saturating_add(epoch.witnessed);
        if self.has_witness && witnessed < epoch.next_seq {
            let place = (witnessed, epoch.next_seq - 1);
            let why = "no checkpoint that a trusted witness cosigned covers it";
            findings.push(self.find(Kind::Unwitnessed, epoch.number, place, "log", why));
        }
        self.beyond(&epoch, at_the_end, findings);
        self.epoch = Some(epoch);
    }

    /// Checkpoints of leaves that did not come.
    fn beyond(&mut self, epoch: &Epoch, at_the_end: bool, findings: &mut Findings) {
        let due = self.take_pending(epoch.number, u64::MAX);
        if !self.scope.is_whole() {
            return;
        }
        let beyond: Vec<&Held> =
            due.values().flatten().filter(|one| one.checkpoint.next_seq() > epoch.next_seq).collect();
        let next = |which: &dyn Fn(Source) -> bool| {
            beyond.iter().filter(|one| which(one.source)).map(|one| one.checkpoint.next_seq()).max()
        };
        let Some(known) = next(&|_| true) else { return };
        let told = next(&|source| matches!(source, Source::Store { .. }));
        let were_stored = next(&|source| source == Source::Trust { stored: true }).is_some();
        let may_wait =
            told == Some(known) && !were_stored && beyond.iter().all(|one| self.may_wait(epoch, one));
        if at_the_end && may_wait {
            self.summary.unsent = known - epoch.next_seq;
            return;
        }
        let missing = (epoch.next_seq, known - 1);
        let ends_well = epoch.first_seq.saturating_add(epoch.witnessed) == epoch.next_seq && !self.uncovered;
        findings.push(if told.is_none() && ends_well {
            let why = "the log ends here in the store, and the auditor holds a later checkpoint";
            self.find(Kind::RolledBack, epoch.number, missing, "log", why)
        } else {
            let why = "these events were witnessed, and no batch has them";
            self.find(Kind::Truncated, epoch.number, missing, "log", why)
        });
    }

    /// Whether what was witnessed beyond the last batch can be the heartbeats of an idle agent, which come with the next one.
    fn may_wait(&self, epoch: &Epoch, one: &Held) -> bool {
        let Source::Store { idle } = one.source else { return true };
        let leaves = i64::try_from(one.checkpoint.next_seq() - epoch.next_seq).unwrap_or(i64::MAX);
        let time = i64::try_from(one.checkpoint.time_us).unwrap_or(i64::MAX);
        let since = self.told.last_us().map_or(0, |last| time.saturating_sub(last).max(0));
        idle && leaves <= (since / HEARTBEAT_US).saturating_add(SLACK)
    }

    /// The log's end.
    pub(in super::super) fn end(mut self, until_us: Option<i64>, findings: &mut Findings) -> LogSummary {
        self.end_epoch(true, findings);
        self.told.end(until_us, self.alive_us, &mut self.tales);
        self.tell(findings);
        self.never_begun(findings);
        self.summary.next_seq = self.next_seq.unwrap_or(0);
        if let Some(name) = self.name.take() {
            self.summary.tenant = name.tenant;
            self.summary.host = name.host;
        }
        self.summary
    }

    /// An epoch that is pinned, or of which the auditor holds a checkpoint, and that is not there at all.
    fn never_begun(&mut self, findings: &mut Findings) {
        if !self.scope.is_whole() {
            return;
        }
        let from = self.next_seq.unwrap_or(0);
        let seen = self.pending.last_key_value().and_then(|((epoch, _), held)| Some((*epoch, held.first()?)));
        if let Some((epoch, held)) = seen {
            let place = (from, held.checkpoint.next_seq().saturating_sub(1).max(from));
            let why = "the auditor holds a checkpoint of an epoch that is not there";
            findings.push(self.find(Kind::RolledBack, epoch, place, "log", why));
        } else if let Some(pin) = self.pinned.as_ref().filter(|_| self.epoch.is_none()) {
            let why = "nothing of the pinned epoch is there";
            findings.push(self.find(Kind::Deleted, pin.epoch, (from, from.max(pin.first_seq)), "log", why));
        }
    }
}
