//! The last segment cut at each byte, at the end of its file and in its room, as a write may end that nobody was told had worked:
//! what was acknowledged before that byte stays, and the log goes on densely.

use weir::spool::faulty::Faulty;
use weir_core::policy::Action;
use weir_core::record::CallResult;
use weir_core::segment::HEADER_LEN;
use weir_tests::soak::{Draw, Soak};

use crate::scene::{agent_events, call, flow, intent, log, log_with_gaps, message, open, outcome, outcomes};

/// Cuts in one segment: more than it has bytes, so that over so many seeds each byte is met.
const CUTS_OF_A_SEGMENT: u64 = 8192;
/// A prime: cuts that follow one another lie far apart, and all are met in the end.
const STRIDE: u64 = 7919;
/// A segment is left when it has so many bytes, before it is sealed.
const LEFT_AT: usize = 2600;
/// Zeros that may lie behind it.
const ROOM: usize = 500;

/// A log as a killed agent left it.
struct Left {
    disk: Faulty,
    /// Its last segment.
    name: String,
    bytes: Vec<u8>,
    /// Events, and how long the segment was when they had been acknowledged.
    acknowledged: Vec<(u64, usize)>,
}

fn last(disk: &Faulty) -> (String, Vec<u8>) {
    let name = disk.names().into_iter().rfind(|name| name.ends_with(".seg")).unwrap();
    let bytes = disk.written(&name).unwrap();
    (name, bytes)
}

async fn left(seed: u64) -> Left {
    let (disk, mut draw) = (Faulty::new(), Draw(seed));
    let (ledger, _) = open(&disk);
    let (mut acknowledged, mut n) = (Vec::new(), 0);
    let first = last(&disk).0;
    loop {
        n += 1;
        let action = if draw.below(4) == 0 { Action::Deny } else { Action::Allow };
        let record = ledger.open_record(call(n), flow()).unwrap();
        let (record, proof) = record.intent(intent(n, action)).await.unwrap();
        let mut seqs = vec![proof.seq()];
        let mut ended = vec![last(&disk)];
        if draw.below(3) == 0 {
            seqs.push(ledger.write(message(&"t".repeat(draw.below(300) as usize))).await.unwrap());
            ended.push(last(&disk));
        }
        if draw.below(3) > 0 {
            seqs.push(record.close(outcome(n, CallResult::Ok)).await.unwrap());
            ended.push(last(&disk));
        } else {
            std::mem::forget(record);
        }
        for (seq, (name, bytes)) in seqs.into_iter().zip(ended) {
            acknowledged.push((seq, if name == first { bytes.len() } else { usize::MAX }));
        }
        let (name, bytes) = last(&disk);
        assert_eq!(name, first, "seed {seed}: it was sealed");
        if bytes.len() > LEFT_AT {
            return Left { disk: disk.killed().copy(), name, bytes, acknowledged };
        }
    }
}

fn cut(left: &Left, at: usize, room: usize, what: &str) {
    let disk = left.disk.copy();
    disk.put(&left.name, &[left.bytes.get(..at).unwrap(), &vec![0; room]].concat());
    drop(open(&disk));
    // Dense, and each event read as it was written.
    let log = log(disk);
    for (seq, _) in left.acknowledged.iter().filter(|(_, end)| *end <= at) {
        assert!(log.iter().any(|event| event.seq == *seq), "{what}: {seq} was acknowledged");
    }
    for (call, results) in outcomes(&log) {
        assert_eq!(results.len(), 1, "{what}: {call} has {results:?}");
    }
}

#[tokio::test]
async fn a_segment_cut_at_any_byte_keeps_all_that_was_acknowledged_before() {
    let mut soak = Soak::of("torn-tail", 500, 0).unwrap();
    let mut segment = None;
    while let Some(seed) = soak.next_seed() {
        let number = seed / CUTS_OF_A_SEGMENT;
        if segment.as_ref().is_none_or(|(known, _)| *known != number) {
            segment = Some((number, left(number).await));
        }
        let Some((_, left)) = &segment else { unreachable!("it was made") };
        let cuts = left.bytes.len() as u64 + 1;
        assert!(cuts < CUTS_OF_A_SEGMENT, "{cuts} cuts");
        let at = usize::try_from(seed.wrapping_mul(STRIDE) % cuts).unwrap();
        let what = format!("seed {seed}, cut at {at} of {}", left.bytes.len());
        cut(left, at, 0, &what);
        // A file has its header before it has its name.
        if at >= HEADER_LEN {
            cut(left, at, ROOM, &format!("{what}, zeros behind"));
        }
        soak.held(1);
    }
}

#[tokio::test]
async fn whole_frames_behind_a_torn_write_begin_another_epoch_which_does_not_say_that_events_are_lost() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.write(message("acknowledged")).await.unwrap();
    let acknowledged = last(&disk).1.len();
    for text in ["a large group", "its middle", "its end"] {
        ledger.write(message(text)).await.unwrap();
    }
    drop(ledger);
    let disk = disk.killed();
    let (name, mut bytes) = last(&disk);
    // Of a write into room these bytes never came to the disk, and those behind them did.
    bytes[acknowledged..acknowledged + 64].fill(0);
    disk.put(&name, &[&bytes[..], &[0; 500]].concat());
    let (ledger, recovered) = open(&disk);
    assert!(recovered.report.tail_kept && recovered.report.damaged.is_empty());
    assert_eq!((recovered.report.room_bytes, ledger.standing().epoch), (500, 2));
    ledger.shutdown().await.unwrap();
    drop(ledger);
    assert_eq!(disk.bytes(&format!("{name}.tail")).as_deref(), bytes.get(acknowledged..));
    let begun = agent_events(&log_with_gaps(disk), "log.epoch_begun");
    let [begun] = &begun[..] else { panic!("{begun:?}") };
    assert!(begun["reason"].contains(".tail") && begun["reason"].contains("nobody was told of"), "{begun:?}");
    assert!(!begun["reason"].contains("events of the epoch before are lost"), "{begun:?}");
}
