//! Whether a bundle is what it says. A bundle, and what an auditor trusts, come in; findings and sums go out. Without
//! trust of one's own the keys are those that the bundle itself brings: then it is whole and signed by one who had them,
//! and who that was is open.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::verify::{
    Finding, HEARTBEAT_S, Item, Kind, LogSummary, Pin, Scope, Trust, TrustError, Verifier,
};
use weir_core::record::{Body, POLICY_LOADED, RulesTold, Stored, rules_told};

use super::Bundle;

/// The version of a trust file that this makes.
const TRUST_VERSION: u32 = 1;

/// What came out.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What makes the bundle unfit to be believed.
    pub faults: Vec<Finding>,
    /// What the logs themselves tell of: silences, clock steps, events retired.
    pub told: Vec<Finding>,
    pub logs: Vec<LogSummary>,
    /// Events that nothing signed covers: from before logs had trees, or from a collector that does not witness.
    pub unsigned: u64,
    pub events: u64,
    /// Whether the keys are those that somebody outside trusts.
    pub pinned: bool,
}

/// Checks each item. Without `trust`, by the bundle's own keys.
pub fn check(bundle: &Bundle, trust: Option<&Trust>) -> Result<Checked, TrustError> {
    let own;
    let trust_of = match trust {
        Some(trust) => trust,
        None => {
            own = own_keys(bundle);
            &own
        }
    };
    let mut verifier = Verifier::new(trust_of, Scope::Run, None)?;
    let (mut events, mut unsigned) = (0, 0);
    for item in bundle.items() {
        match item {
            Ok(item) => {
                if let Item::Event(event) = &item {
                    events += 1;
                    unsigned += u64::from(event.epoch == 0);
                    match Stored::read(event.canonical) {
                        Err(error) => verifier.unreadable(&format!("the event {}: {error}", event.seq)),
                        Ok(stored) if is_another_policys(&stored) => {
                            verifier.unreadable(&format!(
                                "the event {}: its rules do not have its digest",
                                event.seq
                            ));
                        }
                        Ok(_) => {}
                    }
                }
                verifier.take(item, None);
            }
            Err(why) => verifier.unreadable(&why),
        }
    }
    if events == 0 {
        verifier.unreadable("no event of the run is in it");
    }
    let report = verifier.end(None);
    // A log that was never signed has its number said; of a log that was, whatever is not covered is a fault.
    let unsigned_logs = unsigned_logs(bundle);
    let is_said = |finding: &Finding| {
        trust.is_none()
            && matches!(finding.kind, Kind::Unsigned | Kind::Unpinned)
            && unsigned_logs.contains(&finding.origin)
    };
    let (faults, told): (Vec<_>, Vec<_>) =
        report.findings.iter().cloned().partition(|finding| finding.fault && !is_said(finding));
    let told = told.into_iter().filter(|finding| !is_said(finding)).collect();
    Ok(Checked { faults, told, logs: report.logs, unsigned, events, pinned: trust.is_some() })
}

impl Checked {
    /// Whether it may be believed, as far as it is signed.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn json(&self) -> Value {
        let finding = |one: &Finding| {
            json!({ "kind": one.kind.as_str(), "origin": one.origin, "epoch": one.epoch, "first_seq": one.first_seq,
                    "last_seq": one.last_seq, "what": one.what, "detail": one.detail })
        };
        json!({
            "whole": self.is_whole(), "events": self.events, "unsigned": self.unsigned,
            "keys": if self.pinned { "pinned" } else { "its own" },
            "faults": self.faults.iter().map(finding).collect::<Vec<_>>(),
            "told": self.told.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn sentences(&self) -> Vec<String> {
        let mut out = Vec::new();
        for fault in &self.faults {
            let Finding { kind, origin, first_seq, last_seq, what, detail, .. } = fault;
            out.push(format!("{}: {what} {first_seq} to {last_seq} of {origin}: {detail}", kind.as_str()));
        }
        let signed = self.events - self.unsigned.min(self.events);
        out.push(format!("{} events, {signed} of them under signed checkpoints", self.events));
        if self.unsigned > 0 {
            out.push(format!(
                "{} events are signed by nobody: whoever had the file could have changed them",
                self.unsigned
            ));
        }
        if !self.pinned && signed > 0 {
            out.push(
                "the keys are the bundle's own; give --trust FILE to hold them against those you trust"
                    .into(),
            );
        }
        out
    }
}

/// Whether it says of rules that they are whole, and names another's digest: no agent of ours writes that.
fn is_another_policys(event: &Stored) -> bool {
    matches!(&event.body, Body::Agent(agent)
        if agent.name == POLICY_LOADED && rules_told(&agent.detail) == RulesTold::Contradicted)
}

/// Logs of which nothing in the bundle claims to be signed.
fn unsigned_logs(bundle: &Bundle) -> BTreeSet<String> {
    let (mut logs, mut origin) = (BTreeMap::new(), String::new());
    for item in bundle.items().flatten() {
        let signed = match item {
            Item::Log { origin: new } => {
                origin = new.to_string();
                false
            }
            Item::Event(event) => event.epoch > 0,
            Item::Key(_) | Item::Batch(_) | Item::Checkpoint(_) | Item::Tombstone(_) => true,
        };
        *logs.entry(origin.clone()).or_insert(false) |= signed;
    }
    logs.into_iter().filter(|(_, signed)| !signed).map(|(origin, _)| origin).collect()
}

/// Each log by the key of its first epoch in the bundle.
fn own_keys(bundle: &Bundle) -> Trust {
    let mut logs: BTreeMap<String, Pin> = BTreeMap::new();
    for item in bundle.items().flatten() {
        if let Item::Key(key) = item
            && let Ok(vkey) = key.key.parse::<VerifyingKey>()
        {
            let log = vkey.name().rsplit_once('/').map_or_else(String::new, |(log, _)| log.to_owned());
            logs.entry(log).or_insert(Pin {
                key: vkey,
                first_seq: key.first_seq,
                stored: None,
                witnessed: None,
                also: Vec::new(),
            });
        }
    }
    let logs = logs.into_values().collect();
    Trust { v: TRUST_VERSION, witnesses: Vec::new(), heartbeat_s: HEARTBEAT_S, logs }
}
