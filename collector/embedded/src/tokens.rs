//! Deduplication tokens that a kill has burnt, set free before the engine opens.
//!
//! In: the engine's folder, closed. Out: the same folder, in which a token stands for rows that are there. ClickHouse writes
//! an insert's block id into its deduplication log *before* it renames the part into place
//! (`MergeTreeDeduplicationLog::addPart`, up to 26.7). A kill -9 between the two leaves an id without a part, and the retry with
//! the same token is then acknowledged without a row being stored. The log has its own record for taking an id
//! back (operation 2, written when a part is dropped); such a record is appended for each id whose part, or a part
//! merged out of it, is nowhere. It touches nothing else, and leaves alone what it cannot read to the last byte.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const ADD: &str = "1";
const DROP: &str = "2";
/// A window is some thousands of ids of about 70 bytes, in two files.
const MAX_LOG_BYTES: u64 = 64 << 20;

/// Frees the burnt tokens of all tables below `database`, the engine's folder; says how many there were.
pub fn free_burnt(database: &Path) -> io::Result<usize> {
    let mut freed = 0;
    for group in folders_in(&database.join("store"))? {
        for table in folders_in(&group)? {
            freed += free_burnt_of(&table)?;
        }
    }
    Ok(freed)
}

fn free_burnt_of(table: &Path) -> io::Result<usize> {
    let mut logs = Vec::new();
    for path in entries_of(&table.join("deduplication_logs"))? {
        let Some(number) = log_number(&path) else { return Ok(0) };
        logs.push((number, path));
    }
    logs.sort();
    let Some((_, newest)) = logs.last() else { return Ok(0) };
    let mut ids = BTreeMap::new();
    for (_, path) in &logs {
        if fs::metadata(path)?.len() > MAX_LOG_BYTES || replay(&fs::read(path)?, &mut ids).is_none() {
            tracing::warn!(log = %path.display(), "cannot read a deduplication log; leaving it as it is");
            return Ok(0);
        }
    }
    let folders = folders_in(table)?;
    let parts: Vec<Part> =
        folders.iter().filter_map(|path| Part::named(path.file_name()?.to_str()?)).collect();
    let burnt: Vec<String> = ids
        .into_iter()
        .filter(|(_, part)| {
            Part::named(part).is_some_and(|part| !parts.iter().any(|there| there.covers(part)))
        })
        .map(|(id, part)| format!("{DROP}\t{part}\t{id}\n"))
        .collect();
    if !burnt.is_empty() {
        let mut log = OpenOptions::new().append(true).open(newest)?;
        log.write_all(burnt.concat().as_bytes())?;
        log.sync_all()?;
    }
    Ok(burnt.len())
}

/// Applies one log to `ids` (block id to part); `None` if it is not whole.
fn replay(log: &[u8], ids: &mut BTreeMap<String, String>) -> Option<()> {
    let text = std::str::from_utf8(log).ok()?;
    for line in text.split_inclusive('\n') {
        let mut fields = line.strip_suffix('\n')?.split('\t');
        match (fields.next()?, fields.next()?, fields.next()?, fields.next()) {
            (ADD, part, id, None) => ids.insert(id.to_owned(), part.to_owned()),
            (DROP, _, id, None) => ids.remove(id),
            _ => return None,
        };
    }
    Some(())
}

/// `partition_min_max_level[_mutation]`, as folders and log records spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part<'n> {
    partition: &'n str,
    min: u64,
    max: u64,
}

impl<'n> Part<'n> {
    /// `None` for anything else, such as `tmp_insert_all_1_1_0` and `detached`.
    fn named(name: &'n str) -> Option<Self> {
        let mut fields = name.split('_');
        let partition = fields.next()?;
        let numbers: Vec<u64> = fields.map(|number| number.parse().ok()).collect::<Option<_>>()?;
        match *numbers.as_slice() {
            [min, max, _level] | [min, max, _level, _] => Some(Self { partition, min, max }),
            _ => None,
        }
    }

    fn covers(&self, other: Part<'_>) -> bool {
        self.partition == other.partition && self.min <= other.min && other.max <= self.max
    }
}

fn log_number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("deduplication_log_")?.strip_suffix(".txt")?.parse().ok()
}

fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries_of(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// Nothing, if the folder is not there.
fn entries_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with part folders and the text of its logs; the text of the newest log after the freeing.
    fn freed(parts: &[&str], logs: &[&str]) -> (usize, String) {
        let database = tempfile::tempdir().expect("a temporary folder");
        let table = database.path().join("store/abc/abcdef");
        for part in parts {
            fs::create_dir_all(table.join(part)).expect("a part");
        }
        fs::create_dir_all(table.join("deduplication_logs")).expect("a folder");
        let log = |at: usize| table.join(format!("deduplication_logs/deduplication_log_{at}.txt"));
        for (at, text) in logs.iter().enumerate() {
            fs::write(log(at + 9), text).expect("a log");
        }
        let freed = free_burnt(database.path()).expect("the freeing");
        (freed, fs::read_to_string(log(logs.len() + 8)).unwrap_or_default())
    }

    #[test]
    fn an_id_without_its_part_is_taken_back() {
        let log = "1\tall_1_1_0\tall_a_b\n1\tall_2_2_0\tall_c_d\n";
        assert_eq!(
            freed(&["all_1_1_0", "tmp_insert_all_2_2_0"], &[log]),
            (1, format!("{log}2\tall_2_2_0\tall_c_d\n"))
        );
        // Older logs count too; what is appended goes to the newest.
        let (older, newer) = ("1\tall_1_1_0\tx\n", "1\tall_2_2_0\ty\n");
        assert_eq!(freed(&["all_2_2_0"], &[older, newer]), (1, format!("{newer}2\tall_1_1_0\tx\n")));
    }

    #[test]
    fn ids_whose_part_is_there_or_was_merged_or_mutated_stay() {
        for part in ["all_3_3_0", "all_3_3_1_7", "all_1_5_2", "all_1_5_2_9"] {
            let log = "1\tall_3_3_0\tx\n";
            assert_eq!(freed(&[part], &[log]), (0, log.to_owned()), "{part}");
        }
        for part in ["other_1_5_2", "all_4_5_1", "detached", "delete_tmp_all_3_3_0"] {
            assert_eq!(freed(&[part], &["1\tall_3_3_0\tx\n"]).0, 1, "{part}");
        }
        assert_eq!(freed(&[], &["1\tall_3_3_0\tx\n2\tall_3_3_0\tx\n"]).0, 0, "it was taken back already");
    }

    #[test]
    fn what_cannot_be_read_to_the_last_byte_is_left_alone() {
        for log in [
            "1\tall_1_1_0\tx",
            "3\tall_1_1_0\tx\n",
            "1\tall_1_1_0\n",
            "1\tall_1_1_0\tx\ty\n",
            "\n",
            "1\tstrange\tx\n",
        ] {
            assert_eq!(freed(&[], &[log]), (0, log.to_owned()), "{log:?}");
        }
        assert_eq!(free_burnt(Path::new("/nonexistent")).expect("nothing to do"), 0);
    }
}
