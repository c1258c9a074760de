//! The check of completeness: what the kernel counted of a job and what stands in ClickHouse come in; findings go
//! out, each with its number and its reason. The two sides share nothing: the kernel's sums come from `completeness`
//! events, the others are counted over rows as they are read back. It never explains one side by the other.
//!
//! # The equation
//! For each job and verdict, once the job is closed:
//!
//! ```text
//! kernel = recorded + explained
//! ```
//!
//! `recorded` are the job's flow rows, each event once; `explained` are the connects that the agent itself told to
//! have lost (`gap` events, reasons in [`EXPLAINS`]).
//!
//! While a job runs, an equation cannot hold: rows are written after the counts were read, and connects wait to be
//! recorded. A bound does. The agent reads the kernel's counts first, then how many redirected connects have no
//! record yet (`in_flight`); a connect leaves `in_flight` only when its record has its place in the log, and what
//! the kernel told until the counts were read is in the log before the job's next statement is. So, with all rows
//! that stand there now,
//!
//! ```text
//! kernel - in_flight <= recorded + explained
//! ```
//!
//! holds for each statement that is followed by another one of the job, or by [`SETTLED_US`] of its log: that is the
//! one that is judged. More rows than connects prove nothing then, but an event that stands there twice does.
//!
//! # Reasons
//! What is missing is named in this order: `ring_full` as far as the kernel counted connects that its ring could not
//! tell and no gap tells of them; `rows_deleted` as far as numbers are missing in the job's logs, each for one row;
//! `unexplained` for the rest. What is too much is `surplus`, and negative.

mod accounts;
mod report;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use weir_core::record::{ConnectSums, ConnectVerdict, GapReason};

pub use report::{Asked, CompletenessError, Report, report};
pub use watch::{Told, Watch};

/// What an agent may give as its own reason for connects without a record. Any other explains nothing.
pub const EXPLAINS: [GapReason; 3] = [GapReason::AgentEnded, GapReason::RingFull, GapReason::TableFull];
/// How long a log must go on behind a running job's last statement until that one is judged, by the agent's clock.
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
    /// Numbers below its last one that no row has.
    pub missing: u64,
    /// Rows beyond the first of their number.
    pub doubled: u64,
    /// Time of its last event.
    pub last_us: i64,
}

/// Logs by their origin. What jobs' findings name of them is taken away.
pub type Logs = BTreeMap<String, Log>;

/// How far a job's sums can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its sums are final: they must be equal.
    Closed,
    /// It runs: the bound must hold.
    Open,
    /// It runs, and its first statement has nothing behind it yet.
    New,
    /// There are rows of it, and no statement.
    Unstated,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Closed => "closed",
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
}

impl Judged {
    pub fn findings(&self) -> impl Iterator<Item = (&Line, &Finding)> {
        self.lines.iter().flat_map(|line| line.findings.iter().map(move |finding| (line, finding)))
    }
}

/// Judges one job. What it names as deleted or doubled is taken from `logs`, so that no number explains two jobs.
pub fn judge(account: &Account, logs: &mut Logs) -> Judged {
    let (standing, statement) = account.due(logs);
    let line = |verdict: &ConnectVerdict| account.line(*verdict, standing, statement, logs);
    let lines = ConnectVerdict::ALL.iter().filter_map(line).collect();
    Judged { standing, statement: statement.cloned(), lines }
}

impl Account {
    /// The statement that can be judged. The kernel's counts only grow, so they tell which is the last one even
    /// where an agent began another log.
    fn due(&self, logs: &Logs) -> (Standing, Option<&Statement>) {
        let mut statements: Vec<&Statement> = self.statements.iter().collect();
        statements.sort_by_key(|one| (one.kernel.total(), one.closed, one.time_us, one.seq));
        let Some(last) = statements.pop() else { return (Standing::Unstated, None) };
        if last.closed {
            return (Standing::Closed, Some(last));
        }
        let settled = |log: &Log| log.last_us.saturating_sub(last.time_us) >= SETTLED_US;
        match statements.pop() {
            _ if logs.get(&last.origin).is_some_and(settled) => (Standing::Open, Some(last)),
            Some(before) => (Standing::Open, Some(before)),
            None => (Standing::New, Some(last)),
        }
    }

    fn line(
        &self,
        verdict: ConnectVerdict,
        standing: Standing,
        statement: Option<&Statement>,
        logs: &mut Logs,
    ) -> Option<Line> {
        let kernel = statement.map_or(0, |one| one.kernel.of(verdict));
        let recorded = self.recorded.get(&verdict).copied().unwrap_or_default();
        let gaps = self.gaps.get(&verdict).cloned().unwrap_or_default();
        if kernel == 0 && recorded.rows == 0 && gaps.is_empty() {
            return None;
        }
        let in_flight = match standing {
            Standing::Open | Standing::New if verdict == ConnectVerdict::Redirected => {
                statement.map_or(0, |one| one.in_flight)
            }
            _ => 0,
        };
        let mut line =
            Line { verdict, kernel, recorded: recorded.rows, in_flight, gaps, findings: Vec::new() };
        let accounted = recorded.events.saturating_add(line.explained()).saturating_add(in_flight);
        let short = match standing {
            Standing::Closed | Standing::Open => kernel.saturating_sub(accounted),
            Standing::New | Standing::Unstated => 0,
        };
        let told = line.gaps.get(&GapReason::RingFull).copied().unwrap_or(0);
        let lost = statement.map_or(0, |one| one.lost.of(verdict)).saturating_sub(told);
        let untold = short.min(lost);
        let deleted = self.take(logs, short - untold, |log| &mut log.missing);
        let doubled = recorded.rows.saturating_sub(recorded.events);
        self.take(logs, doubled, |log| &mut log.doubled);
        let over = if standing == Standing::Closed { accounted.saturating_sub(kernel) } else { 0 };
        line.find(GapReason::RingFull, signed(untold));
        line.find(GapReason::RowsDeleted, signed(deleted));
        line.find(GapReason::Unexplained, signed(short - untold - deleted));
        line.find(GapReason::Surplus, -signed(doubled.saturating_add(over)));
        Some(line)
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
