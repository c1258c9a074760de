//! The kernel programs: the list of programs and maps.
//!
//! Enters: sockets, connects and datagrams of the processes below the attach cgroup. Leaves: the connects of selected ones,
//! led to the agent's listener, with their origins in `PENDING`; refusals; what was counted and told of each. Must never: let
//! a connect through whose origin could not be kept, keep state in an LRU map (one job could push out another's record; `REACHED`
//! is none: what is pushed out of it is looked up anew), or match on a thread's name.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod account;
mod connect;
mod datagram;
mod destination;
mod held;
mod lineage;
mod origin;
mod owner;
mod peername;
mod select;
mod socket;
mod sockops;
mod structures;

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    macros::{btf_map, btf_tracepoint, cgroup_sock, cgroup_sock_addr, fexit, sock_ops},
    programs::{BtfTracePointContext, FExitContext, SockAddrContext, SockContext, SockOpsContext},
};
use weir_ebpf::{
    CGROUPS_ROOM, CONNECTS_BYTES, ConnectKey, DESTINATIONS_ROOM, DestinationKey, FileKey, FlowKey,
    FlowOrigin, HELD_ROOM, HeldKey, JOBS_ROOM, JobCounts, Listeners, LostTold, NETNS_ROOM, OWN_PORTS_ROOM,
    PENDING_ROOM, REACHED_ROOM, ReachedKey, SELECTORS_ROOM, Selected, Settings, TAKEN_ROOM, Tag,
    WAITING_BYTES, Waiting, counter,
    task::{EVENTS_BYTES, TASKS_ROOM, TaskEvent},
};

const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// Tagged processes, by their number in the initial pid namespace. Kept by lineage.
#[btf_map]
static TASKS: HashMap<u32, Tag, { TASKS_ROOM as usize }> = HashMap::new();

/// Selected cgroups, by id: with all those below.
#[btf_map]
static CGROUPS: HashMap<u64, Selected, { CGROUPS_ROOM as usize }> = HashMap::new();

/// Selected executables. Lineage alone looks at them, when one is started.
#[btf_map]
static EXECUTABLES: HashMap<FileKey, Selected, { SELECTORS_ROOM as usize }> = HashMap::new();

/// Selected users, in the initial user namespace.
#[btf_map]
static USERS: HashMap<u32, Selected, { SELECTORS_ROOM as usize }> = HashMap::new();

/// What is counted of each job.
#[btf_map]
static JOBS: HashMap<u64, JobCounts, { JOBS_ROOM as usize }> = HashMap::new();

/// Of what each job lost, how much is recorded as such. The agent's alone; it outlives the agent.
#[btf_map]
static LOST_TOLD: HashMap<u64, LostTold, { JOBS_ROOM as usize }> = HashMap::new();

/// An [`weir_ebpf::action`] for ports and prefixes.
#[btf_map]
static DESTINATIONS: LpmTrie<DestinationKey, u32, { DESTINATIONS_ROOM as usize }> = LpmTrie::new();

/// The agent's listeners, by the network namespace's cookie.
#[btf_map]
static NETNS: HashMap<u64, Listeners, { NETNS_ROOM as usize }> = HashMap::new();

/// The listeners in which connects can wait, by their ports in the host's byte order. The agent puts one in, a connect takes it out.
#[btf_map]
static HELD: HashMap<HeldKey, u16, { HELD_ROOM as usize }> = HashMap::new();

/// Which connects wait.
#[btf_map]
static WAITING: RingBuf<Waiting, { WAITING_BYTES as usize }> = RingBuf::new();

/// Until when a destination counts as reached: no connect to it waits.
#[btf_map]
static REACHED: LruHashMap<ReachedKey, u64, { REACHED_ROOM as usize }> = LruHashMap::new();

/// Weir's own ports, in the host's byte order.
#[btf_map]
static OWN_PORTS: HashMap<u16, u8, { OWN_PORTS_ROOM as usize }> = HashMap::new();

/// Marks the agent's own sockets. The agent alone sets it, through the socket's descriptor.
#[btf_map]
static EXEMPT: SkStorage<u32> = SkStorage::new();

/// Whose each socket is, by the process that made it.
#[btf_map]
static SOCKETS: SkStorage<Tag> = SkStorage::new();

/// The origin of the socket's latest connect, if that was redirected.
#[btf_map]
static ORIGINS: SkStorage<FlowOrigin> = SkStorage::new();

/// The origins of connections that the agent has not yet taken.
#[btf_map]
static PENDING: HashMap<FlowKey, FlowOrigin, { PENDING_ROOM as usize }> = HashMap::new();

/// The origins of connections that the agent has taken and not yet recorded. The agent's alone; it outlives the agent, so that
/// the next one knows what this one owes.
#[btf_map]
static TAKEN: HashMap<ConnectKey, FlowOrigin, { TAKEN_ROOM as usize }> = HashMap::new();

/// What was counted and does not come to the agent as a connection.
#[btf_map]
static CONNECTS: RingBuf<FlowOrigin, { CONNECTS_BYTES as usize }> = RingBuf::new();

/// What becomes of tagged processes. The agent comes to read by itself every few milliseconds: waking it for each event would
/// cost the process ten times as much as the event.
#[btf_map]
static TASK_EVENTS: RingBuf<TaskEvent, { EVENTS_BYTES as usize }> = RingBuf::new();

/// Counts of the host, one slot for each kind, see [`counter`].
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

#[cgroup_sock_addr(sendmsg4)]
pub fn weir_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::connect4(ctx.sock_addr)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn weir_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::connect6(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername4)]
pub fn weir_getpeername4(ctx: SockAddrContext) -> i32 {
    peername::getpeername4(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername6)]
pub fn weir_getpeername6(ctx: SockAddrContext) -> i32 {
    peername::getpeername6(ctx.sock_addr)
}

#[cgroup_sock(sock_create)]
pub fn weir_sock_create(ctx: SockContext) -> i32 {
    socket::create(ctx.sock)
}

#[cgroup_sock(sock_release)]
pub fn weir_sock_release(ctx: SockContext) -> i32 {
    socket::release(ctx.sock)
}

#[sock_ops]
pub fn weir_sockops(ctx: SockOpsContext) -> u32 {
    sockops::on_event(ctx.ops)
}

#[btf_tracepoint(function = "sched_process_fork")]
pub fn weir_fork(ctx: BtfTracePointContext) -> i32 {
    lineage::fork(&ctx);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn weir_exec(ctx: BtfTracePointContext) -> i32 {
    lineage::exec(&ctx);
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn weir_exit(ctx: BtfTracePointContext) -> i32 {
    lineage::exit(&ctx);
    0
}

#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn weir_attach(ctx: BtfTracePointContext) -> i32 {
    lineage::attach(&ctx);
    0
}

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn weir_mkdir(ctx: BtfTracePointContext) -> i32 {
    lineage::mkdir(&ctx);
    0
}

/// Not loaded where the kernel does not let functions be traced.
#[fexit(function = "__sock_create")]
pub fn weir_socket(ctx: FExitContext) -> i32 {
    lineage::socket(&ctx);
    0
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
