//! `connect4` and `connect6`: decide about one TCP connect before the kernel makes it.
//!
//! Enters: the address that the caller gave. Leaves: the same, or the agent's listener in its place with the true
//! destination in the socket's storage, or an error for the caller. Must never: touch UDP, or redirect a socket
//! whose origin it could not keep.

use core::ptr::{addr_of, addr_of_mut, from_mut, from_ref, null_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
    },
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_ktime_get_boot_ns, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release,
        bpf_sk_storage_get,
    },
};
use weir_ebpf::{
    FlowOrigin,
    address::{self, bytes, mapped, words},
    counter,
};

use crate::{EXEMPT, LISTENERS, ORIGINS, OWN_PORTS, count};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

const ENOMEM: i32 = 12;
const ECONNREFUSED: i32 = 111;

/// What a program tells the kernel. A refusal without `bpf_set_retval` is EPERM to the caller.
const PROCEED: i32 = 1;
const REFUSE: i32 = 0;

/// What becomes of a connect.
#[derive(PartialEq)]
enum Answer {
    Redirect,
    Pass,
    Refuse,
}

/// Where the caller wants to go.
#[derive(Clone, Copy)]
struct Destination {
    address: [u8; 16],
    port: u16,
}

pub fn connect4(ctx: *mut bpf_sock_addr) -> i32 {
    if !is_tcp(ctx, AF_INET) {
        return PROCEED;
    }
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    let v4 = unsafe { read_volatile(addr_of!((*ctx).user_ip4)) };
    match answer(ctx, Destination { address: mapped(v4.to_ne_bytes()), port: port(ctx) }) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect => {
            let to = LISTENERS.load();
            // SAFETY: as above. Volatile, since LLVM would merge the stores and the verifier refuse the result.
            unsafe {
                write_volatile(addr_of_mut!((*ctx).user_ip4), u32::from_ne_bytes(to.v4));
                write_volatile(addr_of_mut!((*ctx).user_port), u32::from(to.v4_port.to_be()));
            }
            PROCEED
        }
    }
}

pub fn connect6(ctx: *mut bpf_sock_addr) -> i32 {
    if !is_tcp(ctx, AF_INET6) {
        return PROCEED;
    }
    let destination = Destination { address: address6(ctx), port: port(ctx) };
    match answer(ctx, destination) {
        Answer::Pass => PROCEED,
        Answer::Refuse => REFUSE,
        Answer::Redirect => {
            let to = LISTENERS.load();
            // A v4-mapped destination stays in its family: the socket may be bound to a v4-mapped source.
            let (address, port) = match address::v4(destination.address) {
                Some(_) => (words(mapped(to.v4)), to.v4_port),
                None => (words(to.v6), to.v6_port),
            };
            // SAFETY: as in `connect4`.
            unsafe {
                write_volatile(addr_of_mut!((*ctx).user_ip6[0]), address[0]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[1]), address[1]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[2]), address[2]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[3]), address[3]);
                write_volatile(addr_of_mut!((*ctx).user_port), u32::from(port.to_be()));
            }
            PROCEED
        }
    }
}

/// The whole decision, top to bottom.
fn answer(ctx: *mut bpf_sock_addr, mut to: Destination) -> Answer {
    // SAFETY: `ctx` is valid, and in a connect hook its socket is never null.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if is_exempt(sk) {
        count(counter::PASSED, 1);
        return Answer::Pass;
    }
    // The kernel reads the unspecified address as loopback, so the record and the agent's rules do too.
    let stand_in = address::loopback_if_unspecified(to.address);
    if let Some(loopback) = stand_in {
        to.address = loopback;
    }
    let loopback = address::is_loopback(to.address);
    if loopback && OWN_PORTS.get_ptr(to.port).is_some() {
        count(counter::REFUSED, 1);
        return Answer::Refuse;
    }
    // Not probed for the unspecified address: a socket bound to another local address goes to that one instead.
    if loopback && stand_in.is_none() && !has_listener(ctx, &to) {
        count(counter::UNANSWERED, 1);
        return refuse_with(ECONNREFUSED);
    }
    if !keep_origin(ctx, sk, &to) {
        count(counter::FAILED, 1);
        return refuse_with(ENOMEM);
    }
    count(counter::REDIRECTED, 1);
    Answer::Redirect
}

