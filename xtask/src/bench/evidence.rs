//! `cargo xtask bench evidence`: what the record costs.
//!
//! In: what `agent/examples/evidence_bench` measured of the agent's side, and how long the real collector and the embedded store
//! took for segments that the real ledger made. Out: each goal, met or missed by how much, as a table or as JSON. It must
//! never be part of the tests: what else a machine does is in every number but those of one thread's own time.

mod store;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_tests::Setup;
use weir_tests::places::{binaries, fresh_folder, workspace};

use super::goal::Goal;
use crate::progress::{cargo, output, say, shown};
use crate::setup::{self, Needs};

const EXAMPLE: &str = "evidence_bench";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long each part is measured, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many calls are shipped into the store; each is two events.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(100..))]
    calls: u64,
    /// Take the programs as they were built last (release).
    #[arg(long)]
    built: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    if !options.built {
        build(&setup)?;
    }
    // What is measured is what users run: the programs beside the release build of this very one.
    let release = workspace_target()?.join("release");
    if !binaries()?.ends_with("release") {
        let mut again = Command::new(release.join("xtask"));
        again.args(["bench", "evidence", "--built", "--seconds", &options.seconds.to_string()]);
        again.args(["--calls", &options.calls.to_string()]);
        again.args(options.json.then_some("--json"));
        return shown(&mut again);
    }
    let example = release.join("examples").join(EXAMPLE);
    // On the disk of the checkout: /tmp may be memory.
    let folder = tempfile_beside(&workspace_target()?)?;
    say("bench evidence: leaves, the spool, calls that wait for the disk");
    let agent =
        output(Command::new(&example).arg("agent").arg(folder.path()).arg(options.seconds.to_string()))?;
    let agent: Value = serde_json::from_str(&agent).context("what the example said")?;
    let world = fresh_folder("evidence")?;
    let store = store::measure(&setup, &example, world.path(), folder.path(), options.calls)?;
    let measured = json!({ "agent": agent, "store": store });
    let goals = goals(&measured);
    if options.json {
        let goals: Vec<_> = goals
            .iter()
            .map(|goal| {
                json!({ "goal": goal.title, "unit": goal.unit, "at": goal.goal,
            "measured": goal.measured, "met": goal.is_met() })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "measured": measured, "goals": goals }))?);
        return Ok(());
    }
    println!("{:<66} {:>10} {:>12}  ", "what", "goal", "seen");
    for goal in &goals {
        let seen = goal.measured.map_or("-".into(), |n| format!("{n:.2}"));
        let bound = format!("{} {}", if goal.at_most { "<=" } else { ">=" }, goal.goal);
        println!(
            "{:<66} {bound:>10} {seen:>12}  {}",
            format!("{} ({})", goal.title, goal.unit),
            goal.verdict()
        );
    }
    for (what, value) in facts(&measured) {
        println!("{what:<66} {:>10} {value:>12.2}", "");
    }
    print_spool(&measured);
    Ok(())
}

/// The spool's rates, beside those of a plain file that is appended to and synced for each group.
fn print_spool(measured: &Value) {
    println!();
    println!(
        "{:>12} {:>14} {:>12} {:>10} {:>8} {:>14} {:>12}",
        "record bytes",
        "records, group",
        "segment MiB",
        "records/s",
        "MB/s",
        "plain file, /s",
        "x plain file"
    );
    for cell in cells(measured) {
        let at = |path: &str| number(cell, path).unwrap_or_default();
        let (bytes, rate, plain) = (at("/bytes"), at("/records_per_second"), at("/plain_per_second"));
        println!(
            "{bytes:>12} {:>14} {:>12} {rate:>10.0} {:>8.1} {plain:>14.0} {:>12.2}",
            at("/group"),
            at("/segment") / f64::from(1 << 20),
            rate * bytes / 1e6,
            rate / plain
        );
    }
}

fn cells(measured: &Value) -> impl Iterator<Item = &Value> {
    measured.pointer("/agent/spool").and_then(Value::as_array).into_iter().flatten()
}

fn build(setup: &Setup) -> Result<()> {
    say(
        "bench evidence: building what measures and what is measured (release; the first time takes minutes)",
    );
    let common = ["build", "--release", "--quiet"];
    shown(cargo(setup).args(common).args(["-p", "weir", "--example", EXAMPLE]))?;
    shown(cargo(setup).args(common).args([
        "-p",
        "weir",
        "-p",
        "weir-collector",
        "-p",
        "weir-store",
        "-p",
        "xtask",
        "--bins",
    ]))
}

fn workspace_target() -> Result<std::path::PathBuf> {
    Ok(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), Into::into))
}

fn tempfile_beside(target: &Path) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-evidence-").tempdir_in(target)?)
}

fn number(measured: &Value, path: &str) -> Option<f64> {
    measured.pointer(path).and_then(Value::as_f64)
}

fn goals(measured: &Value) -> Vec<Goal> {
    let at = |path: &str| number(measured, path);
    let added = at("/agent/calls/strict/p99_us").zip(at("/agent/calls/best_effort/p99_us"));
    let goal = |title, unit, at_most, goal, measured| Goal {
        title,
        unit,
        at_most,
        goal,
        stretch: None,
        measured,
        why: "",
    };
    vec![
        goal("leaf and checkpoint, a record of 1 KiB", "us", true, 1.0, at("/agent/tree/us_per_record_1k")),
        goal(
            "offline verification, one core, records of 1 KiB",
            "rows/s",
            false,
            1e6,
            at("/agent/tree/verified_per_second_1k"),
        ),
        goal(
            "what strict durability adds at p99, 1,000 calls/s",
            "ms",
            true,
            5.0,
            added.map(|(strict, queued)| (strict - queued) / 1000.0),
        ),
        goal(
            "spool, groups of 256 records of 1 KiB, segments of 4 MiB",
            "records/s",
            false,
            200_000.0,
            cells(measured)
                .find(|cell| {
                    let at = |path: &str| number(cell, path);
                    [at("/bytes"), at("/group"), at("/segment")] == [1024.0, 256.0, 4_194_304.0].map(Some)
                })
                .and_then(|cell| number(cell, "/records_per_second")),
        ),
    ]
}

/// What is shown without a goal.
fn facts(measured: &Value) -> Vec<(&'static str, f64)> {
    let shown = [
        ("bytes of a canonical record", "/agent/bytes_per_event"),
        ("leaf and checkpoint, a record of that size, us", "/agent/tree/us_per_record"),
        ("a call's intent, strict: p50, us", "/agent/calls/strict/p50_us"),
        ("a call's intent, strict: p99, us", "/agent/calls/strict/p99_us"),
        ("a call's intent, best effort: p99, us", "/agent/calls/best_effort/p99_us"),
        ("collector into the embedded store, rows/s", "/store/rows_per_second"),
        ("bytes of a row on disk, compressed", "/store/bytes_per_row"),
        ("the same as plain JSON lines and zstd (level 3)", "/store/zstd_bytes_per_row"),
        ("`weir-collector verify` of an export, rows/s", "/store/verified_per_second"),
    ];
    shown.into_iter().filter_map(|(what, path)| Some((what, number(measured, path)?))).collect()
}
