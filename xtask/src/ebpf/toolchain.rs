//! What the kernel programs are built with, beyond cargo: the library's sources, a linker for BPF, a stripper.
//!
//! In: the Rust that runs us, its registry, Debian's packages. Out: paths. Each part is made once and made again only when
//! the Rust that it was made for has changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use weir_tests::Setup;

use crate::debian::Apt;
use crate::progress::{cargo, logged, output, say, step};

/// Another Rust builds other bytes.
const RUST: &str = "1.95.0";
/// Debian's package of the same sources, and the suite that has it.
const DEBIAN_SOURCES: (&str, &str) = ("1.95.0+dfsg1-2~bpo13+1", "trixie-backports");
const LINKER: &str = "0.13.0";
/// 14, 16 and 19 were seen to strip to the same bytes.
const STRIP_AT_LEAST: u32 = 14;

#[derive(Debug)]
pub struct Toolchain {
    pub strip: PathBuf,
    /// Where cargo keeps the sources of crates: one folder for each registry, with the registry's name.
    pub crates: Vec<PathBuf>,
    /// Where the library's sources are, by the name that rustc sees and by their true one.
    pub library: Vec<PathBuf>,
    pub log: PathBuf,
}

impl Toolchain {
    /// Finds or installs all of it.
    pub fn prepare(setup: &Setup) -> Result<Self> {
        let folder = setup.folder().join("ebpf");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = folder.join("log");
        let lock = std::fs::File::create(folder.join("lock"))?;
        if lock.try_lock().is_err() {
            say("ebpf: another `cargo xtask` is at it; waiting for it");
            lock.lock()?;
        }
        let rust = Rust::present()?;
        let library = sources(&rust, &folder, &log)?;
        linker(setup, &rust, &folder, &log)?;
        let strip = stripper(&log)?;
        Ok(Self { strip, crates: crates(setup, &log)?, library, log })
    }
}

/// The Rust that will build.
struct Rust {
    sysroot: PathBuf,
    /// The major version of the LLVM in it.
    llvm: String,
}

impl Rust {
    fn present() -> Result<Self> {
        let said = output(Command::new("rustc").arg("-vV"))?;
        let field =
            |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        if field("release:") != RUST {
            bail!(
                "the kernel object is built by Rust {RUST}, and this is {}: run `cargo +{RUST} xtask ebpf`",
                field("release:")
            );
        }
        let llvm = field("LLVM version:").split('.').next().unwrap_or_default().to_owned();
        Ok(Self { sysroot: output(Command::new("rustc").args(["--print", "sysroot"]))?.trim().into(), llvm })
    }

    /// The LLVM that rustc itself runs on.
    fn libllvm(&self) -> Result<PathBuf> {
        let folder = self.sysroot.join("lib");
        for entry in std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libLLVM.so.") {
                return Ok(path);
            }
        }
        bail!("{} has no libLLVM.so.*: this Rust is not one of rustup's", folder.display())
    }
}

/// The sources of `core`: there already, from rustup, or from Debian.
fn sources(rust: &Rust, folder: &Path, log: &Path) -> Result<Vec<PathBuf>> {
    let place = rust.sysroot.join("lib/rustlib/src/rust");
    if !has_library(&place) {
        if place.is_symlink() {
            // Made by us for a setup folder that is gone.
            std::fs::remove_file(&place)?;
        }
        step("ebpf", "fetching the sources of Rust's library", || {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", "rust-src"]);
            match logged("ebpf", &mut rustup, log) {
                Ok(()) if has_library(&place) => Ok(()),
                _ => {
                    say("ebpf: rustup cannot give them; taking Debian's package");
                    let library = debian_sources(folder, log)?;
                    if let Some(parent) = place.parent() {
                        std::fs::create_dir_all(parent)?;
                    }
                    std::os::unix::fs::symlink(&library, &place)
                        .with_context(|| format!("linking {} to {}", place.display(), library.display()))
                }
            }
        })?;
    }
    let true_place = std::fs::canonicalize(&place)?;
    Ok(if true_place == place { vec![place] } else { vec![place, true_place] })
}

