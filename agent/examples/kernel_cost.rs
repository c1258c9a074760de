//! Measures what the hooks and lineage cost the processes below them. Run by `cargo xtask bench kernel`, which judges.
//!
//! Enters: how many rounds. Leaves: one JSON document on stdout with the times of each round, in nanoseconds. Needs root;
//! attaches to a cgroup of its own alone, connects over loopback alone, and removes what it made.
//!
//! What is timed, each time twice close together in one round, without Weir and with it (which of them comes first alternates;
//! without means that nothing of Weir is loaded at all):
//! - `connection`: a whole connection over loopback as a client has it: socket(2), connect(2), the end of what it sends, the other
//!   end's close, close(2). The other end is a process of its own, on the same processor: it accepts, reads until the end, closes;
//! - `bare`: the least that a connection can be: one process that makes both ends, and resets it. No switch between processes, and
//!   no orderly end; what the hooks add is the same, and weighs more;
//! - `connect`: connect(2) alone, blocking, until it returns with the connection established;
//! - `process`: from the start of `/bin/true` (fork and exec) until it is waited for, by a process of its own: the descriptors of
//!   Weir's tables and programs are the agent's, and none of them is a job's to copy and to close.
//!
//! Without what the agent does of its own (taking the origin). A time is the median of a batch, so that a batch is not spoilt by
//! what else the machine does in one of its moments.

use std::{
    cell::RefCell,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use weir::{
    cgroup::Cgroup,
    kernel::{Connects, Destination, Hooks, Plan, TaskEvents, cost::Measuring},
};
use weir_ebpf::{Selected, Settings, action};

/// Connections, and processes, in one batch; before them a tenth of that to warm up.
const CONNECTIONS: usize = 1500;
const PROCESSES: usize = 300;

/// The argument with which this program is the other end of connections.
const SERVE: &str = "serve";
/// With which it starts processes, and says how long each took.
const START: &str = "start";

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some(SERVE) => return serve(),
        Some(START) => return start(),
        _ => {}
    }
    let rounds: usize = std::env::args().nth(1).context("say how many rounds")?.parse()?;
    let processor = stay_on_one_processor()?;
    let place = Place::new()?;
    let measured = measure(&place, rounds);
    place.leave()?;
    let (rounds, programs) = measured?;
    println!("{}", json!({ "processor": processor, "rounds": rounds, "programs": programs }));
    Ok(())
}

/// The cgroups, and who listens.
struct Place {
    before: String,
    /// Has the hooks.
    attached: Cgroup,
    selected: Cgroup,
    /// Below the hooks, and not selected.
    beside: Cgroup,
    level: usize,
    /// Another process is at the other end of these.
    served: Ends,
    /// And this one of these.
    bare: Ends,
    agent_v6: TcpListener,
    starter: RefCell<Starter>,
}

/// A process that starts others when it is told to. It ends with its owner.
struct Starter {
    process: Served,
    told: ChildStdin,
    answers: ChildStdout,
}

/// Who listens: where the client wants to go, and in the agent's place.
struct Ends {
    server: TcpListener,
    agent: TcpListener,
    servers: Vec<Served>,
}

/// A process at the other end, which ends with its owner.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a batch is of.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    Redirected,
    Passed,
    Unselected,
    ForkExec,
}

/// What is not selected goes first: a process that was in a selected cgroup stays tagged wherever it goes.
const CASES: [(Case, &str); 4] = [
    (Case::Unselected, "unselected"),
    (Case::Redirected, "redirected"),
    (Case::Passed, "passed"),
    (Case::ForkExec, "fork_exec"),
];

/// The medians of a batch, by [`TIMED`]. For processes all are the same.
type Times = [u64; 3];
const TIMED: [&str; 3] = ["connection", "bare", "connect"];

