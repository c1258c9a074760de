//! `cargo xtask demo`: a pipeline job calls an MCP server, once as ever and once through Weir, and what was recorded.
//!
//! In: nothing but a machine. Out: a story on stdout, each claim of it checked, and an exit code that says whether all held.

mod claims;
mod job;
mod kept;
mod report;

use std::time::Instant;

use anyhow::{Result, bail};
use weir_tests::machine::require_kernel;
use weir_tests::{World, WorldPlan};

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave everything running, and say how to talk to it.
    #[arg(long)]
    keep: bool,
    /// End what an earlier `--keep` left running, and do nothing else.
    #[arg(long, conflicts_with = "keep")]
    stop: bool,
}

pub fn run(options: &Options) -> Result<()> {
    require_kernel()?;
    if options.stop {
        return kept::stop();
    }
    let began = Instant::now();
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    say("build: the agent, the collector and the store");
    shown(cargo(&setup).args(["build", "-p", "weir", "-p", "weir-collector", "-p", "weir-store"]))?;
    if options.keep {
        kept::stop()?;
    }

    let kind = if options.keep { "kept" } else { "demo" };
    let mut world =
        World::start(&WorldPlan { kind, keepalive: "1s", outlives: options.keep, ..WorldPlan::default() })?;
    heading(1, "A store, a collector, an agent and an MCP server");
    report::parts(&mut world)?;

    heading(2, "The same job twice: as ever, then in the cgroup that the agent watches");
    let before = job::as_ever(&world)?;
    let after = job::through_weir(&world)?;
    report::environment(&world);
    report::calls(&before, &after);

    heading(3, "What was recorded, by SQL from ClickHouse");
    world.until_shipped()?;
    report::record(&world)?;

    heading(4, "What this shows");
    let broken = claims::check(&world, &before, &after)?;
    if options.keep {
        kept::leave(&mut world)?;
    } else {
        report::further();
    }
    if broken > 0 {
        world.show_logs();
        bail!("{broken} of the demo's claims did not hold; they are marked above");
    }
    println!("\nAll of it took {} s.", began.elapsed().as_secs());
    Ok(())
}

fn heading(number: u32, title: &str) {
    println!("\n{number}. {title}\n");
}
