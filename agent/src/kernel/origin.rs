//! An origin as the agent reads it: one connect, who made it, and what the hooks made of it.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use weir_ebpf::{ConnectKey, FlowOrigin};

/// Where a connection was meant to go, and who made it, as the kernel saw it at `connect(2)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// A v4-mapped address is given as IPv4, and the unspecified address as the loopback that it stands for.
    pub destination: SocketAddr,
    /// What the client's socket was bound to; unspecified and 0 for what the kernel was to choose.
    pub source: SocketAddr,
    /// In the initial pid namespace.
    pub tgid: u32,
    pub tid: u32,
    /// In the initial user namespace.
    pub uid: u32,
    pub gid: u32,
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    /// Since boot (CLOCK_BOOTTIME), to be compared with the start time in `/proc/PID/stat`.
    pub connected_at: Duration,
    /// When the process began, on the same clock, if lineage knows it.
    pub process_start: Option<Duration>,
    /// Under which the connect is counted.
    pub job: u64,
    /// See [`weir_ebpf::verdict`].
    pub verdict: u8,
    /// See [`weir_ebpf::reason`].
    pub reason: u8,
    /// The IPPROTO; MPTCP is 6 (TCP).
    pub protocol: u8,
    /// The name that the thread gave itself: for display alone.
    pub comm: String,
}

impl Origin {
    pub(super) fn key(&self) -> ConnectKey {
        let connected_at = u64::try_from(self.connected_at.as_nanos()).unwrap_or(u64::MAX);
        ConnectKey { connected_at, tid: self.tid, reserved: 0 }
    }
}

impl From<FlowOrigin> for Origin {
    fn from(flow: FlowOrigin) -> Self {
        let ip = |address: [u8; 16]| Ipv6Addr::from(address).to_canonical();
        let name = flow.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            destination: SocketAddr::new(ip(flow.destination), flow.destination_port),
            source: SocketAddr::new(ip(flow.source), flow.source_port),
            tgid: flow.tgid,
            tid: flow.tid,
            uid: flow.uid,
            gid: flow.gid,
            cgroup_id: flow.cgroup_id,
            netns_cookie: flow.netns_cookie,
            connected_at: Duration::from_nanos(flow.connected_at),
            process_start: (flow.process_start != 0).then(|| Duration::from_nanos(flow.process_start)),
            job: flow.job,
            verdict: flow.verdict,
            reason: flow.reason,
            protocol: flow.protocol,
            comm: String::from_utf8_lossy(name).into_owned(),
        }
    }
}
