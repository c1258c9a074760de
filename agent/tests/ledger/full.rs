//! A disk that is full or fails for a while: calls are refused, refusals and outcomes are recorded, and what was
//! lost is told of.

use std::collections::BTreeMap;
use std::task::{Context, Waker};

use weir::ledger::{Ledger, LedgerConfig, LedgerError};
use weir::spool::faulty::{Fault, Faulty};
use weir_core::policy::Action;
use weir_core::record::{CallResult, Durability, Intent};

use crate::scene::{
    DEADLINE, agent_events, begin, call, config, flow, glance, intent, log, message, open, outcome, outcomes,
};

#[tokio::test]
async fn on_a_full_disk_calls_are_refused_and_refusals_and_outcomes_recorded() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    disk.set_capacity(Some(disk.used()));
    let error = begin(&ledger, 2).await.unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    assert!(ledger.health().fault.is_some_and(|fault| fault.contains("full")));
    let refused = ledger.open_record(call(3), flow()).unwrap().intent(intent(3, Action::Deny)).await.unwrap();
    refused.0.close(outcome(3, CallResult::Refused)).await.unwrap();
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    assert_eq!(ledger.health().fault, None);
    disk.set_capacity(None);
    drop(begin(&ledger, 4).await.unwrap());
    drop(ledger);
    let expected = [
        (call(1), vec![CallResult::Ok]),
        (call(3), vec![CallResult::Refused]),
        (call(4), vec![CallResult::Aborted]),
    ];
    assert_eq!(outcomes(&log(disk)), BTreeMap::from(expected));
}

#[tokio::test]
async fn a_refusal_that_waits_with_a_call_there_is_no_room_for_is_written_alone() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    let blocker = ledger.open_record(call(1), flow()).unwrap();
    let mut blocker = Box::pin(blocker.intent(intent(1, Action::Deny)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(blocker.as_mut().poll(&mut context).is_pending());
    assert!(disk.wait_for_held_sync(DEADLINE));
    // These two wait while that one is synced, so they are one group.
    let mut allowed = Box::pin(begin(&ledger, 2));
    let refused = ledger.open_record(call(3), flow()).unwrap();
    let mut refused = Box::pin(refused.intent(intent(3, Action::Deny)));
    assert!(allowed.as_mut().poll(&mut context).is_pending());
    assert!(refused.as_mut().poll(&mut context).is_pending());
    disk.set_capacity(Some(disk.used()));
    drop(held);
    assert!(allowed.await.is_err());
    drop((blocker.await.unwrap(), refused.await.unwrap()));
    drop(ledger);
    let aborted = || vec![CallResult::Aborted];
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), aborted()), (call(3), aborted())]));
}

#[tokio::test]
async fn an_outcome_the_disk_did_not_take_is_written_later_of_itself() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    disk.fail_at(disk.operations(), Fault::Eio);
    record.close(outcome(1, CallResult::Ok)).await.unwrap_err();
    let health = ledger.health();
    assert_eq!((health.open_calls, health.failed_groups), (1, 1));
    tokio::time::timeout(DEADLINE, async {
        while ledger.health().open_calls + ledger.health().owed_outcomes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::Ok])]));
}

#[tokio::test]
async fn lost_notes_are_counted_and_told_of_when_writing_works_again() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = disk.hold_syncs();
    ledger.note(message("is being written when the disk fails")).await.unwrap();
    assert!(disk.wait_for_held_sync(DEADLINE));
    for _ in 0..3 {
        ledger.note(message("waits behind it")).await.unwrap();
    }
    disk.fail_at(disk.operations(), Fault::Eio);
    drop(held);
    // It may be in the failed group or in the next one.
    let _ = ledger.write(message("after")).await;
    ledger.write(message("after")).await.unwrap();
    let lost = ledger.health().lost_notes;
    assert_eq!(lost, 3);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let told: u64 = agent_events(&log(disk), "ledger.lost")
        .iter()
        .map(|detail| detail["notes"].parse::<u64>().unwrap())
        .sum();
    assert_eq!(told, lost);
}

#[tokio::test]
async fn an_intent_for_which_no_call_waited_is_counted_when_it_is_lost_and_the_next_call_waits() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = glance(&ledger, 1).await.unwrap();
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    disk.set_capacity(Some(disk.used()));
    let (record, _) = glance(&ledger, 2).await.unwrap();
    // The outcome of a call that is not in the log has no place there either.
    assert!(matches!(record.close(outcome(2, CallResult::Ok)).await, Err(LedgerError::WrongCall(_))));
    assert_eq!((ledger.health().lost_notes, ledger.health().unwaited_intents), (1, 2));
    let refused = glance(&ledger, 3).await.unwrap_err();
    assert!(refused.to_string().contains("full"), "{refused}");
    // What may be written on a full disk all the same says nothing of what comes next.
    let (refusal, _) =
        ledger.open_record(call(4), flow()).unwrap().intent(intent(4, Action::Deny)).await.unwrap();
    refusal.close(outcome(4, CallResult::Refused)).await.unwrap();
    assert!(glance(&ledger, 5).await.is_err());
    disk.set_capacity(None);
    drop(glance(&ledger, 6).await.unwrap());
    drop(glance(&ledger, 7).await.unwrap());
    assert_eq!(ledger.health().unwaited_intents, 3);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let log = log(disk);
    let ends = outcomes(&log);
    assert_eq!(ends.keys().collect::<Vec<_>>(), [&call(1), &call(4), &call(6), &call(7)]);
    assert_eq!(agent_events(&log, "ledger.lost")[0]["notes"], "1");
}

#[tokio::test]
async fn calls_that_need_not_wait_do_when_the_writer_is_so_far_behind_that_half_of_all_slots_are_taken() {
    let disk = Faulty::new();
    let (ledger, _) = Ledger::open(LedgerConfig { max_open: 4, ..config(disk.clone()) }).unwrap();
    let held = disk.hold_syncs();
    let mut unwritten = Vec::new();
    for n in 1..=2 {
        let (record, _) = glance(&ledger, n).await.unwrap();
        unwritten.push(record.close(outcome(n, CallResult::Ok)));
    }
    let mut waits = Box::pin(glance(&ledger, 3));
    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(held);
    let (record, _) = waits.await.unwrap();
    record.close(outcome(3, CallResult::Ok)).await.unwrap();
    for written in unwritten {
        written.await.unwrap();
    }
    assert_eq!(ledger.health().unwaited_intents, 2);
}

#[tokio::test]
async fn an_intent_that_does_not_say_best_effort_or_is_not_allowed_cannot_go_without_the_disk() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let held = Intent { durability: Durability::BestEffort, ..intent(1, Action::Hold) };
    for intent in [intent(1, Action::Allow), held] {
        let refused = ledger.open_record(call(1), flow()).unwrap().queue(intent).await.unwrap_err();
        assert!(matches!(refused, LedgerError::MustWait(_)), "{refused}");
    }
}
