//! The log from one writer to the next: at any time one of them holds the folder's lock, no call notices, and whichever
//! of the two dies at whichever step, each intent has exactly one outcome and no sequence number is missing.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use tokio::task::JoinHandle;
use weir::ledger::{Guest, Handed, Released, TakenOver};
use weir::spool::faulty::Fault;
use weir::spool::{Limits, Storage};
use weir_core::ids::Boot;

use super::scene::*;
use super::*;

const OLD: u8 = 9;

fn boot(n: u8) -> Boot {
    Boot::from_random([n; 16])
}

fn config_of(disk: &Faulty, n: u8) -> LedgerConfig {
    LedgerConfig { boot: boot(n), ..config(disk.clone()) }
}

/// The side of a new process, up to its opening the log that process `old` released.
fn take(
    config: LedgerConfig,
    old: u8,
    released: &mut Released,
    link: UnixStream,
) -> Result<TakenOver, LedgerError> {
    // As over a socket: each side has ends of its own.
    let told = released.guests().iter().map(|guest| Guest {
        boot: guest.boot.clone(),
        pid: guest.pid,
        open: guest.open.clone(),
        link: guest.link.try_clone().unwrap(),
    });
    let mut guests: Vec<_> = told.collect();
    guests.push(Guest { boot: boot(old), pid: u32::from(old), open: released.own().to_vec(), link });
    Ledger::take_over(config, Handed { left: released.take_left().unwrap(), guests })
}

/// A process with this configuration takes the log over from process `old`.
async fn replace(ledger: &Ledger, old: u8, config: LedgerConfig) -> Ledger {
    let (here, there) = UnixStream::pair().unwrap();
    let mut released = ledger.release().await.unwrap();
    let new = take(config, old, &mut released, there).unwrap().begin("the one before").unwrap();
    released.given_to(here);
    new
}

/// Calls by several tasks until they are told to end; each must succeed.
fn load(ledgers: &Arc<Mutex<Ledger>>, from: u64) -> (Vec<JoinHandle<u64>>, tokio::sync::watch::Sender<bool>) {
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let worker = |worker: u64| {
        let (ledgers, stopping) = (ledgers.clone(), stopping.clone());
        tokio::spawn(async move {
            let mut made = 0;
            while !*stopping.borrow() {
                let n = from + worker * 100_000 + made;
                // A connection stays with the process that accepted it, and a call with its connection.
                let ledger = ledgers.lock().unwrap().clone();
                let (record, proof) = begin(&ledger, n).await.unwrap();
                ledger.note(message(&n.to_string())).await.unwrap();
                let seq = record.close(outcome(n, CallResult::Ok)).await.unwrap();
                assert!(proof.seq() < seq);
                made += 1;
            }
            made
        })
    };
    ((0..8).map(worker).collect(), stop)
}

