//! Measures what evidence costs the agent: leaves and checkpoints, the spool, and what a call waits for the disk under strict
//! durability. Run by `cargo xtask bench evidence`, which says what it all means. Leaves one line of JSON on stdout.

mod calls;
mod events;
mod spooled;
mod tree;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seconds] = &arguments[..] else {
        bail!("usage: evidence_bench FOLDER SECONDS; the folder is on the disk that is measured");
    };
    let (folder, seconds) = (PathBuf::from(folder), Duration::from_secs(seconds.parse()?));
    let events = events::sample()?;
    let bytes = events.iter().map(Vec::len).sum::<usize>() / events.len().max(1);
    let tree = tree::measure(&events)?;
    let spooled = spooled::measure(&folder.join("spooled"), &events, seconds)?;
    let calls = calls::measure(&folder.join("calls"), seconds)?;
    println!("{}", json!({ "bytes_per_event": bytes, "tree": tree, "spool": spooled, "calls": calls }));
    Ok(())
}

/// The nanoseconds that this thread has run: what else the machine does is not in them.
fn own_time() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let Some(nanoseconds) = stat.split(' ').next() else { bail!("no schedstat") };
    Ok(nanoseconds.parse()?)
}
