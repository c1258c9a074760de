//! `cargo xtask bench`: what Weir costs, as ratios within one run.

mod evidence;
mod fleet;
mod goal;
mod kernel;
mod load;
mod proxy;
mod queries;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// What the record costs: leaves, checkpoints, the spool, the disk, the way into the store, verification.
    Evidence(evidence::Options),
    /// How many hosts one collector and one store can take.
    Fleet(fleet::Options),
    /// What the hooks and lineage cost the processes below them; fails where one is above its bound.
    Kernel(kernel::Options),
    /// What clients that mean harm cost another job's; fails where that is above its bound.
    Load(load::Options),
    /// What Weir costs the calls that go through it, beside other proxies.
    Proxy(proxy::Options),
    /// What the named questions take over a large record; fails where one is above its bound.
    Queries(queries::Options),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Evidence(options) => evidence::run(options),
        Bench::Fleet(options) => fleet::run(options),
        Bench::Kernel(options) => kernel::run(options),
        Bench::Load(options) => load::run(options),
        Bench::Proxy(options) => proxy::run(options),
        Bench::Queries(options) => queries::run(options),
    }
}
