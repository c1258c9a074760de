//! A body that the other side sends, over HTTP/1.1 or HTTP/2: of a client's request, or of a server's answer.
//!
//! Leaves: data as it comes, then the trailers. One that breaks off ends in an error, never as if it were whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use weir_core::http1::Ambiguous;

use super::http2::StreamBody;

/// See the module.
pub enum Received {
    /// There is none.
    Nothing,
    Http1(Incoming),
    Http2(StreamBody),
}

/// The other side broke off, or what it sent is not HTTP.
#[derive(Debug, thiserror::Error)]
pub enum Broke {
    #[error("{0}")]
    Http1(#[from] hyper::Error),
    #[error("{}", said(.0))]
    Http2(#[from] h2::Error),
    /// What came was refused.
    #[error("{}: {}", _0.label(), _0)]
    Ambiguous(#[from] Ambiguous),
}

/// Without what a peer says of it in its own words, which is a payload.
fn said(error: &h2::Error) -> String {
    let what = if error.is_go_away() { "connection" } else { "stream" };
    match error.reason() {
        Some(reason) if error.is_remote() => format!("the {what} was ended by its peer: {reason}"),
        Some(reason) => format!("the {what} was ended: {reason}"),
        None => error.to_string(),
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Broke;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broke>>> {
        match self.get_mut() {
            Received::Nothing => Poll::Ready(None),
            Received::Http1(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| Ok(frame?)))
            }
            Received::Http2(body) => body.poll_frame(context).map(|frame| frame.map(|frame| Ok(frame?))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Received::Nothing => true,
            Received::Http1(body) => body.is_end_stream(),
            Received::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Received::Nothing => SizeHint::with_exact(0),
            Received::Http1(body) => body.size_hint(),
            Received::Http2(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes are a payload.
        f.write_str(match self {
            Received::Nothing => "Received::Nothing",
            Received::Http1(_) => "Received::Http1",
            Received::Http2(_) => "Received::Http2",
        })
    }
}
