//! The log's proof: its tree is that of its events whatever fails, each epoch has one key, and a change of keys leaves one
//! consistent state at whatever moment it is cut off.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use weir::ledger::{CHECKPOINT_EVERY, Carry, LONGEST_ADVISED, LogKeys};
use weir::spool::faulty::Fault;
use weir::spool::{Limits, Storage};
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::rotation::Rotation;
use weir_core::segment::{FrameKind, HEADER_LEN, Reader, push_frame};

use super::scene::*;
use super::*;

/// The frames of a file.
fn frames(disk: &Faulty, name: &str) -> Vec<(FrameKind, Vec<u8>)> {
    let bytes = disk.written(name).unwrap();
    Reader::new(&bytes).unwrap().map(Result::unwrap).map(|f| (f.kind, f.bytes.to_vec())).collect()
}

fn segments(disk: &Faulty) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

/// All epochs in a folder with what signs them, by the segments' own heads.
pub fn epochs(disk: &Faulty) -> BTreeMap<u32, VerifyingKey> {
    let mut epochs = BTreeMap::new();
    for name in segments(disk) {
        for (kind, bytes) in frames(disk, &name) {
            if kind == FrameKind::Carry
                && let Some(key) = Carry::read(&bytes).unwrap().key
            {
                let epoch = key.name().rsplit('/').next().unwrap().parse().unwrap();
                let before = epochs.insert(epoch, key.clone());
                assert!(before.is_none_or(|before| before == key), "two keys of epoch {epoch}");
            }
        }
    }
    epochs
}

fn checkpoints(disk: &Faulty, name: &str) -> Vec<Checkpoint> {
    let notes = frames(disk, name).into_iter().filter(|(kind, _)| *kind == FrameKind::Checkpoint);
    let read = |(_, bytes): (_, Vec<u8>)| {
        let note: SignedNote = String::from_utf8(bytes).unwrap().parse().unwrap();
        Checkpoint::read(&note).unwrap()
    };
    notes.map(read).collect()
}

#[tokio::test]
async fn a_torn_tail_at_every_byte_of_the_last_segment_leaves_a_log_that_is_proven() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.seal_if_older(Duration::ZERO).await.unwrap();
    begin(&ledger, 1).await.unwrap().0.close(outcome(1, CallResult::Ok)).await.unwrap();
    ledger.seal_if_older(Duration::ZERO).await.unwrap();
    drop(ledger);
    let disk = disk.killed();
    // The one behind it is empty: without it, what was sealed is what was being written.
    let names = segments(&disk);
    disk.remove(&names[2]).unwrap();
    let bytes = disk.written(&names[1]).unwrap();
    // At the end of the file; or in its room, which it has only behind a header.
    let in_room = (HEADER_LEN..=bytes.len()).map(|cut| (cut, 500));
    for (cut, room) in (0..=bytes.len()).map(|cut| (cut, 0)).chain(in_room) {
        let disk = disk.copy();
        disk.put(&names[1], &[&bytes[..cut], &vec![0; room]].concat());
        let (ledger, recovered) = open(&disk);
        assert_eq!((ledger.standing().epoch, recovered.report.damaged.len()), (1, 0), "cut at {cut}");
        assert_eq!(ledger.standing().size, ledger.usage().events, "cut at {cut}");
        ledger.shutdown().await.unwrap();
        drop(ledger);
        // Computes each tree anew.
        assert_eq!(agent_events(&log(disk), "log.epoch_begun").len(), 0, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_group_that_failed_leaves_the_tree_as_it_was() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.write(message("before")).await.unwrap();
    for fault in [Fault::Eio, Fault::Enospc, Fault::Torn(40)] {
        for site in 0..6 {
            let before = ledger.standing();
            disk.fail_at(disk.operations() + site, fault);
            let written = ledger.write(message("tried")).await.is_ok();
            disk.mend();
            assert_eq!(ledger.standing().size, before.size + u64::from(written), "{fault:?} at {site}");
            ledger.write(message("after")).await.unwrap();
        }
    }
    let standing = ledger.standing();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    assert_eq!(log(disk).len() as u64, standing.size + 1);
}

#[tokio::test]
async fn a_checkpoint_is_written_on_a_full_disk_from_the_reserve() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.write(message("the last")).await.unwrap();
    disk.set_capacity(Some(disk.used()));
    assert!(ledger.write(message("no room")).await.is_err());
    assert!(ledger.seal_if_older(Duration::ZERO).await.unwrap(), "it can be shipped, and so make room");
    assert!(!disk.names().contains(&"reserve".to_owned()));
    let first = &segments(&disk)[0];
    assert_eq!(checkpoints(&disk, first).last().unwrap().size, 2);
    disk.set_capacity(None);
    ledger.write(message("room")).await.unwrap();
    drop(ledger);
    log(disk);
}

