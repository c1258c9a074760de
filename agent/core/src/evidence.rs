//! Evidence: the canonical bytes of a log's events come in, what proves them goes out: a Merkle tree over all of them
//! (RFC 6962), signed checkpoints of it (C2SP), and the proofs between them. It judges bytes alone; it never trusts what
//! an event says about itself.
//!
//! # A log and its epochs
//! One spool is one log, with an [`Origin`](crate::ids::Origin) and dense sequence numbers from 0. An *epoch* is a part of it
//! that has a tree and a key of its own: it begins at a `first_seq`, and the leaf of the event `seq` has the index
//! `seq - first_seq` in its tree. Another epoch begins when the key is changed ([`rotation`]), or when leaves were lost and
//! no tree could prove what stood there. What was written before there were trees is epoch 0, and unsigned.

pub mod checkpoint;
pub mod export;
pub mod key;
pub mod note;
pub mod rotation;
pub mod tombstone;
mod tree;
pub mod verify;

pub use tree::{
    EMPTY_ROOT, Frontier, HASH_LEN, Hash, MAX_TREE, consistency_proof, inclusion_proof, leaf_hash, node_hash,
    root, verify_consistency, verify_inclusion,
};

use serde::{Deserialize, Serialize};

/// An epoch's tree at some moment: of all events from `first_seq` to before `first_seq + frontier.size()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeState {
    /// From 1; 0 has no tree.
    pub epoch: u32,
    /// The sequence number of the epoch's first event.
    pub first_seq: u64,
    pub frontier: Frontier,
}

impl TreeState {
    /// An epoch in which nothing was written yet.
    pub fn begin(epoch: u32, first_seq: u64) -> Self {
        Self { epoch, first_seq, frontier: Frontier::default() }
    }

    /// The sequence number that the next event of this epoch has.
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.frontier.size())
    }

    /// Takes the next event's canonical bytes.
    pub fn push(&mut self, canonical: &[u8]) -> Hash {
        let leaf = leaf_hash(canonical);
        self.frontier.push(leaf);
        leaf
    }

    /// The bytes of a segment's tree frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, and strings of hex digits: there is nothing in it that has no JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a tree frame back.
    pub fn read(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let state: Self = serde_json::from_slice(bytes).map_err(|e| EvidenceError::Tree(e.to_string()))?;
        if state.epoch == 0 {
            return Err(EvidenceError::Tree("epoch 0 has no tree".into()));
        }
        Ok(state)
    }
}

/// Bytes that are not the evidence they should be. Whoever sent them is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    #[error("not a tree's state: {0}")]
    Tree(String),
    #[error("not a key: {0}")]
    Key(&'static str),
    #[error("not a signed note: {0}")]
    Note(&'static str),
    #[error("not a checkpoint: {0}")]
    Checkpoint(&'static str),
    #[error("not a statement of another key: {0}")]
    Rotation(&'static str),
    #[error("not a tombstone: {0}")]
    Tombstone(&'static str),
    #[error("no signature by the key {0}")]
    Unsigned(String),
    #[error("the signature by the key {0} is wrong")]
    BadSignature(String),
}
