//! What a segment brings to prove itself, against what ClickHouse knows of its log: keys, batches and trees. The batch's row and
//! the cosigned checkpoint go into ClickHouse, each read back.

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::{Frontier, Hash};
use weir_core::record::POLICY_LOADED;
use weir_core::wire::{Reason, Refusal};

use super::read::{Proof, Segment};
use crate::agent::Agent;
use crate::ingest::evidence::{Accused, begun_before, key_of};
use crate::ingest::{Ingest, now_us, refusal, unavailable};
use crate::rows::{BatchRow, CheckpointRow, FindingRow, PolicyRow};
use crate::store::{TOKENS, again};
use crate::witness::judge::{Fault, FaultReason, Standing};
use crate::witness::known::{self, Part, Trees};

/// What is known of a log around a segment.
pub(super) struct Known {
    trees: Trees,
    near: Vec<Near>,
}

/// A batch that reaches into a segment's place, or stands right beside it.
#[derive(Debug, Row, Deserialize)]
struct Near {
    first_seq: u64,
    last_seq: u64,
    batch_digest: String,
    root: Hash,
    frontier: Vec<Hash>,
}

impl Segment {
    /// Whom a finding about it names.
    pub(super) fn accused(&self) -> Accused {
        let first = self.rows.first();
        Accused {
            tenant: first.map(|row| row.tenant.clone()).unwrap_or_default(),
            host_name: first.map(|row| row.host_name.clone()).unwrap_or_default(),
            origin: self.origin.to_string(),
            seq: self.first_seq,
        }
    }
}

impl Ingest {
    /// What no key signs is taken only before the log's first epoch.
    pub(super) async fn has_no_epoch_yet(&self, segment: &Segment) -> Result<(), Refusal> {
        let keys = known::identities(&self.store, &[&segment.origin]).await.map_err(unavailable)?;
        let first = keys.get(segment.origin.as_str()).and_then(|keys| keys.first());
        let by = segment.accused();
        match first {
            Some(first) if (&first.tenant, &first.host_name) != (&by.tenant, &by.host_name) => {
                let message = format!("the log {} is enrolled for another host", segment.origin);
                Err(refusal(Reason::Forbidden, message))
            }
            None => self.is_of_host(&segment.origin, &by.tenant, &by.host_name).await,
            Some(first) if segment.last_seq >= first.first_seq => {
                let message = format!(
                    "the log {} is signed from {} on, and this segment has no checkpoint",
                    segment.origin, first.first_seq
                );
                let fault = Fault::new(FaultReason::BadSignature, message);
                Err(self.unproven(&segment.accused(), fault).await)
            }
            _ => Ok(()),
        }
    }

    /// Whether the epoch's key has signed each checkpoint, and each is of its leaves.
    pub(super) async fn is_signed(
        &self,
        segment: &Segment,
        proof: &Proof,
        agent: &Agent,
    ) -> Result<(), Refusal> {
        let log = proof.run.log();
        let keys = known::identities(&self.store, &[&segment.origin]).await.map_err(unavailable)?;
        let keys = keys.get(segment.origin.as_str()).map(Vec::as_slice).unwrap_or_default();
        let (identity, key) = key_of(keys, log, agent)?;
        // There may be thousands of them, at some 50 us each.
        let notes = proof.notes.clone();
        let opened = tokio::task::spawn_blocking(move || {
            notes.iter().try_for_each(|note| Checkpoint::open(note, &key).map(drop))
        });
        let opened = opened.await.map_err(|error| {
            tracing::error!(%error, "checking a segment's signatures broke");
            refusal(Reason::Unavailable, "the collector cannot check this segment; its log says more")
        })?;
        let fault = if let Err(error) = opened {
            Fault::new(FaultReason::BadSignature, error.to_string())
        } else if let Some(fault) = &proof.fault {
            fault.clone()
        } else if proof.run.checkpoint.first_seq != identity.first_seq {
            let detail = format!("epoch {} began at {}, by its enrolment", log.epoch, identity.first_seq);
            Fault::new(FaultReason::BadRoot, detail)
        } else if let Some(fault) = begun_before(keys, log, segment.last_seq.saturating_add(1)) {
            fault
        } else {
            return Ok(());
        };
        Err(self.unproven(&segment.accused(), fault).await)
    }

    /// All that is known of the log around the segment.
    pub(super) async fn known(&self, segment: &Segment, proof: &Proof) -> Result<Known, Refusal> {
        let part = Part::of(&proof.run);
        let parts = [&part];
        let trees = async { known::trees(&self.store, &parts).await.map_err(unavailable) };
        let (mut trees, near) = tokio::try_join!(trees, self.near(segment, proof))?;
        let trees = trees.remove(&(part.log.origin.to_string(), part.log.epoch)).unwrap_or_default();
        Ok(Known { trees, near })
    }

