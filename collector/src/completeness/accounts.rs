//! Accounts as they stand in ClickHouse: job keys and origins come in, counts over their rows go out. Statements
//! are what agents recorded of the kernel; everything else is counted here, row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::tombstone::Tombstone;
use weir_core::record::{ConnectSums, ConnectVerdict, GapReason};

use super::{Account, JobKey, Log, Logs, Statement};
use crate::store::{Store, StoreError};

/// The most jobs of one round of questions: their keys stand in it several times, and ClickHouse reads 256 KiB of one.
pub(super) const AT_ONCE: usize = 500;

#[derive(Debug, Row, Deserialize)]
struct StatementRow {
    job_key: String,
    origin: String,
    seq: u64,
    time_us: i64,
    stored_us: i64,
    host: String,
    name: String,
    closed: bool,
    kernel: Vec<(String, u64)>,
    lost: Vec<(String, u64)>,
    in_flight: u64,
}

#[derive(Debug, Row, Deserialize)]
struct FlowsRow {
    job_key: String,
    origin: String,
    verdict: String,
    rows: u64,
    events: u64,
    total: u64,
}

#[derive(Debug, Row, Deserialize)]
struct GapRow {
    job_key: String,
    origin: String,
    verdict: String,
    reason: String,
    count: u64,
}

#[derive(Debug, Row, Deserialize)]
struct LogRow {
    origin: String,
    tenant: String,
    host: String,
    rows: u64,
    events: u64,
    last_seq: u64,
}

/// A run of numbers that a log lacks.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(super) struct Run {
    pub first_missing_seq: u64,
    pub missing: u64,
}

/// The accounts of these jobs of one tenant, at most [`AT_ONCE`] of them.
pub(super) async fn read(
    store: &Store,
    tenant: &str,
    jobs: &[&str],
) -> Result<BTreeMap<JobKey, Account>, StoreError> {
    let mut accounts = Accounts { tenant, accounts: BTreeMap::new() };
    for job in jobs {
        accounts.of(job);
    }
    for row in statements(store, tenant, jobs).await? {
        let account = accounts.of(&row.job_key);
        account.origins.insert(row.origin.clone());
        account.statements.push(row.into());
    }
    let asked = Question { store, tenant, jobs, closing: accounts.closing() };
    for row in asked.flows().await? {
        let account = accounts.of(&row.job_key);
        account.origins.insert(row.origin);
        account.later += row.total.saturating_sub(row.rows);
        // A verdict that this program does not know is nobody's row, and so the row is missing where it belongs.
        if let Some(verdict) = ConnectVerdict::labelled(&row.verdict) {
            let recorded = account.recorded.entry(verdict).or_default();
            recorded.rows += row.rows;
            recorded.events += row.events;
        }
    }
    let gaps = asked.gaps("").await?;
    let void = if gaps.iter().any(|row| row.reason == GapReason::AgentEnded.as_str()) {
        asked.gaps(VOID).await?
    } else {
        Vec::new()
    };
    for row in gaps {
        let account = accounts.of(&row.job_key);
        account.origins.insert(row.origin.clone());
        let Some((verdict, reason)) = row.place() else { continue };
        let told = account.gaps.entry(verdict).or_default().entry(reason).or_default();
        *told = told.saturating_add(row.count);
    }
    for row in void {
        let Some((verdict, reason)) = row.place() else { continue };
        let gaps = accounts.of(&row.job_key).gaps.entry(verdict).or_default();
        let left = gaps.get(&reason).map_or(0, |told| told.saturating_sub(row.count));
        gaps.insert(reason, left);
        gaps.retain(|_, told| *told > 0);
    }
    Ok(accounts.accounts)
}

async fn statements(store: &Store, tenant: &str, jobs: &[&str]) -> Result<Vec<StatementRow>, StoreError> {
    let question = store
        .query(
            "SELECT job_key, origin, seq, toUnixTimestamp64Micro(any(time)) AS time_us, \
                    toUnixTimestamp64Micro(any(ingested_at)) AS stored_us, \
                    any(host_name) AS host, any(job_name) AS name, any(job_closed) AS closed, \
                    any(kernel_connects) AS kernel, any(lost_connects) AS lost, \
                    any(connects_in_flight) AS in_flight \
             FROM events WHERE kind = 'completeness' AND tenant = ? AND job_key IN ? \
             GROUP BY job_key, origin, seq ORDER BY seq DESC LIMIT 2 BY job_key, origin",
        )
        .bind(tenant)
        .bind(jobs);
    store.rows(question).await
}

