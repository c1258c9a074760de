//! The kernel room: load the programs, attach them to cgroups, and take the origins of redirected connections.
//!
//! Enters: the agent's listeners, Weir's own ports, cgroups to select, the peers of accepted connections. Leaves: an
//! [`Origin`] for each connection that the hooks led here. Must never: pin anything (hooks die with the process), let
//! another room see aya, or make an origin up: a peer without one is refused by its caller.

mod host;
pub mod link;
mod pending;
pub mod pins;
mod syscall;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, SkStorage},
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError, SockOps, cgroup_sock_addr::CgroupSockAddrLink,
        sock_ops::SockOpsLink,
    },
};
use weir_ebpf::{FlowKey, FlowOrigin, Listeners, OWN_PORTS_ROOM, PENDING_ROOM, address, counter};

use self::pending::Pending;
use crate::cgroup::{self, CgroupError};

/// Built by `cargo xtask ebpf` out of `agent-ebpf/`, and committed.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../agent-ebpf/weir-ebpf.o");

const CONNECT4: &str = "weir_connect4";
const CONNECT6: &str = "weir_connect6";
const SOCKOPS: &str = "weir_sockops";

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("missing {missing}: run weir as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Privilege { missing: String },
    #[error("this kernel has no type information at {}: boot one built with CONFIG_DEBUG_INFO_BTF=y", .0.display())]
    NoBtf(PathBuf),
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
    #[error("cannot attach {what} to cgroup {}: {source}; is a program attached there that allows no other?", cgroup.display())]
    Attach { what: &'static str, cgroup: PathBuf, source: io::Error },
    #[error("cannot {doing}: {source}")]
    Table { doing: &'static str, source: io::Error },
}

/// Where a redirected connection was meant to go, and who made it, as the kernel saw it at `connect(2)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// A v4-mapped address is given as IPv4, and the unspecified address as the loopback that it stands for.
    pub destination: SocketAddr,
    /// In the initial pid namespace.
    pub tgid: u32,
    pub tid: u32,
    /// In the initial user namespace.
    pub uid: u32,
    pub gid: u32,
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    /// Since boot (CLOCK_BOOTTIME), to be compared with the start time in `/proc/PID/stat`.
    pub connected_at: Duration,
    /// The name that the thread gave itself: for display alone.
    pub comm: String,
}

/// What became of the TCP connects of selected cgroups. Each is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Led to the agent.
    pub redirected: u64,
    /// Left alone: the agent's own sockets.
    pub passed: u64,
    /// Refused (EPERM): Weir's own ports.
    pub refused: u64,
    /// Refused (ECONNREFUSED) as they would have been without Weir: a loopback port at which nobody listens.
    pub unanswered: u64,
    /// Refused since their origin could not be kept: no memory, or too many connections not yet accepted.
    pub failed: u64,
}

/// The loaded programs. Dropping them, or the death of the process, detaches all of them.
pub struct Hooks {
    // Dropped in this order: first the links, so that nothing is redirected without a hand-over.
    attached: Mutex<BTreeMap<PathBuf, Links>>,
    programs: Mutex<Ebpf>,
    exempt: Mutex<SkStorage<MapData, u32>>,
    pending: Pending,
    counts: PerCpuArray<MapData, u64>,
    netns_cookie: u64,
}

/// Dropped in this order, see [`Hooks`].
#[derive(Debug)]
struct Links {
    _connect4: CgroupSockAddrLink,
    _connect6: CgroupSockAddrLink,
    _sock_ops: SockOpsLink,
}

/// Looks whether this host and this process could load the programs and attach them, before anything is made or opened.
pub fn check_host() -> Result<(), KernelError> {
    host::check()?;
    cgroup::mount_point()?;
    Ok(())
}

impl Hooks {
    /// Loads the programs. Nothing is redirected before [`Hooks::attach`].
    ///
    /// `own_ports` are what selected cgroups may not reach on this host, besides the two listeners' own.
    pub fn load(own_ports: &[u16], v4: SocketAddrV4, v6: SocketAddrV6) -> Result<Self, KernelError> {
        Self::load_with_room(own_ports, v4, v6, PENDING_ROOM)
    }

