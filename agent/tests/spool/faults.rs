//! Faults at each operation, kills and power cuts, one by one and at random.

use std::collections::BTreeMap;

use weir::spool::faulty::{Fault, Faulty, Random};

use super::{Fixed, append, head, last_segment, log, open, start, values};

/// Writes with one fault, then a kill: all that was acknowledged must be there, densely.
fn with_fault_at(operation: u64, fault: Fault) {
    let disk = Faulty::new();
    disk.fail_at(operation, fault);
    let mut acknowledged = BTreeMap::new();
    let started = open(&disk).and_then(|found| found.start(&head("carry")));
    if let Ok(mut spool) = started {
        for n in 0..12 {
            let group: Vec<String> = (0..n % 3 + 1).map(|i| format!("{n}/{i} {}", "x".repeat(90))).collect();
            let group: Vec<&str> = group.iter().map(String::as_str).collect();
            if let Ok(seqs) = append(&mut spool, &group) {
                acknowledged.extend(seqs.zip(group.iter().map(|event| (*event).to_owned())));
            }
            if n == 7 {
                let _ = spool.seal(&Fixed("carry"));
            }
        }
        if fault != Fault::Off {
            assert!(acknowledged.len() >= 21, "one fault at {operation} stopped more than its group");
        }
    }
    let disk = disk.killed();
    let mut spool = start(&disk);
    let log = log(&mut spool);
    for (seq, event) in &acknowledged {
        assert_eq!(log.get(seq), Some(event), "{fault:?} at {operation}: {seq} was acknowledged");
    }
    assert!(log.keys().copied().eq(0..log.len() as u64), "{fault:?} at {operation}: {:?}", log.keys());
    assert_eq!(spool.next_seq(), log.len() as u64);
}

#[test]
fn after_a_fault_at_any_operation_all_that_was_acknowledged_is_there_once() {
    let operations = {
        let disk = Faulty::new();
        let mut spool = start(&disk);
        for n in 0..12 {
            let group = vec!["y".repeat(94); n % 3 + 1];
            append(&mut spool, &group.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        disk.operations()
    };
    assert!(operations > 40, "{operations}");
    for operation in 0..operations + 8 {
        for fault in [Fault::Eio, Fault::Enospc, Fault::Torn(1), Fault::Torn(100), Fault::Off] {
            with_fault_at(operation, fault);
        }
    }
}

#[test]
fn a_power_cut_after_a_fault_takes_nothing_that_was_acknowledged() {
    for operation in 0..70 {
        for fault in [Fault::Eio, Fault::Torn(50), Fault::Off] {
            for seed in 0..12 {
                with_power_cut(operation, fault, seed);
            }
        }
    }
}

/// Like `with_fault_at`, but sectors of a torn write may survive in any order: a gap is then allowed if it is
/// reported.
fn with_power_cut(operation: u64, fault: Fault, seed: u64) {
    let disk = Faulty::new();
    disk.fail_at(operation, fault);
    let mut acknowledged = BTreeMap::new();
    if let Ok(mut spool) = open(&disk).and_then(|found| found.start(&head("carry"))) {
        for n in 0..9 {
            let event = format!("{n} {}", "z".repeat(150));
            if let Ok(seqs) = append(&mut spool, &[&event, &event, &event]) {
                acknowledged.extend(seqs.map(|seq| (seq, event.clone())));
            }
        }
    }
    let disk = disk.power_cut(seed);
    let found = open(&disk).unwrap();
    let (report, next_seq) = (found.report.clone(), found.next_seq);
    let mut spool = found.start(&head("")).unwrap();
    assert_eq!(report.damaged, [], "{fault:?} at {operation}, seed {seed}");
    let log = log(&mut spool);
    for (seq, event) in &acknowledged {
        assert_eq!(
            log.get(seq),
            Some(event),
            "{fault:?} at {operation}, seed {seed}: {seq} was acknowledged"
        );
    }
    let dense = log.keys().copied().eq(0..next_seq);
    assert!(dense || report.tail_kept, "{fault:?} at {operation}, seed {seed}: {:?} {report:?}", log.keys());
}

#[test]
fn a_disk_that_lies_about_a_cut_does_not_bring_a_failed_write_back() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    disk.fail_at(disk.operations() + 1, Fault::Eio);
    assert!(append(&mut spool, &["failed"]).is_err());
    let (name, with_failed) = last_segment(&disk);
    append(&mut spool, &["b"]).unwrap();
    disk.put(&name, &with_failed);
    assert_eq!(values(&log(&mut start(&disk.killed()))), ["a", "b"]);
}

#[test]
fn random_histories_keep_what_they_acknowledged() {
    for seed in 0..300 {
        random_history(seed);
    }
}

/// Appends, seals, trims, faults, kills and power cuts as `seed` has it, against a map of what must be there.
fn random_history(seed: u64) {
    let mut random = Random(seed);
    let mut disk = Faulty::new();
    let mut spool = start(&disk);
    let (mut must, mut trimmed) = (BTreeMap::<u64, String>::new(), BTreeMap::<u64, String>::new());
    let origin = disk.bytes("origin").unwrap();
    for step in 0..80 {
        match random.below(12) {
            0..=5 => {
                let event = |n: u64| format!("{step}.{n} {}", "r".repeat(random.0 as usize % 200));
                let group: Vec<String> = (0..step % 4 + 1).map(event).collect();
                let group: Vec<&str> = group.iter().map(String::as_str).collect();
                if let Ok(seqs) = append(&mut spool, &group) {
                    must.extend(seqs.zip(group.iter().map(|event| (*event).to_owned())));
                }
            }
            6 => drop(spool.seal(&Fixed("carry"))),
            7 => {
                let sealed = spool.shelf().sealed();
                let Some(file) = sealed.get(random.below(sealed.len().max(1) as u64) as usize) else {
                    continue;
                };
                // Also a trim that failed may have done it.
                let _ = spool.shelf().trim(file.first_seq);
                trimmed.extend(must.extract_if(file.first_seq..=file.last_seq(), |_, _| true));
            }
            8 => disk.fail_at(disk.operations() + random.below(6), Fault::Eio),
            9 => disk.fail_at(disk.operations() + random.below(6), Fault::Torn(random.below(300) as usize)),
            kind => {
                disk = if kind == 10 { disk.killed() } else { disk.power_cut(random.any()) };
                spool = start(&disk);
                let log = log(&mut spool);
                for (seq, event) in &must {
                    assert_eq!(log.get(seq), Some(event), "seed {seed}, step {step}");
                }
                for (seq, event) in &log {
                    // What a trim did not make last may be back; what nobody was told of may be there.
                    assert!(trimmed.get(seq).is_none_or(|gone| gone == event), "seed {seed}, step {step}");
                    must.insert(*seq, event.clone());
                }
                assert!(log.keys().all(|seq| *seq < spool.next_seq()), "seed {seed}, step {step}");
                assert_eq!(disk.bytes("origin").as_deref(), Some(&origin[..]), "seed {seed}, step {step}");
            }
        }
    }
}
