//! Keys: which one an epoch has, from the pinned one on by the log's own statements, and what the store says beside it. A
//! note is believed by no other.

use std::ops::Bound::{Excluded, Included};

use super::{Log, MAX_KEYS};
use crate::evidence::EvidenceError;
use crate::evidence::checkpoint::{Checkpoint, LogName};
use crate::evidence::key::VerifyingKey;
use crate::evidence::note::SignedNote;
use crate::evidence::rotation::Rotation;
use crate::evidence::verify::StoredKey;
use crate::evidence::verify::finding::{Findings, Kind};

impl Log {
    pub(in super::super) fn key(&mut self, key: StoredKey, findings: &mut Findings) {
        if self.keys.len() == MAX_KEYS {
            findings.push(self.find(
                Kind::Unreadable,
                key.epoch,
                (0, 0),
                "key",
                "more keys than a log may have",
            ));
            return;
        }
        if self.name.is_none() {
            // Nothing is pinned: what the store says is all there is, and `unpinned` says so.
            let named =
                key.key.parse::<VerifyingKey>().ok().and_then(|key| key.name().parse::<LogName>().ok());
            self.name = named.filter(|name| name.origin == self.origin);
        }
        let (epoch, first_seq) = (key.epoch, key.first_seq);
        if let Some(pin) = self.pinned.as_ref().filter(|pin| pin.epoch == epoch)
            && pin.key.to_string() != key.key
        {
            let why = "the store names another key than the pinned one";
            findings.push(self.find(Kind::AnotherKey, epoch, (first_seq, first_seq), "key", why));
        }
        if let Some(other) = self.keys.insert(epoch, key.clone())
            && other.key != key.key
        {
            let place = (first_seq, first_seq);
            findings.push(self.find(
                Kind::AnotherKey,
                epoch,
                place,
                "key",
                "the epoch has two keys in the store",
            ));
        }
    }

    /// Reads a checkpoint, and believes it if the epoch's key signed it.
    pub(super) fn open(
        &mut self,
        note: &str,
        epoch: u32,
        findings: &mut Findings,
    ) -> Result<Checkpoint, (Kind, String)> {
        let note: SignedNote = note.parse().map_err(|e: EvidenceError| (Kind::Altered, e.to_string()))?;
        let key = match &self.epoch {
            Some(current) if current.number == epoch => current.key.clone(),
            _ => self.key_of(epoch, findings),
        };
        let Some(key) = key else {
            return Err((Kind::Unpinned, format!("no key of epoch {epoch} is known")));
        };
        Checkpoint::open(&note, &key).map_err(|e| (kind_of(&e), e.to_string()))
    }

    /// The key of an epoch, from the pinned one on by each statement of another.
    pub(super) fn key_of(&self, epoch: u32, findings: &mut Findings) -> Option<VerifyingKey> {
        let name = self.name.as_ref()?;
        let (from, mut key) = match (&self.epoch, &self.pinned) {
            (Some(current), _) => (current.number, current.key.clone()?),
            (None, Some(pin)) => (pin.epoch, pin.key.clone()),
            (None, None) => {
                let (from, stored) = self.keys.range(..=epoch).next()?;
                (*from, stored.key.parse().ok()?)
            }
        };
        if epoch < from {
            return None;
        }
        let at = |key: &VerifyingKey, epoch: u32| key.renamed(&name.at_epoch(epoch).to_string()).ok();
        // Of an epoch whose key nobody stored nothing came; it had that of the one before.
        for (next, stored) in self.keys.range((Excluded(from), Included(epoch))) {
            let followed = match stored.rotation.as_str() {
                "" => Ok(at(&key, *next)?),
                statement => {
                    let old = at(&key, next.saturating_sub(1))?;
                    let opened = statement.parse::<SignedNote>().and_then(|note| Rotation::open(&note, &old));
                    opened.map(|rotation| rotation.key)
                }
            };
            let place = (stored.first_seq, stored.first_seq);
            key = match followed {
                Ok(key) => key,
                Err(error) => {
                    findings.push(self.find(Kind::AnotherKey, *next, place, "key", error.to_string()));
                    return None;
                }
            };
            if stored.key != key.to_string() {
                let why = "the store names another key than the log's own statement";
                findings.push(self.find(Kind::AnotherKey, *next, place, "key", why));
            }
        }
        if epoch == from { Some(key) } else { at(&key, epoch) }
    }
}

/// What a note that is not believed means.
pub(super) fn kind_of(error: &EvidenceError) -> Kind {
    match error {
        EvidenceError::Unsigned(_) => Kind::AnotherKey,
        _ => Kind::Altered,
    }
}
