//! How a hold ends: its end is recorded, and then what was held goes upstream in its client's last request, or nothing does.

use std::sync::Arc;

use http::{HeaderValue, header};
use weir_core::approval::{Decision, SubmittedHold, Words};
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::{self, REFUSED, RequestId};
use weir_core::mcp::rewrite::with_id;
use weir_core::mcp::sse;
use weir_core::record::{DecisionRecord, HoldEnd};

use super::wait::{End, decision_record};
use super::{Client, Held, Leg, commitment};
use crate::gate::answer::{Framing, Reading};
use crate::gate::call::WaitingCall;
use crate::gate::permit::{Clearance, Permit};
use crate::gate::rewrite::mask_repeated;
use crate::gate::{Flow, Gate, StreamWriter};
use crate::http::ReadRequest;

/// What was decided and is on record.
pub(super) enum Decided {
    /// It may go.
    Approved(Box<Decision>),
    /// It never will; what the record says, and what the client is told.
    Not(HoldEnd, String),
}

impl Gate {
    /// Records how a hold ended. Of what cannot be recorded nothing goes upstream.
    pub(super) async fn settle(&self, hold: &SubmittedHold, end: End) -> Decided {
        let (record, reason) = match &end {
            End::Decided(decision) => {
                let outcome = if decision.is_approval() { HoldEnd::Approved } else { HoldEnd::Refused };
                let reason = format!("refused by the approver: {}", decision.statement().justification);
                (record_of(hold, decision, outcome), reason)
            }
            End::Expired => (decision_record(hold, HoldEnd::Expired), "nobody approved it in time".into()),
            End::ClientGone => (decision_record(hold, HoldEnd::ClientGone), "the client left".into()),
            End::TakenBack => {
                (decision_record(hold, HoldEnd::ClientGone), "the client took the call back".into())
            }
            End::Unrecordable(e) => (decision_record(hold, HoldEnd::Expired), format!("not recordable: {e}")),
            // These end no hold.
            End::LegOver | End::AnotherLeg(_) => {
                (decision_record(hold, HoldEnd::ClientGone), "the client asked for it twice".into())
            }
        };
        let outcome = record.decision;
        let reason = format!("refused by Weir: {reason} (rule {}, approval {})", hold.rule, hold.approval_id);
        match (self.ledger.write(record).await, end) {
            (Err(error), _) => {
                let reason = format!("refused by Weir: the decision cannot be recorded: {error}");
                Decided::Not(HoldEnd::Expired, reason)
            }
            (Ok(_), End::Decided(decision)) if decision.is_approval() => Decided::Approved(decision),
            (Ok(_), _) => Decided::Not(outcome, reason),
        }
    }

    /// The hold ended, and nobody waits for its call.
    pub(super) async fn let_go(&self, mut held: Held, end: End) {
        let (outcome, reason) = match held.decided.take() {
            // It was approved, and its client did not come back for it.
            Some(Decided::Approved(_)) => {
                (HoldEnd::ClientGone, "the client did not ask again for the call after its approval".into())
            }
            Some(Decided::Not(outcome, reason)) => (outcome, reason),
            None => match self.settle(&held.hold, end).await {
                Decided::Not(outcome, reason) => (outcome, reason),
                Decided::Approved(_) => (HoldEnd::ClientGone, "the client left".into()),
            },
        };
        held.call.not_approved(self, outcome, &reason);
    }

