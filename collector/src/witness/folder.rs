//! A folder for a further witness to take checkpoints from (another host's mount, what fills an object-locked bucket): one file
//! for each checkpoint, there whole or not at all, never changed again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::rows::CheckpointRow;

/// `<folder>/<origin>/<epoch>/<tree size, 20 digits>-<first 16 hex digits of the root>.note`, or `.idle.note` where the events
/// were not stored yet: whoever keeps a copy knows by that what must be there.
fn place(folder: &Path, row: &CheckpointRow) -> PathBuf {
    let root = weir_core::ids::hex(row.root.get(..8).unwrap_or_default());
    let kind = if row.idle { "idle.note" } else { "note" };
    let name = format!("{:020}-{root}.{kind}", row.tree_size);
    folder.join(&row.origin).join(row.epoch.to_string()).join(name)
}

/// Writes one checkpoint, unless it is there.
pub(super) fn publish(folder: &Path, row: &CheckpointRow) -> io::Result<()> {
    let path = place(folder, row);
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent)?;
    let unfinished = path.with_extension(format!("unfinished-{}", std::process::id()));
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(row.note.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    std::fs::File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_checkpoint_is_a_file_of_its_own_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let row = |tree_size: u64, note: &str, idle: bool| CheckpointRow {
            idle,
            origin: "ab".repeat(16),
            epoch: 1,
            tree_size,
            root: [7; 32],
            note: note.into(),
            ..CheckpointRow::default()
        };
        for (size, note, idle) in [(5, "five", false), (6, "six", true), (5, "five again", false)] {
            publish(folder.path(), &row(size, note, idle)).unwrap();
        }
        let files: Vec<_> = std::fs::read_dir(folder.path().join("ab".repeat(16)).join("1"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(std::fs::read_to_string(place(folder.path(), &row(5, "", false))).unwrap(), "five");
        assert!(place(folder.path(), &row(6, "", true)).to_str().unwrap().ends_with(".idle.note"));
    }
}
