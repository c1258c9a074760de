//! The kernel room: load the programs, attach them to cgroups, and take the origins of redirected connections.
//!
//! Enters: the agent's listeners, Weir's own ports, cgroups to select, the peers of accepted connections. Leaves: an
//! [`Origin`] for each connection that the hooks led here. Must never: let another room see aya, or make
//! an origin up: a peer without one is refused by its caller.

mod books;
mod btf;
mod connects;
pub mod cost;
mod guard;
mod held;
mod host;
pub mod link;
mod origin;
mod pending;
pub mod pins;
mod rules;
mod syscall;
mod tables;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError, SkStorage},
    programs::{Program, ProgramError, ProgramFd},
};
use weir_ebpf::{CGROUPS_ROOM, OWN_PORTS_ROOM, PENDING_ROOM, TAKEN_ROOM, action};

pub use self::{
    books::Counts,
    connects::Connects,
    guard::Changed,
    held::{Slot, Waiting, WaitingConnects},
    origin::Origin,
    tables::Destination,
    tasks::{TaskEvents, Told},
};
use self::{
    held::Held,
    link::{AttachType, Link, Tampering},
    pending::{Pending, Taken},
    pins::Pins,
    tables::Tables,
};
use crate::{
    cgroup::{self, CgroupError},
    random,
};

/// Built by `cargo xtask ebpf` out of `agent-ebpf/`, and committed.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../agent-ebpf/weir-ebpf.o");

/// In the order in which they are attached: what hands over and what tags goes before what redirects.
const PROGRAMS: [(&str, AttachType); 9] = [
    ("weir_sockops", AttachType::SockOps),
    ("weir_sock_create", AttachType::InetSockCreate),
    ("weir_sock_release", AttachType::SockRelease),
    ("weir_getpeername4", AttachType::Getpeername4),
    ("weir_getpeername6", AttachType::Getpeername6),
    ("weir_sendmsg4", AttachType::Sendmsg4),
    ("weir_sendmsg6", AttachType::Sendmsg6),
    ("weir_connect4", AttachType::Connect4),
    ("weir_connect6", AttachType::Connect6),
];

/// What is pinned besides the links.
const TABLES: [&str; 21] = [
    "SETTINGS",
    "TASKS",
    "CGROUPS",
    "EXECUTABLES",
    "USERS",
    "JOBS",
    "DESTINATIONS",
    "NETNS",
    "OWN_PORTS",
    "EXEMPT",
    "SOCKETS",
    "ORIGINS",
    "PENDING",
    "TAKEN",
    "CONNECTS",
    "TASK_EVENTS",
    "COUNTS",
    "LOST_TOLD",
    "HELD",
    "WAITING",
    "REACHED",
];

/// The error of a connect for which there is no agent, unless the operator chose another.
const ECONNREFUSED: u32 = 111;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("missing {missing}: run weir as root, or give it these capabilities as weir-agent.service does")]
    Privilege { missing: String },
    #[error("this kernel is {release:?}, and Weir needs Linux 6.1 or newer")]
    TooOld { release: String },
    #[error(
        "this kernel has no {what}: boot one with CONFIG_BPF_SYSCALL=y, CONFIG_CGROUP_BPF=y and CONFIG_INET=y, of Linux 6.1 or newer"
    )]
    NoFeature { what: String },
    #[error("this kernel has no type information at {}: boot one built with CONFIG_DEBUG_INFO_BTF=y", .0.display())]
    NoBtf(PathBuf),
    #[error("cannot read where this kernel keeps its fields, in {}: {reason}; Weir needs Linux 6.1 or newer", file.display())]
    Layout { file: PathBuf, reason: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Pins(#[from] pins::PinError),
    #[error("cgroups {} and {} lie one inside the other: select only one of them", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    #[error("{0} ports to protect, and there is room for {OWN_PORTS_ROOM}: name fewer of them")]
    TooManyPorts(usize),
    #[error("the kernel refused {what}: {source}; Weir needs Linux 6.1 or newer{log}")]
    Load { what: String, source: io::Error, log: String },
    #[error("cannot {doing}: {source}")]
    Table { doing: &'static str, source: io::Error },
}

/// What the hooks need from the start.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where tables and links are pinned, so that they outlive the agent. None: they die with it.
    pub pins: Option<Pins>,
    /// What selected processes may not reach on this host.
    pub own_ports: &'a [u16],
    /// How many connections may wait to be accepted.
    pub pending_room: u32,
    /// How many may be owed a record.
    pub taken_room: u32,
    /// How many cgroups may be selected.
    pub cgroups_room: u32,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            pins: None,
            own_ports: &[],
            pending_room: PENDING_ROOM,
            taken_room: TAKEN_ROOM,
            cgroups_room: CGROUPS_ROOM,
        }
    }
}