    /// How the segment's tree stands to that.
    pub(super) async fn judged(
        &self,
        segment: &Segment,
        proof: &Proof,
        known: &Known,
    ) -> Result<Standing, Refusal> {
        let agrees = proof.run.agrees_with(&known.trees.seen);
        let agrees = agrees.and_then(|()| beside(segment, proof, &known.near));
        if let Err(fault) = agrees.and_then(|()| reaches(segment, proof, known)) {
            return Err(self.unproven(&segment.accused(), fault).await);
        }
        match known::standing(&self.store, &proof.run, &known.trees).await {
            Ok(standing) => Ok(standing),
            Err(known::Doubt::Store(error)) => Err(unavailable(error)),
            Err(known::Doubt::Fault(fault)) => Err(self.unproven(&segment.accused(), fault).await),
        }
    }

    async fn near(&self, segment: &Segment, proof: &Proof) -> Result<Vec<Near>, Refusal> {
        let log = proof.run.log();
        let question = self
            .store
            .query(
                "SELECT DISTINCT first_seq, last_seq, batch_digest, root, frontier FROM batches \
                 WHERE tenant = ? AND origin = ? AND epoch = ? AND first_seq <= ? AND last_seq >= ?",
            )
            .bind(&log.tenant)
            .bind(log.origin.as_str())
            .bind(log.epoch)
            .bind(segment.last_seq.saturating_add(1))
            .bind(segment.first_seq.saturating_sub(1));
        self.store.rows(question).await.map_err(unavailable)
    }

    /// Whether a policy has deleted its events since: then its batch stays, and they do not come back.
    pub(super) async fn was_retired(&self, segment: &Segment, known: &Known) -> Result<bool, Refusal> {
        if !known.near.iter().any(|near| near.batch_digest == segment.digest) {
            return Ok(false);
        }
        let question = self
            .store
            .query("SELECT count() FROM tombstones WHERE origin = ? AND first_seq <= ? AND last_seq >= ?")
            .bind(segment.origin.as_str())
            .bind(segment.first_seq)
            .bind(segment.last_seq);
        let covering: Vec<u64> = self.store.rows(question).await.map_err(unavailable)?;
        Ok(covering.first().is_some_and(|covering| *covering > 0))
    }

    /// The batch's row, once, read back with its root; and what is known of the log with that row there.
    pub(super) async fn store_batch(
        &self,
        segment: &Segment,
        proof: &Proof,
        agent: &Agent,
        mut known: Known,
    ) -> Result<Known, Refusal> {
        let row = batch_row(segment, proof, agent);
        let mut is_read_back = false;
        for attempt in 0..=TOKENS {
            match stands(&known.near, segment, &row) {
                Some(true) if is_read_back => return Ok(known),
                Some(true) => {}
                Some(false) => {
                    let fault =
                        Fault::new(FaultReason::Fork, "another batch of this log stands at this place");
                    return Err(self.unproven(&segment.accused(), fault).await);
                }
                None if attempt == TOKENS => break,
                None => {
                    let token =
                        again(format!("batch/{}/{}/{}", row.origin, row.epoch, row.first_seq), attempt);
                    self.store.insert("batches", &token, [&row]).await.map_err(unavailable)?;
                }
            }
            known = self.known(segment, proof).await?;
            is_read_back = true;
        }
        let message = "the store took the segment's batch and does not show it; nothing is acknowledged";
        tracing::error!(origin = %segment.origin, first_seq = segment.first_seq, message);
        Err(refusal(Reason::Unavailable, message))
    }

    /// The policies that were loaded: their versions outlive the events.
    pub(super) async fn store_policies(&self, segment: &Segment) -> Result<(), Refusal> {
        let loaded = segment.rows.iter().filter(|row| row.kind == "agent" && row.event_name == POLICY_LOADED);
        let rows: Vec<PolicyRow> = loaded.map(PolicyRow::of).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let token = format!("policies/{}/{}/{}", segment.origin, segment.epoch, segment.first_seq);
        self.store.insert("policies", &token, &rows).await.map_err(unavailable)
    }

    /// The segment's checkpoint with a cosignature, once that is in ClickHouse.
    pub(super) async fn witnessed(&self, proof: &Proof, known: &Known) -> Result<Option<String>, Refusal> {
        let Some(note) = proof.note() else { return Ok(None) };
        let checkpoint = &proof.run.checkpoint;
        let mut may_be_there = known.trees.cosigned.contains(&(checkpoint.size, checkpoint.root));
        for attempt in 0..=TOKENS {
            let there = if may_be_there { self.cosigned_notes(checkpoint).await? } else { Vec::new() };
            may_be_there = true;
            let own = there
                .into_iter()
                .find(|there| there.starts_with(note.text()) && self.witness.has_cosigned(there));
            if let Some(own) = own {
                return Ok(Some(own));
            }
            if attempt == TOKENS {
                break;
            }
            let row = self.checkpoint_row(note, checkpoint, false)?;
            let token = format!(
                "checkpoint/{}/{}/{}/{:08x}",
                row.origin,
                row.epoch,
                row.tree_size,
                self.witness.public().id()
            );
            self.store.insert("checkpoints", &again(token, attempt), [&row]).await.map_err(unavailable)?;
            self.witness.publish(vec![row]).await;
        }
        let message = "the store took the checkpoint and does not show it; nothing is acknowledged";
        Err(refusal(Reason::Unavailable, message))
    }