fn boots(log: &[weir_core::record::Stored]) -> BTreeSet<Boot> {
    log.iter().map(|event| event.boot.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_the_log_changes_hands_again_and_again_and_no_call_fails() {
    let disk = Faulty::new();
    let first = Ledger::open(wide(&disk, OLD)).unwrap().0;
    let current = Arc::new(Mutex::new(first.clone()));
    let mut ledgers = vec![first];
    let (workers, stop) = load(&current, 0);
    for n in OLD + 1..OLD + 6 {
        let new = replace(ledgers.last().unwrap(), n - 1, wide(&disk, n)).await;
        *current.lock().unwrap() = new.clone();
        ledgers.push(new);
        ledgers.last().unwrap().write(message("between")).await.unwrap();
    }
    stop.send(true).unwrap();
    let mut made = 0;
    for worker in workers {
        made += worker.await.unwrap();
    }
    // The old ones end in any order; the last is the writer.
    for old in [0, 2, 1, 4, 3, 5] {
        ledgers[old].shutdown().await.unwrap();
    }
    drop((ledgers, current));
    let log = log(disk);
    let outcomes = outcomes(&log);
    assert!(made > 0 && outcomes.len() as u64 == made, "{made} calls, {} recorded", outcomes.len());
    assert!(outcomes.values().all(|results| results == &[CallResult::Ok]));
    assert_eq!(boots(&log).len(), 6);
    assert_eq!(agent_events(&log, "agent.started").len(), 6);
    assert_eq!(agent_events(&log, "agent.stopped").len(), 6);
    assert_eq!(agent_events(&log, "agent.lost").len(), 0);
}

fn wide(disk: &Faulty, n: u8) -> LedgerConfig {
    LedgerConfig { limits: Limits::of(256 << 20), ..config_of(disk, n) }
}

#[tokio::test]
async fn a_call_that_spans_the_replacement_keeps_its_record() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (before, _) = begin(&old, 1).await.unwrap();
    let reserved = old.open_record(call(2), flow()).unwrap();
    let new = replace(&old, OLD, config_of(&disk, OLD + 1)).await;
    assert_eq!(new.health().open_calls, 1, "it is open, and not unknown");
    let (after, proof) = reserved.intent(intent(2, Action::Allow)).await.unwrap();
    // Its events go through the new writer, and are the old process's all the same.
    assert_eq!(new.write(message("the new one's own")).await.unwrap(), proof.seq() + 1);
    assert_eq!(before.close(outcome(1, CallResult::Ok)).await.unwrap(), proof.seq() + 2);
    drop(after);
    old.shutdown().await.unwrap();
    new.shutdown().await.unwrap();
    drop((old, new));
    let log = log(disk);
    let ends = outcomes(&log);
    assert_eq!(
        (&ends[&call(1)][..], &ends[&call(2)][..]),
        (&[CallResult::Ok][..], &[CallResult::Aborted][..])
    );
    let by = |seq: u64| log[usize::try_from(seq).unwrap()].boot.clone();
    assert_eq!((by(proof.seq()), by(proof.seq() + 1)), (boot(OLD), boot(OLD + 1)));
    let started = agent_events(&log, "agent.started");
    assert_eq!((started[1]["replaces"].as_str(), started[1]["open_calls"].as_str()), ("the one before", "1"));
}

#[tokio::test]
async fn there_is_one_writer_at_any_time_by_the_folders_lock() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let is_free = || disk.lock("lock").is_ok();
    assert!(!is_free());
    let mut released = old.release().await.unwrap();
    assert!(is_free());
    // What comes meanwhile waits.
    let mut waits = Box::pin(begin(&old, 1));
    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(matches!(old.read(0).await, Err(LedgerError::Spool(_))), "the folder is not the old one's");
    assert!(old.trim(0).await.is_err());
    let (here, there) = UnixStream::pair().unwrap();
    let taken = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap();
    assert!(!is_free());
    let new = taken.begin("the one before").unwrap();
    released.given_to(here);
    waits.await.unwrap().0.close(outcome(1, CallResult::Ok)).await.unwrap();
    assert!(!is_free());
    assert!(matches!(old.release().await, Err(LedgerError::GivenAway)));
    drop(old);
    drop(new);
    assert!(is_free());
    assert_eq!(outcomes(&log(disk)), BTreeMap::from([(call(1), vec![CallResult::Ok])]));
}

#[tokio::test]
async fn a_spool_that_was_released_is_not_read_again_and_one_that_looks_otherwise_is() {
    for spoilt in [false, true] {
        let disk = Faulty::new();
        let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
        for n in 0..30 {
            begin(&old, n).await.unwrap().0.close(outcome(n, CallResult::Ok)).await.unwrap();
        }
        let (record, _) = begin(&old, 100).await.unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let mut released = old.release().await.unwrap();
        let names = disk.names();
        if spoilt {
            // Somebody takes a segment away.
            disk.remove(names.iter().find(|name| name.ends_with(".seg")).unwrap()).unwrap();
        }
        let before = disk.reads();
        let taken = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap();
        let segments = names.iter().filter(|name| name.ends_with(".seg")).count() as u64;
        // The origin and the key are read in any case.
        assert_eq!(disk.reads() - before, if spoilt { segments + 1 } else { 2 });
        let new = taken.begin("the one before").unwrap();
        released.given_to(here);
        record.close(outcome(100, CallResult::Ok)).await.unwrap();
        old.shutdown().await.unwrap();
        drop((old, new));
        let log = log_with_gaps(disk);
        let ends = log.iter().filter(|event| matches!(event.body, Body::Outcome(_))).count();
        assert!(ends == 31 || spoilt, "{ends}");
        assert_eq!(log.last().unwrap().seq, 64, "the log goes on where it was");
    }
}

