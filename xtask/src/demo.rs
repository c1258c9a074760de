//! `cargo xtask demo`.

use anyhow::{Result, bail};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave everything running, and say how to talk to it.
    #[arg(long)]
    keep: bool,
}

pub fn run(options: &Options) -> Result<()> {
    bail!("not written yet {}", options.keep)
}
