//! Holding a call until a human decides. The client is given the head of an event stream at once and a comment
//! now and then, so that it does not give up. Only an approval whose signature holds, and whose call is still
//! the same to the byte, goes upstream; no answer, or a client that left, is a refusal.

mod wait;

use std::sync::Arc;

use hmac::{Hmac, Mac};
use http::{StatusCode, header};
use hyper::Response;
use sha2::Sha256;
use weir_core::approval::{Decision, Hold, SubmittedHold, Words};
use weir_core::ids::hex;
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::{self, REFUSED};
use weir_core::mcp::sse;
use weir_core::record::{DecisionRecord, HoldEnd};

use super::answer::{Framing, Reading};
use super::call::{Asks, OpenCall, WaitingCall};
use super::permit::{Clearance, Permit};
use super::{Answer, Asker, Flow, Gate, reply};
use crate::http::{Body, Pieces, ReadRequest, body_of_pieces};
use crate::share::Taken;
use crate::{clock, random};
use wait::{Client, End, WAITING, decision_record};

/// A held call and all that its release needs.
struct Held {
    request: ReadRequest,
    call: OpenCall,
    hold: SubmittedHold,
    salt: [u8; 32],
}

impl Gate {
    pub(super) async fn hold(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        call: OpenCall,
        asks: Asks,
        asker: &mut Asker,
    ) -> Answer {
        // An approver must see all that they approve.
        let too_large = "refused by Weir: the arguments are too large to be shown to an approver";
        let too_many = "refused by Weir: as many calls as may be wait for an approver already";
        let room = match (asks.arguments.truncated, flow.share.hold()) {
            (true, _) => return Ok(self.refuse_hold(&request, call, too_large)),
            (false, None) => return Ok(self.refuse_hold(&request, call, too_many)),
            (false, Some(room)) => room,
        };
        let salt = random::bytes();
        let hold = self.describe(flow, &request, &call, asks, &salt);
        tracing::info!(approval_id = %hold.approval_id, rule = hold.rule, "holding a call");
        let streams = accepts_events(&request);
        let held = Held { request, call, hold, salt };
        if !streams {
            let answer = self.hold_silently(flow, held, asker).await;
            drop(room);
            return answer;
        }
        let (pieces, body) = body_of_pieces();
        let (gate, flow) = (self.clone(), flow.clone());
        self.tasks.spawn(async move {
            gate.hold_streaming(&flow, held, room, pieces).await;
        });
        Ok(reply::event_stream(body))
    }

    fn refuse_hold(&self, request: &ReadRequest, call: OpenCall, reason: &str) -> Response<Body> {
        let text = jsonrpc::error_reply(call.request_id(), REFUSED, reason, None);
        call.refused(self, reason);
        reply::message(reply::Form::asked_for(&request.parts.headers), text)
    }

    fn describe(
        &self,
        flow: &Flow,
        request: &ReadRequest,
        call: &OpenCall,
        asks: Asks,
        salt: &[u8; 32],
    ) -> SubmittedHold {
        let created_us = clock::now_us();
        let deadline_us = u64::try_from(self.approval.deadline.as_micros()).unwrap_or(u64::MAX);
        let Asks { approval_id, tool, arguments } = asks;
        Hold {
            approval_id,
            call_id: call.call_id().clone(),
            tenant: self.place.tenant.clone(),
            origin: self.place.origin.clone(),
            host: self.place.host.clone(),
            call_digest: commitment(salt, request),
            policy_digest: call.verdict().policy_digest.clone(),
            rule: call.verdict().rule.clone(),
            server: flow.server.record.clone(),
            target: self.masker.target(&request.parts.uri.to_string()),
            tool,
            arguments,
            requester: flow.caller.as_ref().clone(),
            created_us,
            expires_us: created_us.saturating_add(deadline_us),
            nonce: hex(&random::bytes::<16>()),
        }
    }

