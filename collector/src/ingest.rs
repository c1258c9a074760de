//! Ingest: agents' requests come in over a unix socket and over TLS, acknowledgements and refusals go out
//! ([`weir_core::wire`]). Who a peer is, the kernel says, or its certificate. What is acknowledged is in ClickHouse, once, and was
//! read back. Then, and in nobody's way, the jobs whose sums it states are checked ([`crate::completeness`]).

mod checkpoints;
mod coding;
mod evidence;
mod holds;
mod http;
mod keys;
mod load;
mod logs;
mod poll;
mod segments;
mod share;
mod socket;
mod tls;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Version;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::wire::{Reason, Refusal};

pub use http::Waits;
pub use socket::{Socket, SocketError};
pub use tls::{Tls, TlsError};

use self::checkpoints::Idle;
use self::http::Peer;
use self::load::Load;
use self::logs::Logs;
use self::share::{Share, Shares};
use self::tls::{Acceptor, Shown};
use crate::agent::Agent;
use crate::completeness::Watch;
use crate::enrol::{Enrolment, Registry, Revoked};
use crate::store::{Store, StoreError};
use crate::witness::Witness;

/// Connections at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Connections over TLS at a time. A fleet's agents keep one each.
const MAX_TLS_CONNECTIONS: usize = 4096;
/// Connections over TLS that have shown no certificate yet, at a time; and of one address.
const MAX_STRANGERS: usize = 256;
const MAX_STRANGERS_EACH: usize = 32;
/// What one enrolled agent has at a time: connections, requests, and segments that are being received.
const MAX_CONNECTIONS_EACH: usize = 8;
const MAX_REQUESTS_EACH: usize = 16;
const MAX_BODIES_EACH: usize = 2;
/// Segments that are received at a time, and that are read and stored.
const MAX_RECEIVED_AT_ONCE: usize = 16;
const MAX_SEGMENTS_AT_ONCE: usize = 4;
/// Requests for certificates that ask the store at a time: anybody may make them, and with any token.
const MAX_CERTIFICATES_AT_ONCE: usize = 4;
/// How long what has begun may take to end after a stop.
const DRAIN_WAIT: Duration = Duration::from_secs(90);
/// After `accept` has failed (too many open files), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
struct Ingest {
    store: Store,
    agent_uids: Vec<u32>,
    waits: Waits,
    logs: Logs,
    watch: Arc<Watch>,
    receiving: Semaphore,
    witness: Arc<Witness>,
    idle: Idle,
    load: Load,
    segments: Semaphore,
    certificates: Semaphore,
    /// Of enrolled agents, by their enrolment.
    requests: Arc<Shares<String>>,
    bodies: Arc<Shares<String>>,
    /// Who certifies agents, and who is no agent any more; with a listener for TLS alone.
    enrolment: Option<Arc<Enrolment>>,
    revoked: Option<Revoked>,
    /// Owns what must run to its end even if the peer goes away.
    work: TaskTracker,
    stop: CancellationToken,
}

/// Where agents come in.
#[derive(Debug, Default)]
pub struct Doors {
    pub socket: Option<Socket>,
    /// The users that agents of this host run as.
    pub agent_uids: Vec<u32>,
    pub tls: Option<Tls>,
    pub waits: Waits,
}

/// The collector's clock, microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

/// The store did not take it. Whatever the cause, an operator can mend it and the agent keeps the bytes.
fn unavailable(error: StoreError) -> Refusal {
    tracing::error!(%error, "the store");
    refusal(Reason::Unavailable, error.to_string())
}

/// Serves agents until `stop`; then ends what has begun. Says whether all of it ended in time.
pub async fn serve(doors: Doors, store: Store, witness: Witness, stop: CancellationToken) -> bool {
    let (idle, posts) = Idle::new();
    let watch = Arc::new(Watch::new(store.clone(), witness.public().clone()));
    let watching = tokio::spawn(watch.clone().run(stop.clone()));
    let Doors { socket, agent_uids, tls, waits } = doors;
    let registry = Registry::new(store.clone());
    let enrolment = |tls: &Tls| Enrolment { authority: tls.authority(), registry: registry.clone() };
    let ingest = Arc::new(Ingest {
        agent_uids,
        waits,
        logs: Logs::default(),
        watch,
        receiving: Semaphore::new(MAX_RECEIVED_AT_ONCE),
        witness: Arc::new(witness),
        idle,
        load: Load::default(),
        segments: Semaphore::new(MAX_SEGMENTS_AT_ONCE),
        certificates: Semaphore::new(MAX_CERTIFICATES_AT_ONCE),
        requests: Shares::of(MAX_REQUESTS_EACH),
        bodies: Shares::of(MAX_BODIES_EACH),
        enrolment: tls.as_ref().map(|tls| Arc::new(enrolment(tls))),
        revoked: tls.is_some().then(|| Revoked::new(registry.clone())),
        store,
        work: TaskTracker::new(),
        stop: stop.clone(),
    });
    let witnessing = tokio::spawn(posts.run(Arc::downgrade(&ingest), stop.clone()));
    let connections = TaskTracker::new();
    tokio::join!(at_socket(socket, &ingest, &connections), at_tls(tls, &ingest, &connections));
    connections.close();
    let ended = tokio::time::timeout(DRAIN_WAIT, async {
        connections.wait().await;
        ingest.work.close();
        ingest.work.wait().await;
        if let Err(error) = witnessing.await {
            tracing::error!(%error, "the witness of idle logs broke");
        }
        if let Err(error) = watching.await {
            tracing::error!(%error, "the check of completeness broke");
        }
    });
    ended.await.is_ok()
}

