//! Power cuts of a real file system: while calls are recorded, the image below the log's ext4 is copied as it is at one
//! moment, and the copy is mounted and recovered. What the device had not been given by then is gone, as after a cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir::ledger::{Ledger, LedgerError};
use weir::spool::{Append, Folder, Lock, LockError, Storage};
use weir_core::record::{Body, CallResult, Stored};
use weir_core::segment::{FrameKind, Reader};
use weir_tests::mounts::{Mounted, Snapshot, ext4, own_mounts};
use weir_tests::soak::{Draw, Soak};

use crate::scene::{DEADLINE, begin, call, config, log_with_gaps, message, outcome};

/// Bytes of the image with the log, and of the file system that holds it.
const LOG_IMAGE: u64 = 24 << 20;
const OUTER_IMAGE: u64 = 96 << 20;
const MEMORY: u64 = 160 << 20;
/// Calls that are being recorded at a time.
const WRITERS: u64 = 6;
/// They wait for the collector when the log has so many bytes; without syncs, it is the slower one.
const WAITS_AT: u64 = 2 << 20;
/// Acknowledged events before the first cut, and at least that many more before the next.
const BETWEEN_CUTS: usize = 40;
/// Cuts of one file system; then a new one begins.
const CUTS_OF_A_DISK: u64 = 20;
/// In how many cuts the control must have lost something.
const CONTROL_CUTS: u64 = 3;

/// An ext4 of its own in an image, below which everything can be stopped.
struct Disk {
    // Dropped in this order.
    log: Mounted,
    outer: Mounted,
    memory: Mounted,
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let memory = Mounted::in_memory(&at("memory"), MEMORY)?;
        let image = memory.at().join("outer.img");
        ext4(&image, OUTER_IMAGE)?;
        let outer = Mounted::image(&image, &at("outer"))?;
        ext4(&outer.at().join("log.img"), LOG_IMAGE)?;
        let log = Mounted::image(&outer.at().join("log.img"), &at("log"))?;
        Ok(Self { log, outer, memory, folder })
    }

    fn spool(&self) -> PathBuf {
        self.log.at().join("spool")
    }

    /// Cuts the power; `then` is called at that moment. What is left is mounted.
    fn cut<T>(&self, then: impl FnOnce() -> T) -> anyhow::Result<(Mounted, T)> {
        let copy = self.memory.at().join("cut.img");
        let snapshot = Snapshot::begin(&self.outer, &self.outer.at().join("log.img"), &copy)?;
        let seen = then();
        snapshot.take()?;
        Ok((Mounted::image(&copy, &self.folder.path().join("cut"))?, seen))
    }
}

/// What is known of an event: enough to know it again.
fn known(event: &Stored) -> String {
    match &event.body {
        Body::Intent(intent) => format!("intent {}", intent.call_id),
        Body::Outcome(outcome) => format!("outcome {}", outcome.call_id),
        other => other.kind().to_owned(),
    }
}

/// Calls that are recorded all the time, and a collector that takes what is sealed.
struct Load {
    stop: Arc<AtomicBool>,
    kept: Arc<Mutex<Kept>>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), LedgerError>>>,
}

/// What must be there whatever happens to this machine's disk: in the log, or at the collector.
#[derive(Default, Clone)]
struct Kept {
    acknowledged: BTreeMap<u64, String>,
    collected: BTreeMap<u64, String>,
}

