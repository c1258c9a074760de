//! What comes over one stream behind its head: data, whose room is given back as they are read, then trailers, of which none may belong
//! into a head. Dropped before its end, the
//! stream is reset by `h2`, as soon as nobody else has it either.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HeaderMap};
use hyper::body::{Frame, SizeHint};
use weir_core::http1::{Ambiguous, belongs_into_head};

use crate::http::guarded::First;
use crate::http::interim::Interim;

/// A stream's body.
pub struct StreamBody {
    stream: RecvStream,
    /// What is left of the length that was told. The crate sees to it that it is kept.
    length: Option<u64>,
    only_trailers: bool,
    /// The client waits to be told that it may go on.
    waits: Option<Interim>,
    /// Told of trailers that are refused.
    first: First,
}

impl StreamBody {
    /// Of the message with these headers.
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap, waits: Option<Interim>, first: First) -> Self {
        let told = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = told.or_else(|| stream.is_end_stream().then_some(0));
        Self { stream, length, only_trailers: false, waits, first }
    }

    pub(in crate::http) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.only_trailers {
            let polled = self.stream.poll_data(context);
            // Who sends without waiting need not be told.
            if let Some(waits) = self.waits.take()
                && polled.is_pending()
            {
                waits.go_on();
            }
            if let Some(data) = ready!(polled) {
                return Poll::Ready(Some(data.map(|data| {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.length = self.length.map(|left| left.saturating_sub(data.len() as u64));
                    Frame::data(data)
                })));
            }
            self.only_trailers = true;
        }
        let trailers = ready!(self.stream.poll_trailers(context)?);
        if trailers.as_ref().is_some_and(|t| t.keys().any(|name| belongs_into_head(name.as_str().as_bytes())))
        {
            let _ = self.first.set(Ambiguous::BadTrailer);
            return Poll::Ready(Some(Err(Reason::PROTOCOL_ERROR.into())));
        }
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(in crate::http) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(in crate::http) fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
