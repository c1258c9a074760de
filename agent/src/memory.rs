//! How the allocator keeps memory.
//!
//! Enters: whether anything is being carried. Leaves: pages, to the kernel. Must never: bound the arenas when threads run already, which
//! have theirs by then; look through the arenas while calls are carried, which would wait for it.
#![allow(unsafe_code)]

use std::time::Duration;

use nix::libc;

/// How many arenas the C library's allocator makes. By itself it makes eight for each core, and what was freed in one is of no use in
/// another: with 1,000 connections that was 20 MiB.
const ARENAS: libc::c_int = 2;
/// How often it is looked whether there is anything to give back.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// From so many pages more than at rest it is worth it.
const WORTH: u64 = 1024;

/// Bounds what threads keep for themselves of freed memory. Where the C library has no such setting, nothing happens.
pub fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and sets a number of the allocator's; no thread allocates beside this one yet.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives back what the agent's start took, and later, whenever nothing is carried, what its burst of connections took: a start reads
/// much that is of no use later (the kernel's types, the programs, the rules of masking), and between two jobs a host's memory is the
/// host's. Never resolves.
pub async fn give_back_when_idle(is_idle: impl Fn() -> bool) {
    let mut at_rest = 0;
    loop {
        if is_idle() && resident().is_some_and(|pages| pages > at_rest + WORTH) {
            let given = tokio::task::spawn_blocking(|| {
                give_back_free_pages();
                resident()
            });
            at_rest = given.await.ok().flatten().unwrap_or(at_rest);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The pages that this process has in memory.
fn resident() -> Option<u64> {
    std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

/// Those on which nothing is kept any more. The C library does so by itself at the end of its heap alone.
fn give_back_free_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and locks each arena while it looks through it.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_goes_back() {
        let before = resident().unwrap();
        // Small pieces with one kept behind them, so that the end of the heap is not free.
        let mut pieces: Vec<_> = (0..20_000).map(|_| vec![1_u8; 4096]).collect();
        let kept = pieces.pop();
        let taken = resident().unwrap();
        drop(pieces);
        give_back_free_pages();
        let left = resident().unwrap();
        assert!(taken > before + 15_000 && left < taken - 15_000, "{before}, {taken}, {left} pages");
        drop(kept);
    }
}
