//! `cargo xtask kernel-matrix`: the tests of the kernel side, on kernels that this machine does not run.
//!
//! In: Debian's own kernels and the test binaries. Out: a table, test by kernel, and a failure for all that was not seen to
//! pass. A test that is left out on a kernel is named, with the reason.

mod guest;
mod image;
mod report;
mod suite;

use std::time::Instant;

use anyhow::{Result, bail};
use weir_tests::Setup;

use self::guest::{Boot, Outcome, TEST_LIMIT_S, boot};
use self::report::Column;
use self::suite::{Suite, Test};
use crate::progress::say;
use crate::setup::kernels::{self, Fetched, KERNELS, Kernel};
use crate::setup::{self, Needs};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// A kernel to boot; may be given several times [default: those that every `cargo xtask test` boots].
    #[arg(long = "kernel", value_name = "KERNEL", value_parser = clap::builder::PossibleValuesParser::new(KERNELS.iter().map(|kernel| kernel.name)))]
    kernels: Vec<String>,
    /// Boot all of them.
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
    /// Only the tests whose names hold this; may be given several times.
    #[arg(long = "filter", value_name = "TEST")]
    filters: Vec<String>,
    /// Ask Debian for newer builds of these kernels than those fetched before.
    #[arg(long)]
    update: bool,
    /// List the tests, and boot nothing.
    #[arg(long)]
    list: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How many tests passed and failed, all kernels together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    pub passed: u64,
    pub failed: u64,
    pub left_out: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let chosen: Vec<&'static Kernel> = match (options.all, options.kernels.is_empty()) {
        (true, _) => KERNELS.iter().collect(),
        (false, true) => setup::kernels_of_every_test(),
        (false, false) => options.kernels.iter().filter_map(|name| kernels::by_name(name)).collect(),
    };
    if options.list {
        let suite = suite::build(&Setup::locate()?, &options.filters)?;
        suite.tests.iter().for_each(|test| println!("{}", test.title()));
        return Ok(());
    }
    if options.update {
        let setup = Setup::locate()?;
        chosen.iter().try_for_each(|kernel| kernels::forget(&setup, kernel))?;
    }
    let setup = setup::prepare(Needs { kernels: chosen.clone(), ..Needs::none() })?;
    let columns = columns(&setup, &chosen, &suite::build(&setup, &options.filters)?)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report::json(&columns))?);
    } else {
        print!("{}", report::table(&columns));
    }
    verdict(&columns).map(|_| ())
}

/// What `cargo xtask test` runs of it, when the setup is done. Prints the table; fails only when it could not be run at all.
pub fn run_in_every_test(setup: &Setup) -> Result<Sum> {
    let mut suite = suite::build(setup, &[])?;
    suite.tests.retain(Test::is_in_every_test);
    let columns = columns(setup, &setup::kernels_of_every_test(), &suite)?;
    print!("{}", report::table(&columns));
    for (binary, reason) in suite::not_in_every_test() {
        println!(
            "not all of {binary} is run here: {reason}: `cargo xtask kernel-matrix --filter {binary}::`"
        );
    }
    Ok(report::sum(&columns))
}

fn verdict(columns: &[Column]) -> Result<Sum> {
    let sum = report::sum(columns);
    if sum.failed > 0 {
        bail!("{} of {} failed on other kernels", sum.failed, sum.failed + sum.passed);
    }
    if sum.passed == 0 {
        bail!("no test was run");
    }
    Ok(sum)
}

/// Boots the kernels, as many at a time as there are processors.
fn columns(setup: &Setup, chosen: &[&'static Kernel], suite: &Suite) -> Result<Vec<Column>> {
    let began = Instant::now();
    let fetched: Vec<Fetched> =
        chosen.iter().map(|kernel| kernels::fetched(setup, kernel)).collect::<Result<_>>()?;
    let lock = std::fs::File::create(kernels::folder(setup).join("lock"))?;
    if lock.try_lock().is_err() {
        say("kernel-matrix: another `cargo xtask` is at it; waiting for it");
        lock.lock()?;
    }
    let work = kernels::folder(setup).join("work");
    let _ = std::fs::remove_dir_all(&work);
    let shared = image::shared(setup, suite, &work)?;
    say(format_args!(
        "kernel-matrix: {} tests on {}",
        suite.tests.len(),
        fetched.iter().map(|kernel| kernel.release.as_str()).collect::<Vec<_>>().join(", ")
    ));
    let at_a_time = std::thread::available_parallelism().map_or(1, |number| number.get());
    let mut columns = Vec::new();
    for some in fetched.chunks(at_a_time) {
        let booted = std::thread::scope(|scope| {
            let boots: Vec<_> = some
                .iter()
                .map(|kernel| scope.spawn(|| column(setup, kernel, suite, &shared, &work)))
                .collect();
            boots
                .into_iter()
                .map(|boot| boot.join().unwrap_or_else(|_| bail!("a boot panicked")))
                .collect::<Result<Vec<_>>>()
        })?;
        columns.extend(booted);
    }
    std::fs::remove_dir_all(&work)?;
    let sum = report::sum(&columns);
    say(format_args!(
        "kernel-matrix: {} passed, {} failed, {} left out, in {} s",
        sum.passed,
        sum.failed,
        sum.left_out,
        began.elapsed().as_secs()
    ));
    Ok(columns)
}

fn column(
    setup: &Setup,
    kernel: &Fetched,
    suite: &Suite,
    shared: &std::path::Path,
    work: &std::path::Path,
) -> Result<Column> {
    let tests: Vec<(&Test, Option<&'static str>)> =
        suite.tests.iter().map(|test| (test, test.left_out_of(&kernel.release))).collect();
    let run: Vec<&Test> =
        tests.iter().filter(|(_, reason)| reason.is_none()).map(|(test, _)| *test).collect();
    let script: String = run
        .iter()
        .enumerate()
        .map(|(number, test)| format!("{number} {} {} {TEST_LIMIT_S}\n", test.binary, test.name))
        .collect();
    let initramfs = image::of_kernel(kernel, &script, shared, work)?;
    let titles: Vec<String> = run.iter().map(|test| test.title()).collect();
    let Boot { outcomes, faults, boot_seconds, took } =
        boot(kernel, &initramfs, &titles, &guest::console(&setup.folder().join("logs"), kernel))?;
    let mut of_run = outcomes.into_iter();
    let outcomes = tests
        .into_iter()
        .map(|(test, reason)| {
            let outcome = match reason {
                Some(reason) => Outcome::LeftOut { reason },
                None => of_run.next().unwrap_or_else(|| Outcome::NotRun { why: "no word of it".to_owned() }),
            };
            (test.title(), outcome)
        })
        .collect();
    Ok(Column { kernel: kernel.clone(), outcomes, faults, boot_seconds, took })
}
