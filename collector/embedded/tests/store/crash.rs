//! kill -9 in the middle of inserts: what was acknowledged is there, once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Store, encoded, request, store};

const ROUNDS: usize = 6;
const WRITERS: usize = 4;
const ROWS: usize = 50;

/// The rows of one batch, as a segment's would be: the same token gives the same rows.
fn batch(writer: usize, number: usize) -> (String, String) {
    let rows = (0..ROWS).map(|row| format!("{writer}\t{number}\t{row}\n")).collect();
    let target = format!(
        "/?async_insert=0&insert_deduplicate=1&insert_deduplication_token={writer}-{number}&query={}",
        encoded("INSERT INTO log FORMAT TSV")
    );
    (target, rows)
}

fn send(store: &Store, writer: usize, number: usize) -> bool {
    let (target, rows) = batch(writer, number);
    let headers = [("X-ClickHouse-Key", store.secret.as_str())];
    request(store.address, "POST", &target, &headers, rows.as_bytes()).is_ok_and(|reply| {
        assert_eq!(reply.status, 200, "{}", reply.text());
        true
    })
}

/// A small generator with a seed: the moments of the kills are the same in each run.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn every_acknowledged_row_survives_a_kill_and_none_is_there_twice() {
    let (folder, mut running) = store();
    running.ask(
        "CREATE TABLE log (writer UInt8, number UInt32, row UInt32) ENGINE = MergeTree ORDER BY (writer, number, row) \
         SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1",
    );
    let mut seed = 0x5eed_u64;
    let mut next_of_writer = [0_usize; WRITERS];
    for round in 0..ROUNDS {
        let kill_after = 5 + (next(&mut seed) % 60) as usize;
        let acknowledged = AtomicUsize::new(0);
        let reached = Mutex::new(BTreeMap::new());
        let pid = Pid::from_raw(i32::try_from(running.pid()).expect("a pid"));
        std::thread::scope(|scope| {
            for (writer, start) in next_of_writer.into_iter().enumerate() {
                let (running, acknowledged, reached) = (&running, &acknowledged, &reached);
                scope.spawn(move || {
                    let mut number = start;
                    while send(running, writer, number) {
                        number += 1;
                        if acknowledged.fetch_add(1, Ordering::SeqCst) + 1 == kill_after {
                            // The other writers are in the middle of theirs.
                            kill(pid, Signal::SIGKILL).expect("a kill");
                        }
                    }
                    reached.lock().expect("the map").insert(writer, number);
                });
            }
        });
        drop(running);
        running = Store::on(&folder.path().join("data"));
        let reached = reached.into_inner().expect("the map");
        for (writer, number) in &reached {
            // Acknowledged batches are whole, before anything is sent again.
            let found = running.ask(&format!(
                "SELECT uniqExact(number, row) FROM log WHERE writer = {writer} AND number < {number}"
            ));
            assert_eq!(found, (number * ROWS).to_string(), "round {round}, writer {writer}");
            // The one that was under way may or may not be there; sent again, it is there.
            assert!(send(&running, *writer, *number));
            next_of_writer[*writer] = number + 1;
        }
        let expected: usize = next_of_writer.iter().sum::<usize>() * ROWS;
        assert_eq!(
            running.ask("SELECT count(), uniqExact(writer, number, row) FROM log"),
            format!("{expected}\t{expected}"),
            "round {round}"
        );
    }
    assert!(next_of_writer.iter().sum::<usize>() > ROUNDS * WRITERS);
}

/// The state that a kill leaves between ClickHouse's two steps of a commit: the token is in the log, the part is not there.
#[test]
fn a_token_that_a_kill_has_burnt_serves_again() {
    let (folder, store) = store();
    store.ask(
        "CREATE TABLE log (writer UInt8, number UInt32, row UInt32) ENGINE = MergeTree ORDER BY (writer, number, row) \
         SETTINGS non_replicated_deduplication_window = 1000",
    );
    assert!(send(&store, 1, 0) && send(&store, 1, 1));
    let paths = "SELECT path FROM system.parts WHERE table = 'log' AND active ORDER BY name";
    let paths = store.ask(paths);
    let committed: Vec<&str> = paths.lines().collect();
    assert_eq!(committed.len(), 2);
    store.end_by(Signal::SIGKILL);
    std::fs::remove_dir_all(committed[1]).expect("the part is taken away");

    let store = Store::on(&folder.path().join("data"));
    assert_eq!(store.ask("SELECT count() FROM log"), ROWS.to_string());
    for number in [0, 1, 1] {
        assert!(send(&store, 1, number));
    }
    assert_eq!(store.ask("SELECT count(), uniqExact(number, row) FROM log"), format!("{0}\t{0}", 2 * ROWS));
}
