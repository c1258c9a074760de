//! The ledger's promise: an intent that was acknowledged is on disk, each has exactly one outcome in the end,
//! and no sequence number is there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use weir::ledger::{
    DurableIntent, Entry, Intended, Ledger, LedgerConfig, LedgerError, OpenRecord, QUEUE, Recovered, Text,
};
use weir::spool::faulty::{Fault, Faulty, Random};
use weir::spool::{Folder, Limits, Storage};
use weir_core::ids::{Boot, CallId, FlowId};
use weir_core::mask::{MaskKey, Masker};
use weir_core::policy::{Action, Verdict};
use weir_core::record::{
    AgentEvent, Body, CallResult, Caller, Durability, Intent, Job, Mcp, Message, MessageLabel, Outcome,
    Payload, Proof, Server, Stored,
};
use weir_core::segment::{FrameKind, Reader};

const DEADLINE: Duration = Duration::from_secs(30);
const FOREVER: Duration = Duration::from_secs(100_000);

fn masker() -> Masker {
    Masker::new(MaskKey::new([3; 32]))
}

fn text(text: &str) -> Text {
    masker().text(text)
}

fn config(storage: impl Storage + 'static) -> LedgerConfig {
    let boot = Boot::from_random([9; 16]);
    LedgerConfig {
        limits: Limits { max_bytes: 4 << 20, reserve_bytes: 1 << 16, seal_bytes: 4000, seal_events: 40 },
        clock: Arc::new(|| 1_790_000_000_000_000),
        seal_after: FOREVER,
        ..LedgerConfig::new(Arc::new(storage), "t".into(), "h".into(), boot, masker())
    }
}

fn open(disk: &Faulty) -> (Ledger, Recovered) {
    Ledger::open(config(disk.clone())).unwrap()
}

fn call(n: u64) -> CallId {
    CallId::from_random((u128::from(n) + 1).to_be_bytes())
}

fn flow() -> FlowId {
    FlowId::from_random([5; 16])
}

fn intent(n: u64, action: Action) -> Intent<Text> {
    let none = Text::default;
    let caller = Caller {
        pid: 1,
        start_time: None,
        uid: 0,
        gid: 0,
        comm: none(),
        executable: none(),
        command_line: none(),
        cgroup: none(),
        job: Job::default(),
        seen_alive: true,
    };
    Intent {
        call_id: call(n),
        flow_id: flow(),
        caller: Arc::new(caller),
        server: Server { address: "::1".into(), port: 1, name: none(), proof: Proof::Unproven },
        mcp: Mcp {
            method: text("tools/call"),
            tool: None,
            request_id: None,
            session: None,
            protocol_version: None,
        },
        verdict: Verdict { action, rule: "default".into(), policy_digest: "d".into() },
        payload: Payload::default(),
        durability: Durability::Strict,
        approval_id: None,
    }
}

fn outcome(n: u64, result: CallResult) -> Outcome<Text> {
    Outcome {
        call_id: call(n),
        result,
        http_status: None,
        error_code: None,
        duration_us: Some(n),
        payload: Payload::default(),
    }
}

fn message(content: &str) -> Message<Text> {
    Message {
        flow_id: flow(),
        call_id: None,
        direction: weir_core::record::Direction::ServerToClient,
        method: Text::default(),
        label: MessageLabel::Notification,
        payload: Payload { text: text(content), bytes: content.len() as u64, ..Payload::default() },
    }
}

async fn begin(ledger: &Ledger, n: u64) -> Result<(OpenRecord<Intended>, DurableIntent), LedgerError> {
    ledger.open_record(call(n), flow())?.intent(intent(n, Action::Allow)).await
}

/// Opens a folder once more and reads all that is in it: that must have dense sequence numbers.
fn log(disk: impl Storage + 'static) -> Vec<Stored> {
    let mut events = log_with_gaps(disk);
    events.sort_by_key(|event| event.seq);
    let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "{seqs:?}");
    events
}

fn log_with_gaps(disk: impl Storage + 'static) -> Vec<Stored> {
    let spool =
        weir::spool::open(Arc::new(disk), config(Faulty::new()).limits).unwrap().start(b"[]").unwrap();
    let mut events = BTreeMap::new();
    for file in spool.shelf().sealed() {
        let bytes = spool.shelf().read(file.first_seq).unwrap();
        for frame in Reader::new(&bytes).unwrap().map(Result::unwrap).filter(|f| f.kind == FrameKind::Event) {
            let event = Stored::read(frame.bytes).unwrap();
            assert_eq!(event.seq, frame.seq);
            assert!(events.insert(event.seq, event).is_none(), "{} is there twice", frame.seq);
        }
    }
    events.into_values().collect()
}