/// Takes connections from the unix socket until the stop.
async fn at_socket(socket: Option<Socket>, ingest: &Arc<Ingest>, connections: &TaskTracker) {
    let Some(socket) = socket else { return };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, slot)) = next(&slots, &ingest.stop, || socket.accept()).await {
        let connection = local(stream, ingest.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
}

/// Takes connections from agents on other hosts until the stop.
async fn at_tls(tls: Option<Tls>, ingest: &Arc<Ingest>, connections: &TaskTracker) {
    let Some(tls) = tls else { return };
    let slots = Arc::new(Semaphore::new(MAX_TLS_CONNECTIONS));
    let room = Room {
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        of_address: Shares::of(MAX_STRANGERS_EACH),
        of_agent: Shares::of(MAX_CONNECTIONS_EACH),
    };
    while let Some(((stream, address), slot)) = next(&slots, &ingest.stop, || tls.accept()).await {
        // Nobody waits here: whoever is one too many comes again.
        let (Ok(stranger), Some(share)) =
            (room.strangers.clone().try_acquire_owned(), room.of_address.take(address))
        else {
            tracing::warn!(%address, "too many connections without a certificate; closed one");
            continue;
        };
        let (acceptor, agents, ingest) = (tls.acceptor(), room.of_agent.clone(), ingest.clone());
        connections.spawn(async move {
            remote(stream, acceptor, agents, ingest, (stranger, share)).await;
            drop(slot);
        });
    }
}

/// What connections over TLS have of the room, before and after they have shown a certificate.
struct Room {
    strangers: Arc<Semaphore>,
    of_address: Arc<Shares<IpAddr>>,
    of_agent: Arc<Shares<String>>,
}

/// The next connection and its slot; none after the stop.
async fn next<T, F: Future<Output = std::io::Result<T>>>(
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
    mut accept: impl FnMut() -> F,
) -> Option<(T, OwnedSemaphorePermit)> {
    let slot = tokio::select! {
        () = stop.cancelled() => return None,
        slot = slots.clone().acquire_owned() => slot.ok()?,
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(stream) => return Some((stream, slot)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection of this host: the kernel says who the peer is, once, before anything is read.
async fn local(stream: UnixStream, ingest: Arc<Ingest>) {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "a peer without credentials");
            return;
        }
    };
    let admitted = ingest.agent_uids.contains(&peer.uid());
    if !admitted {
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a peer that is no agent");
    }
    let peer = if admitted { Peer::Local(Agent::Local { uid: peer.uid() }) } else { Peer::Nobody };
    http::connection(stream, ingest, peer, Version::HTTP_11).await;
}

/// One connection over TLS: its certificate says who the peer is, once, before anything is read.
async fn remote(
    stream: TcpStream,
    acceptor: Acceptor,
    agents: Arc<Shares<String>>,
    ingest: Arc<Ingest>,
    stranger: (OwnedSemaphorePermit, Share<IpAddr>),
) {
    let (stream, shown) = match acceptor.shake_hands(stream).await {
        Ok(done) => done,
        Err(error) => {
            tracing::info!(%error, "a handshake failed");
            return;
        }
    };
    let version = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    match shown {
        Shown::Nothing => {
            http::connection(stream, ingest, Peer::Stranger, version).await;
            drop(stranger);
        }
        Shown::Certificate(certified) => {
            drop(stranger);
            let Some(share) = agents.take(certified.agent.enrolment.clone()) else {
                tracing::warn!(host = certified.agent.host, "an agent has too many connections; closed one");
                return;
            };
            http::connection(stream, ingest, Peer::Enrolled(certified), version).await;
            drop(share);
        }
    }
}

impl Ingest {
    /// An enrolled agent's share; agents of this host have none of their own.
    fn share(&self, of: &Arc<Shares<String>>, agent: &Agent) -> Result<Option<Share<String>>, Refusal> {
        match agent {
            Agent::Local { .. } => Ok(None),
            Agent::Enrolled(own) => match of.take(own.enrolment.clone()) {
                Some(share) => Ok(Some(share)),
                None => Err(refusal(
                    Reason::Unavailable,
                    "this agent asks for more at a time than its share; ask again",
                )),
            },
        }
    }
}
