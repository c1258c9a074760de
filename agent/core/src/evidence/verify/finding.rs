//! What verification finds: a kind out of a closed set, the place in a log, and a sentence for people. Findings of one kind
//! that lie next to each other become one; there is a bound on how many are kept, and none on how many are counted.

use serde::{Serialize, Serializer};

/// The most findings that are kept; more are counted.
pub const MAX_FINDINGS: usize = 10_000;

/// What is wrong, or what the log itself tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes are not those that were signed.
    Altered,
    /// What was signed is not there.
    Deleted,
    /// A number, a batch or a log is there more than once.
    Doubled,
    /// What is there stands at another's place.
    Reordered,
    /// The end of a log is missing: its own checkpoints, or the auditor's, tell of more.
    Truncated,
    /// What is there is of another log.
    Spliced,
    /// Signed, and not by the log's key.
    AnotherKey,
    /// The log ends, all in order, before a checkpoint that somebody else holds.
    RolledBack,
    /// Two histories of one log.
    Forked,
    /// Nothing signed covers it.
    Unsigned,
    /// No cosignature of the witness covers it.
    Unwitnessed,
    /// A log, or an epoch, of which the auditor holds no key.
    Unpinned,
    /// The host's clock was set.
    ClockStep,
    /// Numbers whose events were lost, as the agent says.
    Gap,
    /// Longer without any event than a living agent is.
    Silence,
    /// A column differs from what it is derived from.
    Projection,
    /// A table or a view is not the one that the migrations make.
    Definition,
    /// The kernel's sums do not close.
    Unaccounted,
    /// What was to be read is not in its form.
    Unreadable,
    /// Deleted by a policy, with a signed tombstone.
    Retired,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 20] = [
        Kind::Altered,
        Kind::Deleted,
        Kind::Doubled,
        Kind::Reordered,
        Kind::Truncated,
        Kind::Spliced,
        Kind::AnotherKey,
        Kind::RolledBack,
        Kind::Forked,
        Kind::Unsigned,
        Kind::Unwitnessed,
        Kind::Unpinned,
        Kind::ClockStep,
        Kind::Gap,
        Kind::Silence,
        Kind::Projection,
        Kind::Definition,
        Kind::Unaccounted,
        Kind::Unreadable,
        Kind::Retired,
    ];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Altered => "altered",
            Kind::Deleted => "deleted",
            Kind::Doubled => "doubled",
            Kind::Reordered => "reordered",
            Kind::Truncated => "truncated",
            Kind::Spliced => "spliced",
            Kind::AnotherKey => "another_key",
            Kind::RolledBack => "rolled_back",
            Kind::Forked => "forked",
            Kind::Unsigned => "unsigned",
            Kind::Unwitnessed => "unwitnessed",
            Kind::Unpinned => "unpinned",
            Kind::ClockStep => "clock_step",
            Kind::Gap => "gap",
            Kind::Silence => "silence",
            Kind::Projection => "projection",
            Kind::Definition => "definition",
            Kind::Unaccounted => "unaccounted",
            Kind::Unreadable => "unreadable",
            Kind::Retired => "retired",
        }
    }

    /// The kind of this label.
    pub fn labelled(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == label)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// Whether it stands against what was verified. What is expected, such as events that a policy retired, does not.
    pub fault: bool,
    /// The log; empty for what is of none.
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    /// `event`, `batch`, `checkpoint`, `key`, `log`, or the name of a column, a table or a file.
    pub what: String,
    pub detail: String,
}

/// Findings, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    kept: Vec<Finding>,
    /// How many were left out.
    more: u64,
}

impl Findings {
    /// Takes one; it becomes one with the last where that is of the same kind and right before it.
    pub fn push(&mut self, finding: Finding) {
        if let Some(last) = self.kept.last_mut()
            && (last.kind, last.fault, last.epoch) == (finding.kind, finding.fault, finding.epoch)
            && (&last.origin, &last.what) == (&finding.origin, &finding.what)
            && last.last_seq.checked_add(1) == Some(finding.first_seq)
            && finding.what == EVENT
            // Whose policy took them is said of all of them.
            && (finding.kind != Kind::Retired || last.detail == finding.detail)
        {
            last.last_seq = finding.last_seq;
        } else if self.kept.len() < MAX_FINDINGS {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Those that are kept.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }

    /// How many were not kept.
    pub fn more(&self) -> u64 {
        self.more
    }

    /// Whether nothing stands against what was verified.
    pub fn are_clean(&self) -> bool {
        self.more == 0 && self.kept.iter().all(|finding| !finding.fault)
    }
}

/// [`Finding::what`] of single events.
pub const EVENT: &str = "event";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Finding {
        Finding {
            kind: Kind::Altered,
            fault: true,
            origin: "o".into(),
            epoch: 1,
            first_seq: seq,
            last_seq: seq,
            what: EVENT.into(),
            detail: String::new(),
        }
    }

    #[test]
    fn neighbours_become_one_and_no_more_are_kept_than_the_bound() {
        let mut findings = Findings::default();
        [5, 6, 7, 9].into_iter().for_each(|seq| findings.push(at(seq)));
        let places: Vec<_> = findings.iter().map(|one| (one.first_seq, one.last_seq)).collect();
        assert_eq!(places, [(5, 7), (9, 9)]);
        (0..MAX_FINDINGS as u64).for_each(|i| findings.push(at(100 + 2 * i)));
        assert_eq!((findings.iter().count(), findings.more()), (MAX_FINDINGS, 2));
        assert!(!findings.are_clean());
    }

    #[test]
    fn every_label_names_its_kind() {
        assert!(Kind::ALL.iter().all(|kind| Kind::labelled(kind.as_str()) == Some(*kind)));
    }
}
