//! What agent and collector say to each other: one versioned contract, over a unix socket or mutual TLS. The agent's
//! identity is the connection's (peer credentials, a client certificate), never what a body says.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/segments` | a sealed segment's bytes ([`crate::segment`]) | [`SegmentAck`] |
//! | `POST /v1/checkpoints` | [`CheckpointPost`] | [`CheckpointAck`] |
//! | `POST /v1/enrol` | [`EnrolRequest`] | [`EnrolAck`] |
//! | `POST /v1/certificate` | [`CertificateRequest`] | [`CertificateAck`] |
//! | `POST /v1/holds` | a [`crate::approval::Hold`] | [`HoldAck`] |
//! | `POST /v1/poll` | [`PollRequest`] | [`PollResponse`], after a decision came or `wait_ms` passed |
//!
//! Anything but 200 carries a [`Refusal`]. Every request names [`VERSION`] in [`VERSION_HEADER`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::approval::SignedStatement;
use crate::evidence::key::VerifyingKey;
use crate::ids::{ApprovalId, Origin};

/// The contract's version. Each side refuses another one.
pub const VERSION: &str = "2";
/// The header that carries it.
pub const VERSION_HEADER: &str = "weir-wire-version";

/// Where a sealed segment goes.
pub const SEGMENTS: &str = "/v1/segments";
/// Where a checkpoint goes that comes with no segment.
pub const CHECKPOINTS: &str = "/v1/checkpoints";
/// Where an epoch's key is made known.
pub const ENROL: &str = "/v1/enrol";
/// Where a host asks for its certificate.
pub const CERTIFICATE: &str = "/v1/certificate";
/// Where a hold goes.
pub const HOLDS: &str = "/v1/holds";
/// The long poll.
pub const POLL: &str = "/v1/poll";

/// The longest that a collector lets a poll wait, milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;
/// The most holds that one poll may name.
pub const MAX_OPEN_HOLDS: usize = 10_000;
/// The most leaves that a [`CheckpointPost`] may bring: those of one segment.
pub const MAX_POSTED_LEAVES: usize = 20_000;

/// The longest age of a segment that a collector advises, and that an agent lets itself be advised. What is not sealed is shown
/// to the collector's witness each minute all the same.
pub const LONGEST_ADVISED: Duration = Duration::from_secs(300);

/// The collector has the segment's events in ClickHouse, and has read them back. The agent may trim them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentAck {
    pub origin: Origin,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    /// [`crate::segment::batch_digest`] of what is stored.
    pub batch_digest: String,
    /// The segment's last checkpoint as a signed note, with the collector's cosignature if it can vouch for it; absent for
    /// a segment of version 1, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    #[serde(default)]
    pub advice: Advice,
}

impl SegmentAck {
    /// That these events are stored, and nothing besides.
    pub fn new(origin: Origin, first_seq: u64, last_seq: u64, batch_digest: String) -> Self {
        Self { origin, first_seq, last_seq, batch_digest, checkpoint: None, advice: Advice::default() }
    }

    /// Whether it is for these events: what only a collector that stored this very segment can say.
    pub fn is_of(&self, origin: &Origin, first_seq: u64, last_seq: u64, batch_digest: &str) -> bool {
        (&self.origin, self.first_seq, self.last_seq, &*self.batch_digest)
            == (origin, first_seq, last_seq, batch_digest)
    }
}

/// What the collector asks an agent to do; the agent keeps within its own bounds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Advice {
    /// How old a segment should grow before it is sealed, milliseconds; at most [`LONGEST_ADVISED`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_after_ms: Option<u64>,
    /// Leaves are missing that will never come: the tree proves nothing any more, and another epoch should begin.
    #[serde(default)]
    pub begin_epoch: bool,
}

/// What a log's tree is, while nothing is shipped: an idle host's sign of life. It needs no event to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPost {
    /// A checkpoint as a signed note.
    pub note: String,
    /// The sequence number of the first of `leaves`: behind the last event that the collector has acknowledged.
    pub first_seq: u64,
    /// The hashes of the leaves from there to the checkpoint's size, as hex; at most [`MAX_POSTED_LEAVES`]. They prove that
    /// the tree goes on from what the collector knows.
    pub leaves: Vec<String>,
}

/// The collector has seen the checkpoint, knows nothing against it, and keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAck {
    /// The note with the collector's cosignature.
    pub checkpoint: String,
    #[serde(default)]
    pub advice: Advice,
}

/// "From here on this key signs my log." Sent before the first segment of each epoch; the same request again changes
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The epoch's key, under the log's name at that epoch.
    pub key: VerifyingKey,
    /// The sequence number of the epoch's first event.
    pub first_seq: u64,
    /// The statement by which the key before names this one ([`crate::evidence::rotation`]), of a key that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
}

/// The key is known, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAck {
    /// The key by which the collector cosigns.
    pub witness: VerifyingKey,
}

/// The collector has the hold where approvers find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldAck {
    pub approval_id: ApprovalId,
}

/// "Is there a decision for any of these?"
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollRequest {
    pub origin: Origin,
    pub open: Vec<ApprovalId>,
    pub wait_ms: u64,
}

/// The decisions that have come so far; the agent checks each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PollResponse {
    pub decisions: Vec<PolledDecision>,
}

/// One signed statement, and the hold that the collector says it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolledDecision {
    pub approval_id: ApprovalId,
    pub signed: SignedStatement,
}

/// "Certify this key of mine." The only request that a peer without certificate may make, with a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// Serves once. Absent when the connection's certificate says who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A certificate signing request, as PEM; of its contents only the key counts.
    pub csr: String,
}

/// The host's certificate: it says which tenant and host this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateAck {
    /// As PEM.
    pub certificate: String,
    /// The authority that certifies collectors and agents, as PEM.
    pub authority: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

/// What the agent can do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The peer is not an agent. An operator must mend it.
    Forbidden,
    /// The other side speaks another version. An operator must mend it.
    Version,
    /// The request cannot be read. The agent keeps the bytes, and says so.
    Malformed,
    /// Other events stand at this place of the log: a fork. The agent keeps the bytes, and says so.
    Conflict,
    /// The signature or the root is not that of these leaves, or the tree does not go on from what was witnessed. The agent
    /// keeps the bytes, and says so.
    Unproven,
    /// The epoch's key is not known. The agent makes it known, and tries again.
    UnknownKey,
    /// The store cannot take it now. The agent tries again.
    Unavailable,
}

impl Reason {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Reason::Forbidden | Reason::UnknownKey => 403,
            Reason::Version | Reason::Malformed => 400,
            Reason::Conflict | Reason::Unproven => 409,
            Reason::Unavailable => 503,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_passing(self) -> bool {
        matches!(self, Reason::Unavailable)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Forbidden => "forbidden",
            Reason::Version => "another wire version",
            Reason::Malformed => "malformed",
            Reason::Conflict => "conflict",
            Reason::Unproven => "unproven",
            Reason::UnknownKey => "unknown key",
            Reason::Unavailable => "unavailable",
        })
    }
}