#[tokio::test]
async fn a_folder_at_its_limit_has_room_for_the_last_checkpoint() {
    let disk = Faulty::new();
    let limits =
        Limits { max_bytes: 12_000, reserve_bytes: 2000, seal_bytes: 4000, seal_events: 40, room_from: 500 };
    let (ledger, _) = Ledger::open(LedgerConfig { limits, ..config(disk.clone()) }).unwrap();
    while ledger.write(message(&"m".repeat(300))).await.is_ok() {}
    ledger.seal_if_older(Duration::ZERO).await.unwrap();
    assert!(ledger.usage().bytes + limits.reserve_bytes <= limits.max_bytes, "{:?}", ledger.usage());
    for file in ledger.sealed() {
        assert!(checkpoints(&disk, &format!("{:020}.seg", file.first_seq)).len() == 1);
    }
}

/// Clocks that a test sets.
#[derive(Clone, Default)]
struct Clocks {
    wall_us: Arc<AtomicU64>,
    monotonic_us: Arc<AtomicU64>,
}

impl Clocks {
    fn config(&self, disk: &Faulty) -> LedgerConfig {
        let (wall, monotonic) = (self.wall_us.clone(), self.monotonic_us.clone());
        wall.store(1_790_000_000_000_000, Relaxed);
        LedgerConfig {
            clock: Arc::new(move || wall.load(Relaxed)),
            monotonic: Arc::new(move || Duration::from_micros(monotonic.load(Relaxed))),
            limits: Limits { seal_bytes: 1 << 16, ..config(disk.clone()).limits },
            ..config(disk.clone())
        }
    }

    /// Time passes, and the writer looks at the clocks.
    async fn pass(&self, ledger: &Ledger, time: Duration) {
        let us = time.as_micros() as u64;
        self.wall_us.fetch_add(us, Relaxed);
        self.monotonic_us.fetch_add(us, Relaxed);
        self.look(ledger).await;
    }

    async fn look(&self, ledger: &Ledger) {
        // Two: what the first one finds due is done before the second.
        for _ in 0..2 {
            ledger.seal_if_older(FOREVER).await.unwrap();
        }
    }
}

#[tokio::test]
async fn while_events_come_there_is_a_checkpoint_every_ten_seconds_and_it_goes_with_them() {
    let (disk, clocks) = (Faulty::new(), Clocks::default());
    let (ledger, _) = Ledger::open(clocks.config(&disk)).unwrap();
    let active = segments(&disk)[0].clone();
    assert_eq!(checkpoints(&disk, &active).len(), 0);
    let syncs = disk.data_syncs();
    for _ in 0..5 {
        clocks.pass(&ledger, CHECKPOINT_EVERY / 2).await;
        ledger.write(message("event")).await.unwrap();
    }
    assert_eq!(disk.data_syncs() - syncs, 5, "none for a checkpoint alone");
    let sizes: Vec<_> = checkpoints(&disk, &active).iter().map(|checkpoint| checkpoint.size).collect();
    assert_eq!(sizes, [2, 3, 4, 5, 6]);
    // And alone, when no more events come.
    ledger.write(message("the last")).await.unwrap();
    clocks.pass(&ledger, CHECKPOINT_EVERY / 2).await;
    assert_eq!(checkpoints(&disk, &active).len(), 5);
    clocks.pass(&ledger, CHECKPOINT_EVERY / 2).await;
    assert_eq!(checkpoints(&disk, &active).last().unwrap().size, 7);
    clocks.pass(&ledger, CHECKPOINT_EVERY).await;
    assert_eq!(checkpoints(&disk, &active).len(), 6, "nothing new, no new one");
}

