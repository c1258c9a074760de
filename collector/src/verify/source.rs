//! What the store has of each log, in the order in which it is verified: batches, checkpoints and rows come out of ClickHouse by
//! windows of numbers, so that memory is bounded whatever is in there; items go to a [`Sink`].

use base64::prelude::{BASE64_STANDARD, Engine};
use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::Hash;
use weir_core::evidence::verify::{
    Item, Scope, StoredBatch, StoredCheckpoint, StoredEvent, StoredKey, Tombstone,
};
use weir_core::ids::Origin;

use super::VerifyError;
use super::rows::{self, StoredRow};
use crate::rows::{BatchRow, CheckpointRow, IdentityRow, TombstoneRow};
use crate::store::Store;

/// How many numbers are read at once: those of one full segment.
const WINDOW: u64 = weir_core::segment::MAX_EVENTS;
/// How often it is looked whether what was being stored when verification began has been witnessed.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(250);

/// Where items go.
pub(super) trait Sink {
    /// The next item.
    fn take(&mut self, item: Item<'_>) -> Result<(), VerifyError>;
    /// What a row of `batches` or `checkpoints` says besides its note, before its item.
    fn told(&mut self, told: &Told<'_>);
    /// A row, before its item: with the columns as the store has them, and the batch that covers it.
    fn row(&mut self, row: &StoredRow, batch: Option<&BatchRow>);
}

/// Columns that only repeat what a checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told<'r> {
    pub(super) table: &'static str,
    pub(super) tenant: &'r str,
    pub(super) host: &'r str,
    pub(super) time: i64,
    pub(super) epoch: u32,
    pub(super) last_seq: u64,
    /// When it was cosigned, microseconds, where the row says it.
    pub(super) witnessed: Option<i64>,
    /// Whether the row's numbers fit each other.
    pub(super) counted: bool,
    pub(super) note: &'r str,
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    All,
    Origin(Origin),
    /// Batches that were sealed between two moments, microseconds since 1970.
    Range {
        from_us: i64,
        to_us: i64,
    },
    /// Batches with events of a pipeline's run; in a store, all batches between them, too.
    Run(String),
}

impl Asked {
    pub fn scope(&self) -> Scope {
        match self {
            Asked::All => Scope::All,
            Asked::Origin(_) => Scope::Origin,
            Asked::Range { .. } => Scope::Range,
            Asked::Run(_) => Scope::Run,
        }
    }
}

/// Which numbers of a log are read.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    first: u64,
    /// Inclusive.
    last: u64,
    /// Checkpoints of more leaves than up to here came while this is running.
    checkpoints_below: u64,
}

#[derive(Debug, Row, Deserialize)]
struct Bounds {
    first: u64,
    last: u64,
}

impl Numbers {
    fn between(bounds: &Bounds) -> Self {
        let Bounds { first, last } = *bounds;
        Self { first, last, checkpoints_below: last.saturating_add(1) }
    }
}

/// Reads what is asked. `settle`: how long what is being stored right now may take to be witnessed. `only_events`: of a run, its
/// own events without the others of their batches.
pub(super) struct Source<'s> {
    pub(super) store: &'s Store,
    pub(super) asked: &'s Asked,
    pub(super) settle: std::time::Duration,
    pub(super) only_events: bool,
    /// Whether rows come with their columns.
    pub(super) with_columns: bool,
}