fn measure(place: &Place, rounds: usize) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut told = Vec::new();
    for round in 0..rounds {
        let mut all = serde_json::Map::new();
        let without_first = round % 2 == 0;
        let mut with = if without_first { None } else { Some(with_weir(place)?) };
        let without = without_weir(place)?;
        if without_first {
            with = Some(with_weir(place)?);
        }
        // Once more, so that the noise can be told: the same against the same.
        let again = without_weir(place)?;
        let with = with.context("no batch with Weir")?;
        for (n, (_, name)) in CASES.into_iter().enumerate() {
            let of = |times: &[Times; 4]| -> Value {
                TIMED.iter().zip(times[n]).map(|(timed, nanos)| ((*timed).to_owned(), json!(nanos))).collect()
            };
            all.insert(
                name.to_owned(),
                json!({ "without": of(&without), "with": of(&with), "again": of(&again) }),
            );
        }
        told.push(Value::Object(all));
        eprintln!("round {} of {rounds}", round + 1);
    }
    Ok((told, program_times(place)?))
}

fn without_weir(place: &Place) -> Result<[Times; 4]> {
    let mut all = [[0; 3]; 4];
    for (times, (case, _)) in all.iter_mut().zip(CASES) {
        place.join(case)?;
        *times = place.both(case, None)?;
    }
    Ok(all)
}

fn with_weir(place: &Place) -> Result<[Times; 4]> {
    let mut weir = Weir::begin(place)?;
    let mut all = [[0; 3]; 4];
    for (times, (case, _)) in all.iter_mut().zip(CASES) {
        weir.set(place, case)?;
        place.join(case)?;
        *times = place.both(case, Some(&mut weir))?;
    }
    weir.check(place)?;
    Ok(all)
}

/// By the kernel's own clock, in batches of their own, since that clock costs time as well.
fn program_times(place: &Place) -> Result<Vec<Value>> {
    let mut told = Vec::new();
    for (case, name) in CASES {
        let mut weir = Weir::begin(place)?;
        weir.set(place, case)?;
        place.join(case)?;
        let measuring = Measuring::begin()?;
        place.both(case, Some(&mut weir))?;
        drop(measuring);
        for cost in weir.hooks.costs().into_iter().filter(|cost| cost.runs > 0) {
            let nanos = cost.time.as_nanos() as u64;
            told.push(json!({ "case": name, "program": cost.program, "runs": cost.runs, "ns_each": nanos / cost.runs }));
        }
    }
    Ok(told)
}

/// Weir's kernel side as an agent has it, with this process in the agent's place.
struct Weir {
    hooks: Hooks,
    connects: Connects,
    tasks: TaskEvents,
}

impl Weir {
    fn begin(place: &Place) -> Result<Self> {
        // The tag of a process is given as it comes into a selected cgroup: from outside.
        place.attached.add(Pid::this())?;
        place.attached.add(place.starter.borrow().pid()?)?;
        let hooks = Hooks::load(Plan::default())?;
        for listener in [&place.served.agent, &place.bare.agent, &place.agent_v6] {
            hooks.mark_listener(listener.as_fd())?;
        }
        let job = place.selected.id()?;
        hooks.select_cgroup(job, Selected { job, flags: 0, reserved: 0 })?;
        let levels = Settings::pack_levels([place.level]).context("too deep a cgroup")?;
        hooks.change_settings(|settings| settings.cgroup_levels = levels)?;
        let connects = hooks.connects().context("the ring of connects")?;
        let tasks = hooks.task_events()?.context("the ring of processes")?;
        hooks.attach(place.attached.path())?;
        Ok(Self { hooks, connects, tasks })
    }

    fn set(&self, place: &Place, case: Case) -> Result<()> {
        let action = if case == Case::Passed { action::PASS } else { action::INTERCEPT };
        let destination = |ends: &Ends| -> Result<Destination> {
            let port = ends.server.local_addr()?.port();
            Ok(Destination { network: "127.0.0.1/32".parse()?, port, action })
        };
        self.hooks.set_destinations(&[destination(&place.served)?, destination(&place.bare)?])?;
        Ok(())
    }

