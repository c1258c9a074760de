//! The types that the kernel programs and the agent share.
//!
//! Enters: nothing. Leaves: plain layouts, made of integers and byte arrays alone, whose sizes are asserted, so
//! that both sides of a map read the same bytes. Must never hold: a pointer, a reference, an enum, a `bool`, or a
//! padding byte without a name (the kernel would compare or leak what lies in it).
//!
//! Addresses are 16 bytes in network order; an IPv4 address stands in its v4-mapped form (`::ffff:a.b.c.d`).
//! Ports are in the host's byte order.
#![cfg_attr(not(test), no_std)]

pub mod address;

/// How many redirected connections may wait for the agent to accept them. Past it a connect is refused.
pub const PENDING_ROOM: u32 = 65_536;

/// How many of Weir's own ports can be protected.
pub const OWN_PORTS_ROOM: u32 = 256;

/// Names one redirected connection as the agent's listener sees it: by the client's end of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The network namespace of the client's socket; the same address and port may exist in another one.
    pub netns_cookie: u64,
    pub source: [u8; 16],
    pub source_port: u16,
    pub reserved: [u8; 6],
}

impl FlowKey {
    pub const fn new(netns_cookie: u64, source: [u8; 16], source_port: u16) -> Self {
        Self { netns_cookie, source, source_port, reserved: [0; 6] }
    }
}

/// Where a redirected connection was meant to go, and who made it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOrigin {
    pub netns_cookie: u64,
    /// The cgroup of the calling thread (the inode of its folder in the cgroup2 hierarchy).
    pub cgroup_id: u64,
    /// Nanoseconds since boot, suspension included: the clock of field 22 of `/proc/PID/stat`.
    pub connected_at: u64,
    /// Process and thread, in the initial pid namespace.
    pub tgid: u32,
    pub tid: u32,
    /// User and group, in the initial user namespace.
    pub uid: u32,
    pub gid: u32,
    pub destination: [u8; 16],
    pub destination_port: u16,
    pub reserved: [u8; 6],
    /// The thread's name, padded with zeros. Chosen by the thread itself: for display alone.
    pub comm: [u8; 16],
}

/// The agent's listeners, to which connects are led.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    pub v6: [u8; 16],
    pub v4: [u8; 4],
    pub v6_port: u16,
    pub v4_port: u16,
}

/// Slots of the per-CPU counters. Each TCP connect of a selected cgroup is counted in exactly one of them.
pub mod counter {
    /// Led to the agent's listener.
    pub const REDIRECTED: u32 = 0;
    /// Left alone: the socket is the agent's own.
    pub const PASSED: u32 = 1;
    /// Refused: it asked for one of Weir's own ports.
    pub const REFUSED: u32 = 2;
    /// Refused as the kernel would have: nobody listens at that loopback address.
    pub const UNANSWERED: u32 = 3;
    /// Refused since its origin could not be kept.
    pub const FAILED: u32 = 4;
    pub const SLOTS: u32 = 5;
}

const _: () = {
    assert!(size_of::<FlowKey>() == 32 && align_of::<FlowKey>() == 8);
    assert!(size_of::<FlowOrigin>() == 80 && align_of::<FlowOrigin>() == 8);
    assert!(size_of::<Listeners>() == 24 && align_of::<Listeners>() == 2);
};

#[cfg(feature = "user")]
mod user {
    use super::{FlowKey, FlowOrigin, Listeners};

    // SAFETY: `repr(C)`, made of integers and byte arrays, without padding (asserted above): any bytes are valid.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as for `FlowKey`.
    unsafe impl aya::Pod for FlowOrigin {}
    // SAFETY: as for `FlowKey`.
    unsafe impl aya::Pod for Listeners {}
}
