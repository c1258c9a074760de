//! Other network namespaces: those of containers and of `unshare -n`. 127.0.0.1 is another loopback in each, so each gets
//! listeners of the agent's of its own, and what goes on from there is dialled in there.
//!
//! Enters: processes whose namespace is to be registered, namespaces that a connect was refused in. Leaves: listeners for
//! the interceptor, entries in the kernel's table, events. Must never: keep a namespace alive in which no process is left,
//! or hold more of them than there is room for.

mod enter;
mod living;
mod namespace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use weir_core::mask::{Masked, Masker};
use weir_core::record::AgentEvent;
use weir_ebpf::reason;

use enter::{Doors, Held, open_doors};
use living::{Witness, inhabited};
pub use namespace::Namespace;

use crate::kernel::{Hooks, KernelError, Origin};
use crate::ledger::Ledger;

/// How many namespaces can be registered at a time; one job's refused connects bring half of them at most.
pub const ROOM: usize = 1024;
/// How many namespaces may wait to be registered. What finds no place is refused once more, and so asked for once more.
const WAITING: usize = 256;
/// How many of them may be for one job, so that no job's keep others' from being heard.
const WAITING_OF_A_JOB: usize = 32;
/// How often it is looked who is in the registered namespaces.
const LOOK: Duration = Duration::from_secs(1);
/// After how many looks that found nobody a namespace is let go: a process may enter one that others have just left.
pub const EMPTY_LOOKS: u32 = 2;

/// How many events may wait to be told.
const UNTOLD: usize = 4096;

type Event = AgentEvent<Masked<String>>;

/// Why a namespace is not registered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("process {0} is gone")]
    Gone(u32),
    #[error(
        "cannot look into the network namespace of process {id}: {source}; the agent needs CAP_SYS_PTRACE and CAP_SYS_ADMIN for it"
    )]
    Closed { id: u32, source: io::Error },
    #[error(
        "{room} network namespaces are registered already, or half as many by the same job: there is room for no more"
    )]
    NoRoom { room: usize },
    #[error("cannot listen in the network namespace of process {id}: {source}")]
    Listen { id: u32, source: io::Error },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// For whom a namespace is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// An operator's container runtime asked.
    Runtime,
    /// This job's process forked, executed or was refused in there.
    Job(u64),
    /// An agent before this one had registered it.
    Restart,
}

impl For {
    fn label(self) -> &'static str {
        match self {
            For::Runtime => "runtime",
            For::Job(_) => "job",
            For::Restart => "restart",
        }
    }
}

/// How a registration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registered {
    /// It is the agent's own, which needs none.
    Host,
    /// It was already.
    Known,
    /// It is now: its processes' connects are led to the agent from here on.
    New,
}

/// Listeners that were made in a namespace: to be accepted from until it is let go.
#[derive(Debug)]
pub struct Opened {
    pub namespace: Arc<Namespace>,
    pub listeners: Vec<TcpListener>,
}

/// The registered namespaces.
pub struct Namespaces {
    hooks: Arc<Hooks>,
    ledger: Ledger,
    masker: Masker,
    host: Arc<Namespace>,
    host_inode: u64,
    room: usize,
    entries: Mutex<HashMap<u64, Entry>>,
    /// One at a time, so that none is registered twice.
    registering: tokio::sync::Mutex<()>,
    opened: mpsc::Sender<Opened>,
    wanted: mpsc::Sender<Wanted>,
    /// How many of what is wanted each job has.
    waiting: Mutex<HashMap<u64, usize>>,
    untold: Untold,
}

/// What [`Namespaces::run`] takes from.
#[derive(Debug)]
pub struct Queue(mpsc::Receiver<Wanted>);

#[derive(Debug)]
struct Entry {
    namespace: Arc<Namespace>,
    inode: u64,
    witness: Witness,
    whose: For,
    empty_looks: u32,
}

#[derive(Debug)]
struct Wanted {
    ids: [u32; 2],
    cookie: u64,
    job: u64,
}

