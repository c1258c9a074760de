//! A batch: its leaves are proven by the tree before it and the checkpoint behind it, and prove its events.

use base64::prelude::{BASE64_STANDARD, Engine};

use super::{Log, MAX_LEAVES, Source};
use crate::evidence::checkpoint::Checkpoint;
use crate::evidence::verify::finding::{EVENT, Finding, Findings, Kind};
use crate::evidence::verify::{Scope, StoredBatch};
use crate::evidence::{Frontier, HASH_LEN, Hash};

/// The batch whose events come.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) epoch: u32,
    first_seq: u64,
    last_seq: u64,
    leaves: Vec<Hash>,
    seen: Vec<bool>,
    /// The numbers that come, where that is not all.
    only: Option<Vec<u64>>,
    /// The largest number that came.
    last: Option<u64>,
}

/// Where an event stands among those of its batch.
pub(super) struct Place {
    /// Its number was there before.
    pub(super) again: bool,
    /// A later number was there before.
    pub(super) late: bool,
}

impl Current {
    /// The leaf of a number that this batch covers.
    pub(super) fn see(&mut self, seq: u64) -> Option<(Hash, Place)> {
        let index = usize::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        let leaf = *self.leaves.get(index)?;
        let again = std::mem::replace(self.seen.get_mut(index)?, true);
        let late = self.last.is_some_and(|last| seq < last);
        self.last = self.last.max(Some(seq));
        Some((leaf, Place { again, late }))
    }

    /// The runs of numbers that should have come and did not.
    fn missing(&self) -> Vec<(u64, u64)> {
        let unseen = |seq: &u64| {
            let index = seq.checked_sub(self.first_seq).and_then(|index| usize::try_from(index).ok());
            index.and_then(|index| self.seen.get(index)) == Some(&false)
        };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut miss = |seq: u64| match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(seq) => *last = seq,
            _ => runs.push((seq, seq)),
        };
        match &self.only {
            Some(only) => only.iter().filter(|seq| unseen(seq)).for_each(|seq| miss(*seq)),
            None => (self.first_seq..=self.last_seq).filter(unseen).for_each(miss),
        }
        runs
    }
}

/// Hashes out of base64 without anything between them.
pub(super) fn hashes(base64: &str) -> Option<Vec<Hash>> {
    let bytes = BASE64_STANDARD.decode(base64).ok()?;
    let (hashes, []) = bytes.as_chunks::<HASH_LEN>() else { return None };
    Some(hashes.to_vec())
}

impl Log {
    pub(in super::super) fn batch(&mut self, batch: StoredBatch, findings: &mut Findings) {
        self.summary.batches += 1;
        let (epoch, place) = (batch.epoch, (batch.first_seq, batch.last_seq));
        let found = |log: &Self, kind, why: &str| log.find(kind, epoch, place, "batch", why);
        if self.is_past(epoch) {
            return findings.push(found(self, Kind::Reordered, "it stands behind a later epoch"));
        }
        let opened = match self.open(&batch.note, epoch, findings) {
            Ok(checkpoint) => Some(checkpoint),
            Err((kind, why)) => {
                findings.push(self.find(kind, epoch, place, "checkpoint", why));
                None
            }
        };
        let leaves = hashes(&batch.leaves).filter(|leaves| {
            let count = batch.last_seq.checked_sub(batch.first_seq).and_then(|n| n.checked_add(1));
            leaves.len() <= MAX_LEAVES && count == Some(leaves.len() as u64)
        });
        let Some(leaves) = leaves else {
            return findings.push(found(self, Kind::Altered, "its leaves are not as many as its numbers"));
        };
        let first_seq = opened.as_ref().map_or(batch.epoch_first_seq, |opened| opened.first_seq);
        if !self.enter(epoch, first_seq, findings) {
            return findings.push(found(self, Kind::Forked, "its epoch begins at another number"));
        }
        if let Some(next) = self.next_seq.filter(|next| batch.first_seq < *next) {
            let kind = match &self.current {
                Some(current)
                    if (current.epoch, current.first_seq, current.last_seq) == (epoch, place.0, place.1)
                        && current.leaves != leaves
                        && opened.is_some() =>
                {
                    Kind::Forked
                }
                _ => Kind::Doubled,
            };
            let seqs = (batch.first_seq, batch.last_seq.min(next - 1));
            return findings.push(self.find(
                kind,
                epoch,
                seqs,
                "batch",
                "a batch of these numbers is there already",
            ));
        }
        self.end_batch(findings);
        self.follow(batch, leaves, opened.as_ref(), findings);
    }

