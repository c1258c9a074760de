//! Checkpoints (C2SP tlog-checkpoint): what a log's tree was at some moment, signed by its host, and cosigned by who
//! witnessed it. A log's name comes in with its size and root; a note goes out, and back.
//!
//! ```text
//! <tenant>/<host>/<origin>/<epoch>
//! <number of leaves>
//! <base64 of the root>
//! first_seq <sequence number of the first leaf>
//! time_us <the host's wall clock, microseconds since 1970>
//! ```
//!
//! The key that signs has the log's name, as C2SP asks for.

use std::fmt::{self, Write};
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use super::key::{SigningKey, VerifyingKey};
use super::note::SignedNote;
use super::{EvidenceError, Hash, MAX_TREE, TreeState};
use crate::ids::Origin;

/// Names one tree: an epoch of a log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogName {
    pub tenant: String,
    pub host: String,
    pub origin: Origin,
    pub epoch: u32,
}

impl LogName {
    /// The same log in another epoch.
    pub fn at_epoch(&self, epoch: u32) -> Self {
        Self { epoch, ..self.clone() }
    }
}

/// Escapes all but letters, digits and `._-`.
fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing into a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn unescaped(part: &str) -> Option<String> {
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    // One name, one text.
    String::from_utf8(out).ok().filter(|text| escaped(text) == part)
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", escaped(&self.tenant), escaped(&self.host), self.origin, self.epoch)
    }
}

impl From<LogName> for String {
    fn from(name: LogName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for LogName {
    type Error = EvidenceError;

    fn try_from(text: String) -> Result<Self, EvidenceError> {
        text.parse()
    }
}

impl FromStr for LogName {
    type Err = EvidenceError;

    fn from_str(text: &str) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Checkpoint("its name is not TENANT/HOST/ORIGIN/EPOCH");
        let parts: Vec<_> = text.split('/').collect();
        let [tenant, host, origin, epoch] = parts[..] else { return Err(wrong) };
        let name = || {
            let (tenant, host) = (unescaped(tenant)?, unescaped(host)?);
            Some(Self {
                tenant,
                host,
                origin: origin.parse().ok()?,
                epoch: plain_number(epoch)?.try_into().ok()?,
            })
        };
        name().filter(|name| name.epoch > 0 && !name.tenant.is_empty() && !name.host.is_empty()).ok_or(wrong)
    }
}

/// A decimal number without sign and leading zeroes.
fn plain_number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

/// A tree at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub log: LogName,
    /// The number of leaves.
    pub size: u64,
    pub root: Hash,
    /// The sequence number of the first leaf.
    pub first_seq: u64,
    /// Microseconds since 1970, by the host's clock.
    pub time_us: u64,
}

impl Checkpoint {
    /// Of a tree as it is now. `log` names the log; the tree says the epoch.
    pub fn of(log: &LogName, tree: &TreeState, time_us: u64) -> Self {
        Self {
            log: log.at_epoch(tree.epoch),
            size: tree.frontier.size(),
            root: tree.frontier.root(),
            first_seq: tree.first_seq,
            time_us,
        }
    }

