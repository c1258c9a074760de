//! The check on demand: every account is counted anew from the rows that stand there now, also of jobs that were
//! closed long ago. What was asked comes in, a [`Report`] goes out, to be shown as tables or as lines of JSON.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;
use serde_json::{Value, json};
use weir_core::evidence::key::VerifyingKey;
use weir_core::record::GapReason;

use super::accounts::{self, AT_ONCE};
use super::{JobKey, Judged, Line, Log, Logs, Standing, judge};
use crate::query::table;
use crate::store::{Store, StoreError};

/// What is to be checked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// One job alone, by its key.
    pub job: Option<String>,
    /// Jobs and logs with events from this time on, microseconds since 1970.
    pub since_us: i64,
    /// Whose tombstones are believed.
    pub witnesses: Vec<VerifyingKey>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CompletenessError {
    #[error("there is no job {0}; `weir-collector query --named jobs` lists them by their keys")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How all sums stand.
#[derive(Debug)]
pub struct Report {
    jobs: Vec<(JobKey, Judged)>,
    /// What is missing or doubled in logs, and no job's sums show.
    logs: Logs,
}

#[derive(Debug, Row, Deserialize)]
struct KeyRow {
    tenant: String,
    job_key: String,
}

/// Counts and judges.
pub async fn report(store: &Store, asked: &Asked) -> Result<Report, CompletenessError> {
    let now_us = crate::ingest::now_us();
    let keys = keys(store, asked).await?;
    if let (Some(job), true) = (&asked.job, keys.is_empty()) {
        return Err(CompletenessError::Unknown(job.clone()));
    }
    let mut logs = Logs::new();
    if asked.job.is_none() {
        let question = store.query(
            "SELECT DISTINCT origin FROM events WHERE time >= fromUnixTimestamp64Micro(?) ORDER BY origin",
        );
        let origins: Vec<String> = store.rows(question.bind(asked.since_us)).await?;
        for some in origins.chunks(AT_ONCE) {
            logs.extend(accounts::logs(store, &some.iter().cloned().collect(), &asked.witnesses).await?);
        }
    }
    let mut jobs = Vec::new();
    for (tenant, of_tenant) in &keys {
        for some in of_tenant.chunks(AT_ONCE) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            let accounts = accounts::read(store, tenant, &some).await?;
            let named: BTreeSet<String> = accounts
                .values()
                .flat_map(|one| &one.origins)
                .filter(|one| !logs.contains_key(*one))
                .cloned()
                .collect();
            if !named.is_empty() {
                logs.extend(accounts::logs(store, &named, &asked.witnesses).await?);
            }
            jobs.extend(accounts.into_iter().map(|(key, account)| (key, judge(&account, &mut logs, now_us))));
        }
    }
    if asked.job.is_some() {
        logs.clear();
    }
    logs.retain(|_, log| log.missing > 0 || log.doubled > 0);
    Ok(Report { jobs, logs })
}

/// The jobs by their tenants.
async fn keys(store: &Store, asked: &Asked) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
    let question = store
        .query(
            "SELECT DISTINCT tenant, job_key FROM events \
             WHERE (kind IN ('completeness', 'gap') OR (kind = 'flow' AND connect_verdict != '')) \
               AND time >= fromUnixTimestamp64Micro(?) AND (? OR job_key = ?) ORDER BY tenant, job_key",
        )
        .bind(asked.since_us)
        .bind(asked.job.is_none())
        .bind(asked.job.as_deref().unwrap_or_default());
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in store.rows::<KeyRow>(question).await? {
        keys.entry(row.tenant).or_default().push(row.job_key);
    }
    Ok(keys)
}

impl Report {
    /// Whether every connect that the kernel counted is accounted for, and no log lacks a row or has one twice.
    pub fn is_whole(&self) -> bool {
        self.logs.is_empty() && self.jobs.iter().all(|(_, judged)| judged.findings().next().is_none())
    }

