//! The check of completeness: what the kernel counted of a job and what stands in ClickHouse come in; findings go
//! out, each with its number and its reason. The two sides share nothing: the kernel's sums come from `completeness`
//! events, the others are counted over rows as they are read back. It never explains one side by the other.
//!
//! # The equation
//! For each job and verdict, in a statement that the job is closed:
//!
//! ```text
//! kernel = recorded + explained
//! ```
//!
//! `recorded` are the job's flow rows before the statement (in other logs all of them), each event once; `explained`
//! are the connects that the agent itself told to have lost (`gap` events, reasons in [`EXPLAINS`]), but for one that
//! has its row all the same: its agent ended after it had written it. A job may come to
//! life again, and be closed again; rows behind its last statement are judged with the next. More rows than connects
//! are believed once the statement has stood there for [`SETTLED_US`]: a job may have made its last connect, and ended,
//! just when its counts had been read, and then it is stated to be closed once more.
//!
//! While a job runs, an equation cannot hold: rows are written after the counts were read, and connects wait to be
//! recorded. A bound does. The agent reads the kernel's counts first, then how many redirected connects have no
//! record yet (`in_flight`); a connect leaves `in_flight` only when its record has its place in the log, and what
//! the kernel had told by then is in the log before the statement is. So, with all rows that stand there now,
//!
//! ```text
//! kernel - in_flight <= recorded + explained
//! ```
//!
//! holds for each statement, but for what a hook was in the middle of when its counts were read: counted and not told
//! yet, or about to be counted under another verdict instead. So a statement is judged once another one of the job
//! follows it, which then also bounds its sums, or once it has stood there for [`SETTLED_US`]. More rows than connects
//! prove nothing then, but an event that stands there twice does.
//!
//! # Reasons
//! What is missing is named in this order: `ring_full` as far as the kernel counted connects that its ring could not
//! tell and no gap tells of them; `rows_deleted` as far as numbers are missing in the job's logs, each for one row;
//! `unexplained` for the rest. Numbers that retention took out of a log ([`crate::retention`]) explain what is missing, as
//! a gap `retired`, where a known witness signed their tombstone. What is too much is `surplus`, and negative.

mod accounts;
mod report;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use weir_core::record::{ConnectSums, ConnectVerdict, GapReason};

pub(crate) use accounts::with_signed_tombstones;
pub use report::{Asked, CompletenessError, Report, report};
pub use watch::{Told, Watch};

/// What an agent may give as its own reason for connects without a record. Any other explains nothing.
pub const EXPLAINS: [GapReason; 4] =
    [GapReason::AgentEnded, GapReason::RingFull, GapReason::TableFull, GapReason::NoRoom];
/// How long a statement must have stood there until it is believed whatever follows.
pub const SETTLED_US: i64 = 30_000_000;

/// A job, wherever its rows are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    pub tenant: String,
    pub job: String,
}

/// What the kernel counted of a job until some moment: one `completeness` event.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub origin: String,
    pub seq: u64,
    /// Microseconds since 1970, the agent's clock.
    pub time_us: i64,
    /// The same, when it was stored, the collector's clock.
    pub stored_us: i64,
    pub host: String,
    pub name: String,
    pub closed: bool,
    pub kernel: ConnectSums,
    pub lost: ConnectSums,
    pub in_flight: u64,
}

/// A job's flow rows of one verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    pub rows: u64,
    /// Each event once.
    pub events: u64,
}

/// All that stands there of one job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Account {
    /// At least the last two of each log.
    pub statements: Vec<Statement>,
    /// Flow rows behind the closing statement; no other number here counts what is behind it.
    pub later: u64,
    pub recorded: BTreeMap<ConnectVerdict, Recorded>,
    /// Counts of gap events, each event once.
    pub gaps: BTreeMap<ConnectVerdict, BTreeMap<GapReason, u64>>,
    /// The logs in which any of it is.
    pub origins: BTreeSet<String>,
}

/// A log, as it stands there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    pub tenant: String,
    pub host: String,
    /// Numbers below its last one that no row has, and no tombstone.
    pub missing: u64,
    /// Those that no row has, and a tombstone tells of.
    pub retired: u64,
    /// Rows beyond the first of their number.
    pub doubled: u64,
}

/// Logs by their origin. What jobs' findings name of them is taken away.
pub type Logs = BTreeMap<String, Log>;

/// How far a job's sums can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its sums are final: they must be equal.
    Closed,
    /// It was closed, and there are rows behind that: its sums then must be equal.
    Reopened,
    /// It runs: the bound must hold.
    Open,
    /// It runs, and its first statement came just now.
    New,
    /// There are rows of it, and no statement.
    Unstated,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Closed => "closed",
            Standing::Reopened => "reopened",
            Standing::Open => "open",
            Standing::New => "new",
            Standing::Unstated => "unstated",
        }
    }
}

/// One verdict's sums of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub verdict: ConnectVerdict,
    pub kernel: u64,
    /// Rows.
    pub recorded: u64,
    /// What a running job's sum may lack: its redirected connects without a record.
    pub in_flight: u64,
    /// What the agent told to have lost.
    pub gaps: BTreeMap<GapReason, u64>,
    pub findings: Vec<Finding>,
}

impl Line {
    /// What the agent's own gaps explain.
    pub fn explained(&self) -> u64 {
        EXPLAINS.iter().filter_map(|reason| self.gaps.get(reason)).fold(0, |sum, n| sum.saturating_add(*n))
    }

    fn find(&mut self, reason: GapReason, missing: i64) {
        if missing != 0 {
            self.findings.push(Finding { reason, missing });
        }
    }
}

