//! The bounds that an operator may set, and the bounds on those.

use std::time::Duration;

use serde::Deserialize;

use super::duration;
use crate::spool::SEAL_BYTES;

/// Bounds on what a peer may make the agent do or keep.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request body that policy will read; a larger one is refused.
    pub request_body: usize,
    /// Bytes of one message from a server that is read; a larger one is passed on and recorded as unparsed.
    pub message: usize,
    /// Bytes of clear content that one record's payload is made from.
    pub record_payload: usize,
    /// Connections at a time, half of them of one job at most; past it new ones are closed.
    pub flows: usize,
    /// Calls that wait for a human at a time, half of them of one job at most; past it they are refused.
    pub holds: usize,
    /// Bytes of requests and answers that are kept in memory at a time, half of them of one job at most. Past it
    /// requests are refused, and answers passed on unread.
    pub buffered: usize,
    /// How long a client may take to send its first bytes or its TLS handshake, and may pause within a request.
    #[serde(deserialize_with = "duration")]
    pub client_timeout: Duration,
    /// How long a connection may stand without a request, the time for a request's head included.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// How long a connection to a server may take to stand.
    #[serde(deserialize_with = "duration")]
    pub upstream_timeout: Duration,
    /// How long a call waits for an answer that may still come on another stream than its own.
    #[serde(deserialize_with = "duration")]
    pub answer_timeout: Duration,
    /// How long an agent that was replaced may go on with the connections it has. Held calls end at their own deadline.
    #[serde(deserialize_with = "duration")]
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body: 4 << 20,
            message: 1 << 20,
            record_payload: 256 << 10,
            flows: 4096,
            holds: 1000,
            buffered: 256 << 20,
            client_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            upstream_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10 * 60),
            drain: Duration::from_secs(15 * 60),
        }
    }
}

/// The most connections at a time that can be configured.
const MAX_FLOWS: usize = 65_536;
/// The most bytes in memory that can be configured.
const MAX_BUFFERED: usize = 64 << 30;

impl Limits {
    pub(super) fn fault(&self) -> Option<&'static str> {
        let Self { request_body, message, record_payload, flows, holds, buffered, .. } = *self;
        if [request_body, message, record_payload, flows, holds].contains(&0) {
            Some("a limit of 0 would let nothing pass")
        } else if flows > MAX_FLOWS || holds > MAX_FLOWS {
            Some("flows and holds can be at most 65536")
        } else if buffered > MAX_BUFFERED || buffered / 2 < request_body.max(message) {
            Some("buffered must be at most 64 GiB, and at least twice request_body and message")
        } else {
            None
        }
    }
}

/// The spool's bounds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// A segment is sealed at this size...
    pub segment_bytes: usize,
    /// ... or at this age.
    #[serde(deserialize_with = "duration")]
    pub seal_after: Duration,
    /// ... or at this one, if there are heartbeats alone in it.
    #[serde(deserialize_with = "duration")]
    pub idle_seal_after: Duration,
    /// When nothing was written for so long, a heartbeat is.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// Past this, calls that cannot be recorded are refused.
    pub max_bytes: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            segment_bytes: SEAL_BYTES,
            seal_after: Duration::from_secs(1),
            idle_seal_after: Duration::from_secs(15 * 60),
            heartbeat: Duration::from_secs(60),
            max_bytes: 1 << 30,
        }
    }
}

/// More heartbeats than this would fill the log with them.
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(1);

impl Spool {
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.heartbeat < SHORTEST_HEARTBEAT {
            Some("heartbeat must be at least \"1s\"")
        } else if self.idle_seal_after < self.seal_after {
            Some("idle_seal_after must not be shorter than seal_after")
        } else {
            None
        }
    }
}
