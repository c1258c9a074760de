//! Calls that are recorded by the real ledger and shipped to a real collector, and what their bytes would be as plain lines.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir::ledger::{Ledger, LedgerConfig};
use weir::ship::{Collector, Shipper};
use weir::spool::{Folder, Limits};
use weir_core::ids::Boot;
use weir_core::record::Durability;
use weir_core::segment::{FrameKind, Reader};

use crate::events::{Maker, call, flow, masker};

/// Calls that are open at a time.
const AT_ONCE: u64 = 1000;
/// The level that most would take.
const LEVEL: i32 = 3;

pub fn measure(socket: &Path, folder: &Path, calls: u64) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let storage = Arc::new(Folder::open(folder)?);
    let boot = Boot::from_random([9; 16]);
    let limits = Limits { seal_bytes: 16 << 20, ..Limits::of(8 << 30) };
    let config = LedgerConfig {
        limits,
        ..LedgerConfig::new(storage.clone(), "acme".into(), "runner-1".into(), boot, masker())
    };
    let (ledger, _) = Ledger::open(config)?;
    let shipper = Shipper::new(Collector::new(socket.to_owned()), ledger.clone(), masker(), storage);
    runtime.block_on(async {
        let maker = Maker::new();
        let mut at = 0;
        while at < calls {
            let until = calls.min(at + AT_ONCE);
            let mut closing = Vec::new();
            for n in at..until {
                let record = ledger.open_record(call(n), flow())?;
                let (record, _) = record.queue(maker.intent(n, Durability::BestEffort)).await?;
                closing.push(record.close(maker.outcome(n)));
            }
            for closed in closing {
                closed.await?;
            }
            at = until;
        }
        ledger.shutdown().await?;
        let plain = plain(&ledger).await?;
        let began = Instant::now();
        shipper.ship_all().await?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(ledger.sealed().is_empty(), "segments were left in the spool");
        let Plain { events, bytes, zstd_bytes } = plain;
        Ok(json!({ "events": events, "seconds": seconds, "bytes": bytes, "zstd_bytes": zstd_bytes }))
    })
}

struct Plain {
    events: u64,
    bytes: u64,
    zstd_bytes: u64,
}

/// The same events as lines of JSON, compressed segment by segment.
async fn plain(ledger: &Ledger) -> Result<Plain> {
    let mut plain = Plain { events: 0, bytes: 0, zstd_bytes: 0 };
    for file in ledger.sealed() {
        let segment = ledger.read(file.first_seq).await?;
        let mut lines = Vec::with_capacity(segment.len());
        for frame in Reader::new(&segment)? {
            let frame = frame?;
            if frame.kind == FrameKind::Event {
                plain.events += 1;
                plain.bytes += frame.bytes.len() as u64;
                lines.extend_from_slice(frame.bytes);
                lines.push(b'\n');
            }
        }
        plain.zstd_bytes += zstd::bulk::compress(&lines, LEVEL)?.len() as u64;
    }
    Ok(plain)
}
