//! The socket that a process holds, of one that connects.
//!
//! Enters: a socket of the kernel's context. Leaves: the same; of an MPTCP subflow, which no process holds, the MPTCP socket that
//! it was made for. Must never: be needed where the hooks run on the process's own socket (creation, release, getpeername).

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{Global, bindings::bpf_sock, helpers::generated::bpf_skc_to_mptcp_sock};

/// Whether this kernel knows MPTCP. Set when the programs are loaded: the verifier then drops the branch below where the helper's
/// type is unknown.
#[unsafe(no_mangle)]
static MPTCP: Global<u32> = Global::new(0);

/// What is kept of a connect is kept here: tag, mark and origin.
#[inline(always)]
pub fn of(sk: *mut bpf_sock) -> *mut bpf_sock {
    // SAFETY: a word of read-only data.
    if unsafe { read_volatile(addr_of!(MPTCP).cast::<u32>()) } == 0 {
        return sk;
    }
    // SAFETY: the socket is held by the context; the answer is held by it in turn.
    let mptcp: *mut bpf_sock = unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.cast();
    if mptcp.is_null() { sk } else { mptcp }
}
