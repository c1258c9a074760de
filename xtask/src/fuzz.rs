//! `cargo xtask fuzz`: Weir's parsers against inputs that coverage guides (libFuzzer, by cargo-fuzz). The short run with fixed
//! inputs is in every test run; this one goes on for as long as one likes.
//!
//! What it finds, it keeps as files, and says by which command each is seen again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use weir_tests::Setup;
use weir_tests::places::workspace;

use crate::progress::{cargo, logged, say, step};
use crate::setup::{self, Needs};

/// The longest input, in bytes.
const MAX_INPUT: usize = 4096;
/// How long one input may take, in seconds: instrumented, and on a busy machine.
const SLOW: u32 = 5;
/// The most memory, in MiB.
const MAX_MEMORY: u32 = 2048;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is found is kept in target/fuzz/found; what was learned, in target/fuzz/corpus. An input that shows a \
                        fault belongs into tests/fuzz/corpus, where every test run tries it, with the mend."
)]
pub struct Options {
    /// For how long in all; it is divided among the targets.
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// This target alone. They are the folders of tests/fuzz/corpus.
    #[arg(long)]
    target: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let all = targets()?;
    let chosen: Vec<&String> = match &options.target {
        Some(name) => all.iter().filter(|target| *target == name).collect(),
        None => all.iter().collect(),
    };
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", all.join(", "));
    }
    let setup = setup::prepare(Needs { fuzz: true, ..Needs::none() })?;
    let log = workspace().join("target/fuzz/build.log");
    let places = Places::new()?;
    step("fuzz", "building the targets with the compiler's instrumentation (some minutes at first)", || {
        logged("fuzz", guided(&setup).arg("build").args(places.build()), &log)
    })?;
    let seconds = u64::from(options.minutes) * 60 / chosen.len() as u64;
    let mut found = Vec::new();
    for target in chosen {
        found.extend(places.search(&setup, target, seconds.max(1))?);
    }
    if found.is_empty() {
        say("fuzz: nothing was found");
        return Ok(());
    }
    for (target, file) in &found {
        say(format_args!(
            "fuzz: see it again by: cargo run -p weir-fuzz -- {target} {}",
            file.strip_prefix(workspace()).unwrap_or(file).display()
        ));
    }
    bail!("{} inputs break a promise", found.len())
}

fn targets() -> Result<Vec<String>> {
    let folder = workspace().join("tests/fuzz/corpus");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `cargo fuzz`, which asks for what a stable compiler gives under this variable alone.
fn guided(setup: &Setup) -> Command {
    let mut command = cargo(setup);
    command.env("RUSTC_BOOTSTRAP", "1").arg("fuzz");
    command
}

/// Where a run keeps what.
struct Places {
    built: PathBuf,
    corpus: PathBuf,
    found: PathBuf,
}

impl Places {
    fn new() -> Result<Self> {
        let folder = workspace().join("target/fuzz");
        let [built, corpus, found] = ["built", "corpus", "found"].map(|name| folder.join(name));
        for folder in [&built, &corpus, &found] {
            std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(Self { built, corpus, found })
    }

    /// Weir's parsers have no unsafe code: no sanitizer, which would have it all built twice as slowly.
    fn build(&self) -> Vec<std::ffi::OsString> {
        let folder = workspace().join("tests/fuzz/guided");
        let words: [std::ffi::OsString; 6] = [
            "--sanitizer".into(),
            "none".into(),
            "--fuzz-dir".into(),
            folder.into(),
            "--target-dir".into(),
            self.built.clone().into(),
        ];
        words.into()
    }

    /// Searches for some time; gives the files of what was found by now.
    fn search(&self, setup: &Setup, target: &str, seconds: u64) -> Result<Vec<(String, PathBuf)>> {
        let (corpus, found) = (self.corpus.join(target), self.found.join(target));
        for folder in [&corpus, &found] {
            std::fs::create_dir_all(folder)?;
        }
        let before = files(&found)?;
        let log = self.found.with_file_name(format!("{target}.log"));
        let mut command = guided(setup);
        command.arg("run").args(self.build()).arg(target).arg(&corpus);
        command.arg(workspace().join("tests/fuzz/corpus").join(target)).arg("--");
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MAX_INPUT}"));
        command.arg(format!("-timeout={SLOW}")).arg(format!("-rss_limit_mb={MAX_MEMORY}"));
        command.arg(format!("-artifact_prefix={}/", found.display()));
        let searched =
            step(target, &format!("searching for {seconds} s"), || logged(target, &mut command, &log));
        let new: Vec<_> = files(&found)?.into_iter().filter(|file| !before.contains(file)).collect();
        match searched {
            Err(error) if new.is_empty() => Err(error),
            Err(error) => {
                say(format_args!("{error:#}"));
                Ok(new.into_iter().map(|file| (target.to_owned(), file)).collect())
            }
            Ok(()) => Ok(Vec::new()),
        }
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}
