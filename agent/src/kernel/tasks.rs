//! The programs that follow processes: attached to the kernel's own tracepoints, for all of the host, and what they tell.
//!
//! Enters: what executables to select, tags for processes that were there before. Leaves: [`Told`], one for each event of
//! a selected process, in order. Must never: read what the ring holds past the length that an event says.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Btf, Ebpf,
    maps::{MapData, RingBuf},
    programs::{BtfTracePoint, FExit, ProgramError},
};
use weir_ebpf::{
    FileKey, Selected, Settings, Tag,
    task::{ARGUMENTS_BYTES, NamedEvent, PATH_BYTES, TaskEvent},
};

use super::{
    Hooks, KernelError, Links,
    link::{AttachType, Link},
    lock, lookup_missing,
    pins::Pins,
    program, refused, syscall,
    tables::is_there_already,
    unreadable,
};

/// Programs, and the tracepoints that they are for.
const TRACEPOINTS: [(&str, &str); 5] = [
    ("weir_exit", "sched_process_exit"),
    ("weir_fork", "sched_process_fork"),
    ("weir_exec", "sched_process_exec"),
    ("weir_attach", "cgroup_attach_task"),
    ("weir_mkdir", "cgroup_mkdir"),
];
/// The same, of a function.
const SOCKET: (&str, &str) = ("weir_socket", "__sock_create");

const BPF_NOEXIST: u64 = 1;

/// One event, and the texts that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub event: TaskEvent,
    pub path: Vec<u8>,
    /// Of an exec: the number of the file that runs, which for a script is its interpreter; else 0.
    pub inode: u64,
    /// Separated by zeros.
    pub arguments: Vec<u8>,
    /// Whether `arguments` is less than the process was given.
    pub cut: bool,
}

/// The reader of the ring of events; there is one at a time.
pub struct TaskEvents {
    ring: RingBuf<MapData>,
}

/// Loads the programs. Says why sockets of families that the hooks cannot see go untold, if they do.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<Option<String>, KernelError> {
    let types = Btf::from_sys_fs().map_err(|e| refused("the kernel's type information", e.into()))?;
    for (name, tracepoint) in TRACEPOINTS {
        load_tracepoint(ebpf, name, tracepoint, &types).map_err(|e| refused(name, e.into()))?;
    }
    let socket = load_socket(ebpf, &types).map_err(|e| refused(SOCKET.0, e.into()));
    Ok(socket.err().map(|e| e.to_string()))
}

/// Attaches them. The first is the one that takes tags away, so that none stays behind.
pub(super) fn attach(ebpf: &Ebpf, pins: Option<&Pins>, with_socket: bool) -> Result<Links, KernelError> {
    let mut links = Links::new();
    for (name, _) in TRACEPOINTS {
        links.push(Link::trace(pins, name, program(ebpf, name)?.as_fd(), AttachType::RawTracepoint)?);
    }
    if with_socket {
        let (name, _) = SOCKET;
        links.push(Link::trace(pins, name, program(ebpf, name)?.as_fd(), AttachType::FunctionExit)?);
    }
    Ok(links)
}

