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
    /// The key is on disk.
    is_key_kept: bool,
    to: Option<WitnessedTo>,
}

impl Witness {
    /// Reads what is known. It waits for the disk.
    pub fn open(storage: Arc<dyn Storage>) -> Self {
        let text = |name| storage.read(name).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let key: Option<VerifyingKey> = text(KEY).and_then(|key| key.trim_end().parse().ok());
        let note: Option<SignedNote> = text(NOTE).and_then(|note| note.parse().ok());
        let to = key.as_ref().zip(note).and_then(|(key, note)| witnessed_to(&note, key));
        let is_key_kept = key.is_some();
        Self { storage, state: Mutex::new(State { key, is_key_kept, to }) }
    }

    /// How far the collector has cosigned.
    pub fn to(&self) -> Option<WitnessedTo> {
        self.state().to
    }

    /// The collector says which key it cosigns with. Returns whether that is the one that it named first.
    pub(super) async fn named(&self, key: &VerifyingKey) -> bool {
        let is_first = *self.state().key.get_or_insert_with(|| key.clone()) == *key;
        self.keep_key().await;
        is_first
    }

    /// Until the key is on disk, another would be believed after the next start.
    async fn keep_key(&self) {
        let unkept = {
            let state = self.state();
            state.key.clone().filter(|_| !state.is_key_kept)
        };
        if let Some(key) = unkept {
            let is_kept = self.keep(KEY, format!("{key}\n"), true).await;
            self.state().is_key_kept = is_kept;
        }
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
        self.keep_key().await;
        self.keep(NOTE, note.to_string(), false).await;
        Ok(true)
    }

    /// Another whole file, or the one before; one that must last is synced. Whatever fails comes again with the next cosignature.
    async fn keep(&self, name: &'static str, text: String, lasts: bool) -> bool {
        let storage = self.storage.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let mut file = storage.create(MAKING)?;
            file.append(text.as_bytes())?;
            if lasts {
                file.sync_data()?;
            }
            storage.rename(MAKING, name)?;
            if lasts { storage.sync_folder() } else { Ok(()) }
        });
        let kept = kept.await.unwrap_or_else(|gone| Err(std::io::Error::other(gone)));
        if let Err(error) = &kept {
            tracing::warn!(%error, name, "what the collector witnessed is not kept; trying again with the next");
        }
        kept.is_ok()
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
