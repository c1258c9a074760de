//! Verification: the records of a store or of an export come in, with what an auditor trusts; what is wrong with them goes out,
//! each with its place. An export is verified offline. In a store the columns are projected anew from the canonical bytes, the
//! definitions of tables and views compared, and the kernel's sums counted. Nothing here writes a record.

mod archive;
mod binary;
mod definitions;
mod held;
mod pins;
mod rows;
mod source;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::export::{Manifest, VERSION};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::verify::{
    Finding, Item, Kind, MAX_FINDINGS, Report, Scope, Trust, TrustError, Verifier,
};

pub use pins::{TrustFileError, pins, read_trust};
pub use source::Asked;

use crate::completeness::{self, CompletenessError};
use crate::rows::BatchRow;
use crate::store::migrate::MigrateError;
use crate::store::{Store, StoreError};
use held::Held;
use rows::StoredRow;
use source::{Sink, Source, Told};

/// How long what is being stored may take to be witnessed.
pub const SETTLE: Duration = Duration::from_secs(10);

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Migrations(#[from] MigrateError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Completeness(#[from] CompletenessError),
    #[error("cannot read the export {path}: {source}", path = path.display())]
    Export { path: PathBuf, source: io::Error },
    #[error("cannot write the export {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("ClickHouse answered with something else than rows of events: is it another version?")]
    Rows,
    #[error("no event is of the run {0}; `weir-collector query --named calls` lists runs")]
    NoRun(String),
}

/// What is checked of a store besides its logs.
#[derive(Debug, Clone, Copy)]
pub struct Besides {
    pub settle: Duration,
    /// Definitions and the kernel's sums; of a whole store alone.
    pub everything: bool,
}

/// Verifies what a store has.
pub async fn store(
    store: &Store,
    asked: &Asked,
    trust: &Trust,
    besides: Besides,
) -> Result<Report, VerifyError> {
    let now_us = crate::ingest::now_us();
    let only = match asked {
        Asked::Origin(origin) => Some(origin.clone()),
        _ => None,
    };
    // What was deleted of a run does not say that it was of it: a store's batches come without a hole.
    let scope = if let Asked::Run(_) = asked { Scope::Range } else { asked.scope() };
    let mut verifier = Verifier::new(trust, scope, only)?;
    if *asked == Asked::All {
        for finding in strangers(store).await? {
            verifier.found(finding);
        }
    }
    let mut checker =
        Checker { verifier, origin: String::new(), now_us, columns: Vec::new(), held: Held::default() };
    let source = Source { store, asked, settle: besides.settle, only_events: false, with_columns: true };
    source.read(&mut checker).await?;
    let Checker { mut verifier, columns, .. } = checker;
    columns.into_iter().for_each(|finding| verifier.found(finding));
    if besides.everything && *asked == Asked::All {
        for finding in definitions::check(store, now_us).await? {
            verifier.found(finding);
        }
        for finding in sums(store, trust).await? {
            verifier.found(finding);
        }
    }
    Ok(verifier.end(Some(now_us)))
}

/// Rows of logs that no agent can have: nothing else looks at them, and analysts' questions do.
async fn strangers(store: &Store) -> Result<Vec<Finding>, VerifyError> {
    let mut findings = Vec::new();
    for table in ["events", "batches", "checkpoints", "identities", "tombstones"] {
        let question = format!(
            "SELECT DISTINCT toString(origin) FROM {table} WHERE NOT match(origin, '^[0-9a-f]{{32}}$') LIMIT 100"
        );
        let origins: Vec<String> = store.rows(store.query_raw(&question)).await?;
        findings.extend(origins.into_iter().map(|origin| Finding {
            kind: Kind::Unpinned,
            fault: true,
            detail: format!("rows of {origin:?}, which is no log's name"),
            origin,
            epoch: 0,
            first_seq: 0,
            last_seq: 0,
            what: table.to_owned(),
        }));
    }
    Ok(findings)
}

