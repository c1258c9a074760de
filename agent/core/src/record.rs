//! The record: what is written of each call, and of the agent's own life. A [`Body`] comes in, an [`Event`]
//! with its place in the log goes out as canonical bytes (RFC 8785), which are what is stored, shipped,
//! hashed and shown. Payloads are strings inside them, so nothing in a payload is ever read as a number.
//!
//! The members of these types are declared in the order of their names, which is that of the canonical bytes: so these are
//! written as they come, and nothing has to be put in order.
//!
//! `T` is text that a job may have chosen. The agent writes `Event<Masked<String>>`; since a `Masked` cannot
//! be made from outside, nothing unmasked can be written. Readers get `Event<String>`.

mod account;
mod labels;
mod loaded;
mod mcp;
mod read;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use account::{Completeness, Connect, ConnectSums, Gap};
pub use labels::{
    CallResult, ConnectReason, ConnectVerdict, Direction, FlowEnd, FlowReason, GapReason, HoldEnd,
    MessageLabel, Oddity, Treatment, Unread,
};
pub use loaded::{MAX_RULES, POLICY_LOADED, RulesTold, policy_loaded, rules_told};
pub use mcp::{Marks, Mcp};

pub use crate::canonical::Scribe;
use crate::ids::{ApprovalId, Boot, CallId, FlowId, MessageId, Origin};
use crate::mask::{Masked, Recordable, Span};
pub use crate::policy::Durability;
use crate::policy::Verdict;

/// The version of the envelope. A reader refuses one that it does not know.
pub const VERSION: u32 = 1;

/// What the agent writes.
pub type Written = Event<Masked<String>>;
/// What a reader gets.
pub type Stored = Event<String>;

/// One event with its place in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event<T> {
    pub body: Body<T>,
    pub boot: Boot,
    pub host: String,
    pub origin: Origin,
    /// Dense in its origin, from 0.
    pub seq: u64,
    pub tenant: String,
    /// Wall clock, microseconds since 1970 (below 2^53 until the year 2255).
    pub time_us: u64,
    pub v: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Body<T> {
    /// A call is known and decided on; written before anything goes upstream.
    Intent(Box<Intent<T>>),
    /// A hold ended.
    Decision(DecisionRecord<T>),
    /// A message that is no call: from the server, or a client's response to it.
    Message(Message<T>),
    /// How a call ended; exactly one for each intent.
    Outcome(Outcome<T>),
    /// A connection ended.
    Flow(Flow<T>),
    /// The agent's own life.
    Agent(AgentEvent<T>),
    /// What the kernel counted of a job's connects: now and then, and when the job ends.
    Completeness(Completeness<T>),
    /// Connects that were counted and will have no flow record.
    Gap(Gap<T>),
}

impl<T> Body<T> {
    /// The `kind` column.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Intent(_) => "intent",
            Body::Decision(_) => "decision",
            Body::Message(_) => "message",
            Body::Outcome(_) => "outcome",
            Body::Flow(_) => "flow",
            Body::Agent(_) => "agent",
            Body::Completeness(_) => "completeness",
            Body::Gap(_) => "gap",
        }
    }
}

/// See [`Body::Intent`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<ApprovalId>,
    pub call_id: CallId,
    pub caller: Arc<Caller<T>>,
    pub durability: Durability,
    pub flow_id: FlowId,
    pub mcp: Mcp<T>,
    /// The params, masked.
    pub payload: Payload<T>,
    pub server: Server<T>,
    pub verdict: Verdict,
}

/// Who made a call: what the kernel and /proc said of the process that connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caller<T> {
    pub cgroup: T,
    pub comm: T,
    pub command_line: T,
    /// Of the container that it runs in; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    pub executable: T,
    pub gid: u32,
    pub job: Job<T>,
    /// The job under which its connects are counted (see [`Connect::job_key`]); empty when not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_key: String,
    /// The number of its network namespace, as `/proc/PID/ns/net` shows it; 0 is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub netns: u32,
    /// From which processes it comes, the nearest first, as far as they are known.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Ancestor<T>>,
    pub pid: u32,
    /// False when the process was gone before it could be read: then only what the kernel said is there.
    pub seen_alive: bool,
    /// Clock ticks since the host's boot (/proc/PID/stat, field 22); with `pid` it names a process.
    pub start_time: Option<u64>,
    pub uid: u32,
}

