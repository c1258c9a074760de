//! The collector as witness: the key that it named when this log's key was made known, and the last checkpoint that it
//! cosigned. Notes come in, and go out as cosigned or not. Both are kept on disk: with that note a host can show what the
//! collector has seen. It never trusts another witness's key than the first, until an operator removes that.
//!
//! ```text
//! <state_dir>/log.witness      the collector's key
//! <state_dir>/log.witnessed    the last checkpoint that it cosigned
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::note::SignedNote;

use crate::spool::{Storage, WITNESS_FILE as KEY, WITNESS_MAKING as MAKING, WITNESSED_FILE as NOTE};

/// How much of the log the collector has cosigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessedTo {
    pub epoch: u32,
    /// Leaves of that epoch's tree.
    pub size: u64,
    /// When, by the collector's clock: seconds since 1970.
    pub time_s: u64,
}

/// Why a checkpoint does not count as witnessed. The collector is at fault, or whoever sits in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    #[error("it gave back another checkpoint than it was sent")]
    Another,
    #[error("its cosignature is not by the key in log.witness ({0})")]
    Unsigned(String),
}

/// See the module.
pub struct Witness {
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
struct State {
    key: Option<VerifyingKey>,
    to: Option<WitnessedTo>,
}

impl Witness {
    /// Reads what is known. It waits for the disk.
    pub fn open(storage: Arc<dyn Storage>) -> Self {
        let text = |name| storage.read(name).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let key: Option<VerifyingKey> = text(KEY).and_then(|key| key.trim_end().parse().ok());
        let note: Option<SignedNote> = text(NOTE).and_then(|note| note.parse().ok());
        let to = key.as_ref().zip(note).and_then(|(key, note)| witnessed_to(&note, key));
        Self { storage, state: Mutex::new(State { key, to }) }
    }

    /// How far the collector has cosigned.
    pub fn to(&self) -> Option<WitnessedTo> {
        self.state().to
    }

    /// The collector says which key it cosigns with. Returns whether that is the one that it named first.
    pub(super) async fn named(&self, key: &VerifyingKey) -> bool {
        let known = self.state().key.clone();
        if let Some(known) = known {
            return known == *key;
        }
        self.state().key = Some(key.clone());
        self.keep(KEY, format!("{key}\n")).await;
        true
    }

    /// The collector gives a checkpoint back: what it must be is `sent`. Returns whether it cosigned it.
    pub(super) async fn gave_back(&self, sent: &SignedNote, note: &str) -> Result<bool, WitnessError> {
        let note: SignedNote = note.parse().map_err(|_| WitnessError::Another)?;
        if note.text() != sent.text() {
            return Err(WitnessError::Another);
        }
        let Some(key) = self.state().key.clone() else { return Ok(false) };
        if note.to_string() == sent.to_string() {
            return Ok(false);
        }
        let to = witnessed_to(&note, &key).ok_or_else(|| WitnessError::Unsigned(key.to_string()))?;
        self.state().to = Some(to);
        self.keep(NOTE, note.to_string()).await;
        Ok(true)
    }

    /// Another whole file, or the one before. It can be had again from the collector, so nobody waits for the disk.
    async fn keep(&self, name: &'static str, text: String) {
        let storage = self.storage.clone();
        let kept = tokio::task::spawn_blocking(move || {
            storage.create(MAKING)?.append(text.as_bytes())?;
            storage.rename(MAKING, name)
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, name, "what the collector witnessed is not kept");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn witnessed_to(note: &SignedNote, key: &VerifyingKey) -> Option<WitnessedTo> {
    let time_s = note.cosigned(key).ok()?;
    let checkpoint = Checkpoint::read(note).ok()?;
    Some(WitnessedTo { epoch: checkpoint.log.epoch, size: checkpoint.size, time_s })
}

/// How often what is not sealed is shown to the witness.
pub(super) const SHOW_EVERY: Duration = Duration::from_secs(60);