impl Hooks {
    /// Selects an executable: each start of it begins a job of its own.
    pub fn select_executable(&self, file: FileKey, selected: Selected) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        tables.executables.insert(file, selected)?;
        let settings = tables.settings()?;
        tables.set_settings(Settings { by_executable: 1, ..settings })
    }

    /// Lets go of the executables and users that are selected besides these, by an agent before this one.
    pub fn keep_selectors(
        &self,
        files: &BTreeMap<FileKey, u32>,
        users: &BTreeSet<u32>,
    ) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        for (file, _) in tables.executables.entries()? {
            if !files.contains_key(&file) {
                tables.executables.remove(&file)?;
            }
        }
        for (uid, _) in tables.users.entries()? {
            if !users.contains(&uid) {
                tables.users.remove(&uid)?;
            }
        }
        let settings = tables.settings()?;
        let (by_user, by_executable) = (u32::from(!users.is_empty()), u32::from(!files.is_empty()));
        tables.set_settings(Settings { by_user, by_executable, ..settings })
    }

    pub fn unselect_executable(&self, file: FileKey) -> Result<(), KernelError> {
        lock(&self.tables).executables.remove(&file)
    }

    /// Tags a process that was there before it could be followed. One that has a tag already keeps it; says whether this
    /// one was put in.
    pub fn seed(&self, tgid: u32, tag: Tag) -> Result<bool, KernelError> {
        match lock(&self.tables).tasks.insert(tgid, tag, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(e) if is_there_already(&e) => Ok(false),
            Err(e) => Err(unreadable(e)),
        }
    }

    /// Accounts for a job that the agent itself names.
    pub fn account(&self, job: u64) -> Result<(), KernelError> {
        lock(&self.tables).begin_job(job)
    }

    pub fn tag_of(&self, tgid: u32) -> Result<Option<Tag>, KernelError> {
        match lock(&self.tables).tasks.get(&tgid, 0) {
            Ok(tag) => Ok(Some(tag)),
            Err(e) if lookup_missing(&e) => Ok(None),
            Err(e) => Err(unreadable(e)),
        }
    }

    /// The reader of what becomes of processes. There is one; None: it is taken already. It begins where the one before it
    /// stopped, so an agent before this one must have let go by now.
    pub fn task_events(&self) -> Result<Option<TaskEvents>, KernelError> {
        let ring = lock(&self.task_events).take();
        ring.map(|ring| Ok(TaskEvents { ring: ring.try_into().map_err(unreadable)? })).transpose()
    }

    /// Why this kernel does not tell of sockets of families that the hooks cannot see, if it does not.
    pub fn socket_fault(&self) -> Option<&str> {
        self.socket_fault.as_deref()
    }
}

impl TaskEvents {
    /// The next event that is there by now.
    pub fn take(&mut self) -> Option<Told> {
        loop {
            let item = self.ring.next()?;
            if let Some(told) = told(&item) {
                return Some(told);
            }
            tracing::error!(bytes = item.len(), "an event of an unknown size in the ring of processes");
        }
    }
}

impl AsFd for TaskEvents {
    /// Readable when the programs ask for attention; they do not for each event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Reads an event by its length: with texts or without.
fn told(bytes: &[u8]) -> Option<Told> {
    if bytes.len() == size_of::<TaskEvent>() {
        let event = syscall::plain(bytes)?;
        return Some(Told { event, path: Vec::new(), inode: 0, arguments: Vec::new(), cut: false });
    }
    let named: NamedEvent = syscall::plain(bytes)?;
    let path = named.path.get(..(named.path_len as usize).min(PATH_BYTES))?;
    let arguments = named.arguments.get(..(named.arguments_len as usize).min(ARGUMENTS_BYTES))?;
    let cut = named.arguments_whole > arguments.len() as u64;
    Some(Told {
        event: named.event,
        path: path.to_vec(),
        inode: named.inode,
        arguments: arguments.to_vec(),
        cut,
    })
}

fn load_tracepoint(ebpf: &mut Ebpf, name: &str, tracepoint: &str, types: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load(tracepoint, types)
}

fn load_socket(ebpf: &mut Ebpf, types: &Btf) -> Result<(), ProgramError> {
    let (name, function) = SOCKET;
    let program: &mut FExit = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load(function, types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_another_size_or_with_a_length_too_great_is_not_read_past_its_end() {
        for length in [0, 1, size_of::<TaskEvent>() - 1, size_of::<TaskEvent>() + 1] {
            assert_eq!(told(&vec![0; length]), None, "{length}");
        }
        let named = told(&[0xff; size_of::<NamedEvent>()]).unwrap();
        assert_eq!((named.path.len(), named.arguments.len(), named.cut), (PATH_BYTES, ARGUMENTS_BYTES, true));
        let plain = told(&[1; size_of::<TaskEvent>()]).unwrap();
        assert!(plain.path.is_empty() && plain.arguments.is_empty() && !plain.cut);
    }
}
