//! What two agents of one log say to each other while the old one finishes its calls: the old one what is to be
//! written, the new one what became of it. Messages of JSON, each behind its length, come in and go out over a socket.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir_core::segment::MAX_FRAME;

/// The most bytes of a message: one event, and what is around it.
const MAX_MESSAGE: usize = MAX_FRAME + 4096;

/// Said by the agent that gave the log away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Say<B> {
    /// To be written.
    Put {
        id: u64,
        /// Nobody waits for it: should it be lost, the log must say so.
        note: bool,
        body: B,
    },
    /// Nothing more comes until [`Reply::GoOn`].
    Silent,
    /// Nothing more comes at all: every call has its outcome.
    Left,
}

/// Said by the agent that writes the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Written {
        id: u64,
        seq: u64,
    },
    Refused {
        id: u64,
        why: String,
    },
    /// The log is about to be handed on.
    BeSilent,
    GoOn,
}

pub(super) fn write(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message longer than any may be"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    for (to, from) in bytes.iter_mut().zip(length.to_le_bytes()) {
        *to = from;
    }
    to.write_all(&bytes)
}

/// None at the end; the end within a message is an error. Never reads beyond a message.
pub(super) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read(&mut length)? {
        0 => return Ok(None),
        read => from.read_exact(length.get_mut(read..).unwrap_or_default())?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message longer than any may be"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_one_by_one_and_a_torn_one_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Reply::Written { id: 1, seq: 2 }).unwrap();
        let whole = bytes.len();
        write(&mut bytes, &Reply::BeSilent).unwrap();
        let mut from = &bytes[..];
        assert!(matches!(read(&mut from), Ok(Some(Reply::Written { id: 1, seq: 2 }))));
        assert_eq!(from.len(), bytes.len() - whole);
        assert!(matches!(read(&mut from), Ok(Some(Reply::BeSilent))));
        assert!(matches!(read::<Reply>(from), Ok(None)));
        for cut in whole + 1..bytes.len() {
            assert!(read::<Reply>(&bytes[whole..cut]).is_err(), "{cut}");
        }
        assert!(read::<Reply>(&[0xff; 8][..]).is_err());
    }
}
