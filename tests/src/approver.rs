//! A human who approves or refuses: an SSH key of their own, and the collector's command line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::collector::{Collector, rows};
use crate::wait::until;

/// The namespace of Weir's signatures (`ssh-keygen -Y sign -n`).
pub const NAMESPACE: &str = "weir-approval";

/// An approver with a key.
#[derive(Debug, Clone)]
pub struct Approver {
    pub principal: String,
    pub key: PathBuf,
}

impl Approver {
    /// Makes an ed25519 key by `ssh-keygen` in the folder.
    pub fn with_new_key(folder: &Path, principal: &str) -> Result<Self> {
        let key = folder.join(format!("{principal}.key"));
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", principal, "-f"])
            .arg(&key)
            .stdin(Stdio::null())
            .output()
            .context("running ssh-keygen")?;
        if !made.status.success() {
            bail!("ssh-keygen failed: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        Ok(Self { principal: principal.to_owned(), key })
    }

    /// This approver's line of an allowed-signers file (ssh-keygen(1), ALLOWED SIGNERS).
    pub fn allowed_signers_line(&self) -> Result<String> {
        let public = std::fs::read_to_string(self.key.with_extension("key.pub"))?;
        let mut fields = public.split_whitespace();
        let (kind, key) =
            (fields.next().context("an empty public key")?, fields.next().context("half a public key")?);
        Ok(format!("{} namespaces=\"{NAMESPACE}\" {kind} {key}\n", self.principal))
    }

    /// `weir-collector approvals approve ID ...`.
    pub fn approve(&self, collector: &Collector, id: &str, justification: &str) -> Result<Output> {
        self.answer(collector, "approve", id, justification)
    }

    /// `weir-collector approvals refuse ID ...`.
    pub fn refuse(&self, collector: &Collector, id: &str, justification: &str) -> Result<Output> {
        self.answer(collector, "refuse", id, justification)
    }

    fn answer(&self, collector: &Collector, verb: &str, id: &str, justification: &str) -> Result<Output> {
        let key = self.key.to_str().context("a key path that is not UTF-8")?;
        collector.attempt(&[
            "approvals",
            verb,
            id,
            "--justification",
            justification,
            "--key",
            key,
            "--as",
            &self.principal,
        ])
    }
}

/// Waits for a hold that waits for an answer, and gives it as `approvals list --json` tells it, with its id.
pub fn next_hold(collector: &Collector, deadline: Duration) -> Result<(String, Value)> {
    until("a call to be held", deadline, || {
        let listed = rows(&collector.run(&["approvals", "list", "--json"])?)?;
        let Some(hold) = listed.into_iter().next() else { return Ok(None) };
        let id = ["id", "approval_id", "approval"]
            .iter()
            .find_map(|&field| hold.get(field).and_then(Value::as_str))
            .with_context(|| format!("a hold without an id: {hold}"))?;
        Ok(Some((id.to_owned(), hold)))
    })
}
