//! The system calls that neither aya nor nix have.
//!
//! Enters: descriptors and plain values. Leaves: plain values. Must never: keep a pointer past the call.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixDatagram},
    },
    path::Path,
    time::Duration,
};

use nix::libc;
use tokio::io::unix::AsyncFd;
use weir_ebpf::{FlowKey, FlowOrigin};

/// Commands of bpf(2), as linux/bpf.h numbers them.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

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

/// Attaches a filter to a socket that lets nothing in.
pub(super) fn drop_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    /// `BPF_RET | BPF_K` of nothing (linux/filter.h).
    const RETURN_NOTHING: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let mut program = [RETURN_NOTHING];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: the program is as long as it says, and lives until the call returns.
    unsafe { set_option(socket, libc::SO_ATTACH_FILTER, &program) }
}

/// Takes the filter off again.
pub(super) fn drop_none(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the value is not looked at.
    unsafe { set_option(socket, libc::SO_DETACH_FILTER, &0_i32) }
}

/// # Safety
/// `value` must be what the kernel reads for this option, and each address in it be good for that.
unsafe fn set_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value lives until the call returns, and its size is given; the caller vouches for the rest.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number by which the kernel programs know this process's network namespace (Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    // Any socket tells, of whatever family.
    netns_cookie_of(UnixDatagram::unbound()?.as_fd())
}

/// The same of a socket's network namespace.
pub(super) fn netns_cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
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

/// The part of `union bpf_attr` that commands on a pinned object read.
#[repr(C)]
struct PinCommand {
    path: u64,
    object: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_GET_INFO_BY_FD reads.
#[repr(C)]
struct InfoCommand {
    object: u32,
    size: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`. What follows `program` is a cgroup's or a traced function's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    /// The link's own number, never used again.
    pub(super) id: u32,
    /// The number of the program that it runs.
    pub(super) program: u32,
    reserved: u32,
    /// Of a cgroup's link: the cgroup, or 0 when the link was detached or the cgroup removed.
    pub(super) cgroup: u64,
    /// Of a cgroup's link: where it hangs.
    pub(super) attach_type: u32,
    reserved_too: u32,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

/// Attaches a program; `target` is a cgroup's folder, or nothing for a program that traces the kernel.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: Option<BorrowedFd<'_>>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let target = target.map_or(0, number);
    // SAFETY: four numbers, and no address among them.
    let made = unsafe { bpf(BPF_LINK_CREATE, &mut [number(program), target, attach_type, 0]) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Puts another program in the place of a link's own, in one step. Tracing links cannot (EOPNOTSUPP or EINVAL).
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: four numbers, and no address among them.
    unsafe { bpf(BPF_LINK_UPDATE, &mut [number(link), number(program), 0_u32, 0]) }.map(drop)
}

/// Takes a link off its cgroup, whoever else holds it. Tracing links cannot be (EOPNOTSUPP).
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: one number, and no address.
    unsafe { bpf(BPF_LINK_DETACH, &mut [number(link)]) }.map(drop)
}

pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    // SAFETY: integers alone, without padding.
    unsafe { object_info(link, &mut info) }?;
    Ok(info)
}

/// The number by which the kernel knows a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    // SAFETY: integers alone, without padding.
    unsafe { object_info(program, &mut info) }?;
    Ok(info.id)
}

/// Pins a map, a program or a link at a path on a bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut command = PinCommand { path: path.as_ptr() as u64, object: number(object), flags: 0 };
    // SAFETY: the path ends with a zero, lives until the call returns, and is not kept by the kernel.
    unsafe { bpf(BPF_OBJ_PIN, &mut command) }.map(drop)
}

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut command = PinCommand { path: path.as_ptr() as u64, object: 0, flags: 0 };
    // SAFETY: as in `pin`.
    let opened = unsafe { bpf(BPF_OBJ_GET, &mut command) }?;
    // SAFETY: as in `link_create`.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// # Safety
/// Any bytes must be a valid `T`, and it must have no padding.
unsafe fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let size = size_of::<T>() as u32;
    let mut command = InfoCommand { object: number(object), size, info: std::ptr::from_mut(info) as u64 };
    // SAFETY: the kernel writes at most `size` bytes to `info`, which lives until the call returns; the caller vouches
    // for what they may be.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut command) }.map(drop)
}

/// # Safety
/// `command` must be laid out as the part of `union bpf_attr` that the operation reads, and each address in it be good
/// for what the operation does there.
unsafe fn bpf<T>(operation: libc::c_int, command: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `command`, and takes what is missing of the union for zeros;
    // the caller vouches for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, operation, &raw mut *command, size_of::<T>()) };
    // A descriptor or 0, which fit.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A program for a cgroup that gives each connect this answer: 1 lets it be made, 0 refuses it (EPERM).
#[cfg(test)]
pub(super) fn load_answering(answer: i32, attach_type: u32) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that BPF_PROG_LOAD reads.
    #[repr(C)]
    #[derive(Default)]
    struct LoadCommand {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        not_used: [u32; 11],
        attach_type: u32,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const CGROUP_SOCK_ADDR: u32 = 18;
    // r0 = answer; exit
    let code: [u64; 2] = [u64::from(answer.cast_unsigned()) << 32 | 0xb7, 0x95];
    let mut command = LoadCommand {
        kind: CGROUP_SOCK_ADDR,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_type,
        ..LoadCommand::default()
    };
    // SAFETY: both addresses are good for what they are read for until the call returns.
    let loaded = unsafe { bpf(BPF_PROG_LOAD, &mut command) }?;
    // SAFETY: as in `link_create`.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

/// A ring that the runtime can wait for.
pub(super) fn awaitable<T: OwnsItsDescriptor>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the marker trait promises that the descriptor is one and the same, and open, for as long as the value lives.
    unsafe { AsyncFd::register(ring) }.map_err(io::Error::from)
}

/// What gives one and the same descriptor out for all its life, which is closed when it is dropped and not before.
pub(super) trait OwnsItsDescriptor: AsRawFd {}

/// A plain value out of the bytes that a program wrote. None: they are too few.
pub(super) fn plain<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, any of them are a valid `T`, and it is read without regard to alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The name of the protocol of a socket, by a link to it.
pub(super) fn socket_protocol(link: &Path) -> io::Result<String> {
    let path = CString::new(link.as_os_str().as_bytes())?;
    let mut name = [0_u8; 32];
    // SAFETY: both names end with a zero and live until the call returns; the kernel writes no more than the given size.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let name = name.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}
