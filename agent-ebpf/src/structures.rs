//! The running kernel's own structures, of which no helper tells enough.
//!
//! Enters: addresses that the kernel gave. Leaves: what stands in a field. Must never: read at an address by itself: what cannot be
//! read counts as zeros.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    Global,
    bindings::bpf_sock,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_skc_to_tcp_sock},
    },
};
use weir_ebpf::{Selected, Settings, Tag, task::Offsets};

use crate::{CGROUPS, select::settings};

/// A cgroup that was not removed (`CSS_ONLINE`).
const ONLINE: u32 = 1 << 1;

/// The tag of a process that belongs to no job: none has the number 0. In place of an `Option`, whose empty form leaves
/// bytes unset that LLVM would copy, and the verifier refuses that.
pub const NOBODY: Tag = Tag { job: 0, process_start: 0, flags: 0, by_executable: 0 };

/// Set by the agent before the load.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets::UNKNOWN);

/// One field alone: the whole structure is a quarter of a program's stack.
macro_rules! offset {
    ($field:ident) => {{
        let offsets: *const weir_ebpf::task::Offsets = core::ptr::addr_of!($crate::structures::OFFSETS).cast();
        // Some of its users are in an unsafe block of their own.
        #[allow(unused_unsafe)]
        // SAFETY: `Global` is transparent, and holds an `Offsets`. Volatile, as `Global::load` is: the agent sets it.
        let offset = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*offsets).$field)) };
        offset
    }};
}
pub(crate) use offset;

/// A structure of the kernel's. A null one reads as zeros.
pub trait Structure: Copy {
    fn read<T: Copy + Default>(self, offset: u32) -> T;
    fn follow(self, offset: u32) -> Self;
}

/// One by its address alone: a helper reads for it.
#[derive(Clone, Copy, PartialEq)]
pub struct At(pub u64);

impl Structure for At {
    #[inline(always)]
    fn read<T: Copy + Default>(self, offset: u32) -> T {
        let from = self.0.wrapping_add(u64::from(offset)) as *const T;
        // SAFETY: the helper checks the address; what it cannot read is an error.
        unsafe { bpf_probe_read_kernel(from) }.unwrap_or_default()
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self(self.read(offset))
    }
}

/// One of which the verifier knows the type, so that a field costs a load in place of a call: what the kernel gave as such, and
/// what a pointer in there leads to.
#[derive(Clone, Copy)]
pub struct Known(*const u8);

impl Known {
    #[inline(always)]
    pub fn of(argument: *const c_void) -> Self {
        Self(argument.cast())
    }

    /// For the verifier, a number.
    #[inline(always)]
    fn address(self) -> At {
        // SAFETY: the helper reads from the stack.
        At(unsafe { bpf_probe_read_kernel(&raw const self.0) }.map_or(0, |address| address as u64))
    }
}

impl Structure for Known {
    #[inline(always)]
    fn read<T: Copy + Default>(self, offset: u32) -> T {
        // SAFETY: a field of the type that the verifier knows, or the program is not loaded; the kernel catches what cannot be
        // read, and that is 0.
        unsafe { read_volatile(self.0.add(offset as usize).cast()) }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        // SAFETY: as in `read`.
        Self(unsafe { read_volatile(self.0.add(offset as usize).cast()) })
    }
}

/// A process or thread.
#[derive(Clone, Copy)]
pub struct Task(pub Known);

impl Task {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: gives the current task.
        Self(Known(unsafe { bpf_get_current_task_btf() } as *const u8))
    }

    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.0.read(offset!(task_tgid))
    }

    /// When the process began that the thread is of.
    #[inline(always)]
    pub fn start(self) -> u64 {
        self.0.follow(offset!(task_group_leader)).read(offset!(task_start_boottime))
    }

    /// In the cgroup2 hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> Cgroup<Known> {
        Cgroup(self.0.follow(offset!(task_cgroups)).follow(offset!(css_set_dfl_cgrp)))
    }
}

#[derive(Clone, Copy)]
pub struct Cgroup<S>(pub S);

impl Cgroup<At> {
    /// In which a socket was made.
    #[inline(always)]
    pub fn of_socket(sk: *mut bpf_sock) -> Self {
        // Read back, since the verifier lets nobody calculate with a socket's address.
        // SAFETY: the helper reads from the stack.
        let address = unsafe { bpf_probe_read_kernel(&raw const sk) };
        Self(At(address.map_or(0, |sk| sk as u64)).follow(offset!(sock_cgroup)))
    }

    /// The number of the cgroup in which a socket was made. Of TCP the verifier knows where each pointer leads.
    #[inline(always)]
    pub fn id_of_socket(sk: *mut bpf_sock) -> u64 {
        // SAFETY: the context holds the socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) }.cast::<u8>();
        if tcp.is_null() {
            return Self::of_socket(sk).id();
        }
        Cgroup(Known(tcp).follow(offset!(sock_cgroup))).id()
    }

    /// What the innermost selected one of it and those above it gives; [`NOBODY`]'s if there is none.
    #[inline(always)]
    pub fn selected(self) -> Tag {
        let mut rest = settings().map_or(0, |settings| settings.cgroup_levels);
        if rest == 0 {
            return NOBODY;
        }
        let own: u32 = self.0.read(offset!(cgroup_level));
        let ancestors = offset!(cgroup_ancestors);
        for _ in 0..Settings::LEVELS {
            let level = rest as u32 & 0xf;
            if level == 0 {
                break;
            }
            rest >>= 4;
            if level > own {
                continue;
            }
            let ancestor = Cgroup(self.0.follow(ancestors + level * 8));
            if let Some(selected) = CGROUPS.get_ptr(ancestor.id()) {
                return of(selected);
            }
        }
        NOBODY
    }
}

impl Cgroup<Known> {
    /// The same. Most processes of a job are in the very cgroup that is selected, which the verifier knows.
    #[inline(always)]
    pub fn selected(self) -> Tag {
        let deepest = settings().map_or(0, |settings| settings.cgroup_levels) as u32 & 0xf;
        if deepest == 0 {
            return NOBODY;
        }
        if deepest == self.0.read::<u32>(offset!(cgroup_level))
            && let Some(selected) = CGROUPS.get_ptr(self.id())
        {
            return of(selected);
        }
        Cgroup(self.0.address()).selected()
    }
}

impl<S: Structure> Cgroup<S> {
    /// Whether it was removed. What came from it can live on.
    #[inline(always)]
    pub fn is_gone(self) -> bool {
        self.0.read::<u32>(offset!(cgroup_flags)) & ONLINE == 0
    }

    #[inline(always)]
    pub fn id(self) -> u64 {
        self.0.follow(offset!(cgroup_kn)).read(offset!(kernfs_node_id))
    }

    /// Whether it is of the cgroup2 hierarchy, whose number is 0.
    #[inline(always)]
    pub fn is_unified(self) -> bool {
        self.0.follow(offset!(cgroup_root)).read::<u32>(offset!(cgroup_root_hierarchy)) == 0
    }
}

#[inline(always)]
pub fn of(selected: *const Selected) -> Tag {
    // SAFETY: the kernel gave the pointer, which is valid until the program returns.
    let Selected { job, flags, .. } = unsafe { *selected };
    Tag { job, process_start: 0, flags, by_executable: 0 }
}