impl Load {
    fn on(ledger: &Ledger, seed: u64) -> Self {
        let (stop, kept) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Kept::default())));
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let (ledger, stop, kept, next) = (ledger.clone(), stop.clone(), kept.clone(), next.clone());
            let mut draw = Draw(seed ^ (writer << 32));
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if ledger.usage().bytes > WAITS_AT {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        continue;
                    }
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let (record, proof) = begin(&ledger, n).await?;
                    let acknowledged = |seq, what: String| {
                        kept.lock().unwrap().acknowledged.insert(seq, what);
                    };
                    acknowledged(proof.seq(), format!("intent {}", call(n)));
                    ledger.note(message(&"m".repeat(draw.below(1500) as usize))).await?;
                    if draw.below(40) > 0 {
                        let seq = record.close(outcome(n, CallResult::Ok)).await?;
                        acknowledged(seq, format!("outcome {}", call(n)));
                    } else {
                        // Left open: recovery has something to close.
                        std::mem::forget(record);
                    }
                }
                Ok(())
            }));
        }
        let (ledger, stopped, collected) = (ledger.clone(), stop.clone(), kept.clone());
        tasks.push(tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let sealed = ledger.sealed();
                // A few stay behind, so that there are some to be recovered.
                for file in sealed.iter().rev().skip(4) {
                    let bytes = ledger.read(file.first_seq).await?;
                    collected.lock().unwrap().collected.extend(events(&bytes));
                    ledger.trim(file.first_seq).await?;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        }));
        Self { stop, kept, tasks }
    }

    fn kept(&self) -> Kept {
        self.kept.lock().unwrap().clone()
    }

    async fn until_acknowledged(&self, events: usize) {
        let began = Instant::now();
        while self.kept.lock().unwrap().acknowledged.len() < events {
            assert!(began.elapsed() < DEADLINE, "{events} events were not acknowledged in time");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) -> Result<(), LedgerError> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap()?;
        }
        Ok(())
    }
}

fn events(segment: &[u8]) -> Vec<(u64, String)> {
    let frames = Reader::new(segment).unwrap().map(Result::unwrap);
    let events = frames.filter(|frame| frame.kind == FrameKind::Event);
    events.map(|frame| (frame.seq, known(&Stored::read(frame.bytes).unwrap()))).collect()
}

