//! The report: cells and goals come in; a table for a terminal, JSON, and `docs/performance.md` go out.

use std::fmt::Write;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::Timing;
use super::cells::{Cells, IDLE, PACED, Workload};
use super::goals::goals;
use super::peers::{DIRECT, FLOOR};
use crate::bench::goal::Goal;
use crate::progress::output;

pub struct Report {
    pub cells: Cells,
    pub masking: Value,
    pub rows: Value,
    pub left_out: Vec<String>,
    pub machine: String,
    pub timing: Timing,
    pub peers: Vec<&'static str>,
    pub workloads: Vec<&'static Workload>,
}

/// What is shown of each cell: name, heading, digits behind the point.
const SHOWN: [(&str, &str, usize); 5] = [
    ("rps", "calls/s", 0),
    ("p50_us", "p50 us", 0),
    ("p99_us", "p99 us", 0),
    ("cpu_s_per_1k", "CPU s/1k", 4),
    ("pss_mib", "PSS MiB", 1),
];

impl Report {
    fn goals(&self) -> Vec<Goal> {
        goals(&self.cells, &self.masking, &self.rows)
    }

    /// A table's rows for a workload, the heading first.
    fn table(&self, workload: &Workload) -> Vec<Vec<String>> {
        let shown: Vec<_> = SHOWN
            .iter()
            .filter(|(what, ..)| {
                self.peers.iter().any(|peer| self.cells.number(workload.name, peer, what).is_some())
            })
            .collect();
        // Where the rate is given, it is the times that differ.
        let compared = match workload.name {
            IDLE => "pss_mib",
            PACED => "p50_us",
            _ => "rps",
        };
        let mut heading = vec![String::new()];
        heading.extend(shown.iter().map(|(_, title, _)| (*title).to_owned()));
        heading.extend(["x direct".to_owned(), "x rustfloor".to_owned()]);
        if workload.name != IDLE {
            heading.push("CPU x rustfloor".to_owned());
        }
        let mut rows = vec![heading];
        for peer in &self.peers {
            let number = |what, digits: usize| {
                let number = self.cells.number(workload.name, peer, what);
                // The server itself is nobody's proxy.
                let number =
                    number.filter(|_| *peer != DIRECT || !matches!(what, "cpu_s_per_1k" | "pss_mib"));
                number.map_or_else(|| "-".into(), |number| format!("{number:.digits$}"))
            };
            let ratio = |what, to| {
                let ratio = self.cells.ratio(workload.name, what, peer, to);
                let ratio = ratio.filter(|_| *peer != DIRECT || !matches!(what, "cpu_s_per_1k" | "pss_mib"));
                ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
            };
            let mut row = vec![(*peer).to_owned()];
            row.extend(shown.iter().map(|(what, _, digits)| number(what, *digits)));
            row.extend([ratio(compared, DIRECT), ratio(compared, FLOOR)]);
            if workload.name != IDLE {
                row.push(ratio("cpu_s_per_1k", FLOOR));
            }
            rows.push(row);
        }
        rows
    }

