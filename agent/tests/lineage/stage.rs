//! What a test of lineage stands on: hooks, cgroups of its own, and processes that do as they are told.
//!
//! Enters: Python scripts. Leaves: what they said, and what the kernel programs told of them. Must never: touch a
//! cgroup that is not its own.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use weir::{
    cgroup::Cgroup,
    kernel::{Hooks, Plan, TaskEvents, Told},
};
use weir_ebpf::{FileKey, Selected, Settings, Tag};

pub use crate::basics::{PATIENCE, Process, until};

/// What these scripts can besides.
const PRELUDE: &str = r#"
import ctypes, subprocess, time
def join(folder):
    open(folder + '/cgroup.procs', 'w').write(str(os.getpid()))
def start():
    return open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19]
"#;

/// Loaded programs, and what they have told so far.
pub struct Stage {
    pub hooks: Hooks,
    events: RefCell<TaskEvents>,
    told: RefCell<Vec<Told>>,
}

impl Stage {
    pub fn new() -> Self {
        let hooks = Hooks::load(Plan::default()).expect("these tests need root and type information");
        let events = hooks.task_events().unwrap().unwrap();
        Self { hooks, events: RefCell::new(events), told: RefCell::default() }
    }

    pub fn select(&self, cgroup: &Cgroup) -> u64 {
        select(&self.hooks, cgroup)
    }

    pub fn tag(&self, pid: u32) -> Option<Tag> {
        self.hooks.tag_of(pid).unwrap()
    }

    /// The first event for which it holds, waiting for it.
    pub fn told(&self, what: &str, holds: impl Fn(&Told) -> bool) -> Told {
        let mut found = None;
        until(what, || {
            found = self.all().into_iter().find(|told| holds(told));
            found.is_some()
        });
        found.unwrap()
    }

    /// Everything that was told by now.
    pub fn all(&self) -> Vec<Told> {
        let mut told = self.told.borrow_mut();
        told.extend(std::iter::from_fn(|| self.events.borrow_mut().take()));
        told.clone()
    }
}

/// Selects a cgroup, with all those below.
pub fn select(hooks: &Hooks, cgroup: &Cgroup) -> u64 {
    let id = cgroup.id().unwrap();
    let below = cgroup.path().strip_prefix(weir::cgroup::mount_point().unwrap()).unwrap();
    let levels = Settings::pack_levels([below.components().count()]).unwrap();
    hooks.change_settings(|settings| settings.cgroup_levels = levels).unwrap();
    hooks.select_cgroup(id, Selected { job: id, flags: 0, reserved: 0 }).unwrap();
    id
}

pub fn cgroup() -> Cgroup {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("weir-lineage-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Cgroup::create(name).expect("these tests need root and a cgroup2 hierarchy")
}

impl Process {
    /// A script that joins a cgroup only when it wants to.
    pub fn beside(script: &str) -> Self {
        Self::outside(&format!("{PRELUDE}{script}"))
    }

    /// A script that joins a cgroup before anything else.
    pub fn within(cgroup: &Cgroup, script: &str) -> Self {
        Self::beside(&format!("join({:?})\n{script}", cgroup.path()))
    }

    pub fn number(&mut self) -> u32 {
        self.line().parse().unwrap()
    }
}

/// The kernel's names for a file.
pub fn file_key(path: &Path) -> FileKey {
    let file = fs::metadata(path).unwrap();
    let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
    FileKey { inode: file.ino(), device: u32::try_from(major << 20 | minor).unwrap(), reserved: 0 }
}