#[tokio::test]
async fn slots_count_the_calls_of_both_processes() {
    let disk = Faulty::new();
    let few = |n| LedgerConfig { max_open: 2, ..config_of(&disk, n) };
    let (old, _) = Ledger::open(few(OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut released = old.release().await.unwrap();
    let new = take(few(OLD + 1), OLD, &mut released, there).unwrap().begin("it").unwrap();
    released.given_to(here);
    let (two, _) = begin(&new, 2).await.unwrap();
    assert!(matches!(new.open_record(call(3), flow()), Err(LedgerError::TooManyOpen(2))));
    // The old one has a slot of its own left, and there is none for both.
    let refused = begin(&old, 4).await.err().unwrap();
    assert!(matches!(&refused, LedgerError::Peer(why) if why.contains("open already")), "{refused}");
    one.close(outcome(1, CallResult::Ok)).await.unwrap();
    let (four, _) = begin(&old, 4).await.unwrap();
    four.close(outcome(4, CallResult::Ok)).await.unwrap();
    two.close(outcome(2, CallResult::Ok)).await.unwrap();
    let three = begin(&new, 3).await.unwrap();
    drop((three, old, new));
    let log = log(disk);
    assert_eq!(outcomes(&log).len(), 4);
}

#[tokio::test]
async fn an_intent_counts_as_written_only_after_the_new_writers_sync() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let new = replace(&old, OLD, config_of(&disk, OLD + 1)).await;
    new.write(message("all is quiet")).await.unwrap();
    let held = disk.hold_syncs();
    let mut intent = Box::pin(begin(&old, 1));
    assert!(intent.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let waiting = disk.clone();
    assert!(tokio::task::spawn_blocking(move || waiting.wait_for_held_sync(DEADLINE)).await.unwrap());
    assert!(intent.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "it is not on disk");
    drop(held);
    let (record, _) = intent.await.unwrap();
    record.close(outcome(1, CallResult::Ok)).await.unwrap();
    drop(old);
    drop(new);
    log(disk);
}

#[tokio::test]
async fn what_the_new_writers_disk_refuses_is_refused_in_the_old_process() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let new = replace(&old, OLD, config_of(&disk, OLD + 1)).await;
    new.write(message("all is quiet")).await.unwrap();
    let next = disk.operations();
    for operation in next..next + 8 {
        disk.fail_at(operation, Fault::Eio);
    }
    let refused = begin(&old, 2).await.err().unwrap();
    assert!(matches!(&refused, LedgerError::Peer(why) if why.contains("cannot")), "{refused}");
    // An outcome is kept there, and written when the disk takes it.
    let _ = one.close(outcome(1, CallResult::Ok)).await;
    disk.mend();
    let (three, _) = begin(&old, 3).await.unwrap();
    three.close(outcome(3, CallResult::Ok)).await.unwrap();
    new.shutdown().await.unwrap();
    drop((old, new));
    let ends = outcomes(&log(disk));
    assert_eq!(ends, BTreeMap::from([(call(1), vec![CallResult::Ok]), (call(3), vec![CallResult::Ok])]));
}

/// The old process is killed: its end of the link closes, and nothing of it is written any more.
fn die(ledger: Ledger, link: &UnixStream) {
    link.shutdown(Shutdown::Both).unwrap();
    std::mem::forget(ledger);
}

#[tokio::test]
async fn when_the_old_process_dies_its_open_calls_are_unknown_at_once() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut released = old.release().await.unwrap();
    let new = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap().begin("it").unwrap();
    let killing = here.try_clone().unwrap();
    released.given_to(here);
    let (two, _) = begin(&old, 2).await.unwrap();
    let (three, _) = begin(&old, 3).await.unwrap();
    three.close(outcome(3, CallResult::Ok)).await.unwrap();
    assert_eq!(new.health().open_calls, 2);
    die(old, &killing);
    until(|| new.health().open_calls == 0).await;
    // Nothing that comes from it afterwards is written.
    assert!(one.close(outcome(1, CallResult::Ok)).await.is_err());
    assert!(two.close(outcome(2, CallResult::Ok)).await.is_err());
    new.shutdown().await.unwrap();
    drop(new);
    let log = log(disk);
    let ends = outcomes(&log);
    assert_eq!(ends[&call(1)], [CallResult::Unknown]);
    assert_eq!(ends[&call(2)], [CallResult::Unknown]);
    assert_eq!(ends[&call(3)], [CallResult::Ok]);
    assert_eq!(agent_events(&log, "agent.lost")[0]["unknown_calls"], "2");
}

#[tokio::test]
async fn calls_that_do_not_wait_go_on_in_the_old_process_and_wait_when_the_new_one_is_gone() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut released = old.release().await.unwrap();
    let killing = there.try_clone().unwrap();
    let new = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap().begin("it").unwrap();
    released.given_to(here);
    // Over before its intent is known to be written.
    let (one, _) = glance(&old, 1).await.unwrap();
    one.close(outcome(1, CallResult::Ok)).await.unwrap();
    let (two, _) = glance(&old, 2).await.unwrap();
    killing.shutdown(Shutdown::Both).unwrap();
    old.peer_gone().await;
    assert!(matches!(glance(&old, 3).await, Err(LedgerError::PeerGone)));
    drop((two, old));
    new.shutdown().await.unwrap();
    drop(new);
    let ends = outcomes(&log(disk));
    assert_eq!(ends[&call(1)], [CallResult::Ok]);
    assert!(!ends.contains_key(&call(3)));
    assert!(ends.values().all(|results| results.len() == 1), "{ends:?}");
}

