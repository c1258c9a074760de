//! Dialling a flow's own destination, past the hooks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
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

/// Whether a connection to this address stays on this host. Yes, if that cannot be told.
pub fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let Ok(interfaces) = getifaddrs() else { return true };
    interfaces.filter_map(|interface| interface.address).any(|own| {
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::from(own.ip()));
        v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::from(own.ip()))) == Some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        for own in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        // Documentation's (RFC 5737, RFC 3849), and nobody's.
        assert!(!is_own("192.0.2.1".parse().unwrap()) && !is_own("2001:db8::1".parse().unwrap()));
        let interfaces = getifaddrs().unwrap().filter_map(|interface| interface.address);
        for own in interfaces.filter_map(|own| own.as_sockaddr_in().map(|own| own.ip())) {
            assert!(is_own(own.into()), "{own}");
        }
    }
}
