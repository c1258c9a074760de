//! What retention asks the store.

use std::collections::BTreeSet;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::Hash;

use super::Stretch;
use crate::config::Retention;
use crate::store::{Store, StoreError};

/// A segment with a tree, of which events are there.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct Segment {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    pub last_seq: u64,
    pub events: u64,
    pub has_tombstone: bool,
}

#[derive(Debug, Row, Deserialize)]
pub(super) struct Event {
    pub seq: u64,
    /// Of its bytes as they are now, whatever they are.
    pub leaf: Hash,
}

#[derive(Debug, Row, Deserialize)]
struct Place {
    origin: String,
    batch_first_seq: u64,
}

/// The segments that were sealed before a moment, microseconds since 1970, in the order of their logs.
pub(super) async fn due(store: &Store, before_us: i64) -> Result<Vec<Segment>, StoreError> {
    let question = store
        .query(
            "SELECT tenant, host_name, origin, epoch, first_seq, last_seq, events, \
                    arrayExists(one -> one.1 <= first_seq AND last_seq <= one.2, stones) AS has_tombstone \
             FROM batches LEFT JOIN ( \
                 SELECT origin, epoch, groupArray((first_seq, last_seq)) AS stones FROM tombstones GROUP BY origin, epoch \
             ) AS buried USING (origin, epoch) \
             WHERE sealed_at < fromUnixTimestamp64Micro(?) AND (origin, first_seq) IN ( \
                 SELECT DISTINCT origin, batch_first_seq FROM events WHERE sealed_at < fromUnixTimestamp64Micro(?)) \
             ORDER BY tenant, origin, epoch, first_seq",
        )
        .bind(before_us)
        .bind(before_us);
    store.rows(question).await
}

/// The segments in which something of a run is that the policy keeps.
pub(super) async fn held(
    store: &Store,
    policy: &Retention,
    before_us: i64,
) -> Result<BTreeSet<(String, u64)>, StoreError> {
    if policy.keep_runs.is_empty() {
        return Ok(BTreeSet::new());
    }
    // An outcome or a message names its call or its connection alone. Read from the bytes that are compared with their leaves:
    // who can write columns must not be able to end a hold.
    let question = store
        .query(
            "WITH runs AS ( \
                 SELECT JSONExtractString(canonical, 'body', 'call_id') AS call, \
                        JSONExtractString(canonical, 'body', 'flow_id') AS flow, \
                        JSONExtractString(canonical, 'body', 'caller', 'job_key') AS job \
                 FROM events WHERE JSONExtractString(canonical, 'body', 'caller', 'job', 'run_id') IN ?) \
             SELECT DISTINCT origin, batch_first_seq FROM ( \
                 SELECT origin, batch_first_seq, \
                        JSONExtractString(canonical, 'body', 'caller', 'job', 'run_id') AS own_run, \
                        JSONExtractString(canonical, 'body', 'call_id') AS own_call, \
                        JSONExtractString(canonical, 'body', 'flow_id') AS own_flow, \
                        JSONExtractString(canonical, 'body', 'job_key') AS own_job \
                 FROM events WHERE sealed_at < fromUnixTimestamp64Micro(?) \
             ) WHERE own_run IN ? \
                 OR (own_call != '' AND own_call IN (SELECT call FROM runs)) \
                 OR (own_flow != '' AND own_flow IN (SELECT flow FROM runs)) \
                 OR (own_job != '' AND own_job IN (SELECT job FROM runs))",
        )
        .bind(&policy.keep_runs)
        .bind(before_us)
        .bind(&policy.keep_runs);
    let places: Vec<Place> = store.rows(question).await?;
    Ok(places.into_iter().map(|place| (place.origin, place.batch_first_seq)).collect())
}

/// Where a segment's tree was before it.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Proof {
    pub epoch_first_seq: u64,
    pub frontier: Vec<Hash>,
}

/// One, unless somebody has changed that.
pub(super) async fn proofs(store: &Store, segment: &Segment) -> Result<Vec<Proof>, StoreError> {
    let question = store
        .query(
            "SELECT epoch_first_seq, frontier FROM batches \
             WHERE origin = ? AND epoch = ? AND first_seq = ? AND last_seq = ?",
        )
        .bind(&segment.origin)
        .bind(segment.epoch)
        .bind(segment.first_seq)
        .bind(segment.last_seq);
    store.rows(question).await
}

/// The checkpoints that end where a segment does, as they were signed.
pub(super) async fn notes(store: &Store, segment: &Segment) -> Result<Vec<String>, StoreError> {
    let question = store
        .query("SELECT note FROM checkpoints WHERE origin = ? AND epoch = ? AND first_seq + tree_size = ?")
        .bind(&segment.origin)
        .bind(segment.epoch)
        .bind(segment.last_seq.saturating_add(1));
    store.rows(question).await
}

/// The leaves of what stands in a segment's place now.
pub(super) async fn events(store: &Store, segment: &Segment) -> Result<Vec<Event>, StoreError> {
    let question = store
        .query(
            "SELECT seq, SHA256(concat(unhex('00'), canonical)) AS leaf FROM events \
             WHERE origin = ? AND seq BETWEEN ? AND ? ORDER BY seq",
        )
        .bind(&segment.origin)
        .bind(segment.first_seq)
        .bind(segment.last_seq);
    store.rows(question).await
}

/// Whether a stretch has its tombstone.
pub(super) async fn is_buried(store: &Store, stretch: &Stretch) -> Result<bool, StoreError> {
    let question = store
        .query(
            "SELECT count() FROM tombstones WHERE origin = ? AND epoch = ? AND first_seq <= ? AND last_seq >= ?",
        )
        .bind(&stretch.origin)
        .bind(stretch.epoch)
        .bind(stretch.first_seq)
        .bind(stretch.last_seq);
    let found: Vec<u64> = store.rows(question).await?;
    Ok(found.first().is_some_and(|n| *n > 0))
}
