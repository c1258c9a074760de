//! The unix socket: a path and the agents' users come in, connections go out.
//!
//! Its mode is 0600 when every agent's user can open it that way (root, or the collector's own user), else 0660
//! with the collector's group: then the agents' users belong in that group. Never is it open to all; who got
//! through is still judged by peer credentials.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A bound socket. Dropping it takes the file away.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the socket is: whoever has it owns the path.
    _lock: File,
}

/// Why there is no socket; the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another program listens at {path}; stop it, or name another [listen] socket", path = .0.display())]
    Taken(PathBuf),
    #[error("{path} is there and is no socket; move it away, or name another [listen] socket", path = .0.display())]
    NoSocket(PathBuf),
    #[error("cannot make the socket {path}: {source}; its folder must exist, and be this user's to write", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Socket {
    /// Binds the path. The file of a collector that is gone is replaced; a live one's never. Must be called within
    /// a runtime.
    pub fn bind(path: &Path, agent_uids: &[u32]) -> Result<Self, SocketError> {
        let fault = |source| SocketError::Io { path: path.to_owned(), source };
        let lock = lock(&beside(path, ".lock")).map_err(|error| match error {
            TryLockError::WouldBlock => SocketError::Taken(path.to_owned()),
            TryLockError::Error(source) => fault(source),
        })?;
        match std::fs::symlink_metadata(path) {
            Ok(about) if !about.file_type().is_socket() => {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            Ok(_) if Probe::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
        // Bound under another name, closed to others, and only then put in its place: at no moment is it open.
        let fresh = beside(path, ".new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(fault)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(mode(agent_uids))).map_err(fault)?;
        std::fs::rename(&fresh, path).map_err(fault)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket's file stays behind");
        }
    }
}

fn mode(agent_uids: &[u32]) -> u32 {
    let own = nix::unistd::geteuid().as_raw();
    if agent_uids.iter().all(|uid| *uid == 0 || *uid == own) { 0o600 } else { 0o660 }
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let first = Socket::bind(&path, &[0]).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path, &[0]), Err(SocketError::Taken(_))));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale file");
        drop(Socket::bind(&path, &[0]).unwrap());

        let foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path, &[0]), Err(SocketError::Taken(_))));
        drop(foreign);
    }

    #[tokio::test]
    async fn other_users_agents_come_in_by_the_group_and_nobody_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let _socket = Socket::bind(&path, &[0, 64_999]).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Socket::bind(file.path(), &[0]), Err(SocketError::NoSocket(_))));
        assert!(file.path().exists());
        let _ = std::fs::remove_file(beside(file.path(), ".lock"));
    }
}
