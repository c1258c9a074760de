//! The hostile client: a process that enters its cgroup and then does everything at once.
//!
//! Enters: where to go. Leaves: nothing but connects. Must never: end before its rounds are over, or leave the host.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use nix::libc;

pub const ORDERS: &str = "WEIR_TEST_CHURN";

const THREADS: u64 = 8;
const ROUNDS: u64 = 4000;
const SOCKETS: u64 = 24;
/// Ports that all of them bind to.
const PORTS: u64 = 6;
const MSG_FASTOPEN: i32 = 0x2000_0000;

pub fn run(orders: &str) {
    let mut orders = orders.split_whitespace();
    let procs = orders.next().unwrap();
    let ports: Vec<u16> = orders.map(|port| port.parse().unwrap()).collect();
    let [server_v4, server_v6, passed, silent] = ports[..] else { panic!("{ports:?}") };
    std::fs::write(procs, std::process::id().to_string()).unwrap();
    let local = Ipv4Addr::LOCALHOST;
    let v4 = [
        SocketAddrV4::new(local, server_v4),
        SocketAddrV4::new(local, passed),
        SocketAddrV4::new(local, silent),
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 80),
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, server_v4),
    ];
    let v6 = [
        SocketAddrV6::new(Ipv6Addr::LOCALHOST, server_v6, 0, 0),
        SocketAddrV6::new(local.to_ipv6_mapped(), server_v4, 0, 0),
    ];
    let first_port = 20_000 + std::process::id() as u16 % 20_000;
    // Shared, so that a thread closes what another connects.
    let sockets: Vec<AtomicI32> = (0..SOCKETS).map(|_| AtomicI32::new(-1)).collect();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let sockets = &sockets;
            scope.spawn(move || {
                let mut dice = Dice(thread + 1);
                for _ in 0..ROUNDS {
                    let held = &sockets[dice.up_to(SOCKETS) as usize];
                    let fd = held.load(Ordering::Relaxed);
                    match dice.up_to(16) {
                        0..4 => {
                            let is_v6 = dice.up_to(3) == 0;
                            let made = open(is_v6, if dice.up_to(4) == 0 { libc::IPPROTO_MPTCP } else { 0 });
                            if !is_v6 && dice.up_to(2) == 0 {
                                bind(made, first_port + dice.up_to(PORTS) as u16);
                            }
                            close(held.swap(made, Ordering::Relaxed));
                        }
                        4..10 => drop(connect(fd, Address::V4(v4[dice.up_to(5) as usize]))),
                        10 => drop(connect(fd, Address::V6(v6[dice.up_to(2) as usize]))),
                        11 => drop(connect(fd, Address::None)),
                        12 => send(fd, v4[dice.up_to(5) as usize], MSG_FASTOPEN),
                        13 => {
                            reset(fd);
                            close(held.swap(-1, Ordering::Relaxed));
                        }
                        14 => close(held.swap(-1, Ordering::Relaxed)),
                        _ => {
                            // SAFETY: takes numbers.
                            close(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, 255) });
                            // SAFETY: takes numbers.
                            let datagram = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
                            send(datagram, SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 3), 443), 0);
                            close(datagram);
                        }
                    }
                }
            });
        }
    });
    sockets.iter().for_each(|held| close(held.swap(-1, Ordering::Relaxed)));
}

/// xorshift64*
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }
}

#[derive(Clone, Copy)]
enum Address {
    V4(SocketAddrV4),
    V6(SocketAddrV6),
    /// AF_UNSPEC
    None,
}

fn open(is_v6: bool, protocol: i32) -> i32 {
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: takes numbers.
    unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, protocol) }
}

fn sockaddr_v4(at: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: at.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(at.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn connect(fd: i32, to: Address) -> i32 {
    let of = |address: *const libc::sockaddr, size: usize| {
        // SAFETY: the address is initialised, and as long as is said.
        unsafe { libc::connect(fd, address, size as u32) }
    };
    match to {
        Address::V4(at) => {
            let address = sockaddr_v4(at);
            of((&raw const address).cast(), size_of::<libc::sockaddr_in>())
        }
        Address::V6(at) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: at.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: at.ip().octets() },
                sin6_scope_id: 0,
            };
            of((&raw const address).cast(), size_of::<libc::sockaddr_in6>())
        }
        Address::None => of([0_u64; 2].as_ptr().cast(), 16),
    }
}

fn bind(fd: i32, port: u16) {
    let address = sockaddr_v4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let on = 1_i32;
    // SAFETY: both values are initialised, and as long as is said.
    unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, (&raw const on).cast(), 4);
        libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_in>() as u32);
    }
}

fn send(fd: i32, to: SocketAddrV4, flags: i32) {
    let address = sockaddr_v4(to);
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: as in `bind`.
    unsafe {
        libc::sendto(fd, b"early".as_ptr().cast(), 5, flags, (&raw const address).cast(), 16);
    }
}

fn reset(fd: i32) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: as in `bind`.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const now).cast(), 8) };
}

fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: one of this program's own sockets, of which nothing but numbers is kept.
        unsafe { libc::close(fd) };
    }
}
