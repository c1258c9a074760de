//! What a real collector advises, on its whole way: from the acknowledgement of a segment through the shipper to the age at which the
//! ledger seals.

use std::path::PathBuf;
use std::time::Duration;

use weir_core::wire::LONGEST_ADVISED;
use weir_tests::places::{Setup, fresh_folder};
use weir_tests::{Collector as RealCollector, Store};

use super::*;

/// So few logs are left to themselves.
const FEW: u8 = 16;
/// The most that one collector is given. It advises as soon as all their inserts take longer than it likes: with the quickest store, late.
const MOST: u8 = 250;

#[tokio::test(flavor = "multi_thread")]
async fn the_more_logs_a_collector_has_the_older_their_segments_grow() {
    let setup = Setup::locate().unwrap();
    assert!(setup.engine().exists(), "the engine is missing: run `cargo xtask test`, which sets it up");
    let folder = fresh_folder("advised").unwrap();
    let store = Store::start(&setup, folder.path(), false).unwrap();
    let collector = RealCollector::start(&store, folder.path(), "warn", false).unwrap();
    let few: Vec<_> = (0..FEW).map(|log| tokio::spawn(advised(collector.socket().to_owned(), log))).collect();
    for one in few {
        assert_eq!(one.await.unwrap(), None, "few logs are left to themselves");
    }
    let mut logs = FEW;
    let age = loop {
        assert!(logs < MOST, "{logs} logs, and no advice came");
        logs += 1;
        if let Some(age) = advised(collector.socket().to_owned(), logs).await {
            break age;
        }
    };
    assert!(age <= LONGEST_ADVISED, "{age:?}");
    println!("{logs} logs: segments may grow {age:?} old");
}

/// A log of its own ships a segment. Gives the age at which its ledger seals from then on, if that is not what it was before.
async fn advised(collector: PathBuf, log: u8) -> Option<Duration> {
    let disk = Arc::new(Faulty::new());
    let masker = Masker::new(MaskKey::new([1; 32]));
    let boot = Boot::from_random([log; 16]);
    let config = LedgerConfig {
        limits: SMALL,
        ..LedgerConfig::new(disk.clone(), "t".into(), "h".into(), boot, masker.clone())
    };
    let own = config.seal_after;
    let ledger = tokio::task::spawn_blocking(|| Ledger::open(config)).await.unwrap().unwrap().0;
    assert_eq!(ledger.health().seal_after, own, "nothing is advised yet");
    ledger.seal_if_older(Duration::ZERO).await.unwrap();
    let shipper = Shipper::new(Collector::new(collector), ledger.clone(), masker, disk);
    shipper.ship_all().await.unwrap();
    assert_eq!(ledger.sealed(), []);
    // The writer does what it is told in order.
    ledger.write(AgentEvent { name: "behind it".into(), detail: BTreeMap::new() }).await.unwrap();
    Some(ledger.health().seal_after).filter(|age| *age != own)
}