/// The loaded programs, and their tables. Without pins, dropping them, or the death of the process, detaches all of them.
pub struct Hooks {
    // Dropped in this order: first the links, so that nothing is redirected without a hand-over.
    attached: Mutex<BTreeMap<PathBuf, Links>>,
    /// Of the programs that follow processes, wherever they are.
    tracing: Mutex<Links>,
    programs: Mutex<Ebpf>,
    exempt: Mutex<SkStorage<MapData, u32>>,
    tables: Mutex<Tables>,
    pending: Pending,
    taken: Mutex<Taken>,
    connects: Mutex<Option<Map>>,
    held: Mutex<Held>,
    waiting: Mutex<Option<Map>>,
    task_events: Mutex<Option<Map>>,
    socket_fault: Option<String>,
    cgroups_room: usize,
    pins: Option<Pins>,
    /// Whether the tables are this agent's alone.
    guarding: AtomicBool,
    netns_cookie: u64,
    epoch: u64,
}

/// The links of one cgroup, in the order in which they were made.
type Links = Vec<Link>;

/// Looks whether this host and this process could load the programs and attach them, before anything is made or opened.
pub fn check_host() -> Result<(), KernelError> {
    host::check()?;
    cgroup::mount_point()?;
    Ok(())
}

/// Whether this process may listen in network namespaces other than its own.
pub fn may_enter_namespaces() -> bool {
    host::may_enter_namespaces()
}

