//! The data folder: who may enter it, and that one process alone holds it.
//!
//! In: the operator's path. Out: the engine's own folder (0700) and configuration inside it, under a lock that lasts as
//! long as the process. It never changes the mode of the folder that the operator named.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The engine's configuration. It stands in place of whatever `config.xml` the engine would otherwise find in the
/// current folder, the home folder or /etc. The first two settings make every table keep what it acknowledged through a
/// power cut, even if its CREATE does not say so; the others leave the host's memory to its jobs.
const ENGINE_CONFIG: &str = "\
<clickhouse>
    <!-- written by weir-store at each start -->
    <merge_tree>
        <fsync_after_insert>1</fsync_after_insert>
        <fsync_part_directory>1</fsync_part_directory>
    </merge_tree>
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <mark_cache_size>268435456</mark_cache_size>
</clickhouse>
";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("cannot use the data folder {path}: {source}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "the data folder {path} is in use by another weir-store (process {holder}): stop that one, or name another folder"
    )]
    InUse { path: PathBuf, holder: String },
}

/// A data folder that this process holds.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is absent, and takes it.
    pub fn take(path: &Path) -> Result<Self, FolderError> {
        let unusable = |source| FolderError::Unusable { path: path.to_owned(), source };
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        }
        let path = path.canonicalize().map_err(unusable)?;
        let unusable = |source| FolderError::Unusable { path: path.clone(), source };
        let lock = lock(&path)?;
        let folder = Self { path: path.clone(), _lock: lock };
        let database = folder.database();
        if !database.exists() {
            DirBuilder::new().mode(0o700).create(&database).map_err(unusable)?;
        }
        fs::set_permissions(&database, Permissions::from_mode(0o700)).map_err(unusable)?;
        fs::write(folder.config(), ENGINE_CONFIG).map_err(unusable)?;
        Ok(folder)
    }

    /// The engine's own folder.
    pub fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// The engine's configuration file.
    pub fn config(&self) -> PathBuf {
        self.path.join("engine.xml")
    }

    /// Where the secret is unless the operator names another place.
    pub fn secret(&self) -> PathBuf {
        self.path.join("store.secret")
    }
}

fn lock(folder: &Path) -> Result<File, FolderError> {
    let unusable = |source| FolderError::Unusable { path: folder.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join("lock"))
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(FolderError::InUse { path: folder.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(unusable(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unusable)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_closed_to_others_and_held_once() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("a/b");
        let held = Folder::take(&path).expect("the folder");
        for folder in [&path, &held.database()] {
            assert_eq!(fs::metadata(folder).expect("the folder").permissions().mode() & 0o777, 0o700);
        }
        let second = Folder::take(&path).err().expect("a refusal").to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        drop(held);
        Folder::take(&path).expect("the folder is free again");
    }

    #[test]
    fn a_folder_that_the_operator_made_keeps_its_mode_but_the_data_is_closed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a mode");
        let held = Folder::take(folder.path()).expect("the folder");
        assert_eq!(fs::metadata(folder.path()).expect("the folder").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(held.database()).expect("the folder").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_path_that_is_no_folder_is_refused_in_one_sentence() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = Folder::take(&file.path().join("x")).err().expect("a refusal").to_string();
        assert!(error.starts_with("cannot use the data folder"), "{error}");
        assert!(Folder::take(file.path()).is_err());
    }
}
