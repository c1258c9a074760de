//! The record: what is written of each call, and of the agent's own life. A [`Body`] comes in, an [`Event`]
//! with its place in the log goes out as canonical bytes (RFC 8785), which are what is stored, shipped,
//! hashed and shown. Payloads are strings inside them, so nothing in a payload is ever read as a number.
//!
//! `T` is text that a job may have chosen. The agent writes `Event<Masked<String>>`; since a `Masked` cannot
//! be made from outside, nothing unmasked can be written. Readers get `Event<String>`.

mod account;
mod labels;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use account::{Completeness, Connect, ConnectSums, Gap};
pub use labels::{
    CallResult, ConnectReason, ConnectVerdict, Direction, FlowEnd, GapReason, HoldEnd, MessageLabel,
    Treatment,
};

use crate::ids::{ApprovalId, Boot, CallId, FlowId, Origin};
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
    pub v: u32,
    pub tenant: String,
    pub host: String,
    pub origin: Origin,
    pub boot: Boot,
    /// Dense in its origin, from 0.
    pub seq: u64,
    /// Wall clock, microseconds since 1970 (below 2^53 until the year 2255).
    pub time_us: u64,
    pub body: Body<T>,
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
    pub call_id: CallId,
    pub flow_id: FlowId,
    pub caller: Arc<Caller<T>>,
    pub server: Server<T>,
    pub mcp: Mcp<T>,
    pub verdict: Verdict,
    /// The params, masked.
    pub payload: Payload<T>,
    pub durability: Durability,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<ApprovalId>,
}

/// Who made a call: what the kernel and /proc said of the process that connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caller<T> {
    pub pid: u32,
    /// Clock ticks since the host's boot (/proc/PID/stat, field 22); with `pid` it names a process.
    pub start_time: Option<u64>,
    pub uid: u32,
    pub gid: u32,
    pub comm: T,
    pub executable: T,
    pub command_line: T,
    pub cgroup: T,
    pub job: Job<T>,
    /// False when the process was gone before it could be read: then only what the kernel said is there.
    pub seen_alive: bool,
    /// From which processes it comes, the nearest first, as far as they are known.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Ancestor<T>>,
    /// Of the container that it runs in; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// The number of its network namespace, as `/proc/PID/ns/net` shows it; 0 is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub netns: u32,
    /// The job under which its connects are counted (see [`Connect::job_key`]); empty when not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_key: String,
}

/// Events are canonical: what is not known is left out, so that those of before these fields read back.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A process that [`Caller`] comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor<T> {
    pub pid: u32,
    /// Clock ticks since the host's boot; with `pid` it names a process.
    pub start_time: Option<u64>,
    pub executable: T,
}

/// The CI job, as the process's environment names it. Later work proves it; this only reads it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Job<T> {
    /// `github`, `gitlab`, `jenkins`, or empty.
    pub provider: String,
    pub repository: T,
    pub workflow: T,
    pub run_id: T,
    pub job: T,
    pub actor: T,
    pub reference: T,
    pub commit: T,
    pub runner: T,
}

/// Where a connection went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server<T> {
    /// The address that the client dialled.
    pub address: String,
    pub port: u16,
    /// The name that the proof is for; without proof, the address.
    pub name: T,
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

/// The MCP side of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mcp<T> {
    pub method: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<T>,
    /// The JSON text of the id; absent for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<T>,
    /// A pseudonym: the id itself would let its reader take the session over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<T>,
}

/// Masked content.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Payload<T> {
    pub text: T,
    /// Bytes of the clear content.
    pub bytes: u64,
    /// Whether `text` is less than the whole.
    pub truncated: bool,
    /// What was masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<Span>,
}

/// See [`Body::Decision`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord<T> {
    pub call_id: CallId,
    pub approval_id: ApprovalId,
    pub decision: HoldEnd,
    /// Who signed: the principal of the allowed-signers file. Empty when nobody did.
    pub approver: T,
    /// The signing key's SHA-256 fingerprint.
    pub key: String,
    pub justification: T,
    pub ticket: T,
    /// When the approver says to have signed, microseconds since 1970.
    pub signed_us: Option<u64>,
    /// The signed statement and its signature, so that anybody can check them again.
    pub statement: T,
    pub signature: T,
}

/// See [`Body::Message`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message<T> {
    pub flow_id: FlowId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    pub direction: Direction,
    /// The method; empty for a response, or for an HTTP exchange that is not MCP.
    pub method: T,
    pub label: MessageLabel,
    pub payload: Payload<T>,
}

/// See [`Body::Outcome`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome<T> {
    pub call_id: CallId,
    pub result: CallResult,
    /// The upstream's HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// The JSON-RPC error's code, if the answer was an error.
    pub error_code: Option<i64>,
    /// From the request's last byte to the answer's, microseconds of the monotonic clock; absent when unknown.
    pub duration_us: Option<u64>,
    /// The result or error, masked.
    pub payload: Payload<T>,
}

/// See [`Body::Flow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow<T> {
    pub flow_id: FlowId,
    pub caller: Arc<Caller<T>>,
    pub server: Server<T>,
    /// The name that the client asked for in its ClientHello, if any.
    pub sni: T,
    pub treatment: Treatment,
    pub end: FlowEnd,
    /// Bytes from the client and to it, above TLS when it was terminated.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration_us: u64,
    /// What the kernel decided, of a connection that it counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
}

/// See [`Body::Agent`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentEvent<T> {
    /// `agent.started`, `agent.stopped`, `flow.unattributed`, `spool.torn` ...
    pub name: String,
    pub detail: BTreeMap<String, T>,
}

