//! One log under verification: its keys, its tree and its numbers so far. Items come in by number; findings go out.

mod batch;
mod ends;
mod events;
mod keys;

use std::collections::BTreeMap;

use super::finding::{Finding, Findings, Kind};
use super::told::{Tale, Told};
use super::trust::Expected;
use super::{LogSummary, Scope, StoredCheckpoint, StoredKey, Tombstone};
use crate::evidence::checkpoint::{Checkpoint, LogName};
use crate::evidence::key::VerifyingKey;
use crate::evidence::note::SignedNote;
use crate::evidence::{Frontier, tombstone};
use crate::ids::Origin;
use batch::Current;
use keys::kind_of;

/// The most keys of one log.
pub const MAX_KEYS: usize = 4_096;
/// The most tombstones of one log.
pub const MAX_TOMBSTONES: usize = 65_536;
/// The most checkpoints between the ends of two batches.
pub const MAX_PENDING: usize = 65_536;
/// The most leaves of one batch.
pub const MAX_LEAVES: usize = crate::segment::MAX_EVENTS as usize;

/// Whence a checkpoint is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The store has it; its witness signed it, or none is trusted.
    Store { idle: bool },
    /// The auditor holds it.
    Trust { stored: bool },
}

/// A checkpoint whose leaves have not come yet.
#[derive(Debug, Clone)]
struct Held {
    checkpoint: Checkpoint,
    source: Source,
}

/// An epoch that was begun.
#[derive(Debug)]
struct Epoch {
    number: u32,
    first_seq: u64,
    key: Option<VerifyingKey>,
    /// The tree so far; `None` when what came last could not be proven.
    tree: Option<Frontier>,
    /// The number behind the last batch.
    next_seq: u64,
    /// The largest checkpoint of the store that the tree agrees with.
    witnessed: u64,
    /// Numbers before its first one that no epoch has; the agent may say why.
    hole: Option<(u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    origin: Origin,
    scope: Scope,
    has_witness: bool,
    pinned: Option<Expected>,
    /// Without the epoch; `None` until a key or a pin has named it.
    name: Option<LogName>,
    keys: BTreeMap<u32, StoredKey>,
    tombstones: Vec<(u64, u64, String)>,
    /// By epoch and size.
    pending: BTreeMap<(u32, u64), Vec<Held>>,
    pending_count: usize,
    epoch: Option<Epoch>,
    current: Option<Current>,
    /// The number behind the last one that is accounted for.
    next_seq: Option<u64>,
    /// Whether rows were there that nothing signed covers.
    uncovered: bool,
    told: Told,
    tales: Vec<Tale>,
    /// The time of the last checkpoint of the log's own.
    alive_us: Option<i64>,
    summary: LogSummary,
}

impl Log {
    pub(super) fn begin(
        origin: Origin,
        pinned: Option<Expected>,
        scope: Scope,
        has_witness: bool,
        heartbeat_s: u64,
        findings: &mut Findings,
    ) -> Self {
        let name = pinned.as_ref().map(|pin| LogName {
            tenant: pin.tenant.clone(),
            host: pin.host.clone(),
            origin: origin.clone(),
            epoch: pin.epoch,
        });
        let summary = LogSummary {
            origin: origin.to_string(),
            tenant: pinned.as_ref().map(|pin| pin.tenant.clone()).unwrap_or_default(),
            host: pinned.as_ref().map(|pin| pin.host.clone()).unwrap_or_default(),
            epochs: 0,
            batches: 0,
            checkpoints: 0,
            events: 0,
            bytes: 0,
            retired: 0,
            unsigned: 0,
            unsent: 0,
            next_seq: 0,
        };
        let mut pending: BTreeMap<_, Vec<Held>> = BTreeMap::new();
        for seen in pinned.iter().flat_map(|pin| &pin.seen) {
            let (checkpoint, source) = (seen.checkpoint.clone(), Source::Trust { stored: seen.stored });
            pending
                .entry((checkpoint.log.epoch, checkpoint.size))
                .or_default()
                .push(Held { checkpoint, source });
        }
        if pinned.is_none() {
            let why = "no key of this log is pinned: compare it by another way, and pin it";
            findings.push(super::of_log(Kind::Unpinned, &origin, 0, 0, why));
        }
        Self {
            origin,
            scope,
            has_witness,
            pinned,
            name,
            keys: BTreeMap::new(),
            tombstones: Vec::new(),
            pending,
            pending_count: 0,
            epoch: None,
            current: None,
            next_seq: scope.is_whole().then_some(0),
            uncovered: false,
            told: Told::new(heartbeat_s),
            tales: Vec::new(),
            alive_us: None,
            summary,
        }
    }

    fn find(
        &self,
        kind: Kind,
        epoch: u32,
        seqs: (u64, u64),
        what: &str,
        detail: impl Into<String>,
    ) -> Finding {
        Finding {
            kind,
            fault: true,
            origin: self.origin.to_string(),
            epoch,
            first_seq: seqs.0,
            last_seq: seqs.1,
            what: what.into(),
            detail: detail.into(),
        }
    }

