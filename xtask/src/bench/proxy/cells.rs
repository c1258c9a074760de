//! The cells of the table: each workload at each peer, measured in turns, so that what the machine does in one moment meets all
//! of them. A cell's numbers are the medians of its turns.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::peers::{Peer, Peers};
use super::{Programs, Timing};
use crate::progress::{output, say};

/// Something that every peer is asked to do.
#[derive(Debug)]
pub struct Workload {
    /// For `--only`.
    pub name: &'static str,
    pub title: &'static str,
    /// What the load generator is told.
    arguments: &'static [&'static str],
    /// Measured once: it does not depend on the moment.
    once: bool,
}

pub const CLOSED: &str = "closed32";
pub const MANY: &str = "closed256";
pub const PACED: &str = "paced";
pub const FRESH: &str = "fresh";
pub const RESUMED: &str = "resumed";
pub const LARGE: &str = "large";
pub const EVENTS: &str = "events";
pub const IDLE: &str = "idle";

pub const WORKLOADS: [Workload; 8] = [
    workload(CLOSED, "32 connections, each asks again at once", &["closed", "--connections", "32"]),
    workload(MANY, "256 connections, each asks again at once", &["closed", "--connections", "256"]),
    workload(PACED, "1,000 calls a second, times from when a call was due", &["paced", "--rate", "1000"]),
    workload(FRESH, "a new TLS connection for each call", &["fresh", "--connections", "8"]),
    workload(RESUMED, "a new TLS connection for each call, resumed", &["resumed", "--connections", "8"]),
    workload(
        LARGE,
        "answers of 1 MiB, 8 connections",
        &["closed", "--answer", "large", "--connections", "8"],
    ),
    workload(EVENTS, "answers of 20 events, 32 connections", &["closed", "--answer", "events"]),
    Workload {
        name: IDLE,
        title: "1,000 connections that asked once and stay",
        arguments: &["idle", "--connections", "1000"],
        once: true,
    },
];

const fn workload(name: &'static str, title: &'static str, arguments: &'static [&'static str]) -> Workload {
    Workload { name, title, arguments, once: false }
}

/// Medians by workload, peer and what was measured.
#[derive(Debug, Default)]
pub struct Cells(BTreeMap<(&'static str, &'static str), Map<String, Value>>);

impl Cells {
    pub fn measure(
        programs: &Programs,
        peers: &Peers,
        workloads: &[&Workload],
        timing: Timing,
    ) -> Result<Self> {
        let mut cells = Self::default();
        for workload in workloads {
            say(format_args!("bench proxy: {}", workload.title));
            let turns = if workload.once { 1 } else { timing.turns };
            let mut told: BTreeMap<&str, Vec<Map<String, Value>>> = BTreeMap::new();
            for turn in 0..turns as usize {
                // Who comes first changes.
                let order = peers.running.iter().cycle().skip(turn).take(peers.running.len());
                for peer in order {
                    let measured = load(programs, peer, workload, timing)
                        .with_context(|| format!("{} at {}", workload.title, peer.name))?;
                    told.entry(peer.name).or_default().push(measured);
                }
            }
            for (peer, measured) in told {
                cells.0.insert((workload.name, peer), medians(&measured));
            }
        }
        Ok(cells)
    }

    pub fn number(&self, workload: &str, peer: &str, what: &str) -> Option<f64> {
        let cell = self.0.iter().find(|((own, of), _)| *own == workload && *of == peer)?.1;
        cell.get(what)?.as_f64()
    }

    /// One as a multiple of another.
    pub fn ratio(&self, workload: &str, what: &str, peer: &str, to: &str) -> Option<f64> {
        let below = self.number(workload, to, what).filter(|below| *below > 0.0)?;
        Some(self.number(workload, peer, what)? / below)
    }

    pub fn json(&self) -> Value {
        let cell = |((workload, peer), numbers): (&(&str, &str), &Map<String, Value>)| {
            let mut numbers = numbers.clone();
            numbers.insert("workload".into(), (*workload).into());
            numbers.insert("peer".into(), (*peer).into());
            Value::Object(numbers)
        };
        self.0.iter().map(cell).collect()
    }
}

fn load(programs: &Programs, peer: &Peer, workload: &Workload, timing: Timing) -> Result<Map<String, Value>> {
    let mut load = Command::new(&programs.bench);
    load.arg("load").args(workload.arguments).arg(peer.port.to_string());
    load.arg("--roots").arg(&peer.roots).args(["--tool", peer.tool]);
    load.arg("--warm-up").arg(timing.warm_up.to_string()).arg("--millis").arg(timing.millis.to_string());
    if let Some(cgroup) = &peer.cgroup {
        load.arg("--cgroup").arg(cgroup);
    }
    let pids: Vec<String> = peer.pids()?.iter().map(ToString::to_string).collect();
    if !pids.is_empty() {
        load.arg("--watch").arg(pids.join(","));
    }
    Ok(serde_json::from_str(&output(&mut load)?)?)
}

fn medians(turns: &[Map<String, Value>]) -> Map<String, Value> {
    let names = turns.first().map(|turn| turn.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let median = |name: String| {
        let mut numbers: Vec<f64> = turns.iter().filter_map(|turn| turn.get(&name)?.as_f64()).collect();
        numbers.sort_by(f64::total_cmp);
        let median = numbers.get(numbers.len().saturating_sub(1) / 2).copied();
        (name, median.into())
    };
    names.into_iter().map(median).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cell_is_the_median_of_its_turns() {
        let turn = |rps: f64| json!({ "rps": rps, "calls": 5 }).as_object().unwrap().clone();
        let cell = medians(&[turn(900.0), turn(10.0), turn(1000.0)]);
        let mut cells = Cells::default();
        cells.0.insert((CLOSED, "floor"), cell);
        cells.0.insert((CLOSED, "weir"), medians(&[turn(450.0)]));
        assert_eq!(cells.number(CLOSED, "floor", "rps"), Some(900.0));
        assert_eq!(cells.ratio(CLOSED, "rps", "weir", "floor"), Some(0.5));
        assert_eq!(cells.ratio(CLOSED, "rps", "weir", "nobody"), None);
        assert_eq!(medians(&[]), Map::new());
    }
}
