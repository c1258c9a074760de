//! Cgroups of the unified hierarchy: find it, make one, put processes into it, and leave nothing behind.
//!
//! Enters: a name under the cgroup2 mount, process ids. Leaves: a folder whose inode is the id that the kernel programs
//! see. Must never: touch a cgroup that it did not make, or know of eBPF.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Seek},
    os::{
        fd::AsFd,
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
    unistd::Pid,
};

const MOUNTINFO: &str = "/proc/self/mountinfo";

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`")]
    NotMounted,
    #[error("cgroup {} does not exist: create it, or name another one", .0.display())]
    Missing(PathBuf),
    #[error("{} is not a cgroup of the cgroup2 hierarchy: name a folder below its mount", .0.display())]
    NotACgroup(PathBuf),
    #[error("cgroup {} still holds processes after {waited:?}: they are stuck in the kernel, or new ones are being put there", path.display())]
    StillPopulated { path: PathBuf, waited: Duration },
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// Where the cgroup2 hierarchy is mounted, as this process sees it.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    let mountinfo = fs::read_to_string(MOUNTINFO).map_err(|e| failed("read", Path::new(MOUNTINFO), e))?;
    mount_point_in(&mountinfo)
}

/// The same, out of the text of a `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
///
/// A mount of the whole hierarchy goes before one of a part of it.
pub fn mount_point_in(mountinfo: &str) -> Result<PathBuf, CgroupError> {
    let mut part = None;
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        if kind.split(' ').next() != Some("cgroup2") {
            continue;
        }
        if root == "/" {
            return Ok(unescape(point));
        }
        part.get_or_insert_with(|| unescape(point));
    }
    part.ok_or(CgroupError::NotMounted)
}

/// Makes sure that `path` is a folder of the cgroup2 hierarchy, and gives its one true form (absolute, no links).
pub fn resolve(path: &Path) -> Result<PathBuf, CgroupError> {
    let path = if path.is_absolute() { path.to_owned() } else { mount_point()?.join(path) };
    let resolved = match fs::canonicalize(&path) {
        Ok(resolved) => resolved,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(CgroupError::Missing(path)),
        Err(e) => return Err(failed("look up", &path, e)),
    };
    let kind = statfs(&resolved).map_err(|e| failed("look at", &resolved, e.into()))?.filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC || !resolved.is_dir() {
        return Err(CgroupError::NotACgroup(resolved));
    }
    Ok(resolved)
}

/// A cgroup that this process made.
///
/// Dropping one without [`Cgroup::remove`] kills what is in it and tries once to remove it, without waiting.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Parents that had to be made, outermost first.
    made_parents: Vec<PathBuf>,
    removed: bool,
}

