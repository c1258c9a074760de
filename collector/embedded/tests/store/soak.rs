//! Thousands of requests leave no memory behind, and take the time that the documentation says.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::{Store, encoded, store};

/// The engine's caches fill within the first requests; after that a leak of 10 KiB a request would show.
const MAX_GROWTH_KIB: u64 = 48 * 1024;

fn resident_kib(store: &Store) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", store.pid())).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its resident size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(count: usize, mut one: impl FnMut(usize)) -> Duration {
    let times = (0..count).map(|at| {
        let start = Instant::now();
        one(at);
        start.elapsed()
    });
    median(times.collect())
}

#[test]
fn thousands_of_requests_leave_no_memory_behind() {
    let (_folder, store) = store();
    store.ask(
        "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a \
         SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1",
    );
    let query = encoded("INSERT INTO t FORMAT TSV");
    let rows: String = (0..100).map(|row| format!("{row}\tsome text of a call\n")).collect();
    let insert = |token: usize| {
        let reply = store.http(
            "POST",
            &format!("/?insert_deduplication_token={token}&query={query}"),
            rows.as_bytes(),
        );
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    let select = |_: usize| {
        assert_eq!(store.ask("SELECT 1"), "1");
    };
    timed(200, insert);
    timed(200, select);
    let before = resident_kib(&store);
    let select_time = timed(2000, select);
    let after_selects = resident_kib(&store);
    let insert_time = timed(400, |at| insert(1000 + at));
    let after = resident_kib(&store);
    eprintln!(
        "select p50 {select_time:?}, insert of 100 rows p50 {insert_time:?}; resident {before} KiB, {after_selects} KiB after 2000 \
         selects, {after} KiB after 400 inserts"
    );
    assert!(after_selects.saturating_sub(before) < MAX_GROWTH_KIB / 4, "{before} -> {after_selects} KiB");
    assert!(after.saturating_sub(before) < MAX_GROWTH_KIB, "{before} -> {after} KiB");
}
