//! Bodies that Weir sends: a whole one, or pieces from a task that is still reading them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use tokio::sync::mpsc;

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

/// The sending end of a body in pieces. Dropping it ends the body.
#[derive(Debug)]
pub struct Pieces(mpsc::Sender<Result<Frame<Bytes>, BodyError>>);

/// The reader has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderGone;

/// A body whose pieces another task sends.
pub fn body_of_pieces() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (Pieces(sender), BodyExt::boxed(Receiver(receiver)))
}

impl Pieces {
    /// Sends on one frame (data or trailers); waits while the reader is slow.
    pub async fn send(&self, frame: Frame<Bytes>) -> Result<(), ReaderGone> {
        self.0.send(Ok(frame)).await.map_err(|_| ReaderGone)
    }

    /// Sends a text.
    pub async fn text(&self, text: String) -> Result<(), ReaderGone> {
        self.send(Frame::data(text.into())).await
    }

    /// Sends a text unless the reader is slow, and never waits.
    pub fn offer(&self, text: String) {
        let _ = self.0.try_send(Ok(Frame::data(text.into())));
    }

    /// Breaks the body off.
    pub async fn break_off(self, reason: String) {
        let _ = self.0.send(Err(BodyError(reason))).await;
    }

    /// Resolves when the reader has gone.
    pub async fn reader_gone(&self) {
        self.0.closed().await;
    }
}

struct Receiver(mpsc::Receiver<Result<Frame<Bytes>, BodyError>>);

impl hyper::body::Body for Receiver {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context)
    }
}
