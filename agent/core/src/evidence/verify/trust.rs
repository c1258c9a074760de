//! Trust: what an auditor holds before looking at any record, and the only thing that verification believes. A file's text
//! comes in, pins go out. Whoever can write this file decides what is proven.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::checkpoint::Checkpoint;
use super::super::key::{Algorithm, VerifyingKey};
use super::super::note::SignedNote;
use crate::ids::Origin;

/// The version of the file.
pub const VERSION: u32 = 1;
/// How often an idle agent writes a heartbeat, seconds, where the file does not say.
pub const HEARTBEAT_S: u64 = 60;

/// What is believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    pub v: u32,
    /// The keys under which checkpoints may be cosigned (C2SP cosignature/v1); without one, nobody's cosignature is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<VerifyingKey>,
    /// Seconds between the heartbeats of an idle agent.
    #[serde(default = "heartbeat_s")]
    pub heartbeat_s: u64,
    /// The logs that must be there.
    pub logs: Vec<Pin>,
}

/// One log that is expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The key of the first epoch that is believed, under the log's name at that epoch.
    pub key: VerifyingKey,
    /// The first number of that epoch; what is before it was written before there were trees.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_seq: u64,
    /// The checkpoint of the last events that the auditor saw in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
    /// The last checkpoint that the auditor, or somebody whom they believe, saw; it may be ahead of what was stored then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed: Option<String>,
    /// Checkpoints of as many leaves as one of those, with another root: one of them cannot be this log's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
}

fn heartbeat_s() -> u64 {
    HEARTBEAT_S
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Why a file is not one of trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("not a trust file: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the trust file has version {0}, and this program knows {VERSION}")]
    Version(u32),
    #[error("the log {0} is pinned twice")]
    Twice(Origin),
    #[error("{what} of {log} is wrong: {why}")]
    Part { what: &'static str, log: String, why: String },
}

/// A checkpoint that was seen elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub checkpoint: Checkpoint,
    /// Whether its events were in the store.
    pub stored: bool,
}

/// A pin that was read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub key: VerifyingKey,
    pub tenant: String,
    pub host: String,
    pub epoch: u32,
    pub first_seq: u64,
    pub seen: Vec<Seen>,
}

impl Trust {
    /// Reads a file's text, whole.
    pub fn read(text: &[u8]) -> Result<Self, TrustError> {
        let trust: Self = serde_json::from_slice(text)?;
        trust.expected()?;
        Ok(trust)
    }

    /// Adds a checkpoint that somebody else kept, if it is of a pinned log and newer than what is there, or contradicts what is
    /// there. `stored`: the witness had its events in the store.
    pub fn witness(&mut self, note: &str, stored: bool) -> Result<(), TrustError> {
        let seen = checkpoint("a witnessed checkpoint", "some log", note)?;
        for pin in &mut self.logs {
            if super::super::checkpoint::LogName::try_from(pin.key.name().to_owned())
                .is_ok_and(|log| log.origin == seen.log.origin)
            {
                let place = if stored { &mut pin.stored } else { &mut pin.witnessed };
                let known = place.as_deref().map(|known| checkpoint("witnessed", pin.key.name(), known));
                let known = known.transpose()?.map(|known| ((known.log.epoch, known.size), known.root));
                let size = (seen.log.epoch, seen.size);
                if known.is_none_or(|(known, _)| known < size) {
                    *place = Some(note.to_owned());
                } else if known.is_some_and(|(known, root)| known == size && root != seen.root) {
                    pin.also.push(note.to_owned());
                }
            }
        }
        Ok(())
    }

    pub(super) fn expected(&self) -> Result<BTreeMap<Origin, Expected>, TrustError> {
        if self.v != VERSION {
            return Err(TrustError::Version(self.v));
        }
        let part = |what, log: &str, why: &str| TrustError::Part { what, log: log.into(), why: why.into() };
        if let Some(key) = self.witnesses.iter().find(|key| key.algorithm() != Algorithm::Cosignature) {
            return Err(part("the witness's key", key.name(), "it is not one for cosignatures"));
        }
        let mut expected = BTreeMap::new();
        for pin in &self.logs {
            let key = &pin.key;
            let log = super::super::checkpoint::LogName::try_from(key.name().to_owned());
            let log = log.map_err(|e| part("the key", key.name(), &e.to_string()))?;
            if key.algorithm() != Algorithm::Ed25519 {
                return Err(part("the key", key.name(), "it is not a log's"));
            }
            let mut seen = Vec::new();
            let held = [
                ("the stored checkpoint", &pin.stored, true),
                ("the witnessed checkpoint", &pin.witnessed, false),
            ];
            let held =
                held.into_iter().filter_map(|(what, note, stored)| Some((what, note.as_ref()?, stored)));
            let also = pin.also.iter().map(|note| ("a further checkpoint", note, false));
            for (what, note, stored) in held.chain(also) {
                let checkpoint = checkpoint(what, key.name(), note)?;
                if checkpoint.log.origin != log.origin || checkpoint.log.epoch < log.epoch {
                    return Err(part(
                        what,
                        key.name(),
                        "it is of another log, or of an earlier epoch than the key",
                    ));
                }
                seen.push(Seen { checkpoint, stored });
            }
            let one = Expected {
                key: key.clone(),
                tenant: log.tenant,
                host: log.host,
                epoch: log.epoch,
                first_seq: pin.first_seq,
                seen,
            };
            if expected.insert(log.origin.clone(), one).is_some() {
                return Err(TrustError::Twice(log.origin));
            }
        }
        Ok(expected)
    }
}

fn checkpoint(what: &'static str, log: &str, note: &str) -> Result<Checkpoint, TrustError> {
    note.parse::<SignedNote>().and_then(|note| Checkpoint::read(&note)).map_err(|e| TrustError::Part {
        what,
        log: log.to_owned(),
        why: e.to_string(),
    })
}
