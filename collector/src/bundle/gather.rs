//! A run's events, and all that proves them, out of the store.

use std::collections::{BTreeMap, BTreeSet};

use base64::prelude::{BASE64_STANDARD, Engine};
use clickhouse::Row;
use serde::{Deserialize, Deserializer};
use weir_core::evidence::Hash;
use weir_core::evidence::export::write;
use weir_core::evidence::verify::{Item, StoredBatch, StoredCheckpoint, StoredEvent, StoredKey, Tombstone};
use weir_core::ids::Origin;

use super::{Bundle, MAX_BUNDLE};
use crate::store::{Store, StoreError};

/// The most events of a bundle.
pub const MAX_EVENTS: usize = 100_000;

/// Which run.
#[derive(Debug, Clone)]
pub struct Asked {
    /// As its CI names it.
    pub run: String,
    /// Where two repositories use one id.
    pub repository: Option<String>,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nothing is recorded of the run {0}; `weir-collector query --named calls` shows those that are")]
    Unknown(String),
    #[error("the run id {run} is used by {}; choose one with --repository", repositories.join(", "))]
    Ambiguous { run: String, repositories: Vec<String> },
    #[error("the run has more than {MAX_EVENTS} events or {} MiB: too much for one bundle", MAX_BUNDLE >> 20)]
    TooLarge,
    #[error("the store holds what is no log's: {0}")]
    Odd(String),
}

/// Of the run itself, of its calls, and of what came over its connections.
const EVENTS: &str = "WITH own AS (
    SELECT origin, call_id, flow_id, time FROM events
    WHERE cicd_pipeline_run_id = {run:String} AND vcs_repository_name = {repository:String} AND kind IN ('intent', 'flow')
)
SELECT origin, epoch, seq, batch_first_seq, canonical, leaf_hash FROM events
WHERE origin IN (SELECT origin FROM own)
  AND ((cicd_pipeline_run_id = {run:String} AND vcs_repository_name = {repository:String})
       OR (cicd_pipeline_run_id = ''
           AND (call_id IN (SELECT call_id FROM own WHERE call_id != '')
                OR flow_id IN (SELECT flow_id FROM own WHERE flow_id != ''))))
ORDER BY origin, seq LIMIT {limit:UInt64}";

/// The last time before the run that each policy was loaded that decided on one of its calls.
const POLICIES: &str = "SELECT origin, epoch, seq, batch_first_seq, canonical, leaf_hash FROM events
WHERE kind = 'agent' AND event_name = 'policy.loaded' AND (origin, seq) IN (
    SELECT policies.origin, max(policies.seq)
    FROM policies INNER JOIN (
        SELECT origin, policy_digest, min(seq) AS first FROM events
        WHERE kind = 'intent' AND cicd_pipeline_run_id = {run:String} AND vcs_repository_name = {repository:String}
        GROUP BY origin, policy_digest
    ) AS used ON used.origin = policies.origin AND used.policy_digest = policies.policy_digest
    WHERE policies.seq < used.first
    GROUP BY policies.origin, policies.policy_digest
)";

#[derive(Debug, Row, Deserialize)]
struct EventOf {
    origin: String,
    epoch: u32,
    seq: u64,
    batch_first_seq: u64,
    #[serde(deserialize_with = "bytes")]
    canonical: Vec<u8>,
    leaf_hash: Hash,
}

#[derive(Debug, Row, Deserialize)]
struct BatchOf {
    epoch: u32,
    epoch_first_seq: u64,
    first_seq: u64,
    last_seq: u64,
    tree_size: u64,
    root: Hash,
    frontier: Vec<Hash>,
    leaf_hashes: Vec<Hash>,
    note: String,
}

#[derive(Debug, Row, Deserialize)]
struct CheckpointOf {
    epoch: u32,
    first_seq: u64,
    tree_size: u64,
    root: Hash,
    note: String,
    idle: bool,
}

/// Gathers the run into a bundle. `now_us`: microseconds since 1970.
pub async fn gather(store: &Store, asked: &Asked, now_us: i64) -> Result<Bundle, GatherError> {
    let repository = repository(store, asked).await?;
    let ask = async |sql: &str| -> Result<Vec<EventOf>, GatherError> {
        let question = store.query_raw(sql).param("run", &asked.run).param("repository", &repository);
        Ok(store.rows(question.param("limit", MAX_EVENTS as u64 + 1)).await?)
    };
    let mut logs: BTreeMap<String, BTreeMap<u64, EventOf>> = BTreeMap::new();
    let mut size = 0;
    for event in ask(EVENTS).await?.into_iter().chain(ask(POLICIES).await?) {
        size += event.canonical.len();
        logs.entry(event.origin.clone()).or_default().insert(event.seq, event);
    }
    let events: usize = logs.values().map(BTreeMap::len).sum();
    if events > MAX_EVENTS || size > MAX_BUNDLE / 2 {
        return Err(GatherError::TooLarge);
    }
    let mut lines = Vec::with_capacity(size * 2);
    for (origin, events) in &logs {
        log(store, origin, events, &mut lines).await?;
        if lines.len() > MAX_BUNDLE {
            return Err(GatherError::TooLarge);
        }
    }
    Ok(Bundle::of_run(&asked.run, lines, now_us))
}

