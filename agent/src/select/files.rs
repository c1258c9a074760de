//! A file by the numbers under which the kernel programs know it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use weir_ebpf::FileKey;

/// None: it is gone. The device is the mounted filesystem's own; what `stat` says differs from it on btrfs.
pub fn key(path: &Path) -> Option<FileKey> {
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let device = mounted(&file).unwrap_or_else(|| {
        let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
        (major, minor)
    });
    Some(FileKey { inode: metadata.ino(), device: number(device)?, reserved: 0 })
}

/// As the kernel holds it (`MKDEV` of linux/kdev_t.h).
fn number((major, minor): (u64, u64)) -> Option<u32> {
    u32::try_from(major << 20 | minor).ok()
}

/// The device of the mount that the file was opened in, by mountinfo.
fn mounted(file: &File) -> Option<(u64, u64)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_numbers_of_its_inode_and_mount() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (own, other) = (key(file.path()).unwrap(), key(Path::new("/proc/self/stat")).unwrap());
        assert_eq!(own.inode, file.as_file().metadata().unwrap().ino());
        assert_ne!(own.device, other.device);
        assert_eq!(key(Path::new("/nonexistent")), None);
    }
}
