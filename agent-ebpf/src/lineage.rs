//! Lineage: who belongs to a job, kept up to date at each fork, exec, exit and move; and the sockets of jobs that the
//! other hooks cannot see.
//!
//! Enters: the kernel's own tracepoints, for all processes of the host. Leaves: `TASKS`, which says what each selected
//! process belongs to, and an event for each change of it. Must never: cost a process that is not selected more than a
//! few look-ups, or take a tag from a living process.
//!
//! Which job: a selected executable's goes before the cgroup's, that before what is inherited, and that before the
//! user's. Strictness is never lost on the way.

use core::{
    ffi::c_void,
    ptr::{addr_of_mut, null},
};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        generated,
    },
    programs::{BtfTracePointContext, FExitContext},
};
use weir_ebpf::{
    FileKey, JobCounts, Selected, Tag, counter,
    task::{ARGUMENTS_BYTES, NamedEvent, PATH_BYTES, TaskEvent, event},
};

use crate::{
    EXECUTABLES, JOBS, TASK_EVENTS, TASKS, USERS,
    account::add_to_host as count,
    select::settings,
    structures::{Cgroup, Known, NOBODY, Structure, Task, of, offset},
};

/// Marks the job of a selected executable's start.
const EXECUTABLE_JOB: u64 = 1 << 63;

/// Families whose sockets reach no network, or whose connects the other hooks see: unix, inet, inet6, netlink, alg.
const SEEN: [u32; 5] = [1, 2, 10, 16, 38];

/// A process was made; it has not run yet.
pub fn fork(ctx: &BtfTracePointContext) {
    let (forker, child) = (Task(Known::of(ctx.arg(0))), Task(Known::of(ctx.arg(1))));
    let (pid, tgid): (u32, u32) = (child.0.read(offset!(task_pid)), child.tgid());
    if pid != tgid {
        return;
    }
    let forker_tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let forkers = tag(forker_tgid);
    // Of the child's own cgroup, which may be another from its beginning (CLONE_INTO_CGROUP).
    let cgroup = child.cgroup();
    let mut own = belongs(forkers, cgroup);
    if own.job == 0 {
        return;
    }
    own.process_start = child.0.read(offset!(task_start_boottime));
    keep(tgid, &own);
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<TaskEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    let parent_start = if forkers.job == 0 { forker.start() } else { forkers.process_start };
    // SAFETY: `told` is the ring's, as large as the event, and this program's until it is submitted.
    let wake = unsafe {
        let wake = describe(told, event::FORK, tgid, &own, child, cgroup);
        (*told).parent_tgid = forker_tgid;
        (*told).parent_start = parent_start;
        wake
    };
    entry.submit(wake);
}

/// The current process became another program.
pub fn exec(ctx: &BtfTracePointContext) {
    let (task, binprm) = (Task(Known::of(ctx.arg(0))), Known::of(ctx.arg(2)));
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let before = tag(tgid);
    let cgroup = task.cgroup();
    let mut own = if before.job == 0 { belongs(NOBODY, cgroup) } else { before };
    let executable = selected_executable(binprm);
    if own.job == 0 && executable.is_null() {
        return;
    }
    if before.job == 0 {
        own.process_start = task.start();
    }
    if !executable.is_null() {
        own.job = own.process_start | EXECUTABLE_JOB;
        own.by_executable = 1;
        // SAFETY: not null, so the kernel's, and valid until the program returns.
        own.flags |= unsafe { (*executable).flags };
        account(own.job);
    }
    if before != own {
        keep(tgid, &own);
    }
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<NamedEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    // SAFETY: as in `fork`.
    let wake = unsafe {
        let wake = describe(addr_of_mut!((*told).event), event::EXEC, tgid, &own, task, cgroup);
        copy_path(told, binprm.read(offset!(binprm_filename)));
        (*told).inode = inode(binprm).read(offset!(inode_ino));
        copy_arguments(told, task.0.follow(offset!(task_mm)));
        wake
    };
    entry.submit(wake);
}