/// What happened since it was last told. Nobody waits for the disk to have a namespace registered.
#[derive(Debug, Default)]
struct Untold {
    events: Mutex<Vec<Event>>,
    happened: Notify,
    /// Events that there was no room for.
    more: AtomicU64,
    failed: AtomicU64,
    no_room: AtomicU64,
    /// Why the last one failed.
    last: Mutex<String>,
}

impl Namespaces {
    /// None is registered yet. What is opened goes to the receiver; there must be somebody to take it.
    pub fn new(
        hooks: Arc<Hooks>,
        ledger: Ledger,
        masker: Masker,
    ) -> io::Result<(Arc<Self>, Queue, mpsc::Receiver<Opened>)> {
        Self::with_room(hooks, ledger, masker, ROOM)
    }

    /// The same for another number of namespaces.
    pub fn with_room(
        hooks: Arc<Hooks>,
        ledger: Ledger,
        masker: Masker,
        room: usize,
    ) -> io::Result<(Arc<Self>, Queue, mpsc::Receiver<Opened>)> {
        let (opened, takes_opened) = mpsc::channel(room.max(1));
        let (wanted, takes_wanted) = mpsc::channel(WAITING);
        let namespaces = Self {
            host: Arc::new(Namespace::host(hooks.netns_cookie())),
            host_inode: Held::of(std::process::id())?.inode,
            hooks,
            ledger,
            masker,
            room,
            entries: Mutex::default(),
            registering: tokio::sync::Mutex::default(),
            opened,
            wanted,
            waiting: Mutex::default(),
            untold: Untold::default(),
        };
        Ok((Arc::new(namespaces), Queue(takes_wanted), takes_opened))
    }

    /// The agent's own.
    pub fn host(&self) -> Arc<Namespace> {
        self.host.clone()
    }

    /// How many are registered.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks for the namespace of a connect that was refused since nobody listens in there.
    pub fn refused(&self, origin: &Origin) {
        if origin.reason == reason::NO_LISTENER {
            self.want(origin.netns_cookie, origin.tid, origin.tgid, origin.job);
        }
    }

    /// Asks for the namespace in which a job's process is or made its socket, and does not wait. The thread first, which may
    /// be elsewhere than its process.
    pub fn want(&self, cookie: u64, tid: u32, tgid: u32, job: u64) {
        if cookie == self.host.cookie() || self.entries().contains_key(&cookie) {
            return;
        }
        let mut waiting = lock(&self.waiting);
        let own = waiting.get(&job).copied().unwrap_or_default();
        // Full: the next refused connect asks again.
        if own < WAITING_OF_A_JOB && self.wanted.try_send(Wanted { ids: [tid, tgid], cookie, job }).is_ok() {
            waiting.insert(job, own + 1);
        }
    }