/// Verifies an export, offline. What part it is of, it says itself: so it must be what was asked for. Returns what it says, too.
pub fn export(path: &Path, trust: &Trust, asked: Scope) -> Result<(Report, Manifest), VerifyError> {
    let begin = |manifest: &Manifest| {
        let only = manifest.of.parse().ok();
        Ok(Verifier::new(trust, manifest.scope, only)?)
    };
    let (mut verifier, manifest) = archive::read(path, begin)?;
    if manifest.scope != asked {
        verifier.unreadable(&format!(
            "it says that it is of the part {}, and {} was asked for: name that by --scope, if it is what you wanted",
            manifest.scope.as_str(),
            asked.as_str()
        ));
    }
    Ok((verifier.end(Some(manifest.made_us)), manifest))
}

/// Writes what a store has of `asked` into an export; how many events are in it.
pub async fn write(store: &Store, asked: &Asked, settle: Duration, path: &Path) -> Result<u64, VerifyError> {
    let wrong = |source| VerifyError::Write { path: path.to_owned(), source };
    let of = match asked {
        Asked::Origin(origin) => origin.to_string(),
        Asked::Run(run) => run.clone(),
        Asked::All | Asked::Range { .. } => String::new(),
    };
    let manifest =
        Manifest { weir_export: VERSION, scope: asked.scope(), of, made_us: crate::ingest::now_us() };
    let writer = archive::Writer::create(path, &manifest).map_err(wrong)?;
    let mut exporter = Exporter { writer, events: 0, path };
    let source = Source { store, asked, settle, only_events: true, with_columns: false };
    source.read(&mut exporter).await?;
    let Exporter { writer, events, .. } = exporter;
    writer.finish().map_err(wrong)?;
    Ok(events)
}

/// Connects that nothing accounts for. Of logs that a policy has taken events from, sums cannot close.
async fn sums(store: &Store, trust: &Trust) -> Result<Vec<Finding>, VerifyError> {
    // A row that nobody signed takes no log from what is counted.
    let retired = completeness::with_signed_tombstones(store, &trust.witnesses).await?;
    let asked = completeness::Asked { witnesses: trust.witnesses.clone(), ..completeness::Asked::default() };
    let report = completeness::report(store, &asked).await?;
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let findings = report.json().filter_map(|one| {
        let origin = text(&one, "origin");
        let found = one.get("findings").and_then(Value::as_array).is_some_and(|some| !some.is_empty());
        let job = text(&one, "job_key");
        if !found || job.is_empty() || retired.contains(&origin) {
            return None;
        }
        let seq = one.get("seq").and_then(Value::as_u64).unwrap_or(0);
        Some(Finding {
            kind: Kind::Unaccounted,
            fault: true,
            origin,
            epoch: 0,
            first_seq: seq,
            last_seq: seq,
            what: format!("job {job}"),
            detail: format!("{} {}", text(&one, "verdict"), one.get("findings").unwrap_or(&Value::Null)),
        })
    });
    Ok(findings.collect())
}

/// Verifies each item, and compares each row's columns.
struct Checker {
    verifier: Verifier,
    origin: String,
    now_us: i64,
    /// Findings of columns: behind those of the logs, so that those stay together.
    columns: Vec<Finding>,
    held: Held,
}

impl Sink for Checker {
    fn take(&mut self, item: Item<'_>) -> Result<(), VerifyError> {
        if let Item::Log { origin } = &item {
            self.origin = origin.to_string();
            self.held = Held::default();
        }
        self.verifier.take(item, Some(self.now_us));
        Ok(())
    }

    fn told(&mut self, told: &Told<'_>) {
        // A note that is none has a finding of the verifier's.
        let Ok(note) = told.note.parse::<SignedNote>() else { return };
        let Ok(read) = Checkpoint::read(&note) else { return };
        let time = crate::rows::time(read.time_us);
        if (told.tenant, told.host, told.time) != (&*read.log.tenant, &*read.log.host, time) {
            let why = "tenant, host or time differ from what its checkpoint says";
            self.differs(told.epoch, told.last_seq, told.table, why);
        }
        if !told.counted {
            self.differs(
                told.epoch,
                told.last_seq,
                told.table,
                "it counts other events than it says to hold",
            );
        }
        // A cosignature is of a second.
        let second = |at: i64| at.unsigned_abs() / 1_000_000;
        let mut signed = note.said_cosigned().peekable();
        if let Some(at) = told.witnessed
            && signed.peek().is_some()
            && !signed.any(|time_s| time_s == second(at))
        {
            let why = "it says to be cosigned at another time than its cosignatures";
            self.differs(told.epoch, told.last_seq, told.table, why);
        }
    }