    /// The hold ended, and the client waits: it gets the answer to its call, or why there is none.
    pub(super) async fn finish(self: &Arc<Self>, held: Held, leg: Leg, end: End) {
        // Nobody waits for an answer to a call that was taken back.
        let told = !matches!(end, End::TakenBack);
        let progress = held.way.progress.clone();
        let Leg { flow, request, id, client } = leg;
        let error = |reason: &str| jsonrpc::error_reply(id.as_ref(), REFUSED, reason, None);
        let (mut request, permit, call) = match self.release(held, request, id.as_ref(), end).await {
            Ok(released) => released,
            Err(reason) => {
                return match client {
                    Client::Events(pieces) if !told => pieces.end().await,
                    client => client.answer(&error(&reason)).await,
                };
            }
        };
        let pieces = match client {
            Client::Events(pieces) => pieces,
            Client::Json(mut asker) => {
                let exchange = self.exchange_of(&flow, &request.parts);
                let answer = self.forward(&flow, request, permit, (exchange, vec![call]), &mut asker).await;
                let _ = asker.send(answer);
                return;
            }
            Client::Session(stream) => {
                return self.post_on(&flow, request, (permit, call), &stream, &error).await;
            }
        };
        // It goes into a stream that is under way.
        request.parts.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let exchange = self.exchange_of(&flow, &request.parts);
        let sent = self.send(&flow, request, permit, vec![call], pieces.reader_gone()).await;
        let (answer, calls) = match sent {
            Ok(answered) => answered,
            Err(broken) => return pieces.end_with(sse::message(&error(&format!("Weir: {broken}")))).await,
        };
        let (head, body) = answer.into_parts();
        let status = head.status;
        let mut reading = Reading::new(self.clone(), flow, exchange, (status, &head.headers), calls);
        if status.is_success() {
            reading.follow(&head.headers, progress);
            return reading.carry(body, pieces, Framing::AsEvents).await;
        }
        // The head is sent; an HTTP error can only be told in words.
        reading.read_out(body).await;
        let told = error(&format!("Weir: the server answered with HTTP status {status}"));
        pieces.end_with(sse::message(&told)).await;
    }

    /// What was released goes to a server that answers on its session's stream.
    async fn post_on(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        (permit, call): (Permit, WaitingCall),
        stream: &StreamWriter,
        error: &impl Fn(&str) -> String,
    ) {
        let exchange = self.exchange_of(flow, &request.parts);
        let fault = match self.send(flow, request, permit, vec![call], stream.gone()).await {
            Ok((answer, calls)) => {
                let (head, body) = answer.into_parts();
                let told = (head.status, &head.headers);
                Reading::new(self.clone(), flow.clone(), exchange, told, calls).read_out(body).await;
                match head.status.is_success() {
                    true => return,
                    false => format!("Weir: the server answered with HTTP status {}", head.status),
                }
            }
            Err(broken) => format!("Weir: {broken}"),
        };
        let _ = stream.say(sse::message(&error(&fault))).await;
    }

    /// After an approval what was held is put into the client's last request, and checked against the hold once more; then
    /// it may go. Anything else ends the call, and the reason is for the client.
    async fn release(
        &self,
        held: Held,
        mut request: ReadRequest,
        id: Option<&RequestId>,
        end: End,
    ) -> Result<(ReadRequest, Permit, WaitingCall), String> {
        let Held { mut call, hold, salt, body, decided, room, waiting, place, .. } = held;
        drop((room, waiting, place));
        let decided = match decided {
            Some(decided) => decided,
            None => self.settle(&hold, end).await,
        };
        let decision = match decided {
            Decided::Approved(decision) => decision,
            Decided::Not(outcome, reason) => {
                call.not_approved(self, outcome, &reason);
                return Err(reason);
            }
        };
        if let Some(id) = id
            && let Some(text) = with_id(&body, id)
            && text.as_bytes() != request.body
        {
            if call.wants().in_flight.arguments {
                mask_repeated(&mut request, &self.masker);
            }
            request.replace_body(text);
            call.asked_again_as(id.clone());
        }
        if commitment(&salt, &request) != hold.call_digest {
            let reason = "refused by Weir: the call is not the one that was approved".to_owned();
            call.not_approved(self, HoldEnd::Invalid, &reason);
            return Err(reason);
        }
        let (call, intent) = call.split();
        let permit = Permit::for_call(intent, Clearance::Human(decision)).map_err(|e| e.to_string())?;
        Ok((request, permit, call))
    }
}

fn record_of(hold: &SubmittedHold, decision: &Decision, end: HoldEnd) -> DecisionRecord<Masked<String>> {
    let Words { statement, approver, justification, ticket, signature } = decision.words();
    DecisionRecord {
        approver,
        key: decision.fingerprint().to_owned(),
        justification,
        ticket,
        signed_us: Some(decision.statement().issued_us),
        statement,
        signature,
        ..decision_record(hold, end)
    }
}