#[tokio::test]
async fn when_the_new_process_dies_the_old_one_refuses_calls_and_its_own_become_unknown() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut released = old.release().await.unwrap();
    let killing = there.try_clone().unwrap();
    let new = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap().begin("it").unwrap();
    released.given_to(here);
    let (two, _) = begin(&old, 2).await.unwrap();
    let disk = disk.killed();
    killing.shutdown(Shutdown::Both).unwrap();
    let lost = one.close(outcome(1, CallResult::Ok)).await.unwrap_err();
    assert!(matches!(lost, LedgerError::PeerGone), "{lost}");
    assert!(matches!(begin(&old, 3).await, Err(LedgerError::PeerGone)));
    assert!(old.health().fault.is_some());
    drop((two, old));
    drop(new);
    drop(Ledger::open(config_of(&disk, OLD + 2)).unwrap());
    let ends = outcomes(&log(disk));
    assert_eq!(
        ends,
        BTreeMap::from([(call(1), vec![CallResult::Unknown]), (call(2), vec![CallResult::Unknown])])
    );
}

#[tokio::test]
async fn whatever_goes_wrong_before_the_new_one_has_begun_the_old_one_goes_on() {
    /// How far the new process comes.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Dies {
        BeforeItOpens,
        WhileItOpens(u64),
        WithTheLogOpen,
    }
    let steps = (0..6).map(Dies::WhileItOpens).chain([Dies::BeforeItOpens, Dies::WithTheLogOpen]);
    for dies in steps {
        let disk = Faulty::new();
        let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
        let middle = replace(&old, OLD, config_of(&disk, OLD + 1)).await;
        let (theirs, _) = begin(&old, 1).await.unwrap();
        let (own, _) = begin(&middle, 2).await.unwrap();
        let (_here, there) = UnixStream::pair().unwrap();
        let mut released = middle.release().await.unwrap();
        match dies {
            Dies::BeforeItOpens => {}
            Dies::WhileItOpens(operation) => {
                disk.fail_at(disk.operations() + operation, Fault::Eio);
                drop(take(config_of(&disk, OLD + 2), OLD + 1, &mut released, there));
                disk.mend();
            }
            Dies::WithTheLogOpen => {
                drop(take(config_of(&disk, OLD + 2), OLD + 1, &mut released, there).unwrap())
            }
        }
        drop(released);
        // Its own calls and those of its guest go on.
        own.close(outcome(2, CallResult::Ok)).await.unwrap();
        theirs.close(outcome(1, CallResult::Ok)).await.unwrap();
        let (more, _) = begin(&old, 3).await.unwrap();
        more.close(outcome(3, CallResult::Ok)).await.unwrap();
        // And the next replacement works.
        let last = replace(&middle, OLD + 1, config_of(&disk, OLD + 3)).await;
        for ledger in [&old, &middle, &last] {
            ledger.shutdown().await.unwrap();
        }
        drop((old, middle, last));
        let log = log(disk);
        let ends = outcomes(&log);
        assert!(ends.len() == 3 && ends.values().all(|ends| ends == &[CallResult::Ok]), "{dies:?}: {ends:?}");
        assert_eq!(agent_events(&log, "agent.started").len(), 3, "{dies:?}");
    }
}

#[tokio::test]
async fn a_log_that_somebody_else_keeps_is_taken_back_as_soon_as_it_is_free() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let (_here, there) = UnixStream::pair().unwrap();
    let mut released = old.release().await.unwrap();
    let stuck = take(config_of(&disk, OLD + 1), OLD, &mut released, there).unwrap();
    drop(released);
    let mut waits = Box::pin(one.close(outcome(1, CallResult::Ok)));
    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(stuck);
    waits.await.unwrap();
    old.shutdown().await.unwrap();
    drop(old);
    assert_eq!(outcomes(&log(disk))[&call(1)], [CallResult::Ok]);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_now_is_not_given_away() {
    let disk = Faulty::new();
    let (old, _) = Ledger::open(config_of(&disk, OLD)).unwrap();
    let (one, _) = begin(&old, 1).await.unwrap();
    let next = disk.operations();
    for operation in next..next + 6 {
        disk.fail_at(operation, Fault::Eio);
    }
    let _ = one.close(outcome(1, CallResult::Ok)).await;
    assert!(matches!(old.release().await, Err(LedgerError::Spool(_))));
    disk.mend();
    let (two, _) = begin(&old, 2).await.unwrap();
    two.close(outcome(2, CallResult::Ok)).await.unwrap();
    let new = replace(&old, OLD, config_of(&disk, OLD + 1)).await;
    old.shutdown().await.unwrap();
    new.shutdown().await.unwrap();
    drop((old, new));
    assert!(outcomes(&log(disk)).values().all(|ends| ends == &[CallResult::Ok]));
}

/// Looks until it is so.
async fn until(mut condition: impl FnMut() -> bool) {
    let looking = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.expect("it was waited for in vain");
}
