//! The commands and files of the system that the setup and the harness call; what is missing comes by apt-get.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use weir_tests::Setup;

use super::interpreters;
use crate::progress::{logged, step};

/// Installs what is missing. apt-get is called only then.
pub fn install_missing(setup: &Setup, boots_kernels: bool) -> Result<()> {
    let missing = missing(boots_kernels);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !on_path("apt-get") {
        bail!("this machine lacks what Debian packages as {list}, and has no apt-get: install them by hand");
    }
    step("packages", &format!("apt-get install {list}"), || {
        let log = setup.folder().join("logs/packages.log");
        for arguments in
            [vec!["update"], [vec!["install", "-y", "--no-install-recommends"], missing].concat()]
        {
            let mut apt = Command::new("apt-get");
            apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
            logged("packages", &mut apt, &log).with_context(|| {
                format!("apt-get could not install {list}: is a Debian mirror configured and reachable, and are you root?")
            })?;
        }
        Ok(())
    })
}

/// The Debian packages of all that is not there.
fn missing(boots_kernels: bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    let always = [
        ("cc", "gcc"),
        ("ssh-keygen", "openssh-client"),
        ("setpriv", "util-linux"),
        ("mount", "mount"),
        ("mkfs.ext4", "e2fsprogs"),
        ("ip", "iproute2"),
        // The container runtimes of the tests.
        ("runc", "runc"),
        ("crun", "crun"),
    ];
    let to_boot = [("qemu-system-x86_64", "qemu-system-x86"), ("cpio", "cpio"), ("xz", "xz-utils")];
    for (command, package) in always.into_iter().chain(to_boot.into_iter().filter(|_| boots_kernels)) {
        if !on_path(command) {
            packages.push(package);
        }
    }
    if packages.contains(&"gcc") {
        packages.push("libc6-dev");
    }
    if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        packages.push("ca-certificates");
    }
    // Asked last: it takes setpriv.
    if !packages.contains(&"util-linux") && interpreters::base_python().is_none() {
        packages.extend(["python3", "python3-venv"]);
    }
    packages
}

/// Whether a command is on the PATH.
pub fn on_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(command).is_file())
}

/// Runs a command as a job would: under its uid, with nothing of our environment. Its stdout, if it succeeded.
pub fn as_job(program: &Path, arguments: &[&str]) -> Option<String> {
    let id = weir_tests::machine::JOB_UID.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
        .arg(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
