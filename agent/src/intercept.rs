//! Interception: connections that the hooks led here come in at the listeners; each becomes a flow whose
//! origin the kernel vouches for, and is terminated, relayed or refused. One without an origin is reset: it
//! was not led here by the hooks.

mod dial;
mod flow;
mod greeting;
mod held;
mod learned;
mod meeting;
mod refusing;
mod relay;

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use weir_core::record::AgentEvent;
use weir_ebpf::HELD_SLOTS;

use self::held::Doors;
use self::learned::Learned;
use crate::account::Accounts;
use crate::config::{InterceptList, Listen};
use crate::gate::Gate;
use crate::handover::Sockets;
use crate::http::Shelves;
use crate::kernel::{Hooks, Origin};
use crate::netns::{Namespace, Opened};
use crate::tasks::Tasks;
use crate::tls::{Minter, UpstreamTls};

/// How many connections may wait to be accepted; the kernel allows 4096 unless it was told otherwise.
const BACKLOG: u32 = 4096;
/// How many connections that there was no room for are recorded at a time; of more, a gap tells the number.
const RECORDED_AT_A_TIME: usize = 64;
/// How often the number of connections that have no record of their own is told, at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long a successor may take to listen in the network namespaces of jobs.
const SUCCESSION: Duration = Duration::from_secs(10);
/// The pause after an accept that failed for lack of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener could not be opened; the operator is at fault.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another port in [listen], or 0 for any free one")]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// The two sockets that the hooks lead connections to.
#[derive(Debug)]
pub struct Listeners {
    v4: TcpListener,
    v6: TcpListener,
}

impl Listeners {
    pub fn open(listen: &Listen) -> Result<Self, ListenError> {
        let v4 = bind(SocketAddr::V4(listen.v4))?;
        let v6 = bind(SocketAddr::V6(listen.v6))?;
        Ok(Self { v4, v6 })
    }

    /// Tells the hooks where they are: only to sockets that carry the agent's mark do they lead connects.
    pub fn announce(&self, hooks: &Hooks) -> anyhow::Result<()> {
        hooks.mark_listener(self.v4.as_fd())?;
        hooks.mark_listener(self.v6.as_fd())?;
        let (v4, v6) = self.addresses()?;
        Ok(hooks.listen(hooks.netns_cookie(), v4, v6)?)
    }

    /// Those that another agent opened, and hands over.
    pub fn inherit(sockets: Sockets) -> io::Result<Self> {
        let [v4, v6] = sockets.into_listeners()?;
        Ok(Self { v4: TcpListener::from_std(v4)?, v6: TcpListener::from_std(v6)? })
    }

    /// To hand them over in turn.
    pub fn sockets(&self, namespace: u64) -> io::Result<Sockets> {
        Sockets::copy_of(namespace, &self.v4, &self.v6)
    }

