//! A group of idle logs' checkpoints, judged and cosigned together: one question and one insert for all of them at each step.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use weir_core::evidence::Frontier;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::ids::{Origin, hex};
use weir_core::wire::{Advice, CheckpointAck, Reason, Refusal};

use super::Posted;
use crate::ingest::evidence::{Accused, begun_before, key_of};
use crate::ingest::{Ingest, now_us, refusal, unavailable};
use crate::rows::{CheckpointRow, ClaimRow};
use crate::store::{StoreError, TOKENS, again};
use crate::witness::judge::{Fault, FaultReason, Run, Seen, Standing};
use crate::witness::known::{self, Part, Place};

/// A post whose leaves stand behind a known tree.
struct Judged {
    posted: Posted,
    run: Run,
    part: Part,
}

impl Judged {
    fn place(&self) -> Place {
        (self.part.log.origin.to_string(), self.part.log.epoch)
    }

    fn seen(&self) -> (u64, weir_core::evidence::Hash) {
        (self.run.checkpoint.size, self.run.checkpoint.root)
    }
}

impl Posted {
    fn refuse(self, why: Refusal) {
        tracing::debug!(origin = %self.checkpoint.log.origin, reason = %why.reason, "a checkpoint was refused");
        // Whoever asked may be gone.
        let _ = self.answer.send(Err(why));
    }

    fn accused(&self) -> Accused {
        Accused::of(&self.checkpoint.log, self.checkpoint.next_seq())
    }
}

impl Ingest {
    /// Judges, claims, judges again, cosigns and answers.
    pub(super) async fn go_through(&self, mut waiting: Vec<Posted>) {
        while !waiting.is_empty() {
            // One of each log at a time: the next one of it goes on from what this one leaves.
            let mut of = HashSet::new();
            let (group, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|posted| {
                of.insert((posted.checkpoint.log.origin.clone(), posted.checkpoint.log.epoch))
            });
            waiting = later;
            self.witness_together(group).await;
        }
    }

    async fn witness_together(&self, group: Vec<Posted>) {
        let group = self.signed(group).await;
        let group = self.placed(group).await;
        let group = self.uncontradicted(group, false).await;
        let group = self.claimed(group).await;
        let group = self.uncontradicted(group, true).await;
        self.cosign(group).await;
    }

    /// Those that their log's key has signed.
    async fn signed(&self, group: Vec<Posted>) -> Vec<Posted> {
        let origins: Vec<&Origin> = group.iter().map(|posted| &posted.checkpoint.log.origin).collect();
        let keys = match known::identities(&self.store, &origins).await {
            Ok(keys) => keys,
            Err(error) => return refuse_all(group, error),
        };
        let mut signed = Vec::with_capacity(group.len());
        for posted in group {
            let log = &posted.checkpoint.log;
            let keys = keys.get(log.origin.as_str()).map(Vec::as_slice).unwrap_or_default();
            let (identity, key) = match key_of(keys, log, &posted.agent) {
                Ok(found) => found,
                Err(why) => {
                    posted.refuse(why);
                    continue;
                }
            };
            let fault = match Checkpoint::open(&posted.note, &key) {
                Err(error) => Fault::new(FaultReason::BadSignature, error.to_string()),
                Ok(checkpoint) if checkpoint.first_seq != identity.first_seq => {
                    let detail = format!("epoch {} began at {}", log.epoch, identity.first_seq);
                    Fault::new(FaultReason::BadRoot, detail)
                }
                Ok(checkpoint) => match begun_before(keys, log, checkpoint.next_seq()) {
                    Some(fault) => fault,
                    None => {
                        signed.push(posted);
                        continue;
                    }
                },
            };
            self.fault(posted, fault).await;
        }
        signed
    }