    fn row(&mut self, row: &StoredRow, batch: Option<&BatchRow>) {
        if let Some(batch) = batch
            && self.held.is_another_batch(row, batch)
        {
            let why = "the digest of the batch is not that of its events";
            self.differs_in(batch.epoch, (batch.first_seq, batch.last_seq), "batch_digest", why);
        }
        let Some(column) = row.differing(&self.origin, batch) else { return };
        // The verifier itself tells of these.
        if !matches!(column, "leaf_hash" | "epoch") {
            let why = "the column differs from what the canonical bytes and the batch say";
            self.differs(row.epoch, row.seq, column, why);
        }
    }
}

impl Checker {
    fn differs(&mut self, epoch: u32, seq: u64, what: &str, why: &str) {
        self.differs_in(epoch, (seq, seq), what, why);
    }

    fn differs_in(&mut self, epoch: u32, (first_seq, last_seq): (u64, u64), what: &str, why: &str) {
        if self.columns.len() < MAX_FINDINGS {
            self.columns.push(Finding {
                kind: Kind::Projection,
                fault: true,
                origin: self.origin.clone(),
                epoch,
                first_seq,
                last_seq,
                what: what.to_owned(),
                detail: why.to_owned(),
            });
        }
    }
}

struct Exporter<'p> {
    writer: archive::Writer,
    events: u64,
    path: &'p Path,
}

impl Sink for Exporter<'_> {
    fn take(&mut self, item: Item<'_>) -> Result<(), VerifyError> {
        self.events += u64::from(matches!(item, Item::Event(_)));
        self.writer.write(&item).map_err(|source| VerifyError::Write { path: self.path.to_owned(), source })
    }

    fn told(&mut self, _: &Told<'_>) {}

    fn row(&mut self, _: &StoredRow, _: Option<&BatchRow>) {}
}

/// For people: each finding, then each log, then the verdict.
pub fn shown(report: &Report) -> String {
    let mut out = String::new();
    for one in report.findings.iter() {
        let Finding { kind, fault, origin, epoch, first_seq, last_seq, what, detail } = one;
        let expected = if *fault { "" } else { " (expected)" };
        let place = match (origin.is_empty(), first_seq == last_seq) {
            (true, _) => String::new(),
            (false, true) => format!(" log {origin} epoch {epoch} event {first_seq}"),
            (false, false) => format!(" log {origin} epoch {epoch} events {first_seq} to {last_seq}"),
        };
        out.push_str(&crate::visible::line(&format!(
            "{}{expected}:{place} ({what}): {detail}",
            kind.as_str()
        )));
        out.push('\n');
    }
    for log in &report.logs {
        let mut line = format!(
            "log {} of {}/{}: {} events, {} batches, {} checkpoints, {} epochs, up to {}",
            log.origin,
            log.tenant,
            log.host,
            log.events,
            log.batches,
            log.checkpoints,
            log.epochs,
            log.next_seq
        );
        for (n, what) in
            [(log.retired, "retired"), (log.unsigned, "unsigned"), (log.unsent, "witnessed, not sent yet")]
        {
            if n > 0 {
                line.push_str(&format!(", {n} {what}"));
            }
        }
        out.push_str(&crate::visible::line(&line));
        out.push('\n');
    }
    out.push_str(&verdict(report));
    out
}

fn verdict(report: &Report) -> String {
    let events: u64 = report.logs.iter().map(|log| log.events).sum();
    let faults = report.findings.iter().filter(|one| one.fault).count() as u64 + report.findings.more();
    match faults {
        0 => format!("clean: {events} events of {} logs are what was signed", report.logs.len()),
        n => format!("{n} findings in {events} events of {} logs", report.logs.len()),
    }
}

/// For scripts: one object for each finding, one for each log, and one for the whole.
pub fn json(report: &Report) -> impl Iterator<Item = Value> + '_ {
    let findings = report.findings.iter().map(|one| json!({ "finding": one }));
    let logs = report.logs.iter().map(|one| json!({ "log": one }));
    let whole = json!({ "clean": report.findings.are_clean(), "more_findings": report.findings.more(), "says": verdict(report) });
    findings.chain(logs).chain([whole])
}