    /// The client takes events: it is kept alive, and its answer is one event.
    async fn hold_streaming(self: Arc<Self>, flow: &Arc<Flow>, held: Held, room: Taken, pieces: Pieces) {
        // At once, so that the client sees the answer's head.
        pieces.offer(sse::comment(WAITING));
        let end = self.wait(flow, &held, Client::Events(&pieces)).await;
        drop(room);
        // Nobody waits for an answer to a call that was taken back.
        let told = !matches!(end, End::TakenBack);
        let id = held.call.request_id().cloned();
        let error = |reason: &str| sse::message(&jsonrpc::error_reply(id.as_ref(), REFUSED, reason, None));
        let (request, permit, call) = match self.release(held, end).await {
            Ok(released) => released,
            Err(reason) => {
                return if told { pieces.end_with(error(&reason)).await } else { pieces.end().await };
            }
        };
        let exchange = self.exchange_of(flow, &request.parts);
        let (answer, calls) = match self.send(flow, request, permit, vec![call], pieces.reader_gone()).await {
            Ok(answered) => answered,
            Err(broken) => return pieces.end_with(error(&format!("Weir: {broken}"))).await,
        };
        let (head, body) = answer.into_parts();
        let status = head.status;
        let reading = Reading::new(self, flow.clone(), exchange, (status, &head.headers), calls);
        if status.is_success() {
            return reading.carry(body, pieces, Framing::AsEvents).await;
        }
        // The head is sent; an HTTP error can only be told in words.
        reading.read_out(body).await;
        pieces.end_with(error(&format!("Weir: the server answered with HTTP status {status}"))).await;
    }

    /// The client takes no events: it gets its answer when there is one.
    async fn hold_silently(self: &Arc<Self>, flow: &Arc<Flow>, held: Held, asker: &mut Asker) -> Answer {
        let end = self.wait(flow, &held, Client::Json(asker)).await;
        let id = held.call.request_id().cloned();
        match self.release(held, end).await {
            Ok((request, permit, call)) => self.forward(flow, request, permit, vec![call], asker).await,
            Err(reason) => {
                let error = jsonrpc::error_reply(id.as_ref(), REFUSED, &reason, None);
                Ok(reply::json_rpc(StatusCode::OK, error))
            }
        }
    }

    /// Records how the wait ended. After an approval the call's bytes are checked against the hold once more;
    /// then it may go. Anything else ends the call, and the reason is for the client.
    async fn release(&self, held: Held, end: End) -> Result<(ReadRequest, Permit, WaitingCall), String> {
        let Held { request, call, hold, salt } = held;
        let (record, reason) = match &end {
            End::Decided(decision) => {
                let outcome = if decision.is_approval() { HoldEnd::Approved } else { HoldEnd::Refused };
                let reason = format!("refused by the approver: {}", decision.statement().justification);
                (Self::record_of(&hold, decision, outcome), reason)
            }
            End::Expired => (decision_record(&hold, HoldEnd::Expired), "nobody approved it in time".into()),
            End::ClientGone => (decision_record(&hold, HoldEnd::ClientGone), "the client left".into()),
            End::TakenBack => {
                (decision_record(&hold, HoldEnd::ClientGone), "the client took the call back".into())
            }
            End::Unrecordable(e) => {
                (decision_record(&hold, HoldEnd::Expired), format!("not recordable: {e}"))
            }
        };
        let outcome = record.decision;
        let reason = format!("refused by Weir: {reason} (rule {}, approval {})", hold.rule, hold.approval_id);
        if let Err(error) = self.ledger.write(record).await {
            let reason = format!("refused by Weir: the decision cannot be recorded: {error}");
            call.not_approved(self, HoldEnd::Expired, &reason);
            return Err(reason);
        }
        match end {
            End::Decided(decision)
                if decision.is_approval() && commitment(&salt, &request) == hold.call_digest =>
            {
                let (call, intent) = call.split();
                let permit =
                    Permit::for_call(intent, Clearance::Human(decision)).map_err(|e| e.to_string())?;
                Ok((request, permit, call))
            }
            _ => {
                let outcome = if outcome == HoldEnd::Approved { HoldEnd::Invalid } else { outcome };
                call.not_approved(self, outcome, &reason);
                Err(reason)
            }
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
}

/// HMAC-SHA-256 over the request's line and body: what will be forwarded, bound without being told.
fn commitment(salt: &[u8; 32], request: &ReadRequest) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(salt).expect("any key length");
    let line = format!("{} {}\n", request.parts.method, request.parts.uri);
    mac.update(line.as_bytes());
    mac.update(&request.body);
    hex(&mac.finalize().into_bytes())
}

fn accepts_events(request: &ReadRequest) -> bool {
    let values = request.parts.headers.get_all(header::ACCEPT);
    values.iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/event-stream"))
}
