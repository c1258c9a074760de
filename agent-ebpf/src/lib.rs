//! The types that the kernel programs and the agent share.
//!
//! Enters: nothing. Leaves: plain layouts, made of integers and byte arrays alone, whose sizes are asserted, so
//! that both sides of a map read the same bytes. Must never hold: a pointer, a reference, an enum, a `bool`, or a
//! padding byte without a name (the kernel would compare or leak what lies in it).
//!
//! Addresses are 16 bytes in network order; an IPv4 address stands in its v4-mapped form (`::ffff:a.b.c.d`).
//! Ports are in the host's byte order, but in [`DestinationKey`].
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod task;

/// The version of these layouts, and so of the tables that outlive an agent. To be raised with each change of one.
pub const LAYOUT: u32 = 1;

/// How many redirected connections may wait for the agent to accept them. Past it a connect is refused.
pub const PENDING_ROOM: u32 = 65_536;
/// How many accepted connections may be without a flow record.
pub const TAKEN_ROOM: u32 = 131_072;
/// How many of Weir's own ports can be protected.
pub const OWN_PORTS_ROOM: u32 = 256;
/// How many jobs can be accounted for at a time. What is past it is counted under [`STRAY_JOB`].
pub const JOBS_ROOM: u32 = 16_384;
/// How many cgroups can be selected at a time.
pub const CGROUPS_ROOM: u32 = 16_384;
/// How many executables, and how many users.
pub const SELECTORS_ROOM: u32 = 1024;
/// How many destinations with an action of their own.
pub const DESTINATIONS_ROOM: u32 = 16_384;
/// How many network namespaces can have listeners.
pub const NETNS_ROOM: u32 = 4096;
/// How many connects of one network namespace and family can wait for the agent to dial their destination.
pub const HELD_SLOTS: u32 = 8;
/// How many listeners there can be in all in which connects wait.
pub const HELD_ROOM: u32 = 1 << 15;
/// Bytes of the ring in which it is told that one waits.
pub const WAITING_BYTES: u32 = 1 << 16;
/// How many destinations are remembered to have been reached lately.
pub const REACHED_ROOM: u32 = 4096;
/// Bytes of the ring in which connects are told that the agent does not see otherwise.
pub const CONNECTS_BYTES: u32 = 1 << 20;
/// What the agent's own sockets are marked with: one that may connect anywhere, and a listener.
pub const MARK_EXEMPT: u32 = 1;
pub const MARK_LISTENER: u32 = 2;

/// The job of a socket whose own job is not accounted for any more.
pub const STRAY_JOB: u64 = 0;

/// Names one redirected connection as the agent's listener sees it: by the client's end of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The network namespace of the client's socket; the same address and port may exist in another one.
    pub netns_cookie: u64,
    pub source: [u8; 16],
    pub source_port: u16,
    /// The agent's port, if the connect waits at a listener of its own: from one address and port a client can connect to that
    /// one and to the usual one. 0: it is the usual one.
    pub held_port: u16,
    pub reserved: [u8; 4],
}

impl FlowKey {
    pub const fn new(netns_cookie: u64, source: [u8; 16], source_port: u16) -> Self {
        Self { netns_cookie, source, source_port, held_port: 0, reserved: [0; 4] }
    }
}

/// One of the agent's listeners in which a connect waits, see [`reason::HELD`]. Whoever takes the entry out has the listener for
/// itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldKey {
    pub netns_cookie: u64,
    /// 1: of the IPv6 loopback address.
    pub is_v6: u32,
    /// Below [`HELD_SLOTS`].
    pub slot: u32,
}

/// Told when a connect begins to wait.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub key: FlowKey,
    pub destination: [u8; 16],
    pub destination_port: u16,
    pub reserved: [u8; 6],
}

/// A destination, as one network namespace sees it. In the table with the time, since boot in nanoseconds, until which it counts
/// as reached: the agent had dialled it shortly before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReachedKey {
    pub netns_cookie: u64,
    pub address: [u8; 16],
    pub port: u16,
    pub reserved: [u8; 6],
}

impl ReachedKey {
    pub const fn new(netns_cookie: u64, address: [u8; 16], port: u16) -> Self {
        Self { netns_cookie, address, port, reserved: [0; 6] }
    }
}

/// One connect (or refused datagram or socket): where it was meant to go, and who made it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOrigin {
    pub netns_cookie: u64,
    /// The cgroup of the calling thread (the inode of its folder in the cgroup2 hierarchy).
    pub cgroup_id: u64,
    /// Nanoseconds since boot, suspension included: the clock of field 22 of `/proc/PID/stat`.
    pub connected_at: u64,
    /// Under which the connect is counted, see [`JobCounts`].
    pub job: u64,
    /// When the process began, on the same clock; 0 where lineage does not know it.
    pub process_start: u64,
    /// Process and thread, in the initial pid namespace.
    pub tgid: u32,
    pub tid: u32,
    /// User and group, in the initial user namespace.
    pub uid: u32,
    pub gid: u32,
    pub destination: [u8; 16],
    /// What the socket is bound to; zeros for what the kernel would have chosen.
    pub source: [u8; 16],
    pub destination_port: u16,
    pub source_port: u16,
    /// See [`verdict`].
    pub verdict: u8,
    /// See [`reason`].
    pub reason: u8,
    /// The IPPROTO; MPTCP is 6 (TCP). Of a refused socket its low byte.
    pub protocol: u8,
    /// Whether the connection was begun: its SYN was about to be sent.
    pub begun: u8,
    /// The thread's name, padded with zeros. Chosen by the thread itself: for display alone.
    pub comm: [u8; 16],
}

