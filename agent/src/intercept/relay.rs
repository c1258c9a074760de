//! Streams that are watched as they pass: bytes are counted, and the first ones looked at, never changed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::tls::{Sniffed, Sniffer};

/// What a watched stream carried so far.
#[derive(Debug, Default)]
pub struct Watched {
    up: AtomicU64,
    down: AtomicU64,
    sni: Mutex<Option<String>>,
}

impl Watched {
    /// Bytes from the client.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Bytes to the client.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// The name in the ClientHello that passed, if one did.
    pub fn sni(&self) -> Option<String> {
        self.sni.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The client's side of a flow.
#[derive(Debug)]
pub struct Watch<S> {
    stream: S,
    watched: Arc<Watched>,
    sniffer: Option<Sniffer>,
}

impl<S> Watch<S> {
    /// Counts bytes.
    pub fn counting(stream: S, watched: Arc<Watched>) -> Self {
        Self { stream, watched, sniffer: None }
    }

    /// Counts bytes, and looks for a ClientHello in the first ones.
    pub fn sniffing(stream: S, watched: Arc<Watched>) -> Self {
        Self { stream, watched, sniffer: Some(Sniffer::default()) }
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.watched.up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let Some(sniffer) = &mut self.sniffer else { return };
        match sniffer.push(bytes) {
            Sniffed::NeedMore => return,
            Sniffed::Tls(hello) => {
                let sni = hello.sni.map(|name| name.as_ref().to_owned());
                *self.watched.sni.lock().unwrap_or_else(PoisonError::into_inner) = sni;
            }
            Sniffed::Http(_) | Sniffed::Other(_) => {}
        }
        self.sniffer = None;
    }
}

/// Passes bytes both ways until both sides have closed.
pub async fn relay<A, B>(mut client: A, mut server: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

impl<S: AsyncRead + Unpin> AsyncRead for Watch<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(bytes) = buffer.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            self.saw(bytes);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watch<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.watched.down.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.watched.down.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
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
