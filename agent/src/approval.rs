//! Holds go out, signed statements come back. This room carries; whether a statement decides anything is
//! checked where the hold waits. It keeps one long poll to the collector while any hold is open.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc};
use weir_core::approval::{SignedStatement, SubmittedHold};
use weir_core::ids::{ApprovalId, Origin};
use weir_core::wire::{self, HoldAck, MAX_OPEN_HOLDS, PollRequest, PollResponse, Reason};

use crate::ship::{Collector, PostError};

/// How long one poll may wait.
const POLL: Duration = Duration::from_secs(20);
/// The pause after a fault, and after an answer that held nothing new.
const PAUSE: Duration = Duration::from_millis(500);
/// How many statements may wait for one hold; more are dropped, and polled again.
const WAITING: usize = 16;
/// How many statements are looked at for one hold: each that decides nothing is recorded, and whoever can write to
/// the store could send them without end.
const MAX_STATEMENTS: usize = 64;

/// All open holds.
#[derive(Debug, Clone)]
pub struct Approvals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    collector: Option<Collector>,
    origin: Origin,
    open: Mutex<HashMap<ApprovalId, Open>>,
    changed: Notify,
}

#[derive(Debug)]
struct Open {
    /// The hold's JSON until the collector has it.
    unsent: Option<Vec<u8>>,
    /// Digests of the statements that were handed on.
    seen: HashSet<[u8; 32]>,
    statements: mpsc::Sender<SignedStatement>,
}

/// One open hold's end of the line. Dropping it withdraws the hold.
#[derive(Debug)]
pub struct Waiting {
    approval_id: ApprovalId,
    statements: mpsc::Receiver<SignedStatement>,
    approvals: Approvals,
}

impl Approvals {
    /// Without a collector nobody can decide, and every hold runs into its deadline.
    pub fn new(collector: Option<Collector>, origin: Origin) -> Self {
        Self(Arc::new(Inner { collector, origin, open: Mutex::default(), changed: Notify::new() }))
    }

    /// Sends a hold on its way, as soon as the collector takes it.
    pub fn submit(&self, hold: &SubmittedHold) -> Waiting {
        let (sender, statements) = mpsc::channel(WAITING);
        match serde_json::to_vec(hold) {
            Ok(json) => {
                let open = Open { unsent: Some(json), seen: HashSet::new(), statements: sender };
                self.open().insert(hold.approval_id.clone(), open);
                self.0.changed.notify_one();
            }
            Err(error) => tracing::error!(%error, "a hold cannot be sent"),
        }
        Waiting { approval_id: hold.approval_id.clone(), statements, approvals: self.clone() }
    }

