//! The ledger's promise: an intent that was acknowledged is on disk, each has exactly one outcome in the end,
//! and no sequence number is there twice.

#[path = "ledger/clock.rs"]
mod clock;
#[path = "ledger/crashes.rs"]
mod crashes;
#[path = "ledger/evidence.rs"]
mod evidence;
#[path = "ledger/full.rs"]
mod full;
#[path = "ledger/handover.rs"]
mod handover;
#[path = "ledger/keys.rs"]
mod keys;
#[path = "ledger/linger.rs"]
mod linger;
#[path = "ledger/power.rs"]
mod power;
#[path = "ledger/scene.rs"]
mod scene;
#[path = "ledger/torn.rs"]
mod torn;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use weir::ledger::{Entry, Ledger, LedgerConfig, LedgerError, QUEUE};
use weir::spool::Folder;
use weir::spool::faulty::Faulty;
use weir_core::policy::Action;
use weir_core::record::{AgentEvent, Body, CallResult, Durability};

use scene::{DEADLINE, FOREVER, begin, call, config, flow, intent, log, message, open, outcome, outcomes};

#[tokio::test]
async fn an_intent_is_acknowledged_only_after_its_sync() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    let record = ledger.open_record(call(1), flow()).unwrap();
    let mut intent = pin!(record.intent(intent(1, Action::Allow)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(intent.as_mut().poll(&mut context).is_pending());
    assert!(disk.wait_for_held_sync(DEADLINE));
    assert!(intent.as_mut().poll(&mut context).is_pending(), "acknowledged before it was on disk");
    let before = disk.data_syncs();
    drop(held);
    let (record, proof) = intent.await.unwrap();
    assert_eq!((disk.data_syncs(), proof.seq(), proof.call_id()), (before + 1, 1, &call(1)));
    assert_eq!(proof.durability(), Durability::Strict);
    assert_eq!(ledger.health().open_calls, 1);
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    assert_eq!(ledger.health().open_calls, 0);
}

#[tokio::test]
async fn what_waits_together_is_written_with_one_sync() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    let mut first = Box::pin(ledger.write(message("first")));
    assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(disk.wait_for_held_sync(DEADLINE));
    for n in 0..30 {
        ledger.note(message(&n.to_string())).await.unwrap();
    }
    let before = disk.data_syncs();
    drop(held);
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(ledger.write(message("last")).await.unwrap(), 32);
    let syncs = disk.data_syncs() - before;
    assert!(syncs <= 12, "{syncs} syncs for 32 events in segments of 4000 bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_calls_at_once_are_recorded_densely_with_one_outcome_each() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let calls: Vec<_> = (0..300)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let (record, proof) = begin(&ledger, n).await.unwrap();
                ledger.note(message(&n.to_string())).await.unwrap();
                let seq = record.close(outcome(n, CallResult::Ok)).await.unwrap();
                assert!(proof.seq() < seq);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let log = log(disk);
    assert_eq!(log.len(), 1 + 900 + 1);
    assert!(outcomes(&log).values().all(|results| results == &[CallResult::Ok]));
}

#[tokio::test]
async fn a_dropped_record_is_closed_as_aborted_and_one_without_intent_is_not() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    drop(begin(&ledger, 1).await.unwrap());
    drop(ledger.open_record(call(2), flow()).unwrap());
    ledger.write(message("after")).await.unwrap();
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::Aborted])]));
}

#[tokio::test]
async fn an_intent_nobody_waits_for_any_more_is_closed_as_aborted() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    let mut given_up = Box::pin(begin(&ledger, 1));
    assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(disk.wait_for_held_sync(DEADLINE));
    drop(given_up);
    drop(held);
    ledger.write(message("after")).await.unwrap();
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::Aborted])]));
}

#[tokio::test]
async fn an_outcome_nobody_waits_for_is_written() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    drop(record.close(outcome(1, CallResult::ClientGone)));
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::ClientGone])]));
}

#[tokio::test]
async fn no_more_records_are_open_than_there_are_slots() {
    let disk = Faulty::new();
    let (ledger, _) = Ledger::open(LedgerConfig { max_open: 2, ..config(disk) }).unwrap();
    let one = ledger.open_record(call(1), flow()).unwrap();
    let (two, _) = begin(&ledger, 2).await.unwrap();
    assert!(matches!(ledger.open_record(call(3), flow()), Err(LedgerError::TooManyOpen(2))));
    drop(one);
    let three = ledger.open_record(call(3), flow()).unwrap();
    two.close(outcome(2, CallResult::Ok)).await.unwrap();
    drop((ledger.open_record(call(4), flow()).unwrap(), three));
}

#[tokio::test]
async fn a_full_queue_makes_its_writers_wait() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    let mut context = Context::from_waker(Waker::noop());
    let mut queued = 0;
    loop {
        let mut note = pin!(tokio::task::unconstrained(ledger.note(message("x"))));
        match note.as_mut().poll(&mut context) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => break,
        }
        queued += 1;
    }
    assert!((QUEUE..=QUEUE + 300).contains(&queued), "{queued}");
    let (record, _) = {
        // An open record does not queue behind them.
        let mut intent = pin!(begin(&ledger, 1));
        assert!(intent.as_mut().poll(&mut context).is_pending());
        drop(held);
        intent.await.unwrap()
    };
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    ledger.write(message("last")).await.unwrap();
    drop(ledger);
    assert_eq!(log(disk).len(), 1 + queued + 3);
}

