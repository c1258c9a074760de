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
            // The names begin with the size. Of one size there may be two, with two roots, and none of them is left out.
            let notes = entries(&epoch).map_err(unreadable(&epoch))?;
            let notes = notes.into_iter().filter(|path| path.extension().is_some_and(|end| end == "note"));
            let notes: Vec<PathBuf> = notes.collect();
            let is_stored = |path: &&PathBuf| !path.to_string_lossy().ends_with(".idle.note");
            let (stored, all) =
                (notes.iter().filter(is_stored).collect::<Vec<_>>(), notes.iter().collect::<Vec<_>>());
            let stored = newest(&stored).into_iter().map(|path| (path, true));
            for (path, stored) in stored.chain(newest(&all).into_iter().map(|path| (path, false))) {
                let note = std::fs::read_to_string(path).map_err(unreadable(path))?;
                let wrong = |source| TrustFileError::Wrong { path: path.clone(), source };
                trust.witness(&note, stored).map_err(wrong)?;
            }
        }
    }
    Ok(trust)
}

/// Those of the greatest size.
fn newest<'p>(notes: &[&'p PathBuf]) -> Vec<&'p PathBuf> {
    let size = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.split_once('-').map(|(size, _)| size.to_owned()).unwrap_or(name)
    };
    let greatest = notes.iter().map(|path| size(path)).max();
    notes.iter().copied().filter(|path| Some(size(path)) == greatest).collect()
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
        logs.push(Pin { key, first_seq, stored: note(stored), witnessed: note(witnessed), also: Vec::new() });
    }
    let trust = Trust { v: 1, witnesses: witness.into_iter().collect(), heartbeat_s: HEARTBEAT_S, logs };
    // What this prints must read back.
    Ok(Trust::read(&serde_json::to_vec(&trust).map_err(TrustError::from)?)?)
}

#[cfg(test)]
mod tests {
    use weir_core::evidence::checkpoint::{Checkpoint, LogName};
    use weir_core::evidence::key::SigningKey;
    use weir_core::ids::Origin;

    use super::*;

    #[test]
    fn all_newest_checkpoints_of_a_folder_are_held_against_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log =
            LogName { tenant: "t".into(), host: "h".into(), origin: Origin::from_random([1; 16]), epoch: 1 };
        let key = SigningKey::from_seed(&[1; 32]);
        let pin = Pin {
            key: key.verifying(&log.to_string()).unwrap(),
            first_seq: 0,
            stored: None,
            witnessed: None,
            also: Vec::new(),
        };
        let trust = Trust { v: 1, witnesses: Vec::new(), heartbeat_s: HEARTBEAT_S, logs: vec![pin] };
        let file = folder.path().join("trust.json");
        std::fs::write(&file, serde_json::to_vec(&trust).unwrap()).unwrap();
        let witnessed = folder.path().join("witnessed");
        let epoch = witnessed.join(log.origin.as_str()).join("1");
        std::fs::create_dir_all(&epoch).unwrap();
        for (size, root) in [(4, 9), (5, 1), (5, 2), (5, 3)] {
            let checkpoint =
                Checkpoint { log: log.clone(), size, root: [root; 32], first_seq: 0, time_us: 1 };
            let note = checkpoint.signed(&key).unwrap().to_string();
            std::fs::write(epoch.join(format!("{size:020}-0{root}.note")), note).unwrap();
        }
        let read = read_trust(&file, Some(&witnessed)).unwrap();
        assert!(read.logs[0].stored.as_ref().unwrap().contains("\n5\n"));
        // Once among those that were stored, once among all.
        assert_eq!(read.logs[0].also.len(), 4);
        assert!(!read.logs[0].also.iter().any(|note| note.contains("\n4\n")));
    }
}
