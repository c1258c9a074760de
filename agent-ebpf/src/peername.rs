//! `getpeername4` and `getpeername6`: a client of a redirected socket sees the address that it asked for.
//!
//! Enters: the address of the agent's listener. Leaves: the true destination. Must never: touch a socket that was not
//! redirected, or change the family.

use aya_ebpf::bindings::bpf_sock_addr;
use weir_ebpf::address;

use crate::{destination::Destination, origin};

const PROCEED: i32 = 1;

pub fn getpeername4(ctx: *mut bpf_sock_addr) -> i32 {
    if let Some((to, port)) = destination(ctx)
        && let Some(v4) = address::v4(to)
    {
        Destination::write_v4(ctx, v4, port);
    }
    PROCEED
}

pub fn getpeername6(ctx: *mut bpf_sock_addr) -> i32 {
    if let Some((to, port)) = destination(ctx) {
        Destination::write_v6(ctx, to, port);
    }
    PROCEED
}

#[inline(always)]
fn destination(ctx: *mut bpf_sock_addr) -> Option<([u8; 16], u16)> {
    // SAFETY: `ctx` is valid, and in these hooks its socket is never null.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    let kept = origin::of(sk)?;
    // SAFETY: lies in the socket's storage, which lives as long as the socket does.
    Some(unsafe { ((*kept).destination, (*kept).destination_port) })
}
