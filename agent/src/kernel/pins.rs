//! Where tables and links outlive the agent: a folder of Weir's own on a bpffs.
//!
//! ```text
//! <folder>/            0700   locked by the agent that uses it
//!   v<LAYOUT>/maps/           the tables, and EPOCH, which is theirs
//!   v<LAYOUT>/links/          the hooks
//! ```
//!
//! Enters: the folder's path. Leaves: paths to pin at, and the epoch. Must never: use a folder that another agent uses
//! or that another user could write to, remove what is not in a folder of this form, or mount over another's bpffs.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::maps::{Array, MapData};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use weir_ebpf::LAYOUT;

use super::syscall;
use crate::random;

/// Where a bpffs is by custom; systemd mounts one there.
const BPFFS: &str = "/sys/fs/bpf";
const EPOCH: &str = "EPOCH";

/// Why hooks or tables could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{} is on no bpffs: mount one with `mount -t bpf bpf {BPFFS}`, and set [kernel] pin_dir to a folder of Weir's own below it", .0.display())]
    NotBpffs(PathBuf),
    #[error("[kernel] pin_dir is {}: it must be the absolute path of a folder of Weir's own below a bpffs, without dots", .0.display())]
    NotOurs(PathBuf),
    #[error("{} belongs to user {owner}, and this is user {user}: give it to the agent's user with `chown`, or remove it", path.display())]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("another agent uses {}{}: end it first", folder.display(), of(*holder))]
    InUse { folder: PathBuf, holder: Option<u32> },
    #[error("cannot attach {link}: {source}{}", hint(source))]
    Attach { link: String, source: io::Error },
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM) => "; is a program attached to the cgroup that allows no other?",
        Some(nix::libc::ENOENT) => "; is the cgroup gone?",
        _ => "",
    }
}

/// A folder of pins in use by this agent.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// Whoever holds this very opening of the folder (it can be sent to another process) uses the folder.
    lock: Mutex<Option<File>>,
    epoch: u64,
}

impl Pins {
    /// Takes the folder into use; makes what is missing of it, and mounts a bpffs at its usual place if there is none.
    pub fn open(folder: &Path) -> Result<Self, PinError> {
        make_root(folder)?;
        let lock = lock(folder)?;
        Self::open_locked(folder, lock)
    }

    /// The same for a successor, to which the agent before it sent its lock.
    pub fn take_over(folder: &Path, lock: File) -> Result<Self, PinError> {
        make_root(folder)?;
        let of = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (named, held) = (fs::metadata(folder), lock.metadata());
        match (named.map(of), held.map(of)) {
            (Ok(named), Ok(held)) if named == held => Self::open_locked(folder, lock),
            _ => Err(PinError::InUse { folder: folder.to_owned(), holder: None }),
        }
    }

    fn open_locked(root: &Path, lock: File) -> Result<Self, PinError> {
        let layout = root.join(layout_name(LAYOUT));
        for path in [layout.clone(), layout.join("maps"), layout.join("links")] {
            make_folder(&path)?;
        }
        let epoch = epoch(&layout.join("maps").join(EPOCH))?;
        Ok(Self { root: root.to_owned(), lock: Mutex::new(Some(lock)), epoch })
    }

    /// Where a table is pinned, or is to be.
    pub fn map_path(&self, name: &str) -> PathBuf {
        self.folder("maps").join(name)
    }

    /// Where a link is pinned, or is to be.
    pub fn link_path(&self, name: &str) -> PathBuf {
        self.folder("links").join(name)
    }

    /// Random, and made with the tables: what they count is of this epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// To be sent to a successor. The folder is in use until every copy of it is closed.
    pub fn lock(&self) -> Option<OwnedFd> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().and_then(|lock| lock.as_fd().try_clone_to_owned().ok())
    }

    /// The folder is a successor's alone: should that end, its own successor need not wait for this process.
    pub fn leave(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The layouts of other versions of Weir whose hooks and tables are still here. Their tables cannot be read by this
    /// version: when its own hooks are attached, those are to be removed.
    pub fn other_layouts(&self) -> Result<Vec<u32>, PinError> {
        let layouts = list(&self.root)?.into_iter().filter_map(|name| layout_of(&name));
        Ok(layouts.filter(|layout| *layout != LAYOUT).collect())
    }

    /// Removes what other versions left; to be called when this one's own hooks are attached. Until then a connect meets
    /// both, and is refused rather than passed.
    pub fn remove_other_layouts(&self) -> Result<(), PinError> {
        self.other_layouts()?.into_iter().try_for_each(|layout| remove_layout(&self.root, layout))
    }

    /// Takes away the links that are not named: of cgroups that are selected no more, or gone.
    pub fn keep_links(&self, names: &[&str]) -> Result<(), PinError> {
        let links = self.folder("links");
        for name in list(&links)?.into_iter().filter(|name| !names.contains(&name.as_str())) {
            remove_link(&links.join(name))?;
        }
        Ok(())
    }

    /// Detaches every hook, removes every table, and the folder.
    pub fn remove_all(self) -> Result<(), PinError> {
        remove_layouts(&self.root)
    }

    fn folder(&self, kind: &str) -> PathBuf {
        self.root.join(layout_name(LAYOUT)).join(kind)
    }
}

/// Removes what an agent left pinned, whoever it ran as, unless one uses it still. False: nothing was there.
pub fn remove(folder: &Path) -> Result<bool, PinError> {
    if !folder.try_exists().map_err(failed("look at", folder))? {
        return Ok(false);
    }
    if !is_bpffs(folder)? {
        return Err(PinError::NotBpffs(folder.to_owned()));
    }
    let _in_use = lock(folder)?;
    remove_layouts(folder)?;
    Ok(true)
}

