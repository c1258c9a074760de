//! Interception: connections that the hooks led here come in at the listeners; each becomes a flow whose
//! origin the kernel vouches for, and is terminated, relayed or refused. One without an origin is reset: it
//! was not led here by the hooks.

mod dial;
mod flow;
mod relay;

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weir_core::record::AgentEvent;

use crate::config::{InterceptList, Listen};
use crate::gate::Gate;
use crate::kernel::{Hooks, Origin};
use crate::tls::{Minter, UpstreamTls};

/// How often connections without an origin are told of, at most.
const UNATTRIBUTED_EVERY: Duration = Duration::from_secs(1);
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
    pub async fn open(listen: &Listen) -> Result<Self, ListenError> {
        let v4 = bind(SocketAddr::V4(listen.v4)).await?;
        let v6 = bind(SocketAddr::V6(listen.v6)).await?;
        Ok(Self { v4, v6 })
    }

    /// Where they are, with the ports that the kernel chose.
    pub fn addresses(&self) -> io::Result<(SocketAddrV4, SocketAddrV6)> {
        match (self.v4.local_addr()?, self.v6.local_addr()?) {
            (SocketAddr::V4(v4), SocketAddr::V6(v6)) => Ok((v4, v6)),
            _ => Err(io::Error::other("a listener of the wrong family")),
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// What each connection needs.
pub struct Interceptor {
    pub gate: Arc<Gate>,
    pub hooks: Arc<Hooks>,
    pub intercept: InterceptList,
    pub minter: Minter,
    pub upstream: UpstreamTls,
    /// One permit a connection.
    pub room: Arc<Semaphore>,
    pub unattributed: AtomicU64,
    /// Cancelled when the agent ends: flows finish what they carry, and close.
    pub ending: CancellationToken,
}

impl Interceptor {
    /// Accepts until the agent ends. What it accepts, the gate's task tracker owns.
    pub async fn accept(self: Arc<Self>, listeners: Listeners) {
        let telling = self.clone();
        tokio::join!(
            self.clone().accept_from(listeners.v4),
            self.clone().accept_from(listeners.v6),
            telling.tell_unattributed(),
        );
    }

    async fn accept_from(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ending.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // The origin first: it must not stay behind, whatever becomes of the connection.
        let origin = match self.origin(peer) {
            Some(origin) => origin,
            None => {
                self.unattributed.fetch_add(1, Ordering::Relaxed);
                return reset(&stream);
            }
        };
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            tracing::warn!("too many connections at a time; closing one");
            reset(&stream);
            let interceptor = self.clone();
            self.gate.tasks.spawn(async move { interceptor.record_no_room(&origin).await });
            return;
        };
        let interceptor = self.clone();
        self.gate.tasks.spawn(async move {
            interceptor.flow(stream, origin).await;
            drop(room);
        });
    }

    fn origin(&self, peer: SocketAddr) -> Option<Origin> {
        match self.hooks.take_origin(peer) {
            Ok(origin) => origin,
            Err(error) => {
                tracing::error!(%error, "cannot look up a connection's origin");
                None
            }
        }
    }

    /// Anybody on the host can connect here directly. Each is reset, and their number told.
    async fn tell_unattributed(self: Arc<Self>) {
        loop {
            let ending = tokio::select! {
                () = tokio::time::sleep(UNATTRIBUTED_EVERY) => false,
                () = self.ending.cancelled() => true,
            };
            let count = self.unattributed.swap(0, Ordering::Relaxed);
            if count > 0 {
                let detail = [("connections".to_owned(), self.gate.masker.text(&count.to_string()))].into();
                let event = AgentEvent { name: "flow.unattributed".into(), detail };
                if let Err(error) = self.gate.ledger.note(event).await {
                    tracing::error!(%error, count, "connections without an origin were not recorded");
                }
            }
            if ending {
                return;
            }
        }
    }
}

/// Closes with a reset, so that the client sees a failure and not an empty answer.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection is closed without a reset");
    }
}
