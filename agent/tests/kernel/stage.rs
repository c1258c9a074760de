//! What a test of the hooks stands on: a cgroup of its own, processes in it, listeners of the agent and of a server.
//!
//! Enters: Python scripts, run by processes that join the cgroup first (a socket belongs to the cgroup in which it was
//! made). Leaves: what they said. Must never: send anything but to this host, or touch a cgroup that is not its own.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::Backlog,
};
use weir::{
    cgroup::Cgroup,
    kernel::{Counts, Hooks, Origin, Plan},
};
use weir_ebpf::{Selected, Settings};

/// Far more than any step of these tests takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PRELUDE: &str = r#"
import errno, os, signal, socket, struct, sys
signal.alarm(60)
def make(address):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(20)
    return made
def connect(address, port):
    made = make(address)
    made.connect((address, port))
    return made
def attempt(address, port):
    try:
        connect(address, port).close()
        return "ok"
    except OSError as e:
        return errno.errorcode.get(e.errno, repr(e))
def say(*words):
    print(*words, flush=True)
def wait():
    sys.stdin.readline()
"#;

/// Hooks on a cgroup of its own, the agent's two listeners, and a server's.
pub struct Stage {
    // First to go, so that the cgroup is let go before it is removed.
    pub hooks: Hooks,
    pub job: Job,
    pub agent_v4: TcpListener,
    pub agent_v6: TcpListener,
    pub server_v4: TcpListener,
    pub server_v6: TcpListener,
}

impl Stage {
    pub fn new() -> Self {
        Self::with(&[], weir_ebpf::PENDING_ROOM)
    }

    pub fn with(own_ports: &[u16], pending_room: u32) -> Self {
        let job = Job::new();
        let (agent_v4, agent_v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        let hooks = Hooks::load(Plan { own_ports, pending_room, ..Plan::default() }).unwrap();
        lead_to(&hooks, &agent_v4, &agent_v6);
        select(&hooks, &job.cgroup);
        hooks.attach(job.cgroup.path()).unwrap();
        Self {
            hooks,
            job,
            agent_v4,
            agent_v6,
            server_v4: listen("127.0.0.1:0"),
            server_v6: listen("[::1]:0"),
        }
    }

    /// Accepts one connection as the agent would. The stream must be kept for as long as the client wants it.
    pub fn accept(&self, listener: &TcpListener) -> (TcpStream, Option<Origin>) {
        let (stream, peer) = accept(listener);
        (stream, self.take(peer))
    }

    /// Takes the origin of the connection from `peer`.
    pub fn take(&self, peer: SocketAddr) -> Option<Origin> {
        self.hooks.take_origin(self.hooks.netns_cookie(), peer).unwrap()
    }

    pub fn counts(&self) -> Counts {
        self.hooks.counts().unwrap()
    }
}

/// Leads what is selected to these listeners.
pub fn lead_to(hooks: &Hooks, agent_v4: &TcpListener, agent_v6: &TcpListener) {
    for listener in [agent_v4, agent_v6] {
        hooks.mark_listener(listener.as_fd()).unwrap();
    }
    hooks.listen(hooks.netns_cookie(), v4(agent_v4), v6(agent_v6)).unwrap();
}

/// Selects a cgroup right below the root, as these tests make them, and those below.
pub fn select(hooks: &Hooks, cgroup: &Cgroup) {
    let job = cgroup.id().unwrap();
    hooks.select_cgroup(job, Selected { job, flags: 0, reserved: 0 }).unwrap();
    hooks.change_settings(|settings| settings.cgroup_levels = Settings::pack_levels([1]).unwrap()).unwrap();
}

/// A cgroup, and processes in it.
pub struct Job {
    pub cgroup: Cgroup,
}

impl Job {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { cgroup: Cgroup::create(name).expect("these tests need root and a cgroup2 hierarchy") }
    }

    pub fn start(&self, script: &str) -> Process {
        let join =
            format!("open({:?}, 'w').write(str(os.getpid()))\n", self.cgroup.path().join("cgroup.procs"));
        Process::start(&format!("{PRELUDE}{join}{script}"))
    }

    /// Runs a script to its end and gives the lines that it said.
    pub fn run(&self, script: &str) -> Vec<String> {
        self.start(script).finish()
    }

    /// What `attempt` says of a connect to this address.
    pub fn attempt(&self, address: &str, port: u16) -> String {
        self.run(&format!("say(attempt('{address}', {port}))")).concat()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // So that the removal which follows finds nobody in it.
        let _ = self.cgroup.kill(PATIENCE);
    }
}

/// A running script.
pub struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    /// One that joins no cgroup.
    pub fn outside(script: &str) -> Self {
        Self::start(&format!("{PRELUDE}{script}"))
    }

    fn start(script: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("these tests need python3");
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the script ended before it said what was awaited");
        line.trim_end().to_owned()
    }

    /// Lets it go on from `wait()`.
    pub fn go_on(&mut self) {
        self.to.write_all(b"\n").unwrap();
    }

    pub fn finish(mut self) -> Vec<String> {
        // Not kept open for a script that still waits.
        drop(self.to);
        let lines: Vec<_> = self.from.lines().map(Result::unwrap).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the script ended with {status}; it said {lines:?}");
        lines
    }
}

pub fn listen(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    // A longer queue than the standard library's 128, past which a SYN is dropped and sent again a second later.
    nix::sys::socket::listen(&listener, Backlog::MAXCONN).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// An address at which nobody listens any more.
pub fn silent(address: &str) -> SocketAddr {
    listen(address).local_addr().unwrap()
}

pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let millis = i32::try_from(PATIENCE.as_millis()).unwrap();
    let timeout = PollTimeout::try_from(millis).unwrap();
    let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
    assert_eq!(ready, 1, "no connection came to {:?}", listener.local_addr());
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, peer)
}

/// Nobody is waiting to be accepted.
pub fn is_idle(listener: &TcpListener) -> bool {
    poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 0
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

pub fn v4(listener: &TcpListener) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(listener))
}

pub fn v6(listener: &TcpListener) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::LOCALHOST, port(listener), 0, 0)
}
