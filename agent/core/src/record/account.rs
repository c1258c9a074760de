//! What accounts for connections: the kernel's sums of a job ([`Completeness`]), the connections that have no record
//! of their own and why ([`Gap`]), and what the kernel decided about a connection that has one ([`Connect`]).
//!
//! Counts, and times since boot, are numbers in canonical JSON: exact below 2^53 (for nanoseconds 104 days), and
//! to 16 digits above.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::labels::{ConnectReason, ConnectVerdict, GapReason};

/// What the kernel decided about a connect (or a datagram, or a socket), where its hook met it. It was counted there,
/// once, under this job and verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Nanoseconds since the host's boot.
    pub at_ns: u64,
    /// `<epoch>-<job>`, 16 hex digits each: unlike any other job's, of this host or another.
    pub job_key: String,
    /// The IP protocol's number: 6 is TCP. 0 is not known.
    pub protocol: u8,
    pub reason: ConnectReason,
    /// The client's own end, as it would have been without Weir; empty and 0 where it had none.
    pub source: String,
    pub source_port: u16,
    pub verdict: ConnectVerdict,
}

/// What the kernel counted of a job until now; see [`super::Body::Completeness`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completeness<T> {
    /// Nothing of the job is left, and everything it did is recorded: the sums are final.
    pub closed: bool,
    /// Redirected connects that have no flow record yet. Read after `kernel`.
    pub in_flight: u64,
    pub job_key: String,
    /// By verdict, as the hooks counted.
    pub kernel: ConnectSums,
    /// Those of them for which the ring of connects had no room.
    pub lost: ConnectSums,
    /// What the job is: the path of its cgroup, or its executable.
    pub name: T,
    /// What the tables and rings of the whole host could not take: `tasks_full`, `task_events_lost` ...
    pub tables: BTreeMap<String, u64>,
}

/// Numbers of connects by verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectSums {
    pub datagram: u64,
    pub failed: u64,
    pub passed: u64,
    pub redirected: u64,
    pub refused: u64,
    pub socket: u64,
    pub unanswered: u64,
}

impl ConnectSums {
    pub fn of(&self, verdict: ConnectVerdict) -> u64 {
        match verdict {
            ConnectVerdict::Redirected => self.redirected,
            ConnectVerdict::Passed => self.passed,
            ConnectVerdict::Refused => self.refused,
            ConnectVerdict::Unanswered => self.unanswered,
            ConnectVerdict::Failed => self.failed,
            ConnectVerdict::Datagram => self.datagram,
            ConnectVerdict::Socket => self.socket,
        }
    }

    /// The number of one verdict, to be set.
    pub fn of_mut(&mut self, verdict: ConnectVerdict) -> &mut u64 {
        match verdict {
            ConnectVerdict::Redirected => &mut self.redirected,
            ConnectVerdict::Passed => &mut self.passed,
            ConnectVerdict::Refused => &mut self.refused,
            ConnectVerdict::Unanswered => &mut self.unanswered,
            ConnectVerdict::Failed => &mut self.failed,
            ConnectVerdict::Datagram => &mut self.datagram,
            ConnectVerdict::Socket => &mut self.socket,
        }
    }

    /// All verdicts together.
    pub fn total(&self) -> u64 {
        ConnectVerdict::ALL.iter().fold(0, |sum: u64, verdict| sum.saturating_add(self.of(*verdict)))
    }
}

/// Connects of a job that were counted and will never have a flow record; see [`super::Body::Gap`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap<T> {
    /// How many, of those that no earlier gap of the job told of.
    pub count: u64,
    pub detail: BTreeMap<String, T>,
    pub job_key: String,
    pub reason: GapReason,
    pub verdict: ConnectVerdict,
}
