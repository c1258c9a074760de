//! What others ask of the log's proof: its key and its tree are the writer's, and go out as checkpoints and statements.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weir_core::evidence::Hash;
use weir_core::evidence::key::VerifyingKey;

use super::item::Command;
use super::{Ledger, LedgerError};

/// What is in the log and not sealed yet, with its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsealed {
    /// A checkpoint over all that is on disk, as a signed note.
    pub note: String,
    /// The sequence number of the first of the leaves.
    pub first_seq: u64,
    /// The leaf hashes of the events that are not sealed.
    pub leaves: Vec<Hash>,
    pub epoch: SignedEpoch,
}

/// By which key an epoch is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEpoch {
    pub number: u32,
    /// The sequence number of the epoch's first event.
    pub first_seq: u64,
    /// Under the log's name in that epoch.
    pub key: VerifyingKey,
    /// By what statement the key before named this one, if there was one.
    pub rotation: Option<String>,
}

/// The log's key was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The new key, under the log's name in its epoch.
    pub key: VerifyingKey,
    pub epoch: u32,
    /// The sequence number of the epoch's first event.
    pub first_seq: u64,
}

/// Where the log's evidence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    pub epoch: u32,
    /// The sequence number of the epoch's first event.
    pub first_seq: u64,
    /// Leaves of its tree.
    pub size: u64,
}

impl Ledger {
    /// The collector's advice of how old segments should grow: taken, up to [`LONGEST_ADVISED`], where it is longer than
    /// what the operator has configured.
    pub fn advise(&self, age: Duration) -> Result<(), LedgerError> {
        self.shared.send(Command::Advise(age))
    }

    /// A checkpoint of all that is on disk, with the leaves of what is not sealed; `None` when all is.
    pub async fn checkpoint(&self) -> Result<Option<Unsealed>, LedgerError> {
        self.ask(|answer| Command::Checkpoint { answer }).await
    }

    /// Begins another epoch of the same key, since the tree of this one proves nothing any more to whoever says `why`.
    pub async fn begin_epoch(&self, why: &str) -> Result<(), LedgerError> {
        let why = why.to_owned();
        self.ask(|answer| Command::BeginEpoch { why, answer }).await
    }

    /// Changes the log's key: the old one names the new one in the record, and another epoch begins. After an error the
    /// old key signs as before.
    pub async fn rotate_key(&self) -> Result<Rotated, LedgerError> {
        self.ask(|answer| Command::RotateKey { answer }).await
    }

    /// Where the log's evidence stands.
    pub fn standing(&self) -> Standing {
        *self.shared.vitals.standing()
    }
}
