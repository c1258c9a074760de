//! A change of a log's key: the statement that names the new one comes in, signed by the old key and by the new. Who holds
//! the first key of a log can so follow it through all of them.
//!
//! ```text
//! weir key rotation v1
//! <the log's name at its old epoch>
//! <the log's name at its new epoch>
//! first_seq <sequence number of the new epoch's first event>
//! <the new key, as a vkey>
//! ```

use super::EvidenceError;
use super::checkpoint::LogName;
use super::key::{SigningKey, VerifyingKey};
use super::note::SignedNote;
use crate::mask::Masked;

const HEAD: &str = "weir key rotation v1";

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The log at the epoch that ends.
    pub from: LogName,
    /// The epoch that begins.
    pub epoch: u32,
    /// The sequence number of its first event.
    pub first_seq: u64,
    /// Its key, under the log's name at that epoch.
    pub key: VerifyingKey,
}

impl Rotation {
    /// That `new` signs the log from `first_seq` on, in the next epoch.
    pub fn next(from: LogName, first_seq: u64, new: &SigningKey) -> Result<Self, EvidenceError> {
        let epoch = from.epoch.checked_add(1).ok_or(EvidenceError::Rotation("there are no more epochs"))?;
        let key = new.verifying(&from.at_epoch(epoch).to_string())?;
        Ok(Self { from, epoch, first_seq, key })
    }

    fn text(&self) -> String {
        let Self { from, epoch, first_seq, key } = self;
        format!("{HEAD}\n{from}\n{}\nfirst_seq {first_seq}\n{key}\n", from.at_epoch(*epoch))
    }

    /// The statement, signed by both keys.
    pub fn signed(&self, old: &SigningKey, new: &SigningKey) -> Result<SignedNote, EvidenceError> {
        let mut note = SignedNote::new(self.text())?;
        note.sign(old, &self.from.to_string())?;
        note.sign(new, self.key.name())?;
        Ok(note)
    }

    /// The same as text for a record. It holds a log's names, numbers, public keys and signatures: nothing of a job's.
    pub fn recordable(&self, old: &SigningKey, new: &SigningKey) -> Result<Masked<String>, EvidenceError> {
        Ok(Masked::vouched_for(self.signed(old, new)?.to_string()))
    }

    /// Reads what a note says, and believes it if the old key and the new one have signed it.
    pub fn open(note: &SignedNote, old: &VerifyingKey) -> Result<Self, EvidenceError> {
        note.verify(old)?;
        let rotation = Self::read(note)?;
        if rotation.from.to_string() != old.name() {
            return Err(EvidenceError::Unsigned(rotation.from.to_string()));
        }
        note.verify(&rotation.key)?;
        Ok(rotation)
    }

    fn read(note: &SignedNote) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Rotation;
        let lines: Vec<_> = note.text().split('\n').collect();
        let [HEAD, from, to, first_seq, key, ""] = lines[..] else {
            return Err(wrong("it has not the five lines of one"));
        };
        let (from, to): (LogName, LogName) = (from.parse()?, to.parse()?);
        let key: VerifyingKey = key.parse()?;
        let first_seq = first_seq.strip_prefix("first_seq ").and_then(|text| text.parse().ok());
        let first_seq = first_seq.ok_or(wrong("its first_seq is missing"))?;
        let rotation = Self { from, epoch: to.epoch, first_seq, key };
        if Some(to.epoch) != rotation.from.epoch.checked_add(1) {
            return Err(wrong("it is not of the next epoch"));
        }
        // One statement, one text: and the key bears the name of the log's next epoch.
        if rotation.text() != note.text() || rotation.key.name() != to.to_string() {
            return Err(wrong("its names are of different logs"));
        }
        Ok(rotation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Origin;

    fn log() -> LogName {
        LogName { tenant: "t".into(), host: "h".into(), origin: Origin::from_random([1; 16]), epoch: 1 }
    }

    #[test]
    fn the_holder_of_the_first_key_can_follow_to_the_next() {
        let (old, new) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let rotation = Rotation::next(log(), 77, &new).unwrap();
        let note = rotation.signed(&old, &new).unwrap().to_string().parse().unwrap();
        let first = old.verifying(&log().to_string()).unwrap();
        let opened = Rotation::open(&note, &first).unwrap();
        assert_eq!(opened, rotation);
        assert_eq!((opened.epoch, opened.first_seq), (2, 77));
        let third = Rotation::next(log().at_epoch(2), 99, &old).unwrap();
        let note = third.signed(&new, &old).unwrap();
        assert_eq!(Rotation::open(&note, &opened.key).unwrap(), third);
    }

    #[test]
    fn a_statement_without_both_signatures_or_of_another_log_is_refused() {
        let (old, new) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let first = old.verifying(&log().to_string()).unwrap();
        let rotation = Rotation::next(log(), 77, &new).unwrap();
        let mut by_old = SignedNote::new(rotation.text()).unwrap();
        by_old.sign(&old, &log().to_string()).unwrap();
        assert!(matches!(Rotation::open(&by_old, &first), Err(EvidenceError::Unsigned(_))));
        let mut by_new = SignedNote::new(rotation.text()).unwrap();
        by_new.sign(&new, rotation.key.name()).unwrap();
        assert!(matches!(Rotation::open(&by_new, &first), Err(EvidenceError::Unsigned(_))));
        let elsewhere = LogName { host: "other".into(), ..log() };
        let other = Rotation::next(elsewhere.clone(), 77, &new).unwrap().signed(&old, &new).unwrap();
        assert!(Rotation::open(&other, &first).is_err());
        for (from, to) in [("/2\n", "/3\n"), ("first_seq 77", "first_seq 077"), ("/1\n", "/4294967295\n")] {
            let mut bad = SignedNote::new(rotation.text().replacen(from, to, 1)).unwrap();
            bad.sign(&old, &log().to_string()).unwrap();
            bad.sign(&new, rotation.key.name()).unwrap();
            assert!(Rotation::open(&bad, &first).is_err(), "{from}");
        }
        let skipped = Rotation { epoch: 3, ..rotation };
        assert!(Rotation::open(&skipped.signed(&old, &new).unwrap(), &first).is_err());
        assert!(Rotation::next(log().at_epoch(u32::MAX), 1, &new).is_err());
    }
}
