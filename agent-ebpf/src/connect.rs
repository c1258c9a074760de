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
    FlowOrigin, Listeners, MARK_LISTENER, Tag, action,
    address::{self, mapped, words},
    reason, verdict,
};

use crate::{
    EXEMPT, NETNS, OWN_PORTS, SO_BINDTOIFINDEX, SOL_SOCKET,
    account::{count, recount, tell},
    datagram,
    destination::Destination,
    held, origin, owner, select,
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u8 = 6;

/// The most that an error can be (linux/err.h).
const MAX_ERRNO: u32 = 4095;
const ENOMEM: u32 = 12;
const ECONNREFUSED: u32 = 111;

/// What a program tells the kernel. A refusal without `bpf_set_retval` is EPERM to the caller.
pub const PROCEED: i32 = 1;
pub const REFUSE: i32 = 0;

/// In the place of a listener's mark: there is none.
const NOBODY: u32 = u32::MAX;

/// What becomes of a connect.
enum Answer {
    /// To the one of them for the family of the destination that is meant, or to this port beside it, if it is not 0.
    Redirect {
        to: &'static Listeners,
        is_v4: bool,
        held: u16,
    },
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

impl Ruling {
    /// In one register, as a function out of line can give it back.
    fn pack(self) -> u64 {
        u64::from(self.errno) << 32 | u64::from(self.reason) << 8 | u64::from(self.verdict)
    }

    fn unpack(packed: u64) -> Self {
        Self { verdict: packed as u8, reason: (packed >> 8) as u8, errno: (packed >> 32) as u32 }
    }
}

pub fn connect4(ctx: *mut bpf_sock_addr) -> i32 {
    match socket_of(ctx) {
        (SOCK_STREAM, AF_INET) => stream4(ctx),
        (SOCK_STREAM, _) => PROCEED,
        _ => datagram::connect4(ctx),
    }
}

pub fn connect6(ctx: *mut bpf_sock_addr) -> i32 {
    match socket_of(ctx) {
        (SOCK_STREAM, AF_INET6) => stream6(ctx),
        (SOCK_STREAM, _) => PROCEED,
        _ => datagram::connect6(ctx),
    }
}

/// Out of line, as its sisters are: their stacks then lie in the same place.
#[inline(never)]
fn stream4(ctx: *mut bpf_sock_addr) -> i32 {
    match answer(ctx, Destination::v4(ctx)) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect { to, held, .. } => {
            Destination::write_v4(ctx, to.v4, if held == 0 { to.v4_port } else { held });
            PROCEED
        }
    }
}

#[inline(never)]
fn stream6(ctx: *mut bpf_sock_addr) -> i32 {
    match answer(ctx, Destination::v6(ctx)) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect { to, is_v4, held } => {
            // A v4-mapped destination stays in its family: the socket may be bound to a v4-mapped source.
            if is_v4 {
                Destination::write_v6(ctx, mapped(to.v4), if held == 0 { to.v4_port } else { held });
            } else {
                Destination::write_v6(ctx, to.v6, if held == 0 { to.v6_port } else { held });
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
    let owner = owner::of(sk);
    let mut tag = select::nobody();
    if !select::of_socket(sk, owner, &mut tag) {
        // What an earlier connect of it left, in a selected process's hands, is not of this one.
        origin::forget(owner);
        return Answer::Pass;
    }
    if mark_of(owner) != 0 {
        origin::count_exempt();
        return Answer::Pass;
    }
    // SAFETY: reads the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    // As the kernel reads the unspecified address, so do the record and the agent's rules.
    origin::settle(&mut to, sk);
    // SAFETY: a plain value; the agent replaces it as a whole.
    let listeners = unsafe { NETNS.get(netns_cookie) };
    let ruling = Ruling::unpack(rule(ctx, &tag, &to, netns_cookie, listeners));
    let mut origin = origin::blank();
    let origin = origin::begin(&mut origin, netns_cookie, &tag, &to, IPPROTO_TCP);
    origin::bound(origin, sk);
    origin.verdict = ruling.verdict;
    origin.reason = ruling.reason;
    if ruling.verdict == verdict::REDIRECTED
        && let Some(listeners) = listeners
    {
        // A subflow of MPTCP does not wait: one whose first SYNs meet no answer has MPTCP turned off for all of the namespace.
        let held = if owner == sk { held::claim(ctx, &to, netns_cookie, listeners) } else { 0 };
        if held != 0 {
            origin.reason = reason::HELD;
        }
        return redirect(ctx, sk, owner, origin, listeners, held);
    }
    origin::forget(owner);
    count(origin);
    tell(origin, ruling.reason == reason::NO_LISTENER);
    if ruling.verdict == verdict::PASSED {
        return Answer::Pass;
    }
    if ruling.errno != 0 {
        // Linux 7.3 wants to know that it is an error.
        let errno = (ruling.errno & MAX_ERRNO) as i32;
        // SAFETY: takes a number; connect hooks may call it.
        unsafe { bpf_set_retval(-errno) };
    }
    Answer::Refuse
}

/// What is to become of it, as [`Ruling::pack`] has it. Out of line, so that its stack is free again when the origin is kept.
#[inline(never)]
fn rule(
    ctx: *mut bpf_sock_addr,
    tag: &Tag,
    to: &Destination,
    netns_cookie: u64,
    listeners: Option<&Listeners>,
) -> u64 {
    let refuse = |reason, errno| Ruling { verdict: verdict::REFUSED, reason, errno }.pack();
    let Some(settings) = select::settings() else { return refuse(reason::NO_AGENT, 0) };
    let is_loopback = address::is_loopback(to.address);
    if is_loopback {
        let of_host = netns_cookie == settings.host_netns && OWN_PORTS.get_ptr(to.port).is_some();
        // Of the family in which it listens: somebody else's server may have the same number in the other one.
        let is_v4 = address::v4(to.address).is_some();
        if of_host || listeners.is_some_and(|own| to.port == if is_v4 { own.v4_port } else { own.v6_port }) {
            return refuse(reason::OWN_PORT, 0);
        }
    }
    let Some(action) = to.action(settings, tag) else { return refuse(reason::NOT_NAMED, 0) };
    if action == action::DENY {
        return refuse(reason::DENIED, 0);
    }
    if action == action::PASS {
        return Ruling { verdict: verdict::PASSED, reason: reason::PASS, errno: 0 }.pack();
    }
    // Where nobody listens the connect is refused here rather than passed: between this look and the kernel's own one, a
    // listener could appear and be reached unseen. A listener bound to a device is not found either.
    if is_loopback {
        match listener(ctx, &to.address, to.port) {
            NOBODY => {
                return Ruling { verdict: verdict::UNANSWERED, reason: reason::NONE, errno: ECONNREFUSED }
                    .pack();
            }
            MARK_LISTENER => return refuse(reason::OWN_PORT, 0),
            _ => {}
        }
    }
    let Some(listeners) = listeners else { return refuse(reason::NO_LISTENER, settings.errno) };
    // Whoever binds the agent's port when it is gone gets nothing.
    let there = match address::v4(to.address) {
        Some(_) => listener(ctx, &mapped(listeners.v4), listeners.v4_port),
        None => listener(ctx, &listeners.v6, listeners.v6_port),
    };
    if there == MARK_LISTENER {
        Ruling { verdict: verdict::REDIRECTED, reason: reason::NONE, errno: 0 }.pack()
    } else if settings.open_actions >> (action & 31) & 1 == 1 {
        Ruling { verdict: verdict::PASSED, reason: reason::NO_AGENT, errno: 0 }.pack()
    } else {
        refuse(reason::NO_AGENT, settings.errno)
    }
}

#[inline(always)]
fn redirect(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    owner: *mut bpf_sock,
    origin: &mut FlowOrigin,
    listeners: &'static Listeners,
    held: u16,
) -> Answer {
    origin::let_go(owner);
    count(origin);
    if !origin::keep(owner, origin) {
        recount(origin, verdict::FAILED);
        tell(origin, false);
        // SAFETY: takes a number; connect hooks may call it.
        unsafe { bpf_set_retval(-(ENOMEM as i32)) };
        return Answer::Refuse;
    }
    unbind_device(ctx, sk);
    Answer::Redirect { to: listeners, is_v4: address::v4(origin.destination).is_some(), held }
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

/// The socket's kind and the family of the address that was given. Streams are TCP here, MPTCP's subflows included: others have no
/// such hook. To a stream of the other family the kernel refuses the connect itself (AF_UNSPEC dissolves, and never comes here).
fn socket_of(ctx: *mut bpf_sock_addr) -> (u32, u32) {
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    unsafe { (read_volatile(addr_of!((*ctx).type_)), read_volatile(addr_of!((*ctx).user_family))) }
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

/// What the listener is marked with that a connect to this address, in the socket's own network namespace, would find; or
/// [`NOBODY`].
#[inline(never)]
pub fn listener(ctx: *mut bpf_sock_addr, address: &[u8; 16], port: u16) -> u32 {
    match address::v4(*address) {
        Some(v4) => found(ctx, &mut tuple_v4(v4, port)),
        None => found(ctx, &mut tuple_v6(*address, port)),
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
fn found<T>(ctx: *mut bpf_sock_addr, tuple: &mut T) -> u32 {
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` is initialised, its size given; a socket found is released at the end.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx.cast(), from_mut(tuple).cast(), size_of::<T>() as u32, netns, 0);
        if sk.is_null() {
            return NOBODY;
        }
        let mark = mark_of(sk.cast());
        bpf_sk_release(sk.cast());
        mark
    }
}
