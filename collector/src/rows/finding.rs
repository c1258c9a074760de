//! What the check of completeness found, and what the witness refused, as a row of `findings`.

use clickhouse::Row;
use serde::{Deserialize, Serialize};

/// A row of `findings`. Of what concerns a log alone (numbers that no row has) the job and the sums are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Row, Serialize, Deserialize)]
pub struct FindingRow {
    pub found_at: i64,
    pub tenant: String,
    pub host_name: String,
    /// With `seq`: the statement that was judged, or the first number that is missing.
    pub origin: String,
    pub seq: u64,
    pub job_key: String,
    pub job_name: String,
    pub connect_verdict: String,
    pub reason: String,
    pub kernel: u64,
    pub in_flight: u64,
    pub recorded: u64,
    pub explained: u64,
    /// Negative for rows that are too many.
    pub missing: i64,
    /// Of a finding of the witness: what it saw.
    #[serde(default)]
    pub detail: String,
}