/// Canonical bytes could not be made: a fault of Weir's.
#[derive(Debug, thiserror::Error)]
#[error("the event has no canonical form: {0}")]
pub struct CanonicalError(#[from] serde_json::Error);

impl<T: Recordable> Event<T> {
    /// The bytes that are stored, shipped and hashed (RFC 8785).
    pub fn canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        Ok(serde_json_canonicalizer::to_vec(self)?)
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
        let event: Self = serde_json::from_slice(canonical)?;
        if event.v != VERSION {
            return Err(ReadError::Version(event.v));
        }
        if serde_json_canonicalizer::to_vec(&event)? != canonical {
            return Err(ReadError::NotCanonical);
        }
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{MaskKey, Masker};

    fn event() -> Written {
        let masker = Masker::new(MaskKey::new([1; 32]));
        let (text, masked) = masker.json(r#"{"b":1,"a":12345678901234567890123,"password":"x"}"#);
        Event {
            v: VERSION,
            tenant: "t".into(),
            host: "h".into(),
            origin: Origin::from_random([1; 16]),
            boot: Boot::from_random([2; 16]),
            seq: 9,
            time_us: 1_790_000_000_000_000,
            body: Body::Outcome(Outcome {
                call_id: CallId::from_random([3; 16]),
                result: CallResult::Ok,
                http_status: Some(200),
                error_code: None,
                duration_us: Some(12),
                payload: Payload { text, bytes: 50, truncated: false, masked },
            }),
        }
    }

    #[test]
    fn an_event_reads_back_from_its_canonical_bytes() {
        let bytes = event().canonical().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(
            text.starts_with(r#"{"body":{"call_id":"#) && text.contains("12345678901234567890123"),
            "{text}"
        );
        let read = Stored::read(&bytes).unwrap();
        assert_eq!((read.seq, read.body.kind()), (9, "outcome"));
    }

    #[test]
    fn events_of_before_connects_were_accounted_for_read_back() {
        let caller = r#""caller":{"cgroup":"/job","comm":"node","command_line":"node","executable":"/bin/node","gid":1,"job":{"actor":"","commit":"","job":"","provider":"","reference":"","repository":"","run_id":"","runner":"","workflow":""},"pid":7,"seen_alive":true,"start_time":9,"uid":1}"#;
        let server = r#""server":{"address":"::1","name":"::1","port":1,"proof":"unproven"}"#;
        let id = "0".repeat(32);
        let flow = format!(
            r#"{{"bytes_down":2,"bytes_up":1,{caller},"duration_us":3,"end":"closed","flow_id":"{id}","kind":"flow",{server},"sni":"","treatment":"opaque"}}"#
        );
        let intent = format!(
            r#"{{"call_id":"{id}",{caller},"durability":"strict","flow_id":"{id}","kind":"intent","mcp":{{"method":"m"}},"payload":{{"bytes":2,"text":"{{}}","truncated":false}},{server},"verdict":{{"action":"allow","policy_digest":"d","rule":"r"}}}}"#
        );
        for body in [flow, intent] {
            let bytes = format!(
                r#"{{"body":{body},"boot":"{id}","host":"h","origin":"{id}","seq":9,"tenant":"t","time_us":5,"v":1}}"#
            );
            let caller = match Stored::read(bytes.as_bytes()).unwrap().body {
                Body::Intent(intent) => intent.caller,
                Body::Flow(flow) => {
                    assert_eq!(flow.connect, None);
                    flow.caller
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((caller.pid, caller.parents.len(), caller.netns), (7, 0, 0));
            assert_eq!((caller.container_id.as_str(), caller.job_key.as_str()), ("", ""));
        }
    }

    #[test]
    fn an_account_reads_back_with_each_sum_under_its_verdict() {
        let masker = Masker::new(MaskKey::new([1; 32]));
        let mut kernel = ConnectSums::default();
        for (n, verdict) in (1..).zip(ConnectVerdict::ALL) {
            *kernel.of_mut(*verdict) = n;
        }
        assert_eq!(kernel.total(), 28);
        let sums = Completeness {
            job_key: "e-j".into(),
            name: masker.text("/job"),
            closed: true,
            kernel,
            lost: ConnectSums::default(),
            in_flight: 2,
            tables: BTreeMap::from([("tasks_full".into(), 3)]),
        };
        let gap = Gap {
            job_key: "e-j".into(),
            verdict: ConnectVerdict::Passed,
            reason: GapReason::RingFull,
            count: 4,
            detail: BTreeMap::new(),
        };
        let written = |body| Written { body, ..event() }.canonical().unwrap();
        let (sums, gap) = (written(Body::Completeness(sums)), written(Body::Gap(gap)));
        let text = String::from_utf8(sums.clone()).unwrap();
        let kernel = r#""kernel":{"datagram":6,"failed":5,"passed":2,"redirected":1,"refused":3,"socket":7,"unanswered":4}"#;
        assert!(text.contains(kernel) && text.contains(r#""kind":"completeness""#), "{text}");
        assert_eq!(Stored::read(&sums).unwrap().body.kind(), "completeness");
        let Body::Gap(gap) = Stored::read(&gap).unwrap().body else { panic!() };
        assert_eq!((gap.verdict.as_str(), gap.reason.as_str(), gap.count), ("passed", "ring_full", 4));
    }

    #[test]
    fn bytes_that_are_not_canonical_or_of_another_version_are_refused() {
        let bytes = event().canonical().unwrap();
        let spaced = [b" ", &bytes[..]].concat();
        assert!(matches!(Stored::read(&spaced), Err(ReadError::NotCanonical)));
        let newer = String::from_utf8(bytes).unwrap().replace("\"v\":1}", "\"v\":2}");
        assert!(matches!(Stored::read(newer.as_bytes()), Err(ReadError::Version(2))));
        assert!(matches!(Stored::read(b"{}"), Err(ReadError::Malformed(_))));
    }
}