/// The outcomes of each intent, in the log's order. There is none without an intent before it.
fn outcomes(log: &[Stored]) -> BTreeMap<CallId, Vec<CallResult>> {
    let mut outcomes = BTreeMap::new();
    for event in log {
        match &event.body {
            Body::Intent(intent) => {
                assert!(outcomes.insert(intent.call_id.clone(), vec![]).is_none(), "two intents of a call");
            }
            Body::Outcome(outcome) => outcomes.get_mut(&outcome.call_id).unwrap().push(outcome.result),
            _ => {}
        }
    }
    outcomes
}

fn agent_events(log: &[Stored], named: &str) -> Vec<BTreeMap<String, String>> {
    let detail = |event: &Stored| match &event.body {
        Body::Agent(agent) if agent.name == named => Some(agent.detail.clone()),
        _ => None,
    };
    log.iter().filter_map(detail).collect()
}

#[tokio::test]
async fn an_intent_is_acknowledged_only_after_its_sync() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    disk.hold_syncs();
    let record = ledger.open_record(call(1), flow()).unwrap();
    let mut intent = pin!(record.intent(intent(1, Action::Allow)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(intent.as_mut().poll(&mut context).is_pending());
    assert!(disk.wait_for_held_sync(DEADLINE));
    assert!(intent.as_mut().poll(&mut context).is_pending(), "acknowledged before it was on disk");
    let before = disk.data_syncs();
    disk.release_syncs();
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
    disk.hold_syncs();
    let first = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.write(message("first")).await }
    });
    while disk.operations() < 12 {
        tokio::task::yield_now().await;
    }
    assert!(disk.wait_for_held_sync(DEADLINE));
    for n in 0..30 {
        ledger.note(message(&n.to_string())).await.unwrap();
    }
    let before = disk.data_syncs();
    disk.release_syncs();
    assert_eq!(first.await.unwrap().unwrap(), 1);
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
    {
        let mut unpolled = pin!(begin(&ledger, 1));
        assert!(unpolled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
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
async fn a_call_that_a_kill_left_open_becomes_unknown_once() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (one, _) = begin(&ledger, 1).await.unwrap();
    let (two, _) = begin(&ledger, 2).await.unwrap();
    two.close(outcome(2, CallResult::Ok)).await.unwrap();
    let disk = disk.killed();
    drop((one, ledger));
    for unknown in [vec![call(1)], vec![], vec![]] {
        assert_eq!(open(&disk).1.unknown, unknown);
    }
    let log = log(disk);
    let expected = [(call(1), vec![CallResult::Unknown]), (call(2), vec![CallResult::Ok])];
    assert_eq!(outcomes(&log), BTreeMap::from(expected));
    let counts: Vec<_> =
        agent_events(&log, "agent.started").iter().map(|d| d["unknown_calls"].clone()).collect();
    assert_eq!(counts, ["0", "1", "0", "0"]);
}

#[tokio::test]
async fn a_call_is_known_to_be_open_after_the_segment_with_its_intent_was_trimmed() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    for round in 0..3 {
        assert!(ledger.seal_if_older(Duration::ZERO).await.unwrap(), "round {round}");
        for file in ledger.sealed() {
            assert!(!ledger.read(file.first_seq).await.unwrap().is_empty());
            ledger.trim(file.first_seq).await.unwrap();
        }
        ledger.write(message("more")).await.unwrap();
    }
    let disk = disk.power_cut(4);
    drop((record, ledger));
    assert_eq!(open(&disk).1.unknown, [call(1)]);
    assert_eq!(open(&disk).1.unknown, []);
}

#[tokio::test]
async fn a_crash_at_any_point_of_recovery_leaves_each_open_call_one_unknown_outcome() {
    let left = {
        let disk = Faulty::new();
        let (ledger, _) = open(&disk);
        for n in 0..60 {
            std::mem::forget(begin(&ledger, n).await.unwrap());
        }
        disk.killed().copy()
    };
    for operation in 0..60 {
        for seed in [None, Some(1), Some(2)] {
            let disk = left.copy();
            disk.fail_at(operation, Fault::Off);
            drop(Ledger::open(config(disk.clone())));
            let disk = seed.map_or_else(|| disk.killed(), |seed| disk.power_cut(seed));
            drop(open(&disk));
            let outcomes = outcomes(&log_with_gaps(disk));
            assert_eq!(outcomes.len(), 60);
            let once = outcomes.values().all(|results| results == &[CallResult::Unknown]);
            assert!(once, "operation {operation}, {seed:?}: {outcomes:?}");
        }
    }
}

