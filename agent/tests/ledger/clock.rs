//! The wall clock set by an hour and by a year, back and forth, while calls are open: the log stays dense and in order, and
//! says each time by how much. The ledger's own clocks are set, not the machine's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weir::ledger::{Intended, Ledger, LedgerConfig, OpenRecord};
use weir::spool::faulty::Faulty;
use weir_core::record::{Body, CallResult, Outcome, Stored};
use weir_tests::soak::{Draw, Soak};

use crate::scene::{agent_events, begin, config, log, message, outcome, outcomes};

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

    fn since_boot(&self) -> Duration {
        *self.since_boot.lock().unwrap()
    }

    fn pass(&self, time: Duration) {
        *self.since_boot.lock().unwrap() += time;
        self.wall_us.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::SeqCst);
    }

    fn set(&self, by_us: i64) {
        self.wall_us.store(self.now_us().saturating_add_signed(by_us), Ordering::SeqCst);
    }
}

/// A call that nobody has ended yet.
struct Begun {
    n: u64,
    record: OpenRecord<Intended>,
    seq: u64,
    /// By the clock that only goes on.
    at: Duration,
}

/// Calls, and steps between them and within them; what the log says of each. Gives how many calls were open at a step.
async fn life(seed: u64, steps: &[i64]) -> usize {
    let (clocks, disk, mut draw) = (Clocks::new(), Faulty::new(), Draw(seed));
    let mut ledger = clocks.open(&disk);
    let (mut set, mut written) = (Vec::new(), Vec::new());
    let (mut begun, mut ended, mut within) = (Vec::<Begun>::new(), Vec::new(), 0);
    for n in 0..ACTIONS {
        match draw.below(9) {
            0..=1 => {
                let by_us = draw.one_of(steps).unwrap();
                clocks.set(by_us);
                set.push((by_us, clocks.now_us()));
                within += begun.len();
                // Two steps without an event between them are one.
                written.push((ledger.write(message("behind the step")).await.unwrap(), clocks.now_us()));
            }
            2..=4 => {
                let (record, proof) = begin(&ledger, n).await.unwrap();
                written.push((proof.seq(), clocks.now_us()));
                begun.push(Begun { n, record, seq: proof.seq(), at: clocks.since_boot() });
                clocks.pass(Duration::from_millis(draw.below(3000)));
            }
            5..=6 if !begun.is_empty() => {
                clocks.pass(Duration::from_millis(draw.below(3000)));
                let Begun { n, record, seq, at } =
                    begun.swap_remove(usize::try_from(draw.below(begun.len() as u64)).unwrap());
                let took = clocks.since_boot() - at;
                let duration_us = u64::try_from(took.as_micros()).ok();
                let outcome = Outcome { duration_us, ..outcome(n, CallResult::Ok) };
                let end = record.close(outcome).await.unwrap();
                written.push((end, clocks.now_us()));
                ended.push((seq, end, took));
            }
            5..=7 => clocks.pass(Duration::from_secs(draw.below(50))),
            _ => {
                ledger.shutdown().await.unwrap();
                // What was open is unknown now.
                begun.clear();
                drop(ledger);
                ledger = clocks.open(&disk);
            }
        }
    }
    ledger.shutdown().await.unwrap();
    begun.clear();
    drop(ledger);
    // Dense from 0; read in order.
    let log = log(disk);
    let at = |seq: u64| log.get(usize::try_from(seq).unwrap()).unwrap();
    for (seq, wall_us) in written {
        assert_eq!(at(seq).time_us, wall_us, "seed {seed}: {seq}");
    }
    let told: Vec<(i64, u64)> = agent_events(&log, "clock.step")
        .iter()
        .map(|detail| (detail["step_us"].parse().unwrap(), detail["wall_us"].parse().unwrap()))
        .collect();
    assert_eq!(told, set, "seed {seed}");
    assert!(outcomes(&log).values().all(|results| results.len() == 1), "seed {seed}");
    // How long a call took can be had from the log in two ways: as the agent measured it, and out of the times of its two events
    // without the steps between them.
    for (seq, end, took) in ended {
        let took_us = i64::try_from(took.as_micros()).unwrap();
        let Body::Outcome(outcome) = &at(end).body else { panic!("seed {seed}: {end} is no outcome") };
        assert_eq!(outcome.duration_us, u64::try_from(took_us).ok(), "seed {seed}: {end}");
        let stepped_us: i64 = (seq..end).map(|between| step_us(at(between))).sum();
        let by_the_wall = at(end).time_us.cast_signed() - at(seq).time_us.cast_signed();
        assert_eq!(by_the_wall - stepped_us, took_us, "seed {seed}: {seq} to {end}");
    }
    within
}

/// By how much the event says that the clock was set.
fn step_us(event: &Stored) -> i64 {
    match &event.body {
        Body::Agent(agent) if agent.name == "clock.step" => agent.detail["step_us"].parse().unwrap(),
        _ => 0,
    }
}

#[tokio::test]
async fn a_clock_set_by_an_hour_or_a_year_is_told_of_and_the_log_stays_dense() {
    let mut soak = Soak::of("clock", 60, 1).unwrap();
    let mut within = 0;
    while let Some(seed) = soak.next_seed() {
        within += life(seed, &[HOUR_US, -HOUR_US, YEAR_US, -YEAR_US]).await;
        soak.held(1);
    }
    println!("calls were open at a step {within} times");
    assert!(within as u64 >= soak.cases() / 2, "only {within} calls were open at a step");
}
