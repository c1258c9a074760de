//! What must hold of Weir's parsers for any bytes. Each target takes bytes, and panics where a promise is broken:
//! not only that nothing panics, but that pieces do not matter, that what is written reads back, and that what Weir
//! reads is what another parser reads.
//!
//! The same targets run in three ways: over the remembered inputs in `corpus/` and some thousands made from them by a
//! seed, in every test run (`tests/short.rs`); and guided by coverage, `cargo xtask fuzz`.

#![forbid(unsafe_code)]

mod client_hello;
mod evidence;
mod headers;
mod http1;
mod json_rpc;
mod mutate;
mod pieces;
mod sse;

pub use mutate::Mutator;

/// A parser, and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its folder in `corpus/`, and of its guided program.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "client_hello", run: client_hello::run },
    Target { name: "evidence", run: evidence::run },
    Target { name: "headers", run: headers::run },
    Target { name: "http1", run: http1::run },
    Target { name: "json_rpc", run: json_rpc::run },
    Target { name: "legacy_sse", run: sse::legacy },
    Target { name: "segment", run: evidence::segment },
    Target { name: "sse", run: sse::run },
];

/// Runs one by its name; says whether there is one.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name);
    target.inspect(|target| (target.run)(bytes)).is_some()
}