/// What a run was told: the intents and outcomes that were acknowledged, and the calls that failed.
#[derive(Default)]
struct Told {
    intents: BTreeMap<CallId, u64>,
    outcomes: BTreeSet<CallId>,
}

/// 24 calls with a message each, one after the other, some refused, some dropped.
async fn work(ledger: &Ledger) -> Told {
    let mut told = Told::default();
    for n in 0..24 {
        let action = if n % 5 == 0 { Action::Deny } else { Action::Allow };
        let Ok(record) = ledger.open_record(call(n), flow()) else { continue };
        let Ok((record, proof)) = record.intent(intent(n, action)).await else { continue };
        told.intents.insert(call(n), proof.seq());
        let _ = ledger.note(message(&"m".repeat(n as usize * 7))).await;
        if n % 7 == 3 {
            drop(record);
        } else if record.close(outcome(n, CallResult::Ok)).await.is_ok() {
            told.outcomes.insert(call(n));
        }
        if n % 9 == 8 {
            let _ = ledger.seal_if_older(Duration::ZERO).await;
        }
    }
    told
}

fn check(told: &Told, log: &[Stored], what: &str) {
    let outcomes = outcomes(log);
    for (call_id, seq) in &told.intents {
        let found = log.iter().find(|event| event.seq == *seq).unwrap_or_else(|| panic!("{what}: no {seq}"));
        assert!(
            matches!(&found.body, Body::Intent(intent) if &intent.call_id == call_id),
            "{what}: {found:?}"
        );
    }
    for (call_id, results) in &outcomes {
        assert_eq!(results.len(), 1, "{what}: {call_id} has {results:?}");
        if told.outcomes.contains(call_id) {
            assert_eq!(results, &[CallResult::Ok], "{what}");
        }
    }
}

#[tokio::test]
async fn a_fault_at_any_operation_loses_no_acknowledged_intent_and_no_outcome() {
    for operation in 0..130 {
        for fault in [Fault::Eio, Fault::Enospc, Fault::Torn(90)] {
            let disk = Faulty::new();
            disk.fail_at(operation, fault);
            let Ok((ledger, _)) = Ledger::open(config(disk.clone())) else { continue };
            let told = work(&ledger).await;
            let what = format!("{fault:?} at {operation}");
            assert!(told.intents.len() >= 23, "{what}: {} intents", told.intents.len());
            ledger.shutdown().await.unwrap();
            drop(ledger);
            let log = log(disk.killed());
            check(&told, &log, &what);
            let unknown = outcomes(&log).into_values().any(|results| results == [CallResult::Unknown]);
            assert!(!unknown, "{what}: an outcome was given up");
        }
    }
}

#[tokio::test]
async fn a_kill_or_power_cut_at_any_operation_loses_no_acknowledged_intent() {
    for operation in 0..130 {
        for seed in [None, Some(operation), Some(operation + 1000)] {
            let disk = Faulty::new();
            disk.fail_at(operation, Fault::Off);
            let told = match Ledger::open(config(disk.clone())) {
                Ok((ledger, _)) => work(&ledger).await,
                Err(_) => Told::default(),
            };
            let disk = seed.map_or_else(|| disk.killed(), |seed| disk.power_cut(seed));
            drop(open(&disk));
            check(&told, &log_with_gaps(disk), &format!("off at {operation}, {seed:?}"));
        }
    }
}

#[tokio::test]
async fn a_group_cut_at_any_byte_loses_only_what_was_not_acknowledged() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    let active = |disk: &Faulty| {
        let name = disk.names().into_iter().rfind(|name| name.ends_with(".seg")).unwrap();
        (disk.bytes(&name).unwrap(), name)
    };
    let (acknowledged, name) = active(&disk);
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    let (bytes, same) = active(&disk);
    assert_eq!(name, same);
    for cut in acknowledged.len()..=bytes.len() {
        let disk = disk.copy();
        disk.put(&name, &bytes[..cut]);
        let (ledger, recovered) = open(&disk);
        drop(ledger);
        let log = log(disk);
        let whole = cut == bytes.len();
        let result = if whole { CallResult::Ok } else { CallResult::Unknown };
        assert_eq!(outcomes(&log), BTreeMap::from([(call(1), vec![result])]), "cut at {cut}");
        let torn = if whole { 0 } else { cut - acknowledged.len() };
        assert_eq!(recovered.report.torn_bytes, torn as u64);
        assert_eq!(agent_events(&log, "agent.started")[1]["torn_bytes"], torn.to_string());
    }
}

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
    disk.hold_syncs();
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
    disk.release_syncs();
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
        while ledger.health().open_calls > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(ledger.health().owed_outcomes, 0);
    drop(ledger);
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::Ok])]));
}

