//! What the machine must offer: root, BTF and a cgroup2 mount; and what an unprivileged job can reach on it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The uid and gid that jobs run under. No account is needed for it, and none is used.
pub const JOB_UID: u32 = 65534;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Fails with one sentence that names the fault and the mend, unless hooks can be loaded and attached here.
pub fn require_kernel() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "not root: loading kernel programs and making cgroups need it; run this again with sudo or as root"
        );
    }
    if !Path::new(BTF).exists() {
        bail!(
            "the kernel has no BTF ({BTF} is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y, such as Debian 12's own"
        );
    }
    let mount = cgroup2_mount()?;
    if std::fs::metadata(mount.join("cgroup.procs")).is_err() {
        bail!(
            "{} is no usable cgroup2 mount: mount one with `mount -t cgroup2 none {}`",
            mount.display(),
            mount.display()
        );
    }
    Ok(())
}

/// Where cgroup2 is mounted, by /proc/self/mountinfo: it may be anywhere.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    cgroup2_in(&table).context(
        "no cgroup2 is mounted: mount one, for example with `mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup`",
    )
}

/// proc_pid_mountinfo(5): `id parent major:minor root MOUNT-POINT options fields... - TYPE source options`.
fn cgroup2_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (filesystem.split(' ').next()? == "cgroup2" && root == "/").then(|| PathBuf::from(point))
    })
}

/// Whether an unprivileged process can come to `path`: each folder above it lets others pass.
pub fn reachable_by_others(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors().skip(1).all(|folder| folder.metadata().is_ok_and(|m| m.mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_in("30 23 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn a_folder_closed_to_others_is_not_reachable() {
        use std::os::unix::fs::PermissionsExt;
        let closed = tempfile::tempdir().unwrap();
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(closed.path().join("file"), "").unwrap();
        assert!(!reachable_by_others(&closed.path().join("file")));
        assert!(reachable_by_others(Path::new("/bin/sh")));
    }
}