    pub(super) fn tombstone(
        &mut self,
        stone: Tombstone,
        witnesses: &[VerifyingKey],
        findings: &mut Findings,
    ) {
        let place = (stone.first_seq, stone.last_seq);
        if self.tombstones.len() == MAX_TOMBSTONES {
            findings.push(self.find(
                Kind::Unreadable,
                stone.epoch,
                place,
                "tombstone",
                "more tombstones than a log may have",
            ));
            return;
        }
        let opened =
            stone.note.parse::<SignedNote>().and_then(|note| tombstone::Tombstone::open(&note, witnesses));
        match opened {
            Ok(signed)
                if signed.log.origin == self.origin
                    && (signed.log.epoch, signed.first_seq, signed.last_seq)
                        == (stone.epoch, place.0, place.1)
                    && signed.policy == stone.policy =>
            {
                self.tombstones.push((place.0, place.1, signed.policy));
            }
            Ok(_) => {
                let why = "the tombstone was signed for another place or policy";
                findings.push(self.find(Kind::Altered, stone.epoch, place, "tombstone", why));
            }
            Err(error) => {
                findings.push(self.find(kind_of(&error), stone.epoch, place, "tombstone", error.to_string()));
            }
        }
    }

    pub(super) fn checkpoint(
        &mut self,
        stored: &StoredCheckpoint,
        witnesses: &[VerifyingKey],
        findings: &mut Findings,
    ) {
        self.summary.checkpoints += 1;
        let last = stored.first_seq.saturating_add(stored.size).saturating_sub(1);
        let place = (last, last);
        let found = |log: &Self, kind, why: String| log.find(kind, stored.epoch, place, "checkpoint", why);
        let opened = match self.open(&stored.note, stored.epoch, findings) {
            Ok(opened) => opened,
            Err((kind, why)) => return findings.push(found(self, kind, why)),
        };
        if (opened.first_seq, opened.size, opened.log.epoch) != (stored.first_seq, stored.size, stored.epoch)
            || batch::hashes(&stored.root).as_deref() != Some(&[opened.root])
        {
            return findings.push(found(
                self,
                Kind::Projection,
                "its columns differ from what it says".into(),
            ));
        }
        if let Some(at) = i64::try_from(opened.time_us).ok().filter(|_| !self.is_past(stored.epoch)) {
            self.alive_us = self.alive_us.max(Some(at));
        }
        if !witnesses.is_empty() && !cosigned(&stored.note, witnesses) {
            return findings.push(found(self, Kind::Unwitnessed, "no trusted witness cosigned it".into()));
        }
        if self.is_past(stored.epoch) {
            return findings.push(found(self, Kind::Reordered, "it stands behind a later epoch".into()));
        }
        if !self.enter(stored.epoch, opened.first_seq, findings) {
            return findings.push(found(self, Kind::Forked, "its epoch begins at another number".into()));
        }
        if self.pending_count == MAX_PENDING {
            let why = "more checkpoints between two batches than there may be".into();
            return findings.push(found(self, Kind::Unreadable, why));
        }
        self.pending_count += 1;
        let held = Held { source: Source::Store { idle: stored.idle }, checkpoint: opened };
        self.pending.entry((stored.epoch, held.checkpoint.size)).or_default().push(held);
    }

    /// Checkpoints of an epoch, and of those before it, up to a size; by their sizes.
    fn take_pending(&mut self, epoch: u32, size: u64) -> BTreeMap<u64, Vec<Held>> {
        let behind = match size.checked_add(1) {
            Some(next) => self.pending.split_off(&(epoch, next)),
            None => self.pending.split_off(&(epoch.saturating_add(1), 0)),
        };
        let due = std::mem::replace(&mut self.pending, behind);
        let is_stored = |one: &&Held| matches!(one.source, Source::Store { .. });
        self.pending_count -= due.values().flatten().filter(is_stored).count().min(self.pending_count);
        due.into_iter().filter(|((of, _), _)| *of == epoch).map(|((_, size), held)| (size, held)).collect()
    }

    fn is_past(&self, epoch: u32) -> bool {
        self.epoch.as_ref().is_some_and(|current| epoch < current.number)
    }

    /// Begins an epoch, unless it has begun. `false` when it began at another number.
    fn enter(&mut self, epoch: u32, first_seq: u64, findings: &mut Findings) -> bool {
        if let Some(current) = self.epoch.as_ref().filter(|current| current.number == epoch) {
            return current.first_seq == first_seq;
        }
        let key = self.key_of(epoch, findings);
        self.end_epoch(false, findings);
        if self.keys.get(&epoch).is_some_and(|stored| stored.first_seq != first_seq) {
            let why = "the store has the epoch begin at another number";
            findings.push(self.find(Kind::Projection, epoch, (first_seq, first_seq), "key", why));
        }
        let expected = self.next_seq.filter(|_| self.scope.is_dense());
        let mut hole = None;
        match expected {
            Some(next) if next < first_seq => hole = Some((next, first_seq - 1)),
            Some(next) if next > first_seq => {
                let why = "an epoch begins where the one before it has events";
                findings.push(self.find(Kind::Forked, epoch, (first_seq, next - 1), "log", why));
            }
            _ => {}
        }
        // Parts of logs begin anywhere.
        let whole = self.scope.is_whole();
        self.next_seq = Some(first_seq).filter(|_| whole || expected.is_some());
        let tree = Some(Frontier::default()).filter(|_| self.next_seq.is_some());
        self.epoch =
            Some(Epoch { number: epoch, first_seq, key, tree, next_seq: first_seq, witnessed: 0, hole });
        self.summary.epochs += 1;
        true
    }
}

fn cosigned(note: &str, witnesses: &[VerifyingKey]) -> bool {
    note.parse::<SignedNote>().is_ok_and(|note| witnesses.iter().any(|key| note.cosigned(key).is_ok()))
}