/// Names one connect in [`FlowOrigin`]'s own terms: no thread makes two in one nanosecond.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectKey {
    pub connected_at: u64,
    pub tid: u32,
    pub reserved: u32,
}

impl ConnectKey {
    pub const fn of(origin: &FlowOrigin) -> Self {
        Self { connected_at: origin.connected_at, tid: origin.tid, reserved: 0 }
    }
}

/// The agent's listeners in one network namespace, to which connects are led.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    pub v6: [u8; 16],
    pub v4: [u8; 4],
    pub v6_port: u16,
    pub v4_port: u16,
}

/// What the hooks consult besides the tables. One element, changed as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// At which depths below the hierarchy's root cgroups are selected: up to sixteen numbers of four bits, the deepest
    /// in the lowest bits, ended by a 0. Ancestors at other depths are not looked up.
    pub cgroup_levels: u64,
    /// This agent's network namespace, in which Weir's own ports are protected.
    pub host_netns: u64,
    /// Whether there are selected users, and selected executables.
    pub by_user: u32,
    pub by_executable: u32,
    /// The [`action`] for destinations that are not in the table.
    pub unknown: u32,
    /// Bit `n`: without an agent, connects with [`action`] `n` go on to their destination instead of being refused.
    pub open_actions: u32,
    /// The error of a connect that is refused for want of an agent or a listener.
    pub errno: u32,
    pub reserved: u32,
}

impl Settings {
    /// How many depths can be named.
    pub const LEVELS: usize = 16;

    /// The form of [`Settings::cgroup_levels`] for these depths below the root. None: one of them is 0 or more than 15.
    pub fn pack_levels(depths: impl IntoIterator<Item = usize>) -> Option<u64> {
        let mut there = [false; Self::LEVELS];
        for depth in depths {
            *there.get_mut(depth).filter(|_| depth > 0)? = true;
        }
        // The shallowest first, so that the deepest comes to lie lowest.
        let present = there.iter().enumerate().filter(|(_, is_there)| **is_there);
        Some(present.fold(0, |packed, (depth, _)| packed << 4 | depth as u64))
    }
}

/// What is selected by a cgroup, an executable or a user.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Under which its connects are counted; for an executable 0: each start is a job of its own.
    pub job: u64,
    /// See [`flag`].
    pub flags: u32,
    pub reserved: u32,
}

/// What a socket or process belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub job: u64,
    /// When the process began, nanoseconds since boot; 0 in a socket's tag.
    pub process_start: u64,
    /// See [`flag`].
    pub flags: u32,
    /// 1: given by the start of a selected executable, which goes before the cgroup's.
    pub by_executable: u32,
}

/// What is counted of one job. All of it only grows, for as long as the job is in the table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// By [`verdict`].
    pub verdicts: [u64; verdict::KINDS as usize],
    /// Those of them that should have been told in the ring of connects, and for which it had no room.
    pub lost: [u64; verdict::KINDS as usize],
}

/// Of what was lost, how much is recorded as such. The agent's alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostTold {
    /// By [`verdict`].
    pub verdicts: [u64; verdict::KINDS as usize],
}

/// Looked up twice: with the port, then with port 0, which is any.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// Network order.
    pub port: [u8; 2],
    pub reserved: [u8; 2],
    pub address: [u8; 16],
}

impl DestinationKey {
    /// Bits before the address.
    pub const PORT_BITS: u32 = 32;

    pub const fn new(port: u16, address: [u8; 16]) -> Self {
        Self { port: port.to_be_bytes(), reserved: [0; 2], address }
    }
}

/// An executable by its file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    pub inode: u64,
    /// As the kernel holds it (`MKDEV`: major << 20 | minor).
    pub device: u32,
    pub reserved: u32,
}

/// What becomes of a connect. Each of a selected process is counted in exactly one of them.
pub mod verdict {
    /// Led to the agent's listener.
    pub const REDIRECTED: u8 = 0;
    /// Left alone by policy, or since there is no agent and the failure mode is open.
    pub const PASSED: u8 = 1;
    /// Refused by policy; see the reason.
    pub const REFUSED: u8 = 2;
    /// Refused as the kernel would have: nobody listens at that loopback address.
    pub const UNANSWERED: u8 = 3;
    /// Refused since its origin could not be kept.
    pub const FAILED: u8 = 4;
    /// A datagram to an intercepted port, refused.
    pub const DATAGRAM: u8 = 5;
    /// A raw socket, or one of a protocol that the hooks cannot see into, refused at its creation.
    pub const SOCKET: u8 = 6;
    /// No verdict: of the redirected connects, those whose connection was begun, or that were told of as never begun. The
    /// others are still to come.
    pub const BEGUN: u8 = 7;
    pub const KINDS: u8 = 8;
}

