//! Dialling a flow's own destination, past the hooks and from inside its own network namespace: names and addresses of a
//! private network mean something in there alone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::kernel::{Hooks, KernelError};
use crate::netns::Namespace;

/// Why a destination could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {destination}: {source}")]
    Unreachable { destination: SocketAddr, source: io::Error },
    #[error("{destination} did not answer within {within:?}")]
    Timeout { destination: SocketAddr, within: Duration },
    #[error(transparent)]
    Exempt(#[from] KernelError),
}

impl DialError {
    /// Whether the destination said that nobody listens there.
    pub fn is_refusal(&self) -> bool {
        matches!(self, DialError::Unreachable { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// Connects to `destination` from inside a namespace, with a socket that the hooks pass on.
pub async fn dial(
    hooks: &Hooks,
    namespace: &Namespace,
    destination: SocketAddr,
    within: Duration,
) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable { destination, source };
    let socket = namespace.tcp_socket(destination.is_ipv6()).await.map_err(unreachable)?;
    hooks.exempt(socket.as_fd())?;
    let dialled = match tokio::time::timeout(within, socket.connect(destination)).await {
        Ok(dialled) => dialled.map_err(unreachable),
        Err(_) => Err(DialError::Timeout { destination, within }),
    };
    // By this the hooks know whether the next connect is to wait.
    let noted = match &dialled {
        Ok(_) => hooks.reached(namespace.cookie(), destination),
        Err(_) => hooks.not_reached(namespace.cookie(), destination),
    };
    if let Err(error) = noted {
        tracing::debug!(%error, %destination, "it is not noted whether a destination was reached");
    }
    let stream = dialled?;
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}
