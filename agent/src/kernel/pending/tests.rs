//! What two processes share of the tables, and two threads. Needs root.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::{Body, Flow, FlowEnd, GapReason, Written};
use weir_core::segment::MAX_FRAME;
use weir_ebpf::{JOBS_ROOM, JobCounts, Selected, address, verdict};

use super::*;
use crate::account::Accounts;
use crate::cgroup::Cgroup;
use crate::kernel::pins::{self, Pins};
use crate::kernel::{Hooks, Origin, Plan};
use crate::ledger::{Ledger, LedgerConfig};
use crate::process::Processes;
use crate::spool::faulty::Faulty;

const NETNS: u64 = 7;

fn flow(number: u16) -> FlowOrigin {
    let bytes = [0_u8; size_of::<FlowOrigin>()];
    let nothing: FlowOrigin = syscall::plain(&bytes).unwrap();
    FlowOrigin { netns_cookie: NETNS, connected_at: 1000 + u64::from(number), ..nothing }
}

/// A folder of pins.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(PathBuf::from(format!("/sys/fs/bpf/weir-pending-{}-{number}", std::process::id())))
    }

    fn agent(&self) -> Hooks {
        let pins = Pins::open(&self.0).expect("these tests need root");
        Hooks::load(Plan { pins: Some(pins), ..Plan::default() }).unwrap()
    }

    fn successor(&self, of: &Hooks) -> Hooks {
        let pins = Pins::take_over(&self.0, of.pins_lock().unwrap().into()).unwrap();
        Hooks::load(Plan { pins: Some(pins), ..Plan::default() }).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = pins::remove(&self.0) {
            eprintln!("pins are left behind: {error}");
        }
    }
}

#[test]
fn what_an_agent_writes_while_it_is_replaced_is_its_successors_and_nobodys_meddling() {
    let folder = Folder::new();
    let old = folder.agent();
    old.take_over().unwrap();
    let new = folder.successor(&old);
    let selected = Selected { job: 5, flags: 0, reserved: 0 };
    old.change_settings(|settings| settings.cgroup_levels = 0b110).unwrap();
    old.select_cgroup(5, selected).unwrap();
    new.change_settings(|settings| settings.unknown = 1).unwrap();
    assert_eq!(super::super::lock(&new.tables).settings().unwrap().cgroup_levels, 0b110);
    new.take_over().unwrap();
    assert!(new.watch_tables().unwrap().is_empty());
    assert_eq!(new.selected_cgroups().unwrap(), [(5, selected)].into());
    // From here on what others write counts for nothing.
    old.change_settings(|settings| settings.cgroup_levels = 0).unwrap();
    new.change_settings(|settings| settings.unknown = 2).unwrap();
    assert_eq!(super::super::lock(&new.tables).settings().unwrap().cgroup_levels, 0b110);
}

#[test]
fn a_connection_is_never_out_of_sight_while_it_is_taken() {
    const MANY: u16 = 500;
    let mut hooks = Hooks::load(Plan::default()).expect("these tests need root");
    for port in 1..=MANY {
        let key = FlowKey::new(NETNS, address::mapped([127, 0, 0, 1]), port);
        hooks.pending.entries.insert(key, flow(port), 0).unwrap();
    }
    std::thread::scope(|threads| {
        let taking = threads.spawn(|| {
            for port in 1..=MANY {
                let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                assert!(hooks.take_origin(NETNS, peer).unwrap().is_some());
            }
        });
        loop {
            let is_over = taking.is_finished();
            let seen: BTreeSet<_> =
                hooks.unrecorded().unwrap().into_iter().map(|origin| origin.connected_at).collect();
            assert_eq!(seen.len(), usize::from(MANY));
            if is_over {
                break;
            }
        }
    });
}

