//! What nobody waits for: it goes with what comes after it, is on disk soon without that, and has the time at which it was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use weir::ledger::{Ledger, LedgerConfig};
use weir::spool::faulty::Faulty;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult};

use crate::scene::{DEADLINE, begin, call, config, flow, intent, log, message, open, outcome};

/// The ledger's: so long it may wait for more.
const LINGER: Duration = Duration::from_millis(5);
const NOTES: u64 = 200;
const BEGAN_US: u64 = 1_795_300_000_000_000;

#[tokio::test]
async fn notes_share_a_sync_with_what_comes_soon_after_them() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (before, began) = (disk.data_syncs(), Instant::now());
    for _ in 0..NOTES {
        ledger.note(message("m")).await.unwrap();
    }
    ledger.write(message("the last")).await.unwrap();
    let syncs = disk.data_syncs() - before;
    // One for each time that was waited, at most; and for each segment, three of its own.
    let waited = began.elapsed().as_millis() / LINGER.as_millis();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let segments = disk.names().iter().filter(|name| name.ends_with(".seg")).count() as u64;
    assert!(u128::from(syncs) <= waited + 2 + u128::from(3 * segments), "{syncs} syncs, {waited}");
    let events = log(disk).into_iter().filter(|event| matches!(event.body, Body::Message(_))).count() as u64;
    assert_eq!(events, NOTES + 1);
}

#[tokio::test]
async fn what_nobody_waits_for_is_on_disk_soon_without_anything_else() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, proof) = begin(&ledger, 1).await.unwrap();
    record.end(outcome(1, CallResult::Ok)).unwrap();
    let began = Instant::now();
    while ledger.health().open_calls > 0 {
        assert!(began.elapsed() < DEADLINE, "the outcome was not written");
        tokio::task::yield_now().await;
    }
    // As a kill would leave it.
    let events = log(disk.killed());
    let ends = events.iter().find(|event| matches!(&event.body, Body::Outcome(of) if of.call_id == call(1)));
    assert!(ends.is_some_and(|end| end.seq > proof.seq()), "{events:?}");
}

#[tokio::test]
async fn an_event_has_the_time_at_which_it_was_sent() {
    let wall = Arc::new(AtomicU64::new(BEGAN_US));
    let clock = wall.clone();
    let disk = Faulty::new();
    let config =
        LedgerConfig { clock: Arc::new(move || clock.load(Ordering::SeqCst)), ..config(disk.clone()) };
    let (ledger, _) = Ledger::open(config).unwrap();
    let held = disk.hold_syncs();
    // While the disk is busy with another.
    let record = ledger.open_record(call(1), flow()).unwrap();
    let waits = tokio::spawn(record.intent(intent(1, Action::Allow)));
    assert!(
        tokio::task::spawn_blocking({
            let disk = disk.clone();
            move || disk.wait_for_held_sync(DEADLINE)
        })
        .await
        .unwrap()
    );
    wall.store(BEGAN_US + 1000, Ordering::SeqCst);
    ledger.note(message("sent then")).await.unwrap();
    wall.store(BEGAN_US + 700_000, Ordering::SeqCst);
    drop(held);
    waits.await.unwrap().unwrap().0.end(outcome(1, CallResult::Ok)).unwrap();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let times: Vec<u64> = log(disk)
        .iter()
        .filter(|event| !matches!(event.body, Body::Agent(_)))
        .map(|event| event.time_us - BEGAN_US)
        .collect();
    assert_eq!(times, [0, 1000, 700_000]);
}

#[tokio::test]
async fn a_time_from_before_the_clock_was_set_is_not_taken() {
    let wall = Arc::new(AtomicU64::new(BEGAN_US));
    let clock = wall.clone();
    let disk = Faulty::new();
    let config =
        LedgerConfig { clock: Arc::new(move || clock.load(Ordering::SeqCst)), ..config(disk.clone()) };
    let (ledger, _) = Ledger::open(config).unwrap();
    for by in [-3_600_000_000, 7_200_000_000] {
        let held = disk.hold_syncs();
        let busy = ledger.clone();
        let waits = tokio::spawn(async move { busy.write(message("busy")).await });
        assert!(
            tokio::task::spawn_blocking({
                let disk = disk.clone();
                move || disk.wait_for_held_sync(DEADLINE)
            })
            .await
            .unwrap()
        );
        ledger.note(message("sent before")).await.unwrap();
        wall.store(wall.load(Ordering::SeqCst).saturating_add_signed(by), Ordering::SeqCst);
        drop(held);
        waits.await.unwrap().unwrap();
        ledger.write(message("sent behind")).await.unwrap();
    }
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let told: Vec<(bool, i64)> = log(disk)
        .iter()
        .filter_map(|event| match &event.body {
            Body::Agent(own) => (own.name == "clock.step").then_some((true, event.time_us)),
            _ => Some((false, event.time_us)),
        })
        .map(|(step, time_us)| (step, time_us.cast_signed() - BEGAN_US.cast_signed()))
        .collect();
    let (back, forth) = (-3_600_000_000, 3_600_000_000);
    assert_eq!(
        told,
        [
            (false, 0),
            (true, back),
            (false, back),
            (false, back),
            (false, back),
            (true, forth),
            (false, forth),
            (false, forth)
        ]
    );
}
