//! Shipping, against a collector that is a stub here (it takes, cosigns and refuses what it is told to): the real one is met
//! in the end-to-end tests, and for its advice. The spool is the real one, on a real folder.

#[path = "ship/advised.rs"]
mod advised;
#[path = "ship/kept.rs"]
mod kept;
#[path = "ship/renewal.rs"]
mod renewal;
#[path = "ship/stub.rs"]
mod stub;
#[path = "ship/witness.rs"]
mod witness;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixListener;
use weir::ledger::{Ledger, LedgerConfig};
use weir::ship::{Collector, Shipper};
use weir::spool::faulty::Faulty;
use weir::spool::{Folder, Limits, Storage};
use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::AgentEvent;
use weir_core::wire::Reason;

use stub::Stub;

/// Of a disk in memory all is, the reserve too.
const SMALL: Limits = Limits {
    max_bytes: 16 << 20,
    reserve_bytes: 1 << 16,
    seal_bytes: 1 << 20,
    seal_events: 1000,
    room_from: usize::MAX,
};

/// A ledger with three sealed segments, and its shipper.
async fn three_segments(folder: &Path, stub: Arc<Stub>) -> Shipper {
    let storage = Arc::new(Folder::open(folder.join("spool")).unwrap());
    three_segments_on(folder, stub, storage.clone(), storage).await
}

/// The same, whose spool is in memory, and which keeps what the collector witnessed on a disk of its own.
async fn three_segments_in_memory(folder: &Path, stub: Arc<Stub>, kept: Arc<dyn Storage>) -> Shipper {
    three_segments_on(folder, stub, Arc::new(Faulty::new()), kept).await
}

async fn three_segments_on(
    folder: &Path,
    stub: Arc<Stub>,
    storage: Arc<dyn Storage>,
    kept: Arc<dyn Storage>,
) -> Shipper {
    let socket = folder.join("collector.sock");
    tokio::spawn(stub.serve(UnixListener::bind(&socket).unwrap()));
    let masker = Masker::new(MaskKey::new([1; 32]));
    let boot = Boot::from_random([2; 16]);
    let config = LedgerConfig {
        limits: SMALL,
        ..LedgerConfig::new(storage, "t".into(), "h".into(), boot, masker.clone())
    };
    let ledger = tokio::task::spawn_blocking(|| Ledger::open(config)).await.unwrap().unwrap().0;
    for name in ["first", "second", "third"] {
        ledger.write(AgentEvent { name: name.into(), detail: BTreeMap::new() }).await.unwrap();
        ledger.seal_if_older(std::time::Duration::ZERO).await.unwrap();
    }
    assert_eq!(ledger.sealed().len(), 3);
    Shipper::new(Collector::new(socket), ledger, masker, kept)
}

fn names_in(folder: &Path, suffix: &str) -> usize {
    let entries = std::fs::read_dir(folder.join("spool")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(suffix)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_trimmed() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    shipper.ship_all().await.unwrap();
    assert!(shipper.ledger.sealed().is_empty());
    let seqs: Vec<u64> = stub.says().taken.keys().copied().collect();
    assert_eq!(seqs, [0, 1, 2, 3], "agent.started and the three");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_set_aside_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    let second = shipper.ledger.sealed()[1].first_seq;
    let path = folder.path().join(format!("spool/{second:020}.seg"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    shipper.ship_all().await.unwrap();
    assert!(shipper.ledger.sealed().is_empty());
    assert_eq!(names_in(folder.path(), ".damaged"), 1);
    shipper.ledger.seal_if_older(std::time::Duration::ZERO).await.unwrap();
    shipper.ship_all().await.unwrap();
    let taken = stub.says().taken.clone();
    assert!(!taken.contains_key(&second), "the damaged one never arrived");
    assert!(taken.values().any(|event| event.contains("third")));
    assert!(taken.values().any(|event| event.contains("spool.set_aside")), "and the record says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_kept_for_a_human_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    stub.says().refuses.insert(2, Reason::Conflict);
    let shipper = three_segments(folder.path(), stub.clone()).await;
    shipper.ship_all().await.unwrap();
    assert_eq!(names_in(folder.path(), ".conflict"), 1);
    assert!(stub.says().taken.values().any(|event| event.contains("third")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_everything_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut shipper = three_segments(folder.path(), Arc::default()).await;
    shipper.collector = Collector::new(folder.path().join("nobody.sock"));
    let error = shipper.ship_all().await.unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
    assert_eq!(shipper.ledger.sealed().len(), 3);
}
