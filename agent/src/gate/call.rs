//! One call between its intent and its outcome.

use std::time::Instant;

use http::request::Parts;
use weir_core::ids::{ApprovalId, CallId};
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::{Message, RequestId};
use weir_core::policy::{Action, Call, Verdict};
use weir_core::record::{CallResult, Durability, HoldEnd, Intent, Marks, Mcp, Outcome, Payload};

use super::permit::Recorded;
use super::rewrite::Wants;
use super::{Flow, Gate, Server};
use crate::ledger::{Intended, LedgerError, MAX_OPEN_RECORDS, OpenRecord};
use crate::random;
use crate::share::Taken;

/// The most bytes of a method, a tool's name or a header that are recorded.
pub(super) const MAX_NAME: usize = 512;

/// A call whose intent is recorded as its rule wants it, and which has not gone upstream.
pub(super) struct OpenCall {
    /// Of a call that policy holds, and of no other.
    pub asks: Option<Asks>,
    intent: Recorded,
    waiting: WaitingCall,
}

/// What a held call asks an approver for.
pub(super) struct Asks {
    pub approval_id: ApprovalId,
    pub tool: Masked<String>,
    pub arguments: Payload<Masked<String>>,
}

/// A call that waits for its answer.
pub(super) struct WaitingCall {
    /// What becomes of its answer on the way.
    pub wants: Wants,
    pub call_id: CallId,
    /// Absent for notifications.
    pub request_id: Option<RequestId>,
    pub verdict: Verdict,
    started: Instant,
    record: OpenRecord<Intended>,
    #[expect(dead_code, reason = "held until the call is closed")]
    room: Taken,
}

impl Gate {
    /// Opens a call's record, asks policy, and writes the intent.
    pub(super) async fn open_call(
        &self,
        flow: &Flow,
        parts: &Parts,
        message: &Message,
        started: Instant,
    ) -> Result<OpenCall, LedgerError> {
        let room = flow.share.call().ok_or(LedgerError::TooManyOpen(MAX_OPEN_RECORDS / 2))?;
        let call_id = CallId::from_random(random::bytes());
        let record = self.ledger.open_record(call_id.clone(), flow.id.clone())?;
        let method = message.method().unwrap_or_default();
        let tool = message.tool();
        let Server { name: server, also, .. } = &flow.server;
        let (verdict, durability) = self.policy.decide(Call { server, also, method, tool });
        let name = |text: &str| self.masker.name(text, MAX_NAME);
        let revision = parts.headers.get("mcp-protocol-version").and_then(|value| value.to_str().ok());
        let tool_name = tool.map(name);
        let payload = self.payload_of_json(message.content());
        let asks = (verdict.action == Action::Hold).then(|| Asks {
            approval_id: ApprovalId::from_random(random::bytes()),
            tool: tool_name.clone().unwrap_or_default(),
            arguments: payload.clone(),
        });
        let intent = Intent {
            call_id: call_id.clone(),
            flow_id: flow.id.clone(),
            caller: flow.caller.clone(),
            server: flow.server.record.clone(),
            mcp: Mcp {
                method: name(method),
                tool: tool_name,
                request_id: message.id().map(|id| name(id.as_json())),
                session: self.session(parts),
                protocol_version: revision.map(name),
                marks: Marks::default(),
            },
            verdict: verdict.clone(),
            payload,
            durability,
            approval_id: asks.as_ref().map(|asks| asks.approval_id.clone()),
        };
        let (record, intent) = match durability {
            Durability::Strict => {
                let (record, intent) = record.intent(intent).await?;
                (record, Recorded::Durable(intent))
            }
            Durability::BestEffort => {
                let (record, intent) = record.queue(intent).await?;
                (record, Recorded::Queued(intent))
            }
        };
        let request_id = message.id().cloned();
        let waiting = WaitingCall {
            wants: self.wants(flow, message),
            call_id,
            request_id,
            verdict,
            started,
            record,
            room,
        };
        Ok(OpenCall { asks, intent, waiting })
    }
}

impl OpenCall {
    pub fn call_id(&self) -> &CallId {
        &self.waiting.call_id
    }

    pub fn verdict(&self) -> &Verdict {
        &self.waiting.verdict
    }

    pub fn wants(&self) -> Wants {
        self.waiting.wants
    }

    pub fn request_id(&self) -> Option<&RequestId> {
        self.waiting.request_id.as_ref()
    }

    /// Parts the proof that the intent is recorded from the call that waits for its answer.
    pub fn split(self) -> (WaitingCall, Recorded) {
        (self.waiting, self.intent)
    }

    /// It never goes upstream: policy, or the time, or the client said so.
    pub fn refused(self, gate: &Gate, reason: &str) {
        self.ended(gate, CallResult::Refused, reason);
    }

    /// The hold ended without an approval.
    pub fn not_approved(self, gate: &Gate, end: HoldEnd, reason: &str) {
        let result = match end {
            HoldEnd::Expired => CallResult::Expired,
            HoldEnd::ClientGone => CallResult::ClientGone,
            _ => CallResult::Refused,
        };
        self.ended(gate, result, reason);
    }

    fn ended(self, gate: &Gate, result: CallResult, reason: &str) {
        let payload = gate.payload_of_text(reason);
        self.waiting.close(result, None, None, payload);
    }
}

impl WaitingCall {
    /// The call's own answer has come.
    pub fn answered(self, gate: &Gate, http_status: u16, message: &Message) {
        let (result, error_code) = match message {
            Message::Response { result: Err(error), .. } => (CallResult::Error, Some(error.code)),
            Message::Response { result: Ok(result), .. } => {
                (if result.is_error { CallResult::ToolError } else { CallResult::Ok }, None)
            }
            _ => (CallResult::Unparsed, None),
        };
        let payload = gate.payload_of_json(message.content());
        self.close(result, Some(http_status), error_code, payload);
    }

    /// Writes the outcome.
    pub fn close(
        self,
        result: CallResult,
        http_status: Option<u16>,
        error_code: Option<i64>,
        payload: Payload<Masked<String>>,
    ) {
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).ok();
        let call_id = self.call_id;
        let outcome =
            Outcome { http_status, error_code, duration_us, payload, ..Outcome::new(call_id, result) };
        // Handed to the writer at once; the answer need not wait for the disk.
        drop(self.record.close(outcome));
    }
}
