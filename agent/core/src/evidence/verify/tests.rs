use base64::prelude::{BASE64_STANDARD, Engine};

use super::*;
use crate::evidence::checkpoint::{Checkpoint, LogName};
use crate::evidence::key::SigningKey;
use crate::evidence::{TreeState, leaf_hash};

/// An honest log of one epoch, and what its batches are.
struct Honest {
    name: LogName,
    key: SigningKey,
    tree: TreeState,
}

impl Honest {
    fn begin() -> Self {
        let origin = Origin::from_random([1; 16]);
        let name = LogName { tenant: "t".into(), host: "h".into(), origin, epoch: 1 };
        Self { name, key: SigningKey::from_seed(&[1; 32]), tree: TreeState::begin(1, 0) }
    }

    fn vkey(&self) -> VerifyingKey {
        self.key.verifying(&self.name.to_string()).unwrap()
    }

    fn trust(&self) -> Trust {
        let pin = Pin { key: self.vkey(), first_seq: 0, stored: None, witnessed: None, also: Vec::new() };
        Trust { v: 1, witnesses: Vec::new(), heartbeat_s: HEARTBEAT_S, logs: vec![pin] }
    }

    fn stored_key(&self) -> StoredKey {
        StoredKey { epoch: 1, first_seq: 0, key: self.vkey().to_string(), rotation: String::new() }
    }

    fn event(seq: u64) -> Vec<u8> {
        format!("{{\"seq\":{seq},\"time_us\":{seq},\"v\":1}}").into_bytes()
    }

    /// The next events, as a batch.
    fn batch(&mut self, events: u64) -> StoredBatch {
        let before = self.tree.clone();
        let paper = |hashes: &[Hash]| BASE64_STANDARD.encode(hashes.concat());
        let leaves: Vec<Hash> =
            (0..events).map(|_| self.tree.push(&Self::event(self.tree.next_seq()))).collect();
        let checkpoint = Checkpoint::of(&self.name, &self.tree, 1);
        StoredBatch {
            epoch: self.name.epoch,
            epoch_first_seq: self.tree.first_seq,
            first_seq: before.next_seq(),
            last_seq: self.tree.next_seq() - 1,
            size: checkpoint.size,
            root: paper(&[checkpoint.root]),
            frontier: paper(before.frontier.nodes()),
            leaves: paper(&leaves),
            note: checkpoint.signed(&self.key).unwrap().to_string(),
            only: None,
        }
    }

    /// What is found of these batches, with the events of these numbers.
    fn found(
        &self,
        scope: Scope,
        key: StoredKey,
        batches: &[StoredBatch],
        seqs: &[u64],
    ) -> Vec<(Kind, u64, u64)> {
        let mut verifier = Verifier::new(&self.trust(), scope, None).unwrap();
        verifier.take(Item::Log { origin: self.name.origin.clone() }, None);
        verifier.take(Item::Key(key), None);
        for batch in batches {
            verifier.take(Item::Batch(batch.clone()), None);
            for seq in seqs.iter().filter(|seq| (batch.first_seq..=batch.last_seq).contains(seq)) {
                let canonical = Self::event(*seq);
                let leaf_hash = leaf_hash(&canonical);
                let event = StoredEvent { epoch: batch.epoch, seq: *seq, canonical: &canonical, leaf_hash };
                verifier.take(Item::Event(event), None);
            }
        }
        let report = verifier.end(None);
        report.findings.iter().map(|one| (one.kind, one.first_seq, one.last_seq)).collect()
    }
}

#[test]
fn only_a_part_of_one_run_may_leave_events_out() {
    let mut log = Honest::begin();
    let batch = StoredBatch { only: Some(vec![1]), ..log.batch(3) };
    for scope in [Scope::All, Scope::Origin, Scope::Range] {
        let found = log.found(scope, log.stored_key(), std::slice::from_ref(&batch), &[1]);
        assert_eq!(found, [(Kind::Deleted, 0, 0), (Kind::Deleted, 2, 2)], "{scope:?}");
    }
    assert_eq!(log.found(Scope::Run, log.stored_key(), std::slice::from_ref(&batch), &[1]), []);
    let without = log.found(Scope::Run, log.stored_key(), &[batch], &[]);
    assert_eq!(without, [(Kind::Deleted, 1, 1)]);
}

