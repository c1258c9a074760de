//! The check of a collector that serves: which jobs' statements were stored comes in; rows of `findings` and log
//! lines go out. It runs behind the acknowledgements and holds none of them up.
//!
//! A closed job is checked at once, a running one some time after its statement (then that one is settled), and as often
//! at most. A finding is written when it is new
//! or its number has changed. What a collector that ends has not checked, the next one does: it begins with the
//! statements that were stored in the last [`LOOK_BACK_US`].
//!
//! # Limits
//! [`MAX_WAITING`] jobs wait; what is past them is told in the log, and `weir-collector completeness` checks it. Of
//! a log the last [`WINDOW`] numbers before a statement are looked at, and [`MAX_RUNS`] runs that are missing there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clickhouse::Row;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weir_core::evidence::key::VerifyingKey;
use weir_core::ids::hex;
use weir_core::record::GapReason;

use super::accounts::{self, AT_ONCE};
use super::{Account, JobKey, Judged, Logs, SETTLED_US, Standing, judge};
use crate::rows::{EventRow, FindingRow};
use crate::store::{Store, StoreError, TOKENS, again};

/// The most jobs that wait to be checked.
const MAX_WAITING: usize = 50_000;
/// How long after its statement a running job is checked.
const RUNNING_AFTER: Duration = Duration::from_micros(SETTLED_US.cast_unsigned() + 5_000_000);
/// The longest that it rests when nothing is told.
const REST: Duration = Duration::from_secs(60);
/// How long a check that failed waits to be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How far back a collector looks when it begins, microseconds.
const LOOK_BACK_US: i64 = 3_600_000_000;
/// Numbers of a log that are looked at.
const WINDOW: u64 = 100_000;
/// Runs of missing numbers in them.
const MAX_RUNS: u64 = 100;

/// Checks jobs as their statements come in.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    /// Whose tombstones are believed.
    witnesses: [VerifyingKey; 1],
    waiting: Mutex<Waiting>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// And when they are to be checked.
    jobs: BTreeMap<JobKey, Instant>,
    logs: BTreeMap<String, LogEnd>,
    left_out: u64,
}

/// How far a log has come.
#[derive(Debug, Clone)]
struct LogEnd {
    tenant: String,
    host: String,
    seq: u64,
}

/// A stored segment's statements.
#[derive(Debug)]
pub struct Told {
    jobs: BTreeMap<JobKey, bool>,
    origin: String,
    end: LogEnd,
}

impl Told {
    /// What the rows of one segment state, if they do.
    pub fn of(rows: &[EventRow]) -> Option<Self> {
        let statements = || rows.iter().filter(|row| row.kind == "completeness");
        let last = statements().next_back()?;
        let end = LogEnd { tenant: last.tenant.clone(), host: last.host_name.clone(), seq: last.seq };
        let mut jobs = BTreeMap::new();
        for row in statements() {
            let key = JobKey { tenant: row.tenant.clone(), job: row.job_key.clone() };
            *jobs.entry(key).or_default() |= row.job_closed;
        }
        Some(Self { jobs, origin: last.origin.clone(), end })
    }
}

/// Some of what waits: jobs of one tenant, and logs.
struct Batch {
    tenant: String,
    jobs: BTreeSet<JobKey>,
    logs: BTreeMap<String, LogEnd>,
}

#[derive(Debug, Row, Deserialize)]
struct Recent {
    tenant: String,
    job_key: String,
    closed: bool,
}

#[derive(Debug, Row, Deserialize)]
struct Known {
    job_key: String,
    connect_verdict: String,
    reason: String,
    log: String,
    at: u64,
    missing: i64,
}

impl Watch {
    pub fn new(store: Store, witness: VerifyingKey) -> Self {
        Self { store, witnesses: [witness], waiting: Mutex::default(), told: Notify::new() }
    }

    /// Notes what is to be checked, and does not wait.
    pub fn tell(&self, told: Told) {
        let mut waiting = self.waiting();
        for (key, closed) in told.jobs {
            waiting.add(key, due(closed));
        }
        waiting.logs.insert(told.origin, told.end);
        drop(waiting);
        self.told.notify_one();
    }

