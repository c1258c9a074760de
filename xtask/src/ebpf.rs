//! The kernel object: rebuilt, or compared with the committed one.
//!
//! In: `agent-ebpf/`, and this very Rust. Out: `agent-ebpf/weir-ebpf.o`, the same bytes wherever it is built. It changes
//! nothing of the Rust installation but to add the library's sources where they are missing.

mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use weir_tests::Setup;
use weir_tests::places::{binaries, workspace};

use self::toolchain::Toolchain;
use crate::progress::{cargo, logged, say, step};

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "weir-ebpf";

/// What is committed, and embedded by the agent.
const COMMITTED: &str = "agent-ebpf/weir-ebpf.o";

/// The profile, told by the environment so that the workspace's own may change without changing the object.
const PROFILE: [(&str, &str); 9] = [
    ("CODEGEN_UNITS", "1"),
    ("DEBUG", "2"),
    ("DEBUG_ASSERTIONS", "false"),
    ("INCREMENTAL", "false"),
    ("LTO", "false"),
    ("OPT_LEVEL", "3"),
    ("OVERFLOW_CHECKS", "false"),
    ("PANIC", "abort"),
    ("STRIP", "none"),
];

/// Rebuilds the committed kernel object; with `check`, builds it elsewhere and fails if the committed one differs.
pub fn run(check: bool) -> Result<()> {
    let setup = Setup::locate()?;
    let toolchain = Toolchain::prepare(&setup)?;
    if check {
        // For another target than the rest of the workspace, whose lints do not reach them.
        step("ebpf", "linting the kernel programs", || {
            let mut clippy = kernel_cargo(&setup, &toolchain, "clippy")?;
            logged("ebpf", clippy.args(["--", "-D", "warnings"]), &toolchain.log)
        })?;
    }
    let built = step("ebpf", "building the kernel programs", || build(&setup, &toolchain))?;
    let committed = workspace().join(COMMITTED);
    let fresh = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let same = std::fs::read(&committed).is_ok_and(|bytes| bytes == fresh);
    match (same, check) {
        (true, _) => say(format_args!("ebpf: {COMMITTED} is what the sources build ({} bytes)", fresh.len())),
        (false, true) => bail!(
            "{COMMITTED} is not what agent-ebpf/src builds (see {}): run `cargo xtask ebpf` and commit it",
            built.display()
        ),
        (false, false) => {
            let new = committed.with_extension("o.new");
            std::fs::write(&new, &fresh).with_context(|| format!("writing {}", new.display()))?;
            std::fs::rename(&new, &committed)?;
            say(format_args!("ebpf: {COMMITTED} is new ({} bytes): commit it", fresh.len()));
        }
    }
    Ok(())
}

/// Builds the object and strips it of DWARF. Its BTF stays.
fn build(setup: &Setup, toolchain: &Toolchain) -> Result<PathBuf> {
    logged("ebpf", &mut kernel_cargo(setup, toolchain, "build")?, &toolchain.log)?;
    let target = target_folder()?;
    let linked = target.join(TARGET).join("release").join(BINARY);
    let stripped = target.join("weir-ebpf.o");
    let mut strip = Command::new(&toolchain.strip);
    strip.arg("-g").arg("-o").arg(&stripped).arg(&linked);
    logged("ebpf", &mut strip, &toolchain.log)?;
    Ok(stripped)
}

/// A cargo for the kernel programs.
fn kernel_cargo(setup: &Setup, toolchain: &Toolchain, task: &str) -> Result<Command> {
    let mut cargo = cargo(setup);
    cargo.args([task, "--release", "--locked", "--package", BINARY, "--bin", BINARY, "--features", "kernel"]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"]).arg(target_folder()?);
    // `-Z` on the stable toolchain, and the assembly of a target that is not stable yet.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain).join("\x1f"));
    for (name, value) in PROFILE {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    Ok(cargo)
}

/// A target folder of its own: the flags differ from everything else's.
fn target_folder() -> Result<PathBuf> {
    Ok(binaries()?.parent().context("the build folder has no parent")?.join("bpf"))
}

/// BTF is made out of the debug information, and names the sources: by names that are the same everywhere.
fn flags(toolchain: &Toolchain) -> Vec<String> {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags: Vec<String> =
        ["-C", "debuginfo=2", "-C", "link-arg=--btf"].into_iter().map(str::to_owned).collect();
    flags.push(remap(&workspace(), "weir"));
    flags.extend(toolchain.crates.iter().map(|place| remap(place, "crates")));
    flags.extend(toolchain.library.iter().map(|place| remap(place, "rust")));
    flags
}
