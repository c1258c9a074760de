//! `sock_ops`: hands the origin of a redirected connection over to the agent.
//!
//! Enters: the socket's life, from the moment before its SYN. Leaves: an entry in `PENDING` under the client's end of the
//! connection, for the agent's accept to find. Must never: let a connection go on whose entry could not be made, or an
//! entry disappear without being told.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT, bpf_sock_ops,
    },
    helpers::{bpf_setsockopt, bpf_sock_ops_cb_flags_set},
};
use weir_ebpf::{
    FlowKey, FlowOrigin,
    address::{bytes, mapped},
    reason,
};

use crate::{
    PENDING, SO_BINDTOIFINDEX, SOL_SOCKET,
    account::{count_begun, fail, tell},
    held, origin, owner,
};

const AF_INET: u32 = 2;
const IPPROTO_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
/// How soon a connect that waits sends its SYN anew, in ticks of the kernel's; later ones follow at twice the time.
const FIRST_RETRY: u32 = 1;
/// How many SYNs such a connect sends anew before it gives up: as the first comes early, the usual number would be sent within half
/// a second. The agent gives up long before the last.
const RETRIES: i32 = 14;

/// What the program is to return: 0 asks for no reply.
pub fn on_event(ctx: *mut bpf_sock_ops) -> u32 {
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    let op = unsafe { read_volatile(addr_of!((*ctx).op)) };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => hand_over(ctx),
        BPF_SOCK_OPS_STATE_CB => withdraw(ctx),
        BPF_SOCK_OPS_TIMEOUT_INIT => return hurry(ctx),
        _ => {}
    }
    0
}

/// Where the connect waits for the agent, its next SYN is to come soon. Of any other the kernel's own answer stays.
fn hurry(ctx: *mut bpf_sock_ops) -> u32 {
    // SAFETY: as in `on_event`.
    let sk = unsafe { (*ctx).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 0;
    }
    let Some(origin) = origin::of(owner::of(sk)) else { return 0 };
    // SAFETY: as in `hand_over`.
    if unsafe { (*origin).reason } != reason::HELD {
        return 0;
    }
    // SAFETY: as in `on_event`.
    unsafe { write_volatile(addr_of_mut!((*ctx).__bindgen_anon_1.reply), FIRST_RETRY) };
    1
}

/// The local port is known and the SYN not yet sent: the entry is there before the agent can accept.
fn hand_over(ctx: *mut bpf_sock_ops) {
    // SAFETY: as in `on_event`.
    let sk = unsafe { (*ctx).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let Some(origin) = origin::of(owner::of(sk)) else { return };
    // SAFETY: `origin` lies in the socket's storage, which lives as long as the socket does.
    let origin = unsafe { &mut *origin };
    if origin.begun != 0 {
        // Of an earlier connect: this one was not led anywhere.
        return;
    }
    origin.begun = 1;
    count_begun(origin);
    let key = key(ctx, origin);
    // An entry under the same key is of a connection that is dead by now: the kernel gave its port away.
    tell_withdrawn(&key, |_| true);
    let kept = PENDING.insert(key, *origin, 0).is_ok();
    if !(kept && watch_state(ctx)) {
        if kept {
            let _ = PENDING.remove(key);
        }
        fail(origin);
        tell(origin, false);
        sever(ctx);
    } else if origin.reason == reason::HELD {
        retry_often(ctx);
        held::tell(&key, origin);
    }
}

/// A connection that failed (SYN_SENT) or was reset (ESTABLISHED) takes its origin with it, before its port can be
/// used again. After an orderly end the agent may still accept it and read what the client has sent.
fn withdraw(ctx: *mut bpf_sock_ops) {
    // SAFETY: as in `on_event`; a state change fills the first two arguments.
    let (sk, from, to) = unsafe {
        (
            (*ctx).__bindgen_anon_2.sk,
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[0])),
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[1])),
        )
    };
    if sk.is_null() || to != BPF_TCP_CLOSE || !(from == BPF_TCP_SYN_SENT || from == BPF_TCP_ESTABLISHED) {
        return;
    }
    let Some(own) = origin::of(owner::of(sk)) else { return };
    // SAFETY: as in `hand_over`.
    let own = unsafe { &*own };
    // Its own entry alone: the socket may have gone elsewhere since, and share its port with another on its way to the agent.
    tell_withdrawn(&key(ctx, own), |entry| entry.connected_at == own.connected_at && entry.tid == own.tid);
}

/// Takes an entry out that the agent has not taken, and tells of it. Only one of them and us can remove it.
#[inline(always)]
fn tell_withdrawn(key: &FlowKey, is_it: impl Fn(&FlowOrigin) -> bool) {
    // SAFETY: a plain value, copied out. Should the agent remove it at this moment, so that another took its place in
    // memory, our removal fails and the copy is not used.
    let Some(origin) = (unsafe { PENDING.get(key) }) else { return };
    let mut origin: FlowOrigin = *origin;
    if !is_it(&origin) {
        return;
    }
    if PENDING.remove(key).is_ok() {
        origin.reason = reason::WITHDRAWN;
        tell(&origin, false);
    }
}

/// The connection as the agent's listener will see its peer.
fn key(ctx: *mut bpf_sock_ops, origin: &FlowOrigin) -> FlowKey {
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
    let mut key = FlowKey::new(origin.netns_cookie, source, port as u16);
    if origin.reason == reason::HELD {
        // SAFETY: as in `on_event`. In network order, in the upper half.
        key.held_port = unsafe { u32::from_be(read_volatile(addr_of!((*ctx).remote_port))) } as u16;
    }
    key
}

/// Has this socket's SYN sent anew so often as [`RETRIES`] says. Should that fail, it gives up early.
fn retry_often(ctx: *mut bpf_sock_ops) {
    let mut retries = RETRIES;
    // SAFETY: as in `sever`.
    unsafe {
        bpf_setsockopt(
            ctx.cast(),
            IPPROTO_TCP,
            TCP_SYNCNT,
            (&raw mut retries).cast(),
            size_of::<i32>() as i32,
        );
    }
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
