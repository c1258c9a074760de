//! `connect4` and `connect6`: decide about one connect before the kernel makes it.
//!
//! Enters: the address that the caller gave. Leaves: the same, or the agent's listener in its place with the true
//! destination in the socket's storage, or an error for the caller. Must never: redirect a socket whose origin it could not
//! keep, or to a listener that is not the agent's.

use core::{
    hint::black_box,
    mem::offset_of,
    ptr::{addr_of, from_mut, from_ref, null_mut, read_volatile},
};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_addr, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
    },
    helpers::{
        bpf_get_netns_cookie, bpf_set_retval, bpf_setsockopt, bpf_sk_lookup_tcp, bpf_sk_release,
        bpf_sk_storage_get,
    },
};
use weir_ebpf::{
    FlowOrigin, Listeners, MARK_LISTENER, Settings, Tag, action,
    address::{self, mapped, words},
    reason, verdict,
};

use crate::{
    EXEMPT, NETNS, OWN_PORTS, SO_BINDTOIFINDEX, SOL_SOCKET,
    account::{count, recount, tell},
    datagram,
    destination::Destination,
    origin, select,
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

const ENOMEM: u32 = 12;
const ECONNREFUSED: u32 = 111;

/// What a program tells the kernel. A refusal without `bpf_set_retval` is EPERM to the caller.
pub const PROCEED: i32 = 1;
pub const REFUSE: i32 = 0;

/// What becomes of a connect.
enum Answer {
    Redirect(&'static Listeners),
    Pass,
    Refuse,
}

/// A verdict on the way to being counted.
struct Ruling {
    verdict: u8,
    reason: u8,
    /// 0 is EPERM.
    errno: u32,
}

pub fn connect4(ctx: *mut bpf_sock_addr) -> i32 {
    if is_tcp(ctx, AF_INET) { stream4(ctx) } else { datagram::connect4(ctx) }
}

pub fn connect6(ctx: *mut bpf_sock_addr) -> i32 {
    if is_tcp(ctx, AF_INET6) { stream6(ctx) } else { datagram::connect6(ctx) }
}

/// Out of line, as its sisters are: their stacks then lie in the same place.
#[inline(never)]
fn stream4(ctx: *mut bpf_sock_addr) -> i32 {
    match answer(ctx, Destination::v4(ctx)) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect(to) => {
            Destination::write_v4(ctx, to.v4, to.v4_port);
            PROCEED
        }
    }
}

#[inline(never)]
fn stream6(ctx: *mut bpf_sock_addr) -> i32 {
    let destination = Destination::v6(ctx);
    match answer(ctx, destination) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect(to) => {
            // A v4-mapped destination stays in its family: the socket may be bound to a v4-mapped source.
            match address::v4(destination.address) {
                Some(_) => Destination::write_v6(ctx, mapped(to.v4), to.v4_port),
                None => Destination::write_v6(ctx, to.v6, to.v6_port),
            }
            PROCEED
        }
    }
}

/// The whole decision, top to bottom.
#[inline(always)]
fn answer(ctx: *mut bpf_sock_addr, mut to: Destination) -> Answer {
    // SAFETY: `ctx` is valid, and in a connect hook its socket is never null.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    let Some(tag) = select::of_socket(sk) else { return Answer::Pass };
    if mark_of(sk) != 0 {
        origin::count_exempt();
        return Answer::Pass;
    }
    let Some(settings) = select::settings() else { return Answer::Pass };
    // The kernel reads the unspecified address as loopback, so the record and the agent's rules do too.
    let stand_in = address::loopback_if_unspecified(to.address);
    if let Some(loopback) = stand_in {
        to.address = loopback;
    }
    // SAFETY: reads the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let mut origin = origin::begin(netns_cookie, &tag, &to, IPPROTO_TCP as u8);
    origin::bound(&mut origin, sk);
    // SAFETY: a plain value; the agent replaces it as a whole.
    let listeners = unsafe { NETNS.get(netns_cookie) };
    let probe = stand_in.is_none() && address::is_loopback(to.address);
    let ruling = rule(ctx, settings, &tag, &to, netns_cookie, listeners, probe);
    origin.verdict = ruling.verdict;
    origin.reason = ruling.reason;
    if ruling.verdict == verdict::REDIRECTED
        && let Some(listeners) = listeners
    {
        return redirect(ctx, sk, &mut origin, listeners);
    }
    origin::forget(sk);
    count(&mut origin);
    tell(&origin, ruling.reason == reason::NO_LISTENER);
    if ruling.verdict == verdict::PASSED {
        return Answer::Pass;
    }
    if ruling.errno != 0 {
        // SAFETY: takes a number; connect hooks may call it.
        unsafe { bpf_set_retval(-(ruling.errno as i32)) };
    }
    Answer::Refuse
}

