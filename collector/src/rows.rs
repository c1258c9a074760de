//! Rows: stored events, holds and what the witness keeps come in, rows of the tables go out. The only
//! code that knows the columns; `docs/schema.md` tells them to people. Every column of an event but the last few
//! derives from its canonical bytes alone, so anybody can derive them again and compare.

mod enrol;
mod event;
mod evidence;
mod finding;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use weir_core::approval::{Answer, Hold, SignedStatement, Statement};

pub use enrol::{CertificateRow, RevocationRow, TokenRow};
pub use event::{EventRow, Place};
pub use evidence::{BatchRow, CheckpointRow, ClaimRow, IdentityRow, PolicyRow, TombstoneRow};
pub use finding::FindingRow;

/// What the collector knows of the batch that an event came in.
#[derive(Debug, Clone)]
pub struct Batch {
    /// 0 for what was written before there were trees.
    pub epoch: u32,
    pub first_seq: u64,
    /// [`weir_core::segment::batch_digest`].
    pub digest: String,
    /// When the segment was sealed, by its checkpoint; of epoch 0 when the collector took it. Microseconds since 1970.
    pub sealed_us: u64,
    /// The peer that sent it, by the kernel's word ([`crate::agent::NO_UID`] for one that came with a certificate).
    pub agent_uid: u32,
    /// Who that is: [`crate::agent::Agent::identity`].
    pub agent_identity: String,
    /// Microseconds since 1970, the collector's clock.
    pub ingested_us: i64,
}

/// A row of `holds`.
#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub struct HoldRow {
    pub approval_id: String,
    pub call_id: String,
    pub tenant: String,
    pub origin: String,
    pub host_name: String,
    pub created_at: i64,
    pub expires_at: i64,
    pub policy_rule: String,
    pub server_name: String,
    pub gen_ai_tool_name: String,
    pub cicd_pipeline_task_name: String,
    /// The whole hold as JSON: what a statement repeats.
    pub hold: String,
    pub agent_uid: u32,
    pub ingested_at: i64,
}

/// A row of `decisions`.
#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub struct DecisionRow {
    pub approval_id: String,
    pub answer: String,
    pub approver: String,
    pub justification: String,
    pub ticket: String,
    pub issued_at: i64,
    pub statement: String,
    pub signature: String,
    /// Who ran the command, for what that is worth: the signature is the proof.
    pub submitted_by: String,
    pub submitted_at: i64,
}

/// The last moment that ClickHouse's DateTime64(6) and its months can hold: the end of 2298.
const LAST_TIME_US: u64 = 10_382_000_000_000_000;

/// A later time is told as the last one; refusing it would let one odd clock hold up a whole log. The canonical
/// bytes have the true one.
pub(crate) fn time(us: u64) -> i64 {
    us.min(LAST_TIME_US).cast_signed()
}

impl HoldRow {
    pub fn of(hold: &Hold<String>, agent_uid: u32, ingested_us: i64) -> Result<Self, serde_json::Error> {
        Ok(Self {
            approval_id: hold.approval_id.to_string(),
            call_id: hold.call_id.to_string(),
            tenant: hold.tenant.clone(),
            origin: hold.origin.to_string(),
            host_name: hold.host.clone(),
            created_at: time(hold.created_us),
            expires_at: time(hold.expires_us),
            policy_rule: hold.rule.clone(),
            server_name: hold.server.name.clone(),
            gen_ai_tool_name: hold.tool.clone(),
            cicd_pipeline_task_name: hold.requester.job.job.clone(),
            hold: serde_json::to_string(hold)?,
            agent_uid,
            ingested_at: ingested_us,
        })
    }
}

impl DecisionRow {
    pub fn of(
        statement: &Statement,
        signed: SignedStatement,
        submitted_by: String,
        submitted_us: i64,
    ) -> Self {
        Self {
            approval_id: statement.hold.approval_id.to_string(),
            answer: match statement.answer {
                Answer::Approve => "approve",
                Answer::Refuse => "refuse",
            }
            .to_owned(),
            approver: statement.approver.clone(),
            justification: statement.justification.clone(),
            ticket: statement.ticket.clone(),
            issued_at: time(statement.issued_us),
            statement: signed.statement,
            signature: signed.signature,
            submitted_by,
            submitted_at: submitted_us,
        }
    }
}
