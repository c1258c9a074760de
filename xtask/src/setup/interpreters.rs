//! Node and Python where an unprivileged job can reach them: the machine's own if it can, else a copy or Debian's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use weir_tests::Setup;
use weir_tests::places::workspace;

use super::commands::{as_job, on_path};
use super::once;
use crate::progress::logged;

/// Prints its version when it can make a virtual environment and is new enough for the pinned packages.
const FIT_PYTHON: &str =
    "import sys, ssl, venv, ensurepip; assert sys.version_info >= (3, 11); print(sys.version)";

/// Makes `bin/node`.
pub fn node(setup: &Setup) -> Result<()> {
    if !on_path("node") || !on_path("npm") {
        bail!("Node is missing (node and npm on the PATH): install Node 20, for example from nodejs.org");
    }
    let asked = Command::new("node").args(["-p", "process.version + ' ' + process.execPath"]).output()?;
    let answer = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    let (version, path) =
        answer.split_once(' ').context("`node -p` did not say its version: is Node broken?")?;
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 20) {
        bail!("Node {version} on the PATH is too old: install Node 20");
    }
    let (wanted, link) = (Path::new(path), setup.node());
    if as_job(&link, &["--version"]).as_deref() == Some(version) {
        return Ok(());
    }
    if link.is_symlink() || link.exists() {
        std::fs::remove_file(&link)?;
    }
    symlink(wanted, &link)?;
    if as_job(&link, &["--version"]).is_none() {
        // It lies in a folder closed to others: the binary stands on its own, so a copy does.
        std::fs::remove_file(&link)?;
        std::fs::copy(wanted, &link)?;
        std::fs::set_permissions(&link, std::fs::Permissions::from_mode(0o755))?;
        if as_job(&link, &["--version"]).is_none() {
            bail!("{path} cannot be run by an unprivileged user, nor can a copy: install Node 20 under /usr");
        }
    }
    Ok(())
}

/// A Python that a job can run and that can make virtual environments, with its version.
pub fn base_python() -> Option<(PathBuf, String)> {
    let on_path = Command::new("python3")
        .args(["-c", "import os, sys; print(os.path.realpath(sys.executable))"])
        .output()
        .ok()
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .map(PathBuf::from)
        .chain(on_path)
        .filter(|python| python.exists())
        .find_map(|python| as_job(&python, &["-c", FIT_PYTHON]).map(|version| (python, version)))
}

/// A line of the official Python SDK, in an environment of its own: two of them exclude each other.
#[derive(Debug)]
pub struct PythonSdk {
    /// The step's name, and the folder's.
    name: &'static str,
    /// The pinned packages, in `tests`.
    requirements: &'static str,
    what: &'static str,
}

pub static PYTHON_SDKS: [PythonSdk; 2] = [
    PythonSdk {
        name: "python",
        requirements: "requirements.txt",
        what: "installing the official Python SDK and uvicorn",
    },
    PythonSdk {
        name: "python-1",
        requirements: "requirements-1.txt",
        what: "installing the official Python SDK of the older line",
    },
];

/// Makes the virtual environment of an SDK, out of pinned packages with their hashes.
pub fn python(setup: &Setup, sdk: &PythonSdk) -> Result<()> {
    let requirements = workspace().join("tests").join(sdk.requirements);
    let pinned = std::fs::read_to_string(&requirements)?;
    let (base, version) = base_python().context(
        "no Python 3.11 with venv that an unprivileged user can run: install Debian's python3 and python3-venv",
    )?;
    let key = format!("{} {version}\n{pinned}", base.display());
    let folder = setup.folder().join(sdk.name);
    let python = folder.join("bin/python");
    once(setup, sdk.name, sdk.what, &key, &python, || {
        let log = setup.folder().join(format!("logs/{}.log", sdk.name));
        let mut venv = Command::new(&base);
        // PYTHONHOME and the like are another Python's.
        venv.env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        logged(sdk.name, venv.args(["-m", "venv", "--clear"]).arg(&folder), &log)?;
        let mut pip = Command::new(&python);
        pip.env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        pip.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--require-hashes",
            "-r",
        ]);
        logged(sdk.name, pip.arg(&requirements), &log)
            .context("pip could not install the pinned packages: is the Python package index reachable?")
    })
}
