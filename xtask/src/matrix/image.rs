//! The file system that a kernel boots into: a shell, Python, `ip`, the test binaries, and what they are linked with.
//!
//! In: what this machine has. Out: archives in the format of an initramfs; the kernel reads several one after another.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use weir_tests::Setup;

use super::suite::Suite;
use crate::progress::output;
use crate::setup::interpreters::base_python;
use crate::setup::kernels::{self, Fetched};

const INIT: &str = include_str!("init.sh");

/// Programs of this machine that tests call, besides Python and busybox.
const PROGRAMS: &[&str] = &["dash", "ip", "nsenter", "setpriv", "sleep", "unshare"];
/// Modules that tests need, where the kernel has them not built in.
const MODULES: &[&str] = &["veth", "dummy"];
/// Big parts of Python's library that no test needs.
const NOT_OF_PYTHON: &[&str] = &[
    "config-3.11-x86_64-linux-gnu",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
];

/// What all kernels share, as one archive.
pub fn shared(setup: &Setup, suite: &Suite, work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tests.d", "tmp", "usr/bin"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::write(root.join("init"), INIT)?;
    std::fs::set_permissions(root.join("init"), std::fs::Permissions::from_mode(0o755))?;
    std::fs::copy(kernels::busybox(setup), root.join("bin/busybox"))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    let mut linked = BTreeSet::new();
    for (name, path) in &suite.binaries {
        let place = root.join("tests.d").join(name);
        // Most of it is what a debugger reads.
        let strip = Command::new("strip").arg("-g").arg("-o").arg(&place).arg(path).status();
        if !strip.is_ok_and(|status| status.success()) {
            std::fs::copy(path, &place)?;
        }
        linked.extend(libraries(path)?);
    }
    for program in PROGRAMS {
        let path = program_on_path(program)?;
        copy_following(&path, &root.join("usr/bin").join(program))?;
        linked.extend(libraries(&path)?);
    }
    linked.extend(python(&root)?);
    for library in linked {
        copy_following(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    archive(&root, &work.join("shared.cpio"))
}

/// What one kernel gets: its modules and the list of its tests. The result begins with what all share.
pub fn of_kernel(kernel: &Fetched, tests: &str, shared: &Path, work: &Path) -> Result<PathBuf> {
    let root = work.join(format!("root-{}", kernel.name));
    std::fs::create_dir_all(root.join("modules"))?;
    std::fs::write(root.join("tests"), tests)?;
    let mut order = Vec::new();
    for module in MODULES {
        unpack_module(kernel, module, &root.join("modules"), &mut order)?;
    }
    std::fs::write(
        root.join("modules/order"),
        order.iter().map(|name| format!("{name}\n")).collect::<String>(),
    )?;
    let own = archive(&root, &work.join(format!("{}.cpio", kernel.name)))?;
    let whole = work.join(format!("{}.initramfs", kernel.name));
    std::fs::copy(shared, &whole)?;
    let mut file = std::fs::File::options().append(true).open(&whole)?;
    std::io::copy(&mut std::fs::File::open(own)?, &mut file)?;
    Ok(whole)
}

/// Python and its library, at the places where it looks for them. Gives the shared libraries that they need.
fn python(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let (python, _) =
        base_python().context("no Python 3.11 that other users can run: install Debian's python3")?;
    let ask = "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); print(sysconfig.get_paths()['stdlib'])";
    let mut asked = Command::new(&python);
    let told = output(asked.args(["-c", ask]).env_remove("PYTHONHOME").env_remove("PYTHONPATH"))?;
    let (Some(binary), Some(library)) = (told.lines().next(), told.lines().nth(1)) else {
        bail!("{} did not say where its library is", python.display())
    };
    let (binary, library) = (Path::new(binary), Path::new(library));
    copy_following(binary, &root.join(binary.strip_prefix("/")?))?;
    let name = root.join("usr/bin/python3");
    if !name.exists() {
        symlink(binary, &name)?;
    }
    let mut needed = libraries(binary)?;
    copy_tree(library, &root.join(library.strip_prefix("/")?), &mut |extension| {
        // One of them may have been built for what is not here; it is then not imported either.
        needed.extend(libraries(extension).unwrap_or_default());
    })?;
    Ok(needed)
}

fn copy_tree(from: &Path, to: &Path, shared_object: &mut dyn FnMut(&Path)) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        if path.is_dir() {
            if !NOT_OF_PYTHON.contains(&name.to_string_lossy().as_ref()) {
                copy_tree(&path, &to.join(&name), shared_object)?;
            }
        } else if path.exists() {
            if path.extension().is_some_and(|extension| extension == "so") {
                shared_object(&path);
            }
            std::fs::copy(&path, to.join(&name))?;
        }
    }
    Ok(())
}

fn copy_following(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// What the dynamic loader would load for a program, itself included.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let told = output(Command::new("ldd").arg(program).stderr(Stdio::null()))?;
    if let Some(missing) = told.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn program_on_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    // The true file: in /sbin, `ip` is a link out of it.
    Ok(found.with_context(|| format!("{name} is not on the PATH"))?.canonicalize()?)
}

/// Unpacks a module after those that it needs. One that is built in, or that this kernel has not, is none.
fn unpack_module(kernel: &Fetched, module: &str, to: &Path, order: &mut Vec<String>) -> Result<()> {
    let file = format!("{module}.ko");
    if order.contains(&file) {
        return Ok(());
    }
    let Some(packed) = find_module(&kernel.modules, module)? else { return Ok(()) };
    let bytes = match packed.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            let xz = Command::new("xz").args(["-dc"]).arg(&packed).stderr(Stdio::inherit()).output()?;
            if !xz.status.success() {
                bail!("xz could not unpack {} ({})", packed.display(), xz.status);
            }
            xz.stdout
        }
        Some("ko") => std::fs::read(&packed)?,
        _ => bail!("{} is packed in a way that is not known here", packed.display()),
    };
    for needed in needed_modules(&bytes) {
        unpack_module(kernel, &needed, to, order)?;
    }
    std::fs::write(to.join(&file), bytes)?;
    order.push(file);
    Ok(())
}

fn find_module(folder: &Path, module: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_module(&path, module)? {
                return Ok(Some(found));
            }
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Module names know no difference between the two.
        if name.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == module.replace('-', "_"))
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The `depends=` of a module's own description, NUL-terminated as all of it is.
fn needed_modules(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = module.get(start + KEY.len()..).unwrap_or_default();
    let list = String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Not compressed: an emulated processor would take longer to unpack it than the disk does to read it.
fn archive(root: &Path, to: &Path) -> Result<PathBuf> {
    let mut find = Command::new("find");
    let mut find = find.arg(".").current_dir(root).stdout(Stdio::piped()).spawn().context("starting find")?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--owner=+0:+0", "--quiet"]).current_dir(root);
    let status = cpio.stdin(names).stdout(std::fs::File::create(to)?).status().context("starting cpio")?;
    if !status.success() || !find.wait()?.success() {
        bail!("cpio could not pack {} ({status})", root.display());
    }
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\x7fELF...\0license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0name=vxlan\0";
        assert_eq!(needed_modules(module), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert!(needed_modules(b"\x7fELF\0depends=\0name=veth\0").is_empty());
        assert!(needed_modules(b"").is_empty());
    }

    #[test]
    fn a_program_is_linked_with_its_loader_at_least() {
        let linked = libraries(Path::new("/bin/sh")).unwrap();
        assert!(linked.iter().any(|path| path.to_string_lossy().contains("ld-linux")), "{linked:?}");
    }
}