/// Gaps of connects that have a row all the same: the agent ended after it had recorded them, and before it had let go
/// of them. A connect is named by when it was made, and by whom. (Times are compared as canonical JSON has them.)
const VOID: &str = "AND gap_reason = 'agent_ended' AND (job_key, connect_verdict, toUInt32OrZero(event_detail['pid']), \
                        toFloat64OrZero(event_detail['at_ns'])) IN ( \
                        SELECT job_key, connect_verdict, process_pid, toFloat64(connect_boot_ns) \
                        FROM events WHERE kind = 'flow' AND tenant = ? AND job_key IN ?)";

/// What stands before the statement that closes a job. Where nothing closes it, that is all.
const BEFORE: &str = "seq < transform(concat(job_key, '/', origin), ?, ?, toUInt64(18446744073709551615))";

/// Questions about rows of jobs.
struct Question<'q> {
    store: &'q Store,
    tenant: &'q str,
    jobs: &'q [&'q str],
    /// Where jobs are closed, as `job/log`, and the numbers there.
    closing: (Vec<String>, Vec<u64>),
}

impl Question<'_> {
    async fn flows(&self) -> Result<Vec<FlowsRow>, StoreError> {
        let (closing, at) = &self.closing;
        let question = format!(
            "SELECT job_key, origin, connect_verdict AS verdict, countIf({BEFORE}) AS rows, \
                    groupBitmapIf(seq, {BEFORE}) AS events, count() AS total \
             FROM events WHERE kind = 'flow' AND connect_verdict != '' AND tenant = ? AND job_key IN ? \
             GROUP BY job_key, origin, verdict",
        );
        let question = self.store.query(&question).bind(closing).bind(at).bind(closing).bind(at);
        self.store.rows(question.bind(self.tenant).bind(self.jobs)).await
    }

    /// Counts of gaps, each event once; of those alone for which `which` holds.
    async fn gaps(&self, which: &str) -> Result<Vec<GapRow>, StoreError> {
        let (closing, at) = &self.closing;
        let question = format!(
            "SELECT job_key, origin, verdict, reason, sum(one) AS count FROM ( \
                 SELECT job_key, origin, seq, connect_verdict AS verdict, gap_reason AS reason, any(gap_count) AS one \
                 FROM events WHERE kind = 'gap' AND tenant = ? AND job_key IN ? AND {BEFORE} {which} \
                 GROUP BY job_key, origin, seq, verdict, reason \
             ) GROUP BY job_key, origin, verdict, reason",
        );
        let mut question =
            self.store.query(&question).bind(self.tenant).bind(self.jobs).bind(closing).bind(at);
        if !which.is_empty() {
            question = question.bind(self.tenant).bind(self.jobs);
        }
        self.store.rows(question).await
    }
}

impl GapRow {
    fn place(&self) -> Option<(ConnectVerdict, GapReason)> {
        Some((ConnectVerdict::labelled(&self.verdict)?, GapReason::labelled(&self.reason)?))
    }
}

/// The logs of these origins, whole.
pub(super) async fn logs(
    store: &Store,
    origins: &BTreeSet<String>,
    witnesses: &[VerifyingKey],
) -> Result<Logs, StoreError> {
    let question = store
        .query(
            "SELECT origin, any(tenant) AS tenant, any(host_name) AS host, count() AS rows, \
                    groupBitmap(seq) AS events, max(seq) AS last_seq \
             FROM events WHERE origin IN ? GROUP BY origin",
        )
        .bind(origins);
    let rows: Vec<LogRow> = store.rows(question).await?;
    let ends = rows.iter().map(|row| (row.origin.as_str(), row.last_seq)).collect();
    let retired = retired(store, &ends, witnesses).await?;
    let log = |row: LogRow| {
        let absent = row.last_seq.saturating_add(1).saturating_sub(row.events);
        let retired = retired.get(&row.origin).copied().unwrap_or(0).min(absent);
        let log = Log {
            tenant: row.tenant,
            host: row.host,
            missing: absent - retired,
            retired,
            doubled: row.rows.saturating_sub(row.events),
        };
        (row.origin, log)
    };
    Ok(rows.into_iter().map(log).collect())
}

/// A row of `tombstones`. It explains nothing by itself: whoever may write rows may write one.
#[derive(Row, Deserialize)]
struct Stone {
    origin: String,
    first_seq: u64,
    last_seq: u64,
    note: String,
}

impl Stone {
    /// Whether a witness signed just this.
    fn is_signed(&self, witnesses: &[VerifyingKey]) -> bool {
        let note = self.note.parse::<SignedNote>().and_then(|note| Tombstone::open(&note, witnesses));
        note.is_ok_and(|told| {
            (told.log.origin.as_str(), told.first_seq, told.last_seq)
                == (self.origin.as_str(), self.first_seq, self.last_seq)
        })
    }
}