#[test]
fn what_there_is_no_room_to_owe_stays_where_it_is_until_there_is() {
    let plan = || Plan { taken_room: 2, ..Plan::default() };
    let mut hooks = Hooks::load(plan()).expect("these tests need root");
    let peer = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for port in 1..=4 {
        let key = FlowKey::new(NETNS, address::mapped([127, 0, 0, 1]), port);
        hooks.pending.entries.insert(key, flow(port), 0).unwrap();
    }
    let first = hooks.take_origin(NETNS, peer(1)).unwrap().unwrap();
    assert_eq!(hooks.sweep_pending(Duration::ZERO).unwrap().len(), 1, "there is room for one more");
    assert!(!hooks.can_owe());
    let left: BTreeSet<_> = hooks.pending().unwrap().iter().map(|of| of.connected_at).collect();
    assert_eq!(left.len(), 2);
    for port in 1..=4 {
        assert!(hooks.take_origin(NETNS, peer(port)).is_err());
    }
    assert!(hooks.sweep_pending(Duration::ZERO).unwrap().is_empty());
    assert_eq!(hooks.pending().unwrap().len(), 2, "nothing was lost");
    hooks.recorded(&first).unwrap();
    let next = hooks.sweep_pending(Duration::ZERO).unwrap();
    assert_eq!((next.len(), hooks.pending().unwrap().len()), (1, 1));
    assert_eq!(hooks.taken().unwrap().len(), 2);
}

#[test]
fn what_a_predecessor_takes_late_is_owed_and_what_the_successor_took_is_not() {
    let folder = Folder::new();
    let old = folder.agent();
    old.owe(&flow(1)).unwrap();
    let new = folder.successor(&old);
    new.owe(&flow(2)).unwrap();
    old.owe(&flow(3)).unwrap();
    let owed = |of: &Hooks| -> BTreeSet<_> {
        of.owed().unwrap().iter().map(|origin| origin.connected_at.as_nanos()).collect()
    };
    assert_eq!(owed(&new), [1001, 1003].into());
    for origin in new.owed().unwrap() {
        new.recorded(&origin).unwrap();
    }
    assert_eq!((owed(&new), new.taken().unwrap().len()), ([].into(), 1));
    drop((old, new));
}

#[test]
fn a_successor_that_is_loaded_meddles_with_nothing_that_its_predecessor_watches() {
    let folder = Folder::new();
    let cgroup = Cgroup::create(format!("weir-pending-{}", std::process::id())).unwrap();
    let old = folder.agent();
    old.attach(cgroup.path()).unwrap();
    assert_eq!(old.watch().unwrap().len(), 0);
    let new = folder.successor(&old);
    let found = old.watch().unwrap();
    assert!(found.is_empty(), "{found:?}");
    new.attach(cgroup.path()).unwrap();
    drop(old);
    assert_eq!(new.watch().unwrap().len(), 0);
    new.detach(cgroup.path());
    drop(new);
    cgroup.remove().unwrap();
}