#[tokio::test]
async fn silence_is_said_each_minute_and_a_clock_that_was_set_before_anything_has_its_time() {
    let (disk, clocks) = (Faulty::new(), Clocks::default());
    let (ledger, _) = Ledger::open(clocks.config(&disk)).unwrap();
    let minute = Duration::from_secs(60);
    clocks.pass(&ledger, minute - Duration::from_secs(1)).await;
    ledger.write(message("not silent")).await.unwrap();
    clocks.pass(&ledger, minute - Duration::from_secs(1)).await;
    assert_eq!(ledger.standing().size, 2);
    for beats in 1..4 {
        clocks.pass(&ledger, minute).await;
        assert_eq!(ledger.standing().size, 2 + beats);
    }
    let hour = 3600 * 1_000_000;
    clocks.wall_us.fetch_sub(hour, Relaxed);
    ledger.write(message("after the step")).await.unwrap();
    clocks.wall_us.fetch_add(365 * 24 * hour, Relaxed);
    clocks.look(&ledger).await;
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let log = log(disk);
    let names = |event: &weir_core::record::Stored| match &event.body {
        Body::Agent(event) => event.name.clone(),
        other => other.kind().to_owned(),
    };
    let names: Vec<_> = log.iter().map(names).collect();
    assert_eq!(
        names[2..],
        ["heartbeat", "heartbeat", "heartbeat", "clock.step", "message", "clock.step", "agent.stopped"]
    );
    let steps: Vec<i64> =
        agent_events(&log, "clock.step").iter().map(|detail| detail["step_us"].parse().unwrap()).collect();
    assert_eq!(steps, [-(hour as i64), 365 * 24 * hour as i64]);
    assert_eq!(agent_events(&log, "clock.step")[0]["wall_us"], log[5].time_us.to_string());
}

#[tokio::test]
async fn an_idle_log_is_sealed_seldom_and_the_collectors_advice_is_followed_within_bounds() {
    let disk = Faulty::new();
    let short = Duration::from_millis(5);
    let limits = Limits::of(64 << 20);
    let idle = LedgerConfig { heartbeat: short, monotonic: real(), limits, ..config(disk.clone()) };
    let (ledger, _) = Ledger::open(LedgerConfig { seal_after: short, ..idle }).unwrap();
    let mut sealed = ledger.sealed_below();
    // `agent.started` is no heartbeat.
    tokio::time::timeout(DEADLINE, sealed.wait_for(|below| *below >= 1)).await.unwrap().unwrap();
    until(|| ledger.standing().size > 20).await;
    assert_eq!(ledger.sealed().len(), 1, "heartbeats alone");
    ledger.write(message("something")).await.unwrap();
    tokio::time::timeout(DEADLINE, sealed.wait_for(|below| *below > 20)).await.unwrap().unwrap();
    ledger.advise(10 * LONGEST_ADVISED).unwrap();
    let before = *sealed.borrow();
    ledger.write(message("more")).await.unwrap();
    until(|| ledger.standing().size > before + 20).await;
    assert_eq!(*sealed.borrow(), before, "it may take longer now");
    ledger.advise(Duration::ZERO).unwrap();
    assert!(ledger.seal_if_older(Duration::ZERO).await.unwrap());
    ledger.write(message("and again")).await.unwrap();
    let before = *sealed.borrow();
    tokio::time::timeout(DEADLINE, sealed.wait_for(|below| *below > before)).await.unwrap().unwrap();
}

fn real() -> weir::ledger::Monotonic {
    Arc::new(weir::clock::since_boot)
}

async fn until(mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not in time");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_change_of_keys_is_the_last_event_of_its_epoch_and_whoever_has_the_first_key_can_follow() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    let first = ledger.rotate_key().await.unwrap();
    let second = ledger.rotate_key().await.unwrap();
    assert_eq!((first.epoch, first.first_seq, second.epoch, second.first_seq), (2, 3, 3, 4));
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let found = epochs(&disk);
    assert_eq!((&found[&2], &found[&3]), (&first.key, &second.key));
    let (ledger, recovered) = open(&disk);
    assert_eq!((ledger.standing().epoch, recovered.unknown.len()), (3, 0), "the same key, the same epoch");
    drop(ledger);
    let log = log(disk);
    let mut key = found[&1].clone();
    for statement in agent_events(&log, "key.rotated") {
        key = Rotation::open(&statement["statement"].parse().unwrap(), &key).unwrap().key;
    }
    assert_eq!(key, second.key);
}