    /// One of what this job wanted is heard.
    fn heard(&self, job: u64) {
        let mut waiting = lock(&self.waiting);
        if let Some(own) = waiting.get_mut(&job) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                waiting.remove(&job);
            }
        }
    }

    /// Registers the namespace that a process or thread is in now. When it returns, connects from in there are led to the
    /// agent.
    pub async fn register(&self, id: u32, whose: For) -> Result<Registered, NetnsError> {
        let registered = self.register_unless_known(id, whose).await;
        if let Err(error) = &registered {
            let slot = match error {
                NetnsError::NoRoom { .. } => &self.untold.no_room,
                _ => &self.untold.failed,
            };
            slot.fetch_add(1, Ordering::Relaxed);
            *lock(&self.untold.last) = error.to_string();
        }
        registered
    }

    async fn register_unless_known(&self, id: u32, whose: For) -> Result<Registered, NetnsError> {
        let _one = self.registering.lock().await;
        let held = Held::of(id).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetnsError::Gone(id),
            _ if source.raw_os_error() == Some(Errno::ESRCH as i32) => NetnsError::Gone(id),
            _ => NetnsError::Closed { id, source },
        })?;
        if held.inode == self.host_inode {
            return Ok(Registered::Host);
        }
        if let Some(known) = self.entries().values_mut().find(|entry| entry.inode == held.inode) {
            (known.witness, known.empty_looks) = (id, 0);
            return Ok(Registered::Known);
        }
        self.check_room(whose)?;
        let doors = held.inside(open_doors).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => NetnsError::Closed { id, source },
            _ => NetnsError::Listen { id, source },
        })?;
        let told = self.registered(id, whose, held.inode, &doors);
        self.open(id, whose, held, doors)?;
        self.note(told);
        Ok(Registered::New)
    }

    fn check_room(&self, whose: For) -> Result<(), NetnsError> {
        let entries = self.entries();
        let own = entries.values().filter(|entry| entry.whose == whose).count();
        let most = if matches!(whose, For::Job(_)) { self.room.div_ceil(2) } else { self.room };
        if entries.len() < self.room && own < most {
            Ok(())
        } else {
            Err(NetnsError::NoRoom { room: self.room })
        }
    }

    /// The listeners first, the kernel's table last: once it has the entry, connects come.
    fn open(&self, id: u32, whose: For, held: Held, doors: Doors) -> Result<(), NetnsError> {
        let failed = |source| NetnsError::Listen { id, source };
        let Doors { cookie, v4, v6, .. } = doors;
        let (mut listeners, mut ports) = (Vec::new(), [0_u16; 2]);
        for (listener, port) in [Some(v4), v6].into_iter().zip(&mut ports) {
            let Some(listener) = listener else { continue };
            *port = listener.local_addr().map_err(failed)?.port();
            self.hooks.mark_listener(listener.as_fd())?;
            listeners.push(TcpListener::from_std(listener).map_err(failed)?);
        }
        let inode = held.inode;
        let namespace = Arc::new(Namespace::other(cookie, held, ports));
        let entry = Entry { namespace: namespace.clone(), inode, witness: id, whose, empty_looks: 0 };
        self.entries().insert(cookie, entry);
        let [v4, v6] = ports;
        let v4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, v4);
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, v6, 0, 0);
        let opened = self.opened.try_send(Opened { namespace, listeners });
        let listening = match opened {
            // A port of 0 is of no listener: in there nobody has an IPv6 socket.
            Ok(()) => self.hooks.listen(cookie, v4, v6).map_err(NetnsError::from),
            Err(_) => Err(failed(io::Error::other("nobody accepts any more"))),
        };
        if listening.is_err()
            && let Some(entry) = self.entries().remove(&cookie)
        {
            entry.namespace.release();
        }
        listening
    }

    /// Registers what is wanted, and lets go of what nobody is in, until the agent ends. The kernel's table keeps its entries:
    /// without an agent the hooks go by the failure mode.
    pub async fn run(self: Arc<Self>, queue: Queue, ending: CancellationToken) {
        tokio::select! {
            () = self.register_wanted(queue) => {}
            () = self.look_after() => {}
            () = self.keep_telling() => {}
            () = ending.cancelled() => {}
        }
        self.tell().await;
    }

    async fn register_wanted(&self, Queue(mut queue): Queue) {
        while let Some(Wanted { ids, cookie, job }) = queue.recv().await {
            self.heard(job);
            for id in ids {
                if self.entries().contains_key(&cookie) {
                    break;
                }
                // Told by `look_after`.
                if let Err(error) = self.register(id, For::Job(job)).await {
                    tracing::debug!(%error, cookie, "a network namespace is not registered");
                }
            }
        }
    }

    async fn look_after(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    /// What happened at once; failures, which a job can bring about at any rate, once in a while.
    async fn keep_telling(&self) {
        loop {
            // Either way all of it is told.
            let _ = tokio::time::timeout(LOOK, self.untold.happened.notified()).await;
            self.tell().await;
        }
    }

    /// Looks once who is in the registered namespaces. One in which nobody was for some looks is let go.
    pub async fn look(&self) {
        let asked: HashMap<u64, Witness> =
            self.entries().values().map(|entry| (entry.inode, entry.witness)).collect();
        if asked.is_empty() {
            return;
        }
        let Ok(found) = tokio::task::spawn_blocking(move || inhabited(&asked)).await else { return };
        let empty = self.leave_empty(&found);
        let let_go = |namespace: &Arc<Namespace>| {
            self.event("netns.let_go", [("cookie", namespace.cookie().to_string())])
        };
        self.note(empty.iter().map(let_go).collect());
    }

    /// Lets go of those that were found empty often enough.
    fn leave_empty(&self, found: &HashMap<u64, Witness>) -> Vec<Arc<Namespace>> {
        let mut empty = Vec::new();
        self.entries().retain(|_, entry| {
            match found.get(&entry.inode) {
                Some(witness) => (entry.witness, entry.empty_looks) = (*witness, 0),
                None => entry.empty_looks += 1,
            }
            let stays = entry.empty_looks < EMPTY_LOOKS;
            if !stays {
                empty.push(entry.namespace.clone());
            }
            stays
        });
        for namespace in &empty {
            if let Err(error) = self.hooks.unlisten(namespace.cookie()) {
                tracing::error!(%error, "a network namespace stays in the kernel's table");
            }
            namespace.release();
        }
        empty
    }

    /// Takes up the namespaces that an agent before this one had registered and that live; removes the others from the
    /// kernel's table.
    pub async fn take_up(&self) -> Result<(), KernelError> {
        let cookies: BTreeSet<u64> =
            self.hooks.listening()?.into_iter().filter(|c| *c != self.host.cookie()).collect();
        if cookies.is_empty() {
            return Ok(());
        }
        for (inode, witness) in tokio::task::spawn_blocking(living::all).await.unwrap_or_default() {
            if inode == self.host_inode {
                continue;
            }
            let known = async { Held::of(witness)?.inside(enter::cookie).await };
            if known.await.is_ok_and(|cookie| cookies.contains(&cookie))
                && let Err(error) = self.register(witness, For::Restart).await
            {
                tracing::warn!(%error, "a network namespace is not taken up");
            }
        }
        for cookie in cookies {
            if !self.entries().contains_key(&cookie) {
                self.hooks.unlisten(cookie)?;
            }
        }
        Ok(())
    }

    fn registered(&self, id: u32, whose: For, inode: u64, doors: &Doors) -> Vec<Event> {
        let cookie = doors.cookie.to_string();
        let mut events = vec![self.event(
            "netns.registered",
            [
                ("cookie", cookie.clone()),
                ("inode", inode.to_string()),
                ("pid", id.to_string()),
                ("for", whose.label().to_owned()),
                ("families", if doors.v6.is_some() { "v4, v6" } else { "v4" }.to_owned()),
            ],
        )];
        if !doors.loopback_up {
            // Nothing is brought up by us: it is the container's own.
            tracing::warn!(
                pid = id,
                "a network namespace's loopback interface is down: connects in there fail until it is up"
            );
            events.push(self.event("netns.loopback_down", [("cookie", cookie), ("pid", id.to_string())]));
        }
        events
    }

    /// Keeps events until they are told.
    fn note(&self, events: Vec<Event>) {
        let mut untold = lock(&self.untold.events);
        let room = UNTOLD.saturating_sub(untold.len());
        let more = events.len().saturating_sub(room);
        self.untold.more.fetch_add(more as u64, Ordering::Relaxed);
        untold.extend(events.into_iter().take(room));
        self.untold.happened.notify_one();
    }

    /// Has recorded what happened since the last time.
    pub async fn tell(&self) {
        let Untold { events, more, failed, no_room, last, happened: _ } = &self.untold;
        let mut told = std::mem::take(&mut *lock(events));
        for (name, slot) in [("netns.failed", failed), ("netns.no_room", no_room), ("netns.more", more)] {
            let count = slot.swap(0, Ordering::Relaxed);
            if count > 0 {
                let last = lock(last).clone();
                tracing::warn!(count, last, "{name}");
                told.push(self.event(name, [("count", count.to_string()), ("last", last)]));
            }
        }
        for event in told {
            if let Err(error) = self.ledger.note(event).await {
                tracing::error!(%error, "an event was not recorded");
            }
        }
    }

    fn event<const N: usize>(&self, name: &str, detail: [(&str, String); N]) -> Event {
        let detail: BTreeMap<_, _> =
            detail.into_iter().map(|(key, value)| (key.to_owned(), self.masker.text(&value))).collect();
        AgentEvent { name: name.to_owned(), detail }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        lock(&self.entries)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