    /// Who is in the agent's place.
    fn lead_to(&self, place: &Place, ends: &Ends) -> Result<()> {
        let v4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ends.agent.local_addr()?.port());
        let v6 = SocketAddrV6::new("::1".parse()?, place.agent_v6.local_addr()?.port(), 0, 0);
        Ok(self.hooks.listen(self.hooks.netns_cookie(), v4, v6)?)
    }

    /// What the agent takes and reads every few milliseconds, and records.
    fn catch_up(&mut self) -> Result<()> {
        for origin in self.hooks.sweep_pending(Duration::ZERO)? {
            self.hooks.recorded(&origin)?;
        }
        while let Some(origin) = self.connects.take(&self.hooks)? {
            self.hooks.recorded(&origin)?;
        }
        while self.tasks.take().is_some() {}
        Ok(())
    }

    /// Each connect took the way that it was measured for.
    fn check(&self, place: &Place) -> Result<()> {
        let counts = self.hooks.counts()?;
        let each = 2 * (CONNECTIONS + CONNECTIONS / 10) as u64;
        ensure!(counts.redirected == each, "{} of {each} connects were redirected", counts.redirected);
        ensure!(counts.passed == each, "{} of {each} connects were passed", counts.passed);
        ensure!(
            counts.refused + counts.failed + counts.lost == 0,
            "connects were refused or not told: {counts:?}"
        );
        ensure!(self.hooks.jobs()?.contains_key(&place.selected.id()?), "the job is not accounted for");
        Ok(())
    }
}

impl Place {
    fn new() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let before = own.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup2 hierarchy")?;
        let name = format!("weir-bench-{}", std::process::id());
        let listen = |address: &str| -> Result<TcpListener> {
            let listener = TcpListener::bind(address)?;
            nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
            Ok(listener)
        };
        // Made out here: a socket belongs to the cgroup in which it is made.
        let mut served =
            Ends { server: listen("127.0.0.1:0")?, agent: listen("127.0.0.1:0")?, servers: Vec::new() };
        for listener in [&served.server, &served.agent] {
            let inherited: OwnedFd = listener.try_clone()?.into();
            let server =
                Command::new(std::env::current_exe()?).arg(SERVE).stdin(Stdio::from(inherited)).spawn()?;
            served.servers.push(Served(server));
        }
        let bare =
            Ends { server: listen("127.0.0.1:0")?, agent: listen("127.0.0.1:0")?, servers: Vec::new() };
        // A connect has returned before: what is not there to be accepted went elsewhere.
        bare.server.set_nonblocking(true)?;
        bare.agent.set_nonblocking(true)?;
        let agent_v6 = listen("[::1]:0")?;
        let starter = RefCell::new(Starter::new()?);
        let attached = Cgroup::create(&name)?;
        let selected = Cgroup::create(format!("{name}/selected"))?;
        let beside = Cgroup::create(format!("{name}/beside"))?;
        Ok(Self {
            before: before.to_owned(),
            attached,
            selected,
            beside,
            level: 2,
            served,
            bare,
            agent_v6,
            starter,
        })
    }

    fn join(&self, case: Case) -> Result<()> {
        let cgroup = if case == Case::Unselected { &self.beside } else { &self.selected };
        cgroup.add(self.starter.borrow().pid()?)?;
        Ok(cgroup.add(Pid::this())?)
    }

    fn leave(self) -> Result<()> {
        let before =
            weir::cgroup::mount_point()?.join(self.before.trim_start_matches('/')).join("cgroup.procs");
        fs::write(before, std::process::id().to_string())?;
        drop(self.starter);
        self.selected.remove()?;
        self.beside.remove()?;
        Ok(self.attached.remove()?)
    }

    /// By [`TIMED`].
    fn both(&self, case: Case, mut weir: Option<&mut Weir>) -> Result<Times> {
        if case == Case::ForkExec {
            let [process, _] =
                self.batch(PROCESSES, weir, || Ok([self.starter.borrow_mut().process()?; 2]))?;
            return Ok([process; 3]);
        }
        let leads = |weir: &Option<&mut Weir>, ends| match weir {
            Some(weir) => weir.lead_to(self, ends),
            None => Ok(()),
        };
        leads(&weir, &self.served)?;
        let [connection, connect] = self.batch(CONNECTIONS, weir.as_deref_mut(), || served(&self.served))?;
        leads(&weir, &self.bare)?;
        let is_led = weir.is_some() && case == Case::Redirected;
        let [bare, _] = self.batch(CONNECTIONS, weir, || Ok([bare(&self.bare, is_led)?; 2]))?;
        Ok([connection, bare, connect])
    }

    /// The medians.
    fn batch(
        &self,
        number: usize,
        mut weir: Option<&mut Weir>,
        mut timed: impl FnMut() -> Result<[Duration; 2]>,
    ) -> Result<[u64; 2]> {
        let mut batch: [Vec<Duration>; 2] = Default::default();
        for n in 0..number + number / 10 {
            let times = timed()?;
            if n >= number / 10 {
                batch.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
            }
            if let Some(weir) = weir.as_deref_mut().filter(|_| n % 64 == 63) {
                weir.catch_up()?;
            }
        }
        if let Some(weir) = weir {
            weir.catch_up()?;
        }
        let [first, second] = batch;
        Ok([median(first)?, median(second)?])
    }
}

