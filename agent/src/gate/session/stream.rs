//! The way into an event stream that a server has open to its client: events of Weir's own go between the server's.

use tokio::sync::{mpsc, oneshot};

/// The most events that wait for their place in one stream; who has more waits.
const QUEUE: usize = 16;

/// Puts events into a stream. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct StreamWriter(mpsc::Sender<Injected>);

/// The stream is over: nothing can be said on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's event stream is over")]
pub struct StreamGone;

/// An event on its way into a stream.
#[derive(Debug)]
pub struct Injected {
    /// Whole events, as bytes of the stream.
    pub text: String,
    pub done: oneshot::Sender<()>,
}

/// Both ends of a stream's way in.
pub(in crate::gate) fn stream() -> (StreamWriter, mpsc::Receiver<Injected>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (StreamWriter(sender), receiver)
}

impl StreamWriter {
    /// Says whole events (`sse::message`) as soon as the server is between two of its own; resolves when they are on
    /// their way to the client.
    pub async fn say(&self, text: String) -> Result<(), StreamGone> {
        let (done, said) = oneshot::channel();
        self.0.send(Injected { text, done }).await.map_err(|_| StreamGone)?;
        said.await.map_err(|_| StreamGone)
    }

    /// Says whole events unless others wait for their place, and never waits.
    pub fn offer(&self, text: String) {
        let (done, _) = oneshot::channel();
        let _ = self.0.try_send(Injected { text, done });
    }

    /// Resolves when the stream is over.
    pub async fn gone(&self) {
        self.0.closed().await;
    }

    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }
}
