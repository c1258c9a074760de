//! The kernel object: rebuilt, or compared with the committed one.

use anyhow::{Result, bail};

/// Rebuilds the committed kernel object, or with `check` only compares.
pub fn run(_check: bool) -> Result<()> {
    bail!("not written yet")
}