#[tokio::test]
async fn a_change_of_keys_cut_off_at_any_moment_leaves_one_key_that_the_log_names() {
    let operations = {
        let disk = Faulty::new();
        let (ledger, _) = open(&disk);
        let before = disk.operations();
        ledger.rotate_key().await.unwrap();
        before..disk.operations() + 1
    };
    assert!(operations.clone().count() > 12, "{operations:?}");
    let mut ends = BTreeSet::new();
    for operation in operations {
        for fault in [Fault::Off, Fault::Eio, Fault::Enospc, Fault::Torn(30)] {
            for seed in [None, Some(operation), Some(operation + 100)] {
                let what = format!("{fault:?} at {operation}, {seed:?}");
                let disk = Faulty::new();
                let (ledger, _) = open(&disk);
                ledger.write(message("before")).await.unwrap();
                disk.fail_at(operation + 1, fault);
                let told = ledger.rotate_key().await;
                if fault != Fault::Off {
                    let written = ledger.write(message("after")).await;
                    let again = ledger.write(message("again")).await;
                    assert!(written.is_ok() || again.is_ok(), "{what}: it goes on");
                }
                let standing = ledger.standing();
                let disk = seed.map_or_else(|| disk.killed(), |seed| disk.power_cut(seed));
                drop(ledger);
                let (ledger, _) = open(&disk);
                let epoch = ledger.standing().epoch;
                if told.is_ok() {
                    assert_eq!(epoch, 2, "{what}: the new key was acknowledged");
                }
                if fault != Fault::Off {
                    assert_eq!(epoch, standing.epoch, "{what}");
                }
                ledger.shutdown().await.unwrap();
                drop(ledger);
                let keys = LogKeys::new(Arc::new(disk.clone()));
                let current = keys.current().unwrap().unwrap();
                let named = epochs(&disk)[&epoch].clone();
                assert_eq!(current.verifying(named.name()).unwrap(), named, "{what}");
                let log = log(disk);
                assert_eq!(agent_events(&log, "log.epoch_begun").len(), 0, "{what}");
                assert_eq!(agent_events(&log, "key.rotated").len() as u32, epoch - 1, "{what}");
                ends.insert(epoch);
            }
        }
    }
    assert_eq!(ends, [1, 2].into());
}

#[tokio::test]
async fn lost_leaves_begin_another_epoch_and_the_log_says_why() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    for _ in 0..3 {
        ledger.write(message("event")).await.unwrap();
        ledger.seal_if_older(Duration::ZERO).await.unwrap();
    }
    drop(ledger);
    let name = format!("{:020}.seg", 2);
    let bytes = disk.bytes(&name).unwrap();
    // At the checkpoint nothing is lost: it is signed anew.
    for (at, epoch) in [(bytes.len() - 400, 2), (bytes.len() - 10, 1)] {
        let disk = disk.killed().copy();
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        disk.put(&name, &bad);
        let (ledger, _) = open(&disk);
        assert_eq!(ledger.standing().epoch, epoch, "damaged at {at} of {}", bytes.len());
        ledger.shutdown().await.unwrap();
        drop(ledger);
        let keys: BTreeSet<_> = epochs(&disk).values().map(|key| *key.bytes()).collect();
        assert_eq!(keys.len(), 1, "the key is the same");
        let begun = agent_events(&log_with_gaps(disk), "log.epoch_begun");
        assert_eq!(begun.len() as u32, epoch - 1);
        assert!(begun.iter().all(|detail| detail["reason"].contains("lost") && detail["first_seq"] == "4"));
    }
}

/// What an agent leaves behind that wrote one event and was killed.
async fn killed_with_an_event() -> Faulty {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.write(message("event")).await.unwrap();
    drop(ledger);
    disk.killed()
}

/// A host of another name tries to go on with the log, and is refused by the name that the log has.
fn open_as_another(disk: &Faulty) {
    let own = config(disk.clone());
    let was = own.host.clone();
    let error = Ledger::open(LedgerConfig { host: "another".into(), ..own }).map(drop).unwrap_err();
    assert!(matches!(&error, LedgerError::Renamed(log) if log.host == was), "{error}");
}

