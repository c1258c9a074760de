//! Messages of JSON, each behind its length, with open files beside them (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of a message: a list of all segments of a spool.
const MAX_MESSAGE: usize = 64 << 20;
/// The most files that the kernel passes with one message.
pub(super) const MAX_FILES: usize = 253;

pub(super) fn send(to: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE || files.len() > MAX_FILES {
        return Err(io::Error::other("a message longer than any may be"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    for (to, from) in bytes.iter_mut().zip(length.to_le_bytes()) {
        *to = from;
    }
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut room);
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("more files than can be passed"));
    }
    // The files go with the first bytes.
    let sent = sendmsg(to, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    (&*to).write_all(bytes.get(sent..).unwrap_or_default())
}

pub(super) fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut length)], &mut beside, flags)?.bytes;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    (&*from).read_exact(length.get_mut(received..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message longer than any may be"));
    }
    let mut bytes = vec![0; length];
    (&*from).read_exact(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn files_arrive_with_their_message_and_work() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut one, other) = UnixStream::pair().unwrap();
        send(&here, &"first", &[other.as_fd(), other.as_fd()]).unwrap();
        send(&here, &"second", &[]).unwrap();
        drop((other, here));
        let (text, files): (String, _) = receive(&there).unwrap();
        assert_eq!((text.as_str(), files.len()), ("first", 2));
        let mut passed = UnixStream::from(files.into_iter().next().unwrap());
        passed.write_all(b"through").unwrap();
        let mut read = [0; 7];
        one.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through");
        assert_eq!(receive::<String>(&there).unwrap().0, "second");
        assert_eq!(receive::<String>(&there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
