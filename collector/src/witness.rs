//! The witness: it cosigns what a host says of its log's tree, and only what was proven to go on from all that it has
//! cosigned of that log before. Notes come in that somebody has judged ([`judge`], by what ClickHouse shows, [`known`]);
//! notes with its signature go out. It keeps nothing but its key: what it has cosigned is in ClickHouse, so that two collectors,
//! or one that was killed at any point, come to the same. It must never cosign what was not read back.

mod folder;
pub mod judge;
mod key;
pub mod known;

use std::path::PathBuf;

use weir_core::evidence::EvidenceError;
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::tombstone::Tombstone;

pub use key::KeyError;

use crate::config;
use crate::rows::CheckpointRow;

/// This collector's key, and where it puts what it has cosigned besides.
#[derive(Debug)]
pub struct Witness {
    key: SigningKey,
    public: VerifyingKey,
    publish_dir: Option<PathBuf>,
}

impl Witness {
    /// Reads the key, or makes one where there is none yet.
    pub fn open(config: &config::Witness) -> Result<Self, KeyError> {
        let key = key::read_or_make(&config.key_file)?;
        let public = key.cosigning(&config.name).map_err(|_| KeyError::Name(config.name.clone()))?;
        Ok(Self { key, public, publish_dir: config.publish_dir.clone() })
    }

    /// What others check the signatures by of a collector with this configuration, as far as its key is there and may be read.
    /// None is made.
    pub fn known(config: &config::Witness) -> Option<VerifyingKey> {
        key::read(&config.key_file).ok()?.cosigning(&config.name).ok()
    }

    /// What others check its signatures by.
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// The note with its signature of this moment: `now_us`, microseconds since 1970.
    pub fn cosigned(&self, note: &SignedNote, now_us: i64) -> Result<SignedNote, EvidenceError> {
        let mut note = note.clone();
        note.cosign(&self.key, self.public.name(), now_us.unsigned_abs() / 1_000_000)?;
        Ok(note)
    }

    /// Signs that events were deleted. Only who has deleted them by a policy may say so ([`crate::retention`]).
    pub fn buried(&self, stone: &Tombstone) -> Result<SignedNote, EvidenceError> {
        stone.signed(&self.key, self.public.name())
    }

    /// Whether it has signed this note already.
    pub fn has_cosigned(&self, note: &str) -> bool {
        note.parse::<SignedNote>().is_ok_and(|note| note.cosigned(&self.public).is_ok())
    }

    /// Puts checkpoints into the folder for further witnesses. What fails is told in the log: ClickHouse has them.
    pub async fn publish(&self, rows: Vec<CheckpointRow>) {
        let Some(folder) = self.publish_dir.clone() else { return };
        let published = tokio::task::spawn_blocking(move || {
            rows.iter().try_for_each(|row| folder::publish(&folder, row))
        });
        match published.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot write checkpoints to [witness] publish_dir"),
            Err(error) => tracing::error!(%error, "publishing broke"),
        }
    }
}