impl<T: Default> Caller<T> {
    /// One of which only what the kernel says is known: the process, its user and group, and its name.
    pub fn unseen(pid: u32, (uid, gid): (u32, u32), comm: T) -> Self {
        Self {
            pid,
            start_time: None,
            uid,
            gid,
            comm,
            executable: T::default(),
            command_line: T::default(),
            cgroup: T::default(),
            job: Job::default(),
            seen_alive: false,
            parents: Vec::new(),
            container_id: String::new(),
            netns: 0,
            job_key: String::new(),
        }
    }
}

/// Events are canonical: what is not known is left out, so that those of before these fields read back.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A process that [`Caller`] comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor<T> {
    pub executable: T,
    pub pid: u32,
    /// Clock ticks since the host's boot; with `pid` it names a process.
    pub start_time: Option<u64>,
}

/// The CI job, as the process's environment names it. Later work proves it; this only reads it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Job<T> {
    pub actor: T,
    pub commit: T,
    pub job: T,
    /// `github`, `gitlab`, `jenkins`, or empty.
    pub provider: String,
    pub reference: T,
    pub repository: T,
    pub run_id: T,
    pub runner: T,
    pub workflow: T,
}

/// Where a connection went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server<T> {
    /// The address that the client dialled.
    pub address: String,
    /// The name that the proof is for; without proof, the address.
    pub name: T,
    pub port: u16,
    pub proof: Proof,
}

/// What a server's name rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// Its certificate, verified by the agent.
    Certificate,
    /// Nothing.
    Unproven,
}

/// Masked content.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Payload<T> {
    /// Bytes of the clear content.
    pub bytes: u64,
    /// Keyed digest of the whole clear content (`Masker::digest`), where `text` is not all of it to the letter:
    /// equal contents have equal ones, and nothing can be guessed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What was masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<Span>,
    pub text: T,
    /// Whether `text` is less than the whole.
    pub truncated: bool,
}

/// See [`Body::Decision`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord<T> {
    pub approval_id: ApprovalId,
    /// Who signed: the principal of the allowed-signers file. Empty when nobody did.
    pub approver: T,
    pub call_id: CallId,
    pub decision: HoldEnd,
    pub justification: T,
    /// The signing key's SHA-256 fingerprint.
    pub key: String,
    pub signature: T,
    /// When the approver says to have signed, microseconds since 1970.
    pub signed_us: Option<u64>,
    /// The signed statement and its signature, so that anybody can check them again.
    pub statement: T,
    pub ticket: T,
}

/// See [`Body::Message`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message<T> {
    /// Of a response to a server's request: that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    pub direction: Direction,
    /// The JSON-RPC error's code, of a response that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i64>,
    pub flow_id: FlowId,
    pub label: MessageLabel,
    #[serde(default = "Marks::default", skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks<T>,
    /// Of a server's request: what its answer names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The method; of a response, its request's where that is known. Empty for what is not MCP.
    pub method: T,
    pub payload: Payload<T>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<T>,
    /// The JSON text of the id, of a request or a response.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<T>,
    /// A pseudonym, as [`Mcp::session`].
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub session: Option<T>,
    /// Why it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
}

impl<T> Message<T> {
    /// A message of which nothing else is known.
    pub fn new(
        flow_id: FlowId,
        direction: Direction,
        method: T,
        label: MessageLabel,
        payload: Payload<T>,
    ) -> Self {
        Self {
            flow_id,
            call_id: None,
            direction,
            method,
            label,
            payload,
            message_id: None,
            answers: None,
            request_id: None,
            session: None,
            protocol_version: None,
            error_code: None,
            unread: None,
            marks: Marks::default(),
        }
    }
}

