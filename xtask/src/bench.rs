//! `cargo xtask bench`: what Weir costs, as ratios within one run, and a failure where one is above its bound.

mod kernel;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// What the hooks and lineage cost the processes below them.
    Kernel(kernel::Options),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Kernel(options) => kernel::run(options),
    }
}
