//! `cargo xtask test`: sets up, builds, and runs every test, the kernel ones included: those on the kernel of this machine and
//! then once more on others, see `kernel-matrix`. It never skips: what a test needs and does not find fails.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use weir_tests::machine::require_kernel;

use crate::matrix;
use crate::progress::{cargo, command_line, say, shown};
use crate::setup::{self, Needs};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Arguments for `cargo nextest run`, such as a name to filter by.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    nextest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    require_kernel()?;
    let setup = setup::prepare(Needs { deny: false, ..Needs::all() })?;
    // With nextest's own set of targets, so that nothing is built twice; it alone would leave out the binaries.
    shown(cargo(&setup).args(["build", "--workspace", "--all-targets"]))?;
    let profile = if std::env::var_os("CI").is_some() { "ci" } else { "default" };
    let mut nextest = cargo(&setup);
    nextest.args(["nextest", "run", "--workspace", "--profile", profile]).args(&options.nextest);
    let ran = shown(&mut nextest);
    let target = weir_tests::places::binaries()?;
    let report = target.with_file_name("nextest").join(profile).join("junit.xml");
    let mut count = Count::of_nextest(&report).unwrap_or_default();
    if options.nextest.is_empty() {
        count.add(doc_tests(&mut cargo(&setup))?);
        let elsewhere = matrix::run_in_every_test(&setup)?;
        count.add(Count { passed: elsewhere.passed, failed: elsewhere.failed });
    }
    say(format_args!(
        "test: {} passed, {} failed in {} s",
        count.passed,
        count.failed,
        began.elapsed().as_secs()
    ));
    ran?;
    if count.failed > 0 {
        bail!("{} tests failed", count.failed);
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// The counts on the root element of nextest's JUnit report.
    fn of_nextest(report: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(report).ok()?;
        let root = text.split_once("<testsuites ")?.1.split_once('>')?.0;
        let number = |name: &str| -> Option<u64> {
            root.split_once(&format!("{name}=\""))?.1.split_once('"')?.0.parse().ok()
        };
        let failed = number("failures")? + number("errors")?;
        Some(Self { passed: number("tests")?.checked_sub(failed)?, failed })
    }

    /// The `test result:` lines of libtest.
    fn of_libtest(output: &str) -> Self {
        let mut count = Self::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            let number = |what: &str| -> u64 {
                let before = line.split_once(what).map_or("", |(before, _)| before).trim_end();
                before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
            };
            count.add(Self { passed: number("passed"), failed: number("failed") });
        }
        count
    }
}

/// Doc tests are where the programs that must not compile live; nextest runs none of them.
fn doc_tests(cargo: &mut Command) -> Result<Count> {
    cargo.args(["test", "--workspace", "--doc", "--quiet", "--no-fail-fast"]).stdin(Stdio::null());
    cargo.stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("starting `{}`", command_line(cargo)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = Count::of_libtest(&text);
    if !output.status.success() {
        print!("{text}");
        if count.failed == 0 {
            bail!("`{}` failed ({})", command_line(cargo), output.status);
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_both_test_runners_are_read() {
        let libtest = "running 2 tests\n\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\
                       test result: FAILED. 1 passed; 3 failed; 0 ignored\n";
        assert_eq!(Count::of_libtest(libtest), Count { passed: 3, failed: 3 });
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("junit.xml");
        let text = "<?xml version=\"1.0\"?>\n<testsuites name=\"n\" tests=\"5\" failures=\"1\" errors=\"1\" uuid=\"x\">";
        std::fs::write(&report, text).unwrap();
        assert_eq!(Count::of_nextest(&report), Some(Count { passed: 3, failed: 2 }));
    }
}