impl Source<'_> {
    pub(super) async fn read(&self, sink: &mut (impl Sink + Send)) -> Result<(), VerifyError> {
        for origin in self.origins().await? {
            let Ok(parsed) = origin.parse::<Origin>() else { continue };
            let numbers = match self.asked {
                // An export has the run's own events alone, and batches for them.
                Asked::Run(run) if self.only_events => {
                    sink.take(Item::Log { origin: parsed })?;
                    self.heads(&origin, sink).await?;
                    self.run(&origin, run, sink).await?;
                    continue;
                }
                Asked::Run(run) => self.around(&origin, run).await?,
                Asked::Range { from_us, to_us } => self.sealed(&origin, *from_us, *to_us).await?,
                Asked::All | Asked::Origin(_) => Some(self.settled(&origin).await?),
            };
            if let Some(numbers) = numbers {
                sink.take(Item::Log { origin: parsed })?;
                self.heads(&origin, sink).await?;
                self.windows(&origin, numbers, sink).await?;
            }
        }
        Ok(())
    }

    /// The logs that anything is there of.
    async fn origins(&self) -> Result<Vec<String>, VerifyError> {
        let query = match self.asked {
            Asked::Origin(origin) => return Ok(vec![origin.to_string()]),
            Asked::All => self.store.query(
                "SELECT DISTINCT toString(origin) AS origin FROM ( \
                    SELECT origin FROM events UNION ALL SELECT origin FROM batches \
                    UNION ALL SELECT origin FROM checkpoints UNION ALL SELECT origin FROM identities) ORDER BY origin",
            ),
            // Those of which nothing is left in the range, too.
            Asked::Range { .. } => {
                self.store.query("SELECT DISTINCT toString(origin) AS origin FROM batches ORDER BY origin")
            }
            Asked::Run(run) => {
                let question = format!("SELECT DISTINCT toString(origin) AS origin FROM events WHERE {OF_RUN} ORDER BY origin");
                self.store.query(&question).bind(run).bind(run).bind(run)
            }
        };
        let origins: Vec<String> = self.store.rows(query).await?;
        match self.asked {
            Asked::Run(run) if origins.is_empty() => Err(VerifyError::NoRun(run.clone())),
            _ => Ok(origins),
        }
    }

    /// Keys and tombstones.
    async fn heads(&self, origin: &str, sink: &mut impl Sink) -> Result<(), VerifyError> {
        let question = "SELECT ?fields FROM identities WHERE origin = ? ORDER BY epoch, certified_at";
        let keys: Vec<IdentityRow> = self.store.rows(self.store.query(question).bind(origin)).await?;
        for IdentityRow { epoch, first_seq, key, rotation, .. } in keys {
            sink.take(Item::Key(StoredKey { epoch, first_seq, key, rotation }))?;
        }
        let question = "SELECT ?fields FROM tombstones WHERE origin = ? ORDER BY first_seq, retired_at";
        let stones: Vec<TombstoneRow> = self.store.rows(self.store.query(question).bind(origin)).await?;
        for TombstoneRow { epoch, first_seq, last_seq, policy, note, .. } in stones {
            sink.take(Item::Tombstone(Tombstone { epoch, first_seq, last_seq, policy, note }))?;
        }
        Ok(())
    }

    /// All numbers of a log that were there when this began, once they are witnessed: a collector stores a segment's events
    /// before its batch, and that before it cosigns.
    async fn settled(&self, origin: &str) -> Result<Numbers, VerifyError> {
        let witnessed = self.witnessed(origin).await?;
        let question = "SELECT min(n) AS first, max(n) AS last FROM ( \
             SELECT seq AS n FROM events WHERE origin = ? UNION ALL SELECT last_seq AS n FROM batches WHERE origin = ?)";
        let question = self.store.query(question).bind(origin).bind(origin);
        let bounds: Vec<Bounds> = self.store.rows(question).await?;
        let last = bounds.first().map_or(0, |bounds| bounds.last);
        let deadline = tokio::time::Instant::now() + self.settle;
        while witnessed > 0 && self.witnessed(origin).await? <= last && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let checkpoints_below = witnessed.max(last.saturating_add(1));
        Ok(Numbers { first: 0, last, checkpoints_below })
    }

    /// The number behind the last leaf that was witnessed.
    async fn witnessed(&self, origin: &str) -> Result<u64, VerifyError> {
        let question = "SELECT max(first_seq + tree_size) FROM checkpoints WHERE origin = ?";
        let bound: Vec<u64> = self.store.rows(self.store.query(question).bind(origin)).await?;
        Ok(bound.first().copied().unwrap_or(0))
    }

    /// The batches of a range, and one on either side.
    async fn sealed(&self, origin: &str, from_us: i64, to_us: i64) -> Result<Option<Numbers>, VerifyError> {
        let within = "SELECT min(first_seq) AS first, max(last_seq) AS last FROM batches \
             WHERE origin = ? AND sealed_at BETWEEN fromUnixTimestamp64Micro(?) AND fromUnixTimestamp64Micro(?) \
             HAVING count() > 0";
        // Where nothing is within, what stands beside must meet.
        let beside = "SELECT maxIf(first_seq, sealed_at < fromUnixTimestamp64Micro(?)) AS first, \
                 minIf(last_seq, sealed_at > fromUnixTimestamp64Micro(?)) AS last FROM batches WHERE origin = ? \
             HAVING countIf(sealed_at < fromUnixTimestamp64Micro(?)) > 0 \
                 AND countIf(sealed_at > fromUnixTimestamp64Micro(?)) > 0";
        let within = self.store.query(within).bind(origin).bind(from_us).bind(to_us);
        if let Some(within) = self.store.rows::<Bounds>(within).await?.first() {
            return Ok(Some(self.fenced(origin, within.first, within.last).await?));
        }
        let beside =
            self.store.query(beside).bind(from_us).bind(to_us).bind(origin).bind(from_us).bind(to_us);
        let bounds: Vec<Bounds> = self.store.rows(beside).await?;
        Ok(bounds.first().filter(|bounds| bounds.first <= bounds.last).map(Numbers::between))
    }

    /// All batches from the first to the last with events of a run, and one on either side: what was deleted of it is in
    /// nobody's list.
    async fn around(&self, origin: &str, run: &str) -> Result<Option<Numbers>, VerifyError> {
        let question = format!(
            "SELECT min(seq) AS first, max(seq) AS last FROM events WHERE origin = ? AND {OF_RUN} HAVING count() > 0"
        );
        let question = self.store.query(&question).bind(origin).bind(run).bind(run).bind(run);
        let bounds: Vec<Bounds> = self.store.rows(question).await?;
        let Some(Bounds { first, last }) = bounds.first() else { return Ok(None) };
        let question = "SELECT min(first_seq) AS first, max(last_seq) AS last FROM batches \
             WHERE origin = ? AND last_seq >= ? AND first_seq <= ? HAVING count() > 0";
        let question = self.store.query(question).bind(origin).bind(first).bind(last);
        let batches: Vec<Bounds> = self.store.rows(question).await?;
        let (first, last) = batches.first().map_or((*first, *last), |some| (some.first, some.last));
        Ok(Some(self.fenced(origin, first, last).await?))
    }

    /// From the batch before these numbers to the one behind them: what is missing at either end is missing between two then.
    async fn fenced(&self, origin: &str, first: u64, last: u64) -> Result<Numbers, VerifyError> {
        let before = "SELECT max(first_seq) AS first, max(first_seq) AS last FROM batches \
             WHERE origin = ? AND first_seq < ? HAVING count() > 0";
        let behind = "SELECT min(first_seq) AS first, argMin(last_seq, first_seq) AS last FROM batches \
             WHERE origin = ? AND first_seq > ? HAVING count() > 0";
        let before: Vec<Bounds> = self.store.rows(self.store.query(before).bind(origin).bind(first)).await?;
        let behind: Vec<Bounds> = self.store.rows(self.store.query(behind).bind(origin).bind(last)).await?;
        let first = before.first().map_or(first, |before| before.first);
        let last = behind.first().map_or(last, |behind| behind.last);
        Ok(Numbers::between(&Bounds { first, last }))
    }

    async fn windows(
        &self,
        origin: &str,
        numbers: Numbers,
        sink: &mut (impl Sink + Send),
    ) -> Result<(), VerifyError> {
        let mut feed = Feed { batch: None };
        let (mut at, mut checkpoints_from) = (numbers.first, numbers.first);
        while at <= numbers.last {
            let end = at.saturating_add(WINDOW - 1).min(numbers.last);
            let batches = self.batches(origin, at, end).await?;
            let upto = batches.iter().map(|batch| batch.last_seq.saturating_add(1)).max();
            let upto = upto.map_or(end, |upto| upto.max(end)).min(numbers.checkpoints_below);
            let checkpoints = self.checkpoints(origin, checkpoints_from, upto).await?;
            checkpoints_from = checkpoints_from.max(upto);
            let rows = self.rows(origin, at, end).await?;
            let nothing = batches.is_empty() && rows.is_empty();
            feed.window(batches, checkpoints, rows, sink)?;
            let Some(next) = end.checked_add(1) else { break };
            at = if nothing { self.next_number(origin, next).await?.unwrap_or(u64::MAX) } else { next };
            if at == u64::MAX {
                break;
            }
        }
        for checkpoint in self.checkpoints(origin, checkpoints_from, numbers.checkpoints_below).await? {
            pass_checkpoint(&checkpoint, sink)?;
        }
        Ok(())
    }

    /// The next number that anything has: windows without anything are passed over at once.
    async fn next_number(&self, origin: &str, from: u64) -> Result<Option<u64>, VerifyError> {
        let question = "SELECT min(n) FROM ( \
             SELECT seq AS n FROM events WHERE origin = ? AND seq >= ? \
             UNION ALL SELECT first_seq AS n FROM batches WHERE origin = ? AND first_seq >= ?) HAVING count() > 0";
        let question = self.store.query(question).bind(origin).bind(from).bind(origin).bind(from);
        Ok(self.store.rows::<u64>(question).await?.first().copied())
    }

    async fn batches(&self, origin: &str, from: u64, to: u64) -> Result<Vec<BatchRow>, VerifyError> {
        let question = "SELECT ?fields FROM batches WHERE origin = ? AND first_seq BETWEEN ? AND ? \
             ORDER BY epoch, first_seq, ingested_at";
        Ok(self.store.rows(self.store.query(question).bind(origin).bind(from).bind(to)).await?)
    }

    /// Those whose last leaf is at or behind `from`, and before `below`.
    async fn checkpoints(
        &self,
        origin: &str,
        from: u64,
        below: u64,
    ) -> Result<Vec<CheckpointRow>, VerifyError> {
        let question = "SELECT ?fields FROM checkpoints \
             WHERE origin = ? AND first_seq + tree_size > ? AND first_seq + tree_size <= ? \
             ORDER BY epoch, tree_size, witnessed_at";
        Ok(self.store.rows(self.store.query(question).bind(origin).bind(from).bind(below)).await?)
    }

    async fn rows(&self, origin: &str, from: u64, to: u64) -> Result<Vec<StoredRow>, VerifyError> {
        rows::between(self.store, origin, from, to, self.with_columns).await
    }

    /// The batches with events of a run.
    async fn run(&self, origin: &str, run: &str, sink: &mut (impl Sink + Send)) -> Result<(), VerifyError> {
        let question = format!("SELECT DISTINCT seq FROM events WHERE origin = ? AND {OF_RUN} ORDER BY seq");
        let question = self.store.query(&question).bind(origin).bind(run).bind(run).bind(run);
        let seqs: Vec<u64> = self.store.rows(question).await?;
        let mut rest = &seqs[..];
        while let Some(first) = rest.first() {
            let question = "SELECT ?fields FROM batches WHERE origin = ? AND first_seq <= ? AND last_seq >= ? \
                 ORDER BY epoch, first_seq, ingested_at";
            let question = self.store.query(question).bind(origin).bind(first).bind(first);
            let batches: Vec<BatchRow> = self.store.rows(question).await?;
            let last = batches.iter().map(|batch| batch.last_seq).max().unwrap_or(*first);
            let (of_it, others) = rest.split_at(rest.partition_point(|seq| *seq <= last));
            rest = others;
            let from = batches.iter().map(|batch| batch.first_seq).min().unwrap_or(*first);
            let ends: u64 = last.saturating_add(1);
            let checkpoints = self.checkpoints(origin, last, ends).await?;
            let mut rows = self.rows(origin, from, last).await?;
            let only = self.only_events.then(|| of_it.to_vec());
            if let Some(only) = &only {
                rows.retain(|row| only.binary_search(&row.seq).is_ok());
            }
            let mut feed = Feed { batch: None };
            for checkpoint in &checkpoints {
                pass_checkpoint(checkpoint, sink)?;
            }
            for batch in &batches {
                sink.told(&told_by(batch));
                sink.take(Item::Batch(StoredBatch { only: only.clone(), ..stored_batch(batch) }))?;
            }
            feed.batch = batches.into_iter().next();
            rows.iter().try_for_each(|row| feed.row(row, sink))?;
        }
        Ok(())
    }
}

