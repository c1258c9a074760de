//! A connection whose framing is watched as it comes in: HTTP/1.1 goes through to the letter for as long as it can be read in one way
//! alone. From the first byte on at which two readers might part ways nothing more goes through, and what was wrong is kept for the
//! record.
//!
//! On a client's connection it also does what the parser behind it does not: it keeps a client's end to itself, for a while,
//! while an exchange goes on that half a connection is enough for, and tells the client what a server says before its answer
//! (1xx).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{HeaderMap, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use weir_core::http1::{Ambiguous, Asked, Framing};

use super::MAX_HEAD;

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
    /// Whether an exchange goes on that the client need not stay for: it may have said all that it will.
    lenient: bool,
    /// Whether its client knows of answers before the answer, as one of HTTP/1.0 does not.
    takes_interim: bool,
    /// What is to be told before the answer.
    told: Vec<u8>,
    /// Who reads; woken when the client's end counts, or something is to be told.
    reader: Option<Waker>,
}

/// What was wrong first, of several connections.
pub type First = Arc<OnceLock<Ambiguous>>;

/// A stream whose incoming bytes are watched.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    guard: Guard,
    ends: Ends,
    /// The client has said all that it will, and for how long that is kept.
    ended: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    /// Part of what was to be written was.
    within_a_write: bool,
    /// What is being told before the answer.
    telling: Vec<u8>,
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
        let (lenient, takes_interim, told, reader) = (false, false, Vec::new(), None);
        let state = State { framing, fault: None, first, lenient, takes_interim, told, reader };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Whether more came than could be read in one way alone.
    pub fn fault(&self) -> Option<Ambiguous> {
        self.state().fault
    }

    /// A request goes out, whose answer is to come.
    pub fn expect(&self, method: &http::Method) {
        self.state().framing.expect(Asked::by(method.as_str()));
    }

    /// What is wrong from now on is told here.
    pub(super) fn tell_faults_to(&self, first: First) {
        self.state().first = first;
    }

    /// From now on something else than HTTP is spoken.
    pub fn switch(&self) {
        self.state().framing.switch();
    }

    /// An exchange begins. If half a connection is enough for it, a client that has said all is still there for its answer, as servers have
    /// it; else it has left.
    pub(super) fn begin(&self, lenient: bool, version: Version) {
        let mut state = self.state();
        (state.lenient, state.takes_interim) = (lenient, version == Version::HTTP_11);
        state.told.clear();
    }

    /// The answer's head goes out next: from now on nothing is told before it.
    pub(super) fn answered(&self) {
        self.state().takes_interim = false;
    }

    /// The exchange is one that its client takes back by leaving, or is over.
    pub fn strict(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.lenient)
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
    }

    /// Tells the client what its server says before the answer. It asks for nothing, so of too much nothing is told.
    pub(super) fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.state();
        if !state.takes_interim {
            return;
        }
        let reason = status.canonical_reason().unwrap_or_default();
        let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        if state.told.len() + text.len() <= MAX_HEAD {
            state.told.append(&mut text);
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
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
    /// What a client sends. For so long it may wait with half a connection.
    pub fn requests(stream: S, patience: Duration) -> (Self, Guard) {
        Self::new(stream, Framing::of_requests(), Ends::Refused, First::default(), patience)
    }

    /// What a server sends; `first` is told of a fault.
    pub fn responses(stream: S, first: First) -> (Self, Guard) {
        Self::new(stream, Framing::of_responses(), Ends::Broken, first, Duration::ZERO)
    }

    fn new(stream: S, framing: Framing, ends: Ends, first: First, patience: Duration) -> (Self, Guard) {
        let guard = Guard::of(framing, first);
        let (ended, within_a_write, telling) = (None, false, Vec::new());
        (Self { stream, guard: guard.clone(), ends, ended, patience, within_a_write, telling }, guard)
    }

    /// Whether the client's end is to be kept for now; then whoever reads is woken when it is not.
    fn keeps_end(&mut self, context: &mut Context<'_>) -> bool {
        let Some(patience) = &mut self.ended else { return false };
        let mut state = self.guard.state();
        // In the middle of a message it always counts.
        let keeps = state.lenient && state.framing.is_between_messages();
        if keeps {
            state.reader = Some(context.waker().clone());
        }
        keeps && patience.as_mut().poll(context).is_pending()
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Writes what is to be told, if the bytes before it are whole.
    fn poll_tell(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.within_a_write {
            return Poll::Ready(Ok(()));
        }
        if self.telling.is_empty() {
            self.telling = std::mem::take(&mut self.guard.state().told);
        }
        while !self.telling.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.telling))?;
            self.telling.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &written {
            self.within_a_write = *written < all;
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.is_some() {
            return if self.keeps_end(context) { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        if self.guard.fault().is_none() {
            let before = buffer.filled().len();
            let room = buffer.remaining();
            if Pin::new(&mut self.stream).poll_read(context, buffer)?.is_pending() {
                self.guard.state().reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            let came = buffer.filled().get(before..).unwrap_or_default();
            if came.is_empty() && room > 0 {
                self.ended = Some(Box::pin(sleep(self.patience)));
                return if self.keeps_end(context) { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            let good = self.guard.feed(came);
            buffer.set_filled(before + good);
            if good > 0 {
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
        ready!(self.poll_tell(context))?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_tell(context))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(written, bytes.iter().map(|bytes| bytes.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_tell(context))?;
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
        let (mut guarded, guard) = Guarded::requests(far, Duration::ZERO);
        near.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\nHost: b\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        guarded.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\0\r\n\r\n");
        assert_eq!(guard.fault(), Some(Ambiguous::BareLf));
    }

    #[tokio::test]
    async fn what_is_told_late_does_not_get_into_the_answer() {
        let (mut near, far) = duplex(1024);
        let (mut guarded, guard) = Guarded::requests(far, Duration::ZERO);
        guard.begin(false, Version::HTTP_11);
        guard.tell(StatusCode::PROCESSING, &HeaderMap::new());
        guard.answered();
        guard.tell(StatusCode::EARLY_HINTS, &HeaderMap::new());
        guarded.write_all(b"the answer").await.unwrap();
        guarded.flush().await.unwrap();
        drop(guarded);
        let mut read = String::new();
        near.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "HTTP/1.1 102 Processing\r\n\r\nthe answer");
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
        let (mut guarded, guard) = Guarded::requests(far, Duration::ZERO);
        guard.switch();
        near.write_all(b"\x81\x05hello").await.unwrap();
        drop(near);
        let mut read = Vec::new();
        guarded.read_to_end(&mut read).await.unwrap();
        assert_eq!((read.as_slice(), guard.fault()), (&b"\x81\x05hello"[..], None));
    }
}