    /// Goes on with a batch that lies behind all that came before.
    fn follow(
        &mut self,
        batch: StoredBatch,
        leaves: Vec<Hash>,
        opened: Option<&Checkpoint>,
        findings: &mut Findings,
    ) {
        let place = (batch.first_seq, batch.last_seq);
        let found = |log: &Self, kind, why: &str| log.find(kind, batch.epoch, place, "batch", why);
        if let Some(next) = self.next_seq.filter(|next| *next < batch.first_seq) {
            if self.scope.is_dense() {
                let missing = (next, batch.first_seq - 1);
                let why = "no batch has these numbers";
                findings.push(self.find(Kind::Deleted, batch.epoch, missing, "batch", why));
            }
            self.forget_tree();
        }
        let opened = opened.filter(|opened| {
            let same = opened.next_seq() == batch.last_seq.saturating_add(1);
            if !same {
                findings.push(found(self, Kind::Altered, "its checkpoint is of other numbers"));
            }
            same
        });
        if let Some(opened) = opened
            && ((opened.size, opened.first_seq) != (batch.size, batch.epoch_first_seq)
                || hashes(&batch.root).as_deref() != Some(&[opened.root]))
        {
            findings.push(found(self, Kind::Projection, "its columns differ from what its checkpoint says"));
        }
        let before = self.epoch.as_ref().and_then(|epoch| {
            Frontier::of_parts(batch.first_seq.checked_sub(epoch.first_seq)?, hashes(&batch.frontier)?)
        });
        let after = match before {
            Some(before) => self.grow(before, &leaves, opened, place, findings),
            None => {
                findings.push(found(self, Kind::Altered, "the tree before it is of another size"));
                None
            }
        };
        let next = batch.last_seq.saturating_add(1);
        if let Some(epoch) = &mut self.epoch {
            epoch.tree = after;
            epoch.next_seq = next;
        }
        self.next_seq = Some(next);
        self.current = Some(Current {
            epoch: batch.epoch,
            first_seq: batch.first_seq,
            last_seq: batch.last_seq,
            seen: vec![false; leaves.len()],
            leaves,
            // Whoever could say so of another part could leave out what they like.
            only: batch.only.filter(|_| self.scope == Scope::Run),
            last: None,
        });
    }

    fn forget_tree(&mut self) {
        if let Some(epoch) = &mut self.epoch {
            epoch.tree = None;
        }
    }

    /// Takes the leaves into the tree and compares it with each checkpoint on the way; the tree behind them, if it is proven.
    fn grow(
        &mut self,
        before: Frontier,
        leaves: &[Hash],
        opened: Option<&Checkpoint>,
        place: (u64, u64),
        findings: &mut Findings,
    ) -> Option<Frontier> {
        let epoch = self.epoch.as_ref()?;
        let (number, first_seq) = (epoch.number, epoch.first_seq);
        let follows = epoch.tree.as_ref().is_none_or(|known| *known == before);
        let end = before.size() + leaves.len() as u64;
        // What lies before the part that came in cannot be compared, and goes.
        let due = self.take_pending(number, end);
        let (mut agreeing, mut differing) = (Vec::new(), Vec::new());
        let mut compare = |tree: &Frontier| {
            for one in due.get(&tree.size()).into_iter().flatten() {
                let agrees = one.checkpoint.root == tree.root() && one.checkpoint.first_seq == first_seq;
                if agrees { &mut agreeing } else { &mut differing }.push(one);
            }
        };
        let mut tree = before;
        compare(&tree);
        for leaf in leaves {
            tree.push(*leaf);
            compare(&tree);
        }
        let is_stored = |source: &Source| matches!(source, Source::Store { .. });
        let by_note = opened.is_some_and(|opened| opened.root == tree.root());
        // A batch whose own note was changed is proven by the copy that the witness kept.
        let by_copy = agreeing.iter().any(|one| is_stored(&one.source) && one.checkpoint.size == end);
        if opened.is_some() && !by_note {
            let why = "its leaves do not have the root that was signed";
            findings.push(self.find(Kind::Altered, number, place, "batch", why));
        }
        if !by_note && !by_copy {
            return None;
        }
        if !follows {
            let why = "it does not follow the batch before it, and both are signed";
            findings.push(self.find(Kind::Forked, number, place, "batch", why));
        }
        for one in differing {
            let last = one.checkpoint.next_seq().saturating_sub(1);
            let why = match one.source {
                Source::Store { .. } => "the witness cosigned another tree of this size",
                Source::Trust { .. } => "the auditor holds a checkpoint of another tree of this size",
            };
            findings.push(self.find(Kind::Forked, number, (last, last), "checkpoint", why));
        }
        let witnessed =
            agreeing.iter().filter(|one| is_stored(&one.source)).map(|one| one.checkpoint.size).max();
        if let Some(epoch) = &mut self.epoch {
            epoch.witnessed = epoch.witnessed.max(witnessed.unwrap_or(0));
        }
        Some(tree)
    }

    /// What did not come of the batch is retired, or missing.
    pub(super) fn end_batch(&mut self, findings: &mut Findings) {
        let Some(current) = self.current.take() else { return };
        for (first, last) in current.missing() {
            let mut at = first;
            loop {
                let stone = self.tombstones.iter().find(|(from, to, _)| (*from..=*to).contains(&at));
                let later = self.tombstones.iter().map(|(from, ..)| *from).filter(|from| *from > at).min();
                let end = match (stone, later) {
                    (Some((_, to, _)), _) => last.min(*to),
                    (None, Some(from)) => last.min(from - 1),
                    (None, None) => last,
                };
                let finding = match stone {
                    Some((_, _, policy)) => {
                        let why = format!("deleted by the policy {policy}");
                        Finding {
                            fault: false,
                            ..self.find(Kind::Retired, current.epoch, (at, end), EVENT, why)
                        }
                    }
                    None => self.find(
                        Kind::Deleted,
                        current.epoch,
                        (at, end),
                        EVENT,
                        "these events are not there",
                    ),
                };
                if stone.is_some() {
                    self.summary.retired += end - at + 1;
                }
                findings.push(finding);
                if end >= last {
                    break;
                }
                at = end + 1;
            }
        }
    }
}
