//! Debian's own kernels, to be booted by `cargo xtask kernel-matrix`, and a shell for them.
//!
//! In: names of kernels. Out: folders with a kernel and its modules, fetched once and kept; nothing is installed from them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weir_tests::Setup;

use super::once;
use crate::debian::Apt;

/// A kernel, by the name that the command line knows, and the suites that have it: of several, the newest is taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: &'static str,
    suites: &'static [&'static str],
    /// The processor that the emulator shows it: all that it can do, but for what follows a comma.
    processor: &'static str,
}

/// qemu 7.2 takes stale flags for cmpxchg16b's result, and a kernel that is interrupted right behind one (the allocator of
/// these has many) dies of what it finds in them. Without the instruction they take another way.
const WITHOUT_CMPXCHG16B: &str = "max,-cx16";
/// From 6.18 on a kernel without the instruction has no memory for a socket's storage, and its allocator has fewer of them.
const WHOLE: &str = "max";

/// The stated floor, the one of Debian 13, and the newest that is released.
pub static KERNELS: [Kernel; 3] = [
    Kernel { name: "6.1", suites: &["bookworm"], processor: WITHOUT_CMPXCHG16B },
    Kernel { name: "6.12", suites: &["trixie"], processor: WITHOUT_CMPXCHG16B },
    Kernel { name: "newest", suites: &["trixie-backports", "sid"], processor: WHOLE },
];

/// Those that `cargo xtask test` boots.
pub const IN_EVERY_TEST: [&str; 2] = ["6.1", "6.12"];

/// Depends on the current kernel of its suite.
const META: &str = "linux-image-cloud-amd64";
const BUSYBOX: (&str, &str) = ("bookworm", "busybox-static");

/// A kernel that was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub name: &'static str,
    /// What its `uname -r` says.
    pub release: String,
    /// Debian's version of the package.
    pub version: String,
    pub image: PathBuf,
    /// The folder with `kernel/`, or none where the package has no modules.
    pub modules: PathBuf,
    pub processor: &'static str,
}

pub fn folder(setup: &Setup) -> PathBuf {
    setup.folder().join("kernels")
}

pub fn busybox(setup: &Setup) -> PathBuf {
    folder(setup).join("busybox/bin/busybox")
}

pub fn by_name(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// Fetches the kernels that are not there yet.
pub fn fetch(setup: &Setup, kernels: &[&'static Kernel]) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("other kernels are booted on x86_64 alone, and this machine is {}", std::env::consts::ARCH);
    }
    let log = setup.folder().join("logs/kernels.log");
    let (suite, package) = BUSYBOX;
    once(setup, "busybox", "fetching a shell for other kernels", package, &busybox(setup), || {
        let apt = Apt::with_suites("busybox", folder(setup).join("apt-busybox"), &[suite], &log)?;
        apt.unpack(package, &folder(setup).join("busybox"))
    })?;
    for kernel in kernels {
        let place = folder(setup).join(kernel.name);
        let (step, what) =
            (format!("kernel-{}", kernel.name), format!("fetching Debian's kernel {}", kernel.name));
        once(setup, &step, &what, &kernel.suites.join(" "), &place.join("version"), || {
            let _ = std::fs::remove_dir_all(&place);
            let state = folder(setup).join(format!("apt-{}", kernel.name));
            let apt = Apt::with_suites(&step, state.clone(), kernel.suites, &log)?;
            let version = unpack(&apt, &place)?;
            // Some 80 MB of lists.
            std::fs::remove_dir_all(&state)?;
            Ok(std::fs::write(place.join("version"), version)?)
        })?;
    }
    Ok(())
}

/// Forgets a kernel, so that the next setup asks Debian for its newest build.
pub fn forget(setup: &Setup, kernel: &Kernel) -> Result<()> {
    match std::fs::remove_dir_all(folder(setup).join(kernel.name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// What was fetched of a kernel.
pub fn fetched(setup: &Setup, kernel: &'static Kernel) -> Result<Fetched> {
    let place = folder(setup).join(kernel.name);
    let version = std::fs::read_to_string(place.join("version"))
        .with_context(|| format!("the kernel {} is not set up: run `cargo xtask setup`", kernel.name))?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .into_iter()
        .filter_map(|folder| only_folder(&place.join(folder)))
        .next()
        .with_context(|| format!("{} has no modules", place.display()))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Up to Debian 13 it lies in /boot.
    let image = [place.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.exists())
        .with_context(|| format!("{} has no kernel image", place.display()))?;
    Ok(Fetched { name: kernel.name, release, version, image, modules, processor: kernel.processor })
}

/// Follows the meta package to the packages of the kernel itself: one of all, or one of the image and one of the modules.
fn unpack(apt: &Apt<'_>, place: &Path) -> Result<String> {
    let version = apt.newest(META)?;
    let mut open = vec![(META.to_owned(), Some(version.clone()))];
    let mut done = Vec::new();
    while let Some((name, demanded)) = open.pop() {
        let package = match demanded {
            Some(version) => format!("{name}={version}"),
            None => name,
        };
        if done.contains(&package) {
            continue;
        }
        apt.unpack(&package, place)?;
        open.extend(apt.depends(&package)?.into_iter().filter(|(name, _)| is_part_of_a_kernel(name)));
        done.push(package);
    }
    Ok(version)
}

fn is_part_of_a_kernel(package: &str) -> bool {
    let part = ["linux-image-", "linux-binary-", "linux-modules-"];
    let release = part.into_iter().find_map(|prefix| package.strip_prefix(prefix));
    release.is_some_and(|release| release.starts_with(|first: char| first.is_ascii_digit()))
}

fn only_folder(parent: &Path) -> Option<PathBuf> {
    std::fs::read_dir(parent).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_of_every_test_are_known() {
        assert!(IN_EVERY_TEST.iter().all(|name| by_name(name).is_some()));
    }

    #[test]
    fn the_packages_of_a_kernel_are_told_from_those_beside_it() {
        for part in ["linux-image-6.1.0-50-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"] {
            assert!(is_part_of_a_kernel(part), "{part}");
        }
        for other in ["linux-base", "linux-base-cloud-amd64", "linux-modules-cloud-amd64", "initramfs-tools"]
        {
            assert!(!is_part_of_a_kernel(other), "{other}");
        }
    }
}