#[test]
fn batches_of_a_run_need_not_follow_each_other() {
    let mut log = Honest::begin();
    let batches = [log.batch(3), log.batch(2), log.batch(3)];
    let seqs: Vec<u64> = (0..8).collect();
    let ends = [batches[0].clone(), batches[2].clone()];
    assert_eq!(log.found(Scope::Run, log.stored_key(), &ends, &seqs), []);
    assert_eq!(log.found(Scope::Range, log.stored_key(), &ends, &seqs), [(Kind::Deleted, 3, 4)]);
    assert_eq!(log.found(Scope::All, log.stored_key(), &batches, &seqs), []);
}

#[test]
fn an_epoch_of_which_nothing_came_has_the_key_of_the_one_before_and_what_it_lost_is_named() {
    for (first_seq, epoch) in [(2, 9), (4, 1_790_000_000)] {
        let mut log = Honest::begin();
        let first = log.batch(2);
        log.name.epoch = epoch;
        log.tree = TreeState::begin(epoch, first_seq);
        let later = log.batch(2);
        let lost: &[_] = if first_seq == 2 { &[] } else { &[(Kind::Deleted, 2, 3)] };
        let trust = Honest::begin();
        let found = trust.found(Scope::All, trust.stored_key(), &[first, later], &[0, 1, 2, 3, 4, 5]);
        assert_eq!(found, lost, "{epoch}");
    }
}

#[test]
fn a_stored_key_that_is_not_the_pinned_one_is_found() {
    let mut log = Honest::begin();
    let batch = log.batch(1);
    let other = SigningKey::from_seed(&[9; 32]).verifying(&log.name.to_string()).unwrap();
    let key = StoredKey { key: other.to_string(), ..log.stored_key() };
    assert_eq!(log.found(Scope::All, key, std::slice::from_ref(&batch), &[0]), [(Kind::AnotherKey, 0, 0)]);
    let moved = StoredKey { first_seq: 7, ..log.stored_key() };
    assert_eq!(log.found(Scope::All, moved, &[batch], &[0]), [(Kind::Projection, 0, 0)]);
}

#[test]
fn of_two_witnessed_trees_of_one_size_the_other_is_found_whichever_came_first() {
    let mut log = Honest::begin();
    let batch = log.batch(3);
    let other = Checkpoint { root: [7; 32], ..Checkpoint::of(&log.name, &log.tree, 1) };
    let other = other.signed(&log.key).unwrap().to_string();
    for notes in [[&batch.note, &other], [&other, &batch.note]] {
        let mut trust = log.trust();
        for note in notes {
            trust.witness(note, true).unwrap();
        }
        trust.witness(notes[0], true).unwrap();
        assert_eq!(trust.logs[0].also.len(), 1, "the same one again says nothing new");
        let trust = Trust::read(&serde_json::to_vec(&trust).unwrap()).unwrap();
        let mut verifier = Verifier::new(&trust, Scope::All, None).unwrap();
        verifier.take(Item::Log { origin: log.name.origin.clone() }, None);
        verifier.take(Item::Key(log.stored_key()), None);
        verifier.take(Item::Batch(batch.clone()), None);
        let report = verifier.end(None);
        assert!(report.findings.iter().any(|one| (one.kind, one.first_seq) == (Kind::Forked, 2)));
    }
}

#[test]
fn a_last_batch_that_a_witness_saw_stored_cannot_be_called_an_idle_logs_heartbeats() {
    let mut log = Honest::begin();
    let (first, gone) = (log.batch(3), log.batch(2));
    let idle = StoredCheckpoint {
        epoch: 1,
        first_seq: 0,
        size: gone.size,
        root: gone.root.clone(),
        idle: true,
        note: gone.note.clone(),
    };
    let found = |trust: &Trust| {
        let mut verifier = Verifier::new(trust, Scope::All, None).unwrap();
        verifier.take(Item::Log { origin: log.name.origin.clone() }, None);
        verifier.take(Item::Batch(first.clone()), None);
        for seq in 0..3 {
            let canonical = Honest::event(seq);
            let leaf_hash = leaf_hash(&canonical);
            verifier.take(Item::Event(StoredEvent { epoch: 1, seq, canonical: &canonical, leaf_hash }), None);
        }
        verifier.take(Item::Checkpoint(idle.clone()), None);
        let report = verifier.end(None);
        report.findings.iter().map(|one| (one.kind, one.first_seq, one.last_seq)).collect::<Vec<_>>()
    };
    let mut trust = log.trust();
    trust.witness(&gone.note, false).unwrap();
    assert_eq!(found(&trust), [], "an idle log's leaves may come yet");
    trust.witness(&gone.note, true).unwrap();
    assert_eq!(found(&trust), [(Kind::Truncated, 3, 4)]);
}
