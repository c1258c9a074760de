//! Entering a network namespace: on a thread made for one piece of work, which ends in there.
//!
//! Enters: a namespace's descriptor. Leaves: sockets, which belong for ever to the namespace they were made in, whoever
//! uses them where. Must never: enter on a thread of the runtime's, or change anything in there (no interface is
//! brought up, no address given).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, listen,
    setsockopt, socket, sockopt,
};
use tokio::sync::oneshot;

use crate::kernel::Hooks;

/// How many connections may wait to be accepted; the namespace's own limit may be lower.
const BACKLOG: i32 = 4096;

/// A network namespace that is held open.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its number as `/proc/PID/ns/net` shows it: no other's for as long as this is held.
    pub inode: u64,
    descriptor: Arc<OwnedFd>,
}

/// What was made in a namespace.
#[derive(Debug)]
pub struct Doors {
    pub cookie: u64,
    pub v4: TcpListener,
    /// None: the namespace knows no IPv6.
    pub v6: Option<TcpListener>,
    /// Whether anything on its loopback addresses can be reached.
    pub loopback_up: bool,
}

impl Held {
    /// The namespace that a process or thread is in.
    ///
    /// # Errors
    /// There is no such process any more (`NotFound`), or the agent may not look (CAP_SYS_PTRACE).
    pub fn of(id: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{id}/ns/net"))?;
        Ok(Self { inode: file.metadata()?.ino(), descriptor: Arc::new(file.into()) })
    }

    /// Does a piece of work in there.
    ///
    /// # Errors
    /// The agent may not enter (CAP_SYS_ADMIN), there is no thread to be had, or the work's own.
    pub async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, waits) = oneshot::channel();
        let descriptor = self.descriptor.clone();
        std::thread::Builder::new().name("weir-netns".into()).spawn(move || {
            let result = setns(&*descriptor, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            drop(descriptor);
            // Who asked may be gone.
            let _ = done.send(result.and_then(|()| work()));
        })?;
        waits.await.map_err(|_| io::Error::other("the thread in the namespace ended early"))?
    }
}

/// Makes the listening sockets of the namespace that the calling thread is in.
///
/// Its addresses need not be there yet: a container's runtime may bring loopback up after it has made the namespace.
pub fn open_doors() -> io::Result<Doors> {
    let v4 = listener(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into(), false)?;
    let v6 = match listener(&SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0).into(), false) {
        Ok(v6) => Some(v6),
        Err(error) if is_without_ipv6(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(Doors { cookie: cookie_of(&v4)?, v4, v6, loopback_up: loopback_is_up()? })
}

/// The number by which the kernel programs know the namespace that the calling thread is in.
pub fn cookie() -> io::Result<u64> {
    // Any socket tells, of whatever family.
    cookie_of(&UnixDatagram::unbound()?)
}

fn cookie_of(socket: &impl AsFd) -> io::Result<u64> {
    Hooks::netns_cookie_of(socket.as_fd()).map_err(io::Error::other)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Makes a listening socket, in the namespace that the calling thread is in. One that is held answers nobody until
/// [`Hooks::let_in`].
pub fn listener(address: &SocketAddr, is_held: bool) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = socket(family, SockType::Stream, flags, None)?;
    // Of an IPv6 socket too: the kernel keeps it in one place for both.
    setsockopt(&made, sockopt::IpFreebind, &true)?;
    let (v4, v6);
    let name: &dyn SockaddrLike = match address {
        SocketAddr::V4(address) => {
            v4 = SockaddrIn::from(*address);
            &v4
        }
        SocketAddr::V6(address) => {
            v6 = SockaddrIn6::from(*address);
            &v6
        }
    };
    bind(made.as_raw_fd(), name)?;
    if is_held {
        Hooks::hold_back(made.as_fd())?;
    }
    listen(&made, Backlog::new(BACKLOG)?)?;
    Ok(made.into())
}

fn loopback_is_up() -> io::Result<bool> {
    let up = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP;
    Ok(getifaddrs()?.any(|interface| interface.flags.contains(up)))
}

/// Whether an address is one of the interfaces' in the namespace that the calling thread is in.
pub fn has_address(address: IpAddr) -> io::Result<bool> {
    Ok(getifaddrs()?.filter_map(|interface| interface.address).any(|own| {
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::from(own.ip()));
        v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::from(own.ip()))) == Some(address)
    }))
}
