//! The wall clock set by an hour and by a year, back and forth, while calls are recorded: the log stays dense and in order, and
//! says each time by how much. The ledger's own clocks are set, not the machine's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weir::ledger::{Ledger, LedgerConfig};
use weir::spool::faulty::Faulty;
use weir_core::record::CallResult;
use weir_tests::soak::{Draw, Soak};

use crate::scene::{agent_events, begin, config, log, message, outcome};

const HOUR_US: i64 = 3_600_000_000;
const YEAR_US: i64 = 365 * 24 * HOUR_US;
/// 22 November 2026.
const BEGAN_US: u64 = 1_795_300_000_000_000;
/// What happens to one log.
const ACTIONS: u64 = 60;

/// A wall clock that is set, and one that only goes on.
#[derive(Clone)]
struct Clocks {
    wall_us: Arc<AtomicU64>,
    since_boot: Arc<Mutex<Duration>>,
}

impl Clocks {
    fn new() -> Self {
        Self { wall_us: Arc::new(AtomicU64::new(BEGAN_US)), since_boot: Arc::default() }
    }

    fn open(&self, disk: &Faulty) -> Ledger {
        let (wall, since_boot) = (self.wall_us.clone(), self.since_boot.clone());
        let config = LedgerConfig {
            clock: Arc::new(move || wall.load(Ordering::SeqCst)),
            monotonic: Arc::new(move || *since_boot.lock().unwrap()),
            ..config(disk.clone())
        };
        Ledger::open(config).unwrap().0
    }

    fn now_us(&self) -> u64 {
        self.wall_us.load(Ordering::SeqCst)
    }

    fn pass(&self, time: Duration) {
        *self.since_boot.lock().unwrap() += time;
        self.wall_us.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::SeqCst);
    }

    fn set(&self, by_us: i64) {
        self.wall_us.store(self.now_us().saturating_add_signed(by_us), Ordering::SeqCst);
    }
}

/// Calls, and steps between them; what the log says of each.
async fn life(seed: u64, steps: &[i64]) {
    let (clocks, disk, mut draw) = (Clocks::new(), Faulty::new(), Draw(seed));
    let mut ledger = clocks.open(&disk);
    let (mut set, mut written) = (Vec::new(), Vec::new());
    for n in 0..ACTIONS {
        match draw.below(8) {
            0..=1 => {
                let by_us = draw.one_of(steps).unwrap();
                clocks.set(by_us);
                set.push((by_us, clocks.now_us()));
                // Two steps without an event between them are one.
                written.push((ledger.write(message("behind the step")).await.unwrap(), clocks.now_us()));
            }
            2..=5 => {
                let (record, proof) = begin(&ledger, n).await.unwrap();
                written.push((proof.seq(), clocks.now_us()));
                clocks.pass(Duration::from_millis(draw.below(3000)));
                written.push((record.close(outcome(n, CallResult::Ok)).await.unwrap(), clocks.now_us()));
            }
            6 => clocks.pass(Duration::from_secs(draw.below(50))),
            _ => {
                ledger.shutdown().await.unwrap();
                drop(ledger);
                ledger = clocks.open(&disk);
            }
        }
    }
    ledger.shutdown().await.unwrap();
    drop(ledger);
    // Dense from 0; read in order.
    let log = log(disk);
    for (seq, wall_us) in written {
        let event = log.iter().find(|event| event.seq == seq).unwrap();
        assert_eq!(event.time_us, wall_us, "seed {seed}: {seq}");
    }
    let told: Vec<(i64, u64)> = agent_events(&log, "clock.step")
        .iter()
        .map(|detail| (detail["step_us"].parse().unwrap(), detail["wall_us"].parse().unwrap()))
        .collect();
    assert_eq!(told, set, "seed {seed}");
}

#[tokio::test]
async fn a_clock_set_by_an_hour_or_a_year_is_told_of_and_the_log_stays_dense() {
    let mut soak = Soak::of("clock", 60, 1).unwrap();
    while let Some(seed) = soak.next_seed() {
        life(seed, &[HOUR_US, -HOUR_US, YEAR_US, -YEAR_US]).await;
        soak.held(1);
    }
}