    /// Those whose leaves go on from the end of a stored batch, or from the epoch's beginning.
    async fn placed(&self, group: Vec<Posted>) -> Vec<Judged> {
        let part = |posted: &Posted| Part {
            log: posted.checkpoint.log.clone(),
            epoch_first_seq: posted.checkpoint.first_seq,
            before: posted.first_seq.saturating_sub(posted.checkpoint.first_seq),
            after: posted.checkpoint.size,
        };
        let parts: Vec<Part> = group.iter().map(part).collect();
        let ends = match self.if_any(&parts, known::ends).await {
            Ok(ends) => ends,
            Err(error) => return refuse_all(group, error),
        };
        let mut placed = Vec::with_capacity(group.len());
        for (posted, part) in group.into_iter().zip(parts) {
            let end = ends.get(&(part.log.origin.to_string(), part.log.epoch));
            let before = match part.before {
                0 => Some(Frontier::default()),
                _ => end.and_then(known::Leaves::after),
            };
            let Some(before) = before else {
                let message = format!("no stored segment of this log ends right before {}", posted.first_seq);
                posted.refuse(refusal(Reason::Conflict, message));
                continue;
            };
            let run = Run { before, leaves: posted.leaves.clone(), checkpoint: posted.checkpoint.clone() };
            match run.is_whole() {
                Ok(()) => placed.push(Judged { posted, run, part }),
                Err(fault) => self.fault(posted, fault).await,
            }
        }
        placed
    }

    /// Those that nothing known contradicts, and that can be proven; `claimed` ones must be seen themselves.
    async fn uncontradicted(&self, group: Vec<Judged>, claimed: bool) -> Vec<Judged> {
        let parts: Vec<Part> = group.iter().map(|judged| judged.part.clone()).collect();
        let (trees, stored) =
            match tokio::try_join!(self.if_any(&parts, known::trees), self.if_any(&parts, known::stored)) {
                Ok(known) => known,
                Err(error) => return refuse_all(group, error),
            };
        let none = known::Trees::default();
        let mut good = Vec::with_capacity(group.len());
        for judged in group {
            let trees = trees.get(&judged.place()).unwrap_or(&none);
            let stored = stored.get(&judged.place()).map(Vec::as_slice).unwrap_or_default();
            let run = &judged.run;
            let agrees = run
                .agrees_with(&trees.seen)
                .and_then(|()| run.agrees_with_stored(stored))
                .and_then(|()| goes_on(run, &trees.seen));
            match agrees {
                Err(fault) => self.fault(judged.posted, fault).await,
                Ok(Some(why)) => judged.posted.refuse(why),
                Ok(None) => {
                    let own = judged.seen();
                    let is_seen = trees.seen.iter().any(|seen| (seen.size, seen.root) == own);
                    match known::standing(&self.store, run, trees).await {
                        Err(known::Doubt::Store(error)) => judged.posted.refuse(unavailable(error)),
                        Err(known::Doubt::Fault(fault)) => self.fault(judged.posted, fault).await,
                        Ok(Standing::BehindHole) => self.behind_hole(judged.posted),
                        Ok(Standing::Proven) if claimed && !is_seen => {
                            let message = "the store took the checkpoint and does not show it";
                            judged.posted.refuse(refusal(Reason::Unavailable, message));
                        }
                        Ok(Standing::Proven) => good.push(judged),
                    }
                }
            }
        }
        good
    }

    /// Writes what each is, before anything is said of it.
    async fn claimed(&self, group: Vec<Judged>) -> Vec<Judged> {
        let now_us = now_us();
        let claim =
            |judged: &Judged| ClaimRow::of(&judged.run.checkpoint, judged.posted.note.to_string(), now_us);
        let rows: Vec<ClaimRow> = group.iter().map(claim).collect();
        if rows.is_empty() {
            return group;
        }
        let notes = rows.iter().fold(Sha256::new(), |hash, row| hash.chain_update(&row.note));
        let name = format!("claims/{}", hex(&notes.finalize()));
        let parts: Vec<Part> = group.iter().map(|judged| judged.part.clone()).collect();
        for attempt in 0..TOKENS {
            let shown = self.store.insert("claims", &again(name.clone(), attempt), &rows).await;
            let trees = match shown {
                Ok(()) => self.if_any(&parts, known::trees).await,
                Err(error) => Err(error),
            };
            match trees {
                Err(error) => return refuse_all(group, error),
                Ok(trees) if group.iter().all(|judged| is_among(judged, &trees)) => break,
                Ok(_) => tracing::warn!(name, "a burnt token"),
            }
        }
        group
    }

