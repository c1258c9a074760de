//! Replay: a checked bundle's calls are made again, against a sandbox server or against another policy, and what comes
//! of each is held against what was recorded. Never against the server of the record, unless that is forced.
//!
//! The client's side is played in the order of the record, one call after the other, over streamable HTTP. What policy
//! or a human refused then is not played. Where something masked was part of a call or of its answer the result says
//! `inexact`, unless the value was bound to its pseudonym ([`bind`]); a bound value is never shown.

pub mod against;
pub mod bind;
mod compare;
pub mod policy;
mod sandbox;
mod target;

use serde_json::{Value, json};

pub use compare::Difference;
pub use sandbox::{Header, MAX_ANSWER, PlayError, Sandbox};
pub use target::{Target, TargetError};

use crate::bundle::Call;

/// What came of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it was recorded.
    Same,
    Different,
    /// It was refused then, and is not played.
    Refused,
    /// It cannot be played.
    Unplayed,
    /// It was played; the record has no answer to hold it against.
    Unknown,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Same => "same",
            Outcome::Different => "different",
            Outcome::Refused => "refused",
            Outcome::Unplayed => "unplayed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// One call, played.
#[derive(Debug, Clone)]
pub struct Played {
    pub number: usize,
    pub seq: u64,
    pub method: String,
    pub tool: Option<String>,
    pub outcome: Outcome,
    /// Why the comparison is less than exact; empty when it is.
    pub inexact: Vec<&'static str>,
    pub differences: Vec<Difference>,
    /// What else there is to say.
    pub note: String,
}

impl Played {
    fn of(call: &Call, outcome: Outcome, note: impl Into<String>) -> Self {
        Self {
            number: call.number,
            seq: call.seq,
            method: call.intent.mcp.method.clone(),
            tool: call.intent.mcp.tool.clone(),
            outcome,
            inexact: Vec::new(),
            differences: Vec::new(),
            note: note.into(),
        }
    }

    pub fn json(&self) -> Value {
        let differences: Vec<Value> = self
            .differences
            .iter()
            .map(|one| json!({ "at": one.pointer, "recorded": one.recorded, "now": one.now }))
            .collect();
        json!({
            "number": self.number, "seq": self.seq, "method": self.method, "tool": self.tool,
            "outcome": self.outcome.as_str(), "inexact": self.inexact, "differences": differences, "note": self.note,
        })
    }

    /// For people: a line, and one for each difference.
    pub fn lines(&self) -> Vec<String> {
        let what = match &self.tool {
            Some(tool) => format!("{} {tool}", self.method),
            None => self.method.clone(),
        };
        let inexact = match self.inexact.as_slice() {
            [] => String::new(),
            why => format!("  inexact: {}", why.join(", ")),
        };
        let note = if self.note.is_empty() { String::new() } else { format!("  ({})", self.note) };
        let mut lines =
            vec![format!("{:>4}  {:<9}  {what}{inexact}{note}", self.number, self.outcome.as_str())];
        for Difference { pointer, recorded, now } in &self.differences {
            let place = if pointer.is_empty() { "/" } else { pointer };
            lines.push(format!("        {place}: {recorded} -> {now}"));
        }
        lines
    }
}
