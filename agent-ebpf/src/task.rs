//! What the lineage programs tell of processes, and what the agent must tell them of the running kernel.

/// Bytes of the ring in which processes are told of.
pub const EVENTS_BYTES: u32 = 4 << 20;
/// How many processes can be tagged at a time.
pub const TASKS_ROOM: u32 = 65_536;
/// The most bytes of a path.
pub const PATH_BYTES: usize = 256;
/// The most bytes of a command line.
pub const ARGUMENTS_BYTES: usize = 2048;

/// Kinds of events.
pub mod event {
    /// A process that is to be tagged was made.
    pub const FORK: u32 = 1;
    /// A tagged process became another program, or one was tagged by becoming it. Told as a [`super::NamedEvent`].
    pub const EXEC: u32 = 2;
    /// The last thread of a tagged process ended.
    pub const EXIT: u32 = 3;
    /// A tagged process was moved to another cgroup, or one was tagged by that.
    pub const MOVE: u32 = 4;
    /// A cgroup was made, anywhere in the cgroup2 hierarchy. Told as a [`super::NamedEvent`].
    pub const CGROUP: u32 = 5;
    /// A tagged process made a socket of a family that the hooks do not see (`detail`).
    pub const SOCKET: u32 = 6;
}

/// One event. What does not apply to its kind is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEvent {
    /// See [`event`].
    pub kind: u32,
    /// A socket's family; of an exit, its status as `wait` has it.
    pub detail: u32,
    /// Nanoseconds since boot.
    pub at: u64,
    pub job: u64,
    /// When the process began, nanoseconds since boot.
    pub start: u64,
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    /// Of a fork: when the process that made it began. Else 0, as `parent_tgid` is.
    pub parent_start: u64,
    pub tgid: u32,
    pub parent_tgid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Numbers of the namespaces, as `/proc/PID/ns` shows them.
    pub netns: u32,
    pub mount_ns: u32,
    pub pid_ns: u32,
    /// See [`crate::flag`].
    pub flags: u32,
    /// 1: the job was given by the start of a selected executable.
    pub by_executable: u32,
    /// Of a socket: its type and protocol, `type << 16 | protocol`.
    pub socket: u32,
    /// Of a socket: the error that its maker got instead of it; 0 for none.
    pub error: u32,
    pub reserved: u32,
    pub comm: [u8; 16],
}

/// An event with the texts that belong to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedEvent {
    pub event: TaskEvent,
    /// Bytes of `path` and `arguments` that are filled; what comes after them is of an older event.
    pub path_len: u32,
    pub arguments_len: u32,
    /// Of an exec: the number of the file that it runs, which for a script is its interpreter. Else 0.
    pub inode: u64,
    /// Bytes of the whole command line; `arguments_len` when it was not cut.
    pub arguments_whole: u64,
    /// Of an exec: the path that was given to `execve`. Of a cgroup: its own, from the hierarchy's root.
    pub path: [u8; PATH_BYTES],
    /// Separated by zeros, cut at the array's end.
    pub arguments: [u8; ARGUMENTS_BYTES],
}

/// Bytes from a structure's beginning to a field, in the running kernel: read from its type information at load.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_real_parent: u32,
    pub task_start_boottime: u32,
    pub task_group_leader: u32,
    pub task_nsproxy: u32,
    pub task_mm: u32,
    pub task_signal: u32,
    pub task_exit_code: u32,
    pub task_cgroups: u32,
    pub signal_live: u32,
    pub nsproxy_net_ns: u32,
    pub nsproxy_mnt_ns: u32,
    pub nsproxy_pid_ns_for_children: u32,
    pub net_cookie: u32,
    pub net_ns_inum: u32,
    pub mnt_ns_inum: u32,
    pub pid_ns_inum: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub cgroup_level: u32,
    pub cgroup_ancestors: u32,
    pub cgroup_root: u32,
    pub cgroup_root_hierarchy: u32,
    pub cgroup_flags: u32,
    pub sock_cgroup: u32,
    pub kernfs_node_id: u32,
    pub binprm_filename: u32,
    pub binprm_file: u32,
    pub file_inode: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub super_block_dev: u32,
}

impl Offsets {
    /// What stands in the object until the agent sets it.
    pub const UNKNOWN: Self = Self {
        task_pid: 0,
        task_tgid: 0,
        task_real_parent: 0,
        task_start_boottime: 0,
        task_group_leader: 0,
        task_nsproxy: 0,
        task_mm: 0,
        task_signal: 0,
        task_exit_code: 0,
        task_cgroups: 0,
        signal_live: 0,
        nsproxy_net_ns: 0,
        nsproxy_mnt_ns: 0,
        nsproxy_pid_ns_for_children: 0,
        net_cookie: 0,
        net_ns_inum: 0,
        mnt_ns_inum: 0,
        pid_ns_inum: 0,
        mm_arg_start: 0,
        mm_arg_end: 0,
        css_set_dfl_cgrp: 0,
        cgroup_kn: 0,
        cgroup_level: 0,
        cgroup_ancestors: 0,
        cgroup_root: 0,
        cgroup_root_hierarchy: 0,
        cgroup_flags: 0,
        sock_cgroup: 0,
        kernfs_node_id: 0,
        binprm_filename: 0,
        binprm_file: 0,
        file_inode: 0,
        inode_ino: 0,
        inode_sb: 0,
        super_block_dev: 0,
    };
}

const _: () = {
    assert!(size_of::<TaskEvent>() == 120 && align_of::<TaskEvent>() == 8);
    assert!(size_of::<NamedEvent>() == 2448 && align_of::<NamedEvent>() == 8);
    assert!(size_of::<Offsets>() == 140 && align_of::<Offsets>() == 4);
};
