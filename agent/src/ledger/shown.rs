//! By which key a log is signed, for whoever verifies it: the folder of a spool comes in, with or without an agent that
//! writes it, and what its last segment says goes out. It changes nothing there, and reads no private key.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use weir_core::evidence::TreeState;
use weir_core::evidence::key::VerifyingKey;
use weir_core::segment::{FrameKind, Reader};

use super::carry::Carry;
use crate::spool::last_segment;

/// How often a segment is looked for again that was sealed, shipped and removed meanwhile.
const TRIES: usize = 10;

/// What a verifier pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The epoch that is written.
    pub epoch: u32,
    /// The sequence number of its first event.
    pub first_seq: u64,
    /// Its key, under the log's name.
    pub key: VerifyingKey,
    /// By what statement the key before named this one, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
}

/// Why a log's key cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error("there is no log in {} yet: the agent makes it, and its key, when it starts", .0.display())]
    NoLog(PathBuf),
    #[error("the log in {} was written without a key: an agent of this version begins to sign it when it starts", .0.display())]
    NoKey(PathBuf),
    #[error("cannot read the log in {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// See the module.
pub fn shown(spool: &Path) -> Result<Shown, ShowError> {
    let failed = |source| ShowError::Io { path: spool.to_owned(), source };
    for _ in 0..TRIES {
        let last = match last_segment(spool) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            last => last.map_err(failed)?,
        };
        let path = last.ok_or_else(|| ShowError::NoLog(spool.to_owned()))?;
        match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            bytes => {
                return head(&bytes.map_err(failed)?).ok_or_else(|| ShowError::NoKey(spool.to_owned()));
            }
        }
    }
    Err(failed(io::Error::other("its segments are gone as soon as they are looked at")))
}

fn head(segment: &[u8]) -> Option<Shown> {
    let (mut tree, mut carry) = (None, None);
    for frame in Reader::new(segment).ok()?.map_while(Result::ok) {
        match frame.kind {
            FrameKind::Tree => tree = TreeState::read(frame.bytes).ok(),
            FrameKind::Carry => carry = Carry::read(frame.bytes).ok(),
            FrameKind::Event | FrameKind::Checkpoint => break,
        }
    }
    let (TreeState { epoch, first_seq, .. }, Carry { key, rotation, .. }) = (tree?, carry?);
    Some(Shown { epoch, first_seq, key: key?, rotation })
}