impl Cgroup {
    /// Makes a new cgroup, its missing parents included. `name` is relative to the cgroup2 mount.
    pub fn create(name: impl AsRef<Path>) -> Result<Self, CgroupError> {
        let name = name.as_ref();
        let mount = mount_point()?;
        if name.as_os_str().is_empty() || !name.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(CgroupError::NotACgroup(name.to_owned()));
        }
        let mut cgroup = Self { path: mount.join(name), made_parents: Vec::new(), removed: true };
        let parents: Vec<_> = cgroup.path.ancestors().skip(1).take_while(|a| *a != mount).collect();
        for parent in parents.into_iter().rev() {
            match fs::create_dir(parent) {
                Ok(()) => cgroup.made_parents.push(parent.to_owned()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    remove_empty(&cgroup.made_parents);
                    return Err(failed("create cgroup", parent, e));
                }
            }
        }
        if let Err(e) = fs::create_dir(&cgroup.path) {
            remove_empty(&cgroup.made_parents);
            return Err(failed("create cgroup", &cgroup.path, e));
        }
        cgroup.removed = false;
        Ok(cgroup)
    }

    /// Takes over a cgroup that another process made and left.
    pub fn adopt(path: impl AsRef<Path>) -> Result<Self, CgroupError> {
        Ok(Self { path: resolve(path.as_ref())?, made_parents: Vec::new(), removed: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number by which the kernel programs know it.
    pub fn id(&self) -> Result<u64, CgroupError> {
        Ok(fs::metadata(&self.path).map_err(|e| failed("look at", &self.path, e))?.ino())
    }

    /// The processes in this very cgroup, not in those below it.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let list = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&list).map_err(|e| failed("read", &list, e))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect())
    }

    /// Moves a process, with all its threads, into the cgroup. Sockets that it has already stay behind.
    pub fn add(&self, process: Pid) -> Result<(), CgroupError> {
        let list = self.path.join("cgroup.procs");
        fs::write(&list, process.to_string()).map_err(|e| failed("move a process into", &self.path, e))
    }

    /// Ends every process in the cgroup and below it by SIGKILL, and waits until none is left.
    ///
    /// Needs Linux 5.14 for `cgroup.kill`. Blocks for as long as `deadline`.
    pub fn kill(&self, deadline: Duration) -> Result<(), CgroupError> {
        let switch = self.path.join("cgroup.kill");
        fs::write(&switch, "1").map_err(|e| failed("write", &switch, e))?;
        self.wait_until_empty(deadline)
    }

    /// Waits until no process is left in the cgroup and below it. Blocks for as long as `deadline`.
    pub fn wait_until_empty(&self, deadline: Duration) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let mut events = fs::File::open(&path).map_err(|e| failed("open", &path, e))?;
        let end = Instant::now() + deadline;
        // The kernel raises POLLPRI for what changed since this very descriptor was read: nothing is missed between.
        while is_populated(&mut events).map_err(|e| failed("read", &path, e))? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::StillPopulated { path: self.path.clone(), waited: deadline });
            }
            // In whole milliseconds, rounded up, so as not to spin at the end.
            let timeout = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(failed("wait for", &path, e.into())),
            }
        }
        Ok(())
    }

    /// Removes the cgroup, those that were made below it, and the parents that were made for it and are empty.
    ///
    /// It must hold no process: see [`Cgroup::kill`].
    pub fn remove(mut self) -> Result<(), CgroupError> {
        remove_tree(&self.path)?;
        self.removed = true;
        remove_empty(&self.made_parents);
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.removed {
            // The best that can be done without waiting; an error has nobody to go to.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            let _ = remove_tree(&self.path);
            remove_empty(&self.made_parents);
        }
    }
}

/// Reads `cgroup.events` from its start.
fn is_populated(events: &mut fs::File) -> io::Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// Bottom-up: a cgroup with another one below it cannot be removed.
fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("list", path, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed("list", path, e))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove cgroup", path, e)),
        _ => Ok(()),
    }
}

/// Innermost first. One that somebody uses by now stays.
fn remove_empty(parents: &[PathBuf]) {
    for parent in parents.iter().rev() {
        let _ = fs::remove_dir(parent);
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:7 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point_in(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_mount_of_the_whole_hierarchy_goes_before_one_of_a_part() {
        let both = "1 0 0:1 /job /mnt/part rw - cgroup2 none rw\n2 0 0:1 / /mnt/whole rw - cgroup2 none rw\n";
        assert_eq!(mount_point_in(both).unwrap(), Path::new("/mnt/whole"));
        let part = "1 0 0:1 /job /mnt/part rw - cgroup2 none rw\n";
        assert_eq!(mount_point_in(part).unwrap(), Path::new("/mnt/part"));
    }

    #[test]
    fn octal_in_a_mount_point_is_read() {
        let text = "1 0 0:1 / /mnt/a\\040b\\134c\\08 rw - cgroup2 none rw\n";
        assert_eq!(mount_point_in(text).unwrap(), Path::new("/mnt/a b\\c\\08"));
    }

    #[test]
    fn without_a_mount_the_error_says_how_to_make_one() {
        for text in ["", "garbage", "1 0 0:1 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu\n"] {
            let error = mount_point_in(text).unwrap_err();
            assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
        }
    }

    #[test]
    fn a_name_that_leads_out_of_the_mount_is_refused() {
        for name in ["", "/absolute", "../up", "a/../../b"] {
            assert!(matches!(Cgroup::create(name), Err(CgroupError::NotACgroup(_))), "{name}");
        }
    }

    #[test]
    fn a_folder_elsewhere_is_not_a_cgroup() {
        assert!(matches!(resolve(Path::new("/tmp")), Err(CgroupError::NotACgroup(_))));
        assert!(matches!(resolve(Path::new("no/such/cgroup")), Err(CgroupError::Missing(_))));
    }
}