    /// The sequence number behind its last leaf.
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.size)
    }

    /// The lines that are signed.
    pub fn text(&self) -> String {
        let Self { log, size, root, first_seq, time_us } = self;
        let root = BASE64_STANDARD.encode(root);
        format!("{log}\n{size}\n{root}\nfirst_seq {first_seq}\ntime_us {time_us}\n")
    }

    /// Signs it with the epoch's key, under the log's name.
    pub fn signed(&self, key: &SigningKey) -> Result<SignedNote, EvidenceError> {
        let mut note = SignedNote::new(self.text())?;
        note.sign(key, &self.log.to_string())?;
        Ok(note)
    }

    /// Reads what a note says, whoever signed it.
    pub fn read(note: &SignedNote) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Checkpoint;
        let lines: Vec<_> = note.text().split('\n').collect();
        let [log, size, root, first_seq, time_us, ""] = lines[..] else {
            return Err(wrong("it has not the five lines of one"));
        };
        let number = |line: &str, key: &str| line.strip_prefix(key).and_then(plain_number);
        let root = BASE64_STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let checkpoint = Self {
            log: log.parse()?,
            size: plain_number(size).filter(|n| *n <= MAX_TREE).ok_or(wrong("its size is no number"))?,
            root: root.ok_or(wrong("its root is not 32 bytes of base64"))?,
            first_seq: number(first_seq, "first_seq ").ok_or(wrong("its first_seq is missing"))?,
            time_us: number(time_us, "time_us ").ok_or(wrong("its time_us is missing"))?,
        };
        checkpoint.first_seq.checked_add(checkpoint.size).ok_or(wrong("it ends behind the last number"))?;
        Ok(checkpoint)
    }

    /// Reads a note's text, and believes it if this key signed it under the log's own name.
    pub fn open(note: &SignedNote, key: &VerifyingKey) -> Result<Self, EvidenceError> {
        note.verify(key)?;
        let checkpoint = Self::read(note)?;
        if checkpoint.log.to_string() != key.name() {
            return Err(EvidenceError::Unsigned(checkpoint.log.to_string()));
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> LogName {
        let origin = Origin::from_random([0xab; 16]);
        LogName { tenant: "acme & söhne".into(), host: "runner-1.example".into(), origin, epoch: 1 }
    }

    fn tree() -> TreeState {
        let mut tree = TreeState::begin(2, 40);
        for i in 0..5 {
            tree.push(&[i]);
        }
        tree
    }

    #[test]
    fn a_checkpoint_reads_back_for_the_key_of_its_own_log() {
        let checkpoint = Checkpoint::of(&log(), &tree(), 1_790_000_000_000_000);
        assert_eq!((checkpoint.log.epoch, checkpoint.size, checkpoint.next_seq()), (2, 5, 45));
        let key = SigningKey::from_seed(&[1; 32]);
        let note: SignedNote = checkpoint.signed(&key).unwrap().to_string().parse().unwrap();
        let name = checkpoint.log.to_string();
        assert!(name.starts_with("acme%20%26%20s%C3%B6hne/runner-1.example/abab"), "{name}");
        assert_eq!(Checkpoint::open(&note, &key.verifying(&name).unwrap()).unwrap(), checkpoint);
        let other = log().at_epoch(3).to_string();
        let mut under_another = SignedNote::new(checkpoint.text()).unwrap();
        under_another.sign(&key, &other).unwrap();
        assert!(Checkpoint::open(&under_another, &key.verifying(&other).unwrap()).is_err());
    }

    #[test]
    fn another_implementation_reads_it_too() {
        let checkpoint = Checkpoint::of(&log(), &tree(), 1);
        let theirs = tlog_tiles::Checkpoint::from_bytes(checkpoint.text().as_bytes()).unwrap();
        assert_eq!((theirs.size(), theirs.hash().0), (5, checkpoint.root));
        assert_eq!(theirs.origin(), checkpoint.log.to_string());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let good = Checkpoint::of(&log(), &tree(), 1).text();
        let note = |text: &str| SignedNote::new(text.to_owned()).unwrap();
        assert!(Checkpoint::read(&note(&good)).is_ok());
        for (from, to) in [
            ("\n5\n", "\n05\n"),
            ("\n5\n", "\n-5\n"),
            ("\n5\n", "\n281474976710657\n"),
            ("first_seq 40", "first_seq 18446744073709551615"),
            ("first_seq 40\n", ""),
            ("time_us 1\n", "time_us 1\nmore\n"),
            ("/2\n", "/0\n"),
            ("acme%20", "acme "),
            ("runner-1", "%72unner-1"),
            ("acme%20%26%20s%C3%B6hne", ""),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            assert!(Checkpoint::read(&note(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tree_frame_reads_back() {
        assert_eq!(TreeState::read(&tree().to_bytes()).unwrap(), tree());
        let bad = TreeState { epoch: 0, ..tree() };
        assert!(TreeState::read(&bad.to_bytes()).is_err());
        assert_eq!(tree().next_seq(), 45);
    }
}