    /// One object for each job and verdict, then one for each log that lacks rows or has them twice.
    pub fn json(&self) -> impl Iterator<Item = Value> + '_ {
        let jobs = self.jobs.iter().flat_map(|(key, judged)| {
            let (name, origin, seq) = judged
                .statement
                .as_ref()
                .map_or(("", "", None), |one| (&one.name, &one.origin, Some(one.seq)));
            let about = move |line: Option<&Line>| {
                json!({
                    "tenant": key.tenant, "job_key": key.job, "name": name, "state": judged.standing.as_str(),
                    "origin": origin, "seq": seq,
                    "verdict": line.map(|line| line.verdict.as_str()),
                    "kernel": line.map_or(0, |line| line.kernel),
                    "recorded": line.map_or(0, |line| line.recorded),
                    "in_flight": line.map_or(0, |line| line.in_flight),
                    "gaps": line.map(|line| &line.gaps).into_iter().flatten()
                        .map(|(reason, n)| (reason.as_str(), *n)).collect::<BTreeMap<_, _>>(),
                    "findings": line.map(|line| &line.findings[..]).unwrap_or_default().iter()
                        .map(|one| json!({ "reason": one.reason.as_str(), "missing": one.missing }))
                        .collect::<Vec<_>>(),
                })
            };
            each(judged).map(about)
        });
        let logs = self.logs.iter().map(|(origin, log)| {
            json!({ "log": origin, "tenant": log.tenant, "host": log.host, "findings": found_of(log) })
        });
        jobs.chain(logs)
    }

    /// Tables, and what they come to.
    pub fn table(&self, cell_width: Option<usize>) -> String {
        let mut out = String::new();
        if !self.jobs.is_empty() {
            let columns = [
                "job",
                "name",
                "state",
                "verdict",
                "kernel",
                "recorded",
                "in flight",
                "gaps",
                "missing",
                "reason",
            ];
            let rows: Vec<Vec<String>> = self
                .jobs
                .iter()
                .flat_map(|(key, judged)| each(judged).map(move |line| cells(key, judged, line)))
                .collect();
            out.push_str(&table::render(&columns.map(str::to_owned), &rows, cell_width));
        }
        if !self.logs.is_empty() {
            out.push_str(
                "\nLogs with rows that are missing or stand there twice, which no job's sums show:\n",
            );
            let columns = ["origin", "host", "missing", "twice"].map(str::to_owned);
            let row = |(origin, log): (&String, &Log)| {
                vec![origin.clone(), log.host.clone(), log.missing.to_string(), log.doubled.to_string()]
            };
            let rows: Vec<Vec<String>> = self.logs.iter().map(row).collect();
            out.push_str(&table::render(&columns, &rows, cell_width));
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out + &self.sentence()
    }

    fn sentence(&self) -> String {
        let closed = [Standing::Closed, Standing::Reopened];
        let closed = self.jobs.iter().filter(|(_, judged)| closed.contains(&judged.standing)).count();
        let of = |reasons: &dyn Fn(GapReason) -> bool| -> i64 {
            let findings = self.jobs.iter().flat_map(|(_, judged)| judged.findings());
            findings.filter(|(_, one)| reasons(one.reason)).map(|(_, one)| one.missing).sum()
        };
        let explained: u64 =
            self.jobs.iter().flat_map(|(_, judged)| &judged.lines).map(Line::explained).sum();
        let verdict = if self.is_whole() { "the sums close" } else { "the sums do NOT close" };
        format!(
            "{verdict}: {} jobs, {closed} of them closed; {explained} connects without a record that agents told of, \
             {} that nobody told of, {} rows too many\n",
            self.jobs.len(),
            of(&|reason| reason != GapReason::Surplus),
            -of(&|reason| reason == GapReason::Surplus),
        )
    }
}

/// A job's lines; one without is still told.
fn each(judged: &Judged) -> impl Iterator<Item = Option<&Line>> {
    let none = judged.lines.is_empty().then_some(None);
    judged.lines.iter().map(Some).chain(none)
}

fn cells(key: &JobKey, judged: &Judged, line: Option<&Line>) -> Vec<String> {
    let name = judged.statement.as_ref().map(|one| one.name.clone()).unwrap_or_default();
    let mut cells = vec![key.job.clone(), name, judged.standing.as_str().to_owned()];
    let Some(line) = line else {
        cells.push("none".into());
        return cells;
    };
    let listed = |parts: Vec<String>| parts.join(", ");
    let gaps = line.gaps.iter().map(|(reason, n)| format!("{} {n}", reason.as_str())).collect();
    let reasons =
        line.findings.iter().map(|one| format!("{} {}", one.reason.as_str(), one.missing)).collect();
    let missing: i64 = line.findings.iter().map(|one| one.missing).sum();
    cells.extend([
        line.verdict.as_str().to_owned(),
        line.kernel.to_string(),
        line.recorded.to_string(),
        line.in_flight.to_string(),
        listed(gaps),
        missing.to_string(),
        listed(reasons),
    ]);
    cells
}

fn found_of(log: &Log) -> Vec<Value> {
    let mut found = Vec::new();
    if log.missing > 0 {
        found.push(json!({ "reason": GapReason::RowsDeleted.as_str(), "missing": log.missing }));
    }
    if log.doubled > 0 {
        found.push(json!({ "reason": GapReason::Surplus.as_str(), "missing": -i128::from(log.doubled) }));
    }
    found
}
