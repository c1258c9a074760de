//! Who decides held calls, and how their clients are made to wait.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use weir_core::approval::AllowedSigners;

use super::{ConfigError, duration};

/// Who decides held calls, and how long a call waits for them.
#[derive(Debug, Clone)]
pub struct Approval {
    pub signers: AllowedSigners,
    /// No answer by then is a refusal.
    pub deadline: Duration,
    /// How often a waiting client gets a sign of life.
    pub keepalive: Duration,
    pub ladder: Ladder,
}

/// How a client waits that no sign of life keeps from giving up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// Its request is answered within this time: with an invitation to ask again, or that an approval is pending.
    pub answer_within: Duration,
    /// So often it is invited to ask again; then it is told that an approval is pending.
    pub rounds: u32,
    /// A client that was invited and does not ask again within this time has left.
    pub retry_within: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        let (answer_within, retry_within) = (Duration::from_secs(45), Duration::from_secs(60));
        Self { answer_within, rounds: 10, retry_within }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApprovalSection {
    allowed_signers: Option<PathBuf>,
    #[serde(deserialize_with = "duration")]
    deadline: Duration,
    #[serde(deserialize_with = "duration")]
    keepalive: Duration,
    #[serde(deserialize_with = "duration")]
    answer_within: Duration,
    rounds: u32,
    #[serde(deserialize_with = "duration")]
    retry_within: Duration,
}

impl Default for ApprovalSection {
    fn default() -> Self {
        let (deadline, keepalive) = (Duration::from_secs(15 * 60), Duration::from_secs(10));
        let Ladder { answer_within, rounds, retry_within } = Ladder::default();
        Self { allowed_signers: None, deadline, keepalive, answer_within, rounds, retry_within }
    }
}

impl ApprovalSection {
    /// Reads the allowed-signers file that it names; `path` is for messages.
    pub fn checked(self, path: &Path) -> Result<Approval, ConfigError> {
        let Self { allowed_signers, deadline, keepalive, answer_within, rounds, retry_within } = self;
        let signers = match allowed_signers {
            None => AllowedSigners::default(),
            Some(file) => {
                let fault =
                    |reason: String| ConfigError::Signers { path: path.into(), file: file.clone(), reason };
                let text = std::fs::read_to_string(&file).map_err(|e| fault(e.to_string()))?;
                AllowedSigners::parse(&text).map_err(|e| fault(e.to_string()))?
            }
        };
        let ladder = Ladder { answer_within, rounds, retry_within };
        Ok(Approval { signers, deadline, keepalive, ladder })
    }
}