    /// Checks until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut begun = false;
        while !stop.is_cancelled() {
            if !begun {
                begun = self.done("the statements of the last hour", self.recent().await);
            }
            let mut failed = !begun;
            while let Some(batch) = self.next().filter(|_| !stop.is_cancelled()) {
                if !self.done("jobs' sums", self.check(&batch).await) {
                    self.put_back(batch);
                    failed = true;
                    break;
                }
            }
            let pause = tokio::time::sleep(if failed { RETRY_AFTER } else { self.rest() });
            tokio::select! {
                () = stop.cancelled() => {}
                () = pause => {}
                () = self.told.notified(), if !failed => {}
            }
        }
    }

    fn done(&self, what: &str, result: Result<(), StoreError>) -> bool {
        if let Err(error) = &result {
            tracing::warn!(%error, "cannot check {what} now");
        }
        result.is_ok()
    }

    async fn recent(&self) -> Result<(), StoreError> {
        let question = self
            .store
            .query(
                "SELECT tenant, job_key, max(job_closed) AS closed FROM events \
                 WHERE kind = 'completeness' AND ingested_at >= fromUnixTimestamp64Micro(?) \
                 GROUP BY tenant, job_key LIMIT ?",
            )
            .bind(crate::ingest::now_us().saturating_sub(LOOK_BACK_US))
            .bind(MAX_WAITING as u64);
        let recent: Vec<Recent> = self.store.rows(question).await?;
        let mut waiting = self.waiting();
        for row in recent {
            waiting.add(JobKey { tenant: row.tenant, job: row.job_key }, due(row.closed));
        }
        Ok(())
    }

    async fn check(&self, batch: &Batch) -> Result<(), StoreError> {
        let jobs: Vec<&str> = batch.jobs.iter().map(|key| key.job.as_str()).collect();
        let mut found = Vec::new();
        if !jobs.is_empty() {
            let accounts = accounts::read(&self.store, &batch.tenant, &jobs).await?;
            let judged = self.judged(&accounts).await?;
            for (key, judged) in &judged {
                let closes = matches!(judged.standing, Standing::Closed | Standing::Reopened);
                if closes && !judged.is_early && judged.findings().next().is_none() {
                    tracing::info!(job = key.job, "a job is closed, and its sums close");
                }
                if judged.is_early {
                    self.waiting().add(key.clone(), due(false));
                }
                found.extend(rows(key, judged));
            }
        }
        for (origin, end) in &batch.logs {
            let window = end.seq.saturating_sub(WINDOW)..=end.seq;
            for run in accounts::runs(&self.store, origin, window, MAX_RUNS).await? {
                found.push(FindingRow {
                    tenant: end.tenant.clone(),
                    host_name: end.host.clone(),
                    origin: origin.clone(),
                    seq: run.first_missing_seq,
                    reason: GapReason::RowsDeleted.as_str().to_owned(),
                    missing: i64::try_from(run.missing).unwrap_or(i64::MAX),
                    ..FindingRow::default()
                });
            }
        }
        self.write(found).await
    }

    /// Logs are counted through only when something is to be explained.
    async fn judged(
        &self,
        accounts: &BTreeMap<JobKey, Account>,
    ) -> Result<Vec<(JobKey, Judged)>, StoreError> {
        let now_us = crate::ingest::now_us();
        let all = |logs: &mut Logs| -> Vec<_> {
            accounts.iter().map(|(key, account)| (key.clone(), judge(account, logs, now_us))).collect()
        };
        let judged = all(&mut Logs::new());
        let short = judged.iter().filter(|(_, judged)| judged.findings().next().is_some());
        let origins: BTreeSet<String> =
            short.filter_map(|(key, _)| accounts.get(key)).flat_map(|one| one.origins.clone()).collect();
        if origins.is_empty() {
            return Ok(judged);
        }
        Ok(all(&mut accounts::logs(&self.store, &origins, &self.witnesses).await?))
    }

    /// Writes what is new, and reads it back.
    async fn write(&self, mut found: Vec<FindingRow>) -> Result<(), StoreError> {
        let mut by_tenant: BTreeMap<String, Vec<FindingRow>> = BTreeMap::new();
        for row in found.drain(..) {
            by_tenant.entry(row.tenant.clone()).or_default().push(row);
        }
        for (tenant, mut rows) in by_tenant {
            self.drop_known(&tenant, &mut rows).await?;
            for row in &rows {
                tracing::warn!(
                    job = row.job_key,
                    name = row.job_name,
                    verdict = row.connect_verdict,
                    reason = row.reason,
                    missing = row.missing,
                    kernel = row.kernel,
                    recorded = row.recorded,
                    explained = row.explained,
                    origin = row.origin,
                    seq = row.seq,
                    "what the kernel counted and what is recorded differ"
                );
            }
            let digest = Sha256::digest(serde_json::to_vec(&rows).unwrap_or_default());
            let found_at = crate::ingest::now_us();
            rows.iter_mut().for_each(|row| row.found_at = found_at);
            for attempt in 0..TOKENS {
                if rows.is_empty() {
                    break;
                }
                let token = again(format!("findings/{}", hex(&digest)), attempt);
                self.store.insert("findings", &token, &rows).await?;
                self.drop_known(&tenant, &mut rows).await?;
            }
            if !rows.is_empty() {
                tracing::error!(rows = rows.len(), "the store took findings and does not show them");
            }
        }
        Ok(())
    }

    /// Takes away what `findings` says already: of a job its last number for that verdict and reason, of a log the
    /// same run.
    async fn drop_known(&self, tenant: &str, rows: &mut Vec<FindingRow>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let jobs: BTreeSet<&str> = rows.iter().map(|row| row.job_key.as_str()).collect();
        let origins: BTreeSet<&str> = rows.iter().map(|row| row.origin.as_str()).collect();
        let question = self
            .store
            .query(
                "SELECT job_key, connect_verdict, reason, if(job_key = '', origin, '') AS log, \
                        if(job_key = '', seq, 0) AS at, argMax(missing, found_at) AS missing \
                 FROM findings WHERE tenant = ? AND job_key IN ? AND (job_key != '' OR origin IN ?) \
                 GROUP BY job_key, connect_verdict, reason, log, at",
            )
            .bind(tenant)
            .bind(&jobs)
            .bind(&origins);
        let known: Vec<Known> = self.store.rows(question).await?;
        rows.retain(|row| {
            let place = if row.job_key.is_empty() { (row.origin.as_str(), row.seq) } else { ("", 0) };
            !known.iter().any(|one| {
                (one.job_key.as_str(), one.connect_verdict.as_str(), one.reason.as_str(), one.missing)
                    == (row.job_key.as_str(), row.connect_verdict.as_str(), row.reason.as_str(), row.missing)
                    && (one.log.as_str(), one.at) == place
            })
        });
        Ok(())
    }

    fn next(&self) -> Option<Batch> {
        let mut waiting = self.waiting();
        if waiting.left_out > 0 {
            let jobs = std::mem::take(&mut waiting.left_out);
            tracing::error!(jobs, "too many jobs at once to check: run `weir-collector completeness`");
        }
        let logs = std::mem::take(&mut waiting.logs);
        let now = Instant::now();
        let mut due = waiting.jobs.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key).peekable();
        let tenant = due.peek().map(|key| key.tenant.clone()).unwrap_or_default();
        let jobs: BTreeSet<JobKey> =
            due.take_while(|key| key.tenant == tenant).take(AT_ONCE).cloned().collect();
        for key in &jobs {
            waiting.jobs.remove(key);
        }
        (!jobs.is_empty() || !logs.is_empty()).then_some(Batch { tenant, jobs, logs })
    }

    /// Until the next job is due.
    fn rest(&self) -> Duration {
        let next = self.waiting().jobs.values().min().copied();
        next.map_or(REST, |at| at.saturating_duration_since(Instant::now()).min(REST))
    }

    fn put_back(&self, batch: Batch) {
        let mut waiting = self.waiting();
        for key in batch.jobs {
            waiting.add(key, Instant::now());
        }
        for (origin, end) in batch.logs {
            waiting.logs.entry(origin).or_insert(end);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, key: JobKey, at: Instant) {
        let room = self.jobs.len() < MAX_WAITING;
        match self.jobs.get_mut(&key) {
            Some(waits) => *waits = at.min(*waits),
            None if room => drop(self.jobs.insert(key, at)),
            None => self.left_out += 1,
        }
    }
}

