//! What stays in force without an agent: where hooks and tables are kept, and what becomes of connects meanwhile.

use std::path::PathBuf;

use nix::errno::Errno;
use serde::Deserialize;

/// The kernel's side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// A folder of Weir's own on a bpffs, in which hooks and tables outlive the agent.
    /// None, which no file can say: they end with it.
    pub pin_dir: Option<PathBuf>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { pin_dir: Some("/sys/fs/bpf/weir".into()) }
    }
}

/// What becomes of the connects of selected processes while no agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failure {
    /// Of those to destinations that Weir reads.
    pub intercepted: Mode,
    /// Of those to other destinations.
    pub relayed: Mode,
    /// What a refused one fails with.
    pub errno: Refusal,
}

impl Default for Failure {
    fn default() -> Self {
        Self { intercepted: Mode::Closed, relayed: Mode::Open, errno: Refusal::ConnectionRefused }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refused, counted, and recorded when the agent is back.
    Closed,
    /// Let pass, counted, and recorded when the agent is back.
    Open,
}

/// An error that connect(2) may end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Refusal {
    #[serde(rename = "ECONNREFUSED")]
    ConnectionRefused,
    #[serde(rename = "EPERM")]
    NotPermitted,
    #[serde(rename = "EACCES")]
    AccessDenied,
    #[serde(rename = "EHOSTUNREACH")]
    HostUnreachable,
    #[serde(rename = "ENETUNREACH")]
    NetworkUnreachable,
    #[serde(rename = "ETIMEDOUT")]
    TimedOut,
}

impl Refusal {
    /// Its number on this host.
    pub fn number(self) -> u32 {
        let errno = match self {
            Refusal::ConnectionRefused => Errno::ECONNREFUSED,
            Refusal::NotPermitted => Errno::EPERM,
            Refusal::AccessDenied => Errno::EACCES,
            Refusal::HostUnreachable => Errno::EHOSTUNREACH,
            Refusal::NetworkUnreachable => Errno::ENETUNREACH,
            Refusal::TimedOut => Errno::ETIMEDOUT,
        };
        (errno as i32).unsigned_abs()
    }
}
