//! Prints how long a job in an unannounced network namespace is refused, and what the hook costs that spares it that, and
//! how long a connect to a private address takes that waits for the agent to dial, as one line of JSON each:
//! `cargo run -p weir-tests --example netns_window [ROUNDS]`, after `cargo build`, as root.

use anyhow::{Context, Result};
use serde_json::json;

fn main() -> Result<()> {
    let rounds =
        std::env::args().nth(1).map_or(Ok(20), |rounds| rounds.parse()).context("how many rounds?")?;
    let windows = weir_tests::window::measure(rounds)?;
    for (name, waits) in [("unannounced", &windows.unannounced), ("announced", &windows.announced)] {
        let us: Vec<u64> = waits.iter().map(|wait| wait.us).collect();
        let refused = waits.iter().map(|wait| wait.refused).max();
        println!(
            "{}",
            json!({ "what": name, "rounds": rounds, "us": spread(&us), "refused_at_most": refused })
        );
    }
    println!("{}", json!({ "what": "oci-hook", "rounds": rounds, "us": spread(&windows.hook_us) }));
    println!("{}", json!({ "what": "held", "rounds": rounds, "us": spread(&windows.held_us) }));
    Ok(())
}

/// The least, the middle and the most of what is sorted.
fn spread(sorted: &[u64]) -> serde_json::Value {
    json!({ "min": sorted.first(), "p50": sorted.get(sorted.len() / 2), "max": sorted.last() })
}