fn remove_layouts(root: &Path) -> Result<(), PinError> {
    for layout in list(root)?.iter().filter_map(|name| layout_of(name)) {
        remove_layout(root, layout)?;
    }
    remove_folder(root)
}

/// Puts a pin in the place of what is pinned there, or of nothing, in one step.
pub(super) fn replace(object: BorrowedFd<'_>, path: &Path) -> Result<(), PinError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push("-new");
    let beside = PathBuf::from(beside);
    // One that a killed agent left.
    remove_file(&beside)?;
    syscall::pin(object, &beside).map_err(failed("pin a link at", &beside))?;
    fs::rename(&beside, path).map_err(failed("pin a link at", path))
}

fn make_root(folder: &Path) -> Result<(), PinError> {
    // The kernel keeps names with dots in them to itself.
    let named = folder.components().all(|part| !part.as_os_str().as_encoded_bytes().contains(&b'.'));
    let (true, true, Some(above)) = (folder.is_absolute(), named, folder.parent()) else {
        return Err(PinError::NotOurs(folder.to_owned()));
    };
    if above.starts_with(BPFFS) {
        mount_bpffs()?;
    }
    // Of the folders above it, the last that is there.
    let lowest = above.ancestors().find(|path| path.exists()).unwrap_or(above);
    if !is_bpffs(lowest)? {
        return Err(if is_bpffs(folder).is_ok_and(|on| on) {
            // The mount point itself: the kernel may have files of its own there, that cannot be removed.
            PinError::NotOurs(folder.to_owned())
        } else {
            PinError::NotBpffs(folder.to_owned())
        });
    }
    for path in above.ancestors().take_while(|path| *path != lowest).collect::<Vec<_>>().into_iter().rev() {
        make_folder(path)?;
    }
    make_folder(folder)
}

/// 0700 and this user's.
fn make_folder(path: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", path)(e)),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let user = geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != user {
        return Err(PinError::Owner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    if metadata.mode() & 0o777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("close to others", path))?;
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, PinError> {
    let file = File::open(folder).map_err(failed("open", folder))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(PinError::InUse { folder: folder.to_owned(), holder: holder(&file) })
        }
        Err(TryLockError::Error(source)) => Err(failed("lock", folder)(source)),
    }
}

/// Who took the lock, if /proc tells; its successor may hold it by now.
fn holder(locked: &File) -> Option<u32> {
    let inode = format!(":{}", locked.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // proc_locks(5): `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`.
    let ours = |line: &&str| line.contains("FLOCK") && line.split(' ').any(|field| field.ends_with(&inode));
    let mut fields = locks.lines().find(ours)?.split_whitespace().skip(4);
    fields.next()?.parse().ok()
}

fn of(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

fn is_bpffs(path: &Path) -> Result<bool, PinError> {
    let kind = statfs(path).map_err(|e| failed("look at", path)(e.into()))?.filesystem_type();
    Ok(kind == BPF_FS_MAGIC)
}

/// Under a lock of its own: two agents that start together must not mount one over the other's.
fn mount_bpffs() -> Result<(), PinError> {
    let place = Path::new(BPFFS);
    if is_bpffs(place)? {
        return Ok(());
    }
    let below = File::open(place).map_err(failed("open", place))?;
    below.lock().map_err(failed("lock", place))?;
    if is_bpffs(place)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), place, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|e| failed("mount a bpffs at", place)(e.into()))
}

/// Read from its table, or drawn and written there: pinned only when it is filled.
fn epoch(path: &Path) -> Result<u64, PinError> {
    let table = |e: aya::maps::MapError| failed("use", path)(super::io_error(e.into()));
    match syscall::open_pin(path) {
        Ok(descriptor) => {
            let map = MapData::from_fd(descriptor).map_err(table)?;
            let epoch = Array::<_, u64>::try_from(aya::maps::Map::Array(map)).map_err(table)?;
            epoch.get(&0, 0).map_err(table)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let drawn = u64::from_le_bytes(random::bytes());
            let mut made = Array::<MapData, u64>::create(1, 0).map_err(table)?;
            made.set(0, drawn, 0).map_err(table)?;
            made.pin(path).map_err(|e| failed("pin", path)(io::Error::other(e)))?;
            Ok(drawn)
        }
        Err(e) => Err(failed("open", path)(e)),
    }
}

fn layout_name(layout: u32) -> String {
    format!("v{layout}")
}

fn layout_of(name: &str) -> Option<u32> {
    let layout = name.strip_prefix('v')?.parse().ok()?;
    (layout_name(layout) == name).then_some(layout)
}

/// Links first: nothing is to be led to an agent without the tables.
fn remove_layout(root: &Path, layout: u32) -> Result<(), PinError> {
    let folder = root.join(layout_name(layout));
    let (links, maps) = (folder.join("links"), folder.join("maps"));
    for name in list(&links)? {
        remove_link(&links.join(name))?;
    }
    for name in list(&maps)? {
        remove_file(&maps.join(name))?;
    }
    [&links, &maps, &folder].into_iter().try_for_each(|path| remove_folder(path))
}

/// Detached as well as unpinned: another process may hold it.
fn remove_link(path: &Path) -> Result<(), PinError> {
    match syscall::open_pin(path) {
        Ok(link) => match syscall::link_detach(link.as_fd()) {
            // A tracing link ends with its last holder.
            Err(e) if e.raw_os_error() != Some(nix::libc::EOPNOTSUPP) => {
                return Err(failed("detach", path)(e));
            }
            _ => {}
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("open", path)(e)),
    }
    remove_file(path)
}

/// None there is the same as an empty one.
fn list(folder: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", folder))?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(failed("list", folder))
}

pub(super) fn remove_file(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PinError + 'a {
    move |source| PinError::Io { doing, path: path.to_owned(), source }
}
