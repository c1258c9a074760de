//! Listeners in which connects wait until the agent has dialled their destination, so that a readiness probe of a private one has
//! its true answer.
//!
//! Enters: listeners that drop what comes, each for one connect; what was reached. Leaves: the connects that wait, as soon as they do. Must
//! never: offer a listener twice, or be needed: a connect that finds none goes the way of all others.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, RingBuf},
};
use tokio::io::unix::AsyncFd;
use weir_ebpf::{FlowKey, HELD_SLOTS, HeldKey, ReachedKey, address};

use super::{
    Hooks, KernelError, Origin, lock, lookup_missing, since_boot, syscall, tables::gone, take, unreadable,
};

/// For how long a destination counts as reached once the agent has dialled it: until then no connect to it waits.
const REACHED_FOR: Duration = Duration::from_secs(5);

/// The tables, in which the hooks and the agent both write: nobody watches over them.
pub(super) struct Held {
    offered: HashMap<MapData, HeldKey, u16>,
    reached: HashMap<MapData, ReachedKey, u64>,
}

impl Held {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            offered: take(ebpf, "HELD")?.try_into().map_err(unreadable)?,
            reached: take(ebpf, "REACHED")?.try_into().map_err(unreadable)?,
        })
    }
}

/// A place for one listener. There are [`HELD_SLOTS`] in each family of each network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    pub netns_cookie: u64,
    pub is_v6: bool,
    pub number: u32,
}

impl Slot {
    fn key(self) -> HeldKey {
        HeldKey { netns_cookie: self.netns_cookie, is_v6: u32::from(self.is_v6), slot: self.number }
    }

    fn all(netns_cookie: u64) -> impl Iterator<Item = Self> {
        let families = [false, true].into_iter();
        families
            .flat_map(move |is_v6| (0..HELD_SLOTS).map(move |number| Self { netns_cookie, is_v6, number }))
    }
}

/// A connect that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The client's end, as the listener will see it.
    pub client: SocketAddr,
    /// The listener's port.
    pub port: u16,
    pub destination: SocketAddr,
    key: FlowKey,
}

impl Waiting {
    pub fn netns_cookie(&self) -> u64 {
        self.key.netns_cookie
    }
}

impl From<weir_ebpf::Waiting> for Waiting {
    fn from(told: weir_ebpf::Waiting) -> Self {
        let ip = |address: [u8; 16]| Ipv6Addr::from(address).to_canonical();
        Self {
            client: SocketAddr::new(ip(told.key.source), told.key.source_port),
            port: told.key.held_port,
            destination: SocketAddr::new(ip(told.destination), told.destination_port),
            key: told.key,
        }
    }
}

/// The reader of the ring in which connects are told that wait; there is one at a time.
pub struct WaitingConnects {
    ring: RingBuf<MapData>,
}

impl WaitingConnects {
    /// To be waited for by the runtime: the hooks wake it for each.
    pub fn awaitable(self) -> io::Result<AsyncFd<Self>> {
        syscall::awaitable(self)
    }

    /// The next one, if there is one.
    pub fn take(&mut self) -> Option<Waiting> {
        let item = self.ring.next()?;
        syscall::plain::<weir_ebpf::Waiting>(&item).map(Waiting::from)
    }
}

// The ring's map owns its descriptor, and nothing here replaces either.
impl syscall::OwnsItsDescriptor for WaitingConnects {}

impl AsFd for WaitingConnects {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for WaitingConnects {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Hooks {
    /// Lets a connect have the listener at this port, which carries [`Hooks::mark_listener`] and is held back.
    pub fn offer(&self, slot: Slot, port: u16) -> Result<(), KernelError> {
        lock(&self.held).offered.insert(slot.key(), port, 0).map_err(unreadable)
    }

    /// The port of the listener that waits for a connect there.
    pub fn offered(&self, slot: Slot) -> Result<Option<u16>, KernelError> {
        match lock(&self.held).offered.get(&slot.key(), 0) {
            Ok(port) => Ok(Some(port)),
            Err(error) if lookup_missing(&error) => Ok(None),
            Err(error) => Err(unreadable(error)),
        }
    }

    /// No connect is to have this listener any more. False: one has it, or another agent's is there by now.
    pub fn take_back(&self, slot: Slot, port: u16) -> Result<bool, KernelError> {
        if self.offered(slot)? != Some(port) {
            return Ok(false);
        }
        match lock(&self.held).offered.remove(&slot.key()) {
            Ok(()) => Ok(true),
            Err(error) if lookup_missing(&error) => Ok(false),
            Err(error) => Err(unreadable(error)),
        }
    }

    /// None of a namespace is offered any more.
    pub(super) fn take_all_back(&self, netns_cookie: u64) -> Result<(), KernelError> {
        let mut held = lock(&self.held);
        Slot::all(netns_cookie).try_for_each(|slot| gone(held.offered.remove(&slot.key())))
    }

    /// The reader of what waits. There is one; None: it is taken already, or cannot be opened. An agent before this one must have
    /// let go of its own by now.
    pub fn waiting(&self) -> Option<WaitingConnects> {
        let opened = RingBuf::try_from(lock(&self.waiting).take()?).map_err(unreadable);
        let opened = opened
            .inspect_err(|error| tracing::error!(%error, "the ring of connects that wait cannot be opened"));
        Some(WaitingConnects { ring: opened.ok()? })
    }

    /// Whether its client has not given up, and nobody has taken it.
    pub fn still_waits(&self, waiting: &Waiting) -> Result<bool, KernelError> {
        self.pending.has(&waiting.key)
    }

    /// Takes the origin of one that waits, as [`Hooks::take_origin`] does.
    pub fn take_waiting(&self, waiting: &Waiting) -> Result<Option<Origin>, KernelError> {
        self.take_held_origin(waiting.key.netns_cookie, waiting.client, waiting.port)
    }

    /// The agent has dialled this destination. Of one that is not private nothing is kept.
    pub fn reached(&self, netns_cookie: u64, destination: SocketAddr) -> Result<(), KernelError> {
        let Some(key) = reached_key(netns_cookie, destination) else { return Ok(()) };
        let until = u64::try_from((since_boot() + REACHED_FOR).as_nanos()).unwrap_or(u64::MAX);
        lock(&self.held).reached.insert(key, until, 0).map_err(unreadable)
    }

    /// It could not: the next connect waits again.
    pub fn not_reached(&self, netns_cookie: u64, destination: SocketAddr) -> Result<(), KernelError> {
        let Some(key) = reached_key(netns_cookie, destination) else { return Ok(()) };
        gone(lock(&self.held).reached.remove(&key))
    }

    /// Has a socket that is to listen drop all that comes. To be called before `listen`.
    pub fn hold_back(socket: BorrowedFd<'_>) -> io::Result<()> {
        syscall::drop_all(socket)
    }

    /// Has it answer from here on.
    pub fn let_in(socket: BorrowedFd<'_>) -> io::Result<()> {
        syscall::drop_none(socket)
    }
}

fn reached_key(netns_cookie: u64, destination: SocketAddr) -> Option<ReachedKey> {
    let address = match destination.ip() {
        IpAddr::V4(v4) => address::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    address::is_private(address).then(|| ReachedKey::new(netns_cookie, address, destination.port()))
}

/// The ring, until its reader is asked for.
pub(super) fn ring(ebpf: &mut Ebpf) -> Result<Map, KernelError> {
    take(ebpf, "WAITING")
}
