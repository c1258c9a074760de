//! `cargo xtask soak`: the faults of the tests in large numbers. The tests are the same that every run has with few cases; here
//! they are told to go on.
//!
//! In: which kinds, how many times the usual counts, a seed. Out: progress, a table of what was run and found, and exit code 1
//! where anything was. It judges nothing itself: a fault is a test that failed, and its log says which seed shows it again.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weir_tests::Setup;
use weir_tests::daemon::tail;
use weir_tests::machine::require_kernel;
use weir_tests::places::workspace;
use weir_tests::soak::{CASES_VARIABLE, MARK, SEED_VARIABLE};

use crate::progress::{cargo, command_line, say, shown};
use crate::setup::{self, Needs};

/// How often a kind says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// Lines of a log that are shown when something was found.
const SHOWN: usize = 40;

/// One kind of fault, and the test that knows it.
struct Kind {
    name: &'static str,
    what: &'static str,
    package: &'static str,
    target: &'static str,
    test: &'static str,
    /// Whether a release build of it is worth its minutes: it computes, and waits for nobody.
    release: bool,
    /// Cases at scale 1.
    cases: u64,
}

const KINDS: [Kind; 9] = [
    Kind {
        name: "kill",
        what: "kill -9 of agent, collector and store under load",
        package: "weir-tests",
        target: "kill",
        test: "many::nothing_is_lost_when_they_are_killed_again_and_again_under_load",
        release: false,
        cases: 2000,
    },
    Kind {
        name: "power-cut",
        what: "power cuts of the file system below the log",
        package: "weir",
        target: "ledger",
        test: "power::what_was_acknowledged_is_in_the_image_that_a_power_cut_leaves",
        release: false,
        cases: 500,
    },
    Kind {
        name: "write-faults",
        what: "ENOSPC, EIO and torn writes, several in one life of a spool",
        package: "weir",
        target: "spool",
        test: "sites::nothing_acknowledged_is_lost_when_some_changes_of_the_disk_fail",
        release: false,
        cases: 20_000,
    },
    Kind {
        name: "torn-tail",
        what: "a segment cut at each byte",
        package: "weir",
        target: "ledger",
        test: "torn::a_segment_cut_at_any_byte_keeps_all_that_was_acknowledged_before",
        release: false,
        cases: 40_960,
    },
    Kind {
        name: "store",
        what: "a store that is killed, does not answer, resets, errs after the commit, cuts its answer off",
        package: "weir-collector",
        target: "store",
        test: "store_faults::each_event_is_stored_once_whatever_the_store_does_meanwhile",
        release: false,
        cases: 5000,
    },
    Kind {
        name: "clock",
        what: "a clock set by hours and years",
        package: "weir",
        target: "ledger",
        test: "clock::a_clock_set_by_an_hour_or_a_year_is_told_of_and_the_log_stays_dense",
        release: false,
        cases: 5000,
    },
    Kind {
        name: "tamper",
        what: "records changed in twelve ways, and verified",
        package: "weir-tamper",
        target: "tamper",
        test: "each_of_twelve_kinds_of_tampering_is_found_at_its_place_by_both_verifiers_alike",
        release: true,
        cases: 120_000,
    },
    Kind {
        name: "tamper-store",
        what: "a store that is changed by SQL, and verified",
        package: "weir-collector",
        target: "store",
        test: "tampered::whatever_a_program_changes_in_the_store_by_sql_is_found_at_its_place",
        release: false,
        cases: 1000,
    },
    Kind {
        name: "untouched",
        what: "events that nobody changed, and verified: each finding would be a false alarm",
        package: "weir-tamper",
        target: "tamper",
        test: "untouched_logs_raise_no_alarm_in_either_verifier",
        release: true,
        cases: 1_000_000,
    },
];

#[derive(Debug, clap::Args)]
#[command(
    after_help = "At scale 1 it takes hours. A case is run again by its seed: WEIR_SEED=N WEIR_CASES=1 cargo test ...; each run's log \
                        in target/soak, by kind and time, says the whole line."
)]
pub struct Options {
    /// These kinds alone; can be given several times.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(KINDS.map(|kind| kind.name)))]
    only: Vec<String>,
    /// How many times the usual counts.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// The first case's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The table as JSON on stdout.
    #[arg(long)]
    json: bool,
}

/// What came of one kind.
struct Ran {
    kind: &'static Kind,
    wanted: u64,
    held: u64,
    /// The tests' own words are in the log.
    failed: bool,
    seconds: f64,
    log: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    if !(options.scale.is_finite() && options.scale > 0.0) {
        bail!("--scale takes a number above 0");
    }
    require_kernel()?;
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    let programs = ["weir", "weir-collector", "weir-store", "weir-tamper"];
    shown(cargo(&setup).arg("build").args(programs.map(|name| format!("-p{name}"))))?;
    let all: Vec<&'static Kind> = KINDS.iter().collect();
    let chosen = all
        .into_iter()
        .filter(|kind| options.only.is_empty() || options.only.iter().any(|name| name == kind.name));
    let mut ran = Vec::new();
    for kind in chosen {
        ran.push(kind.run(&setup, options)?);
    }
    let faults = ran.iter().filter(|ran| ran.failed).count();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&ran.iter().map(Ran::json).collect::<Vec<_>>())?);
    } else {
        println!("{:<14} {:>8} {:>8} {:>8}  {:<8}", "kind", "cases", "faults", "seconds", "seeds");
        for Ran { kind, held, failed, seconds, .. } in &ran {
            let (name, last) = (kind.name, options.seed + held.saturating_sub(1));
            println!(
                "{name:<14} {held:>8} {:>8} {seconds:>8.0}  {}..={last}",
                u8::from(*failed),
                options.seed
            );
        }
    }
    if faults > 0 {
        bail!("{faults} kinds of fault were found to break a promise");
    }
    Ok(())
}