/// The run's repository, if it is one.
async fn repository(store: &Store, asked: &Asked) -> Result<String, GatherError> {
    let sql = "SELECT DISTINCT vcs_repository_name FROM events WHERE cicd_pipeline_run_id = {run:String} \
               AND kind IN ('intent', 'flow') ORDER BY 1 LIMIT 20";
    let found: Vec<String> = store.rows(store.query_raw(sql).param("run", &asked.run)).await?;
    match (&asked.repository, found.as_slice()) {
        (Some(wanted), found) if found.contains(wanted) => Ok(wanted.clone()),
        (None, [only]) => Ok(only.clone()),
        (_, []) | (Some(_), _) => Err(GatherError::Unknown(asked.run.clone())),
        (None, _) => Err(GatherError::Ambiguous { run: asked.run.clone(), repositories: found }),
    }
}

/// One log's lines, in the order in which verification takes them.
async fn log(
    store: &Store,
    origin: &str,
    events: &BTreeMap<u64, EventOf>,
    lines: &mut Vec<u8>,
) -> Result<(), GatherError> {
    let name: Origin = origin.parse().map_err(|_| GatherError::Odd(format!("a log called {origin:?}")))?;
    write(&Item::Log { origin: name }, lines);
    let keys: Vec<(u32, u64, String, String)> = store
        .rows(store.query("SELECT epoch, first_seq, key, rotation FROM identities WHERE origin = ? GROUP BY ALL ORDER BY epoch, first_seq").bind(origin))
        .await?;
    for (epoch, first_seq, key, rotation) in keys {
        write(&Item::Key(StoredKey { epoch, first_seq, key, rotation }), lines);
    }
    let (first, last) =
        (events.keys().next().copied().unwrap_or(0), events.keys().last().copied().unwrap_or(0));
    let stones: Vec<(u32, u64, u64, String, String)> = store
        .rows(
            store
                .query("SELECT epoch, first_seq, last_seq, policy, note FROM tombstones WHERE origin = ? AND first_seq <= ? AND last_seq >= ? GROUP BY ALL ORDER BY first_seq")
                .bind(origin)
                .bind(last)
                .bind(first),
        )
        .await?;
    for (epoch, first_seq, last_seq, policy, note) in stones {
        write(&Item::Tombstone(Tombstone { epoch, first_seq, last_seq, policy, note }), lines);
    }
    let firsts: BTreeSet<u64> =
        events.values().filter(|event| event.epoch > 0).map(|event| event.batch_first_seq).collect();
    let batches: Vec<BatchOf> = if firsts.is_empty() {
        Vec::new()
    } else {
        let sql = "SELECT ?fields FROM batches WHERE origin = ? AND first_seq IN ? ORDER BY epoch, first_seq LIMIT 1 BY epoch, first_seq";
        store.rows(store.query(sql).bind(origin).bind(firsts.into_iter().collect::<Vec<_>>())).await?
    };
    let mut behind = 0;
    for batch in &batches {
        let until = batch.first_seq;
        events.range(behind..until).for_each(|(_, event)| event_line(event, lines));
        behind = batch.last_seq.saturating_add(1);
        for checkpoint in checkpoints(store, origin, batch).await? {
            write(&Item::Checkpoint(checkpoint), lines);
        }
        let own: Vec<u64> = events.range(until..behind).map(|(seq, _)| *seq).collect();
        write(&Item::Batch(stored(batch, own)), lines);
        events.range(until..behind).for_each(|(_, event)| event_line(event, lines));
    }
    events.range(behind..).for_each(|(_, event)| event_line(event, lines));
    Ok(())
}

/// What was cosigned of a batch's tree.
async fn checkpoints(
    store: &Store,
    origin: &str,
    batch: &BatchOf,
) -> Result<Vec<StoredCheckpoint>, GatherError> {
    let sql = "SELECT ?fields FROM checkpoints WHERE origin = ? AND epoch = ? AND tree_size = ? ORDER BY time LIMIT 8";
    let found: Vec<CheckpointOf> =
        store.rows(store.query(sql).bind(origin).bind(batch.epoch).bind(batch.tree_size)).await?;
    let of = |one: CheckpointOf| StoredCheckpoint {
        epoch: one.epoch,
        first_seq: one.first_seq,
        size: one.tree_size,
        root: BASE64_STANDARD.encode(one.root),
        idle: one.idle,
        note: one.note,
    };
    Ok(found.into_iter().map(of).collect())
}

fn stored(batch: &BatchOf, only: Vec<u64>) -> StoredBatch {
    StoredBatch {
        epoch: batch.epoch,
        epoch_first_seq: batch.epoch_first_seq,
        first_seq: batch.first_seq,
        last_seq: batch.last_seq,
        size: batch.tree_size,
        root: BASE64_STANDARD.encode(batch.root),
        frontier: BASE64_STANDARD.encode(batch.frontier.as_flattened()),
        leaves: BASE64_STANDARD.encode(batch.leaf_hashes.as_flattened()),
        note: batch.note.clone(),
        only: Some(only),
    }
}

fn event_line(event: &EventOf, lines: &mut Vec<u8>) {
    let EventOf { epoch, seq, canonical, leaf_hash, .. } = event;
    write(&Item::Event(StoredEvent { epoch: *epoch, seq: *seq, canonical, leaf_hash: *leaf_hash }), lines);
}

/// ClickHouse's String: any bytes.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Bytes;
    impl serde::de::Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }
    deserializer.deserialize_bytes(Bytes)
}