#[tokio::test]
async fn a_key_that_is_gone_begins_another_epoch_and_nothing_is_left_unsigned() {
    let disk = killed_with_an_event().await;
    disk.remove("log.key").unwrap();
    let (ledger, _) = open(&disk);
    assert!(ledger.standing().epoch > 1);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let reason = agent_events(&log(disk), "log.epoch_begun")[0]["reason"].clone();
    assert!(reason.contains("missing"), "{reason}");
}

#[tokio::test]
async fn a_host_of_another_name_does_not_go_on_with_the_log_and_leaves_it_signed_under_the_old_one() {
    let disk = killed_with_an_event().await;
    let epochs_before = epochs(&disk);
    open_as_another(&disk);
    // Under its old name it goes on as if nothing had been.
    let (ledger, _) = open(&disk);
    assert_eq!(ledger.standing().epoch, 1);
    ledger.shutdown().await.unwrap();
    drop(ledger);
    assert_eq!(epochs(&disk), epochs_before);
}

#[tokio::test]
async fn nothing_of_the_log_of_a_host_that_was_renamed_is_written_anew_though_its_key_is_lost() {
    let disk = killed_with_an_event().await;
    disk.remove("log.key").unwrap();
    let all = |disk: &Faulty| -> Vec<_> {
        segments(disk).into_iter().map(|name| (disk.written(&name), name)).collect()
    };
    let before = all(&disk);
    assert!(!before.is_empty());
    open_as_another(&disk);
    assert!(all(&disk) == before);
}

/// A segment as the version before wrote it.
fn of_version_1(first_seq: u64, events: &[Vec<u8>], open: &str) -> Vec<u8> {
    let mut bytes = b"WEIRSEG1\x01\0\0\0".to_vec();
    bytes.extend_from_slice(&first_seq.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    assert_eq!(bytes.len(), HEADER_LEN);
    push_frame(&mut bytes, FrameKind::Carry, first_seq, open.as_bytes());
    for (event, seq) in events.iter().zip(first_seq..) {
        push_frame(&mut bytes, FrameKind::Event, seq, event);
    }
    bytes
}

#[tokio::test]
async fn a_spool_of_version_1_is_read_and_goes_on_as_epoch_1() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    let (record, _) = begin(&ledger, 1).await.unwrap();
    std::mem::forget(record);
    ledger.write(message("more")).await.unwrap();
    drop(ledger);
    let disk = disk.killed();
    let name = segments(&disk)[0].clone();
    let events = frames(&disk, &name).into_iter().filter(|(kind, _)| *kind == FrameKind::Event);
    let events: Vec<_> = events.map(|(_, bytes)| bytes).collect();
    let old = Faulty::new();
    old.put("origin", &disk.bytes("origin").unwrap());
    old.put(&name, &of_version_1(0, &events[..2], "[]"));
    old.put(&format!("{:020}.seg", 2), &of_version_1(2, &events[2..], &format!("[\"{}\"]", call(1))));
    let (ledger, recovered) = open(&old);
    assert_eq!(recovered.unknown, [call(1)]);
    let standing = ledger.standing();
    assert_eq!((standing.epoch, standing.first_seq), (1, 3));
    ledger.shutdown().await.unwrap();
    drop(ledger);
    let names = segments(&old);
    assert_eq!(frames(&old, &names[1]).len(), 2, "what is there stays as it is");
    let log = log(old);
    assert_eq!(outcomes(&log), BTreeMap::from([(call(1), vec![CallResult::Unknown])]));
    assert!(agent_events(&log, "log.epoch_begun")[0]["reason"].contains("no trees"));
}

#[tokio::test]
async fn the_carry_says_the_key_and_not_the_private_half() {
    let disk = Faulty::new();
    let (ledger, _) = open(&disk);
    ledger.rotate_key().await.unwrap();
    drop(ledger);
    let seed = disk.bytes("log.key").unwrap();
    for name in segments(&disk) {
        let bytes = disk.bytes(&name).unwrap();
        assert!(!bytes.windows(8).any(|part| seed.windows(8).any(|secret| secret == part)), "{name}");
    }
}
