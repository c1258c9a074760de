//! UDP: what would be QUIC to an intercepted port is refused, so that clients come back by TCP.
//!
//! Enters: a connect or a send of a datagram socket. Leaves: it as it was, or a refusal (EPERM). Must never: refuse what the
//! operator did not say is to be intercepted or denied, DNS above all.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{bindings::bpf_sock_addr, helpers::bpf_get_netns_cookie};
use weir_ebpf::{action, reason, verdict};

use crate::{
    account::{count, tell},
    connect::{PROCEED, REFUSE},
    destination::Destination,
    origin, select,
};

const IPPROTO_ICMP: u32 = 1;
const IPPROTO_ICMPV6: u32 = 58;

#[inline(never)]
pub fn connect4(ctx: *mut bpf_sock_addr) -> i32 {
    answer(ctx, Destination::v4(ctx))
}

#[inline(never)]
pub fn connect6(ctx: *mut bpf_sock_addr) -> i32 {
    answer(ctx, Destination::v6(ctx))
}

#[inline(always)]
fn answer(ctx: *mut bpf_sock_addr, mut to: Destination) -> i32 {
    // SAFETY: `ctx` is valid, and in these hooks its socket is never null.
    let (sk, protocol) = unsafe { ((*ctx).__bindgen_anon_1.sk, read_volatile(addr_of!((*ctx).protocol))) };
    // Pings have no port, and carry no call.
    if protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 {
        return PROCEED;
    }
    let mut tag = select::nobody();
    if !select::of_socket(sk, sk, &mut tag) {
        return PROCEED;
    }
    let Some(settings) = select::settings() else { return PROCEED };
    origin::settle(&mut to, sk);
    let reason = match to.action(settings, &tag) {
        None => reason::NOT_NAMED,
        Some(action::INTERCEPT) => reason::NONE,
        Some(action::DENY) => reason::DENIED,
        Some(_) => return PROCEED,
    };
    // SAFETY: reads the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let mut origin = origin::blank();
    let origin = origin::begin(&mut origin, netns_cookie, &tag, &to, protocol as u8);
    origin.verdict = verdict::DATAGRAM;
    origin.reason = reason;
    count(origin);
    tell(origin, false);
    REFUSE
}
