//! Verification: what an auditor trusts and what somebody stored come in, in the order of the logs; findings go out, each with
//! its place. Nothing that comes in is believed but [`Trust`]: keys, roots, places and times are all computed or checked.
//!
//! The order of the items, which a store and an export give alike: a [`Item::Log`]; its keys and its tombstones; then by
//! number the checkpoints whose leaves end in a batch (or behind the batch before it), the batch itself, and its events.
//! Memory is bounded: one batch, and small lists of each log, all with limits.
//!
//! `docs/verify.py` does the same by itself. Both must find the same at the same places, so a change here is one there.

mod finding;
mod log;
mod told;
mod trust;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use finding::{EVENT, Finding, Findings, Kind, MAX_FINDINGS};
pub use log::{MAX_KEYS, MAX_LEAVES, MAX_PENDING, MAX_TOMBSTONES};
pub use trust::{HEARTBEAT_S, Pin, Trust, TrustError};

use super::Hash;
use super::key::VerifyingKey;
use crate::ids::Origin;
use log::Log;
use trust::Expected;

/// The most logs of one verification.
pub const MAX_LOGS: usize = 1 << 20;

/// What part of the logs comes in, and so what may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All that there is of every log.
    All,
    /// All that there is of one log.
    Origin,
    /// Batches between two moments, without a hole.
    Range,
    /// Batches in which events of one run are.
    Run,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 4] = [Scope::All, Scope::Origin, Scope::Range, Scope::Run];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Origin => "origin",
            Scope::Range => "range",
            Scope::Run => "run",
        }
    }

    /// Whether logs come from their beginning to their end.
    fn is_whole(self) -> bool {
        matches!(self, Scope::All | Scope::Origin)
    }

    fn is_dense(self) -> bool {
        self != Scope::Run
    }
}

/// One thing that was stored. Hashes that are `None` were not 32 bytes.
#[derive(Debug, Clone)]
pub enum Item<'a> {
    Log { origin: Origin },
    Key(StoredKey),
    Tombstone(Tombstone),
    Checkpoint(StoredCheckpoint),
    Batch(StoredBatch),
    Event(StoredEvent<'a>),
}

/// Which key signs an epoch, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    pub epoch: u32,
    pub first_seq: u64,
    /// A vkey.
    pub key: String,
    /// The note by which the key before it hands over; empty where there is none.
    pub rotation: String,
}

/// Events that a policy deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub epoch: u32,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    pub policy: String,
    /// Signed by a witness.
    pub note: String,
}

/// A checkpoint that the witness kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCheckpoint {
    pub epoch: u32,
    /// Of the epoch.
    pub first_seq: u64,
    pub size: u64,
    pub root: String,
    /// Whether it came without events.
    pub idle: bool,
    pub note: String,
}

/// A segment's proof. Hashes are base64, put together without anything between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBatch {
    pub epoch: u32,
    pub epoch_first_seq: u64,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    pub size: u64,
    pub root: String,
    pub frontier: String,
    pub leaves: String,
    pub note: String,
    /// The numbers whose events come with it, where that is not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<u64>>,
}

/// An event's bytes, and where they were stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'a> {
    pub epoch: u32,
    pub seq: u64,
    pub canonical: &'a [u8],
    pub leaf_hash: Hash,
}

/// What was seen of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogSummary {
    pub origin: String,
    pub tenant: String,
    pub host: String,
    pub epochs: u64,
    pub batches: u64,
    pub checkpoints: u64,
    pub events: u64,
    pub bytes: u64,
    /// Events that a policy deleted; their leaves are there.
    pub retired: u64,
    /// Events from before there were trees.
    pub unsigned: u64,
    /// Leaves that were witnessed and whose events the agent still holds.
    pub unsent: u64,
    /// The number behind the last one that is proven.
    pub next_seq: u64,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub findings: Findings,
    /// In the order in which they came.
    pub logs: Vec<LogSummary>,
}