/// Recovers what a cut left, and says what is missing or wrong.
async fn judge(spool: &Path, kept: &Kept) -> Result<(), String> {
    let folder = Folder::open(spool).map_err(|error| error.to_string())?;
    let opened = tokio::task::spawn_blocking({
        let folder = folder.clone();
        move || Ledger::open(config(folder))
    });
    let (ledger, recovered) = opened.await.unwrap().map_err(|error| error.to_string())?;
    if !recovered.report.damaged.is_empty() {
        return Err(format!("damaged: {:?}", recovered.report.damaged));
    }
    ledger.shutdown().await.map_err(|error| error.to_string())?;
    drop(ledger);
    let log = tokio::task::spawn_blocking(move || log_with_gaps(folder)).await.unwrap();
    let mut all = kept.collected.clone();
    for event in &log {
        let known = known(event);
        if let Some(other) = all.insert(event.seq, known.clone()).filter(|other| *other != known) {
            return Err(format!("{} is {known}, and the collector has {other}", event.seq));
        }
    }
    let lost: Vec<_> = kept.acknowledged.iter().filter(|(seq, what)| all.get(seq) != Some(what)).collect();
    if !lost.is_empty() {
        return Err(format!("{} acknowledged events are gone, the first {:?}", lost.len(), lost[0]));
    }
    if !all.keys().copied().eq(0..all.len() as u64) {
        return Err(format!("a gap: {} events up to {:?}", all.len(), all.keys().last()));
    }
    let (mut open, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for (seq, what) in &all {
        let fits = match what.split_once(' ') {
            Some(("intent", call)) => open.insert(call),
            Some(("outcome", call)) => open.contains(call) && ended.insert(call),
            _ => true,
        };
        if !fits {
            return Err(format!("{seq}, {what}, is the second of its kind, or has no intent"));
        }
    }
    if open != ended {
        return Err(format!("{} calls have no outcome", open.len() - ended.len()));
    }
    Ok(())
}

/// Cuts the power again and again; what each cut did to the log.
async fn cuts(
    storage: impl FnOnce(Folder) -> Arc<dyn Storage>,
    seeds: impl Iterator<Item = u64>,
) -> Vec<(u64, Result<(), String>)> {
    let disk = Disk::new().unwrap();
    let folder = Folder::open(disk.spool()).unwrap();
    let config = weir::ledger::LedgerConfig { storage: storage(folder.clone()), ..config(folder) };
    let (ledger, _) = tokio::task::spawn_blocking(|| Ledger::open(config)).await.unwrap().unwrap();
    let (mut load, mut results, mut acknowledged) = (None, Vec::new(), 0);
    for seed in seeds {
        let load = load.get_or_insert_with(|| Load::on(&ledger, seed));
        let mut draw = Draw(seed);
        load.until_acknowledged(acknowledged + BETWEEN_CUTS + draw.below(60) as usize).await;
        // Not a wait for something: the moment is what is drawn.
        tokio::time::sleep(Duration::from_micros(draw.below(20_000))).await;
        let (left, kept) = tokio::task::block_in_place(|| disk.cut(|| load.kept())).unwrap();
        acknowledged = kept.acknowledged.len();
        results.push((seed, judge(&left.at().join("spool"), &kept).await));
    }
    if let Some(load) = load {
        load.end().await.unwrap();
    }
    ledger.shutdown().await.unwrap();
    results
}

fn runtime() -> tokio::runtime::Runtime {
    // Its threads come behind the mount namespace.
    own_mounts().unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn what_was_acknowledged_is_in_the_image_that_a_power_cut_leaves() {
    let mut soak = Soak::of("power-cut", 10, 1).unwrap();
    runtime().block_on(async {
        while let Some(first) = soak.next_seed() {
            let seeds = first..(first + CUTS_OF_A_DISK).min(soak.seed() + soak.cases());
            let results = cuts(|folder| Arc::new(folder), seeds).await;
            for (seed, result) in &results {
                assert_eq!(*result, Ok(()), "seed {seed}, on a disk that was made for seed {first}");
            }
            soak.held(results.len() as u64);
        }
    });
}

/// A folder that says of everything that it is on disk.
#[derive(Debug)]
struct Unsynced(Folder);

struct UnsyncedFile(Box<dyn Append>);

impl Storage for Unsynced {
    fn lock(&self, name: &str) -> Result<Lock, LockError> {
        self.0.lock(name)
    }

    fn list(&self) -> std::io::Result<Vec<(String, u64)>> {
        self.0.list()
    }

    fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        self.0.read(name)
    }

    fn create(&self, name: &str) -> std::io::Result<Box<dyn Append>> {
        Ok(Box::new(UnsyncedFile(self.0.create(name)?)))
    }

    fn cut(&self, name: &str, len: u64) -> std::io::Result<Box<dyn Append>> {
        Ok(Box::new(UnsyncedFile(self.0.cut(name, len)?)))
    }

    fn preallocate(&self, name: &str, len: u64) -> std::io::Result<()> {
        self.0.preallocate(name, len)
    }

    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.0.remove(name)
    }

    fn exposure(&self, name: &str) -> std::io::Result<Option<String>> {
        self.0.exposure(name)
    }

    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_folder(&self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Append for UnsyncedFile {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.append(bytes)
    }

    fn sync_data(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn make_room(&mut self, len: usize) -> std::io::Result<()> {
        self.0.make_room(len)
    }

    fn give_room_back(&mut self) -> std::io::Result<()> {
        self.0.give_room_back()
    }
}

/// The control: were this to pass, the cuts above would show nothing.
#[test]
fn without_syncs_the_same_power_cuts_lose_what_was_acknowledged() {
    let results = runtime().block_on(cuts(|folder| Arc::new(Unsynced(folder)), 1..=CONTROL_CUTS));
    eprintln!("the control: {results:?}");
    assert!(results.iter().any(|(_, result)| result.is_err()), "no cut lost anything: {results:?}");
}