/// A number that nothing accounts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    pub reason: GapReason,
    /// Connects that have neither row nor gap; negative for rows that have no connect.
    pub missing: i64,
}

/// A judged job. Of each line `kernel - in_flight - recorded - gaps` is what its findings add up to, but for more rows
/// than a running job's statement knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    pub standing: Standing,
    /// What was judged; of a [`Standing::New`] job what it states.
    pub statement: Option<Statement>,
    /// Those with any number in them.
    pub lines: Vec<Line>,
    /// There are more rows than a closing statement knows of, and it came just now.
    pub is_early: bool,
}

impl Judged {
    pub fn findings(&self) -> impl Iterator<Item = (&Line, &Finding)> {
        self.lines.iter().flat_map(|line| line.findings.iter().map(move |finding| (line, finding)))
    }
}

/// Judges one job. What it names as deleted or doubled is taken from `logs`, so that no number explains two jobs.
/// `now_us`: the collector's clock.
pub fn judge(account: &Account, logs: &mut Logs, now_us: i64) -> Judged {
    let (standing, statement) = account.due(now_us);
    let mut judged = Judged { standing, statement, lines: Vec::new(), is_early: false };
    for verdict in ConnectVerdict::ALL {
        account.line(*verdict, &mut judged, logs, now_us);
    }
    judged
}

impl Statement {
    fn is_settled(&self, now_us: i64) -> bool {
        now_us.saturating_sub(self.stored_us) >= SETTLED_US
    }

    /// With no sum larger than the later one's.
    fn at_most(&self, later: &Self) -> Self {
        let mut statement = self.clone();
        for verdict in ConnectVerdict::ALL {
            let kernel = statement.kernel.of_mut(*verdict);
            *kernel = later.kernel.of(*verdict).min(*kernel);
        }
        statement
    }
}

impl Account {
    /// The last statement, if it says that the job is closed.
    pub fn closing(&self) -> Option<&Statement> {
        self.in_order().pop().filter(|last| last.closed)
    }

    /// The kernel's counts only grow, all verdicts taken together, so they tell which statement is the last one even where
    /// an agent began another log.
    fn in_order(&self) -> Vec<&Statement> {
        let mut statements: Vec<&Statement> = self.statements.iter().collect();
        statements.sort_by_key(|one| (one.kernel.total(), one.closed, one.time_us, one.seq));
        statements
    }

    /// The statement that can be judged.
    fn due(&self, now_us: i64) -> (Standing, Option<Statement>) {
        let mut statements = self.in_order();
        let Some(last) = statements.pop() else { return (Standing::Unstated, None) };
        let standing = match last.closed {
            true if self.later == 0 => Standing::Closed,
            true => Standing::Reopened,
            false if last.is_settled(now_us) => Standing::Open,
            false => match statements.pop() {
                Some(before) => return (Standing::Open, Some(before.at_most(last))),
                None => Standing::New,
            },
        };
        (standing, Some(last.clone()))
    }

    fn line(&self, verdict: ConnectVerdict, judged: &mut Judged, logs: &mut Logs, now_us: i64) {
        let statement = judged.statement.as_ref();
        let kernel = statement.map_or(0, |one| one.kernel.of(verdict));
        let recorded = self.recorded.get(&verdict).copied().unwrap_or_default();
        let gaps = self.gaps.get(&verdict).cloned().unwrap_or_default();
        if kernel == 0 && recorded.rows == 0 && gaps.is_empty() {
            return;
        }
        let is_final = matches!(judged.standing, Standing::Closed | Standing::Reopened);
        let in_flight = match statement {
            Some(one) if !is_final && verdict == ConnectVerdict::Redirected => one.in_flight,
            _ => 0,
        };
        let mut line =
            Line { verdict, kernel, recorded: recorded.rows, in_flight, gaps, findings: Vec::new() };
        let accounted = recorded.events.saturating_add(line.explained()).saturating_add(in_flight);
        let short = match judged.standing {
            Standing::Closed | Standing::Reopened | Standing::Open => kernel.saturating_sub(accounted),
            Standing::New | Standing::Unstated => 0,
        };
        let told = line.gaps.get(&GapReason::RingFull).copied().unwrap_or(0);
        let lost = statement.map_or(0, |one| one.lost.of(verdict)).saturating_sub(told);
        let untold = short.min(lost);
        let deleted = self.take(logs, short - untold, |log| &mut log.missing);
        let retired = self.take(logs, short - untold - deleted, |log| &mut log.retired);
        if retired > 0 {
            line.gaps.insert(GapReason::Retired, retired);
        }
        let doubled = recorded.rows.saturating_sub(recorded.events);
        self.take(logs, doubled, |log| &mut log.doubled);
        let over = if is_final { accounted.saturating_sub(kernel) } else { 0 };
        let is_early = over > 0 && statement.is_some_and(|one| !one.is_settled(now_us));
        line.find(GapReason::RingFull, signed(untold));
        line.find(GapReason::RowsDeleted, signed(deleted));
        line.find(GapReason::Unexplained, signed(short - untold - deleted - retired));
        line.find(GapReason::Surplus, -signed(doubled.saturating_add(if is_early { 0 } else { over })));
        judged.is_early |= is_early;
        judged.lines.push(line);
    }

    /// Takes as much of `wanted` as the job's logs have.
    fn take(&self, logs: &mut Logs, wanted: u64, of: impl Fn(&mut Log) -> &mut u64) -> u64 {
        let mut taken = 0;
        for origin in &self.origins {
            if let Some(log) = logs.get_mut(origin) {
                let part = (*of(log)).min(wanted - taken);
                *of(log) -= part;
                taken += part;
            }
        }
        taken
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