    async fn cosign(&self, group: Vec<Judged>) {
        let mut rows: Vec<CheckpointRow> = Vec::with_capacity(group.len());
        let mut cosigned = Vec::with_capacity(group.len());
        for judged in group {
            match self.checkpoint_row(&judged.posted.note, &judged.run.checkpoint, true) {
                Ok(row) => {
                    rows.push(row);
                    cosigned.push(judged);
                }
                Err(why) => judged.posted.refuse(why),
            }
        }
        if rows.is_empty() {
            return;
        }
        let notes = rows.iter().fold(Sha256::new(), |hash, row| hash.chain_update(&row.note));
        let token = format!("checkpoints/{}", hex(&notes.finalize()));
        if let Err(error) = self.store.insert("checkpoints", &token, &rows).await {
            let _: Vec<Judged> = refuse_all(cosigned, error);
            return;
        }
        let advice = Advice { seal_after_ms: self.load.seal_after_ms(), begin_epoch: false };
        for (judged, row) in cosigned.into_iter().zip(&rows) {
            let ack = CheckpointAck { checkpoint: row.note.clone(), advice: advice.clone() };
            // Whoever asked may be gone.
            let _ = judged.posted.answer.send(Ok(ack));
        }
        self.witness.publish(rows).await;
    }

    async fn fault(&self, posted: Posted, fault: Fault) {
        let why = self.unproven(&posted.accused(), fault).await;
        posted.refuse(why);
    }

    /// Nothing is wrong with it, and it proves nothing: another epoch would.
    fn behind_hole(&self, posted: Posted) {
        let advice = Advice { seal_after_ms: self.load.seal_after_ms(), begin_epoch: true };
        let ack = CheckpointAck { checkpoint: posted.note.to_string(), advice };
        let _ = posted.answer.send(Ok(ack));
    }

    async fn if_any<'p, T: Default>(
        &'p self,
        parts: &'p [Part],
        ask: impl AsyncFn(&crate::store::Store, &[&Part]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if parts.is_empty() {
            return Ok(T::default());
        }
        ask(&self.store, &parts.iter().collect::<Vec<_>>()).await
    }
}

/// Whether nothing larger was signed. What was signed before that and comes late is no rollback, and is not cosigned either.
fn goes_on(run: &Run, seen: &[Seen]) -> Result<Option<Refusal>, Fault> {
    let Some(larger) = run.larger(seen) else { return Ok(None) };
    let signed_us = i64::try_from(run.checkpoint.time_us).unwrap_or(i64::MAX);
    if signed_us > larger.time_us {
        let detail = format!(
            "the host signed a tree of {} leaves at {}, and one of {} later",
            larger.size, larger.time_us, run.checkpoint.size
        );
        return Err(Fault::new(FaultReason::Rollback, detail));
    }
    let message = format!("a later checkpoint of {} leaves is known already", larger.size);
    Ok(Some(refusal(Reason::Conflict, message)))
}

fn is_among(judged: &Judged, trees: &HashMap<Place, known::Trees>) -> bool {
    let own = judged.seen();
    trees
        .get(&judged.place())
        .is_some_and(|trees| trees.seen.iter().any(|seen| (seen.size, seen.root) == own))
}

/// What waits for an answer.
trait Waits {
    fn posted(self) -> Posted;
}

impl Waits for Posted {
    fn posted(self) -> Posted {
        self
    }
}

impl Waits for Judged {
    fn posted(self) -> Posted {
        self.posted
    }
}

/// The store did not answer: all of them are to come again. What goes on is nothing.
fn refuse_all<T: Waits, U>(group: Vec<T>, error: StoreError) -> Vec<U> {
    let why = unavailable(error);
    group.into_iter().for_each(|one| one.posted().refuse(why.clone()));
    Vec::new()
}
