//! The collector against the real engine: `weir-store` and `weir-collector` as processes, an agent played by these
//! tests over the real socket.
#![forbid(unsafe_code)]

mod agent;
mod approvals;
mod auditor;
mod bundle;
mod completeness;
mod definitions;
mod faults;
mod fleet;
mod ingest;
mod log;
mod malformed;
mod migrations;
mod named;
mod questions;
mod records;
mod remote;
mod retention;
mod store_faults;
mod tampered;
mod verify;
mod witness;
mod world;