    async fn cosigned_notes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, Refusal> {
        let question = self
            .store
            .query(
                "SELECT note FROM checkpoints WHERE tenant = ? AND origin = ? AND epoch = ? AND tree_size = ? \
                 AND NOT idle ORDER BY witnessed_at",
            )
            .bind(&checkpoint.log.tenant)
            .bind(checkpoint.log.origin.as_str())
            .bind(checkpoint.log.epoch)
            .bind(checkpoint.size);
        self.store.rows(question).await.map_err(unavailable)
    }

    /// The row of a checkpoint that is cosigned now.
    pub(in crate::ingest) fn checkpoint_row(
        &self,
        note: &weir_core::evidence::note::SignedNote,
        checkpoint: &Checkpoint,
        idle: bool,
    ) -> Result<CheckpointRow, Refusal> {
        let now_us = now_us();
        let note = self.witness.cosigned(note, now_us);
        let note = note.map_err(|error| refusal(Reason::Malformed, error.to_string()))?;
        Ok(CheckpointRow::of(checkpoint, note.to_string(), idle, now_us))
    }

    pub(super) async fn report_hole(&self, segment: &Segment, proof: &Proof) {
        let before = proof.run.first_seq();
        let detail = format!("events before {before} have not come; its checkpoint is not cosigned");
        let finding = FindingRow { reason: "hole".into(), detail, ..segment.accused().finding() };
        self.find(finding).await;
    }
}

/// Whether what stands at a segment's place is its own batch; `None` when nothing does.
fn stands(near: &[Near], segment: &Segment, row: &BatchRow) -> Option<bool> {
    let mut own = None;
    for near in near {
        if near.first_seq <= segment.last_seq && near.last_seq >= segment.first_seq {
            let is_own =
                (near.first_seq, near.last_seq, near.root) == (row.first_seq, row.last_seq, row.root);
            own = Some(is_own && near.batch_digest == row.batch_digest && own.unwrap_or(true));
        }
    }
    own
}

/// Whether the trees of the batches beside a segment meet its own.
fn beside(segment: &Segment, proof: &Proof, near: &[Near]) -> Result<(), Fault> {
    let run = &proof.run;
    for one in near {
        let meets = if one.last_seq.checked_add(1) == Some(segment.first_seq) {
            one.root == run.before.root()
        } else if segment.last_seq.checked_add(1) == Some(one.first_seq) {
            Frontier::of_parts(run.checkpoint.size, one.frontier.clone())
                .is_some_and(|before| before.root() == run.checkpoint.root)
        } else {
            // One that reaches into the place: what stands there is judged with the events.
            true
        };
        if !meets {
            let detail = format!("the batch of {} to {} is of another tree", one.first_seq, one.last_seq);
            return Err(Fault::new(FaultReason::Fork, detail));
        }
    }
    Ok(())
}

/// Whether a segment that is new brings all leaves that its host has signed for: those of an idle log are in the very segment
/// that comes next. One that ends before them could say something else, and both would be cosigned.
fn reaches(segment: &Segment, proof: &Proof, known: &Known) -> Result<(), Fault> {
    let run = &proof.run;
    let own = (segment.first_seq, segment.last_seq, run.checkpoint.root);
    let is_stored = known.near.iter().any(|near| (near.first_seq, near.last_seq, near.root) == own);
    match run.larger(&known.trees.seen).filter(|_| !is_stored) {
        None => Ok(()),
        Some(larger) => {
            let (size, ends) = (larger.size, run.checkpoint.size);
            let detail =
                format!("the host signed a tree of {size} leaves, and the segment behind it ends at {ends}");
            Err(Fault::new(FaultReason::Rollback, detail))
        }
    }
}

fn batch_row(segment: &Segment, proof: &Proof, agent: &Agent) -> BatchRow {
    let run = &proof.run;
    let first = segment.rows.first();
    BatchRow {
        tenant: run.log().tenant.clone(),
        host_name: run.log().host.clone(),
        origin: segment.origin.to_string(),
        epoch: segment.epoch,
        epoch_first_seq: run.checkpoint.first_seq,
        first_seq: segment.first_seq,
        last_seq: segment.last_seq,
        events: segment.rows.len() as u64,
        batch_digest: segment.digest.clone(),
        tree_size: run.checkpoint.size,
        root: run.checkpoint.root,
        frontier: run.before.nodes().to_vec(),
        leaf_hashes: run.leaves.clone(),
        note: proof.note().map(ToString::to_string).unwrap_or_default(),
        sealed_at: first.map(|row| row.sealed_at).unwrap_or_default(),
        agent_uid: agent.uid(),
        agent_identity: agent.identity(),
        ingested_at: first.map(|row| row.ingested_at).unwrap_or_default(),
    }
}