/// Of which events a run is: what names it, and what belongs to the calls and flows that do. Binds the run three times.
const OF_RUN: &str = "(cicd_pipeline_run_id = ? \
     OR (call_id != '' AND (origin, call_id) IN \
         (SELECT origin, call_id FROM events WHERE cicd_pipeline_run_id = ? AND call_id != '')) \
     OR (flow_id != '' AND (origin, flow_id) IN \
         (SELECT origin, flow_id FROM events WHERE cicd_pipeline_run_id = ? AND flow_id != '')))";

/// Puts what windows hold into one order.
struct Feed {
    /// The last one that was passed on.
    batch: Option<BatchRow>,
}

impl Feed {
    fn window(
        &mut self,
        batches: Vec<BatchRow>,
        checkpoints: Vec<CheckpointRow>,
        rows: Vec<StoredRow>,
        sink: &mut impl Sink,
    ) -> Result<(), VerifyError> {
        let mut rows = rows.into_iter().peekable();
        let mut checkpoints = checkpoints.into_iter().peekable();
        for batch in batches {
            while let Some(row) = rows.next_if(|row| row.seq < batch.first_seq) {
                self.row(&row, sink)?;
            }
            let before = |one: &CheckpointRow| {
                let next = one.first_seq.saturating_add(one.tree_size);
                (one.epoch, next) <= (batch.epoch, batch.last_seq.saturating_add(1))
            };
            while let Some(checkpoint) = checkpoints.next_if(before) {
                pass_checkpoint(&checkpoint, sink)?;
            }
            sink.told(&told_by(&batch));
            sink.take(Item::Batch(stored_batch(&batch)))?;
            self.batch = Some(batch);
        }
        for row in rows {
            self.row(&row, sink)?;
        }
        checkpoints.try_for_each(|one| pass_checkpoint(&one, sink))
    }

