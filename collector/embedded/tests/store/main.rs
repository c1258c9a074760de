//! The store as its users meet it: the real binary, the real engine, over HTTP.
//!
//! The engine is found by `WEIR_ENGINE`, else where `cargo xtask test` sets it up; without it each test fails and says so.

mod client;
mod crash;
mod harness;
mod soak;
mod start;
mod wire;
