//! Dialling a flow's own destination, past the hooks.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::kernel::{Hooks, KernelError};

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

/// Connects to `destination` with a socket that the hooks pass on, should the agent itself be selected.
pub async fn dial(hooks: &Hooks, destination: SocketAddr, within: Duration) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable { destination, source };
    let socket = match destination {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(unreachable)?;
    hooks.exempt(socket.as_fd())?;
    let stream = tokio::time::timeout(within, socket.connect(destination))
        .await
        .map_err(|_| DialError::Timeout { destination, within })?
        .map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}
