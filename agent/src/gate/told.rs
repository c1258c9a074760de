//! What the gate tells the record besides calls: messages that call nothing, exchanges that are no MCP, requests
//! that it turned away. All text goes out masked.

use http::{Method, Uri};
use weir_core::ids::{CallId, MessageId};
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::{Message, RequestId};
use weir_core::record::{self, Direction, Marks, MessageLabel, Oddity, Unread};

use super::call::MAX_NAME;
use super::session::{Asked, Session};
use super::{Flow, Gate};
use crate::ledger::LedgerError;
use crate::random;

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

    /// A request that could not be read, and goes nowhere.
    pub(super) async fn note_unreadable(
        &self,
        flow: &Flow,
        session: &Session,
        why: Option<Unread>,
        text: Masked<String>,
    ) -> Result<(), LedgerError> {
        let about = (session, Direction::ClientToServer, None);
        self.note_unread(flow, about, MessageLabel::Unreadable, why, self.payload_of_masked(text)).await
    }

    /// A client's response to a request of the server's.
    pub(super) async fn note_response(
        &self,
        flow: &Flow,
        session: &Session,
        message: &Message,
    ) -> Result<(), LedgerError> {
        let asked = message.id().and_then(|id| session.answers(id));
        let label = match &asked {
            Some(asked) if asked.answered => MessageLabel::RepeatedResponse,
            Some(_) => MessageLabel::Response,
            None => MessageLabel::UnaskedResponse,
        };
        let mut record = self.describe_message(flow, session, Direction::ClientToServer, message, label);
        if let Some(asked) = asked {
            record.method = asked.method;
            record.call_id = asked.call;
            record.answers = Some(asked.message_id);
        }
        self.ledger.note(record).await
    }

    /// A server's request or notification. `call` is the one in whose answer it came, if only that can be meant.
    pub(super) async fn note_told(
        &self,
        flow: &Flow,
        session: &Session,
        call: Option<&CallId>,
        message: &Message,
    ) -> Result<(), LedgerError> {
        let (label, method) = match message {
            Message::Request { method, .. } => (MessageLabel::Request, method.as_str()),
            Message::Notification { method, .. } => (MessageLabel::Notification, method.as_str()),
            Message::Response { .. } => (MessageLabel::Response, ""),
        };
        let mut record = self.describe_message(flow, session, Direction::ServerToClient, message, label);
        if let Some(about) = message.about() {
            record.marks = self.marks(method, about);
            let of = |id: &Option<RequestId>, find: fn(&Session, &RequestId) -> Option<CallId>| {
                id.as_ref().and_then(|id| find(session, id))
            };
            record.call_id = match method {
                "notifications/progress" => of(&about.progress_token, Session::progress),
                _ => of(&about.subscription, Session::call),
            }
            .or_else(|| record.marks.task.as_ref().and_then(|task| session.origin_of(task)))
            .or_else(|| call.cloned());
            if method == "notifications/cancelled" {
                let asked = about.request_id.as_ref().and_then(|id| session.asked(id));
                if let Some(asked) = asked {
                    record.marks.regards_message = Some(asked.message_id);
                    record.call_id = asked.call.or(record.call_id);
                }
            }
            if let Message::Request { id, .. } = message {
                let message_id = MessageId::from_random(random::bytes());
                record.message_id = Some(message_id.clone());
                let call = record.call_id.clone();
                let asked = Asked { message_id, method: record.method.clone(), call, answered: false };
                session.asks(id, about.progress_token.as_ref(), asked);
            }
        }
        self.ledger.note(record).await
    }

    /// A server's response that answers no call that waits for it.
    pub(super) async fn note_stray(
        &self,
        flow: &Flow,
        session: &Session,
        (label, call): (MessageLabel, Option<CallId>),
        message: &Message,
    ) -> Result<(), LedgerError> {
        let mut record = self.describe_message(flow, session, Direction::ServerToClient, message, label);
        record.call_id = call;
        self.ledger.note(record).await
    }

    fn describe_message(
        &self,
        flow: &Flow,
        session: &Session,
        direction: Direction,
        message: &Message,
        label: MessageLabel,
    ) -> record::Message<Masked<String>> {
        let method = self.masker.name(message.method().unwrap_or_default(), MAX_NAME);
        let payload = self.payload_of_json(message.content());
        let odd = message.has_unknown_member().then_some(Oddity::UnknownMember).into_iter().collect();
        record::Message {
            marks: Marks { odd, ..Marks::default() },
            request_id: message.id().map(|id| self.masker.name(id.as_json(), MAX_NAME)),
            session: session.name.clone(),
            protocol_version: session.version(),
            error_code: match message {
                Message::Response { result: Err(error), .. } => Some(error.code),
                _ => None,
            },
            ..record::Message::new(flow.id.clone(), direction, method, label, payload)
        }
    }

    /// Something of a session that was not read as MCP, or is none.
    pub(super) async fn note_unread(
        &self,
        flow: &Flow,
        (session, direction, call): (&Session, Direction, Option<&CallId>),
        label: MessageLabel,
        unread: Option<Unread>,
        payload: record::Payload<Masked<String>>,
    ) -> Result<(), LedgerError> {
        let nothing = Masked::default();
        let message = record::Message {
            call_id: call.cloned(),
            session: session.name.clone(),
            unread,
            ..record::Message::new(flow.id.clone(), direction, nothing, label, payload)
        };
        self.ledger.note(message).await
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
        let mut payload = self.payload_of_part(text, text.len(), None);
        if payload.truncated || !payload.masked.is_empty() {
            payload.digest = Some(self.masker.digest(text.as_bytes()));
        }
        payload
    }

    /// The payload of a content of `bytes` bytes, of which the first ones are here, and the digest of all of them if
    /// that is known. What a cut has hit is left out, since half a secret is not found by its form.
    pub(super) fn payload_of_part(
        &self,
        text: &str,
        bytes: usize,
        digest: Option<String>,
    ) -> record::Payload<Masked<String>> {
        let (is_part, limit) = (text.len() < bytes, self.limits.record_payload);
        let cut = if is_part { limit.min(text.len().saturating_sub(1)) } else { limit };
        let (whole, masked) = self.masker.json_within(text, cut);
        // What stands for a secret may be longer than the secret.
        let truncated = limit < text.len().max(whole.as_str().len()) || is_part;
        record::Payload { text: whole.truncate(limit), bytes: bytes as u64, truncated, masked, digest }
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
