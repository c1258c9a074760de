//! What the gate tells the record besides calls: messages that call nothing, exchanges that are no MCP, requests
//! that it turned away. All text goes out masked.

use http::{Method, Uri};
use weir_core::ids::CallId;
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::Message;
use weir_core::record::{self, Direction, MessageLabel};

use super::call::MAX_NAME;
use super::{Flow, Gate};
use crate::ledger::LedgerError;

impl Gate {
    /// A request's first line, for the record.
    pub(super) fn line(&self, method: &Method, target: &Uri) -> Masked<String> {
        let method = self.masker.name(method.as_str(), MAX_NAME);
        method.then(&Masked::literal(" ")).then(&self.masker.target(&target.to_string()))
    }

    pub(super) async fn note_refused(
        &self,
        flow: &Flow,
        label: MessageLabel,
        text: Masked<String>,
    ) -> Result<(), LedgerError> {
        let payload = self.payload_of_masked(text);
        self.note(flow, None, Direction::ClientToServer, "", label, payload).await
    }

    pub(super) async fn note_message(
        &self,
        flow: &Flow,
        call: Option<&CallId>,
        direction: Direction,
        message: &Message,
    ) -> Result<(), LedgerError> {
        let label = match message {
            Message::Request { .. } => MessageLabel::Request,
            Message::Notification { .. } => MessageLabel::Notification,
            Message::Response { .. } => MessageLabel::Response,
        };
        let method = message.method().unwrap_or_default();
        self.note(flow, call, direction, method, label, self.payload_of_json(message.content())).await
    }

    pub(super) async fn note(
        &self,
        flow: &Flow,
        call: Option<&CallId>,
        direction: Direction,
        method: &str,
        label: MessageLabel,
        payload: record::Payload<Masked<String>>,
    ) -> Result<(), LedgerError> {
        let method = self.masker.name(method, MAX_NAME);
        let (flow_id, call_id) = (flow.id.clone(), call.cloned());
        let message =
            record::Message { call_id, ..record::Message::new(flow_id, direction, method, label, payload) };
        self.ledger.note(message).await
    }

    pub(super) fn payload_of_json(&self, text: &str) -> record::Payload<Masked<String>> {
        self.payload_of_part(text, text.len())
    }

    /// The payload of a content of `bytes` bytes, of which the first ones are here.
    pub(super) fn payload_of_part(&self, text: &str, bytes: usize) -> record::Payload<Masked<String>> {
        let limit = self.limits.record_payload;
        let (whole, masked) = self.masker.json_within(text, limit);
        // What stands for a secret may be longer than the secret.
        let truncated = limit < text.len().max(whole.as_str().len()) || text.len() < bytes;
        record::Payload { text: whole.truncate(limit), bytes: bytes as u64, truncated, masked, digest: None }
    }

    pub(super) fn payload_of_text(&self, text: &str) -> record::Payload<Masked<String>> {
        self.payload_of_masked(self.masker.text(text))
    }

    pub(super) fn payload_of_masked(&self, text: Masked<String>) -> record::Payload<Masked<String>> {
        let bytes = text.as_str().len();
        let kept = text.truncate(self.limits.record_payload);
        let truncated = kept.as_str().len() < bytes;
        record::Payload { text: kept, bytes: bytes as u64, truncated, ..record::Payload::default() }
    }
}
