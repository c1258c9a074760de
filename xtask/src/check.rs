//! `cargo xtask check`: all that can be said of the code without running it. Each check runs, whatever came of the others.

use anyhow::{Result, bail};
use weir_tests::Setup;
use weir_tests::places::workspace;

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};
use crate::{ebpf, edges};

pub fn run() -> Result<()> {
    let setup = setup::prepare(Needs { deny: true, ..Needs::none() })?;
    components(&setup)?;
    let mut failed = Vec::new();
    let mut check = |name, done: Result<()>| match done {
        Ok(()) => say(format_args!("check: {name}: clean")),
        Err(error) => {
            say(format_args!("check: {name}: {error:#}"));
            failed.push(name);
        }
    };
    check("format", shown(cargo(&setup).args(["fmt", "--all", "--check"])));
    check("module edges", edges::check(&workspace()));
    // Without --all-features: the kernel programs build for another target.
    check(
        "lints",
        shown(cargo(&setup).args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])),
    );
    check("dependencies", shown(cargo(&setup).args(["deny", "check", "bans", "licenses", "sources"])));
    if advisories_at_hand(&setup)? {
        check("advisories", shown(cargo(&setup).args(["deny", "check", "--disable-fetch", "advisories"])));
    } else {
        say("check: advisories: NOT CHECKED, since their database cannot be fetched from here");
    }
    check("kernel object", ebpf::run(true));
    if !failed.is_empty() {
        bail!("not clean: {}", failed.join(", "));
    }
    Ok(())
}

/// rustup's minimal profile has neither.
fn components(setup: &Setup) -> Result<()> {
    for (command, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let present = cargo(setup).args([command, "--version"]).output()?;
        if !present.status.success() {
            shown(std::process::Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// The advisory database cannot be had everywhere. Where it cannot, that is said, and is no failure.
fn advisories_at_hand(setup: &Setup) -> Result<bool> {
    Ok(cargo(setup).args(["deny", "fetch", "db"]).output()?.status.success())
}