#[tokio::test]
async fn lost_notes_are_counted_and_told_of_when_writing_works_again() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    disk.hold_syncs();
    ledger.note(message("is being written when the disk fails")).await.unwrap();
    assert!(disk.wait_for_held_sync(DEADLINE));
    for _ in 0..3 {
        ledger.note(message("waits behind it")).await.unwrap();
    }
    disk.fail_at(disk.operations(), Fault::Eio);
    disk.release_syncs();
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
    disk.hold_syncs();
    let mut context = Context::from_waker(Waker::noop());
    let mut queued = 0;
    loop {
        let mut note = pin!(ledger.note(message("x")));
        match note.as_mut().poll(&mut context) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => break,
        }
        queued += 1;
    }
    assert!(queued >= QUEUE && queued <= QUEUE + 300, "{queued}");
    let (record, _) = {
        // An open record does not queue behind them.
        let mut intent = pin!(begin(&ledger, 1));
        assert!(intent.as_mut().poll(&mut context).is_pending());
        disk.release_syncs();
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

#[tokio::test]
async fn a_damaged_segment_is_told_of_by_the_next_run() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    drop(begin(&ledger, 1).await.unwrap());
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let name = format!("{:020}.seg", 0);
    let mut bytes = disk.bytes(&name).unwrap();
    bytes[100] ^= 1;
    disk.put(&name, &bytes);
    disk.put("core.1234", b"");
    let (ledger, recovered) = open(&disk);
    assert_eq!(recovered.report.damaged.len(), 1);
    drop(ledger);
    let log = log_with_gaps(disk);
    let started = &agent_events(&log, "agent.started")[0];
    assert!(started["damaged_segments"].starts_with("0: the segment is damaged"), "{started:?}");
    assert_eq!(started["foreign_files"], "core.1234");
    assert_eq!(log[0].seq, 4, "the sequence numbers of what is damaged are not given away again");
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

#[tokio::test]
async fn random_histories_keep_what_they_acknowledged() {
    for seed in 0..150 {
        random_history(seed).await;
    }
}

/// Calls, notes, seals, trims, faults, kills and power cuts as `seed` has it. What is trimmed is kept, as a
/// collector would.
async fn random_history(seed: u64) {
    let mut random = Random(seed);
    let mut disk = Faulty::new();
    let (mut ledger, _) = open(&disk);
    let (mut next, mut shipped, mut told) = (0, BTreeMap::<u64, Vec<u8>>::new(), Told::default());
    let mut records: Vec<(u64, OpenRecord<Intended>)> = Vec::new();
    for _ in 0..70 {
        match random.below(14) {
            0..=3 => {
                if let Ok((record, proof)) = begin(&ledger, next).await {
                    told.intents.insert(call(next), proof.seq());
                    records.push((next, record));
                }
                next += 1;
            }
            4..=5 if !records.is_empty() => {
                let (n, record) = records.swap_remove(random.below(records.len() as u64) as usize);
                if random.below(4) == 0 {
                    drop(record);
                } else if record.close(outcome(n, CallResult::Ok)).await.is_ok() {
                    told.outcomes.insert(call(n));
                }
            }
            6 => ledger.note(message(&"n".repeat(random.below(900) as usize))).await.unwrap(),
            7 => drop(ledger.seal_if_older(Duration::ZERO).await),
            8..=9 => {
                let Some(file) = ledger.sealed().first().copied() else { continue };
                let Ok(bytes) = ledger.read(file.first_seq).await else { continue };
                let before = shipped.insert(file.first_seq, bytes.clone());
                assert!(before.is_none_or(|before| before == bytes), "seed {seed}: a fork");
                let _ = ledger.trim(file.first_seq).await;
            }
            10 => disk.fail_at(disk.operations() + random.below(6), Fault::Eio),
            11 => disk.fail_at(disk.operations() + random.below(6), Fault::Torn(random.below(400) as usize)),
            12 if random.below(3) == 0 => {
                let cut = random.below(2) == 0;
                disk = if cut { disk.power_cut(random.any()) } else { disk.killed() };
                records.clear();
                ledger = open(&disk).0;
            }
            _ => {}
        }
    }
    disk.mend();
    records.clear();
    let _ = ledger.write(message("the end")).await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    for file in shipped.values() {
        let first_seq = Reader::new(file).unwrap().first_seq();
        disk.put(&format!("{first_seq:020}.seg"), file);
    }
    check(&told, &log_with_gaps(disk), &format!("seed {seed}"));
}

#[test]
fn what_belongs_to_no_call_is_an_entry() {
    let entry: Entry = message("x").into();
    assert_eq!(entry, message("x").into());
}
