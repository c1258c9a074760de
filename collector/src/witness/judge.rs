//! What may be said of leaves that a host has signed for: they and what is known of their log come in, a [`Standing`] or a
//! [`Fault`] goes out. Pure, so that it can be tested by itself; whoever asks reads what is known first.

use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::{Frontier, Hash};

/// Leaves behind a tree, and the checkpoint over all of it. The signature is proven.
#[derive(Debug, Clone)]
pub struct Run {
    /// The tree before the leaves.
    pub before: Frontier,
    pub leaves: Vec<Hash>,
    pub checkpoint: Checkpoint,
}

/// A tree that this log's host has signed for, with or without a cosignature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub size: u64,
    pub root: Hash,
    /// When it was signed, microseconds, the host's clock.
    pub time_us: i64,
}

/// Leaves that are stored, with the tree before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Of the tree before it.
    pub from: u64,
    pub leaves: Vec<Hash>,
}

/// Whether all before the leaves is proven, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The tree goes on from what is known, without a hole: it may be cosigned.
    Proven,
    /// Leaves before these are missing.
    BehindHole,
}

/// What is wrong, and with which word `findings` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub reason: FaultReason,
    pub detail: String,
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultReason {
    /// Two trees that the host has signed for contradict one another.
    Fork,
    /// A smaller tree was signed later than a larger one.
    Rollback,
    /// The root is not that of the leaves.
    BadRoot,
    /// The signature is not the enrolled key's.
    BadSignature,
    /// Another key for an epoch that has one.
    SecondKey,
}

impl FaultReason {
    /// As `findings` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultReason::Fork => "fork",
            FaultReason::Rollback => "rollback",
            FaultReason::BadRoot => "bad_root",
            FaultReason::BadSignature => "bad_signature",
            FaultReason::SecondKey => "second_key",
        }
    }
}

impl Fault {
    pub fn new(reason: FaultReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl Run {
    pub fn log(&self) -> &LogName {
        &self.checkpoint.log
    }

    /// The sequence number of the first leaf.
    pub fn first_seq(&self) -> u64 {
        self.checkpoint.first_seq.saturating_add(self.before.size())
    }

    /// The tree with all leaves.
    pub fn after(&self) -> Frontier {
        let mut after = self.before.clone();
        after.extend(self.leaves.iter().copied());
        after
    }

    /// Whether the checkpoint is that of the leaves.
    pub fn is_whole(&self) -> Result<(), Fault> {
        let after = self.after();
        if after.size() != self.checkpoint.size || after.root() != self.checkpoint.root {
            let detail = format!(
                "the checkpoint is of {} leaves with another root than that of the {} leaves that came",
                self.checkpoint.size,
                after.size()
            );
            return Err(Fault::new(FaultReason::BadRoot, detail));
        }
        Ok(())
    }

    /// Whether the trees that were seen are beginnings of this one, as far as they end in it. Larger ones are left out.
    pub fn agrees_with(&self, seen: &[Seen]) -> Result<(), Fault> {
        let mut seen: Vec<&Seen> = seen.iter().filter(|seen| seen.size >= self.before.size()).collect();
        seen.sort_by_key(|seen| seen.size);
        let mut tree = self.before.clone();
        let mut leaves = self.leaves.iter();
        for seen in seen {
            while tree.size() < seen.size {
                let Some(leaf) = leaves.next() else { return Ok(()) };
                tree.push(*leaf);
            }
            if tree.root() != seen.root {
                let detail = format!(
                    "the host signed another tree of {} leaves before, at {}",
                    seen.size, seen.time_us
                );
                return Err(Fault::new(FaultReason::Fork, detail));
            }
        }
        Ok(())
    }

    /// Whether these stored leaves are among this run's, as far as both reach.
    pub fn agrees_with_stored(&self, stored: &[Stored]) -> Result<(), Fault> {
        let before = self.before.size();
        for one in stored {
            let start = one.from.max(before);
            let at = |from: u64| usize::try_from(start - from).ok();
            let (Some(own), Some(theirs)) = (at(before), at(one.from)) else { continue };
            let own = self.leaves.get(own..).unwrap_or_default();
            let theirs = one.leaves.get(theirs..).unwrap_or_default();
            if own.iter().zip(theirs).any(|(own, theirs)| own != theirs) {
                let detail = format!("other events are stored behind the first {start} leaves");
                return Err(Fault::new(FaultReason::Fork, detail));
            }
        }
        Ok(())
    }

    /// Of trees that are larger than this one: the last that was signed.
    pub fn larger<'s>(&self, seen: &'s [Seen]) -> Option<&'s Seen> {
        let larger = seen.iter().filter(|seen| seen.size > self.checkpoint.size);
        larger.max_by_key(|seen| seen.time_us)
    }
}

#[cfg(test)]
mod tests {
    use weir_core::evidence::leaf_hash;
    use weir_core::ids::Origin;

    use super::*;

    fn leaves(range: std::ops::Range<u64>, fork: u8) -> Vec<Hash> {
        range.map(|n| leaf_hash(&[&n.to_le_bytes()[..], &[fork]].concat())).collect()
    }

    fn tree(size: u64, fork: u8) -> Frontier {
        let mut tree = Frontier::default();
        tree.extend(leaves(0..size, fork));
        tree
    }

    fn run(from: u64, to: u64) -> Run {
        let log =
            LogName { tenant: "t".into(), host: "h".into(), origin: Origin::from_random([1; 16]), epoch: 1 };
        let after = tree(to, 0);
        let checkpoint = Checkpoint { log, size: to, root: after.root(), first_seq: 100, time_us: 9 };
        Run { before: tree(from, 0), leaves: leaves(from..to, 0), checkpoint }
    }

    fn seen(size: u64, fork: u8) -> Seen {
        Seen { size, root: tree(size, fork).root(), time_us: 5 }
    }

    #[test]
    fn a_root_or_a_size_of_other_leaves_is_found() {
        assert!(run(3, 9).is_whole().is_ok());
        let mut short = run(3, 9);
        short.leaves.pop();
        let mut other = run(3, 9);
        other.leaves[2][0] ^= 1;
        let mut before = run(3, 9);
        before.before = tree(3, 1);
        for bad in [short, other, before] {
            assert_eq!(bad.is_whole().unwrap_err().reason, FaultReason::BadRoot);
        }
        assert_eq!(run(3, 9).first_seq(), 103);
    }

    #[test]
    fn every_tree_that_was_seen_must_be_a_beginning_of_this_one() {
        let run = run(3, 9);
        for size in 0..12 {
            assert!(run.agrees_with(&[seen(size, 0)]).is_ok(), "{size}");
            let forked = run.agrees_with(&[seen(4, 0), seen(size, 1), seen(8, 0)]);
            let looked_at = (3..=9).contains(&size);
            assert_eq!(
                forked.is_err(),
                looked_at,
                "{size}: smaller ones were judged before, larger ones are later"
            );
        }
    }

    #[test]
    fn stored_leaves_must_be_the_same_as_far_as_both_reach() {
        let run = run(3, 9);
        for (from, to) in [(0, 3), (0, 5), (3, 9), (4, 6), (8, 20), (9, 12), (30, 31)] {
            let stored = |fork| Stored { from, leaves: leaves(from..to, fork) };
            assert!(run.agrees_with_stored(&[stored(0)]).is_ok(), "{from}..{to}");
            let overlaps = from < 9 && to > 3;
            assert_eq!(run.agrees_with_stored(&[stored(0), stored(1)]).is_err(), overlaps, "{from}..{to}");
        }
    }
}
