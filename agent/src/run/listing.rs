//! The calls of one run, as they were recorded. Names are the job's choice: none may reach the terminal as a command
//! to it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde::Serialize;
use weir_core::ids::CallId;
use weir_core::record::{Body, HoldEnd, Written};
use weir_core::visible;

/// The most calls that are listed; of more, the number is told. The record has them all.
const MAX_CALLS: usize = 10_000;
/// The most bytes of a call's arguments that are listed.
const MAX_ARGUMENTS: usize = 4096;

/// Collects calls; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    calls: Vec<Call>,
    places: HashMap<CallId, usize>,
    more: usize,
    opaque: usize,
    refused: usize,
}

/// One call, masked.
#[derive(Debug, Serialize)]
struct Call {
    call_id: CallId,
    time_us: u64,
    pid: u32,
    executable: String,
    server: String,
    method: String,
    tool: Option<String>,
    arguments: String,
    decision: &'static str,
    rule: String,
    result: &'static str,
    duration_us: Option<u64>,
}

impl Listing {
    pub fn see(&self, event: &Written) {
        let mut calls = self.calls();
        match &event.body {
            Body::Intent(_) if calls.calls.len() == MAX_CALLS => calls.more += 1,
            Body::Intent(intent) => {
                let place = calls.calls.len();
                calls.places.insert(intent.call_id.clone(), place);
                calls.calls.push(Call {
                    call_id: intent.call_id.clone(),
                    time_us: event.time_us,
                    pid: intent.caller.pid,
                    executable: intent.caller.executable.as_str().to_owned(),
                    server: intent.server.name.as_str().to_owned(),
                    method: intent.mcp.method.as_str().to_owned(),
                    tool: intent.mcp.tool.as_ref().map(|tool| tool.as_str().to_owned()),
                    arguments: intent.payload.text.clone().truncate(MAX_ARGUMENTS).as_str().to_owned(),
                    decision: intent.verdict.action.as_str(),
                    rule: intent.verdict.rule.clone(),
                    result: "open",
                    duration_us: None,
                });
            }
            Body::Decision(record) if record.decision != HoldEnd::Invalid => {
                if let Some(call) = calls.of(&record.call_id) {
                    call.decision = record.decision.as_str();
                }
            }
            Body::Outcome(outcome) => {
                if let Some(call) = calls.of(&outcome.call_id) {
                    call.result = outcome.result.as_str();
                    call.duration_us = outcome.duration_us;
                }
            }
            Body::Flow(flow) => match flow.treatment {
                weir_core::record::Treatment::Opaque => calls.opaque += 1,
                weir_core::record::Treatment::Refused => calls.refused += 1,
                weir_core::record::Treatment::Terminated | weir_core::record::Treatment::Passed => {}
            },
            _ => {}
        }
    }

    /// The table, on standard error: standard output is the command's.
    pub fn print(&self) {
        eprint!("{}", self.table());
    }

    fn table(&self) -> String {
        let calls = self.calls();
        let mut out = format!("weir: {} MCP calls", calls.calls.len() + calls.more);
        let _ = match (calls.opaque, calls.refused) {
            (0, 0) => writeln!(out),
            (opaque, refused) => writeln!(out, ", {opaque} connections relayed unread, {refused} refused"),
        };
        if !calls.calls.is_empty() {
            let _ = writeln!(out, "  {:<9} {:<12} {:>8}  {:<24} call", "decision", "result", "ms", "server");
        }
        for call in &calls.calls {
            let ms = call.duration_us.map_or_else(|| "-".into(), |us| format!("{:.1}", us as f64 / 1000.0));
            let name = call
                .tool
                .as_deref()
                .map_or_else(|| call.method.clone(), |tool| format!("{} {tool}", call.method));
            let _ = writeln!(
                out,
                "  {:<9} {:<12} {ms:>8}  {:<24} {}",
                call.decision,
                call.result,
                visible::line(&call.server),
                visible::line(&name)
            );
        }
        if calls.more > 0 {
            let _ = writeln!(out, "  and {} more, which are in the record alone", calls.more);
        }
        out
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the calls go besides: a file, or standard output.
pub(super) struct Report {
    path: PathBuf,
    out: Box<dyn std::io::Write>,
}

impl Report {
    /// Opens it, before anything is run; `-` is standard output.
    pub fn create(path: &Path) -> Result<Self> {
        let out: Box<dyn std::io::Write> = match path.as_os_str() == "-" {
            true => Box::new(std::io::stdout()),
            false => Box::new(std::fs::File::create(path).with_context(|| cannot_write(path))?),
        };
        Ok(Self { path: path.to_owned(), out })
    }

    /// One JSON object a line.
    pub fn write(self, listing: &Listing) -> Result<()> {
        let Self { path, out } = self;
        let mut out = std::io::BufWriter::new(out);
        let written: std::io::Result<()> = listing.calls().calls.iter().try_for_each(|call| {
            let call = serde_json::to_string(call)?;
            writeln!(out, "{}", visible::json(&call))
        });
        written.and_then(|()| out.flush()).with_context(|| cannot_write(&path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write the report {}", path.display())
}

impl Calls {
    fn of(&mut self, id: &CallId) -> Option<&mut Call> {
        self.calls.get_mut(*self.places.get(id)?)
    }
}

#[cfg(test)]
mod tests {
    use weir_core::ids::{Boot, FlowId, Origin};
    use weir_core::mask::{MaskKey, Masker};
    use weir_core::policy::{Action, Verdict};
    use weir_core::record::{Caller, Durability, Event, Intent, Mcp, Payload, Proof, Server};

    use super::*;

    fn intent(n: u128, arguments: &str) -> Written {
        let masker = Masker::new(MaskKey::new([1; 32]));
        let text = |text: &str| masker.text(text);
        let caller = Caller { seen_alive: true, ..Caller::unseen(1, (0, 0), text("")) };
        let body = Intent {
            call_id: CallId::from_random(n.to_be_bytes()),
            flow_id: FlowId::from_random([1; 16]),
            caller: Arc::new(caller),
            server: Server { address: "::1".into(), port: 1, name: text("s"), proof: Proof::Unproven },
            mcp: Mcp { method: text("m"), ..Mcp::default() },
            verdict: Verdict { action: Action::Allow, rule: "default".into(), policy_digest: "d".into() },
            payload: Payload { text: text(arguments), ..Payload::default() },
            durability: Durability::Strict,
            approval_id: None,
        };
        Event {
            v: 1,
            tenant: "t".into(),
            host: "h".into(),
            origin: Origin::from_random([1; 16]),
            boot: Boot::from_random([1; 16]),
            seq: 0,
            time_us: 0,
            body: Body::Intent(Box::new(body)),
        }
    }

    #[test]
    fn what_is_past_the_limits_is_counted_and_cut() {
        let listing = Listing::default();
        listing.see(&intent(0, &"a".repeat(MAX_ARGUMENTS + 1)));
        assert_eq!(listing.calls().calls[0].arguments.len(), MAX_ARGUMENTS);
        for n in 1..MAX_CALLS as u128 {
            listing.see(&intent(n, ""));
        }
        assert!(!listing.table().contains("more"));
        listing.see(&intent(MAX_CALLS as u128, ""));
        let table = listing.table();
        assert!(table.starts_with("weir: 10001 MCP calls\n") && table.contains("and 1 more"), "{table}");
    }
}
