//! Which tests run on other kernels, and which are left out and why.
//!
//! In: the test binaries that cargo built. Out: the list of single tests. A test is left out by a line here, with a reason
//! that is printed, and in no other way.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use weir_tests::Setup;

use crate::progress::{cargo, command_line, output};

/// A test binary of the package `weir`.
struct Binary {
    /// The name of its target, as cargo says it.
    target: &'static str,
    /// Only the tests whose names begin so.
    tests: &'static str,
    /// Those of them that `cargo xtask test` runs on other kernels too, by the beginnings of their names.
    in_every_test: &'static [&'static str],
}

const ALL: &[&str] = &[""];

/// To run the tests of one more file in `agent/tests` on other kernels, add it here.
const BINARIES: &[Binary] = &[
    Binary { target: "kernel", tests: "", in_every_test: ALL },
    Binary { target: "weir", tests: "kernel::", in_every_test: ALL },
    Binary {
        target: "reach",
        tests: "",
        // What each kernel does in a way of its own: the kinds of sockets and of connects, and what a look-up finds.
        in_every_test: &[
            "datagrams::udp_to_intercepted_ports",
            "selection::socket_made_by_the_job_is_the_jobs_in_other_hands",
            "selection::socket_of_a_cgroup_that_is_gone",
            "told::without_the_agents_listener",
            "uring::connects_by_io_uring",
            "ways::mptcp_is_led",
            "ways::tcp_fast_open_is_led",
            "ways::device_mark_and_bound_source",
        ],
    },
    Binary { target: "lineage", tests: "", in_every_test: &["followed::a_caller_that_is_gone"] },
    // How a SYN that meets no answer comes again is each kernel's own.
    Binary { target: "netns", tests: "", in_every_test: &["held::a_connect_to_a_private_destination"] },
];
const THE_REST: &str =
    "an emulated kernel takes seconds for each, and four minutes are what these runs may take";

/// The binaries of which `cargo xtask test` does not run all on other kernels, with the reason.
pub fn not_in_every_test() -> impl Iterator<Item = (&'static str, &'static str)> {
    BINARIES.iter().filter(|binary| binary.in_every_test != ALL).map(|binary| (binary.target, THE_REST))
}

const PACKAGE: &str = "weir";

/// A test that is not run on a kernel.
struct LeftOut {
    /// The binary and the test, as the table shows them; ending in `*`, all that begin so.
    test: &'static str,
    /// Beginnings of `uname -r`; none means every kernel.
    releases: &'static [&'static str],
    reason: &'static str,
}

const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        test: "reach::hostile::seventy_thousand_connects_of_one_job_lose_nobodys_origin",
        releases: &[],
        reason: "seventy thousand connections take an emulated kernel longer than any test may take",
    },
    LeftOut {
        test: "reach::hostile::after_thousands_of_hostile_rounds_each_verdict_adds_up",
        releases: &[],
        reason: "thousands of rounds of many threads take an emulated processor longer than any test may take",
    },
];

/// A single test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    pub binary: String,
    pub name: String,
    /// Why it is run on no kernel.
    ignored: bool,
}

impl Test {
    pub fn is_in_every_test(&self) -> bool {
        BINARIES
            .iter()
            .filter(|binary| binary.target == self.binary)
            .any(|binary| binary.in_every_test.iter().any(|start| self.name.starts_with(start)))
    }

    /// As the table shows it.
    pub fn title(&self) -> String {
        format!("{}::{}", self.binary, self.name)
    }

    /// Why it is not run on a kernel of this release.
    pub fn left_out_of(&self, release: &str) -> Option<&'static str> {
        if self.ignored {
            return Some("marked #[ignore] in its source: another test starts it, or it takes very long");
        }
        let title = self.title();
        let of_this = |left: &&LeftOut| {
            let named = match left.test.strip_suffix('*') {
                Some(beginning) => title.starts_with(beginning),
                None => title == left.test,
            };
            named
                && (left.releases.is_empty() || left.releases.iter().any(|start| release.starts_with(start)))
        };
        LEFT_OUT.iter().find(of_this).map(|left| left.reason)
    }
}