impl Hooks {
    /// Loads the programs, with new tables or those that are pinned. Nothing is selected or redirected yet, unless pinned
    /// tables say so.
    pub fn load(plan: Plan<'_>) -> Result<Self, KernelError> {
        host::check()?;
        let mut loader = EbpfLoader::new();
        let layout = btf::layout()?;
        loader
            .map_max_entries("PENDING", plan.pending_room)
            .map_max_entries("TAKEN", plan.taken_room)
            .map_max_entries("CGROUPS", plan.cgroups_room)
            .override_global("OFFSETS", &layout.offsets, true)
            .override_global("MPTCP", &layout.mptcp, true);
        for table in plan.pins.iter().flat_map(|pins| TABLES.map(|table| (table, pins.map_path(table)))) {
            loader.map_pin_path(table.0, table.1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| refused("the tables", e))?;
        for (name, _) in PROGRAMS {
            load(&mut ebpf, name)?;
        }
        let socket_fault = tasks::load(&mut ebpf)?;
        // Only now: a table that is taken out before the programs hold it is closed.
        let mut tables = Tables::open(&mut ebpf)?;
        tables.protect(plan.own_ports)?;
        let netns_cookie = syscall::netns_cookie().map_err(cookie_unknown)?;
        let mut settings = tables.settings()?;
        settings.host_netns = netns_cookie;
        if settings.errno == 0 {
            settings.unknown = action::RELAY;
            settings.errno = ECONNREFUSED;
        }
        tables.set_settings(settings)?;
        Ok(Self {
            tracing: Mutex::new(match &plan.pins {
                Some(_) => Links::new(),
                None => tasks::attach(&ebpf, None, socket_fault.is_none())?,
            }),
            task_events: Mutex::new(Some(take(&mut ebpf, "TASK_EVENTS")?)),
            socket_fault,
            cgroups_room: plan.cgroups_room as usize,
            exempt: Mutex::new(SkStorage::try_from(take(&mut ebpf, "EXEMPT")?).map_err(unreadable)?),
            pending: Pending::open(take(&mut ebpf, "PENDING")?)?,
            taken: Mutex::new(Taken::open(take(&mut ebpf, "TAKEN")?, plan.taken_room as usize)?),
            connects: Mutex::new(Some(take(&mut ebpf, "CONNECTS")?)),
            held: Mutex::new(Held::open(&mut ebpf)?),
            waiting: Mutex::new(Some(held::ring(&mut ebpf)?)),
            tables: Mutex::new(tables),
            guarding: AtomicBool::new(true),
            netns_cookie,
            epoch: plan.pins.as_ref().map_or_else(|| u64::from_ne_bytes(random::bytes()), Pins::epoch),
            pins: plan.pins,
            attached: Mutex::new(BTreeMap::new()),
            programs: Mutex::new(ebpf),
        })
    }

    /// Attaches the hooks to a cgroup: from here on they see what the processes in it and below do. Whose connects are led
    /// to the agent is decided by what is selected.
    ///
    /// A cgroup above or below one that has the hooks already is refused: its connects would be led here twice.
    pub fn attach(&self, cgroup: &Path) -> Result<(), KernelError> {
        let cgroup = cgroup::resolve(cgroup)?;
        self.follow()?;
        let mut attached = lock(&self.attached);
        if attached.contains_key(&cgroup) {
            return Ok(());
        }
        if let Some(other) = attached.keys().find(|a| a.starts_with(&cgroup) || cgroup.starts_with(a)) {
            return Err(KernelError::Overlap(cgroup, other.clone()));
        }
        let folder = File::open(&cgroup).map_err(|source| CgroupError::Io {
            doing: "open",
            path: cgroup.clone(),
            source,
        })?;
        let ebpf = lock(&self.programs);
        let mut links = Links::new();
        for (name, attach_type) in PROGRAMS {
            let program = program(&ebpf, name)?;
            links.push(Link::attach(self.pins.as_ref(), name, program.as_fd(), attach_type, &folder)?);
        }
        attached.insert(cgroup, links);
        Ok(())
    }

    /// Attaches the programs that follow processes. Those that are pinned not before the hooks: an agent that this one is to
    /// replace watches over its own until then, and would take the new pins for somebody's meddling.
    fn follow(&self) -> Result<(), KernelError> {
        let mut tracing = lock(&self.tracing);
        if tracing.is_empty() {
            *tracing = tasks::attach(&lock(&self.programs), self.pins.as_ref(), self.socket_fault.is_none())?;
        }
        Ok(())
    }

    /// Lets a cgroup go. One that is not attached, or is gone, is no error.
    pub fn detach(&self, cgroup: &Path) {
        // A cgroup that was removed cannot be looked up any more.
        let cgroup = cgroup::resolve(cgroup).unwrap_or_else(|_| cgroup.to_owned());
        for link in lock(&self.attached).remove(&cgroup).into_iter().flatten() {
            if let Err(error) = link.detach() {
                tracing::debug!(%error, "a hook was gone already");
            }
        }
    }

    /// All cgroups are attached that should be: what an agent before this one, or another version, left elsewhere goes.
    pub fn settle(&self) -> Result<(), KernelError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let (attached, tracing) = (lock(&self.attached), lock(&self.tracing));
        let names: Vec<&str> = attached.values().flatten().chain(tracing.iter()).map(Link::name).collect();
        pins.keep_links(&names)?;
        Ok(pins.remove_other_layouts()?)
    }

    /// Looks whether somebody laid hands on a hook, and puts right what it finds; with the cgroup it belongs to, if any. A
    /// cgroup that is gone is let go.
    pub fn watch(&self) -> Result<Vec<(Option<PathBuf>, Tampering)>, KernelError> {
        let (mut found, mut gone) = (Vec::new(), BTreeSet::new());
        for (cgroup, links) in lock(&self.attached).iter_mut() {
            for link in links {
                match link.watch()? {
                    Some(Tampering { mended: Err(error), .. }) if error.is_cgroup_gone() => {
                        gone.insert(cgroup.clone());
                    }
                    Some(tampering) => found.push((Some(cgroup.clone()), tampering)),
                    None => {}
                }
            }
        }
        for link in lock(&self.tracing).iter_mut() {
            found.extend(link.watch()?.map(|tampering| (None, tampering)));
        }
        for cgroup in &gone {
            tracing::warn!(cgroup = %cgroup.display(), "a cgroup that the hooks were attached to is gone");
            self.detach(cgroup);
        }
        Ok(found)
    }

