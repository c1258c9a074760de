//! Sends a body over a stream: no further ahead than the peer has room for and the connection buffers, and no longer than the peer wants
//! it. Room is asked for only with bytes in hand, so that a body which is slow keeps none from the others.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Body;

use super::reason_of;
use crate::http::head::one_connections_alone;
use crate::http::received::Broke;

/// Resolves when the body is sent, or nobody wants it.
pub(super) struct Pump<B> {
    to: SendStream<Bytes>,
    body: B,
    /// What waits for room, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl<B> Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
{
    pub fn new(to: SendStream<Bytes>, body: B) -> Self {
        Self { to, body, waiting: None }
    }

    /// Sends what can be sent now; nothing is left of a body that is all sent. Then nobody is woken for it any more, such as by the room
    /// that there is again when it is on its way.
    pub fn begun(mut self) -> Option<Self> {
        let sent = Pin::new(&mut self).poll(&mut Context::from_waker(Waker::noop()));
        sent.is_pending().then_some(self)
    }

    /// Sends what can be sent now.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if let Poll::Ready(reset) = self.to.poll_reset(context) {
                return Poll::Ready(reset.and_then(|reason| Err(reason.into())));
            }
            if self.waiting.is_some() {
                ready!(self.poll_room(context))?;
            }
            if let Some((data, is_last)) = self.waiting.take() {
                let sent = self.to.send_data(data, is_last);
                if sent.is_err() || is_last {
                    return Poll::Ready(self.sent(sent));
                }
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => {
                    let ended = self.to.send_data(Bytes::new(), true);
                    return Poll::Ready(self.sent(ended));
                }
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.to.send_reset(reason_of(&error));
                    return Poll::Ready(Ok(()));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        // The crate asks for the rest itself, once it has the bytes.
                        self.to.reserve_capacity(1);
                    }
                    self.waiting = Some((data, self.body.is_end_stream()));
                }
                Err(frame) => {
                    let Ok(mut trailers) = frame.into_trailers() else { continue };
                    one_connections_alone(&mut trailers, false);
                    self.to.reserve_capacity(0);
                    let ended = self.to.send_trailers(trailers);
                    return Poll::Ready(self.sent(ended));
                }
            }
        }
    }

    /// What could not be sent must not be waited for.
    fn sent(&mut self, sent: Result<(), h2::Error>) -> Result<(), h2::Error> {
        sent.inspect_err(|_| self.to.send_reset(Reason::INTERNAL_ERROR))
    }

    /// Resolves when what waits may be sent.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if self.waiting.as_ref().is_none_or(|(data, _)| data.is_empty()) {
            return Poll::Ready(Ok(()));
        }
        while self.to.capacity() == 0 {
            match ready!(self.to.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                // It is no longer one that anything can be sent over.
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<B> Future for Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll_send(context).map(|sent| {
            if let Err(error) = sent {
                tracing::debug!(error = %Broke::from(error), "a body was not sent to its end");
            }
        })
    }
}
