//! The log's key on a disk that fails: at each place that changes something, by ENOSPC, EIO and a torn write. The error names the fault,
//! what is asked for again is done, and the log has one key in each epoch.

use weir::ledger::LogKeys;
use weir::spool::faulty::{Fault, Site};

use super::evidence::epochs;
use super::scene::*;
use super::*;

const FAULTS: [Fault; 3] = [Fault::Enospc, Fault::Eio, Fault::Torn(20)];
/// How often a change of keys is asked for: more often than there are faults.
const TRIES: usize = 3;

/// All that is ever done to the key's files.
const SITES: [(&str, &str); 5] =
    [("create", "key"), ("remove", "key"), ("rename to", "key"), ("sync", "key"), ("write", "key")];

fn of_keys(sites: &[Site]) -> BTreeSet<(&'static str, &'static str)> {
    sites.iter().map(|site| (site.doing, site.file)).filter(|(_, file)| *file == "key").collect()
}

/// The key in the folder is the one that the log names in its last epoch.
fn one_key_signs(disk: &Faulty, epoch: u32, what: &str) {
    let current = LogKeys::new(Arc::new(disk.clone())).current().unwrap().unwrap();
    let epochs = epochs(disk);
    let (last, named) = epochs.last_key_value().unwrap();
    assert_eq!(*last, epoch, "{what}");
    assert_eq!(current.verifying(named.name()).unwrap(), *named, "{what}");
}

#[tokio::test]
async fn a_first_start_that_the_disk_refuses_says_why_and_the_next_one_works() {
    let sites = {
        let disk = Faulty::new();
        let _ledger = open(&disk);
        disk.sites()
    };
    let mut failed = BTreeSet::new();
    for (operation, site) in (0..).zip(&sites) {
        for fault in FAULTS {
            let what = format!("{fault:?} at {operation}, {site:?}");
            let disk = Faulty::new();
            disk.fail_at(operation, fault);
            let (ledger, error) = open_behind_a_fault(&disk, &what);
            if let Some(error) = error.filter(|_| site.file == "key") {
                assert!(error.contains("log.key"), "{what}: {error}");
                failed.insert((site.doing, site.file));
            }
            begin(&ledger, 1).await.unwrap().0.close(outcome(1, CallResult::Ok)).await.unwrap();
            ledger.shutdown().await.unwrap();
            drop(ledger);
            one_key_signs(&disk, 1, &what);
            let log = log(disk.killed());
            assert_eq!(outcomes(&log), BTreeMap::from([(call(1), vec![CallResult::Ok])]), "{what}");
        }
    }
    assert_eq!(failed, SITES.into(), "each of them fails a first start");
}

#[tokio::test]
async fn a_change_of_keys_that_the_disk_refuses_says_why_and_succeeds_when_it_is_asked_for_again() {
    let changed = async |disk: &Faulty, fault: Option<(u64, Fault)>| {
        let (ledger, _) = open(disk);
        ledger.write(message("before")).await.unwrap();
        let before = disk.operations();
        if let Some((operation, fault)) = fault {
            disk.fail_at(before + operation, fault);
        }
        let mut errors = Vec::new();
        for _ in 0..TRIES {
            match ledger.rotate_key().await {
                Ok(rotated) => {
                    disk.mend();
                    ledger.write(message("after")).await.unwrap();
                    ledger.shutdown().await.unwrap();
                    return (rotated, errors, before);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        panic!("{fault:?}: {errors:?}");
    };
    let disk = Faulty::new();
    let (_, _, before) = changed(&disk, None).await;
    let sites = disk.sites().split_off(usize::try_from(before).unwrap());
    assert_eq!(of_keys(&sites), SITES.into());
    let mut refused = 0;
    for (operation, site) in (0..).zip(&sites) {
        for fault in FAULTS {
            let what = format!("{fault:?} at {operation}, {site:?}");
            let disk = Faulty::new();
            let (rotated, errors, _) = changed(&disk, Some((operation, fault))).await;
            errors.iter().for_each(|error| assert!(names_a_fault(error), "{what}: {error}"));
            refused += errors.len();
            assert_eq!((rotated.epoch, errors.len() < 2), (2, true), "{what}: {errors:?}");
            let disk = disk.killed();
            let (ledger, _) = open(&disk);
            assert_eq!(ledger.standing().epoch, 2, "{what}");
            drop(ledger);
            one_key_signs(&disk, 2, &what);
            assert_eq!(agent_events(&log(disk), "key.rotated").len(), 1, "{what}");
        }
    }
    assert!(refused >= FAULTS.len() * SITES.len(), "{refused}");
}
