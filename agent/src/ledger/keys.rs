//! The log's key on disk: 32 random bytes in `log.key`, readable by its owner alone, made on the first start; signing
//! keys go out. While the key is being changed the next one lies in `log.key.next`, so that a kill at any moment leaves
//! both: the log says which of them signs it. It never shows a key, and never replaces one that still signs.

use std::fmt;
use std::io;
use std::sync::Arc;

use weir_core::evidence::key::{KEY_LEN, SigningKey};

use crate::random;
use crate::spool::{KEY_FILE, KEY_MAKING, KEY_NEXT, Storage};

/// What is wrong with the log's key. The operator mends it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "{name} in the state folder is open to others ({fault}): set mode 0600 and owner root, and change the key with \
         `weir key rotate` if anybody may have read it"
    )]
    Exposed { name: &'static str, fault: String },
    #[error(
        "{name} in the state folder does not have {KEY_LEN} bytes: put back the one that was there, or remove it for a new one"
    )]
    Unusable { name: &'static str },
    #[error("cannot {doing} {name} in the state folder: {source}")]
    Io { doing: &'static str, name: &'static str, source: io::Error },
}

fn failed(doing: &'static str, name: &'static str) -> impl FnOnce(io::Error) -> KeyError {
    move |source| KeyError::Io { doing, name, source }
}

/// The folder that holds the log's key.
#[derive(Clone)]
pub struct LogKeys {
    storage: Arc<dyn Storage>,
}

impl fmt::Debug for LogKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogKeys").finish_non_exhaustive()
    }
}

impl LogKeys {
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// The key, if there is one.
    pub fn current(&self) -> Result<Option<SigningKey>, KeyError> {
        self.read(KEY_FILE)
    }

    /// The key; made if there is none.
    pub(super) fn current_or_new(&self) -> Result<SigningKey, KeyError> {
        match self.current()? {
            Some(key) => Ok(key),
            None => self.make(KEY_FILE),
        }
    }

    /// The key that a change of keys has made, if one was begun and not finished.
    pub(super) fn next(&self) -> Result<Option<SigningKey>, KeyError> {
        self.read(KEY_NEXT)
    }

    /// The same; made if there is none.
    pub(super) fn next_or_new(&self) -> Result<SigningKey, KeyError> {
        // One that was made before may be named in bytes that a failed write left on the disk.
        match self.next()? {
            Some(key) => Ok(key),
            None => self.make(KEY_NEXT),
        }
    }

    /// The next key is the log's now: the one before goes.
    pub(super) fn settle(&self) -> Result<(), KeyError> {
        self.storage.rename(KEY_NEXT, KEY_FILE).map_err(failed("rename", KEY_NEXT))?;
        self.storage.sync_folder().map_err(failed("sync the folder of", KEY_FILE))
    }

    /// Whether no key that is there is open to others. What is in the files is not looked at.
    pub(super) fn are_closed(&self) -> Result<(), KeyError> {
        [KEY_FILE, KEY_NEXT].into_iter().try_for_each(|name| self.is_there(name).map(drop))
    }

    fn is_there(&self, name: &'static str) -> Result<bool, KeyError> {
        match self.storage.exposure(name) {
            Ok(None) => Ok(true),
            Ok(Some(fault)) => Err(KeyError::Exposed { name, fault }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("look at", name)(error)),
        }
    }

    fn read(&self, name: &'static str) -> Result<Option<SigningKey>, KeyError> {
        if !self.is_there(name)? {
            return Ok(None);
        }
        let bytes = self.storage.read(name).map_err(failed("read", name))?;
        let seed = <&[u8; KEY_LEN]>::try_from(&bytes[..]).map_err(|_| KeyError::Unusable { name })?;
        Ok(Some(SigningKey::from_seed(seed)))
    }

    /// Whole and on disk, or not at all.
    fn make(&self, name: &'static str) -> Result<SigningKey, KeyError> {
        // One of a process that died may have been made open to others.
        match self.storage.remove(KEY_MAKING) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", KEY_MAKING)(error));
            }
            _ => {}
        }
        let seed: [u8; KEY_LEN] = random::bytes();
        let mut file = self.storage.create(KEY_MAKING).map_err(failed("create", name))?;
        file.append(&seed).and_then(|()| file.sync_data()).map_err(failed("write", name))?;
        self.storage.rename(KEY_MAKING, name).map_err(failed("name", name))?;
        self.storage.sync_folder().map_err(failed("sync the folder of", name))?;
        Ok(SigningKey::from_seed(&seed))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::spool::Folder;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_refused_when_open_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let keys = LogKeys::new(Arc::new(Folder::open(dir.path()).unwrap()));
        assert!(keys.current().unwrap().is_none());
        let id = |key: &SigningKey| key.verifying("t").unwrap();
        let first = id(&keys.current_or_new().unwrap());
        assert_eq!(id(&keys.current_or_new().unwrap()), first);
        let path = dir.path().join(KEY_FILE);
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(), path.metadata().unwrap().len()), (0o600, 32));
        let next = id(&keys.next_or_new().unwrap());
        assert_eq!(id(&keys.next_or_new().unwrap()), next);
        keys.settle().unwrap();
        assert_eq!((id(&keys.current_or_new().unwrap()), mode()), (next, 0o600));
        assert!(keys.next().unwrap().is_none());

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = keys.current_or_new().unwrap_err().to_string();
        assert!(error.contains("log.key") && error.contains("0640") && error.contains("rotate"), "{error}");
        assert!(matches!(keys.are_closed(), Err(KeyError::Exposed { name: KEY_FILE, .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(keys.current(), Err(KeyError::Unusable { .. })));
        keys.are_closed().unwrap();
    }
}
