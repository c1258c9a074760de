//! What the collector keeps as a witness: rows of `batches`, `checkpoints`, `claims`, `identities`, `policies` and
//! `tombstones`. None of them is ever altered or deleted.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use weir_core::evidence::Hash;
use weir_core::evidence::checkpoint::Checkpoint;

use super::{EventRow, time};

/// A row of `batches`: one stored segment of an epoch with a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct BatchRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    pub epoch_first_seq: u64,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    pub events: u64,
    pub batch_digest: String,
    /// With this batch.
    pub tree_size: u64,
    pub root: Hash,
    /// The tree before this batch: the roots of its full subtrees, the largest first.
    pub frontier: Vec<Hash>,
    pub leaf_hashes: Vec<Hash>,
    /// The segment's last checkpoint, as the agent signed it.
    pub note: String,
    pub sealed_at: i64,
    pub agent_uid: u32,
    pub agent_identity: String,
    pub ingested_at: i64,
}

/// A row of `checkpoints`: one that was cosigned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct CheckpointRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    /// Of the epoch.
    pub first_seq: u64,
    pub tree_size: u64,
    pub root: Hash,
    /// The agent's clock.
    pub time: i64,
    /// With the agent's signature and the witness's.
    pub note: String,
    /// Whether its last leaves came as hashes alone.
    pub idle: bool,
    pub witnessed_at: i64,
}

/// A row of `claims`: an idle log's checkpoint, before anything is said of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct ClaimRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    pub tree_size: u64,
    pub root: Hash,
    /// The agent's clock.
    pub time: i64,
    pub note: String,
    pub claimed_at: i64,
}

/// A row of `identities`: the key of one epoch of one log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct IdentityRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    /// As a signed note's verifier key.
    pub key: String,
    /// `uid:0`, a token's name, `rotation`, or `same key`.
    pub certified_by: String,
    pub certified_at: i64,
    /// The statement that both keys signed; empty for a first key, and for the same one.
    pub rotation: String,
    /// SHA-256 of the certificate that was issued with it, hex; empty over the unix socket.
    pub certificate: String,
}

/// A row of `policies`: an agent has loaded one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct PolicyRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub seq: u64,
    pub time: i64,
    pub policy_digest: String,
    pub event_detail: BTreeMap<String, String>,
    pub ingested_at: i64,
}

/// A row of `tombstones`: events that were deleted by a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct TombstoneRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    pub events: u64,
    /// The policy's name.
    pub policy: String,
    pub policy_digest: String,
    pub retired_at: i64,
    pub retired_by: String,
    /// The signed statement of all this.
    pub note: String,
}

impl CheckpointRow {
    /// `note` is the checkpoint's, with both signatures.
    pub fn of(checkpoint: &Checkpoint, note: String, idle: bool, witnessed_us: i64) -> Self {
        Self {
            tenant: checkpoint.log.tenant.clone(),
            host_name: checkpoint.log.host.clone(),
            origin: checkpoint.log.origin.to_string(),
            epoch: checkpoint.log.epoch,
            first_seq: checkpoint.first_seq,
            tree_size: checkpoint.size,
            root: checkpoint.root,
            time: time(checkpoint.time_us),
            note,
            idle,
            witnessed_at: witnessed_us,
        }
    }
}

impl ClaimRow {
    /// `note` is the checkpoint's, as the agent signed it.
    pub fn of(checkpoint: &Checkpoint, note: String, claimed_us: i64) -> Self {
        let CheckpointRow {
            tenant, host_name, origin, epoch, first_seq, tree_size, root, time, note, ..
        } = CheckpointRow::of(checkpoint, note, true, claimed_us);
        Self {
            tenant,
            host_name,
            origin,
            epoch,
            first_seq,
            tree_size,
            root,
            time,
            note,
            claimed_at: claimed_us,
        }
    }
}

impl PolicyRow {
    /// Of an event `policy.loaded`.
    pub fn of(event: &EventRow) -> Self {
        Self {
            tenant: event.tenant.clone(),
            host_name: event.host_name.clone(),
            origin: event.origin.clone(),
            seq: event.seq,
            time: event.time,
            policy_digest: event.event_detail.get("digest").cloned().unwrap_or_default(),
            event_detail: event.event_detail.clone(),
            ingested_at: event.ingested_at,
        }
    }
}
