//! The origin of a connect: who makes it, and where it was meant to go. It lies in the socket's own storage from the connect
//! until the socket is gone or goes elsewhere.
//!
//! Enters: the kernel's contexts. Leaves: an origin. Must never: let one be overwritten that was counted as redirected and
//! never begun, without telling of it.

use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of},
    ptr::{addr_of_mut, from_ref, null_mut},
};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        bpf_sk_storage_delete, bpf_sk_storage_get, generated::bpf_get_current_comm,
    },
};
use weir_ebpf::{
    FlowOrigin, Tag,
    address::{self, bytes, mapped},
    reason, verdict,
};

use crate::{
    ORIGINS,
    account::{add_to_host, count_begun, tell},
    destination::Destination,
};

const AF_INET: u32 = 2;

/// Room for one, to be filled by [`begin`]. Not zeros: LLVM would have them written byte by byte, which takes as long as half of the
/// look-ups together.
pub const fn blank() -> MaybeUninit<FlowOrigin> {
    MaybeUninit::uninit()
}

/// The current task on its way to a destination; `netns_cookie` is its socket's.
#[inline(always)]
pub fn begin<'a>(
    origin: &'a mut MaybeUninit<FlowOrigin>,
    netns_cookie: u64,
    tag: &Tag,
    to: &Destination,
    protocol: u8,
) -> &'a mut FlowOrigin {
    fill(origin, netns_cookie, tag, to, protocol);
    // SAFETY: each of its fields is written by now.
    unsafe { origin.assume_init_mut() }
}

/// Out of line and in place, so that there is one of them on a program's stack and not two.
#[inline(never)]
fn fill(origin: &mut MaybeUninit<FlowOrigin>, netns_cookie: u64, tag: &Tag, to: &Destination, protocol: u8) {
    let (task, user) = (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid());
    let origin = origin.as_mut_ptr();
    // SAFETY: `origin` is room for one, and each of its fields is written here; the helpers read the current task or a clock, and
    // the last one is given an array with how long it is.
    unsafe {
        (*origin).netns_cookie = netns_cookie;
        (*origin).cgroup_id = bpf_get_current_cgroup_id();
        (*origin).connected_at = bpf_ktime_get_boot_ns();
        (*origin).job = tag.job;
        (*origin).process_start = tag.process_start;
        (*origin).tgid = (task >> 32) as u32;
        (*origin).tid = task as u32;
        (*origin).uid = user as u32;
        (*origin).gid = (user >> 32) as u32;
        (*origin).destination = to.address;
        (*origin).source = [0; 16];
        (*origin).destination_port = to.port;
        (*origin).source_port = 0;
        (*origin).verdict = verdict::REDIRECTED;
        (*origin).reason = reason::NONE;
        (*origin).protocol = protocol;
        (*origin).begun = 0;
        let comm = addr_of_mut!((*origin).comm);
        bpf_get_current_comm(comm.cast(), size_of::<[u8; 16]>() as u32);
    }
}

/// Puts what is meant in place of an unspecified destination of this socket.
#[inline(never)]
pub fn settle(to: &mut Destination, sk: *mut bpf_sock) {
    let mut source = [0; 16];
    source_of(sk, &mut source);
    address::settle(&mut to.address, &source);
}

/// Adds what the socket is bound to.
#[inline(never)]
pub fn bound(origin: &mut FlowOrigin, sk: *mut bpf_sock) {
    origin.source_port = field::<{ offset_of!(bpf_sock, src_port) }>(sk) as u16;
    source_of(sk, &mut origin.source);
}

/// The address that the socket is bound to.
#[inline(always)]
fn source_of(sk: *mut bpf_sock, source: &mut [u8; 16]) {
    const V6: usize = offset_of!(bpf_sock, src_ip6);
    if field::<{ offset_of!(bpf_sock, family) }>(sk) == AF_INET {
        *source = mapped(field::<{ offset_of!(bpf_sock, src_ip4) }>(sk).to_ne_bytes());
    } else {
        *source = bytes([
            field::<V6>(sk),
            field::<{ V6 + 4 }>(sk),
            field::<{ V6 + 8 }>(sk),
            field::<{ V6 + 12 }>(sk),
        ]);
    }
}

/// A field of the context's own socket. As assembly, since LLVM would compute an address first, and the verifier allows
/// arithmetic on a socket's pointer in no program.
#[inline(always)]
pub fn field<const OFFSET: usize>(sk: *mut bpf_sock) -> u32 {
    let value: u64;
    // SAFETY: the socket is held by the context, and the offset is of one of its 32-bit fields.
    unsafe {
        asm!("{value} = *(u32 *)({sk} + {offset})", value = out(reg) value, sk = in(reg) sk, offset = const OFFSET);
    }
    value as u32
}

/// What the latest connect of this socket left, if it was redirected.
#[inline(always)]
pub fn of(sk: *mut bpf_sock) -> Option<*mut FlowOrigin> {
    // SAFETY: the map is a socket storage of `FlowOrigin`, the socket the context's own or its owner, not null;
    // without the create flag no value is read.
    let kept = unsafe { bpf_sk_storage_get(from_ref(&ORIGINS).cast_mut().cast(), sk.cast(), null_mut(), 0) };
    if kept.is_null() { None } else { Some(kept.cast()) }
}

/// Keeps it with the socket. False: there was no memory for it.
#[inline(always)]
pub fn keep(sk: *mut bpf_sock, origin: &mut FlowOrigin) -> bool {
    // SAFETY: as in `of`, the value initialised.
    let kept = unsafe {
        bpf_sk_storage_get(
            from_ref(&ORIGINS).cast_mut().cast(),
            sk.cast(),
            from_ref(origin).cast_mut().cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast::<FlowOrigin>();
    if kept.is_null() {
        return false;
    }
    // SAFETY: not null, so a `FlowOrigin` of this socket. Written again since an earlier connect may have left one.
    unsafe { *kept = *origin };
    true
}

/// The socket goes elsewhere, or away: what was redirected and never begun is told of now. False: nothing was kept of it.
#[inline(always)]
pub fn let_go(sk: *mut bpf_sock) -> bool {
    let Some(kept) = of(sk) else { return false };
    // SAFETY: lies in the socket's storage, which lives as long as the socket does.
    let kept = unsafe { &mut *kept };
    if kept.begun == 0 {
        // Before it is told: a second look must not tell it again.
        kept.begun = 1;
        kept.reason = reason::NEVER_BEGUN;
        count_begun(kept);
        tell(kept, false);
    }
    true
}

/// No connection of this socket is led to the agent any more.
#[inline(always)]
pub fn forget(sk: *mut bpf_sock) {
    if let_go(sk) {
        // SAFETY: as in `of`. An error says that there is nothing to delete.
        unsafe { bpf_sk_storage_delete(from_ref(&ORIGINS).cast_mut().cast(), sk.cast()) };
    }
}

/// A connect of the agent's own.
pub fn count_exempt() {
    add_to_host(weir_ebpf::counter::EXEMPT, 1);
}
