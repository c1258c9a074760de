//! Kills, power cuts, failing and torn writes, bad disks: what was acknowledged stays, and each intent has one
//! outcome in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir::ledger::{Intended, Ledger, OpenRecord};
use weir::spool::faulty::{Fault, Faulty, Random};
use weir_core::ids::CallId;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, Stored};
use weir_core::segment::Reader;

use crate::scene::{
    agent_events, begin, call, config, flow, intent, log, log_with_gaps, message, open, open_behind_a_fault,
    outcome, outcomes,
};

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

/// What a run was told: the intents and outcomes that were acknowledged.
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
            let what = format!("{fault:?} at {operation}");
            let (ledger, _) = open_behind_a_fault(&disk, &what);
            let told = work(&ledger).await;
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
        (disk.written(&name).unwrap(), name)
    };
    let (acknowledged, name) = active(&disk);
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    let (bytes, same) = active(&disk);
    assert_eq!(name, same);
    for cut in acknowledged.len()..=bytes.len() {
        // At the end of the file, or in its room.
        let (disk, room) = (disk.copy(), [0, 500][cut % 2]);
        disk.put(&name, &[&bytes[..cut], &vec![0; room]].concat());
        let (ledger, recovered) = open(&disk);
        drop(ledger);
        let log = log(disk);
        let whole = cut == bytes.len();
        let result = if whole { CallResult::Ok } else { CallResult::Unknown };
        assert_eq!(outcomes(&log), BTreeMap::from([(call(1), vec![result])]), "cut at {cut}");
        // Zeros at its end pass for room.
        let tail = bytes[acknowledged.len()..cut].iter().rposition(|byte| *byte != 0);
        let torn = if whole { 0 } else { tail.map_or(0, |last| last + 1) };
        assert_eq!(recovered.report.torn_bytes, torn as u64);
        let (started, zeros) = (&agent_events(&log, "agent.started")[1], recovered.report.room_bytes);
        assert_eq!((&started["torn_bytes"], &started["room_bytes"]), (&torn.to_string(), &zeros.to_string()));
        assert!(
            zeros >= room as u64
                && (whole || torn as u64 + zeros == (cut - acknowledged.len() + room) as u64)
        );
    }
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