    fn goal_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["", "goal", "stretch", "measured", ""].map(str::to_owned).to_vec()];
        for goal in self.goals() {
            let sign = if goal.at_most { "<=" } else { ">=" };
            let number =
                |number: Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.2}"));
            rows.push(vec![
                format!("{} ({})", goal.title, goal.unit),
                format!("{sign} {}", goal.goal),
                number(goal.stretch),
                number(goal.measured),
                goal.verdict(),
            ]);
        }
        rows
    }

    fn masking_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["masking, one core".to_owned(), "MB/s".to_owned()]];
        for corpus in self.masking.get("corpora").and_then(Value::as_array).into_iter().flatten() {
            let name = corpus.get("corpus").and_then(Value::as_str).unwrap_or("?");
            let speed = corpus.get("mb_per_s").and_then(Value::as_f64).unwrap_or_default();
            rows.push(vec![name.to_owned(), format!("{speed:.0}")]);
        }
        rows
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for workload in &self.workloads {
            let _ = writeln!(out, "\n{}", workload.title);
            out += &aligned(&self.table(workload));
        }
        let _ = writeln!(out);
        out += &aligned(&self.masking_rows());
        let _ = writeln!(out, "\nGoals");
        out += &aligned(&self.goal_rows());
        for reason in &self.left_out {
            let _ = writeln!(out, "left out: {reason}");
        }
        out
    }

    pub fn json(&self) -> Value {
        let goal = |goal: Goal| {
            json!({
                "what": goal.title,
                "unit": goal.unit,
                "at_most": goal.at_most,
                "goal": goal.goal,
                "stretch": goal.stretch,
                "measured": goal.measured,
                "met": goal.is_met(),
            })
        };
        json!({
            "machine": self.machine,
            "turns": self.timing.turns,
            "millis": self.timing.millis,
            "cells": self.cells.json(),
            "masking": self.masking,
            "rows": self.rows,
            "goals": self.goals().into_iter().map(goal).collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }

    /// `docs/performance.md`.
    pub fn markdown(&self) -> String {
        let mut out = String::from(HEAD);
        let Timing { turns, millis, .. } = self.timing;
        let _ = writeln!(out, "Measured {}, {turns} turns of {millis} ms each.\n\n## Goals\n", self.machine);
        out += &piped(&self.goal_rows());
        let missed: Vec<Goal> =
            self.goals().into_iter().filter(|goal| goal.is_met() == Some(false)).collect();
        if !missed.is_empty() {
            out += "\nWhat is missed, why, and what would mend it:\n\n";
        }
        for goal in missed {
            let measured = goal.measured.unwrap_or_default();
            let _ = writeln!(
                out,
                "- **{}**: {measured:.2} {}, where {} was wanted ({}). {}",
                goal.title,
                goal.unit,
                goal.goal,
                goal.verdict(),
                goal.why
            );
        }
        for workload in &self.workloads {
            let _ = writeln!(out, "\n## {}\n", capital(workload.title));
            out += &piped(&self.table(workload));
        }
        out += "\n## Masking and rows\n\n";
        out += &piped(&self.masking_rows());
        let row = self.rows.get("us_per_row").and_then(Value::as_f64).unwrap_or_default();
        let _ = writeln!(
            out,
            "\nA row of an event takes the collector {row:.1} us of CPU, up to the client's own encoding."
        );
        if !self.left_out.is_empty() {
            out += "\nLeft out:\n\n";
        }
        for reason in &self.left_out {
            let _ = writeln!(out, "- {reason}");
        }
        out
    }
}

const HEAD: &str = "# Performance

Written by `cargo xtask bench proxy --write`; do not edit it by hand.

Each peer is asked by the same load over TLS 1.3 (X25519), asks the same server over TLS again, and shares the machine's cores with both. \
A request has 0.6 KB of an MCP `tools/call`, an answer 2.1 KB, unless the heading says otherwise; HTTP/1.1. The peers take turns, and a \
number is the median of a peer's turns. What else the machine does is in all of them, so compare within one run: `x direct` is against the \
server without any proxy, `x rustfloor` against the least that a proxy of hyper and rustls can do. CPU is that of all threads of the proxy, \
in seconds for 1,000 calls.

Weir runs with hooks (the load asks from a selected cgroup and is redirected by the kernel), four rules, masking, and a log on disk; sealed \
segments are shipped to a collector that acknowledges them and keeps nothing, since a store would take CPU that is not the agent's. `weir` \
is strict durability: each call waits until its intent is on disk. `weir best_effort` calls a tool whose rule says that it need not. The limits \
are the usual ones: of an answer of 1 MiB the whole is read, and 256 KiB are masked and recorded. Masking cannot be turned off, so there \
is no number without it.

agentgateway, of whose CPU a call is to cost half at most, is in no package registry that this command installs from, and is left out. Where \
it was measured it took 5.5 times rustfloor's CPU for a call, so that half of it are 2.8 times.

";

/// What this was measured on.
pub fn machine() -> Result<String> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = output(Command::new("uname").arg("-r"))?;
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("a processor without a name", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{} on {cores} cores of {model}, Linux {}", date.trim(), kernel.trim()))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if at == 0 { write!(out, "{cell:width$}") } else { write!(out, "  {cell:>width$}") };
        }
        out.push('\n');
    }
    out
}

fn piped(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        out += &line(row);
        if at == 0 {
            out += &format!("|{}\n", "---|".repeat(row.len()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_for_people_and_piped_for_markdown() {
        let rows = [vec!["".to_owned(), "a".to_owned()], vec!["long".to_owned(), "12".to_owned()]];
        assert_eq!(aligned(&rows), "       a\nlong  12\n");
        assert_eq!(piped(&rows), "|  | a |\n|---|---|\n| long | 12 |\n");
        assert_eq!(capital("a new"), "A new");
    }
}