    /// Carries holds and statements until it is dropped.
    pub async fn run(&self) {
        let Some(collector) = &self.0.collector else { return std::future::pending().await };
        loop {
            let all_sent = self.send_holds(collector).await;
            let ids: Vec<ApprovalId> = {
                let open = self.open();
                let sent = open.iter().filter(|(_, open)| open.unsent.is_none());
                sent.map(|(id, _)| id.clone()).take(MAX_OPEN_HOLDS).collect()
            };
            if ids.is_empty() {
                tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = tokio::time::sleep(PAUSE), if !all_sent => {}
                }
                continue;
            }
            let pause = tokio::select! {
                news = self.poll(collector, ids) => !news,
                () = self.0.changed.notified() => false,
                () = tokio::time::sleep(PAUSE), if !all_sent => false,
            };
            if pause {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn send_holds(&self, collector: &Collector) -> bool {
        let unsent: Vec<(ApprovalId, Vec<u8>)> = {
            let open = self.open();
            open.iter().filter_map(|(id, open)| Some((id.clone(), open.unsent.clone()?))).collect()
        };
        let mut all_sent = true;
        for (id, json) in unsent {
            match collector.post::<HoldAck>(wire::HOLDS, json).await {
                Ok(ack) if ack.approval_id == id => {
                    if let Some(open) = self.open().get_mut(&id) {
                        open.unsent = None;
                    }
                }
                Ok(_) => all_sent = false,
                Err(PostError::Refused(refusal))
                    if matches!(refusal.reason, Reason::Malformed | Reason::Conflict) =>
                {
                    tracing::error!(approval_id = %id, %refusal, "the collector can never take a hold; nobody will see it");
                    if let Some(open) = self.open().get_mut(&id) {
                        open.unsent = None;
                    }
                }
                Err(error) => {
                    tracing::warn!(approval_id = %id, %error, "the collector did not take a hold; trying again");
                    all_sent = false;
                }
            }
        }
        all_sent
    }

    /// Whether anything new came.
    async fn poll(&self, collector: &Collector, open: Vec<ApprovalId>) -> bool {
        let wait_ms = u64::try_from(POLL.as_millis()).unwrap_or(wire::MAX_WAIT_MS);
        let request = PollRequest { origin: self.0.origin.clone(), open, wait_ms };
        let Ok(json) = serde_json::to_vec(&request) else { return false };
        match collector.post::<PollResponse>(wire::POLL, json).await {
            Ok(response) => self.deliver(response),
            Err(error) => {
                tracing::warn!(%error, "cannot ask the collector for decisions; trying again");
                false
            }
        }
    }

    fn deliver(&self, response: PollResponse) -> bool {
        let mut open = self.open();
        let mut news = false;
        for decision in response.decisions {
            let Some(entry) = open.get_mut(&decision.approval_id) else { continue };
            let digest = digest(&decision.signed);
            if entry.seen.contains(&digest) || entry.seen.len() == MAX_STATEMENTS {
                continue;
            }
            if entry.statements.try_send(decision.signed).is_ok() {
                entry.seen.insert(digest);
                news = true;
                if entry.seen.len() == MAX_STATEMENTS {
                    tracing::error!(approval_id = %decision.approval_id, "too many statements about one hold: no more are looked at");
                }
            }
        }
        news
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ApprovalId, Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The next statement about this hold; waits for ever when none comes.
    pub async fn next(&mut self) -> SignedStatement {
        match self.statements.recv().await {
            Some(signed) => signed,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.approvals.open().remove(&self.approval_id);
        self.approvals.0.changed.notify_one();
    }
}

fn digest(signed: &SignedStatement) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update((signed.statement.len() as u64).to_be_bytes());
    digest.update(&signed.statement);
    digest.update(&signed.signature);
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use weir_core::wire::PolledDecision;

    use super::*;

    /// An open hold without a collector, and what delivers a statement to it.
    fn open() -> (Approvals, Waiting, impl Fn(&Approvals, &str) -> bool) {
        let approvals = Approvals::new(None, Origin::from_random([1; 16]));
        let approval_id = ApprovalId::from_random([2; 16]);
        let (sender, statements) = mpsc::channel(WAITING);
        let open = Open { unsent: None, seen: HashSet::new(), statements: sender };
        approvals.open().insert(approval_id.clone(), open);
        let waiting = Waiting { approval_id: approval_id.clone(), statements, approvals: approvals.clone() };
        let deliver = move |approvals: &Approvals, statement: &str| {
            let signed = SignedStatement { statement: statement.to_owned(), signature: String::new() };
            let decision = PolledDecision { approval_id: approval_id.clone(), signed };
            approvals.deliver(PollResponse { decisions: vec![decision] })
        };
        (approvals, waiting, deliver)
    }

    #[tokio::test]
    async fn each_statement_comes_once_and_not_without_end() {
        let (approvals, mut waiting, deliver) = open();
        for n in 0..MAX_STATEMENTS {
            assert!(deliver(&approvals, &n.to_string()) && !deliver(&approvals, &n.to_string()));
            assert_eq!(waiting.next().await.statement, n.to_string());
        }
        assert!(!deliver(&approvals, "one more"));
    }

    #[tokio::test]
    async fn what_finds_no_room_comes_with_a_later_poll() {
        let (approvals, mut waiting, deliver) = open();
        for n in 0..WAITING {
            assert!(deliver(&approvals, &n.to_string()));
        }
        assert!(!deliver(&approvals, "late"));
        waiting.next().await;
        assert!(deliver(&approvals, "late"));
    }

    #[tokio::test]
    async fn a_hold_that_ended_leaves_nothing_behind() {
        let (approvals, waiting, deliver) = open();
        drop(waiting);
        assert!(approvals.open().is_empty() && !deliver(&approvals, "late"));
    }
}