fn has_library(place: &Path) -> bool {
    place.join("library/core/src/lib.rs").exists()
}

/// Debian's package, unpacked, out of a suite that this machine need not have.
fn debian_sources(folder: &Path, log: &Path) -> Result<PathBuf> {
    let (version, suite) = DEBIAN_SOURCES;
    let unpacked = folder.join("rust-src");
    let library = unpacked.join("usr/src").join(format!("rustc-{RUST}"));
    if has_library(&library) {
        return Ok(library);
    }
    let apt = Apt::with_suites("ebpf", folder.join("apt"), &[suite], log)?;
    apt.unpack(&format!("rust-src={version}"), &unpacked)?;
    if !has_library(&library) {
        bail!("Debian's rust-src {version} has no library in {}", library.display());
    }
    Ok(library)
}

/// bpf-linker, on the very LLVM that rustc has: it reads what that one writes.
fn linker(setup: &Setup, rust: &Rust, folder: &Path, log: &Path) -> Result<()> {
    let libllvm = rust.libllvm()?;
    let product = setup.tools().join("bin/bpf-linker");
    let stamp = folder.join("linker");
    let key = format!("{LINKER} {}", libllvm.display());
    if product.exists() && std::fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == key) {
        return Ok(());
    }
    step("ebpf", &format!("building bpf-linker {LINKER} (a minute or two)"), || {
        let llvm = folder.join("llvm");
        let _ = std::fs::remove_dir_all(&llvm);
        std::fs::create_dir_all(llvm.join("lib"))?;
        // By the names that its build looks for, and by the one that it then asks for when it runs.
        let soname = libllvm.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for name in ["libLLVM.so".to_owned(), format!("libLLVM-{}.so", rust.llvm), soname] {
            std::os::unix::fs::symlink(&libllvm, llvm.join("lib").join(name))?;
        }
        let mut install = cargo(setup);
        install.args(["install", "--locked", "--force", "--no-default-features", "--features"]);
        install.arg(format!("llvm-{}", rust.llvm)).arg("--root").arg(setup.tools());
        install.arg(format!("bpf-linker@{LINKER}")).env("LLVM_PREFIX", &llvm);
        logged("ebpf", &mut install, log).context("is the crates registry reachable?")?;
        Ok(std::fs::write(&stamp, &key)?)
    })
}

/// An llvm-strip that is there already, or Debian's.
fn stripper(log: &Path) -> Result<PathBuf> {
    if let Some(found) = find_stripper() {
        return Ok(found);
    }
    step("ebpf", "installing llvm-strip from Debian's package llvm", || {
        logged("ebpf", Command::new("apt-get").arg("update"), log)?;
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", "llvm"]);
        install.env("DEBIAN_FRONTEND", "noninteractive");
        logged("ebpf", &mut install, log)
    })
    .and_then(|()| find_stripper().context("the package has none"))
    .with_context(|| format!("install llvm-strip {STRIP_AT_LEAST} or newer (Debian: the package llvm)"))
}

fn find_stripper() -> Option<PathBuf> {
    let numbered = (STRIP_AT_LEAST..=30).map(|version| format!("llvm-strip-{version}"));
    std::iter::once("llvm-strip".to_owned()).chain(numbered).map(PathBuf::from).find(|strip| {
        let said = output(Command::new(strip).arg("--version")).unwrap_or_default();
        let version =
            said.split_once("LLVM version ").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
        version.is_some_and(|version: u32| version >= STRIP_AT_LEAST)
    })
}

/// Fetched here, so that their folders are there to be named.
fn crates(setup: &Setup, log: &Path) -> Result<Vec<PathBuf>> {
    logged("ebpf", cargo(setup).args(["fetch", "--locked", "--quiet"]), log)?;
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            std::env::home_dir().context("no home folder: set CARGO_HOME to cargo's folder")?.join(".cargo")
        }
    };
    let registries = home.join("registry/src");
    let listed =
        std::fs::read_dir(&registries).with_context(|| format!("listing {}", registries.display()))?;
    listed.map(|entry| Ok(entry?.path())).collect()
}
