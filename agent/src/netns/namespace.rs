//! One network namespace that flows come from: the agent's own, or another that it listens in.
//!
//! Enters: destinations of flows. Leaves: sockets made in there. Must never: dial for a flow in any other namespace than its
//! own, or be held open by flows once it was let go.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::enter::{Held, has_address, listener};
use super::lock;

/// A network namespace that flows come from.
#[derive(Debug)]
pub struct Namespace {
    cookie: u64,
    /// None: the agent's own.
    other: Option<Other>,
}

#[derive(Debug)]
struct Other {
    /// None: it was let go.
    held: Mutex<Option<Held>>,
    /// Of the agent's listeners in there.
    ports: Vec<u16>,
    let_go: CancellationToken,
}

impl Namespace {
    /// The agent's own.
    pub fn host(cookie: u64) -> Self {
        Self { cookie, other: None }
    }

    /// Another, in which the agent listens at these ports; 0 is none.
    pub(super) fn other(cookie: u64, held: Held, ports: [u16; 2]) -> Self {
        let ports = ports.into_iter().filter(|port| *port != 0).collect();
        let other = Other { held: Mutex::new(Some(held)), ports, let_go: CancellationToken::new() };
        Self { cookie, other: Some(other) }
    }

    /// The number by which the kernel programs know it.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// A TCP socket in there, not connected yet.
    ///
    /// # Errors
    /// The namespace was let go (`NotFound`), or a socket cannot be had.
    pub async fn tcp_socket(&self, v6: bool) -> io::Result<TcpSocket> {
        let Some(other) = &self.other else {
            return if v6 { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
        };
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let held = lock(&other.held).clone();
        let held = held.ok_or_else(gone)?;
        let made = held.inside(move || Ok(socket(family, SockType::Stream, flags, None)?)).await?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(made)))
    }

    /// A listening socket in there at a port of the kernel's choice, which answers nobody yet.
    ///
    /// # Errors
    /// As for [`Namespace::tcp_socket`].
    pub async fn held_listener(&self, address: IpAddr) -> io::Result<TcpListener> {
        let address = SocketAddr::new(address, 0);
        let made = match &self.other {
            None => listener(&address, true)?,
            Some(other) => {
                let held = lock(&other.held).clone().ok_or_else(gone)?;
                held.inside(move || listener(&address, true)).await?
            }
        };
        TcpListener::from_std(made)
    }

    /// Whether a connection from in there would end at Weir itself: at one of its ports on this host, or at the agent's
    /// listeners in there. Yes, if that cannot be told.
    pub fn leads_to_weir(&self, destination: SocketAddr, weirs: &BTreeSet<u16>) -> bool {
        let (address, port) = (destination.ip().to_canonical(), destination.port());
        let loopback = address.is_loopback() || address.is_unspecified();
        match &self.other {
            // In there a loopback address is not this host's; its others may be reached.
            Some(other) if loopback => other.ports.contains(&port),
            _ => weirs.contains(&port) && (loopback || is_hosts(address)),
        }
    }

    /// Resolves when nobody is left in there.
    pub async fn let_go(&self) {
        match &self.other {
            Some(other) => other.let_go.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Drops what keeps it alive besides sockets in use.
    pub(super) fn release(&self) {
        if let Some(other) = &self.other {
            lock(&other.held).take();
            other.let_go.cancel();
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "its network namespace is gone")
}

fn is_hosts(address: IpAddr) -> bool {
    has_address(address).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weirs_own_ports_are_those_of_this_host_and_of_the_agent_in_there() {
        let weirs = BTreeSet::from([8123]);
        let leads = |namespace: &Namespace, to: &str| namespace.leads_to_weir(to.parse().unwrap(), &weirs);
        let host = Namespace::host(1);
        for own in ["127.0.0.1:8123", "[::1]:8123", "[::ffff:127.0.0.9]:8123", "0.0.0.0:8123"] {
            assert!(leads(&host, own), "{own}");
        }
        let other = Other { held: Mutex::new(None), ports: vec![40_000], let_go: CancellationToken::new() };
        let other = Namespace { cookie: 2, other: Some(other) };
        assert!(leads(&other, "127.0.0.1:40000") && leads(&other, "[::1]:40000"));
        // In there it is somebody else's loopback.
        assert!(!leads(&other, "127.0.0.1:8123"));
        for namespace in [&host, &other] {
            // Documentation's addresses (RFC 5737), and nobody's; and a port that is not Weir's.
            assert!(!leads(namespace, "192.0.2.1:8123") && !leads(namespace, "127.0.0.1:443"));
        }
        let interfaces = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| interface.address);
        for own in interfaces.filter_map(|own| own.as_sockaddr_in().map(|own| own.ip())) {
            assert!(leads(&host, &format!("{own}:8123")), "{own}");
            assert_eq!(leads(&other, &format!("{own}:8123")), !own.is_loopback(), "{own}");
        }
    }
}