    /// The same with room for another number of connections that the agent has not yet accepted.
    pub fn load_with_room(
        own_ports: &[u16],
        v4: SocketAddrV4,
        v6: SocketAddrV6,
        pending_room: u32,
    ) -> Result<Self, KernelError> {
        host::check()?;
        let listeners =
            Listeners { v6: v6.ip().octets(), v4: v4.ip().octets(), v6_port: v6.port(), v4_port: v4.port() };
        let mut ebpf = EbpfLoader::new()
            .override_global("LISTENERS", &listeners, true)
            .map_max_entries("PENDING", pending_room)
            .load(OBJECT)
            .map_err(|e| refused("the tables", e))?;
        for name in [CONNECT4, CONNECT6] {
            sock_addr(&mut ebpf, name).and_then(CgroupSockAddr::load).map_err(|e| refused(name, e.into()))?;
        }
        sock_ops(&mut ebpf).and_then(SockOps::load).map_err(|e| refused(SOCKOPS, e.into()))?;
        // Only now: a table that is taken out before the programs hold it is closed.
        protect(&mut ebpf, own_ports.iter().copied().chain([v4.port(), v6.port()]))?;
        Ok(Self {
            exempt: Mutex::new(SkStorage::try_from(take(&mut ebpf, "EXEMPT")?).map_err(unreadable)?),
            pending: Pending::open(take(&mut ebpf, "PENDING")?)?,
            counts: PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?).map_err(unreadable)?,
            netns_cookie: syscall::netns_cookie().map_err(|source| KernelError::Table {
                doing: "read this network namespace's cookie",
                source,
            })?,
            attached: Mutex::new(BTreeMap::new()),
            programs: Mutex::new(ebpf),
        })
    }

    /// Selects a cgroup, and with it all those below. From here on its TCP connects are led to the agent.
    ///
    /// A cgroup above or below one that is selected already is refused: its connects would be led here twice.
    pub fn attach(&self, cgroup: &Path) -> Result<(), KernelError> {
        let cgroup = cgroup::resolve(cgroup)?;
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
        let failed = |what| {
            let cgroup = cgroup.clone();
            move |e| KernelError::Attach { what, cgroup, source: io_error(e) }
        };
        let mut ebpf = lock(&self.programs);
        // With bpf links `Single` lets other programs be attached beside these; `AllowMultiple` is EINVAL.
        let mode = CgroupAttachMode::Single;
        let _sock_ops = sock_ops(&mut ebpf)
            .and_then(|program| program.attach(&folder, mode).and_then(|id| program.take_link(id)))
            .map_err(failed(SOCKOPS))?;
        let mut connect = |name| {
            sock_addr(&mut ebpf, name)
                .and_then(|program| program.attach(&folder, mode).and_then(|id| program.take_link(id)))
                .map_err(failed(name))
        };
        let links = Links { _connect4: connect(CONNECT4)?, _connect6: connect(CONNECT6)?, _sock_ops };
        attached.insert(cgroup, links);
        Ok(())
    }

    /// Lets a cgroup go. One that is not attached, or is gone, is no error.
    pub fn detach(&self, cgroup: &Path) {
        // A cgroup that was removed cannot be looked up any more.
        let cgroup = cgroup::resolve(cgroup).unwrap_or_else(|_| cgroup.to_owned());
        lock(&self.attached).remove(&cgroup);
    }

    /// Takes the origin of the connection that came in from `peer`. None: the hooks did not lead it here, or it was
    /// taken already; whoever it is, it must be refused.
    pub fn take_origin(&self, peer: SocketAddr) -> Result<Option<Origin>, KernelError> {
        let source = match peer.ip() {
            IpAddr::V4(v4) => address::mapped(v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        };
        Ok(self.pending.take(&FlowKey::new(self.netns_cookie, source, peer.port()))?.map(Origin::from))
    }

    /// Marks one of the agent's own sockets: wherever it connects to, it is left alone. To be called before `connect`.
    pub fn exempt(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        lock(&self.exempt).insert(&socket, 1, 0).map_err(|e| KernelError::Table {
            doing: "mark the agent's own socket",
            source: io_error(e.into()),
        })
    }

    pub fn counts(&self) -> Result<Counts, KernelError> {
        let sum = |slot: u32| -> Result<u64, KernelError> {
            let per_cpu = self.counts.get(&slot, 0).map_err(unreadable)?;
            Ok(per_cpu.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n)))
        };
        Ok(Counts {
            redirected: sum(counter::REDIRECTED)?,
            passed: sum(counter::PASSED)?,
            refused: sum(counter::REFUSED)?,
            unanswered: sum(counter::UNANSWERED)?,
            failed: sum(counter::FAILED)?,
        })
    }

    /// How many redirected connections the agent has not yet taken.
    pub fn pending(&self) -> Result<usize, KernelError> {
        self.pending.len()
    }

    /// Removes the origins of connects made longer ago than this, whose connections never came; says how many.
    pub fn sweep_pending(&self, older_than: Duration) -> Result<usize, KernelError> {
        self.pending.sweep(older_than)
    }
}

impl From<FlowOrigin> for Origin {
    fn from(flow: FlowOrigin) -> Self {
        let ip = Ipv6Addr::from(flow.destination).to_canonical();
        let name = flow.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            destination: SocketAddr::new(ip, flow.destination_port),
            tgid: flow.tgid,
            tid: flow.tid,
            uid: flow.uid,
            gid: flow.gid,
            cgroup_id: flow.cgroup_id,
            netns_cookie: flow.netns_cookie,
            connected_at: Duration::from_nanos(flow.connected_at),
            comm: String::from_utf8_lossy(name).into_owned(),
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("attached", &lock(&self.attached).keys()).finish_non_exhaustive()
    }
}

/// Fills the table of ports that selected cgroups may not reach.
fn protect(ebpf: &mut Ebpf, ports: impl Iterator<Item = u16>) -> Result<(), KernelError> {
    let ports: BTreeSet<u16> = ports.collect();
    if ports.len() > OWN_PORTS_ROOM as usize {
        return Err(KernelError::TooManyPorts(ports.len()));
    }
    let mut table: HashMap<_, u16, u8> = take(ebpf, "OWN_PORTS")?.try_into().map_err(unreadable)?;
    for port in ports {
        table.insert(port, 1, 0).map_err(unreadable)?;
    }
    Ok(())
}

fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn sock_ops(ebpf: &mut Ebpf) -> Result<&mut SockOps, ProgramError> {
    ebpf.program_mut(SOCKOPS).ok_or(ProgramError::NotLoaded)?.try_into()
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
    let mut said = String::new();
    if let EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. }) = &error {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
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
