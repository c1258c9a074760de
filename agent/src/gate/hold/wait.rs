//! The wait of a held call: for a decision that stands up to every check, for the deadline, or for the client to
//! leave or to take the call back; whichever comes first ends it, once.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use weir_core::approval::{Decision, SignedStatement, SubmittedHold};
use weir_core::mask::Masked;
use weir_core::mcp::sse;
use weir_core::record::{DecisionRecord, HoldEnd};

use super::Held;
use crate::clock;
use crate::gate::{Asker, Flow, Gate};
use crate::http::Pieces;
use crate::ledger::LedgerError;

/// What a waiting client reads in its stream's comments.
pub(super) const WAITING: &str = "weir: waiting for an approval";
/// The shortest time between two of them.
const SHORTEST_KEEPALIVE: Duration = Duration::from_millis(10);
/// The most bytes of a signature that decides nothing which are recorded.
const MAX_SIGNATURE: usize = 8192;

/// Where a held call's client waits.
pub(super) enum Client<'a> {
    /// On an event stream.
    Events(&'a Pieces),
    /// For one answer.
    Json(&'a mut Asker),
}

/// How the wait ended.
pub(super) enum End {
    Decided(Box<Decision>),
    Expired,
    ClientGone,
    /// The client told that it no longer wants the call.
    TakenBack,
    Unrecordable(LedgerError),
}

impl Gate {
    pub(super) async fn wait(&self, flow: &Flow, held: &Held, client: Client<'_>) -> End {
        let hold = &held.hold;
        let name = held.call.request_id().map(|id| self.name_of_call(flow, &held.request.parts, id));
        let place = name.map(|name| self.held.enter(name));
        let taken_back = async {
            match &place {
                Some(place) => place.taken_back().await,
                None => std::future::pending().await,
            }
        };
        let pieces = match &client {
            Client::Events(pieces) => Some(*pieces),
            Client::Json(_) => None,
        };
        let gone = async {
            match client {
                Client::Events(pieces) => pieces.reader_gone().await,
                Client::Json(answer) => answer.closed().await,
            }
        };
        tokio::pin!(gone, taken_back);
        let mut waiting = self.approvals.submit(hold);
        let deadline = Instant::now() + self.approval.deadline;
        let keepalive = self.approval.keepalive.max(SHORTEST_KEEPALIVE);
        let mut keepalives = interval_at(Instant::now() + keepalive, keepalive);
        keepalives.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let signed = tokio::select! {
                biased;
                () = &mut gone => return End::ClientGone,
                () = &mut taken_back => return End::TakenBack,
                () = sleep_until(deadline) => return End::Expired,
                signed = waiting.next() => signed,
                _ = keepalives.tick() => {
                    if let Some(pieces) = pieces {
                        pieces.offer(sse::comment(WAITING));
                    }
                    continue;
                }
            };
            // Not among the branches: whichever of them comes first must not break off the record of this one.
            if let Some(end) = self.judge(hold, signed).await {
                return end;
            }
        }
    }

    /// `None` for a statement that decides nothing: it is recorded, and the hold goes on waiting.
    async fn judge(&self, hold: &SubmittedHold, signed: SignedStatement) -> Option<End> {
        match Decision::verify(hold, signed.clone(), &self.approval.signers, clock::now_us()) {
            Ok(decision) => Some(End::Decided(Box::new(decision))),
            Err(error) => {
                tracing::warn!(approval_id = %hold.approval_id, %error, "a statement decides nothing");
                let record = DecisionRecord {
                    justification: self.masker.text(&error.to_string()),
                    statement: self.masker.json_within(&signed.statement, self.limits.record_payload).0,
                    signature: signed.masked_signature(&self.masker, MAX_SIGNATURE),
                    ..decision_record(hold, HoldEnd::Invalid)
                };
                self.ledger.write(record).await.err().map(End::Unrecordable)
            }
        }
    }
}

/// A decision that nobody signed.
pub(super) fn decision_record(hold: &SubmittedHold, decision: HoldEnd) -> DecisionRecord<Masked<String>> {
    DecisionRecord {
        call_id: hold.call_id.clone(),
        approval_id: hold.approval_id.clone(),
        decision,
        approver: Masked::default(),
        key: String::new(),
        justification: Masked::default(),
        ticket: Masked::default(),
        signed_us: None,
        statement: Masked::default(),
        signature: Masked::default(),
    }
}
