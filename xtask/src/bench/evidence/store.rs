//! The way into the store: real segments, of the agent's own ledger and shipper, into the real collector and the embedded store.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_tests::Setup;
use weir_tests::collector::Collector;
use weir_tests::store::Store;

use crate::progress::{output, say};

/// Ships the events of so many calls, and looks at what became of them.
pub fn measure(setup: &Setup, example: &Path, world: &Path, folder: &Path, calls: u64) -> Result<Value> {
    let store = Store::start(setup, world, false)?;
    let collector = Collector::start(&store, world, "warn", false)?;
    say(format_args!("bench evidence: {calls} calls through the collector into the store"));
    let mut ship = Command::new(example);
    ship.arg("ship").arg(collector.socket()).arg(folder).arg(calls.to_string());
    let shipped: Value = serde_json::from_str(&output(&mut ship)?).context("what the example said")?;
    let number =
        |row: &Value, key: &str| row.get(key).and_then(Value::as_f64).with_context(|| format!("no {key}"));
    let (events, seconds) = (number(&shipped, "events")?, number(&shipped, "seconds")?);
    // As it lies after the merges that come anyway.
    store.execute("OPTIMIZE TABLE events FINAL")?;
    let rows = collector.sql("SELECT count() AS rows FROM events")?;
    let rows = number(rows.first().context("no answer")?, "rows")?;
    let parts = store.execute(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'weir' AND table = 'events' FORMAT TSV",
    )?;
    let on_disk: f64 = parts.lines().last().unwrap_or_default().trim().parse().context("the parts' bytes")?;
    let export = folder.join("export.tar");
    let trust = folder.join("trust.toml");
    std::fs::write(&trust, collector.run(&["trust"])?)?;
    let path = |path: &Path| path.to_string_lossy().into_owned();
    collector.run(&["export", "--output", &path(&export)])?;
    let began = Instant::now();
    collector.run(&["verify", "--export", &path(&export), "--trust", &path(&trust)])?;
    let verifying = began.elapsed().as_secs_f64();
    Ok(json!({
        "rows": rows,
        "rows_per_second": events / seconds,
        "bytes_per_row": on_disk / rows,
        "zstd_bytes_per_row": number(&shipped, "zstd_bytes")? / events,
        "canonical_bytes_per_row": number(&shipped, "bytes")? / events,
        "verified_per_second": rows / verifying,
    }))
}
