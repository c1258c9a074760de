//! Bodies that Weir sends: a whole one, or pieces from whoever is still reading them: another task, or one that is done
//! where the body is read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::tasks::{Here, Tasks};

/// What goes back to a client, or on to a server.
pub type Body = BoxBody<Bytes, BodyError>;

/// How many pieces may wait for a slow reader; each has at most [`super::MAX_HEAD`] bytes.
const PIECES: usize = 4;

/// The body broke off: its reader sees a broken connection, never a short body that looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off: {0}")]
pub struct BodyError(pub String);

/// A body that is whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// The sending end of a body in pieces. The body is whole only once [`Pieces::end`] says so: dropping this, as the
/// end of a task does, breaks the body off.
#[derive(Debug)]
pub struct Pieces {
    to: mpsc::Sender<Piece>,
    /// Who sends is run by who reads.
    here: bool,
}

#[derive(Debug)]
enum Piece {
    Frame(Frame<Bytes>),
    Broken(String),
    End,
}

/// The reader has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderGone;

/// A body whose pieces another task sends.
pub fn body_of_pieces() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (Pieces { to: sender, here: false }, BodyExt::boxed(Receiver(receiver)))
}

/// A body whose pieces are made where it is read, one at a time. If its reader leaves, what makes them goes on as a task, and
/// sees that its reader has gone.
pub fn body_made_here<W>(tasks: &Tasks, make: impl FnOnce(Pieces) -> W) -> Body
where
    W: Future<Output = ()> + Send + 'static,
{
    let (sender, pieces) = mpsc::channel(PIECES);
    let making = tasks.here(make(Pieces { to: sender, here: true }));
    MadeHere { pieces, making }.boxed()
}

impl Pieces {
    /// Sends on one frame (data or trailers); waits while the reader is slow.
    pub async fn send(&self, frame: Frame<Bytes>) -> Result<(), ReaderGone> {
        self.to.send(Piece::Frame(frame)).await.map_err(|_| ReaderGone)?;
        if self.here {
            // The reader has it before anything else is done.
            pending_once().await;
        }
        Ok(())
    }

    /// Sends a text unless the reader is slow, and never waits.
    pub fn offer(&self, text: String) {
        let _ = self.to.try_send(Piece::Frame(Frame::data(text.into())));
    }

    /// Sends a last text, and ends the body.
    pub async fn end_with(self, text: String) {
        let _ = self.send(Frame::data(text.into())).await;
        self.end().await;
    }

    /// Ends the body: it is whole.
    pub async fn end(self) {
        let _ = self.to.send(Piece::End).await;
    }

    /// Breaks the body off.
    pub async fn break_off(self, reason: String) {
        let _ = self.to.send(Piece::Broken(reason)).await;
    }

    /// Resolves when the reader has gone.
    pub async fn reader_gone(&self) {
        self.to.closed().await;
    }
}

/// Lets whoever polls do something else first, without being woken for it: they poll again by themselves.
async fn pending_once() {
    let mut polled = false;
    std::future::poll_fn(
        |_| if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

/// See [`body_made_here`].
struct MadeHere {
    // Before what makes them, which then sees its reader gone.
    pieces: mpsc::Receiver<Piece>,
    making: Here<()>,
}

impl hyper::body::Body for MadeHere {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Nobody else sends, so nobody need be woken by what is sent.
        if let Ok(piece) = self.pieces.try_recv() {
            return Poll::Ready(piece.into_frame());
        }
        let over = Pin::new(&mut self.making).poll(context).is_ready();
        match self.pieces.try_recv() {
            Ok(piece) => Poll::Ready(piece.into_frame()),
            Err(_) if over => Poll::Ready(Piece::dropped().into_frame()),
            Err(_) => Poll::Pending,
        }
    }
}

impl Piece {
    /// What stands for all that never came.
    fn dropped() -> Self {
        Piece::Broken("its task was dropped".into())
    }

    fn into_frame(self) -> Option<Result<Frame<Bytes>, BodyError>> {
        match self {
            Piece::Frame(frame) => Some(Ok(frame)),
            Piece::End => None,
            Piece::Broken(reason) => Some(Err(BodyError(reason))),
        }
    }
}

struct Receiver(mpsc::Receiver<Piece>);

impl hyper::body::Body for Receiver {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context).map(|piece| piece.unwrap_or_else(Piece::dropped).into_frame())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_whole_only_when_its_maker_says_so() {
        let frame = || Frame::data(Bytes::from_static(b"abc"));
        let (pieces, body) = body_of_pieces();
        pieces.send(frame()).await.unwrap();
        pieces.end_with("d".into()).await;
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcd");
        let (pieces, body) = body_of_pieces();
        pieces.send(frame()).await.unwrap();
        drop(pieces);
        assert!(body.collect().await.is_err());
        let (pieces, body) = body_of_pieces();
        pieces.break_off("why".into()).await;
        assert!(body.collect().await.unwrap_err().to_string().ends_with("why"));
    }

    #[tokio::test]
    async fn a_slow_reader_holds_its_maker_up_and_a_gone_one_does_not() {
        let (pieces, body) = body_of_pieces();
        for _ in 0..PIECES * 2 {
            pieces.offer("x".into());
        }
        let sending = pieces.send(Frame::data(Bytes::new()));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), sending).await.is_err());
        drop(body);
        pieces.reader_gone().await;
        assert_eq!(pieces.send(Frame::data(Bytes::new())).await, Err(ReaderGone));
    }
}