/// One connection to another process, and of it the connect alone.
fn served(ends: &Ends) -> Result<[Duration; 2]> {
    let server = SockaddrIn::new(127, 0, 0, 1, ends.server.local_addr()?.port());
    let began = Instant::now();
    let client: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let made = Instant::now();
    connect(client.as_raw_fd(), &server)?;
    let connected = Instant::now();
    let mut client = TcpStream::from(client);
    client.shutdown(Shutdown::Write)?;
    ensure!(client.read(&mut [0])? == 0, "the other end said something");
    drop(client);
    Ok([began.elapsed(), connected - made])
}

/// One connection that this process has both ends of. With `is_led` it comes in where the agent listens.
fn bare(ends: &Ends, is_led: bool) -> Result<Duration> {
    let server = SockaddrIn::new(127, 0, 0, 1, ends.server.local_addr()?.port());
    let listener = if is_led { &ends.agent } else { &ends.server };
    let began = Instant::now();
    let client: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(client.as_raw_fd(), &server)?;
    let (accepted, _) = listener.accept().context("a connection went elsewhere")?;
    reset(accepted)?;
    drop(client);
    Ok(began.elapsed())
}

/// The other end: accepts at the listener that is its standard input, reads until the end, closes.
fn serve() -> Result<()> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    loop {
        let (mut accepted, _) = listener.accept()?;
        // A client that is gone already is no fault of this end.
        let _ = accepted.read(&mut [0; 64]);
    }
}

/// Ends it without the minute in which a port is not used again.
fn reset(accepted: TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(&accepted, sockopt::Linger, &linger)?)
}

impl Starter {
    fn new() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = command.arg(START).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let told = process.stdin.take().context("no way to the process that starts others")?;
        let answers = process.stdout.take().context("no way back from the process that starts others")?;
        Ok(Self { process: Served(process), told, answers })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process.0.id())?))
    }

    /// Has it start one, and wait for its end.
    fn process(&mut self) -> Result<Duration> {
        self.told.write_all(&[1])?;
        let mut took = [0; size_of::<u64>()];
        self.answers.read_exact(&mut took).context("the process that starts others is gone")?;
        Ok(Duration::from_nanos(u64::from_ne_bytes(took)))
    }
}

/// Starts a process for each byte that it is told, and answers with the nanoseconds that it took.
fn start() -> Result<()> {
    let mut told = std::io::stdin();
    let mut answers = std::io::stdout();
    while told.read(&mut [0])? == 1 {
        let took = u64::try_from(process()?.as_nanos())?;
        answers.write_all(&took.to_ne_bytes())?;
        answers.flush()?;
    }
    Ok(())
}

/// One process.
fn process() -> Result<Duration> {
    let began = Instant::now();
    let ended = Command::new("/bin/true").status()?;
    let took = began.elapsed();
    ensure!(ended.success(), "/bin/true ended with {ended}");
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Result<u64> {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).context("an empty batch")?;
    Ok(u64::try_from(middle.as_nanos())?)
}

/// The last one that is ours: loopback is served by whom it is used by.
fn stay_on_one_processor() -> Result<usize> {
    let ours = sched_getaffinity(Pid::this())?;
    let last =
        (0..CpuSet::count()).rev().find(|n| ours.is_set(*n).unwrap_or(false)).context("no processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(Pid::this(), &one)?;
    Ok(last)
}
