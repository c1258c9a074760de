//! `cargo xtask bench proxy`: Weir, with recording, masking and policy on, beside other proxies, in one run.
//!
//! In: what a load generator measured of each peer (`agent/examples/proxy_bench`, which says what is measured), the peers taking
//! turns. Out: medians and ratios, each goal with by how much it is met or missed, as a table, as JSON, and as
//! `docs/performance.md`. What else the machine does is in every number: ratios within one run are what counts. It must never
//! be part of the tests.

mod cells;
mod goals;
mod peers;
mod report;
mod weir;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use weir_tests::Setup;
use weir_tests::machine::require_kernel;
use weir_tests::places::{fresh_folder, workspace};

use self::cells::{Cells, WORKLOADS, Workload};
use self::peers::Peers;
use self::report::Report;
use crate::progress::{cargo, output, say, shown};

const EXAMPLE: &str = "proxy_bench";
/// Enough for 1,000 connections and their other ends.
const OPEN_FILES: u64 = 16_384;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// One turn of each, and shorter: to see that it works, not to judge.
    #[arg(long)]
    quick: bool,
    /// Only these workloads and peers, by name, separated by commas; what a name is not given for is measured whole.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many turns each peer has at each workload.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Take the programs as they were built last.
    #[arg(long)]
    built: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write the result to docs/performance.md.
    #[arg(long)]
    write: bool,
}

/// The programs that measure and are measured.
struct Programs {
    bench: PathBuf,
    weir: PathBuf,
    rows: PathBuf,
}

/// How long things are measured.
#[derive(Debug, Clone, Copy)]
struct Timing {
    turns: u32,
    warm_up: u64,
    millis: u64,
}

pub fn run(options: &Options) -> Result<()> {
    require_kernel()?;
    let setup = Setup::locate()?;
    let programs = build(&setup, options.built)?;
    allow_open_files()?;
    let folder = fresh_folder("bench")?;
    let timing = if options.quick {
        Timing { turns: 1, warm_up: 100, millis: 300 }
    } else {
        Timing { turns: options.turns, warm_up: 300, millis: 1000 }
    };
    let workloads = chosen_workloads(&options.only);
    let peers = Peers::start(&programs, &setup, folder.path(), &options.only)?;
    for reason in &peers.left_out {
        say(format_args!("bench proxy: left out: {reason}"));
    }
    let cells = Cells::measure(&programs, &peers, &workloads, timing)?;
    let (names, left_out) = peers.end();
    let report = Report {
        cells,
        masking: example(
            &programs.bench,
            &["masking", "--millis", if options.quick { "50" } else { "300" }],
        )?,
        rows: example(&programs.rows, &[])?,
        left_out,
        machine: report::machine()?,
        timing,
        peers: names,
        workloads,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{}", report.text());
    }
    if options.write {
        let path = workspace().join("docs/performance.md");
        std::fs::write(&path, report.markdown())?;
        say(format_args!("bench proxy: wrote {}", path.display()));
    }
    Ok(())
}

fn build(setup: &Setup, built: bool) -> Result<Programs> {
    if !built {
        say(
            "bench proxy: building what measures and what is measured (release; the first time takes minutes)",
        );
        let common = ["build", "--release", "--quiet", "--package"];
        shown(cargo(setup).args(common).args(["weir", "--bin", "weir", "--example", EXAMPLE]))?;
        shown(cargo(setup).args(common).args(["weir-collector", "--example", "row_cost"]))?;
    }
    let mut metadata = cargo(setup);
    let told: Value =
        serde_json::from_str(&output(metadata.args(["metadata", "--format-version", "1", "--no-deps"]))?)?;
    let target =
        told.get("target_directory").and_then(Value::as_str).context("cargo names no target folder")?;
    let release = Path::new(target).join("release");
    let programs = Programs {
        bench: release.join("examples").join(EXAMPLE),
        weir: release.join("weir"),
        rows: release.join("examples/row_cost"),
    };
    for program in [&programs.bench, &programs.weir, &programs.rows] {
        ensure!(program.exists(), "{} is not built", program.display());
    }
    Ok(programs)
}

fn allow_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < OPEN_FILES {
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)?;
        ensure!(
            hard >= OPEN_FILES,
            "a process may have {hard} files open at most, and {OPEN_FILES} are needed: raise it (ulimit -n)"
        );
    }
    Ok(())
}

fn chosen_workloads(only: &[String]) -> Vec<&'static Workload> {
    let named = |workload: &&Workload| only.iter().any(|name| name == workload.name);
    let all = WORKLOADS.iter();
    if all.clone().any(|workload| named(&workload)) { all.filter(named).collect() } else { all.collect() }
}

/// Runs one of our programs for its line of JSON.
fn example(program: &Path, arguments: &[&str]) -> Result<Value> {
    let told = output(Command::new(program).args(arguments))?;
    serde_json::from_str(&told).with_context(|| format!("what {} said", program.display()))
}
