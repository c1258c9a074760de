//! The witness's key on disk: 32 random bytes that nobody but their owner may read. Made once, by whoever comes first.

use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use weir_core::evidence::key::{KEY_LEN, SigningKey};

/// Why there is no key. The operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the witness's key {path} cannot be used: {source}; mend [witness] key_file", path = path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "the witness's key {path} is open to others (mode {mode:04o}); close it with `chmod 600 {path}`",
        path = path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("the witness's key {path} is not {KEY_LEN} bytes; it is some other file", path = path.display())]
    Length { path: PathBuf },
    #[error("{0:?} cannot be a witness's name: it must be 1 to 512 bytes without spaces and +")]
    Name(String),
}

/// The key in that file; where there is none, a new one, which is there whole or not at all.
pub(super) fn read_or_make(path: &Path) -> Result<SigningKey, KeyError> {
    let unusable = |source| KeyError::Unusable { path: path.to_owned(), source };
    match read(path) {
        Err(KeyError::Unusable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(unusable)?;
            read(path)
        }
        read => read,
    }
}

pub(super) fn read(path: &Path) -> Result<SigningKey, KeyError> {
    let unusable = |source| KeyError::Unusable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unusable)?;
    let mode = file.metadata().map_err(unusable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(unusable)?;
    let seed: [u8; KEY_LEN] = bytes.try_into().map_err(|_| KeyError::Length { path: path.to_owned() })?;
    Ok(SigningKey::from_seed(&seed))
}

/// Another who makes one at the same time is first, or second: a link never replaces a file.
fn make(path: &Path) -> io::Result<()> {
    let mut seed = [0; KEY_LEN];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished = path.with_extension(format!("unfinished-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let made = file.write_all(&seed).and_then(|()| file.sync_all());
    let linked = made.and_then(|()| match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    std::fs::remove_file(&unfinished)?;
    linked?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/witness.key");
        let name = |key: SigningKey| key.cosigning("w").unwrap().to_string();
        let first = name(read_or_make(&path).unwrap());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(name(read_or_make(&path).unwrap()), first);
        make(&path).unwrap();
        assert_eq!(name(read_or_make(&path).unwrap()), first, "the second one leaves the first one's");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(read_or_make(&path), Err(KeyError::Open { mode: 0o640, .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        for length in [0, KEY_LEN - 1, KEY_LEN + 1] {
            std::fs::write(&path, vec![1; length]).unwrap();
            assert!(matches!(read_or_make(&path), Err(KeyError::Length { .. })), "{length}");
        }
    }
}
