//! The HTTP room, for HTTP/1.1 and HTTP/2 on either side: one exchange's request is read within limits, an upstream connection carries
//! it on, and a body of pieces goes back. It knows no policy and no spool; what may go upstream is the gate's to say.

mod body;
mod coding;
mod first;
mod guarded;
mod head;
mod http2;
mod idle;
mod interim;
mod outgoing;
mod received;
mod request;
mod serve;
mod shelf;
mod upstream;

pub use body::{Body, BodyError, Pieces, ReaderGone, body_made_here, body_of_pieces, full};
pub use coding::{Coding, CodingError, Decoder, only_known};
pub use first::First;
pub use guarded::Guard;
pub use head::{accepts, answer, claims_json, is_event_stream, takes_events};
pub use idle::AnswerBody;
pub use outgoing::Outgoing;
pub use received::{Broke, Received};
pub use request::{Authority, Patience, Read, ReadRequest, RequestError, StreamedRequest, Upgrade, read};
pub use serve::{MAX_STREAMS, Manners, Served, serve};
pub use shelf::{Proven, Shelf, ShelfKey, Shelves, Spare};
pub use upstream::{Beginning, Dialled, Redial, Stream, Upstream, UpstreamFailure};

/// The most bytes of a request's or an answer's head, and of what is read or written of a connection at a time.
pub const MAX_HEAD: usize = 32 << 10;
