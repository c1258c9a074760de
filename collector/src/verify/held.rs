//! The events of one batch, until its last: rows come in by number, and whether the batch's digest is another than theirs goes out.
//! `events` and `batches` both have that digest, and whoever may write one may write both: it is computed here. Of a batch that
//! lacks a row, or has one twice, nothing is said: the verifier tells of that.

use weir_core::evidence::leaf_hash;
use weir_core::segment::{MAX_EVENTS, batch_digest};

use super::rows::StoredRow;
use crate::rows::BatchRow;

/// See the module. Holds no more than one segment's events.
#[derive(Default)]
pub(super) struct Held {
    first_seq: u64,
    events: Vec<Vec<u8>>,
}

impl Held {
    /// Takes a row of this batch. With its last one: whether the digest is not that of the events, though those are what was signed.
    pub(super) fn is_another_batch(&mut self, row: &StoredRow, batch: &BatchRow) -> bool {
        if row.seq == batch.first_seq {
            self.events.clear();
            self.first_seq = batch.first_seq;
        }
        let held = self.events.len() as u64;
        let is_next = self.first_seq == batch.first_seq && batch.first_seq.checked_add(held) == Some(row.seq);
        if !is_next || held >= MAX_EVENTS {
            return false;
        }
        self.events.push(row.canonical.clone());
        if row.seq != batch.last_seq {
            return false;
        }
        let events = std::mem::take(&mut self.events);
        let differs = batch_digest(events.iter().map(Vec::as_slice)) != batch.batch_digest;
        // Of an event that is another one the verifier tells.
        differs
            && (batch.leaf_hashes.is_empty()
                || events.iter().map(|event| leaf_hash(event)).eq(batch.leaf_hashes.iter().copied()))
    }
}