fn due(closed: bool) -> Instant {
    if closed { Instant::now() } else { Instant::now() + RUNNING_AFTER }
}

/// A job's findings as rows, at the statement that was judged.
fn rows(key: &JobKey, judged: &Judged) -> Vec<FindingRow> {
    let Some(statement) = &judged.statement else { return Vec::new() };
    let row = |(line, finding): (&super::Line, &super::Finding)| FindingRow {
        found_at: 0,
        tenant: key.tenant.clone(),
        host_name: statement.host.clone(),
        origin: statement.origin.clone(),
        seq: statement.seq,
        job_key: key.job.clone(),
        job_name: statement.name.clone(),
        connect_verdict: line.verdict.as_str().to_owned(),
        reason: finding.reason.as_str().to_owned(),
        kernel: line.kernel,
        in_flight: line.in_flight,
        recorded: line.recorded,
        explained: line.explained(),
        missing: finding.missing,
        detail: String::new(),
    };
    judged.findings().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> JobKey {
        JobKey { tenant: "t".into(), job: n.to_string() }
    }

    #[test]
    fn past_the_limit_jobs_are_counted_and_those_that_wait_keep_their_place() {
        let mut waiting = Waiting::default();
        let (soon, late) = (Instant::now(), Instant::now() + RUNNING_AFTER);
        for n in 0..=MAX_WAITING {
            waiting.add(key(n), late);
        }
        assert_eq!((waiting.jobs.len(), waiting.left_out), (MAX_WAITING, 1));
        waiting.add(key(0), soon);
        waiting.add(key(0), late);
        assert_eq!((waiting.jobs[&key(0)], waiting.left_out), (soon, 1), "closed: checked at once");
    }

    #[test]
    fn a_segment_tells_its_jobs_once_and_closed_if_any_statement_says_so() {
        let row = |seq: u64, kind: &'static str, job_key: &str, job_closed: bool| EventRow {
            seq,
            kind,
            job_key: job_key.to_owned(),
            job_closed,
            ..EventRow::default()
        };
        assert!(Told::of(&[row(0, "flow", "1", false)]).is_none());
        let rows = [
            row(0, "completeness", "1", true),
            row(1, "completeness", "1", false),
            row(2, "completeness", "2", false),
            row(3, "flow", "3", false),
        ];
        let told = Told::of(&rows).unwrap();
        let jobs: Vec<_> = told.jobs.iter().map(|(key, closed)| (key.job.as_str(), *closed)).collect();
        assert_eq!((jobs, told.end.seq), (vec![("1", true), ("2", false)], 2));
    }
}