fn none<T>() -> Option<T> {
    None
}

/// See [`Body::Outcome`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome<T> {
    pub call_id: CallId,
    /// From the request's last byte to the answer's, microseconds of the monotonic clock; absent when unknown.
    pub duration_us: Option<u64>,
    /// The JSON-RPC error's code, if the answer was an error.
    pub error_code: Option<i64>,
    /// The upstream's HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    #[serde(default = "Marks::default", skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks<T>,
    /// The result or error, masked.
    pub payload: Payload<T>,
    pub result: CallResult,
    /// Why the answer was not read, of a call that ended as `unparsed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
}

impl<T: Default> Outcome<T> {
    /// The outcome of a call of which nothing more is known.
    pub fn new(call_id: CallId, result: CallResult) -> Self {
        Self {
            call_id,
            result,
            http_status: None,
            error_code: None,
            duration_us: None,
            payload: Payload::default(),
            unread: None,
            marks: Marks::default(),
        }
    }
}

/// See [`Body::Flow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow<T> {
    /// Whether its server was also asked over a connection that another flow of the same job had dialled. What `server` says was proven
    /// there, not longer before than a TLS session may be taken up again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub borrowed: bool,
    pub bytes_down: u64,
    /// Bytes from the client and to it, above TLS when it was terminated.
    pub bytes_up: u64,
    pub caller: Arc<Caller<T>>,
    /// What the kernel decided, of a connection that it counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
    pub duration_us: u64,
    pub end: FlowEnd,
    pub flow_id: FlowId,
    /// Why it was treated or ended so, where `treatment` and `end` do not say.
    #[serde(default, skip_serializing_if = "FlowReason::is_none")]
    pub reason: FlowReason,
    pub server: Server<T>,
    /// The name that the client asked for in its ClientHello, if any.
    pub sni: T,
    pub treatment: Treatment,
}

/// See [`Body::Agent`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentEvent<T> {
    pub detail: BTreeMap<String, T>,
    /// `agent.started`, `agent.stopped`, `flow.unattributed`, `spool.torn` ...
    pub name: String,
}

/// Canonical bytes could not be made: a fault of Weir's.
#[derive(Debug, thiserror::Error)]
#[error("the event has no canonical form: {0}")]
pub struct CanonicalError(#[from] serde_json::Error);

impl<T: Recordable> Event<T> {
    /// The bytes that are stored, shipped and hashed (RFC 8785).
    pub fn canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        Ok(crate::canonical::to_vec(self)?)
    }
}

/// An [`Event`] whose parts are somebody else's: what a writer of many makes of a body, without a copy of anything.
#[derive(Debug, Serialize)]
pub struct Placed<'a, T> {
    pub body: &'a Body<T>,
    pub boot: &'a Boot,
    pub host: &'a str,
    pub origin: &'a Origin,
    pub seq: u64,
    pub tenant: &'a str,
    pub time_us: u64,
    pub v: u32,
}

impl<T: Recordable> Placed<'_, T> {
    /// Writes [`Event::canonical`] behind what is in `out`. After an error nothing was written.
    pub fn append(&self, scribe: &mut Scribe, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
        Ok(scribe.append(self, out)?)
    }
}

/// Canonical bytes that are not an event of a known version. The sender is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("not an event: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the event has version {0}, and this program knows {VERSION}; bring both to one version")]
    Version(u32),
    #[error("the event's bytes are not in canonical form")]
    NotCanonical,
}

impl Stored {
    /// Reads an event back from its canonical bytes; other bytes with the same meaning are refused.
    pub fn read(canonical: &[u8]) -> Result<Self, ReadError> {
        if let Some(event) = read::by_its_kind(canonical) {
            return Ok(event);
        }
        let event: Self = serde_json::from_slice(canonical)?;
        if event.v != VERSION {
            return Err(ReadError::Version(event.v));
        }
        if !crate::canonical::are_of(canonical, &event) {
            return Err(ReadError::NotCanonical);
        }
        Ok(event)
    }
}

#[cfg(test)]
mod tests;
