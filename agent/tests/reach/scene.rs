//! A job below a cgroup that has the hooks, and the books that the agent would keep of it.
//!
//! Enters: connections that the tests accept, and what the hooks tell. Leaves: the proof that each verdict that the kernel counted
//! came up in one of them exactly once. Must never: take the kernel's counts for the user's side of that, or the reverse.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use weir::{
    cgroup::Cgroup,
    kernel::{Connects, Destination, Hooks, Origin, Plan},
};
use weir_ebpf::{Selected, Settings, verdict};

use super::stage::{Job, accept, lead_to, listen, until};

pub struct Scene {
    // First to go, then the cgroups from the deepest up.
    pub hooks: Hooks,
    /// Selected.
    pub job: Job,
    /// Where the hooks are attached; above the job, and not selected itself.
    pub around: Job,
    pub agent_v4: TcpListener,
    pub agent_v6: TcpListener,
    pub server_v4: TcpListener,
    pub server_v6: TcpListener,
    ring: RefCell<Connects>,
    books: RefCell<Books>,
}

/// What would have become a flow record each.
#[derive(Default)]
struct Books {
    taken: Vec<Origin>,
    told: Vec<Origin>,
    recorded: HashSet<(Duration, u32)>,
}

impl Scene {
    pub fn new() -> Self {
        Self::with(Plan::default())
    }

    /// In a network namespace of its own, with nothing but loopback. TCP Fast Open needs no cookies there.
    pub fn apart() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        // Client and server, without a cookie on either side, for every listener (ip-sysctl.rst).
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543").unwrap();
        Self::new()
    }

    pub fn with(plan: Plan<'_>) -> Self {
        let around = Job::new();
        let job = below(&around, "job");
        let (agent_v4, agent_v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        let hooks = Hooks::load(plan).unwrap();
        lead_to(&hooks, &agent_v4, &agent_v6);
        hooks.select_cgroup(id(&job), selected(id(&job), 0)).unwrap();
        hooks.change_settings(|settings| settings.cgroup_levels = levels([2])).unwrap();
        hooks.attach(around.cgroup.path()).unwrap();
        Self {
            ring: RefCell::new(hooks.connects().unwrap()),
            books: RefCell::default(),
            hooks,
            job,
            around,
            agent_v4,
            agent_v6,
            server_v4: listen("127.0.0.1:0"),
            server_v6: listen("[::1]:0"),
        }
    }

    /// The number under which the job's connects are counted.
    pub fn id(&self) -> u64 {
        id(&self.job)
    }

    /// Accepts a connection that the hooks led to the agent, and books it.
    pub fn accept(&self, listener: &TcpListener) -> (TcpStream, Origin) {
        let (stream, peer) = accept(listener);
        let origin = self.take(peer).expect("a connection came without an origin");
        (stream, origin)
    }

    pub fn take(&self, peer: SocketAddr) -> Option<Origin> {
        let origin = self.hooks.take_origin(self.hooks.netns_cookie(), peer).unwrap();
        self.books.borrow_mut().taken.extend(origin.clone());
        origin
    }

    /// Books what was taken elsewhere.
    pub fn book(&self, taken: impl IntoIterator<Item = Origin>) {
        self.books.borrow_mut().taken.extend(taken);
    }

    /// Books what the hooks have told until now, and gives all of it.
    pub fn told(&self) -> Vec<Origin> {
        let mut ring = self.ring.borrow_mut();
        let mut books = self.books.borrow_mut();
        books.told.extend(std::iter::from_fn(|| ring.take(&self.hooks).unwrap()));
        books.told.clone()
    }

    /// Closes the books: nothing is pending, each count of each job has come up, and nothing came up twice. The counts of this
    /// scene's job are these, and no others. Gives what was told.
    pub fn close(&self, expected: &[(u8, u64)]) -> Vec<Origin> {
        self.close_of(self.id(), expected)
    }

    pub fn close_of(&self, job: u64, expected: &[(u8, u64)]) -> Vec<Origin> {
        until("nothing is pending", || self.hooks.pending().unwrap().is_empty());
        let told = self.told();
        self.balance();
        self.record();
        let mut counts = [0; verdict::KINDS as usize];
        for (verdict, count) in expected {
            counts[usize::from(*verdict)] = *count;
        }
        // All of them, now that nothing is pending.
        counts[usize::from(verdict::BEGUN)] = counts[usize::from(verdict::REDIRECTED)];
        let jobs = self.hooks.jobs().unwrap();
        assert_eq!(
            jobs.get(&job).map(|counts| counts.verdicts),
            Some(counts),
            "by verdict; told was {told:?}"
        );
        told
    }

    /// What is booked is owed a record, and nothing else is; with its record written, nothing is owed any more.
    fn record(&self) {
        let mut books = self.books.borrow_mut();
        let known: HashSet<_> = books.taken.iter().chain(&books.told).map(named).collect();
        let owed: HashSet<_> = self.hooks.taken().unwrap().iter().map(named).collect();
        assert_eq!(owed, known.difference(&books.recorded).copied().collect());
        for origin in books.taken.iter().chain(&books.told) {
            self.hooks.recorded(origin).unwrap();
        }
        books.recorded = known;
        assert_eq!(self.hooks.taken().unwrap(), []);
    }

    fn balance(&self) {
        let books = self.books.borrow();
        let mut seen: BTreeMap<(u64, u8), u64> = BTreeMap::new();
        let mut connects = HashSet::new();
        for origin in books.taken.iter().chain(&books.told) {
            *seen.entry((origin.job, origin.verdict)).or_default() += 1;
            assert!(connects.insert(named(origin)), "came up twice: {origin:?}");
        }
        let mut counted = BTreeMap::new();
        for (job, counts) in self.hooks.jobs().unwrap() {
            for (verdict, (all, lost)) in (0..).zip(counts.verdicts.into_iter().zip(counts.lost)) {
                if all != lost && verdict != verdict::BEGUN {
                    counted.insert((job, verdict), all.wrapping_sub(lost));
                }
            }
        }
        assert_eq!(counted, seen, "by (job, verdict): what the kernel counted, and what came up");
    }
}

/// What one connect is known by: no thread makes two at a time.
fn named(origin: &Origin) -> (Duration, u32) {
    (origin.connected_at, origin.tid)
}

/// A cgroup below another.
pub fn below(job: &Job, name: &str) -> Job {
    let path = job.cgroup.path().join(name);
    std::fs::create_dir(&path).unwrap();
    Job { cgroup: Cgroup::adopt(path).unwrap() }
}

pub fn id(job: &Job) -> u64 {
    job.cgroup.id().unwrap()
}

pub fn selected(job: u64, flags: u32) -> Selected {
    Selected { job, flags, reserved: 0 }
}

pub fn levels(depths: impl IntoIterator<Item = usize>) -> u64 {
    Settings::pack_levels(depths).unwrap()
}

/// `network` is a prefix or an address.
pub fn destination(network: &str, port: u16, action: u32) -> Destination {
    let network = network.parse().unwrap_or_else(|_| network.parse::<IpAddr>().unwrap().into());
    Destination { network, port, action }
}

pub fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

/// `(verdict, reason)` of each.
pub fn verdicts(told: &[Origin]) -> Vec<(u8, u8)> {
    told.iter().map(|origin| (origin.verdict, origin.reason)).collect()
}