impl Ran {
    fn json(&self) -> Value {
        let Self { kind, wanted, held, failed, seconds, log } = self;
        json!({"kind": kind.name, "wanted": wanted, "cases": held, "faults": u8::from(*failed),
               "seconds": seconds.round(), "log": log})
    }
}

impl Kind {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are small"
    )]
    fn scaled(&self, scale: f64) -> u64 {
        ((self.cases as f64 * scale).round() as u64).max(1)
    }

    fn run(&'static self, setup: &Setup, options: &Options) -> Result<Ran> {
        let (wanted, began) = (self.scaled(options.scale), Instant::now());
        let log = self.log()?;
        let mut command = cargo(setup);
        command.args(["test", "-p", self.package, "--test", self.target]);
        command.args(self.release.then_some("--release"));
        command.args(["--", "--exact", self.test, "--nocapture"]);
        command.env(CASES_VARIABLE, wanted.to_string()).env(SEED_VARIABLE, options.seed.to_string());
        say(format_args!("{}: {wanted} cases of {}, from seed {} on", self.name, self.what, options.seed));
        say(format_args!("{}: {}", self.name, log.display()));
        let made = OpenOptions::new().write(true).create_new(true).open(&log);
        let mut file = made.with_context(|| format!("making {}", log.display()))?;
        let again =
            format!("{SEED_VARIABLE}={} {CASES_VARIABLE}={wanted} {}", options.seed, command_line(&command));
        writeln!(file, "{again}")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("starting `{}`", command_line(&command)))?;
        let output = child.stdout.take().context("its output")?;
        // None until the test has begun: a test that is not there runs no case.
        let (mut held, mut told) = (None, Instant::now());
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(file, "{line}")?;
            let Some(done) = done_by(&line) else { continue };
            held = Some(done);
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                say(format_args!("{}: {done} of {wanted}", self.name));
            }
        }
        let exit = child.wait()?;
        let held = held.with_context(|| {
            format!("{}: its test did not begin ({exit}); the log ends:\n{}", self.name, tail(&log, SHOWN))
        })?;
        let failed = !exit.success() || held < wanted;
        let seconds = began.elapsed().as_secs_f64();
        if failed {
            say(format_args!(
                "{}: a case did not hold; {} ends:\n{}",
                self.name,
                log.display(),
                tail(&log, SHOWN)
            ));
        }
        say(format_args!("{}: {held} cases held in {seconds:.0} s", self.name));
        Ok(Ran { kind: self, wanted, held, failed, seconds, log })
    }

    /// Of this run: those of other runs stay as they are.
    fn log(&self) -> Result<PathBuf> {
        let folder = workspace().join("target/soak");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is set before 1970")?;
        Ok(folder.join(format!("{}-{}.log", self.name, in_utc(began.as_secs()))))
    }
}

/// Seconds since 1970 as `20261123T223015Z`: names in this form sort by time.
fn in_utc(seconds: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut day, mut year, mut month) = (seconds / 86_400, 1970, 1);
    let days_of = |year| if is_leap(year) { 366 } else { 365 };
    while day >= days_of(year) {
        day -= days_of(year);
        year += 1;
    }
    for days in [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}{month:02}{:02}T{hour:02}{minute:02}{second:02}Z", day + 1)
}

/// How many cases a test says that it has run. Behind another test's name the mark is not at the line's beginning.
fn done_by(line: &str) -> Option<u64> {
    let (_, told) = line.split_once(MARK)?;
    serde_json::from_str::<Value>(told).ok()?.get("done")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_progress_is_read_and_other_lines_are_not() {
        assert_eq!(done_by("@soak {\"kind\":\"store\",\"done\":16,\"cases\":200,\"seed\":1}"), Some(16));
        assert_eq!(
            done_by("test x ... @soak {\"kind\":\"store\",\"done\":0,\"cases\":2,\"seed\":1}"),
            Some(0)
        );
        assert_eq!(done_by("16 cases"), None);
    }

    #[test]
    fn a_logs_name_has_the_time_in_utc() {
        let times = [0, 951_782_400, 1_795_473_015, 1_798_761_599].map(in_utc);
        assert_eq!(times, ["19700101T000000Z", "20000229T000000Z", "20261123T223015Z", "20261231T235959Z"]);
    }

    #[test]
    fn a_small_scale_still_runs_one_case() {
        assert_eq!(KINDS.map(|kind| kind.scaled(0.000_001)), [1; KINDS.len()]);
        assert_eq!(KINDS.map(|kind| kind.scaled(1.0)), KINDS.map(|kind| kind.cases));
    }
}
