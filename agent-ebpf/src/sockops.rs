//! sock_ops: hands the origin of a redirected connect over to the agent, under the name by which the agent will see
//! the connection.
//!
//! Enters: the socket's events. Leaves: an entry in `PENDING`, or none where the connection died before the agent
//! could want it. Must never: let a connection live whose origin is not in `PENDING`.

use core::ptr::{addr_of, from_ref, null_mut, read_volatile};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
        BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT, bpf_sock_ops,
    },
    helpers::{bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_storage_get, bpf_sock_ops_cb_flags_set},
};
use weir_ebpf::{
    FlowKey, FlowOrigin,
    address::{bytes, mapped},
    counter,
};

use crate::{ORIGINS, PENDING, count};

const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;

pub fn on_event(ctx: *mut bpf_sock_ops) {
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    let op = unsafe { read_volatile(addr_of!((*ctx).op)) };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => hand_over(ctx),
        BPF_SOCK_OPS_STATE_CB => withdraw(ctx),
        _ => {}
    }
}

/// The local port is known and the SYN not yet sent: the entry is there before the agent can accept.
fn hand_over(ctx: *mut bpf_sock_ops) {
    let Some(origin) = origin(ctx) else { return };
    // SAFETY: `origin` lies in the socket's storage, which lives as long as the socket does.
    let origin = unsafe { &*origin };
    // An entry under the same key is of a connection that is dead by now: the kernel gave its port away.
    let kept = PENDING.insert(key(ctx, origin.netns_cookie), origin, 0).is_ok() && watch_state(ctx);
    if !kept {
        count(counter::REDIRECTED, 1_u64.wrapping_neg());
        count(counter::FAILED, 1);
        sever(ctx);
    }
}

/// A connection that failed (SYN_SENT) or was reset (ESTABLISHED) takes its origin with it, before its port can be
/// used again. After an orderly end the agent may still accept it and read what the client has sent.
fn withdraw(ctx: *mut bpf_sock_ops) {
    // SAFETY: as in `on_event`; a state change fills the first two arguments.
    let (from, to) = unsafe {
        (
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[0])),
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[1])),
        )
    };
    if to == BPF_TCP_CLOSE && (from == BPF_TCP_SYN_SENT || from == BPF_TCP_ESTABLISHED) {
        // SAFETY: reads the context.
        let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
        // Absent when the agent has taken it already.
        let _ = PENDING.remove(key(ctx, netns_cookie));
    }
}

/// What `connect4` or `connect6` wrote down. None: not one of theirs, or the agent's own socket.
fn origin(ctx: *mut bpf_sock_ops) -> Option<*const FlowOrigin> {
    // SAFETY: as in `on_event`.
    let sk = unsafe { (*ctx).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the map is a socket storage of `FlowOrigin`, the socket the context's own, not null; without the create
    // flag no value is read.
    let kept = unsafe { bpf_sk_storage_get(from_ref(&ORIGINS).cast_mut().cast(), sk.cast(), null_mut(), 0) };
    if kept.is_null() { None } else { Some(kept.cast_const().cast()) }
}

/// The connection as the agent's listener will see its peer.
fn key(ctx: *mut bpf_sock_ops, netns_cookie: u64) -> FlowKey {
    // SAFETY: as in `on_event`. Word by word, as the verifier wants it.
    let (family, v4, v6, port) = unsafe {
        (
            read_volatile(addr_of!((*ctx).family)),
            read_volatile(addr_of!((*ctx).local_ip4)),
            [
                read_volatile(addr_of!((*ctx).local_ip6[0])),
                read_volatile(addr_of!((*ctx).local_ip6[1])),
                read_volatile(addr_of!((*ctx).local_ip6[2])),
                read_volatile(addr_of!((*ctx).local_ip6[3])),
            ],
            read_volatile(addr_of!((*ctx).local_port)),
        )
    };
    let source = if family == AF_INET { mapped(v4.to_ne_bytes()) } else { bytes(v6) };
    FlowKey::new(netns_cookie, source, port as u16)
}

/// Asks for this socket's state changes.
fn watch_state(ctx: *mut bpf_sock_ops) -> bool {
    // SAFETY: as in `on_event`.
    unsafe {
        let flags = read_volatile(addr_of!((*ctx).bpf_sock_ops_cb_flags)) | BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_sock_ops_cb_flags_set(ctx, flags as i32) == 0
    }
}

/// Makes the connect in progress fail at once (EHOSTUNREACH): a sock_ops program cannot refuse, but the kernel looks
/// the route up again after this callback, and there is none through a device that does not exist. The socket is of no
/// more use; its owner makes another. Should a route be found all the same, the agent resets the connection, which has
/// no origin.
fn sever(ctx: *mut bpf_sock_ops) {
    let mut no_device = i32::MAX;
    // SAFETY: the value is an `int` on the stack and its size is given.
    unsafe {
        bpf_setsockopt(
            ctx.cast(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut no_device).cast(),
            size_of::<i32>() as i32,
        );
    }
}
