//! Ingest: agents' requests come in over a unix socket, acknowledgements and refusals go out
//! ([`weir_core::wire`]). Who a peer is, the kernel says. What is acknowledged is in ClickHouse, once, and was
//! read back. Then, and in nobody's way, the jobs whose sums it states are checked ([`crate::completeness`]).

mod holds;
mod http;
mod logs;
mod poll;
mod segments;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::wire::{Reason, Refusal};

pub use socket::{Socket, SocketError};

use self::logs::Logs;
use crate::agent::Agent;
use crate::completeness::Watch;
use crate::store::{Store, StoreError};

/// Connections at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Segments in memory at a time.
const MAX_SEGMENTS_AT_ONCE: usize = 4;
/// How long what has begun may take to end after a stop.
const DRAIN_WAIT: Duration = Duration::from_secs(90);
/// After `accept` has failed (too many open files), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
struct Ingest {
    store: Store,
    agent_uids: Vec<u32>,
    logs: Logs,
    watch: Arc<Watch>,
    segments: Semaphore,
    /// Owns what must run to its end even if the peer goes away.
    work: TaskTracker,
    stop: CancellationToken,
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
pub async fn serve(socket: Socket, store: Store, agent_uids: Vec<u32>, stop: CancellationToken) -> bool {
    let watch = Arc::new(Watch::new(store.clone()));
    let watching = tokio::spawn(watch.clone().run(stop.clone()));
    let ingest = Arc::new(Ingest {
        store,
        agent_uids,
        logs: Logs::default(),
        watch,
        segments: Semaphore::new(MAX_SEGMENTS_AT_ONCE),
        work: TaskTracker::new(),
        stop: stop.clone(),
    });
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = connection(stream, ingest.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(socket);
    connections.close();
    let ended = tokio::time::timeout(DRAIN_WAIT, async {
        connections.wait().await;
        ingest.work.close();
        ingest.work.wait().await;
        if let Err(error) = watching.await {
            tracing::error!(%error, "the check of completeness broke");
        }
    });
    ended.await.is_ok()
}

/// One connection: the kernel says who the peer is, once, before anything is read.
async fn connection(stream: UnixStream, ingest: Arc<Ingest>) {
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
    http::connection(stream, ingest, admitted.then(|| Agent::Local { uid: peer.uid() })).await;
}
