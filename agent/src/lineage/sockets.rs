//! What sockets a process has: connections from before it was followed, and sockets that no hook sees.
//!
//! Enters: a process's number. Leaves: what its descriptors and its network namespace's tables say. Must never: give one
//! socket twice for what several processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::kernel::socket_protocol;
use crate::process::proc;

/// Protocols whose connects the hooks see, or that reach no network.
const SEEN: [&str; 18] = [
    "UNIX",
    "UNIX-STREAM",
    "NETLINK",
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITE",
    "UDPLITEv6",
    "RAW",
    "RAWv6",
    "MPTCP",
    "MPTCPv6",
    "PING",
    "PINGv6",
    "ALG",
    "SCTP",
];
/// The most descriptors of one process that are looked at.
const MOST: usize = 16_384;

/// A connection that was there before; of UDP, a socket that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    pub protocol: &'static str,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Sockets that were told of already, by their inode.
#[derive(Debug, Default)]
pub struct Told {
    established: BTreeSet<u64>,
    unseen: BTreeSet<u64>,
}

impl Told {
    /// The process's connections, by TCP and UDP, that were not given before. Of a raw or unseen socket [`Told::unseen`] tells.
    pub fn established(&mut self, pid: u32) -> Vec<Established> {
        let sockets = sockets(pid);
        if sockets.is_empty() {
            return Vec::new();
        }
        let mut table = BTreeMap::new();
        for (file, protocol) in TABLES {
            // The kernel's own words, and as long as the namespace has connections.
            let text = fs::read_to_string(proc::folder(pid).join("net").join(file)).unwrap_or_default();
            table.extend(text.lines().filter_map(|line| row(line, protocol)));
        }
        let own = sockets.into_iter().filter(|(inode, _)| self.established.insert(*inode));
        own.filter_map(|(inode, _)| table.remove(&inode)).collect()
    }

    /// The protocols of the process's sockets that no hook sees, of those that were not given before.
    pub fn unseen(&mut self, pid: u32) -> Vec<String> {
        let new = sockets(pid).into_iter().filter(|(inode, _)| !self.unseen.contains(inode));
        let mut found = Vec::new();
        for (inode, descriptor) in new.collect::<Vec<_>>() {
            let link = proc::folder(pid).join("fd").join(descriptor);
            let Ok(protocol) = socket_protocol(&link) else { continue };
            if !SEEN.contains(&protocol.as_str()) {
                self.unseen.insert(inode);
                found.push(protocol);
            }
        }
        found
    }
}

/// Inode and descriptor.
fn sockets(pid: u32) -> BTreeMap<u64, String> {
    let entries = fs::read_dir(proc::folder(pid).join("fd")).into_iter().flatten().flatten().take(MOST);
    entries
        .filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            Some((inode, entry.file_name().into_string().ok()?))
        })
        .collect()
}

/// The kernel's tables of sockets, below `/proc/PID/net`. MPTCP's are those of the TCP connections beneath.
const TABLES: [(&str, &str); 6] = [
    ("tcp", "tcp"),
    ("tcp6", "tcp"),
    ("udp", "udp"),
    ("udp6", "udp"),
    ("udplite", "udplite"),
    ("udplite6", "udplite"),
];

/// A row of /proc/net/tcp or its sisters, if it is of an established connection: its inode and its ends.
fn row(line: &str, protocol: &'static str) -> Option<(u64, Established)> {
    // Of a datagram's socket: connected.
    const ESTABLISHED: &str = "01";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, remote, state, ..] = fields[..] else { return None };
    if state != ESTABLISHED {
        return None;
    }
    let inode = fields.get(9)?.parse().ok()?;
    Some((inode, Established { protocol, local: end(local)?, remote: end(remote)? }))
}

/// `0100007F:1F90`: words of four bytes in the host's order, in hexadecimal.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word =
        |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut octets = [0; 16];
        for (at, part) in octets.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// As linux/socket.h calls it, or its number.
pub fn family_name(family: u32) -> String {
    let name = match family {
        3 => "AX25",
        4 => "IPX",
        5 => "APPLETALK",
        9 => "X25",
        15 => "KEY",
        17 => "PACKET",
        21 => "RDS",
        24 => "PPPOX",
        26 => "LLC",
        27 => "IB",
        29 => "CAN",
        30 => "TIPC",
        31 => "BLUETOOTH",
        33 => "RXRPC",
        35 => "PHONET",
        40 => "VSOCK",
        41 => "KCM",
        42 => "QIPCRTR",
        43 => "SMC",
        44 => "XDP",
        45 => "MCTP",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_row_of_either_family_is_read() {
        assert_eq!(end("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(end("00000000000000000000000001000000:0050"), Some("[::1]:80".parse().unwrap()));
        assert_eq!(end("0000000000000000FFFF00000100007F:0050"), Some("127.0.0.1:80".parse().unwrap()));
        for garbage in ["", ":", "0100007F", "0100007F:zz", "01:0050", "ü00000000:1"] {
            assert_eq!(end(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_connection_is_given_once() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut told = Told::default();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let wanted = Established { protocol: "tcp", local, remote };
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(unconnected.local_addr().unwrap()).unwrap();
        let (local, remote) = (datagrams.local_addr().unwrap(), datagrams.peer_addr().unwrap());
        let by_udp = Established { protocol: "udp", local, remote };
        let first = told.established(std::process::id());
        assert!(first.contains(&wanted) && first.contains(&by_udp), "{first:?}");
        let own = unconnected.local_addr().unwrap();
        assert!(!first.iter().any(|found| found.local == own), "{first:?}");
        let again = told.established(std::process::id());
        assert!(!again.contains(&wanted) && !again.contains(&by_udp), "{again:?}");
        assert_eq!(told.unseen(std::process::id()), Vec::<String>::new());
    }
}
