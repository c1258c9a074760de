//! `cargo xtask bench fleet`: what one collector and one embedded store take of a fleet of simulated hosts.
//!
//! In: how many. A store and a collector are started (a debug build, in which what hashes and signs is optimised);
//! `collector/examples/fleet` enrols each host's log and sends its segments and an idle checkpoint, all signed. Out: what
//! they took, what is in the store for it, and how many hosts that makes per shard, at the interval in which each seals a
//! segment and with half of the store's time left for questions.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weir_tests::places::{binary, fresh_folder};
use weir_tests::{Collector, Store};

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};

/// The part of the store's time that segments may take.
const SHARE: f64 = 0.5;
/// Intervals of sealing that hosts are stated for, seconds: a busy host's, what is usual, and the longest that is advised.
const INTERVALS: [u64; 3] = [10, 60, 300];

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many hosts.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hosts: u32,
    /// Segments of each.
    #[arg(long, default_value_t = 3)]
    segments: u32,
    /// Events of a segment.
    #[arg(long, default_value_t = 40)]
    events: u32,
    /// Print JSON and no table.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    shown(cargo(&setup).args(["build", "-p", "weir-collector", "-p", "weir-store", "--bins"]))?;
    shown(cargo(&setup).args(["build", "-p", "weir-collector", "--example", "fleet"]))?;
    let folder = fresh_folder("bench")?;
    let store = Store::start(&setup, folder.path(), false)?;
    let collector = Collector::start(&store, folder.path(), "warn", false)?;
    say(format_args!("bench fleet: {} hosts", options.hosts));
    let example = binary("weir-collector")?.with_file_name("examples").join("fleet");
    let mut command = std::process::Command::new(&example);
    command.arg("--socket").arg(collector.socket());
    for (name, value) in
        [("--origins", options.hosts), ("--segments", options.segments), ("--events", options.events)]
    {
        command.args([name, &value.to_string()]);
    }
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("{}", example.display()))?;
    if !output.status.success() {
        bail!("{} failed ({})", example.display(), output.status);
    }
    let lines = String::from_utf8(output.stdout)?;
    let taken: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let segments = taken.iter().find(|one| one["what"] == "segments").context("no segments were sent")?;
    let per_second = segments["per_second"].as_f64().context("no rate")?;
    let hosts = INTERVALS.map(|seconds| (seconds, (per_second * SHARE * seconds as f64) as u64));
    let number = |question: &str| -> Result<u64> {
        let rows = collector.sql(question)?;
        rows.first().and_then(|row| row["n"].as_u64()).with_context(|| question.to_owned())
    };
    // All of it is there, once; and idle logs cost few inserts.
    let expected = u64::from(options.hosts) * u64::from(options.segments);
    let batches = number("SELECT uniqExact(origin, first_seq) AS n FROM batches")?;
    let events = number("SELECT uniqExact(origin, seq) AS n FROM events")?;
    if (batches, events) != (expected, expected * u64::from(options.events)) {
        bail!("{expected} segments were acknowledged, and {batches} with {events} events are there");
    }
    let idle = "SELECT count() AS n FROM checkpoints WHERE idle";
    let inserts = "SELECT uniqExact(witnessed_at) AS n FROM (SELECT toStartOfInterval(witnessed_at, \
                   INTERVAL 100 MILLISECOND) AS witnessed_at FROM checkpoints WHERE idle)";
    let (idle, inserts) = (number(idle)?, number(inserts)?);
    if options.json {
        for one in &taken {
            println!("{one}");
        }
        let hosts: Vec<Value> = hosts.iter().map(|(s, n)| json!({ "seal_every_s": s, "hosts": n })).collect();
        println!(
            "{}",
            json!({ "hosts_per_shard": hosts, "idle_checkpoints": idle, "idle_inserts": inserts })
        );
        return Ok(());
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "| {} hosts (load {}) | count | per second | p50 ms | p99 ms |",
        options.hosts,
        load.split(' ').next().unwrap_or_default()
    );
    println!("|---|---|---|---|---|");
    for one in &taken {
        let float = |name: &str| one[name].as_f64().unwrap_or_default();
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.0} |",
            one["what"].as_str().unwrap_or_default(),
            one["count"],
            float("per_second"),
            float("p50_ms"),
            float("p99_ms")
        );
    }
    println!("\n{idle} idle checkpoints went in with about {inserts} inserts.");
    for (seconds, hosts) in hosts {
        println!("A segment every {seconds} s: {hosts} hosts per shard.");
    }
    Ok(())
}
