//! Measures what evidence costs: leaves and checkpoints, the spool, what a call waits for the disk under strict durability, and
//! the way into a collector. Run by `cargo xtask bench evidence`, which says what it all means. Leaves one line of JSON on
//! stdout.

mod calls;
mod events;
mod shipped;
mod spooled;
mod tree;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

const USAGE: &str = "usage: evidence_bench agent FOLDER SECONDS | ship SOCKET FOLDER CALLS; the folder is on the disk that is \
                     measured";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = match arguments[..] {
        ["agent", folder, seconds] => agent(Path::new(folder), Duration::from_secs(seconds.parse()?))?,
        ["ship", socket, folder, calls] => {
            shipped::measure(Path::new(socket), &Path::new(folder).join("shipped"), calls.parse()?)?
        }
        _ => bail!(USAGE),
    };
    println!("{told}");
    Ok(())
}

fn agent(folder: &Path, seconds: Duration) -> Result<Value> {
    let events = events::sample()?;
    let bytes = events.iter().map(Vec::len).sum::<usize>() / events.len().max(1);
    let tree = tree::measure(&events)?;
    let spooled = spooled::measure(&folder.join("spooled"), &events, seconds)?;
    let calls = calls::measure(&folder.join("calls"), seconds)?;
    Ok(json!({ "bytes_per_event": bytes, "tree": tree, "spool": spooled, "calls": calls }))
}

/// The nanoseconds that this thread has run: what else the machine does is not in them.
fn own_time() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let Some(nanoseconds) = stat.split(' ').next() else { bail!("no schedstat") };
    Ok(nanoseconds.parse()?)
}