    /// Where they are, with the ports that the kernel chose.
    pub fn addresses(&self) -> io::Result<(SocketAddrV4, SocketAddrV6)> {
        match (self.v4.local_addr()?, self.v6.local_addr()?) {
            (SocketAddr::V4(v4), SocketAddr::V6(v6)) => Ok((v4, v6)),
            _ => Err(io::Error::other("a listener of the wrong family")),
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ListenError { address, source })
}

/// What each connection needs.
pub struct Interceptor {
    pub gate: Arc<Gate>,
    pub accounts: Arc<Accounts>,
    pub hooks: Arc<Hooks>,
    pub intercept: InterceptList,
    pub minter: Minter,
    pub upstream: UpstreamTls,
    /// Weir's own, to which nothing is dialled on this host.
    pub own_ports: BTreeSet<u16>,
    /// The agent's own namespace.
    host: Arc<Namespace>,
    learned: Learned,
    /// Servers' connections between two exchanges.
    shelves: Arc<Shelves>,
    uncounted: Uncounted,
    /// Of connects that wait.
    doors: Doors,
}

/// Connections of which only the number is told.
struct Uncounted {
    unattributed: AtomicU64,
    /// All of them are owed a record; the hooks' own table bounds how many that can be.
    no_room: Mutex<Vec<Origin>>,
    recorded: Arc<Semaphore>,
}

impl Uncounted {
    fn no_room(&self) -> MutexGuard<'_, Vec<Origin>> {
        self.no_room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interceptor {
    pub fn new(
        gate: Arc<Gate>,
        accounts: Arc<Accounts>,
        hooks: Arc<Hooks>,
        intercept: InterceptList,
        minter: Minter,
        upstream: UpstreamTls,
        own_ports: BTreeSet<u16>,
    ) -> Self {
        let recorded = Arc::new(Semaphore::new(RECORDED_AT_A_TIME));
        let uncounted = Uncounted { unattributed: AtomicU64::new(0), no_room: Mutex::default(), recorded };
        let host = Arc::new(Namespace::host(hooks.netns_cookie()));
        Self {
            gate,
            accounts,
            hooks,
            intercept,
            minter,
            upstream,
            own_ports,
            host,
            learned: Learned::default(),
            shelves: Arc::default(),
            uncounted,
            doors: Doors::default(),
        }
    }

    /// Accepts until the agent ends or another takes its place, at this namespace's listeners and at those that are opened in others. What it
    /// accepts, the gate's task tracker owns.
    pub async fn accept(self: Arc<Self>, listeners: Listeners, mut opened: mpsc::Receiver<Opened>) {
        let mut accepting = JoinSet::new();
        accepting.spawn(self.clone().tell_uncounted());
        // Not among those that accept: flows go on when nothing is accepted any more.
        tokio::spawn(tend_shelves(self.shelves.clone(), self.gate.tasks.clone()));
        accepting.spawn(self.clone().hear_waiting());
        for listener in [listeners.v4, listeners.v6] {
            self.serve_at(listener, &self.host, &mut accepting);
        }
        loop {
            tokio::select! {
                Some(Opened { namespace, listeners }) = opened.recv() => for listener in listeners {
                    self.serve_at(listener, &namespace, &mut accepting);
                },
                // One that failed must not be looked over.
                Some(ended) = accepting.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "a listener's task failed");
                },
                () = self.gate.tasks.retiring() => break,
            }
        }
        while let Some(ended) = accepting.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a listener's task failed");
            }
        }
    }

    /// What came in at a listener, and what waits beside it.
    fn serve_at(
        self: &Arc<Self>,
        listener: TcpListener,
        namespace: &Arc<Namespace>,
        accepting: &mut JoinSet<()>,
    ) {
        if let Ok(address) = listener.local_addr() {
            for slot in 0..HELD_SLOTS {
                accepting.spawn(self.clone().hold(namespace.clone(), address.ip(), slot));
            }
        }
        accepting.spawn(self.clone().accept_from(listener, namespace.clone()));
    }

    async fn accept_from(self: Arc<Self>, listener: TcpListener, namespace: Arc<Namespace>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = namespace.let_go() => return,
                () = self.retired(&namespace) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &namespace, 0, None),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// This agent's own listeners are its successor's, too. In other namespaces that one opens its own; until it has, and
    /// for what waits here by then, these stay.
    async fn retired(&self, namespace: &Namespace) {
        let tasks = &self.gate.tasks;
        tasks.retiring().await;
        if namespace.cookie() != self.host.cookie() {
            tokio::select! {
                () = tokio::time::sleep(SUCCESSION) => {}
                () = tasks.ending() => {}
            }
        }
    }

    /// `held` is the port of the listener if that was for one connect, and `dialled` the connection to its server.
    fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        namespace: &Arc<Namespace>,
        held: u16,
        dialled: Option<TcpStream>,
    ) {
        // The origin first: it must not stay behind, whatever becomes of the connection. From here on it is owed a record.
        let origin = match self.origin(peer, namespace, held) {
            Some(origin) => origin,
            None => {
                self.uncounted.unattributed.fetch_add(1, Ordering::Relaxed);
                return reset(&stream);
            }
        };
        let share = self.gate.shares.of(origin.cgroup_id);
        let (interceptor, namespace, tasks) = (self.clone(), namespace.clone(), &self.gate.tasks);
        // A place first: a turn is not to be taken for nothing.
        if let Some(room) = share.flow()
            && let Some(turn) = share.calm().turn()
        {
            return tasks.spawn_closing(async move {
                interceptor.flow((stream, turn), namespace, origin, share, dialled).await;
                drop(room);
            });
        }
        reset(&stream);
        match self.uncounted.recorded.clone().try_acquire_owned() {
            Err(_) => self.uncounted.no_room().push(origin),
            Ok(recorded) => tasks.spawn_closing(async move {
                interceptor.record_no_room(namespace, origin, share).await;
                drop(recorded);
            }),
        }
    }

    fn origin(&self, peer: SocketAddr, namespace: &Namespace, held: u16) -> Option<Origin> {
        match self.hooks.take_held_origin(namespace.cookie(), peer, held) {
            Ok(origin) => origin,
            Err(error) => {
                tracing::error!(%error, "cannot look up a connection's origin");
                None
            }
        }
    }

    /// Anybody on the host can connect here directly. Each is reset, and their number told; so is that of
    /// connections which came faster than they could be recorded.
    async fn tell_uncounted(self: Arc<Self>) {
        loop {
            let ending = tokio::select! {
                () = tokio::time::sleep(TOLD_EVERY) => false,
                () = self.gate.tasks.retiring() => true,
            };
            self.tell("flow.unattributed", &self.uncounted.unattributed).await;
            let no_room = std::mem::take(&mut *self.uncounted.no_room());
            if !no_room.is_empty() {
                tracing::warn!(count = no_room.len(), "flow.no_room");
                self.accounts.no_room(no_room).await;
            }
            if ending {
                return;
            }
        }
    }

    async fn tell(&self, name: &str, connections: &AtomicU64) {
        let count = connections.swap(0, Ordering::Relaxed);
        if count == 0 {
            return;
        }
        tracing::warn!(count, "{name}");
        let detail = [("connections".to_owned(), self.gate.masker.text(&count.to_string()))].into();
        if let Err(error) = self.gate.ledger.note(AgentEvent { name: name.to_owned(), detail }).await {
            tracing::error!(%error, count, "connections were not recorded");
        }
    }
}

/// As long as there are flows that may put something there: those of an agent that retires, too.
async fn tend_shelves(shelves: Arc<Shelves>, tasks: Tasks) {
    tokio::select! {
        () = shelves.tend() => {}
        () = tasks.over() => {}
    }
    shelves.clear();
}

/// Closes with a reset, so that the client sees a failure and not an empty answer.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection is closed without a reset");
    }
}
