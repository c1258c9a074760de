//! `weir-tamper`: cases of tampering, by count and seed. Exit codes: 0 all found (of a store: changed), 1 not, 2 wrong usage.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use weir_core::evidence::verify::Scope;
use weir_tamper::cases::{Tally, beginnings, places, verify};
use weir_tamper::honest::{Size, make};
use weir_tamper::store::Store;

/// Changes exports as somebody with every right on the store could, and asks whether verification sees it
#[derive(Debug, Parser)]
#[command(name = "weir-tamper", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Change so many exports, each in one of twelve ways, and verify each
    Cases {
        #[arg(long, default_value_t = 1_000)]
        count: u64,
        /// Of the first; each case has the next
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Verify so many untouched events: nothing may be found
    Untouched {
        #[arg(long, default_value_t = 20_000)]
        rows: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Change a store by SQL, once, and print what was done: `weir-collector verify` must name it. Not for a store whose
    /// records are wanted
    Store {
        /// Of ClickHouse's HTTP interface
        #[arg(long)]
        url: String,
        #[arg(long, default_value = "weir")]
        database: String,
        #[arg(long, default_value = "default")]
        user: String,
        #[arg(long)]
        password_file: PathBuf,
        /// Which way and which rows; neighbours do different things
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Cases { count, seed } => {
            let (beginnings, mut tally) = (beginnings()?, Tally::default());
            for seed in (seed..).take(usize::try_from(count)?) {
                tally.run(&beginnings, seed)?;
            }
            for (act, (done, found)) in &tally.acts {
                println!("{act:<20} {done:>7} done {found:>7} found");
            }
            tally.missed.iter().take(20).for_each(|missed| println!("missed: {missed}"));
            println!("{count} cases from seed {seed} on: {} undetected", tally.missed.len());
            Ok(if tally.missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Untouched { rows, seed } => {
            // Part by part: what is held at once is bounded.
            const PART: usize = 30_000;
            let (mut alarms, mut events, mut at) = (0, 0, 0);
            while events < rows {
                let size = Size { logs: 3, batches: 10, events: PART.min(rows) / 27 };
                let honest = make(seed + at, size)?;
                let report = verify(&honest.lines, &honest.trust, Scope::All, honest.manifest.made_us)?;
                events +=
                    report.logs.iter().map(|log| usize::try_from(log.events).unwrap_or(0)).sum::<usize>();
                let faults: Vec<_> = report.findings.iter().filter(|one| one.fault).collect();
                alarms += faults.len();
                if !faults.is_empty() {
                    println!("a false alarm: {:?}", places(&report));
                }
                at += 1;
            }
            println!("{events} untouched events: {alarms} false alarms");
            Ok(if alarms == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Store { url, database, user, password_file, seed } => {
            let password = std::fs::read_to_string(&password_file)
                .with_context(|| format!("reading {}", password_file.display()))?;
            let store = Store::new(&url, &database, &user, password.trim());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            println!("{}", serde_json::to_string(&runtime.block_on(store.tamper(seed))?)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}
