//! The system calls that neither aya nor nix have.
//!
//! Enters: descriptors and plain values. Leaves: plain values. Must never: keep a pointer past the call.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

use nix::libc;
use weir_ebpf::{FlowKey, FlowOrigin};

const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

/// The part of `union bpf_attr` (linux/bpf.h) that commands on a map's element read.
#[repr(C)]
struct ElementCommand {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Looks an entry of PENDING up and deletes it, in one step (Linux 5.14).
pub(super) fn take(map: BorrowedFd<'_>, key: &FlowKey) -> io::Result<Option<FlowOrigin>> {
    let mut value = MaybeUninit::<FlowOrigin>::uninit();
    let command = ElementCommand {
        map_fd: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: `command` is laid out as the kernel reads it and its size is given; `key` and `value` are of the
    // map's own types (aya has compared their sizes), live until the call returns, and are not kept by the kernel.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_AND_DELETE_ELEM,
            &raw const command,
            size_of::<ElementCommand>(),
        )
    };
    if result == 0 {
        // SAFETY: on success the kernel has filled all of `value`, and any bytes are a valid `FlowOrigin`.
        return Ok(Some(unsafe { value.assume_init() }));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        e => Err(e),
    }
}

/// The number by which the kernel programs know this process's network namespace (Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    // Any socket tells, of whatever family.
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option fills a u64; the pointers live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The clock by which the kernel programs stamp a connect.
pub(super) fn since_boot() -> io::Result<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer lives until the call returns.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32))
}
