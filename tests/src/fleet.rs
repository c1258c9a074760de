//! Enrolment of a host, as its operator does it: a token of the collector's, handed to `weir enrol`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};

use crate::collector::Collector;
use crate::places::binary;

/// What this host calls itself.
pub fn hostname() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// A new token for this host and the tenant of the worlds.
pub fn token(collector: &Collector) -> Result<String> {
    collector.run(&["enrol-token", "--tenant", "demo", "--host", &hostname()?])
}

/// `weir enrol` with a new token, and the authority in this file.
pub fn enrol(collector: &Collector, ca: &Path, url: &str, config: &Path) -> Result<Output> {
    let ca = ca.to_str().context("a path that is not UTF-8")?;
    enrol_by(&token(collector)?, &["--ca", ca], url, config)
}

/// The same with this token and this trust.
pub fn enrol_by(token: &str, trust: &[&str], url: &str, config: &Path) -> Result<Output> {
    let mut command = Command::new(binary("weir")?);
    command.args(["enrol", "--collector", url, "--token-file", "-"]).args(trust).arg("--config").arg(config);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting weir")?;
    // It may be done with its mistakes before it reads.
    let _ = child.stdin.take().context("no standard input")?.write_all(token.as_bytes());
    Ok(child.wait_with_output()?)
}
