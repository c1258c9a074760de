//! What the programs cost, by the kernel's own clock.
//!
//! Enters: nothing. Leaves: for each program how often it ran and for how long. Must never: stay switched on unasked, since
//! the kernel then reads a clock twice for each run of any program of the host.

use std::{os::fd::OwnedFd, time::Duration};

use aya::sys::{Stats, enable_stats};

use super::{Hooks, KernelError, lock};

/// The kernel measures programs for as long as this is there (Linux 5.8).
#[derive(Debug)]
pub struct Measuring(#[expect(dead_code, reason = "closing it ends the measuring")] OwnedFd);

impl Measuring {
    pub fn begin() -> Result<Self, KernelError> {
        let descriptor = enable_stats(Stats::RunTime)
            .map_err(|e| KernelError::Table { doing: "measure programs", source: e.io_error })?;
        Ok(Self(descriptor))
    }
}

/// What one program took since it was loaded, as far as it was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    pub program: String,
    pub runs: u64,
    pub time: Duration,
}

impl Hooks {
    /// What each program took while [`Measuring`] was there.
    pub fn costs(&self) -> Vec<Cost> {
        let programs = lock(&self.programs);
        let mut costs = Vec::new();
        for (name, program) in programs.programs() {
            // Not loaded: this kernel does not have what it would be attached to.
            let Ok(info) = program.info() else { continue };
            costs.push(Cost { program: name.to_owned(), runs: info.run_count(), time: info.run_time() });
        }
        costs.sort_by(|a, b| a.program.cmp(&b.program));
        costs
    }
}
