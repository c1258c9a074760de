//! Accounting without connections: what becomes of a connect that was told of, and what a disk that takes nothing means.
//! Needs root.

use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::{Body, ConnectReason, FlowEnd, Written};
use weir_ebpf::{FlowOrigin, reason};

use super::*;
use crate::kernel::Plan;
use crate::ledger::LedgerConfig;
use crate::spool::faulty::Faulty;

const MOMENT: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(30);

struct Scene {
    disk: Faulty,
    ledger: Ledger,
    hooks: Arc<Hooks>,
    accounts: Arc<Accounts>,
    ends: Arc<Mutex<Vec<(FlowEnd, ConnectReason)>>>,
}

impl Scene {
    async fn new() -> Self {
        let (disk, masker) = (Faulty::new(), Masker::new(MaskKey::new([1; 32])));
        let boot = Boot::from_random([1; 16]);
        let ends = Arc::<Mutex<Vec<_>>>::default();
        let seen = ends.clone();
        let config = LedgerConfig {
            tap: Some(Arc::new(move |written: &Written| {
                if let Body::Flow(Flow { end, connect: Some(connect), .. }) = &written.body {
                    seen.lock().unwrap().push((*end, connect.reason));
                }
            })),
            ..LedgerConfig::new(Arc::new(disk.clone()), "t".into(), "h".into(), boot, masker.clone())
        };
        let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
        let hooks = Arc::new(Hooks::load(Plan::default()).expect("these tests need root"));
        let processes = Arc::new(Processes::new(masker, hooks.epoch()));
        let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes, DEADLINE, None);
        Self { disk, ledger, hooks, accounts, ends }
    }
}

fn told(verdict: u8, reason: u8) -> Origin {
    FlowOrigin {
        netns_cookie: 0,
        cgroup_id: 0,
        connected_at: 1000,
        job: 0,
        process_start: 0,
        tgid: u32::MAX,
        tid: 0,
        uid: 0,
        gid: 0,
        destination: [0; 16],
        source: [0; 16],
        destination_port: 0,
        source_port: 0,
        verdict,
        reason,
        protocol: 0,
        begun: 0,
        comm: [0; 16],
    }
    .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_never_came_gets_a_record_that_says_why() {
    let scene = Scene::new().await;
    let cases = [
        (verdict::REDIRECTED, reason::WITHDRAWN, (FlowEnd::Withdrawn, ConnectReason::Withdrawn)),
        (verdict::REDIRECTED, reason::NEVER_BEGUN, (FlowEnd::NeverBegun, ConnectReason::NeverBegun)),
        (verdict::REFUSED, reason::NO_AGENT, (FlowEnd::NeverMade, ConnectReason::NoAgent)),
        (verdict::PASSED, reason::NO_AGENT, (FlowEnd::Direct, ConnectReason::NoAgent)),
    ];
    for (verdict, reason, expected) in cases {
        scene.accounts.told(told(verdict, reason)).await;
        assert_eq!(scene.ends.lock().unwrap().pop(), Some(expected));
    }
    assert!(scene.hooks.taken().unwrap().is_empty());
    scene.ledger.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_ends_though_the_disk_takes_no_record() {
    let Scene { disk, ledger, accounts, .. } = Scene::new().await;
    let origin = told(verdict::REDIRECTED, reason::NONE);
    disk.set_capacity(Some(0));
    let recording = tokio::time::timeout(MOMENT, accounts.no_room(vec![origin.clone()])).await;
    assert!(recording.is_err(), "it waits for the disk");
    accounts.end();
    let recording = tokio::time::timeout(DEADLINE, accounts.no_room(vec![origin])).await;
    assert!(recording.is_ok(), "it waits on though the agent ends");
    disk.set_capacity(None);
    ledger.shutdown().await.unwrap();
}
