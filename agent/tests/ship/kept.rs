//! What the collector witnessed is kept on a disk that fails: at each place that changes something there, by ENOSPC, EIO and a torn write.

use std::collections::BTreeSet;
use std::time::Duration;

use weir::ship::Witness;
use weir::spool::faulty::Fault;
use weir_core::evidence::key::SigningKey;

use super::*;

/// All that is ever done to the witness's files.
const SITES: [(&str, &str); 5] = [
    ("create", "witness"),
    ("rename to", "witness"),
    ("sync", "folder"),
    ("sync", "witness"),
    ("write", "witness"),
];

/// Three segments that have arrived, and what the collector said of them on this disk.
async fn shipped(folder: &Path, stub: &Arc<Stub>, disk: &Faulty, what: &str) -> Shipper {
    let shipper = three_segments_in_memory(folder, stub.clone(), Arc::new(disk.clone())).await;
    shipper.ship_all().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((shipper.ledger.sealed().len(), stub.says().taken.len()), (0, 4), "{what}: records go on");
    shipper
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_disk_did_not_keep_is_kept_with_the_next_cosignature() {
    let operations = {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Faulty::new());
        shipped(folder.path(), &Arc::default(), &disk, "without faults").await;
        let happened: BTreeSet<_> = disk.sites().iter().map(|site| (site.doing, site.file)).collect();
        assert_eq!(happened, SITES.into());
        disk.operations()
    };
    for operation in 0..operations {
        for fault in [Fault::Enospc, Fault::Eio, Fault::Torn(20)] {
            let what = format!("{fault:?} at {operation}");
            let (folder, stub, disk) =
                (tempfile::tempdir().unwrap(), Arc::new(Stub::default()), Faulty::new());
            disk.fail_at(operation, fault);
            let shipper = shipped(folder.path(), &stub, &disk, &what).await;
            assert_eq!(shipper.witness().to().unwrap().size, 4, "{what}: it is known, kept or not");
            shipper.ledger.write(AgentEvent { name: "more".into(), detail: BTreeMap::new() }).await.unwrap();
            shipper.ledger.seal_if_older(Duration::ZERO).await.unwrap();
            shipper.ship_all().await.unwrap();
            let to = shipper.witness().to();
            assert_eq!(to.unwrap().size, 5, "{what}");
            drop(shipper);
            // The next process knows as much, and believes no other key.
            let disk = disk.killed();
            assert_eq!(Witness::open(Arc::new(disk.clone())).to(), to, "{what}");
            stub.says().witness = SigningKey::from_seed(&[8; 32]);
            let other = tempfile::tempdir().unwrap();
            let shipper = three_segments_in_memory(other.path(), stub, Arc::new(disk)).await;
            shipper.ship_all().await.unwrap();
            assert_eq!(shipper.witness().to(), to, "{what}: another key was believed");
        }
    }
}