fn refuse_with(errno: i32) -> Answer {
    // SAFETY: takes a number; connect hooks may call it.
    unsafe { bpf_set_retval(-errno) };
    Answer::Refuse
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

fn is_exempt(sk: *mut bpf_sock) -> bool {
    // SAFETY: the map is a socket storage, the socket the context's own; without the create flag no value is read.
    let mark = unsafe { bpf_sk_storage_get(from_ref(&EXEMPT).cast_mut().cast(), sk.cast(), null_mut(), 0) };
    !mark.is_null()
}

/// Whether a connect to this address, in the socket's own network namespace, would find a listener.
///
/// Where none is found the connect is refused here rather than passed: between this look and the kernel's own one, a
/// listener could appear and be reached unseen. A listener bound to a device is not found either.
fn has_listener(ctx: *mut bpf_sock_addr, to: &Destination) -> bool {
    let dport = to.port.to_be();
    match address::v4(to.address) {
        Some(v4) => found(ctx, &mut TupleV4 { saddr: 0, daddr: u32::from_ne_bytes(v4), sport: 0, dport }),
        None => found(ctx, &mut TupleV6 { saddr: [0; 4], daddr: words(to.address), sport: 0, dport }),
    }
}

/// Looks a socket up by a `TupleV4` or a `TupleV6`, which the kernel tells apart by their sizes.
#[inline(always)]
fn found<T>(ctx: *mut bpf_sock_addr, tuple: &mut T) -> bool {
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` is initialised, its size given; a socket found is released at once.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx.cast(), from_mut(tuple).cast(), size_of::<T>() as u32, netns, 0);
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk.cast());
    }
    true
}

/// Writes down in the socket's storage where the caller goes and who it is. False: there was no memory for it.
fn keep_origin(ctx: *mut bpf_sock_addr, sk: *mut bpf_sock, to: &Destination) -> bool {
    let (task, user) = (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid());
    // SAFETY: these helpers read the context, the current task or a clock.
    let (netns_cookie, cgroup_id, connected_at) =
        unsafe { (bpf_get_netns_cookie(ctx.cast()), bpf_get_current_cgroup_id(), bpf_ktime_get_boot_ns()) };
    let mut origin = FlowOrigin {
        netns_cookie,
        cgroup_id,
        connected_at,
        tgid: (task >> 32) as u32,
        tid: task as u32,
        uid: user as u32,
        gid: (user >> 32) as u32,
        destination: to.address,
        destination_port: to.port,
        reserved: [0; 6],
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    // SAFETY: the map is a socket storage of `FlowOrigin`, the socket the context's own, the value initialised.
    let kept = unsafe {
        bpf_sk_storage_get(
            from_ref(&ORIGINS).cast_mut().cast(),
            sk.cast(),
            (&raw mut origin).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast::<FlowOrigin>();
    if kept.is_null() {
        return false;
    }
    // SAFETY: not null, so a `FlowOrigin` of this socket. Written again since an earlier connect may have left one.
    unsafe { *kept = origin };
    true
}

fn port(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
    let network_order = unsafe { read_volatile(addr_of!((*ctx).user_port)) };
    u16::from_be(network_order as u16)
}

fn address6(ctx: *mut bpf_sock_addr) -> [u8; 16] {
    // SAFETY: as in `port`. Four reads, since the verifier allows no wider one here on older kernels.
    let words = unsafe {
        [
            read_volatile(addr_of!((*ctx).user_ip6[0])),
            read_volatile(addr_of!((*ctx).user_ip6[1])),
            read_volatile(addr_of!((*ctx).user_ip6[2])),
            read_volatile(addr_of!((*ctx).user_ip6[3])),
        ]
    };
    bytes(words)
}
