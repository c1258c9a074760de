//! What a test of namespaces stands on: network namespaces held by a process each, the hooks, and a log in memory.
//!
//! Enters: commands of util-linux and iproute2. Leaves: namespaces that live as long as their processes. Must never: touch
//! a namespace that is not its own.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use weir::{
    cgroup::Cgroup,
    kernel::{Hooks, Plan},
    ledger::{Ledger, LedgerConfig},
    netns::{Namespaces, Opened, Queue, ROOM},
    spool::{Limits, faulty::Faulty},
};
use weir_core::{
    ids::Boot,
    mask::{MaskKey, Masked, Masker},
    record::{AgentEvent, Body, Written},
};
use weir_ebpf::{Selected, Settings};

/// Far more than any step of these tests takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, and the process that it lives by.
pub struct Net(Child);

impl Net {
    /// A new one: nothing in it, and its loopback interface down.
    pub fn bare() -> Self {
        Self::held_by(&["unshare", "--net"])
    }

    /// One that an ordinary user made, in a user namespace of its own.
    pub fn of_user() -> Self {
        let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        Self::held_by(&[&user[..], &["unshare", "--user", "--map-root-user", "--net"]].concat())
    }

    /// One with its loopback interface up, as container runtimes make them.
    pub fn new() -> Self {
        let net = Self::bare();
        net.run(&["ip", "link", "set", "lo", "up"]);
        net
    }

    fn held_by(words: &[&str]) -> Self {
        let holds = ["setpriv", "--pdeathsig", "KILL", "sleep", "infinity"];
        let words = [words, &holds].concat();
        let child = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).spawn();
        let child = child.expect("these tests need util-linux");
        let net = Self(child);
        until("the process is in its namespace", || net.inode() != own_inode());
        net
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn inode(&self) -> u64 {
        fs::metadata(format!("/proc/{}/ns/net", self.pid())).unwrap().ino()
    }

    /// Starts another process in there.
    pub fn start(&self, command: &[&str]) -> Child {
        let (pid, mut enter) = (self.pid().to_string(), Command::new("nsenter"));
        enter.args(["--target", &pid, "--net", "setpriv", "--pdeathsig", "KILL"]).args(command);
        enter.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("these tests need util-linux")
    }

    /// What a command in there says.
    pub fn run(&self, command: &[&str]) -> String {
        let output = self.start(command).wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?} ended with {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// A cable between two namespaces: its ends are called `cable`.
    pub fn connect(&self, other: &Net) {
        let (here, there) = (self.pid().to_string(), other.pid().to_string());
        // In here, so that the host never sees either end.
        self.run(&["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &there]);
        assert!(self.has_cable() && other.has_cable(), "{here} and {there}");
    }

    pub fn has_cable(&self) -> bool {
        self.run(&["ip", "-o", "link"]).contains("cable")
    }

    /// Ends the process that it lives by.
    pub fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn own_inode() -> u64 {
    fs::metadata("/proc/self/ns/net").unwrap().ino()
}

/// The registry, with all that it needs.
pub struct Stage {
    pub hooks: Arc<Hooks>,
    pub namespaces: Arc<Namespaces>,
    pub opened: mpsc::Receiver<Opened>,
    pub queue: Option<Queue>,
    ledger: Ledger,
    masker: Masker,
    events: Arc<Mutex<Vec<AgentEvent<Masked<String>>>>>,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with_room(ROOM).await
    }

    pub async fn with_room(room: usize) -> Self {
        let hooks = Arc::new(Hooks::load(Plan::default()).unwrap());
        let events: Arc<Mutex<Vec<_>>> = Arc::default();
        let (seen, masker) = (events.clone(), Masker::new(MaskKey::new([3; 32])));
        let config = LedgerConfig {
            tap: Some(Arc::new(move |event: &Written| {
                if let Body::Agent(event) = &event.body {
                    seen.lock().unwrap().push(event.clone());
                }
            })),
            // The disk is in memory, and its reserve is, too.
            limits: Limits { max_bytes: 16 << 20, reserve_bytes: 1 << 16, ..Default::default() },
            ..LedgerConfig::new(
                Arc::new(Faulty::new()),
                "t".into(),
                "h".into(),
                Boot::from_random([1; 16]),
                masker.clone(),
            )
        };
        let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
        let made = Namespaces::with_room(hooks.clone(), ledger.clone(), masker.clone(), room);
        let (namespaces, queue, opened) = made.unwrap();
        Self { hooks, namespaces, opened, queue: Some(queue), ledger, masker, events }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The registry of an agent that comes after this one.
    pub fn next_agent(&self) -> (Arc<Namespaces>, mpsc::Receiver<Opened>) {
        let next = Namespaces::new(self.hooks.clone(), self.ledger.clone(), self.masker.clone());
        let (namespaces, _queue, opened) = next.unwrap();
        (namespaces, opened)
    }

    /// What was recorded of namespaces, once it is so many events: each name with one of its details.
    pub async fn events(&self, count: usize, detail: &str) -> Vec<(String, String)> {
        self.namespaces.tell().await;
        let told = || {
            let events = self.events.lock().unwrap();
            let ours = events.iter().filter(|event| event.name.starts_with("netns."));
            let of = |event: &AgentEvent<Masked<String>>| {
                event.detail.get(detail).map_or(String::new(), |text| text.as_str().to_owned())
            };
            ours.map(|event| (event.name.clone(), of(event))).collect::<Vec<_>>()
        };
        // The ledger's writer is a thread of its own, and keeps the order.
        let end = Instant::now() + PATIENCE;
        let mut last = told();
        while last.len() < count && Instant::now() < end {
            tokio::task::yield_now().await;
            last = told();
        }
        last
    }
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// A cgroup that is selected, in which scripts run as a job's processes do.
pub struct Job {
    pub cgroup: Cgroup,
}

/// What each script begins with.
const PRELUDE: &str = "
import errno, os, signal, socket, sys
signal.alarm(60)
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
def attempt(address, port):
    with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as made:
        made.settimeout(20)
        try:
            made.connect((address, port))
            return 'ok ' + str(made.getsockname()[1])
        except OSError as e:
            return errno.errorcode.get(e.errno, repr(e))
";

impl Job {
    pub fn of(hooks: &Hooks) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-netns-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::create(name).expect("these tests need root and a cgroup2 hierarchy");
        let job = cgroup.id().unwrap();
        hooks.select_cgroup(job, Selected { job, flags: 0, reserved: 0 }).unwrap();
        hooks
            .change_settings(|settings| settings.cgroup_levels = Settings::pack_levels([1]).unwrap())
            .unwrap();
        hooks.attach(cgroup.path()).unwrap();
        Self { cgroup }
    }

    /// Starts a script in a namespace. It can `attempt` connects.
    pub fn start(&self, net: &Net, script: &str) -> Child {
        let folder = self.cgroup.path().to_str().unwrap();
        net.start(&["python3", "-c", &format!("{PRELUDE}{script}"), folder])
    }

    /// What becomes of a connect in a namespace.
    pub fn attempt(&self, net: &Net, address: &str, port: u16) -> String {
        let child = self.start(net, &format!("print(attempt('{address}', {port}))"));
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "the script ended with {}", output.status);
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // So that the removal which follows finds nobody in it.
        let _ = self.cgroup.kill(PATIENCE);
    }
}
