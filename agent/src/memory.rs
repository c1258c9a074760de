//! How the allocator keeps memory.
//!
//! Enters: nothing. Leaves: nothing. Must never: be called when threads run already, which have arenas by then.
#![allow(unsafe_code)]

use nix::libc;

/// How many arenas the C library's allocator makes. By itself it makes eight for each core, and what was freed in one is of no use in
/// another: with 1,000 connections that was 20 MiB.
const ARENAS: libc::c_int = 2;

/// Bounds what threads keep for themselves of freed memory. Where the C library has no such setting, nothing happens.
pub fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and sets a number of the allocator's; no thread allocates beside this one yet.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}