#[tokio::test]
async fn a_clean_stop_closes_open_calls_says_so_and_seals() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    ledger.note(message("queued")).await.unwrap();
    ledger.shutdown().await.unwrap();
    assert!(matches!(ledger.write(message("late")).await, Err(LedgerError::Stopped)));
    assert!(matches!(record.close(outcome(1, CallResult::Ok)).await, Err(LedgerError::Stopped)));
    assert!(matches!(begin(&ledger, 2).await, Err(LedgerError::Stopped)));
    assert!(matches!(ledger.shutdown().await, Err(LedgerError::Stopped)));
    assert_eq!(ledger.sealed().iter().map(|file| file.events).sum::<u64>(), 5);
    let locked = Ledger::open(config(disk.clone())).err().unwrap();
    assert!(locked.to_string().contains("another weir agent"), "{locked}");
    drop(ledger);
    let log = log(disk);
    assert_eq!(outcomes(&log), BTreeMap::from([(call(1), vec![CallResult::Unknown])]));
    assert!(matches!(&log.last().unwrap().body, Body::Agent(event) if event.name == "agent.stopped"));
}

#[tokio::test]
async fn an_intent_or_outcome_of_another_call_is_not_written() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let record = ledger.open_record(call(1), flow()).unwrap();
    let error = record.intent(intent(2, Action::Allow)).await.err().unwrap();
    assert!(matches!(error, LedgerError::WrongCall(id) if id == call(2)));
    let (record, _) = begin(&ledger, 3).await.unwrap();
    let error = begin(&ledger, 3).await.err().unwrap();
    assert!(matches!(error, LedgerError::WrongCall(id) if id == call(3)), "one call has one intent");
    let error = record.close(outcome(4, CallResult::Ok)).await.unwrap_err();
    assert!(matches!(error, LedgerError::WrongCall(id) if id == call(4)));
    ledger.write(message("after")).await.unwrap();
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(3), vec![CallResult::Aborted])]));
}

#[tokio::test]
async fn a_payload_too_large_for_an_event_is_cut_and_says_so() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let large = "l".repeat(5 << 20);
    ledger.write(message(&large)).await.unwrap();
    let mut event = AgentEvent { name: large, detail: BTreeMap::new() };
    let error = ledger.write(event.clone()).await.unwrap_err();
    assert!(matches!(error, LedgerError::TooLarge(_)), "{error}");
    event.name = "short".into();
    ledger.write(event).await.unwrap();
    drop(ledger);
    let log = log(disk);
    let Body::Message(message) = &log[1].body else { panic!("{:?}", log[1].body.kind()) };
    assert!(message.payload.truncated && message.payload.text.len() == 512 << 10);
    assert_eq!(message.payload.bytes, 5 << 20);
    assert_eq!(log.len(), 3);
}

#[tokio::test]
async fn a_segment_is_sealed_when_it_is_old_enough() {
    let disk = Faulty::new();
    let (ledger, _) =
        Ledger::open(LedgerConfig { seal_after: Duration::from_millis(5), ..config(disk) }).unwrap();
    let mut sealed = ledger.sealed_below();
    tokio::time::timeout(DEADLINE, sealed.wait_for(|below| *below > 0)).await.unwrap().unwrap();
    assert_eq!(ledger.sealed()[0].first_seq, 0);
    ledger.seal_after(FOREVER).unwrap();
    assert!(!ledger.seal_if_older(Duration::ZERO).await.unwrap(), "an empty segment is not sealed");
    ledger.write(message("x")).await.unwrap();
    assert!(!ledger.seal_if_older(FOREVER).await.unwrap());
    ledger.seal_after(Duration::ZERO).unwrap();
    tokio::time::timeout(DEADLINE, sealed.wait_for(|below| *below > 1)).await.unwrap().unwrap();
    assert_eq!(ledger.usage().segments, 2);
}

#[tokio::test]
async fn the_tap_sees_each_event_in_order_once_it_is_on_disk() {
    let disk = Faulty::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tap = {
        let (seen, disk) = (seen.clone(), disk.clone());
        Arc::new(move |event: &weir_core::record::Written| {
            seen.lock().unwrap().push((event.seq, event.body.kind(), disk.data_syncs()));
        })
    };
    let (ledger, _) = Ledger::open(LedgerConfig { tap: Some(tap), ..config(disk.clone()) }).unwrap();
    let before = disk.data_syncs();
    let (record, _) = begin(&ledger, 1).await.unwrap();
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen, [(0, "agent", before), (1, "intent", before + 1), (2, "outcome", before + 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_folder_keeps_a_log_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path().join("spool")).unwrap();
    let mut origins = BTreeSet::new();
    for run in 0..3 {
        let (ledger, _) = Ledger::open(config(folder.clone())).unwrap();
        origins.insert(ledger.origin().clone());
        let calls = (run * 100..run * 100 + 50).map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let (record, _) = begin(&ledger, n).await.unwrap();
                if n % 2 == 0 {
                    record.close(outcome(n, CallResult::Ok)).await.unwrap();
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        if run == 1 {
            ledger.shutdown().await.unwrap();
        }
    }
    assert_eq!(origins.len(), 1);
    let outcomes = outcomes(&log(folder));
    assert_eq!(outcomes.len(), 150);
    for (call_id, results) in outcomes {
        let n = u128::from_str_radix(call_id.as_str(), 16).unwrap() - 1;
        let expected = if n % 2 == 0 { CallResult::Ok } else { CallResult::Aborted };
        assert_eq!(results, [expected], "{n}");
    }
}

#[test]
fn what_belongs_to_no_call_is_an_entry() {
    let entry: Entry = message("x").into();
    assert_eq!(entry, message("x").into());
}
