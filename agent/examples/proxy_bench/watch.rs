//! What other processes take: CPU time by /proc/PID/stat, memory by /proc/PID/smaps_rollup.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks a second in what the kernel shows, on every architecture that Weir runs on.
const TICKS: f64 = 100.0;

/// The seconds that these processes have run, all threads, those that ended included.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        // proc_pid_stat(5): the name may hold anything; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
        for at in [11, 12] {
            ticks += fields.get(at).context("a short stat")?.parse::<u32>()?;
        }
    }
    Ok(f64::from(ticks) / TICKS)
}

/// What these processes take of the memory, shared pages in part (MiB).
pub fn pss_mib(pids: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        kib += line.trim().trim_end_matches(" kB").parse::<u32>()?;
    }
    Ok(f64::from(kib) / 1024.0)
}
