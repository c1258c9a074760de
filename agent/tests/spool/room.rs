//! Room behind the last segment's frames: it may fail to be made and to be given back, and only what can be room is taken
//! for it.

use std::sync::Arc;

use weir::spool::faulty::{Fault, Faulty};
use weir::spool::{self, Limits, Report, Spool};
use weir_core::segment::{FrameKind, Reader, header, push_frame};

use super::{Fixed, SMALL, append, head, last_segment, log, open, start, values};

/// As much as is ever made.
const MAX_ROOM: usize = 2 << 20;
/// Nothing but the tests seals.
const ROOMY: Limits = Limits { seal_bytes: 1 << 16, ..SMALL };

/// A spool whose first segment is worth room for the one behind it, and the event in that.
fn large(disk: &Faulty) -> (Spool, String) {
    let mut spool = spool::open(Arc::new(disk.clone()), ROOMY).unwrap().start(&head("carry")).unwrap();
    let large = "l".repeat(SMALL.room_from);
    append(&mut spool, &[&large]).unwrap();
    (spool, large)
}

/// The number of the last such operation of a history.
fn last_of(doing: &str, file: &str, history: impl Fn(&Faulty)) -> u64 {
    let disk = Faulty::new();
    history(&disk);
    let at = disk.sites().iter().rposition(|site| site.doing == doing && site.file == file);
    at.unwrap_or_else(|| panic!("no {doing} {file}")) as u64
}

#[test]
fn a_segment_for_which_no_room_can_be_made_or_synced_is_made_without() {
    let sealed = |disk: &Faulty| {
        let (mut spool, large) = large(disk);
        spool.seal(&Fixed("carry")).unwrap();
        (spool, large)
    };
    for (doing, fault) in [
        ("make room in", Fault::Enospc),
        ("make room in", Fault::Torn(70)),
        ("sync", Fault::Enospc),
        ("sync", Fault::Eio),
    ] {
        let disk = Faulty::new();
        disk.fail_at(last_of(doing, "scratch", |disk| drop(sealed(disk))), fault);
        let (mut spool, large) = sealed(&disk);
        append(&mut spool, &["b"]).unwrap();
        let (name, bytes) = last_segment(&disk);
        assert_eq!(disk.bytes(&name), Some(bytes), "{doing}, {fault:?}: it has no room");
        assert_eq!(open(&disk.copy()).unwrap().report, Report::default(), "{doing}, {fault:?}");
        // Nor is there any to be given back.
        spool.seal(&Fixed("carry")).unwrap();
        assert!(disk.sites().iter().all(|site| site.doing != "give room back of"), "{doing}, {fault:?}");
        assert_eq!(values(&log(&mut start(&disk.power_cut(5)))), [&large, "b"]);
    }
}

#[test]
fn a_segment_whose_room_could_not_be_cut_off_is_written_no_more() {
    let with_room = |disk: &Faulty| {
        let (mut spool, large) = large(disk);
        spool.seal(&Fixed("carry")).unwrap();
        append(&mut spool, &["b"]).unwrap();
        (spool, large)
    };
    let given_back = last_of("give room back of", "segment", |disk| {
        with_room(disk).0.seal(&Fixed("carry")).unwrap();
    });
    // The cut, and the sync of it.
    for operation in [given_back, given_back + 1] {
        let disk = Faulty::new();
        disk.fail_at(operation, Fault::Eio);
        let (mut spool, large) = with_room(&disk);
        let (name, _) = last_segment(&disk);
        assert!(spool.seal(&Fixed("carry")).is_err(), "it fails at {operation}");
        let ended = disk.written(&name);
        append(&mut spool, &["c"]).unwrap();
        assert_eq!(disk.bytes(&name), ended, "it ends with its last checkpoint");
        assert_eq!(values(&log(&mut spool)), [&large, "b", "c"]);
    }
}

#[test]
fn a_segment_that_was_cut_after_a_failed_write_has_no_room_to_give_back() {
    let disk = Faulty::new();
    let (mut spool, large) = large(&disk);
    spool.seal(&Fixed("carry")).unwrap();
    append(&mut spool, &["b"]).unwrap();
    disk.fail_at(disk.operations(), Fault::Torn(10));
    assert!(append(&mut spool, &["torn"]).is_err());
    let before = disk.sites().len();
    append(&mut spool, &["c"]).unwrap();
    let after: Vec<_> = disk.sites()[before..].iter().map(|site| site.doing).collect();
    assert!(after.contains(&"cut") && !after.contains(&"give room back of"), "{after:?}");
    assert_eq!(values(&log(&mut spool)), [&large, "b", "c"]);
}

#[test]
fn a_sealed_segment_that_ends_in_zeros_is_told_as_torn() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    spool.seal(&Fixed("carry")).unwrap();
    append(&mut spool, &["b"]).unwrap();
    drop(spool);
    // The last one's room is not asked for here.
    let (last, written) = last_segment(&disk);
    disk.put(&last, &written);
    let name = format!("{:020}.seg", 0);
    let bytes = disk.bytes(&name).unwrap();
    let closing = 17 + "closing".len();
    let last = Reader::new(&bytes).unwrap().map(Result::unwrap).last().unwrap();
    assert_eq!((last.kind, last.bytes), (FrameKind::Checkpoint, &b"closing"[..]));
    let told = |bytes: Vec<u8>| {
        let disk = disk.copy();
        disk.put(&name, &bytes);
        let report = open(&disk).unwrap().report;
        assert!(!report.tail_kept && report.damaged.is_empty());
        (report.torn_bytes, report.room_bytes)
    };
    // A part of its closing checkpoint, or all of it: no event is missing, and it is told all the same.
    for zeros in 1..=closing {
        let kept = &bytes[..bytes.len() - zeros];
        assert_eq!(told([kept, &vec![0; zeros]].concat()), (closing as u64, 0), "{zeros} zeros");
    }
    assert_eq!(told([&bytes[..], &[0; 300]].concat()), (300, 0));
    // With an event's bytes it is damaged.
    let zeroed = disk.copy();
    zeroed.put(&name, &[&bytes[..bytes.len() - closing - 1], &vec![0; closing + 1]].concat());
    assert_eq!(open(&zeroed).unwrap().report.damaged.len(), 1);
}

#[test]
fn zeros_that_no_weir_made_as_room_are_told_as_torn() {
    let disk = Faulty::new();
    append(&mut start(&disk), &["a"]).unwrap();
    let (name, bytes) = last_segment(&disk);
    let told = |bytes: &[u8], tail: &[u8], zeros: usize| {
        let disk = disk.copy();
        disk.put(&name, &[bytes, tail, &vec![0; zeros]].concat());
        let report = open(&disk).unwrap().report;
        assert!(!report.tail_kept && report.damaged.is_empty());
        (report.torn_bytes, report.room_bytes)
    };
    let room = MAX_ROOM as u64;
    assert_eq!(told(&bytes, &[], MAX_ROOM), (0, room));
    assert_eq!(told(&bytes, &[], MAX_ROOM + 1), (room + 1, 0));
    assert_eq!(told(&bytes, &[9; 30], 300), (30, 300));
    // Version 1 had no room, and no trees.
    let mut old = header(0).to_vec();
    push_frame(&mut old, FrameKind::Carry, 0, b"[]");
    push_frame(&mut old, FrameKind::Event, 0, b"a");
    old[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let crc = crc32c::crc32c(&old[..20]);
    old[20..24].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(told(&old, &[], 300), (300, 0));
    assert_eq!(told(&old, &[9; 30], 300), (330, 0));
}
