//! The wait of a held call: for a decision that stands up to every check, for the deadline, or for the client to
//! leave or to take the call back; whichever comes first ends it, once. A client that asks in several requests may be away
//! in between, and what is decided then stands until it is back.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use weir_core::approval::{Decision, SignedStatement, SubmittedHold};
use weir_core::mask::Masked;
use weir_core::record::{DecisionRecord, HoldEnd};

use super::{Client, Held, Leg};
use crate::clock;
use crate::gate::Gate;
use crate::ledger::LedgerError;

/// The shortest time between two signs of life.
const SHORTEST_KEEPALIVE: Duration = Duration::from_millis(10);
/// The most bytes of a signature that decides nothing which are recorded.
const MAX_SIGNATURE: usize = 8192;

/// How the wait of one request ended.
pub(super) enum End {
    Decided(Box<Decision>),
    Expired,
    ClientGone,
    /// The client told that it no longer wants the call.
    TakenBack,
    Unrecordable(LedgerError),
    /// The request can wait no longer; the hold goes on.
    LegOver,
    /// The client asks for the call in another request.
    AnotherLeg(Box<Leg>),
}

/// How the time ended in which nobody waited.
pub(super) enum Parked {
    AskedAgain(Box<Leg>),
    Over(End),
}

impl Gate {
    /// One request waits.
    pub(super) async fn wait(&self, held: &mut Held, leg: &mut Leg) -> End {
        if held.decided.is_some() {
            // What was decided is taken from there.
            return End::Expired;
        }
        let Held { hold, way, waiting, deadline, place, .. } = held;
        let name = leg.id.as_ref().map(|id| self.name_of_call(&leg.flow, &leg.request.parts, id));
        let named = name.map(|name| self.held.enter(name));
        let taken_back = async {
            match &named {
                Some(named) => named.taken_back().await,
                None => std::future::pending().await,
            }
        };
        let alive = |way: &mut super::Way, client: &Client| match client {
            Client::Events(pieces) => pieces.offer(way.sign_of_life()),
            Client::Session(stream) => stream.offer(way.sign_of_life()),
            Client::Json(_) => {}
        };
        // At once, so that the client sees the answer's head.
        alive(way, &leg.client);
        let (over, keepalive) = (way.within(), self.approval.keepalive.max(SHORTEST_KEEPALIVE));
        let over = over.map(|within| Instant::now() + within);
        tokio::pin!(taken_back);
        let mut keepalives = interval_at(Instant::now() + keepalive, keepalive);
        keepalives.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let signed = tokio::select! {
                biased;
                () = leg.client.gone() => return End::ClientGone,
                () = &mut taken_back => return End::TakenBack,
                () = sleep_until(*deadline) => return End::Expired,
                signed = waiting.next() => signed,
                Some(next) = later(place) => return End::AnotherLeg(Box::new(next)),
                () = until(over) => return End::LegOver,
                _ = keepalives.tick() => {
                    alive(way, &leg.client);
                    continue;
                }
            };
            // Not among the branches: whichever of them comes first must not break off the record of this one.
            if let Some(end) = self.judge(hold, signed).await {
                return end;
            }
        }
    }

    /// Nobody waits, until the client asks again. Someone who was invited to, and does not, has left.
    pub(super) async fn parked(&self, held: &mut Held, rounds: u32) -> Parked {
        let back = held.invites(rounds).then(|| Instant::now() + self.approval.ladder.retry_within);
        loop {
            let Held { hold, waiting, deadline, place, decided, .. } = &mut *held;
            let signed = tokio::select! {
                biased;
                Some(next) = later(place) => return Parked::AskedAgain(Box::new(next)),
                () = sleep_until(*deadline) => return Parked::Over(End::Expired),
                () = until(back) => return Parked::Over(End::ClientGone),
                signed = waiting.next(), if decided.is_none() => signed,
            };
            match self.judge(hold, signed).await {
                None => {}
                Some(end) => *decided = Some(self.settle(hold, end).await),
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

impl Client {
    /// Resolves when the client has left.
    async fn gone(&mut self) {
        match self {
            Client::Events(pieces) => pieces.reader_gone().await,
            Client::Json(asker) => asker.closed().await,
            Client::Session(stream) => stream.gone().await,
        }
    }
}

/// The client's next request; never, for a call that has one alone.
async fn later(place: &mut Option<super::Place>) -> Option<Leg> {
    match place {
        Some(place) => place.later.recv().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
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
