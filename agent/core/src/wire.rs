//! What agent and collector say to each other: one versioned contract, HTTP/1.1 over a unix socket (and later
//! over TLS). The agent's identity is the connection's (peer credentials), never what a body says.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/segments` | a sealed segment's bytes ([`crate::segment`]) | [`SegmentAck`] |
//! | `POST /v1/holds` | a [`crate::approval::Hold`] | [`HoldAck`] |
//! | `POST /v1/poll` | [`PollRequest`] | [`PollResponse`], after a decision came or `wait_ms` passed |
//!
//! Anything but 200 carries a [`Refusal`]. Every request names [`VERSION`] in [`VERSION_HEADER`].

use serde::{Deserialize, Serialize};

use crate::approval::SignedStatement;
use crate::ids::{ApprovalId, Origin};

/// The contract's version. Each side refuses another one.
pub const VERSION: &str = "1";
/// The header that carries it.
pub const VERSION_HEADER: &str = "weir-wire-version";

/// Where a sealed segment goes.
pub const SEGMENTS: &str = "/v1/segments";
/// Where a hold goes.
pub const HOLDS: &str = "/v1/holds";
/// The long poll.
pub const POLL: &str = "/v1/poll";

/// The longest that a collector lets a poll wait, milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;
/// The most holds that one poll may name.
pub const MAX_OPEN_HOLDS: usize = 10_000;

/// The collector has the segment's events in ClickHouse, and has read them back. The agent may trim them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentAck {
    pub origin: Origin,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    /// [`crate::segment::batch_digest`] of what is stored.
    pub batch_digest: String,
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
    /// The store cannot take it now. The agent tries again.
    Unavailable,
}

impl Reason {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Reason::Forbidden => 403,
            Reason::Version | Reason::Malformed => 400,
            Reason::Conflict => 409,
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
            Reason::Unavailable => "unavailable",
        })
    }
}
