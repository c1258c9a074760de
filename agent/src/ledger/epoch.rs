//! The epoch that is being written: its tree, its key and its name. Events' bytes come in, checkpoints go out, and the
//! head of each new segment. It signs only trees of events that are on disk, or are being written with the checkpoint.

use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::{EvidenceError, TreeState};

use super::SignedEpoch;
use super::book::Book;
use super::carry::Carry;
use crate::spool::{Around, Head};

/// See the module.
#[derive(Clone)]
pub(super) struct Epoch {
    /// Of the log in this epoch.
    pub(super) log: LogName,
    /// Over all its events that are on disk.
    pub(super) tree: TreeState,
    pub(super) signing: SigningKey,
    pub(super) key: VerifyingKey,
    /// By what the key before named this one.
    pub(super) rotation: Option<String>,
}

impl Epoch {
    /// An epoch with this tree, signed by this key.
    pub(super) fn of(
        log: &LogName,
        tree: TreeState,
        signing: SigningKey,
        rotation: Option<String>,
    ) -> Result<Self, EvidenceError> {
        let log = log.at_epoch(tree.epoch);
        let key = signing.verifying(&log.to_string())?;
        Ok(Self { log, tree, signing, key, rotation })
    }

    /// The next one, of the same key.
    pub(super) fn following(&self, first_seq: u64) -> Result<Self, EvidenceError> {
        let next =
            self.tree.epoch.checked_add(1).ok_or(EvidenceError::Rotation("there are no more epochs"))?;
        Self::of(&self.log, TreeState::begin(next, first_seq), self.signing.clone(), None)
    }

    /// A checkpoint of a tree of this epoch.
    pub(super) fn sign(&self, tree: &TreeState, time_us: u64) -> String {
        let signed = Checkpoint::of(&self.log, tree, time_us).signed(&self.signing);
        // The name was one when the epoch was made, and the text is numbers besides.
        signed.map(|note| note.to_string()).unwrap_or_default()
    }

    /// By which key it is signed.
    pub(super) fn signed(&self) -> SignedEpoch {
        let TreeState { epoch: number, first_seq, .. } = self.tree;
        SignedEpoch { number, first_seq, key: self.key.clone(), rotation: self.rotation.clone() }
    }

    /// What a segment that goes on here begins with.
    pub(super) fn head(&self, book: &Book) -> Head {
        let carry = Carry {
            open: book.open().cloned().collect(),
            key: Some(self.key.clone()),
            rotation: self.rotation.clone(),
        };
        Head { tree: self.tree.to_bytes(), carry: carry.to_bytes() }
    }
}

/// What the spool puts around a group.
pub(super) struct Frames<'a> {
    pub(super) epoch: &'a Epoch,
    /// The tree with the group.
    pub(super) after: &'a TreeState,
    pub(super) book: &'a Book,
    /// The last checkpoint of an epoch that is over, for the segment that it ends in.
    pub(super) ended: Option<&'a str>,
    pub(super) time_us: u64,
}

impl Around for Frames<'_> {
    fn head(&self) -> Head {
        self.epoch.head(self.book)
    }

    fn closing(&self) -> Vec<u8> {
        match self.ended {
            Some(note) => note.as_bytes().to_vec(),
            None => self.epoch.sign(&self.epoch.tree, self.time_us).into_bytes(),
        }
    }

    fn with_group(&self) -> Vec<u8> {
        self.epoch.sign(self.after, self.time_us).into_bytes()
    }
}
