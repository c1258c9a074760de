//! What a call waits for its record: 1,000 calls a second, begun at their time whatever became of those before, strict and
//! best effort in turns, so that both meet the same disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir::ledger::{Ledger, LedgerConfig};
use weir::spool::Folder;
use weir_core::ids::Boot;
use weir_core::record::Durability;

use crate::events::{Maker, call, flow, masker};

const CALLS_PER_SECOND: u64 = 1000;
/// How long each durability has its turn.
const TURN: Duration = Duration::from_millis(500);

pub fn measure(folder: &Path, seconds: Duration) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let storage = Arc::new(Folder::open(folder)?);
    let boot = Boot::from_random([9; 16]);
    let (ledger, _) =
        Ledger::open(LedgerConfig::new(storage, "acme".into(), "runner-1".into(), boot, masker()))?;
    let result = runtime.block_on(async {
        let maker = Arc::new(Maker::new());
        let (mut strict, mut queued, mut at) = (Vec::new(), Vec::new(), 0);
        let began = Instant::now();
        while began.elapsed() < seconds * 2 {
            strict.extend(turn(&ledger, &maker, &mut at, Durability::Strict).await?);
            queued.extend(turn(&ledger, &maker, &mut at, Durability::BestEffort).await?);
            for sealed in ledger.sealed() {
                ledger.trim(sealed.first_seq).await?;
            }
        }
        ledger.shutdown().await?;
        let [strict, queued] = [strict, queued].map(|mut times| {
            times.sort_unstable();
            json!({ "calls": times.len(), "p50_us": part(&times, 50), "p99_us": part(&times, 99) })
        });
        anyhow::Ok(json!({ "per_second": CALLS_PER_SECOND, "strict": strict, "best_effort": queued }))
    });
    result.context("calling")
}

fn part(sorted: &[u64], percent: usize) -> u64 {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or(0)
}

/// From each call's time to when it may go upstream, microseconds.
async fn turn(ledger: &Ledger, maker: &Arc<Maker>, at: &mut u64, durability: Durability) -> Result<Vec<u64>> {
    let mut calls = tokio::task::JoinSet::new();
    let began = Instant::now();
    let each = Duration::from_secs(1) / u32::try_from(CALLS_PER_SECOND)?;
    let mut due = began;
    while due < began + TURN {
        tokio::time::sleep_until(due.into()).await;
        let (ledger, maker, n) = (ledger.clone(), maker.clone(), *at);
        *at += 1;
        calls.spawn(async move {
            let record = ledger.open_record(call(n), flow())?;
            let intent = maker.intent(n, durability);
            let record = match durability {
                Durability::Strict => record.intent(intent).await?.0,
                Durability::BestEffort => record.queue(intent).await?.0,
            };
            let waited = due.elapsed();
            record.close(maker.outcome(n)).await?;
            anyhow::Ok(u64::try_from(waited.as_micros())?)
        });
        due += each;
    }
    calls.join_all().await.into_iter().collect()
}
