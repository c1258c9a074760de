//! A connection whose framing is watched as it comes in: HTTP/1.1 goes through to the letter for as long as it can be read in one way
//! alone. From the first byte on at which two readers might part ways nothing more goes through, and what was wrong is kept for the
//! record.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weir_core::http1::{Ambiguous, Asked, Framing};

/// What a client's ambiguous head ends in for the parser that acts: it answers 400 to this, and closes.
const NO_HTTP: &[u8] = b"\0\r\n\r\n";

/// What is known of one direction's framing. Clones share it.
#[derive(Debug, Clone)]
pub struct Guard(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    framing: Framing,
    fault: Option<Ambiguous>,
    first: First,
}

/// What was wrong first, of several connections.
pub type First = Arc<OnceLock<Ambiguous>>;

/// A stream whose incoming bytes are watched.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    guard: Guard,
    ends: Ends,
}

/// How an ambiguous connection ends for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// With what is no HTTP, which a client is told...
    Refused,
    /// ... and then.
    Over,
    /// With an error.
    Broken,
}

impl Guard {
    fn of(framing: Framing, first: First) -> Self {
        Self(Arc::new(Mutex::new(State { framing, fault: None, first })))
    }

    /// Whether more came than could be read in one way alone.
    pub fn fault(&self) -> Option<Ambiguous> {
        self.state().fault
    }

    /// A request goes out, whose answer is to come.
    pub fn expect(&self, method: &http::Method) {
        self.state().framing.expect(Asked::by(method.as_str()));
    }

    /// From now on something else than HTTP is spoken.
    pub fn switch(&self) {
        self.state().framing.switch();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of the bytes may go on.
    fn feed(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        match state.framing.feed(bytes) {
            Ok(()) => bytes.len(),
            Err(fault) => {
                state.fault = Some(fault.what);
                let _ = state.first.set(fault.what);
                fault.good
            }
        }
    }
}

impl<S> Guarded<S> {
    /// What a client sends.
    pub fn requests(stream: S) -> (Self, Guard) {
        Self::new(stream, Framing::of_requests(), Ends::Refused, First::default())
    }

    /// What a server sends; `first` is told of a fault.
    pub fn responses(stream: S, first: First) -> (Self, Guard) {
        Self::new(stream, Framing::of_responses(), Ends::Broken, first)
    }

    fn new(stream: S, framing: Framing, ends: Ends, first: First) -> (Self, Guard) {
        let guard = Guard::of(framing, first);
        (Self { stream, guard: guard.clone(), ends }, guard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.guard.fault().is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            let came = buffer.filled().get(before..).unwrap_or_default();
            let good = self.guard.feed(came);
            let all = came.len();
            buffer.set_filled(before + good);
            if good > 0 || all == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        match self.ends {
            Ends::Refused => {
                buffer.put_slice(NO_HTTP.get(..NO_HTTP.len().min(buffer.remaining())).unwrap_or_default());
                self.ends = Ends::Over;
                Poll::Ready(Ok(()))
            }
            Ends::Over => Poll::Ready(Ok(())),
            Ends::Broken => {
                let what = self.guard.fault().map_or_else(String::new, |what| what.to_string());
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn nothing_goes_through_from_the_fault_on() {
        let (mut near, far) = duplex(1024);
        let (mut guarded, guard) = Guarded::requests(far);
        near.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\nHost: b\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        guarded.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\0\r\n\r\n");
        assert_eq!(guard.fault(), Some(Ambiguous::BareLf));
    }

    #[tokio::test]
    async fn an_ambiguous_answer_is_an_error_and_another_protocol_is_not() {
        let (mut near, far) = duplex(1024);
        let first = First::default();
        let (mut guarded, guard) = Guarded::responses(far, first.clone());
        guard.expect(&http::Method::GET);
        near.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab").await.unwrap();
        let mut read = Vec::new();
        let error = guarded.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!read.ends_with(b"ab") && guard.fault() == Some(Ambiguous::LengthRepeated));
        assert_eq!(first.get(), Some(&Ambiguous::LengthRepeated));

        let (mut near, far) = duplex(1024);
        let (mut guarded, guard) = Guarded::requests(far);
        guard.switch();
        near.write_all(b"\x81\x05hello").await.unwrap();
        drop(near);
        let mut read = Vec::new();
        guarded.read_to_end(&mut read).await.unwrap();
        assert_eq!((read.as_slice(), guard.fault()), (&b"\x81\x05hello"[..], None));
    }
}
