//! A tombstone: that the events of some numbers of a log were deleted, by which policy and when; signed by the collector's
//! witness key, as a cosignature. The leaves stay, so what is left proves what it did before.
//!
//! ```text
//! weir tombstone v1
//! <the log's name at its epoch>
//! first_seq N
//! last_seq N
//! policy <its name>
//! time_us N
//! ```

use super::EvidenceError;
use super::checkpoint::LogName;
use super::key::{SigningKey, VerifyingKey};
use super::note::SignedNote;

const HEAD: &str = "weir tombstone v1";

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    pub log: LogName,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    /// One line.
    pub policy: String,
    /// Microseconds since 1970, by the collector's clock.
    pub time_us: u64,
}

impl Tombstone {
    fn text(&self) -> String {
        let Self { log, first_seq, last_seq, policy, time_us } = self;
        format!(
            "{HEAD}\n{log}\nfirst_seq {first_seq}\nlast_seq {last_seq}\npolicy {policy}\ntime_us {time_us}\n"
        )
    }

    /// Signs it with a witness's key.
    pub fn signed(&self, key: &SigningKey, name: &str) -> Result<SignedNote, EvidenceError> {
        let mut note = SignedNote::new(self.text())?;
        Self::read(&note)?;
        note.cosign(key, name, self.time_us / 1_000_000)?;
        Ok(note)
    }

    /// Reads what a note says, and believes it if one of these witnesses signed it.
    pub fn open(note: &SignedNote, witnesses: &[VerifyingKey]) -> Result<Self, EvidenceError> {
        let mut last = EvidenceError::Unsigned("a trusted witness".into());
        for key in witnesses {
            match note.cosigned(key) {
                Ok(_) => return Self::read(note),
                Err(EvidenceError::Unsigned(_)) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn read(note: &SignedNote) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Tombstone;
        let lines: Vec<_> = note.text().split('\n').collect();
        let [HEAD, log, first_seq, last_seq, policy, time_us, ""] = lines[..] else {
            return Err(wrong("it has not the six lines of one"));
        };
        let number = |line: &str, key: &str| line.strip_prefix(key).and_then(|text| text.parse().ok());
        let read = || {
            Some(Self {
                log: log.parse().ok()?,
                first_seq: number(first_seq, "first_seq ")?,
                last_seq: number(last_seq, "last_seq ")?,
                policy: policy.strip_prefix("policy ")?.to_owned(),
                time_us: number(time_us, "time_us ")?,
            })
        };
        let stone = read().ok_or(wrong("a line of it is not what it should be"))?;
        // One statement, one text.
        if stone.text() != note.text() || stone.first_seq > stone.last_seq {
            return Err(wrong("its numbers are not plain, or in the wrong order"));
        }
        Ok(stone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Origin;

    #[test]
    fn a_tombstone_is_believed_for_a_trusted_witness_alone() {
        let log =
            LogName { tenant: "t".into(), host: "h".into(), origin: Origin::from_random([1; 16]), epoch: 1 };
        let stone =
            Tombstone { log, first_seq: 3, last_seq: 9, policy: "90 days".into(), time_us: 5_000_000 };
        let key = SigningKey::from_seed(&[1; 32]);
        let note = stone.signed(&key, "witness").unwrap();
        let (good, other) = (key.cosigning("witness").unwrap(), SigningKey::from_seed(&[2; 32]));
        assert_eq!(
            Tombstone::open(&note, &[other.cosigning("witness").unwrap(), good.clone()]).unwrap(),
            stone
        );
        assert!(Tombstone::open(&note, &[other.cosigning("witness").unwrap()]).is_err());
        let changed: SignedNote = note.to_string().replacen("last_seq 9", "last_seq 10", 1).parse().unwrap();
        assert_eq!(Tombstone::open(&changed, &[good]), Err(EvidenceError::BadSignature("witness".into())));
        let backwards = Tombstone { last_seq: 2, ..stone.clone() };
        assert!(backwards.signed(&key, "witness").is_err());
        assert!(Tombstone { policy: "two\nlines".into(), ..stone }.signed(&key, "witness").is_err());
    }
}
