//! `weir-tamper`: cases of tampering, by count and seed. Exit codes: 0 all found, 1 not, 2 wrong usage.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weir_core::evidence::verify::Scope;
use weir_tamper::cases::{Tally, beginnings, places, verify};
use weir_tamper::honest::{Size, make};

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
    }
}