/// A thread of the current process ends.
pub fn exit(ctx: &BtfTracePointContext) {
    let task = Task(Known::of(ctx.arg(0)));
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let own = tag(tgid);
    if own.job == 0 {
        return;
    }
    // All kernels count the thread off before they come here; in some, two that end at once may both find 0.
    let live: u32 = task.0.follow(offset!(task_signal)).read(offset!(signal_live));
    if live != 0 || TASKS.remove(tgid).is_err() {
        return;
    }
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<TaskEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    // SAFETY: as in `fork`.
    unsafe {
        describe(told, event::EXIT, tgid, &own, task, task.cgroup());
        (*told).detail = task.0.read(offset!(task_exit_code));
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// A process, or one thread of it, was moved to another cgroup.
pub fn attach(ctx: &BtfTracePointContext) {
    if !Cgroup(Known::of(ctx.arg(0))).is_unified() {
        return;
    }
    let task = Task(Known::of(ctx.arg(2)));
    let (tgid, cgroup) = (task.tgid(), task.cgroup());
    let before = tag(tgid);
    let selected = cgroup.selected();
    let mut own = before;
    if selected.job != 0 && before.by_executable == 0 {
        own.job = selected.job;
        own.flags |= selected.flags;
    }
    if own.job == 0 {
        return;
    }
    if before.job == 0 {
        own.process_start = task.start();
    }
    if before != own {
        keep(tgid, &own);
    }
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<TaskEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    // SAFETY: as in `fork`.
    let wake = unsafe {
        let wake = describe(told, event::MOVE, tgid, &own, task, cgroup);
        // What the helpers say is of the process that moves this one.
        ((*told).uid, (*told).gid, (*told).comm) = (0, 0, [0; 16]);
        wake
    };
    entry.submit(wake);
}

/// A cgroup was made: the agent looks at once whether it is one to be selected.
pub fn mkdir(ctx: &BtfTracePointContext) {
    let cgroup = Cgroup(Known::of(ctx.arg(0)));
    let path: *const c_void = ctx.arg(1);
    if !cgroup.is_unified() {
        return;
    }
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<NamedEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: as in `fork`.
    unsafe {
        describe(addr_of_mut!((*told).event), event::CGROUP, tgid, &NOBODY, Task::current(), cgroup);
        copy_path(told, path as u64);
        ((*told).inode, (*told).arguments_len, (*told).arguments_whole) = (0, 0, 0);
    }
    entry.submit(u64::from(BPF_RB_FORCE_WAKEUP));
}

/// The current process asked for a socket.
pub fn socket(ctx: &FExitContext) {
    let (family, kernels): (u32, u32) = (ctx.arg(1), ctx.arg(5));
    if kernels != 0 || SEEN.contains(&family) {
        return;
    }
    let task = Task::current();
    let (tgid, cgroup) = ((bpf_get_current_pid_tgid() >> 32) as u32, task.cgroup());
    let mut own = tag(tgid);
    if own.job == 0 {
        own = belongs(NOBODY, cgroup);
        own.process_start = task.start();
    }
    if own.job == 0 {
        return;
    }
    let (kind, protocol, result): (u32, u32, i32) = (ctx.arg(2), ctx.arg(3), ctx.arg(6));
    let Some(mut entry) = TASK_EVENTS.reserve_untyped::<TaskEvent>(0) else {
        return count(counter::TASK_EVENTS_LOST, 1);
    };
    let told = entry.as_mut_ptr();
    // SAFETY: as in `fork`.
    unsafe {
        describe(told, event::SOCKET, tgid, &own, task, cgroup);
        (*told).detail = family;
        (*told).socket = kind << 16 | protocol & 0xffff;
        (*told).error = result.wrapping_neg() as u32;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

#[inline(always)]
fn tag(tgid: u32) -> Tag {
    // SAFETY: the kernel gave the pointer, which is valid until the program returns.
    TASKS.get_ptr(tgid).map_or(NOBODY, |tag| unsafe { *tag })
}

/// What a process belongs to that has no tag of its own yet. The start is not filled in.
#[inline(always)]
fn belongs(inherited: Tag, cgroup: Cgroup<Known>) -> Tag {
    if inherited.by_executable != 0 {
        return inherited;
    }
    let mut selected = cgroup.selected();
    if selected.job != 0 {
        selected.flags |= inherited.flags;
        return selected;
    }
    if inherited.job != 0 || settings().is_none_or(|settings| settings.by_user == 0) {
        return inherited;
    }
    USERS.get_ptr(bpf_get_current_uid_gid() as u32).map_or(NOBODY, of)
}

/// Of the file that is about to run.
#[inline(always)]
fn inode(binprm: Known) -> Known {
    binprm.follow(offset!(binprm_file)).follow(offset!(file_inode))
}

/// Null when it is not.
#[inline(always)]
fn selected_executable(binprm: Known) -> *const Selected {
    if settings().is_none_or(|settings| settings.by_executable == 0) {
        return null();
    }
    let inode = inode(binprm);
    let key = FileKey {
        inode: inode.read(offset!(inode_ino)),
        device: inode.follow(offset!(inode_sb)).read(offset!(super_block_dev)),
        reserved: 0,
    };
    EXECUTABLES.get_ptr(key).unwrap_or(null())
}

fn keep(tgid: u32, tag: &Tag) {
    if TASKS.insert(tgid, tag, 0).is_err() {
        count(counter::TASKS_FULL, 1);
    }
}

/// Gives a job its counters. One that is there already keeps them.
fn account(job: u64) {
    if JOBS.get_ptr(job).is_none() && JOBS.insert(job, JobCounts::default(), u64::from(BPF_NOEXIST)).is_err()
    {
        count(counter::JOBS_FULL, 1);
    }
}

/// Fills all of an event; says how its submission is to wake the agent.
///
/// # Safety
/// `told` must be valid for writes.
#[inline(always)]
unsafe fn describe(
    told: *mut TaskEvent,
    kind: u32,
    tgid: u32,
    own: &Tag,
    task: Task,
    cgroup: Cgroup<Known>,
) -> u64 {
    let user = bpf_get_current_uid_gid();
    let namespaces = task.0.follow(offset!(task_nsproxy));
    let net = namespaces.follow(offset!(nsproxy_net_ns));
    let netns_cookie: u64 = net.read(offset!(net_cookie));
    // SAFETY: the caller's promise; the clock is read.
    unsafe {
        *told = TaskEvent {
            kind,
            detail: 0,
            at: bpf_ktime_get_boot_ns(),
            job: own.job,
            start: own.process_start,
            cgroup_id: cgroup.id(),
            netns_cookie,
            parent_start: 0,
            tgid,
            parent_tgid: 0,
            uid: user as u32,
            gid: (user >> 32) as u32,
            netns: net.read(offset!(net_ns_inum)),
            mount_ns: namespaces.follow(offset!(nsproxy_mnt_ns)).read(offset!(mnt_ns_inum)),
            pid_ns: namespaces.follow(offset!(nsproxy_pid_ns_for_children)).read(offset!(pid_ns_inum)),
            flags: own.flags,
            by_executable: own.by_executable,
            socket: 0,
            error: 0,
            reserved: 0,
            comm: bpf_get_current_comm().unwrap_or_default(),
        };
    }
    let host = settings().map_or(0, |settings| settings.host_netns);
    // A process in another network namespace may connect at once, and the agent must be listening there.
    let wake = if netns_cookie != 0 && netns_cookie != host { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    u64::from(wake)
}

/// # Safety
/// `told` must be valid for writes.
#[inline(always)]
unsafe fn copy_path(told: *mut NamedEvent, from: u64) {
    // SAFETY: the caller's promise; the helper checks `from`, and writes no more than the size that it is given.
    unsafe {
        let room = addr_of_mut!((*told).path).cast::<c_void>();
        let copied =
            generated::bpf_probe_read_kernel_str(room.cast(), PATH_BYTES as u32, from as *const c_void as _);
        // With the zero at its end.
        (*told).path_len = if copied > 0 { copied as u32 - 1 } else { 0 };
    }
}

/// # Safety
/// As of [`copy_path`].
#[inline(always)]
unsafe fn copy_arguments(told: *mut NamedEvent, mm: Known) {
    let (start, end): (u64, u64) = (mm.read(offset!(mm_arg_start)), mm.read(offset!(mm_arg_end)));
    let whole = end.wrapping_sub(start);
    let size = if whole > ARGUMENTS_BYTES as u64 { ARGUMENTS_BYTES as u64 } else { whole };
    // SAFETY: as in `copy_path`.
    unsafe {
        let room = addr_of_mut!((*told).arguments).cast::<c_void>();
        let failed = generated::bpf_probe_read_user(room.cast(), size as u32, start as *const c_void as _);
        (*told).arguments_len = if failed == 0 { size as u32 } else { 0 };
        (*told).arguments_whole = whole;
    }
}
