//! Sockets as they are made and closed.
//!
//! Enters: each inet socket of a process below the attach cgroup. Leaves: a tag on those of selected processes whose cgroup does not tell as
//! much, or a refusal
//! (EPERM) of those whose traffic no hook would see. Must never: refuse a socket of a process that is not selected.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_get_netns_cookie};
use weir_ebpf::verdict;

use crate::{
    account::{count, tell},
    destination::Destination,
    origin, select,
};

const PROCEED: i32 = 1;
const REFUSE: i32 = 0;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_MPTCP: u32 = 262;

pub fn create(sk: *mut bpf_sock) -> i32 {
    let Some(select::Belonging { tag, by_cgroup }) = select::current() else { return PROCEED };
    // SAFETY: the context is the new socket, of which the verifier allows these reads.
    let (kind, protocol) =
        unsafe { (read_volatile(addr_of!((*sk).type_)), read_volatile(addr_of!((*sk).protocol))) };
    let is_seen = match kind {
        SOCK_STREAM => protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP,
        // Not UDP-Lite, whose connected sends pass no hook. Pings carry no call.
        SOCK_DGRAM => protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6,
        _ => false,
    };
    if is_seen {
        // Of others the socket's own cgroup tells as much, and a tag takes longer than all the rest that is done here.
        if !by_cgroup {
            select::tag_socket(sk, tag);
        }
        return PROCEED;
    }
    // SAFETY: reads the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(sk.cast()) };
    let nowhere = Destination { address: [0; 16], port: 0 };
    let mut origin = origin::blank();
    let origin = origin::begin(&mut origin, netns_cookie, &tag, &nowhere, protocol as u8);
    origin.verdict = verdict::SOCKET;
    count(origin);
    tell(origin, false);
    REFUSE
}

/// The last chance to tell of a connect that was counted and never begun.
pub fn release(sk: *mut bpf_sock) -> i32 {
    origin::let_go(sk);
    PROCEED
}