/// What is to become of it. `probe`: whether to look if somebody listens there (not for the unspecified address: a socket
/// bound to another local address goes to that one instead).
#[inline(always)]
fn rule(
    ctx: *mut bpf_sock_addr,
    settings: &Settings,
    tag: &Tag,
    to: &Destination,
    netns_cookie: u64,
    listeners: Option<&Listeners>,
    probe: bool,
) -> Ruling {
    let refuse = |reason, errno| Ruling { verdict: verdict::REFUSED, reason, errno };
    if address::is_loopback(to.address) {
        let of_host = netns_cookie == settings.host_netns && OWN_PORTS.get_ptr(to.port).is_some();
        if of_host || listeners.is_some_and(|own| to.port == own.v4_port || to.port == own.v6_port) {
            return refuse(reason::OWN_PORT, 0);
        }
    }
    let Some(action) = to.action(settings, tag) else { return refuse(reason::NOT_NAMED, 0) };
    if action == action::DENY {
        return refuse(reason::DENIED, 0);
    }
    if action == action::PASS {
        return Ruling { verdict: verdict::PASSED, reason: reason::PASS, errno: 0 };
    }
    // Where nobody listens the connect is refused here rather than passed: between this look and the kernel's own one, a
    // listener could appear and be reached unseen. A listener bound to a device is not found either.
    if probe && !has_listener(ctx, to) {
        return Ruling { verdict: verdict::UNANSWERED, reason: reason::NONE, errno: ECONNREFUSED };
    }
    let Some(listeners) = listeners else { return refuse(reason::NO_LISTENER, settings.errno) };
    if !is_agent_there(ctx, to, listeners) {
        return if settings.open_actions >> (action & 31) & 1 == 1 {
            Ruling { verdict: verdict::PASSED, reason: reason::NO_AGENT, errno: 0 }
        } else {
            refuse(reason::NO_AGENT, settings.errno)
        };
    }
    Ruling { verdict: verdict::REDIRECTED, reason: reason::NONE, errno: 0 }
}

#[inline(always)]
fn redirect(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    origin: &mut FlowOrigin,
    listeners: &'static Listeners,
) -> Answer {
    origin::let_go(sk);
    count(origin);
    if !origin::keep(sk, origin) {
        recount(origin, verdict::FAILED);
        tell(origin, false);
        // SAFETY: takes a number; connect hooks may call it.
        unsafe { bpf_set_retval(-(ENOMEM as i32)) };
        return Answer::Refuse;
    }
    unbind_device(ctx, sk);
    Answer::Redirect(listeners)
}

/// A socket bound to a device does not reach the listener, which is behind the loopback one.
#[inline(always)]
fn unbind_device(ctx: *mut bpf_sock_addr, sk: *mut bpf_sock) {
    if origin::field::<{ offset_of!(bpf_sock, bound_dev_if) }>(sk) == 0 {
        return;
    }
    let mut none = 0_i32;
    // SAFETY: the value is an `int` on the stack and its size is given.
    unsafe {
        bpf_setsockopt(
            ctx.cast(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut none).cast(),
            size_of::<i32>() as i32,
        );
    }
}

/// MPTCP connects through plain TCP subflows, yet the hook may run on the outer socket. An address of another family
/// than the socket's is refused by the kernel itself; AF_UNSPEC dissolves an association and comes here never.
fn is_tcp(ctx: *mut bpf_sock_addr, family: u32) -> bool {
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    let (kind, protocol, user_family) = unsafe {
        (
            read_volatile(addr_of!((*ctx).type_)),
            read_volatile(addr_of!((*ctx).protocol)),
            read_volatile(addr_of!((*ctx).user_family)),
        )
    };
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) && user_family == family
}

/// What the agent marked a socket with; 0: it is not the agent's.
#[inline(always)]
fn mark_of(sk: *mut bpf_sock) -> u32 {
    // SAFETY: the map is a socket storage, the socket held by the context or by a look-up; without the create flag no value
    // is read.
    let mark = unsafe { bpf_sk_storage_get(from_ref(&EXEMPT).cast_mut().cast(), sk.cast(), null_mut(), 0) };
    // SAFETY: not null, so a `u32` of this socket.
    if mark.is_null() { 0 } else { unsafe { *mark.cast::<u32>() } }
}

/// Whether a connect to this address, in the socket's own network namespace, would find a listener.
fn has_listener(ctx: *mut bpf_sock_addr, to: &Destination) -> bool {
    match address::v4(to.address) {
        Some(v4) => found(ctx, &mut tuple_v4(v4, to.port), |_| true),
        None => found(ctx, &mut tuple_v6(to.address, to.port), |_| true),
    }
}

/// Whether it is the agent that listens at the agent's address: whoever binds its port when it is gone gets nothing.
fn is_agent_there(ctx: *mut bpf_sock_addr, to: &Destination, listeners: &Listeners) -> bool {
    let is_agents = |sk| mark_of(sk) == MARK_LISTENER;
    match address::v4(to.address) {
        Some(_) => found(ctx, &mut tuple_v4(listeners.v4, listeners.v4_port), is_agents),
        None => found(ctx, &mut tuple_v6(listeners.v6, listeners.v6_port), is_agents),
    }
}

fn tuple_v4(address: [u8; 4], port: u16) -> TupleV4 {
    TupleV4 { saddr: 0, daddr: u32::from_ne_bytes(address), sport: 0, dport: port.to_be() }
}

/// The zeros are hidden from LLVM, which would call `memset` for them: on kernels up to 6.7 each call takes at least 32 bytes
/// of the 512 that the stacks of all callers may have together, and here they are used up.
fn tuple_v6(address: [u8; 16], port: u16) -> TupleV6 {
    let zero = black_box(0_u32);
    TupleV6 { saddr: [zero; 4], daddr: words(address), sport: zero as u16, dport: port.to_be() }
}

/// Looks a socket up by a `TupleV4` or a `TupleV6`, which the kernel tells apart by their sizes.
#[inline(always)]
fn found<T>(ctx: *mut bpf_sock_addr, tuple: &mut T, is_it: impl Fn(*mut bpf_sock) -> bool) -> bool {
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` is initialised, its size given; a socket found is released at the end.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx.cast(), from_mut(tuple).cast(), size_of::<T>() as u32, netns, 0);
        if sk.is_null() {
            return false;
        }
        let is_it = is_it(sk.cast());
        bpf_sk_release(sk.cast());
        is_it
    }
}
