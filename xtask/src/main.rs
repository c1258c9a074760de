//! `cargo xtask`: the developer's tool. It sets up what the demo and the tests need, runs them, and checks the code.
//!
//! It knows Weir as a user does, by its binaries; it links none of Weir's crates but the tests' harness.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod conformance;
mod debian;
mod demo;
mod ebpf;
mod edges;
mod fuzz;
mod matrix;
mod progress;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The developer's tool of Weir.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a pipeline job through Weir and show what was recorded.
    Demo(demo::Options),
    /// Set up, build, and run every test, the kernel ones included.
    Test(test::Options),
    /// Run the official conformance suite directly and through Weir; fails where a check differs or the record lacks a message.
    Conformance(conformance::Options),
    /// Format, lints, dependencies, module edges, and the committed kernel object.
    Check,
    /// Rebuild the committed kernel object.
    Ebpf {
        /// Build it elsewhere, and fail if the committed one differs.
        #[arg(long)]
        check: bool,
    },
    /// Boot Debian's own kernels in an emulator, and run the tests of the kernel side on each.
    KernelMatrix(matrix::Options),
    /// Measure what Weir costs, as ratios within one run.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Search for inputs that break a promise of Weir's parsers, guided by coverage.
    Fuzz(fuzz::Options),
    /// Run the faults of the tests in large numbers, and count what was found.
    Soak(soak::Options),
    /// Set up what the demo and the tests need, and nothing else.
    Setup,
}

fn main() -> ExitCode {
    // What is set up here is run by an unprivileged job too, whatever the caller's umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let done = match Arguments::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::Check => check::run(),
        Task::Ebpf { check } => ebpf::run(check),
        Task::KernelMatrix(options) => matrix::run(&options),
        Task::Bench(bench) => bench::run(&bench),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Setup => setup::prepare(setup::Needs::all()).map(|_| ()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
