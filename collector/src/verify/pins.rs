//! The trust file: read from disk, and proposed from what a store has now, for an auditor to compare by another way.

use std::io;
use std::path::{Path, PathBuf};

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::verify::{HEARTBEAT_S, Pin, Trust, TrustError};

use super::VerifyError;
use crate::store::Store;

/// The most bytes of a trust file.
const MAX_TRUST: u64 = 256 << 20;

/// Why there is no trust to verify by; the auditor's command is at fault.
#[derive(Debug, thiserror::Error)]
pub enum TrustFileError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    Wrong { path: PathBuf, source: TrustError },
}

/// Reads a trust file, and the newest checkpoints of a folder as a collector's `[witness] publish_dir` has them.
pub fn read_trust(path: &Path, witnessed: Option<&Path>) -> Result<Trust, TrustFileError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| TrustFileError::Unreadable { path, source }
    };
    let length = std::fs::metadata(path).map_err(unreadable(path))?.len();
    if length > MAX_TRUST {
        return Err(unreadable(path)(io::Error::other("it is too large for a trust file")));
    }
    let text = std::fs::read(path).map_err(unreadable(path))?;
    let mut trust =
        Trust::read(&text).map_err(|source| TrustFileError::Wrong { path: path.to_owned(), source })?;
    let Some(folder) = witnessed else { return Ok(trust) };
    for log in entries(folder).map_err(unreadable(folder))? {
        for epoch in entries(&log).map_err(unreadable(&log))? {
            // The names sort by size.
            let notes = entries(&epoch).map_err(unreadable(&epoch))?;
            let notes = notes.into_iter().filter(|path| path.extension().is_some_and(|end| end == "note"));
            let notes: Vec<PathBuf> = notes.collect();
            let is_stored = |path: &&PathBuf| !path.to_string_lossy().ends_with(".idle.note");
            let newest = [(notes.iter().filter(is_stored).max(), true), (notes.iter().max(), false)];
            for (path, stored) in newest.into_iter().filter_map(|(path, stored)| Some((path?, stored))) {
                let note = std::fs::read_to_string(path).map_err(unreadable(path))?;
                let wrong = |source| TrustFileError::Wrong { path: path.clone(), source };
                trust.witness(&note, stored).map_err(wrong)?;
            }
        }
    }
    Ok(trust)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

#[derive(Debug, Row, Deserialize)]
struct Known {
    origin: String,
    first_seq: u64,
    key: String,
    stored: String,
    witnessed: String,
}

/// The first key of each log, its last checkpoints, and the witness's key.
pub async fn pins(store: &Store, witness: Option<VerifyingKey>) -> Result<Trust, VerifyError> {
    let question = store.query(
        "SELECT toString(origin) AS origin, any(first_seq) AS first_seq, any(key) AS key, \
                any(stored) AS stored, any(witnessed) AS witnessed \
         FROM ( \
             SELECT origin, argMin(first_seq, epoch) AS first_seq, argMin(key, epoch) AS key \
             FROM identities WHERE epoch > 0 GROUP BY origin) AS keys \
         LEFT JOIN ( \
             SELECT origin, argMax(note, (epoch, last_seq)) AS stored FROM batches GROUP BY origin) AS batches \
             USING (origin) \
         LEFT JOIN ( \
             SELECT origin, argMax(note, (epoch, tree_size)) AS witnessed FROM checkpoints GROUP BY origin) AS seen \
             USING (origin) \
         GROUP BY origin ORDER BY origin",
    );
    let known: Vec<Known> = store.rows(question).await?;
    let note = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut logs = Vec::with_capacity(known.len());
    for Known { origin, first_seq, key, stored, witnessed } in known {
        let part = |why: String| TrustError::Part { what: "the key", log: origin.clone(), why };
        let key: VerifyingKey =
            key.parse().map_err(|e: weir_core::evidence::EvidenceError| part(e.to_string()))?;
        logs.push(Pin { key, first_seq, stored: note(stored), witnessed: note(witnessed) });
    }
    let trust = Trust { v: 1, witnesses: witness.into_iter().collect(), heartbeat_s: HEARTBEAT_S, logs };
    // What this prints must read back.
    Ok(Trust::read(&serde_json::to_vec(&trust).map_err(TrustError::from)?)?)
}
