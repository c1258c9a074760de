//! What `cargo xtask bench proxy` measures with: a load generator, a server that it asks, the least proxy that decrypts and
//! encrypts (`floor`), and a collector that takes all that an agent ships. Each is a process of its own, on loopback alone.
//!
//! Enters: options. Leaves: one line of JSON on stdout, when a server listens or when a measurement is over. It judges nothing.

#![forbid(unsafe_code)]

mod answer;
mod certificates;
mod collector;
mod floor;
mod idle;
mod load;
mod masking;
mod messages;
mod paced;
mod stub;
mod watch;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Make a CA and a server's certificate for `localhost` in a folder.
    Certificates { folder: PathBuf },
    /// Serve the answers that are measured.
    Stub {
        /// What `certificates` made.
        certificates: PathBuf,
    },
    /// A minimal proxy of hyper and rustls, before the server at this port.
    Floor { certificates: PathBuf, upstream: u16 },
    /// Acknowledge every segment that is shipped to this socket.
    Collector { socket: PathBuf },
    /// Ask, and measure.
    Load(load::Options),
    /// Mask corpora, and measure.
    Masking {
        /// For each corpus.
        #[arg(long, default_value_t = 300)]
        millis: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().part {
        Part::Certificates { folder } => certificates::make(&folder),
        Part::Stub { certificates } => on_all_cores(stub::serve(&certificates)),
        Part::Floor { certificates, upstream } => on_all_cores(floor::serve(&certificates, upstream)),
        Part::Collector { socket } => on_all_cores(collector::serve(&socket)),
        Part::Load(options) => load::run(&options),
        Part::Masking { millis } => masking::run(millis),
    }
}

fn on_all_cores(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