    /// Whoever holds it uses the folder of pins, if there is one.
    pub fn pins_lock(&self) -> Option<OwnedFd> {
        self.pins.as_ref().and_then(Pins::lock)
    }

    /// Another agent uses the folder of pins now.
    pub fn leave_pins(&self) {
        if let Some(pins) = &self.pins {
            pins.leave();
        }
    }

    /// How many cgroups can be selected.
    pub fn cgroups_room(&self) -> usize {
        self.cgroups_room
    }

    /// This process's own network namespace, as the hooks know it.
    pub fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// The network namespace of a socket.
    pub fn netns_cookie_of(socket: BorrowedFd<'_>) -> Result<u64, KernelError> {
        syscall::netns_cookie_of(socket).map_err(cookie_unknown)
    }

    /// Random, made with the tables: with it a job's number names the job for ever.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("attached", &lock(&self.attached).keys()).finish_non_exhaustive()
    }
}

/// The clock by which the kernel programs stamp what they tell.
pub fn since_boot() -> Duration {
    // It cannot fail for a clock that the kernel has.
    syscall::since_boot().unwrap_or_default()
}

/// What the kernel calls the protocol of a socket, by its link in `/proc/PID/fd`: `PACKET`, `XDP`, `TCPv6`.
pub fn socket_protocol(link: &Path) -> io::Result<String> {
    syscall::socket_protocol(link)
}

/// A loaded program.
fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a ProgramFd, KernelError> {
    let loaded = match ebpf.program(name) {
        Some(Program::CgroupSockAddr(program)) => program.fd(),
        Some(Program::CgroupSock(program)) => program.fd(),
        Some(Program::SockOps(program)) => program.fd(),
        Some(Program::BtfTracePoint(program)) => program.fd(),
        Some(Program::FExit(program)) => program.fd(),
        _ => Err(ProgramError::NotLoaded),
    };
    loaded.map_err(|e| refused(name, e.into()))
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<(), KernelError> {
    let loaded = match ebpf.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => program.load(),
        Some(Program::CgroupSock(program)) => program.load(),
        Some(Program::SockOps(program)) => program.load(),
        _ => Err(ProgramError::NotLoaded),
    };
    loaded.map_err(|e| refused(name, e.into()))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or_else(|| KernelError::Table {
        doing: "find a table in the kernel object",
        source: io::Error::new(io::ErrorKind::NotFound, name.to_owned()),
    })
}

/// The lines of the verifier that say why, which are its last.
fn refused(what: &str, error: EbpfError) -> KernelError {
    const LINES: usize = 5;
    const STATISTICS: [&str; 4] = ["processed ", "subprog ", "verification time ", "stack depth "];
    let mut said = String::new();
    if let EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. }) = &error {
        let log = verifier_log.to_string();
        // Newer kernels end with what they counted.
        let is_count = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
        let lines: Vec<&str> =
            log.lines().map(str::trim).filter(|line| !line.is_empty() && !is_count(line)).collect();
        let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
        if !last.is_empty() {
            said = format!("; the verifier says: {}", last.join(" | "));
        }
    }
    let source = match error {
        EbpfError::ProgramError(e) => io_error(e),
        EbpfError::MapError(e) => io_error(e.into()),
        other => io::Error::other(other),
    };
    KernelError::Load { what: what.to_owned(), source, log: said }
}

fn unreadable(error: MapError) -> KernelError {
    KernelError::Table { doing: "use a kernel table", source: io_error(error.into()) }
}

/// Whether an entry is not there, however aya says it.
fn lookup_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(e) => e.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn cookie_unknown(source: io::Error) -> KernelError {
    KernelError::Table { doing: "read a network namespace's cookie", source }
}

/// The system's own error, where there is one in aya's.
fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error,
        ProgramError::SyscallError(e) => e.io_error,
        ProgramError::MapError(MapError::CreateError { io_error, .. } | MapError::IoError(io_error)) => {
            io_error
        }
        ProgramError::MapError(MapError::SyscallError(e)) => e.io_error,
        other => io::Error::other(other),
    }
}

/// What these locks guard stays whole when a thread panics with one in hand.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