/// Why.
pub mod reason {
    pub const NONE: u8 = 0;
    /// One of Weir's own ports.
    pub const OWN_PORT: u8 = 1;
    /// The destination's action is deny.
    pub const DENIED: u8 = 2;
    /// The job may reach named destinations alone.
    pub const NOT_NAMED: u8 = 3;
    /// The agent has no listener in the network namespace yet.
    pub const NO_LISTENER: u8 = 4;
    /// No agent is running.
    pub const NO_AGENT: u8 = 5;
    /// Redirected, and the connection was never begun.
    pub const NEVER_BEGUN: u8 = 6;
    /// Redirected, and over before the agent accepted it.
    pub const WITHDRAWN: u8 = 7;
    /// The destination's action is pass.
    pub const PASS: u8 = 8;
    /// Redirected to a listener that answers nobody before the agent has dialled the destination.
    pub const HELD: u8 = 9;
    /// The same, and nobody listened there. The agent's alone.
    pub const NOBODY_LISTENS: u8 = 10;
}

/// What becomes of connects to a destination.
pub mod action {
    /// In the table: as if it were not there.
    pub const UNKNOWN: u32 = 0;
    /// To the agent, which reads it.
    pub const INTERCEPT: u32 = 1;
    /// To the agent, which relays it, and records name and bytes.
    pub const RELAY: u32 = 2;
    /// Left alone, and recorded.
    pub const PASS: u32 = 3;
    /// Refused.
    pub const DENY: u32 = 4;
}

/// What holds for all of a job.
pub mod flag {
    /// Destinations that are not named are refused.
    pub const STRICT: u32 = 1;
}

/// Slots of the per-CPU counters, of the whole host.
pub mod counter {
    /// Connects of the agent's own sockets, left alone.
    pub const EXEMPT: u32 = 0;
    /// Connects counted under [`super::STRAY_JOB`] since their job is not in the table.
    pub const STRAY: u32 = 1;
    /// Processes that could not be tagged: the table is full.
    pub const TASKS_FULL: u32 = 2;
    /// Jobs that could not be accounted for on their own: the table is full.
    pub const JOBS_FULL: u32 = 3;
    /// Task events for which the ring had no room.
    pub const TASK_EVENTS_LOST: u32 = 4;
    /// Connects to private destinations that found no listener to wait in, and were redirected as others are.
    pub const NOT_HELD: u32 = 5;
    pub const SLOTS: u32 = 8;
}

const _: () = {
    assert!(size_of::<FlowKey>() == 32 && align_of::<FlowKey>() == 8);
    assert!(size_of::<HeldKey>() == 16 && align_of::<HeldKey>() == 8);
    assert!(size_of::<Waiting>() == 56 && align_of::<Waiting>() == 8);
    assert!(size_of::<ReachedKey>() == 32 && align_of::<ReachedKey>() == 8);
    assert!(size_of::<FlowOrigin>() == 112 && align_of::<FlowOrigin>() == 8);
    assert!(size_of::<ConnectKey>() == 16 && align_of::<ConnectKey>() == 8);
    assert!(size_of::<Listeners>() == 24 && align_of::<Listeners>() == 2);
    assert!(size_of::<Settings>() == 40 && align_of::<Settings>() == 8);
    assert!(size_of::<Selected>() == 16 && align_of::<Selected>() == 8);
    assert!(size_of::<Tag>() == 24 && align_of::<Tag>() == 8);
    assert!(size_of::<JobCounts>() == 128 && align_of::<JobCounts>() == 8);
    assert!(size_of::<LostTold>() == 64 && align_of::<LostTold>() == 8);
    assert!(size_of::<DestinationKey>() == 20 && align_of::<DestinationKey>() == 1);
    assert!(size_of::<FileKey>() == 16 && align_of::<FileKey>() == 8);
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! plain {
        ($($layout:ty),*) => {$(
            // SAFETY: `repr(C)`, made of integers and byte arrays, without padding (asserted above): any bytes are valid.
            unsafe impl aya::Pod for $layout {}
        )*};
    }

    plain!(
        LostTold,
        FlowKey,
        HeldKey,
        Waiting,
        ReachedKey,
        FlowOrigin,
        ConnectKey,
        Listeners,
        Settings,
        Selected,
        Tag,
        JobCounts,
        DestinationKey,
        FileKey,
        task::TaskEvent,
        task::NamedEvent,
        task::Offsets
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_level_is_looked_up_first() {
        assert_eq!(Settings::pack_levels([2, 5, 2]), Some(0x25));
        assert_eq!(Settings::pack_levels(1..=15), Some(0x0123_4567_89ab_cdef));
        assert_eq!(Settings::pack_levels([]), Some(0));
        assert_eq!((Settings::pack_levels([0]), Settings::pack_levels([16])), (None, None));
    }
}
