//! What `h2` refuses by itself, told from what it writes: a stream that it resets, or a connection that it ends, because what came is not
//! HTTP/2. Such a message is handed to nobody here, and nothing else says that it was there. Weir itself gives no such reason
//! ([`super::reason_of`]).
//!
//! Enters: a connection. Leaves: the same bytes both ways, and of the first refusal what it was for. Must never: change a byte, keep more
//! than a frame's head, or let a connection's end overtake what is still to be said to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weir_core::http1::Ambiguous;

use crate::http::guarded::First;

/// What a client sends before its first frame (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// A frame's head: its length, kind, flags and stream (RFC 9113, 4.1).
const HEAD: usize = 9;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// So much of a frame is read: its head, and of a GOAWAY the last stream and the reason.
const MOST_READ: usize = HEAD + 8;

/// See the module.
pub struct Watched<S> {
    stream: S,
    written: Frames,
    first: First,
    /// How the other side ended, which is kept until what was heard before it is answered.
    ended: Option<io::Result<()>>,
}

impl<S> Watched<S> {
    /// A connection to a client.
    pub fn to_client(stream: S, first: First) -> Self {
        Self { stream, written: Frames::new(0), first, ended: None }
    }

    /// A connection to a server.
    pub fn to_server(stream: S, first: First) -> Self {
        Self { stream, written: Frames::new(PREFACE), first, ended: None }
    }

    fn wrote<'a>(&mut self, written: &io::Result<usize>, pieces: impl Iterator<Item = &'a [u8]>) {
        // What could not be written any more was refused all the same.
        let mut left = *written.as_ref().unwrap_or(&usize::MAX);
        for piece in pieces {
            let piece = piece.get(..left).unwrap_or(piece);
            left -= piece.len();
            if let Some(what) = self.written.feed(piece) {
                let _ = self.first.set(what);
            }
        }
    }
}

/// Why our side would have refused, by the reason that it gives for a stream or the connection.
pub(super) fn refused(is_whole_connection: bool, reason: Reason) -> Option<Ambiguous> {
    match (is_whole_connection, reason) {
        (false, Reason::PROTOCOL_ERROR) => Some(Ambiguous::Http2Malformed),
        (true, Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => {
            Some(Ambiguous::Http2Unreadable)
        }
        _ => None,
    }
}

/// The frames of one direction, of which only a few bytes each are read.
struct Frames {
    /// So many bytes come before the next head.
    skipped: usize,
    begun: [u8; MOST_READ],
    read: usize,
}

impl Frames {
    fn new(before: usize) -> Self {
        Self { skipped: before, begun: [0; MOST_READ], read: 0 }
    }

    /// Takes the next bytes, in any pieces; says what was refused first in them.
    fn feed(&mut self, mut bytes: &[u8]) -> Option<Ambiguous> {
        let mut first = None;
        loop {
            let skipped = self.skipped.min(bytes.len());
            self.skipped -= skipped;
            let Some((byte, rest)) = bytes.get(skipped..).and_then(<[u8]>::split_first) else { return first };
            bytes = rest;
            if let Some(place) = self.begun.get_mut(self.read) {
                *place = *byte;
            }
            self.read += 1;
            first = first.or(self.step());
        }
    }

    /// One byte more is there.
    fn step(&mut self) -> Option<Ambiguous> {
        let [high, middle, low, kind, ..] = self.begun;
        let payload = u32::from_be_bytes([0, high, middle, low]) as usize;
        let wanted = match kind {
            _ if self.read < HEAD => return None,
            RST_STREAM => 4,
            GOAWAY => 8,
            _ => 0,
        };
        let wanted = wanted.min(payload);
        if self.read < HEAD + wanted {
            return None;
        }
        (self.read, self.skipped) = (0, payload - wanted);
        let reason = self.begun.get(..HEAD + wanted)?.get(HEAD..)?.last_chunk().copied()?;
        refused(kind == GOAWAY, Reason::from(u32::from_be_bytes(reason)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ended) = &mut self.ended {
            return Poll::Ready(std::mem::replace(ended, Ok(())));
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if read.is_ok() && (buffer.filled().len() > before || room == 0) {
            return Poll::Ready(Ok(()));
        }
        // The crate answers what it has heard when nothing more is there to hear, and nothing at all once this is the end.
        self.ended = Some(read);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.wrote(&written, std::iter::once(bytes));
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, pieces));
        self.wrote(&written, pieces.iter().map(|piece| &**piece));
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn a_refusal_is_found_between_other_frames_in_any_pieces() {
        let ping = frame(6, &[0, 0, 0, 1, 0, 0, 0, 1]);
        // A payload that looks like a refusal's head is none.
        let data = frame(0, &frame(RST_STREAM, &[0, 0, 0, 1]));
        let good =
            [ping, data, frame(0, &[]), frame(RST_STREAM, &[0, 0, 0, 8]), frame(GOAWAY, &[0; 8])].concat();
        let goaway = frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 1, b'w', b'h', b'y']);
        for (bad, what) in [
            (frame(RST_STREAM, &[0, 0, 0, 1]), Ambiguous::Http2Malformed),
            (goaway, Ambiguous::Http2Unreadable),
        ] {
            let all = [vec![0xff; PREFACE], good.clone(), bad, good.clone()].concat();
            for size in 1..all.len() {
                let mut frames = Frames::new(PREFACE);
                let found: Vec<_> = all.chunks(size).filter_map(|piece| frames.feed(piece)).collect();
                assert_eq!(found, [what], "in pieces of {size}");
            }
            let mut frames = Frames::new(PREFACE);
            assert_eq!(frames.feed(&[vec![0; PREFACE], good.clone()].concat()), None);
        }
    }
}
