//! `cargo xtask conformance`: the official conformance suite of MCP, directly and through Weir.
//!
//! In: which suites. Out: progress, a table, and exit code 1 where a check differs, a connection was not terminated, or the record
//! and the suite's own log of messages are not one. What is run, and how it is compared, is in `weir_tests::conformance`.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use weir_tests::conformance::{Compared, Ground, Revision, Sdk, Side, Suite};
use weir_tests::machine::require_kernel;

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// One revision alone: 2025-11-25 or 2026-07-28.
    #[arg(long)]
    revision: Option<Revision>,
    /// One side alone: what is tested.
    #[arg(long)]
    side: Option<Tested>,
    /// One SDK alone, on the tested side.
    #[arg(long)]
    sdk: Option<String>,
    /// The part that `cargo xtask test` runs.
    #[arg(long)]
    quick: bool,
    /// The result as JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tested {
    Server,
    Client,
}

pub fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    let suites = options.suites()?;
    require_kernel()?;
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    say("build: the agent, the collector, the store, and what is made of the Rust SDK");
    shown(cargo(&setup).args(["build", "--workspace"]))?;
    let mut ground = Ground::start()?;
    let mut all = Vec::new();
    for (number, suite) in suites.iter().enumerate() {
        say(format_args!("{} of {}: {suite}, directly and through Weir", number + 1, suites.len()));
        let compared = ground.compare(suite)?;
        say(format_args!("{suite}: {} in {:.0} s", verdict(&compared), compared.seconds));
        if !compared.holds() {
            tell(&compared);
        }
        all.push(compared);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print(&all, began.elapsed().as_secs());
    }
    let broken = all.iter().filter(|compared| !compared.holds()).count();
    if broken > 0 {
        ground.world.show_logs();
        bail!("{broken} of {} suites found Weir out: what differs is told above", all.len());
    }
    Ok(())
}

impl Options {
    fn suites(&self) -> Result<Vec<Suite>> {
        let wanted = |suite: &Suite| {
            let tested = if suite.side == Side::Server { Tested::Server } else { Tested::Client };
            self.revision.is_none_or(|revision| suite.revision == revision)
                && self.side.is_none_or(|side| side == tested)
                && self.sdk.as_ref().is_none_or(|sdk| suite.sdk.name() == sdk)
        };
        let all = if self.quick { Suite::quick() } else { Suite::all() };
        let suites: Vec<_> = all.into_iter().filter(wanted).collect();
        if suites.is_empty() {
            let names = Sdk::ALL.map(Sdk::name).join(", ");
            bail!("there is no such suite; the SDKs are {names}, and not each has every revision");
        }
        Ok(suites)
    }
}

fn verdict(compared: &Compared) -> String {
    if compared.holds() {
        return format!("{} checks alike, {} messages recorded", compared.checks, compared.messages);
    }
    let Compared { differences, unrecorded, unlogged, .. } = compared;
    format!(
        "DIFFERENT: {} checks, {} of {} connections terminated, {} messages unrecorded, {} in the record alone",
        differences.len(),
        compared.terminated,
        compared.connections,
        unrecorded.len(),
        unlogged.len()
    )
}

fn print(all: &[Compared], seconds: u64) {
    println!(
        "\n{:<42} {:>9} {:>7} {:>7} {:>6} {:>11} {:>9}",
        "suite", "scenarios", "checks", "passed", "differ", "connections", "messages"
    );
    for compared in all {
        println!(
            "{:<42} {:>9} {:>7} {:>7} {:>6} {:>11} {:>9}",
            compared.suite,
            compared.scenarios,
            compared.checks,
            compared.passed,
            compared.differences.len(),
            compared.connections,
            compared.messages
        );
    }
    let sum = |of: fn(&Compared) -> u64| all.iter().map(of).sum::<u64>();
    println!(
        "\n{} checks compared, {} differ; {} connections, {} terminated, {} refused as they asked for another name's certificate, \
         {} closed without a word; {} messages; {seconds} s.",
        sum(|c| c.checks),
        sum(|c| c.differences.len() as u64),
        sum(|c| c.connections),
        sum(|c| c.terminated),
        sum(|c| c.misnamed),
        sum(|c| c.silent),
        sum(|c| c.messages as u64),
    );
}

/// What differs, told at once: a whole run takes minutes.
fn tell(compared: &Compared) {
    for found in &compared.differences {
        let (directly, through) = (&found.directly, &found.through);
        eprintln!("   {} {}: directly {directly:?}, through Weir {through:?}", found.scenario, found.check);
    }
    for (what, told) in [
        ("not terminated", &compared.others),
        ("not in the record", &compared.unrecorded),
        ("in the record alone", &compared.unlogged),
    ] {
        for each in told {
            eprintln!("   {what}: {each}");
        }
    }
    if compared.checks == 0 || compared.connections == 0 || compared.messages == 0 {
        eprintln!("   nothing was compared");
    }
}
