//! A stream whose first bytes were looked at: they come again before the rest. For the handshake that follows
//! a look, and for a relay that passes them on untouched.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::sniff::{Sniffed, Sniffer, Unreadable};

/// Bytes read at a time while looking; a usual ClientHello comes whole.
const READ: usize = 4096;

/// Reads from `stream` until it is certain what it begins with, for no longer than `within`. Never answers
/// [`Sniffed::NeedMore`]. An error is the stream's own.
pub async fn sniff<S: AsyncRead + Unpin>(
    mut stream: S,
    within: Duration,
) -> io::Result<(Sniffed, Replayed<S>)> {
    let deadline = Instant::now() + within;
    let mut sniffer = Sniffer::default();
    let mut buffer = [0_u8; READ];
    let sniffed = loop {
        let read = match timeout_at(deadline, stream.read(&mut buffer)).await {
            Err(_) => break Sniffed::Other(Unreadable::Silent),
            Ok(Ok(0)) => break Sniffed::Other(Unreadable::Ended),
            Ok(read) => read?,
        };
        match sniffer.push(buffer.get(..read).unwrap_or_default()) {
            Sniffed::NeedMore => {}
            certain => break certain,
        }
    };
    Ok((sniffed, Replayed::new(sniffer.into_bytes(), stream)))
}

/// `stream`, with `seen` before it. Writing goes straight through.
pub struct Replayed<S> {
    seen: Bytes,
    stream: S,
}

impl<S> Replayed<S> {
    pub fn new(seen: impl Into<Bytes>, stream: S) -> Self {
        Self { seen: seen.into(), stream }
    }

    /// The stream below, which is past the bytes that were seen.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// What is still to be replayed, and the stream below.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.seen, self.stream)
    }
}

impl<S> fmt::Debug for Replayed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes are a payload.
        f.debug_struct("Replayed").field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let length = self.seen.len().min(into.remaining());
        into.put_slice(&self.seen[..length]);
        self.seen.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