/// The built binaries and their tests.
#[derive(Debug)]
pub struct Suite {
    /// By the name of its target.
    pub binaries: Vec<(String, PathBuf)>,
    pub tests: Vec<Test>,
}

/// Builds the binaries and lists those of their tests whose titles hold one of the filters.
pub fn build(setup: &Setup, filters: &[String]) -> Result<Suite> {
    let binaries = binaries(setup)?;
    let mut tests = Vec::new();
    for (target, path) in &binaries {
        let wanted = BINARIES.iter().find(|binary| binary.target == target).map_or("", |binary| binary.tests);
        let list = |more: &[&str]| -> Result<Vec<String>> {
            let listed = output(Command::new(path).args(["--list", "--format", "terse"]).args(more))?;
            Ok(names(&listed))
        };
        let ignored = list(&["--ignored"])?;
        for name in list(&[])?.into_iter().filter(|name| name.starts_with(wanted)) {
            let test = Test { binary: target.clone(), ignored: ignored.contains(&name), name };
            if filters.is_empty() || filters.iter().any(|filter| test.title().contains(filter)) {
                tests.push(test);
            }
        }
    }
    if tests.is_empty() {
        bail!("no test is called like {}: `--list` shows what there is", filters.join(" or "));
    }
    Ok(Suite { binaries, tests })
}

/// One line `NAME: test` for each.
fn names(listed: &str) -> Vec<String> {
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Builds with the features of the whole workspace, so that what other commands built is used again.
fn binaries(setup: &Setup) -> Result<Vec<(String, PathBuf)>> {
    let mut build = cargo(setup);
    build.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    for binary in BINARIES {
        match binary.target {
            PACKAGE => build.arg("--lib"),
            target => build.args(["--test", target]),
        };
    }
    build.stdin(Stdio::null()).stderr(Stdio::inherit());
    let line = command_line(&build);
    let built = build.output().with_context(|| format!("starting `{line}`"))?;
    if !built.status.success() {
        bail!("`{line}` failed ({})", built.status);
    }
    let said = String::from_utf8_lossy(&built.stdout);
    let mut found = Vec::new();
    for binary in BINARIES {
        let path = said.lines().find_map(|line| executable(line, binary.target));
        let path = path.with_context(|| format!("`{line}` built no test binary {}", binary.target))?;
        found.push((binary.target.to_owned(), path));
    }
    Ok(found)
}

/// The test binary that a message of cargo is about.
fn executable(message: &str, target: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let kind = if target == PACKAGE { "lib" } else { "test" };
    let about = message.get("target")?;
    let of_that_kind = about.get("kind")?.as_array()?.iter().any(|is| is.as_str() == Some(kind));
    if about.get("name")?.as_str()? != target || !of_that_kind {
        return None;
    }
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_binary_of_a_target_is_found_in_what_cargo_says() {
        let library =
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"weir"},"executable":null}"#;
        let its_tests = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"weir"},"executable":"/t/weir-1"}"#;
        let kernel = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"kernel"},"executable":"/t/kernel-1"}"#;
        assert_eq!(executable(library, "weir"), None);
        assert_eq!(executable(its_tests, "weir"), Some("/t/weir-1".into()));
        assert_eq!(executable(kernel, "kernel"), Some("/t/kernel-1".into()));
        assert_eq!(executable(kernel, "weir"), None);
        assert_eq!(executable("not json", "weir"), None);
    }

    #[test]
    fn only_tests_are_listed() {
        assert_eq!(names("a::b: test\nc: benchmark\n\n2 tests, 1 benchmark\n"), ["a::b"]);
    }

    #[test]
    fn what_is_ignored_in_its_source_is_left_out_with_a_reason() {
        let test = |ignored| Test { binary: "kernel".to_owned(), name: "x".to_owned(), ignored };
        assert!(test(true).left_out_of("6.1.0").is_some());
        assert_eq!(test(false).left_out_of("6.1.0"), None);
    }

    #[test]
    fn each_test_that_is_left_out_says_why() {
        assert!(LEFT_OUT.iter().all(|left| left.reason.len() > 10), "a reason is a sentence");
    }
}
