//! Weir's host agent. One call's way through it, left to right:
//!
//! ```text
//! kernel -> intercept -> identity -> tls -> http -> gate -> (approval) -> upstream
//!                                                    \-> ledger -> spool -> ship -> collector
//! ```
//!
//! [`gate`] is the spine: what happens to one call reads there from top to bottom. `docs/architecture.md`
//! has the map.
#![deny(unsafe_code)]

pub mod account;
pub mod admin;
pub mod approval;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod gate;
pub mod handover;
pub mod http;
pub mod identity;
pub mod intercept;
pub mod kernel;
pub mod ledger;
pub mod lineage;
pub mod memory;
pub mod netns;
pub mod oci;
pub mod process;
pub mod random;
pub mod run;
pub mod select;
pub mod share;
pub mod ship;
pub mod spool;
pub mod tasks;
pub mod tls;
pub mod trust;
pub mod uninstall;
pub mod watch;