/// The logs of which something was deleted as a tombstone tells that one of these witnesses signed.
pub(crate) async fn with_signed_tombstones(
    store: &Store,
    witnesses: &[VerifyingKey],
) -> Result<BTreeSet<String>, StoreError> {
    let question = store.query("SELECT DISTINCT origin, first_seq, last_seq, note FROM tombstones");
    let mut stones: Vec<Stone> = store.rows(question).await?;
    stones.retain(|stone| stone.is_signed(witnesses));
    Ok(stones.into_iter().map(|stone| stone.origin).collect())
}

/// How many numbers below the end of each log no row has and a tombstone tells of that one of these witnesses signed.
async fn retired(
    store: &Store,
    ends: &BTreeMap<&str, u64>,
    witnesses: &[VerifyingKey],
) -> Result<BTreeMap<String, u64>, StoreError> {
    let question = store
        .query("SELECT DISTINCT origin, first_seq, last_seq, note FROM tombstones WHERE origin IN ? ORDER BY origin, first_seq")
        .bind(ends.keys().collect::<Vec<_>>());
    let mut stones: Vec<Stone> = store.rows(question).await?;
    stones.retain(|stone| stone.is_signed(witnesses));
    let mut stretches: Vec<Stone> = Vec::new();
    for stone in stones {
        match stretches.last_mut() {
            // Side by side, or over one another.
            Some(last)
                if last.origin == stone.origin && stone.first_seq <= last.last_seq.saturating_add(1) =>
            {
                last.last_seq = last.last_seq.max(stone.last_seq);
            }
            _ => stretches.push(stone),
        }
    }
    let mut retired = BTreeMap::new();
    for Stone { origin, first_seq, last_seq, .. } in stretches {
        let last_seq = ends.get(origin.as_str()).map_or(last_seq, |end| last_seq.min(*end));
        if last_seq < first_seq {
            continue;
        }
        let question =
            store.query("SELECT groupBitmap(seq) FROM events WHERE origin = ? AND seq BETWEEN ? AND ?");
        let there: Vec<u64> = store.rows(question.bind(&origin).bind(first_seq).bind(last_seq)).await?;
        let numbers = last_seq.saturating_sub(first_seq).saturating_add(1);
        *retired.entry(origin).or_default() += numbers.saturating_sub(there.first().copied().unwrap_or(0));
    }
    Ok(retired)
}

/// The runs of numbers that a log lacks between rows that stand in `range`, the first `at_most` of them.
pub(super) async fn runs(
    store: &Store,
    origin: &str,
    range: RangeInclusive<u64>,
    at_most: u64,
) -> Result<Vec<Run>, StoreError> {
    let question = store
        .query(
            "SELECT toUInt64(previous + 1) AS first_missing_seq, toUInt64(next - previous - 1) AS missing FROM ( \
                 SELECT toInt64(seq) AS next, lagInFrame(toInt64(seq), 1, if(? = 0, -1, toInt64(seq) - 1)) OVER ( \
                     ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS previous \
                 FROM events WHERE origin = ? AND seq BETWEEN ? AND ? \
             ) WHERE next - previous > 1 ORDER BY first_missing_seq LIMIT ?",
        )
        .bind(range.start())
        .bind(origin)
        .bind(range.start())
        .bind(range.end())
        .bind(at_most);
    store.rows(question).await
}

struct Accounts<'t> {
    tenant: &'t str,
    accounts: BTreeMap<JobKey, Account>,
}

impl Accounts<'_> {
    fn of(&mut self, job: &str) -> &mut Account {
        let key = JobKey { tenant: self.tenant.to_owned(), job: job.to_owned() };
        self.accounts.entry(key).or_default()
    }

    /// The places of the statements that close jobs: `job/log`, and their numbers there. Never empty, since ClickHouse
    /// must be able to tell the type.
    fn closing(&self) -> (Vec<String>, Vec<u64>) {
        let closing = self.accounts.iter().filter_map(|(key, account)| {
            let last = account.closing()?;
            Some((format!("{}/{}", key.job, last.origin), last.seq))
        });
        closing.chain([(String::new(), 0)]).unzip()
    }
}

impl From<StatementRow> for Statement {
    fn from(row: StatementRow) -> Self {
        Self {
            origin: row.origin,
            seq: row.seq,
            time_us: row.time_us,
            stored_us: row.stored_us,
            host: row.host,
            name: row.name,
            closed: row.closed,
            kernel: sums(&row.kernel),
            lost: sums(&row.lost),
            in_flight: row.in_flight,
        }
    }
}

fn sums(by_label: &[(String, u64)]) -> ConnectSums {
    let mut sums = ConnectSums::default();
    for (label, n) in by_label {
        if let Some(verdict) = ConnectVerdict::labelled(label) {
            *sums.of_mut(verdict) = *n;
        }
    }
    sums
}