#[test]
fn a_cgroup_is_selected_though_the_table_of_jobs_is_full() {
    let hooks = Hooks::load(Plan::default()).expect("these tests need root");
    let full = (1..=u64::from(JOBS_ROOM)).any(|job| hooks.account(job).is_err());
    assert!(full, "there is room for more jobs than the table has");
    let selected = Selected { job: u64::MAX, flags: 0, reserved: 0 };
    hooks.select_cgroup(5, selected).unwrap();
    assert_eq!(hooks.selected_cgroups().unwrap(), [(5, selected)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_ended_is_not_closed_before_its_last_connection_is_recorded() {
    const JOB: u64 = 9;
    let hooks = Arc::new(Hooks::load(Plan::default()).expect("these tests need root"));
    let mut counts = JobCounts::default();
    counts.verdicts[usize::from(verdict::REDIRECTED)] = 1;
    counts.verdicts[usize::from(verdict::BEGUN)] = 1;
    hooks.tables.lock().unwrap().jobs.insert(JOB, counts, 0).unwrap();
    let last = FlowOrigin { job: JOB, ..flow(1) };
    hooks.owe(&last).unwrap();

    let (seen, masker) = (Arc::<Mutex<Vec<_>>>::default(), Masker::new(MaskKey::new([1; 32])));
    let stated = seen.clone();
    let config = LedgerConfig {
        tap: Some(Arc::new(move |written: &Written| {
            if let Body::Completeness(of) = &written.body {
                stated.lock().unwrap().push((of.in_flight, of.closed));
            }
        })),
        ..LedgerConfig::new(
            Arc::new(Faulty::new()),
            "t".into(),
            "h".into(),
            Boot::from_random([1; 16]),
            masker.clone(),
        )
    };
    let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
    let processes = Arc::new(Processes::new(masker, hooks.epoch()));
    let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes, Duration::from_secs(3600), None);
    let ending = CancellationToken::new();
    let running = tokio::spawn(accounts.clone().run(None, ending.clone()));
    accounts.finish().await;
    assert_eq!(seen.lock().unwrap().last(), Some(&(1, false)));
    hooks.recorded(&Origin::from(last)).unwrap();
    accounts.finish().await;
    assert_eq!(seen.lock().unwrap().last(), Some(&(0, true)));
    ending.cancel();
    running.await.unwrap();
    ledger.shutdown().await.unwrap();
}

/// What is recorded of the hooks' connects, as it comes to be.
async fn recorder(hooks: &Arc<Hooks>) -> (Arc<Accounts>, Ledger, Masker, Arc<Mutex<Vec<Written>>>) {
    let (seen, masker) = (Arc::<Mutex<Vec<Written>>>::default(), Masker::new(MaskKey::new([1; 32])));
    let written = seen.clone();
    let config = LedgerConfig {
        tap: Some(Arc::new(move |event: &Written| written.lock().unwrap().push(event.clone()))),
        ..LedgerConfig::new(
            Arc::new(Faulty::new()),
            "t".into(),
            "h".into(),
            Boot::from_random([1; 16]),
            masker.clone(),
        )
    };
    let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
    let processes = Arc::new(Processes::new(masker.clone(), hooks.epoch()));
    let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes, Duration::from_secs(3600), None);
    (accounts, ledger, masker, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_whose_connection_never_came_is_recorded_as_withdrawn_and_owed_no_more() {
    let mut hooks = Hooks::load(Plan::default()).expect("these tests need root");
    let key = FlowKey::new(NETNS, address::mapped([127, 0, 0, 1]), 1);
    hooks.pending.entries.insert(key, FlowOrigin { tgid: u32::MAX, ..flow(1) }, 0).unwrap();
    let hooks = Arc::new(hooks);
    let (accounts, ledger, _, seen) = recorder(&hooks).await;
    assert_eq!(accounts.sweep(Duration::from_secs(1 << 40)).await.unwrap(), 0, "it may still come");
    assert_eq!(accounts.sweep(Duration::ZERO).await.unwrap(), 1);
    let ends: Vec<FlowEnd> = seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|written| match &written.body {
            Body::Flow(Flow { end, .. }) => Some(*end),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [FlowEnd::Withdrawn]);
    assert!(hooks.unrecorded().unwrap().is_empty());
    ledger.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_log_can_hold_is_a_gap_and_keeps_no_job_open() {
    let hooks = Arc::new(Hooks::load(Plan::default()).expect("these tests need root"));
    let (accounts, ledger, masker, seen) = recorder(&hooks).await;
    let origin = Origin::from(FlowOrigin { tgid: u32::MAX, ..flow(1) });
    accounts.told(origin.clone()).await;
    let small = seen.lock().unwrap().iter().find_map(|written| match &written.body {
        Body::Flow(flow) => Some(flow.clone()),
        _ => None,
    });
    let mut large = small.expect("a record");
    large.server.name = masker.text(&"x".repeat(MAX_FRAME));
    hooks.owe(&flow(1)).unwrap();
    accounts.record(&origin, large).await;
    let gaps: Vec<(GapReason, u64)> = seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|written| match &written.body {
            Body::Gap(gap) => Some((gap.reason, gap.count)),
            _ => None,
        })
        .collect();
    assert_eq!(gaps, [(GapReason::NoRoom, 1)]);
    assert!(hooks.taken().unwrap().is_empty(), "it is owed no more");
    ledger.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_root_wrote_into_a_table_is_recorded_once_with_what_became_of_it() {
    let hooks = Arc::new(Hooks::load(Plan::default()).expect("these tests need root"));
    let (_accounts, ledger, masker, seen) = recorder(&hooks).await;
    let selected = Selected { job: 5, flags: 0, reserved: 0 };
    hooks.select_cgroup(5, selected).unwrap();
    hooks.tables.lock().unwrap().cgroups.behind_its_back().remove(&5).unwrap();
    let mut broken = BTreeSet::new();
    for _ in 0..2 {
        crate::watch::look_at_tables(&hooks, &ledger, &masker, &mut broken).await;
    }
    ledger.shutdown().await.unwrap();
    let told: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|written| match &written.body {
            Body::Agent(event) if event.name == "tamper.table_changed" => Some(event.detail.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    for (name, value) in [("table", "CGROUPS"), ("missing", "1"), ("altered", "0"), ("mended", "yes")] {
        assert_eq!(told[0][name].as_str(), value, "{name}");
    }
    assert_eq!(hooks.selected_cgroups().unwrap(), [(5, selected)].into());
    assert!(broken.is_empty());
}
