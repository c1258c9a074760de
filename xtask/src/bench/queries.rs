//! `cargo xtask bench queries`: what the named questions take over a large record in the embedded store.
//!
//! In: how many rows. A store and a database of their own are made, filled (`collector/examples/query_bench`) and asked. Out: for
//! each question its rows, and the middle and the worst of its times. What is measured is ClickHouse's own engine, which is the
//! same in each build; so nothing is built for release. Fails where the middle is above the bound.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weir_tests::places::{binary, fresh_folder};
use weir_tests::{Collector, Store};

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};

/// Milliseconds that the middle of a question's times stays below.
const BOUND_MS: f64 = 100.0;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many events the record has.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(40_000..))]
    rows: u64,
    /// How often each question is asked.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print one JSON object for each question, and no table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug)]
struct Taken {
    question: String,
    with: String,
    rows: u64,
    p50_ms: f64,
    max_ms: f64,
}

impl Taken {
    fn read(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        Some(Self {
            question: text("question")?,
            with: text("with")?,
            rows: value.get("rows")?.as_u64()?,
            p50_ms: value.get("p50_ms")?.as_f64()?,
            max_ms: value.get("max_ms")?.as_f64()?,
        })
    }

    fn json(&self) -> Value {
        let Self { question, with, rows, p50_ms, max_ms } = self;
        json!({ "question": question, "with": with, "rows": rows, "p50_ms": p50_ms, "max_ms": max_ms })
    }
}

pub fn run(options: &Options) -> Result<()> {
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    shown(cargo(&setup).args(["build", "-p", "weir-collector", "-p", "weir-store", "--bins"]))?;
    shown(cargo(&setup).args(["build", "-p", "weir-collector", "--example", "query_bench"]))?;
    let folder = fresh_folder("bench")?;
    let store = Store::start(&setup, folder.path(), false)?;
    let collector = Collector::start(&store, folder.path(), "warn", false)?;
    say(format_args!("bench queries: making {} rows", options.rows));
    let example = binary("weir-collector")?.with_file_name("examples").join("query_bench");
    let mut command = std::process::Command::new(&example);
    command.arg("--config").arg(collector.config());
    command.args(["--rows", &options.rows.to_string(), "--rounds", &options.rounds.to_string()]);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("{}", example.display()))?;
    if !output.status.success() {
        bail!("{} failed ({})", example.display(), output.status);
    }
    let taken: Vec<Taken> = String::from_utf8(output.stdout)?
        .lines()
        .map(|line| Taken::read(line).with_context(|| format!("a line of the measurement: {line}")))
        .collect::<Result<_>>()?;
    if options.json {
        for one in &taken {
            println!("{}", one.json());
        }
    } else {
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().unwrap_or_default();
        println!("| question, over {} events (load {load}) | rows | p50 ms | max ms |", options.rows);
        println!("|---|---|---|---|");
        for Taken { question, with, rows, p50_ms, max_ms } in &taken {
            println!(
                "| {} | {rows} | {p50_ms:.0} | {max_ms:.0} |",
                format!("`{question}` {with}").trim_end()
            );
        }
    }
    let above: Vec<String> = taken
        .iter()
        .filter(|one| one.p50_ms >= BOUND_MS)
        .map(|one| format!("{} {}", one.question, one.with).trim_end().to_owned())
        .collect();
    if !above.is_empty() {
        bail!("{BOUND_MS} ms or more: {}", above.join(", "));
    }
    Ok(())
}
