//! The admin socket: what a running agent says of itself, to root on this host alone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use weir_core::ids::Origin;

/// The most bytes of a status.
const MAX_STATUS: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after an accept that failed for lack of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running agent's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Hooks are attached, and listeners are up.
    pub ready: bool,
    pub pid: u32,
    pub origin: Origin,
    pub listen: ListenStatus,
    pub connects: ConnectStatus,
    pub calls: CallStatus,
    pub spool: SpoolStatus,
    pub ca: CaStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenStatus {
    pub v4: String,
    pub v6: String,
}

/// What became of the TCP connects of selected cgroups, as the kernel counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectStatus {
    pub redirected: u64,
    pub passed: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub failed: u64,
}

/// How recording fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallStatus {
    /// Calls between their intent and their outcome.
    pub open: u64,
    /// Calls that ended and whose outcome waits for the disk.
    pub owed_outcomes: u64,
    /// Events besides calls that could not be written since the start.
    pub lost_notes: u64,
    /// Why nothing can be written now, if nothing can: then every call is refused.
    pub fault: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub segments: u64,
    pub unshipped_events: u64,
    pub bytes: u64,
    pub set_aside_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    pub issuer: String,
    pub certificate: PathBuf,
    pub bundle: PathBuf,
}

/// Where the socket of a state folder is.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// Listens at `path`; only the agent's own user may connect. The spool's lock says that no other agent of this
/// state folder lives, so a socket that is there is a dead one's.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers each connection with the status, as one line of JSON.
pub async fn serve(
    listener: UnixListener,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
    ending: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.cancelled() => return,
        };
        let Ok((mut stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(mut line) = serde_json::to_vec(&status()) else { continue };
        line.push(b'\n');
        // One at a time: the line fits the socket's buffer.
        let _ = tokio::time::timeout(TIMEOUT, stream.write_all(&line)).await;
    }
}

/// Asks the agent of a state folder.
pub async fn ask(state_dir: &Path) -> io::Result<Status> {
    let ask = async {
        let stream = UnixStream::connect(socket(state_dir)).await?;
        let mut line = Vec::new();
        stream.take(MAX_STATUS).read_to_end(&mut line).await?;
        serde_json::from_slice(&line).map_err(io::Error::other)
    };
    tokio::time::timeout(TIMEOUT, ask).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
