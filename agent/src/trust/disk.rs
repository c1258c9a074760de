//! The CA's folder: whole files in, whole files out, and one process at a time. It knows names, bytes and
//! modes, and nothing of certificates.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::TrustError;

/// How long to wait for another process that is at work in the folder.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// The most bytes of a certificate or key of our own.
const MAX_FILE: u64 = 64 << 10;

/// Who may read a file, or what is in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Everybody,
    Owner,
}

impl Audience {
    fn mode(self) -> u32 {
        match self {
            Audience::Everybody => 0o644,
            Audience::Owner => 0o600,
        }
    }

    fn folder_mode(self) -> u32 {
        match self {
            Audience::Everybody => 0o755,
            Audience::Owner => 0o700,
        }
    }
}

/// A folder whose lock is held for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
}

impl Folder {
    /// Makes the folder if it is absent, and takes its lock. One that others can write to is refused: they
    /// could put a CA of their own there.
    pub fn lock(path: &Path, audience: Audience) -> Result<Self, TrustError> {
        let fail = |action| move |source| TrustError::Storage { action, path: path.to_owned(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(audience.folder_mode())
            .create(path)
            .map_err(fail("create"))?;
        let handle = File::open(path).map_err(fail("open"))?;
        let mode = handle.metadata().map_err(fail("look at"))?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(TrustError::Exposed {
                path: path.to_owned(),
                fault: format!("mode {mode:04o} lets others write"),
                mend: "take that right away, and remove ca.pem and ca.key if anybody may have used it",
            });
        }
        if mode != audience.folder_mode() {
            // Also undoes the umask.
            handle
                .set_permissions(PermissionsExt::from_mode(audience.folder_mode()))
                .map_err(fail("set the mode of"))?;
        }
        wait_for_lock(&handle).map_err(fail("lock"))?;
        Ok(Self { path: path.to_owned(), handle })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The file's bytes, or `None` if there is no such file. One for the owner alone is refused when others
    /// may read it, or when it belongs to another user.
    pub fn read(&self, name: &str, audience: Audience) -> Result<Option<Vec<u8>>, TrustError> {
        let path = self.path(name);
        let fail = |source| TrustError::Storage { action: "read", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        if audience == Audience::Owner {
            let metadata = file.metadata().map_err(fail)?;
            refuse_exposed(&path, metadata.mode() & 0o7777, metadata.uid())?;
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(TrustError::Unusable { path, fault: format!("it is larger than {MAX_FILE} bytes") });
        }
        Ok(Some(bytes))
    }

    /// Puts `bytes` there as a whole: written aside, synced, renamed, and the folder synced.
    pub fn write(&self, name: &str, bytes: &[u8], audience: Audience) -> Result<(), TrustError> {
        let path = self.path(name);
        // The lock is held, so whatever has this name was left by a process that died.
        let aside = self.path(&format!(".{name}.new"));
        let written = remove_if_present(&aside)
            .and_then(|()| write_synced(&aside, bytes, audience.mode()))
            .and_then(|()| std::fs::rename(&aside, &path))
            .and_then(|()| self.handle.sync_all());
        written.map_err(|source| TrustError::Storage { action: "write", path, source })
    }
}

fn wait_for_lock(handle: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(ErrorKind::TimedOut, "another process has held it for 10 s"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn refuse_exposed(path: &Path, mode: u32, uid: u32) -> Result<(), TrustError> {
    let exposed = |fault, mend| Err(TrustError::Exposed { path: path.to_owned(), fault, mend });
    if mode & 0o077 != 0 {
        return exposed(
            format!("mode {mode:04o}"),
            "set mode 0600, and remove ca.pem and ca.key for a new CA if anybody may have read the key",
        );
    }
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return exposed(
            format!("it belongs to uid {uid}"),
            "remove ca.pem and ca.key for a new CA, since that user may have read the key",
        );
    }
    Ok(())
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Never wider than it will be, from its first moment on; then exactly that, whatever the umask.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(PermissionsExt::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}
