//! HTTP/2 on either side, as the crate `h2` has it: frames, header compression, flow control and the limits against floods are that
//! crate's; which requests and answers go over its streams is this room's.
//!
//! Enters: a connection, and messages with bodies. Leaves: the same, over streams. Must never: send what concerns one connection of
//! HTTP/1.1 alone, keep more of a body than a stream's window, or let a stream that its peer reset go on.

mod client;
mod pump;
mod refusals;
mod server;
mod stream;

pub(super) use client::{Http2, Unsent};
pub(super) use server::{Accepting, Asked, answer};
pub(super) use stream::StreamBody;

use std::error::Error;

use h2::Reason;
use weir_core::http1::Ambiguous;

/// How many bytes of one stream may be on their way unread, and of all of a connection's.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// The most bytes of a frame that is sent to us.
const MAX_FRAME: u32 = 16 << 10;
/// So many streams of one connection may end by its peer's faults before the connection does.
const MAX_FAULTS: usize = 1024;

/// What a stream is reset with: what another stream was that it depends on, if that is known.
fn reason_of(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return match reason {
                // Nothing is what it does not say: there is no answer. And a fault in what was said over the one connection is none in
                // what was said over the other.
                Reason::NO_ERROR | Reason::PROTOCOL_ERROR => Reason::INTERNAL_ERROR,
                reason => reason,
            };
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

/// Whether the other side was thrown out for sending more of what costs it nothing than anybody needs.
pub(super) fn is_flood(error: &h2::Error) -> bool {
    error.is_library() && error.is_go_away() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
}

/// What the other side sent that `h2` refused, if that is why there is an error.
fn refused(error: &h2::Error) -> Option<Ambiguous> {
    let reason = error.reason().filter(|_| error.is_library())?;
    refusals::refused(error.is_go_away(), reason)
}
