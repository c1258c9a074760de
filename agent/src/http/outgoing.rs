//! What goes upstream as a request's body: whole, or as it comes from the client. One that streams was judged by its
//! first bytes; if they come late, they are judged when they do, and a body that turns out to be JSON breaks off.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::body::BodyError;
use super::first::{First, Start};
use super::received::Received;

/// A request's body on its way to the server.
pub enum Outgoing {
    /// All of it, and the trailers behind it.
    Whole { data: Option<Bytes>, trailers: Option<Box<HeaderMap>> },
    /// As it comes.
    Streamed(Box<Streamed>),
}

/// See [`Outgoing::Streamed`].
pub struct Streamed {
    /// What was read of it already.
    seen: Option<Bytes>,
    rest: Received,
    /// Judges what comes, until it is certain.
    start: Option<Start>,
    pause: Duration,
    patience: Pin<Box<Sleep>>,
}

impl Outgoing {
    pub fn whole(data: Bytes) -> Self {
        Self::Whole { data: Some(data).filter(|data| !data.is_empty()), trailers: None }
    }

    pub(super) fn streamed(seen: Bytes, rest: Received, start: Option<Start>, pause: Duration) -> Self {
        let patience = Box::pin(sleep(pause));
        let seen = Some(seen).filter(|seen| !seen.is_empty());
        Self::Streamed(Box::new(Streamed { seen, rest, start, pause, patience }))
    }
}

impl Streamed {
    /// Whether the bytes may go on; once that is certain for all that follow, nothing is looked at any more.
    fn judge(&mut self, data: &Bytes) -> Result<(), BodyError> {
        let Some(start) = &mut self.start else { return Ok(()) };
        match start.push(data) {
            Ok(First::Unknown) => Ok(()),
            Ok(First::Other) => {
                self.start = None;
                Ok(())
            }
            Ok(First::Json) => {
                Err(BodyError("it turned out to be JSON, which is read whole or not at all".into()))
            }
            Err(error) => Err(BodyError(error.to_string())),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(seen) = self.seen.take() {
            return Poll::Ready(Some(Ok(Frame::data(seen))));
        }
        let frame = match Pin::new(&mut self.rest).poll_frame(context) {
            Poll::Pending => {
                ready!(self.patience.as_mut().poll(context));
                let late = format!("the client's next bytes did not come within {:?}", self.pause);
                return Poll::Ready(Some(Err(BodyError(late))));
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(BodyError(error.to_string())))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        self.patience.as_mut().reset(Instant::now() + self.pause);
        let judged = frame.data_ref().map_or(Ok(()), |data| self.judge(data));
        Poll::Ready(Some(judged.map(|()| frame)))
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Outgoing::Whole { data, trailers } => Poll::Ready(match data.take() {
                Some(data) => Some(Ok(Frame::data(data))),
                None => trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))),
            }),
            Outgoing::Streamed(streamed) => streamed.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole { data, trailers } => data.is_none() && trailers.is_none(),
            Outgoing::Streamed(streamed) => streamed.seen.is_none() && streamed.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole { data, trailers: None } => {
                SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64)
            }
            Outgoing::Whole { .. } => SizeHint::default(),
            Outgoing::Streamed(streamed) => {
                let seen = streamed.seen.as_ref().map_or(0, Bytes::len) as u64;
                match streamed.rest.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(seen + rest),
                    None => SizeHint::default(),
                }
            }
        }
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes are a payload.
        f.write_str(match self {
            Outgoing::Whole { .. } => "Outgoing::Whole",
            Outgoing::Streamed(_) => "Outgoing::Streamed",
        })
    }
}