    fn row(&self, row: &StoredRow, sink: &mut impl Sink) -> Result<(), VerifyError> {
        let covers = |batch: &&BatchRow| (batch.first_seq..=batch.last_seq).contains(&row.seq);
        sink.row(row, self.batch.as_ref().filter(covers));
        let StoredRow { epoch, seq, leaf_hash, canonical, .. } = row;
        sink.take(Item::Event(StoredEvent { epoch: *epoch, seq: *seq, canonical, leaf_hash: *leaf_hash }))
    }
}

fn pass_checkpoint(row: &CheckpointRow, sink: &mut impl Sink) -> Result<(), VerifyError> {
    sink.told(&Told {
        table: "checkpoint",
        tenant: &row.tenant,
        host: &row.host_name,
        time: row.time,
        epoch: row.epoch,
        last_seq: row.first_seq.saturating_add(row.tree_size).saturating_sub(1),
        witnessed: Some(row.witnessed_at),
        counted: true,
        note: &row.note,
    });
    sink.take(Item::Checkpoint(stored_checkpoint(row)))
}

fn told_by(row: &BatchRow) -> Told<'_> {
    Told {
        table: "batch",
        tenant: &row.tenant,
        host: &row.host_name,
        time: row.sealed_at,
        epoch: row.epoch,
        last_seq: row.last_seq,
        witnessed: None,
        counted: row
            .last_seq
            .checked_sub(row.first_seq)
            .is_some_and(|n| n.checked_add(1) == Some(row.events)),
        note: &row.note,
    }
}

fn base64(hashes: &[Hash]) -> String {
    BASE64_STANDARD.encode(hashes.as_flattened())
}

fn stored_batch(row: &BatchRow) -> StoredBatch {
    StoredBatch {
        epoch: row.epoch,
        epoch_first_seq: row.epoch_first_seq,
        first_seq: row.first_seq,
        last_seq: row.last_seq,
        size: row.tree_size,
        root: base64(&[row.root]),
        frontier: base64(&row.frontier),
        leaves: base64(&row.leaf_hashes),
        note: row.note.clone(),
        only: None,
    }
}

fn stored_checkpoint(row: &CheckpointRow) -> StoredCheckpoint {
    StoredCheckpoint {
        epoch: row.epoch,
        first_seq: row.first_seq,
        size: row.tree_size,
        root: base64(&[row.root]),
        idle: row.idle,
        note: row.note.clone(),
    }
}