/// Takes items, one after the other.
#[derive(Debug)]
pub struct Verifier {
    scope: Scope,
    only: Option<Origin>,
    expected: BTreeMap<Origin, Expected>,
    witnesses: Vec<VerifyingKey>,
    heartbeat_s: u64,
    seen: BTreeSet<Origin>,
    log: Option<Log>,
    report: Report,
}

impl Verifier {
    /// `only` names the log of [`Scope::Origin`].
    pub fn new(trust: &Trust, scope: Scope, only: Option<Origin>) -> Result<Self, TrustError> {
        Ok(Self {
            scope,
            only,
            expected: trust.expected()?,
            witnesses: trust.witnesses.clone(),
            heartbeat_s: trust.heartbeat_s,
            seen: BTreeSet::new(),
            log: None,
            report: Report::default(),
        })
    }

    /// The next item. `until_us` is when the items were read: what should have come by then and did not is missing.
    pub fn take(&mut self, item: Item<'_>, until_us: Option<i64>) {
        if let Item::Log { origin } = item {
            self.close(until_us);
            if !self.seen.insert(origin.clone()) {
                let finding = of_log(Kind::Doubled, &origin, 0, 0, "the log is there more than once");
                self.report.findings.push(finding);
            } else if self.seen.len() > MAX_LOGS {
                self.unreadable("more logs than one verification takes: verify some at a time");
                return;
            }
            let expected = self.expected.get(&origin).cloned();
            let has_witness = !self.witnesses.is_empty();
            let findings = &mut self.report.findings;
            self.log =
                Some(Log::begin(origin, expected, self.scope, has_witness, self.heartbeat_s, findings));
            return;
        }
        let Some(log) = &mut self.log else {
            self.unreadable("something of a log stands before any log");
            return;
        };
        let findings = &mut self.report.findings;
        match item {
            Item::Log { .. } => {}
            Item::Key(key) => log.key(key, findings),
            Item::Tombstone(tombstone) => log.tombstone(tombstone, &self.witnesses, findings),
            Item::Checkpoint(checkpoint) => log.checkpoint(&checkpoint, &self.witnesses, findings),
            Item::Batch(batch) => log.batch(batch, findings),
            Item::Event(event) => log.event(event, findings),
        }
    }

    /// Something that is not in its form.
    pub fn unreadable(&mut self, why: &str) {
        self.report.findings.push(Finding {
            kind: Kind::Unreadable,
            fault: true,
            origin: String::new(),
            epoch: 0,
            first_seq: 0,
            last_seq: 0,
            what: "export".into(),
            detail: why.into(),
        });
    }

    /// A finding of somebody else's about the same records.
    pub fn found(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    /// Nothing more comes.
    pub fn end(mut self, until_us: Option<i64>) -> Report {
        self.close(until_us);
        let absent = |(origin, _): &(&Origin, &Expected)| !self.seen.contains(*origin);
        let asked = |(origin, _): &(&Origin, &Expected)| match &self.only {
            Some(only) => only == *origin,
            None => self.scope == Scope::All,
        };
        for (origin, expected) in self.expected.iter().filter(absent).filter(asked) {
            let last = expected.seen.iter().map(|seen| seen.checkpoint.next_seq()).max().unwrap_or(0);
            let first = expected.first_seq;
            self.report.findings.push(Finding {
                epoch: expected.epoch,
                last_seq: last.saturating_sub(1).max(first),
                ..of_log(
                    Kind::Deleted,
                    origin,
                    expected.epoch,
                    first,
                    "the log is pinned, and nothing of it is there",
                )
            });
        }
        self.report
    }

    fn close(&mut self, until_us: Option<i64>) {
        if let Some(log) = self.log.take() {
            let until_us = until_us.filter(|_| self.scope.is_whole());
            let summary = log.end(until_us, &mut self.report.findings);
            self.report.logs.push(summary);
        }
    }
}

fn of_log(kind: Kind, origin: &Origin, epoch: u32, seq: u64, detail: &str) -> Finding {
    Finding {
        kind,
        fault: true,
        origin: origin.to_string(),
        epoch,
        first_seq: seq,
        last_seq: seq,
        what: "log".into(),
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests;
