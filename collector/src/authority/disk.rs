//! The CA's folder: names and bytes in, files that are there as a whole out. Secrets are 0600 from their first moment, and are
//! not read when others may read them.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::AuthorityError;

/// The most bytes of any of the files.
const MAX_FILE: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Makes it if it is absent, for its owner alone.
    pub fn make(dir: &Path) -> Result<Self, AuthorityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fault("make", dir))?;
        Ok(Self::at(dir))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// None if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => bounded(file).map(Some).map_err(fault("read", &path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault("read", &path)(error)),
        }
    }

    pub fn read_secret(&self, name: &str) -> Result<String, AuthorityError> {
        secret(&self.path(name))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AuthorityError> {
        self.put(name, bytes, 0o644)
    }

    pub fn write_secret(&self, name: &str, bytes: &[u8]) -> Result<(), AuthorityError> {
        self.put(name, bytes, 0o600)
    }

    /// Written aside, synced, renamed, and the folder synced.
    fn put(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
        let (path, aside) = (self.path(name), self.path(&format!(".{name}.new")));
        let written = || {
            match std::fs::remove_file(&aside) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(&self.0)?.sync_all()
        };
        written().map_err(fault("write", &path))
    }
}

/// A secret's text, which its owner alone may read.
pub(super) fn secret(path: &Path) -> Result<String, AuthorityError> {
    let file = File::open(path).map_err(fault("read", path))?;
    let mode = file.metadata().map_err(fault("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = bounded(file).map_err(fault("read", path))?;
    String::from_utf8(bytes)
        .map_err(|_| AuthorityError::Unusable { path: path.to_owned(), fault: "it is no text".into() })
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn fault(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::Storage { action, path, source }
}
