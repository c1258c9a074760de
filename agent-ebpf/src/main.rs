//! The kernel programs: the list of programs and maps.
//!
//! Enters: each `connect(2)` on a TCP socket of a selected cgroup, and that socket's changes of state. Leaves: the
//! connect, led to the agent's listener, and the origin of it in `PENDING`. Must never: let a connect through whose
//! origin could not be kept, keep state in an LRU map (one job could push out another's record), or match on a
//! thread's name.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod sockops;

use core::arch::asm;

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, PerCpuArray, SkStorage},
    macros::{btf_map, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use weir_ebpf::{FlowKey, FlowOrigin, Listeners, OWN_PORTS_ROOM, PENDING_ROOM, counter};

/// Set by the agent before the load.
#[unsafe(no_mangle)]
static LISTENERS: Global<Listeners> =
    Global::new(Listeners { v6: [0; 16], v4: [0; 4], v6_port: 0, v4_port: 0 });

/// Weir's own ports, in the host's byte order.
#[btf_map]
static OWN_PORTS: HashMap<u16, u8, { OWN_PORTS_ROOM as usize }> = HashMap::new();

/// Marks the agent's own sockets. The agent alone sets it, through the socket's descriptor.
#[btf_map]
static EXEMPT: SkStorage<u32> = SkStorage::new();

/// The origin of the socket's latest connect.
#[btf_map]
static ORIGINS: SkStorage<FlowOrigin> = SkStorage::new();

/// The origins of connections that the agent has not yet taken.
#[btf_map]
static PENDING: HashMap<FlowKey, FlowOrigin, { PENDING_ROOM as usize }> = HashMap::new();

/// One slot per kind of answer, see [`counter`].
#[btf_map]
static COUNTS: PerCpuArray<u64, { counter::SLOTS as usize }> = PerCpuArray::new();

#[cgroup_sock_addr(connect4)]
pub fn weir_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(ctx.sock_addr)
}

#[cgroup_sock_addr(connect6)]
pub fn weir_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(ctx.sock_addr)
}

#[sock_ops]
pub fn weir_sockops(ctx: SockOpsContext) -> u32 {
    sockops::on_event(ctx.ops);
    // Read by callbacks other than ours alone; 0 asks for no reply.
    0
}

/// Adds to a counter, wrapping. In one instruction, since one of these programs can preempt another on its CPU; as
/// assembly, since `core` has no `fetch_add` for a target without compare-and-swap.
fn count(slot: u32, by: u64) {
    if let Some(cell) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: the kernel gave the pointer: 8 bytes, aligned, valid until the program returns.
        unsafe { asm!("lock *(u64 *)({cell} + 0) += {by}", cell = in(reg) cell, by = in(reg) by) };
    }
}

/// Some helpers of the kernel are for GPL-compatible programs alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which a panic can be reached.
    loop {}
}
