//! The HTTP room: one exchange's request is read within limits, one upstream connection carries it on, and a
//! body of pieces goes back. It knows no policy and no spool; what may go upstream is the gate's to say.

mod body;
mod head;
mod request;
mod serve;
mod upstream;

pub use body::{Body, BodyError, Pieces, ReaderGone, body_of_pieces, full};
pub use head::{answer, claims_json, content_coding, is_event_stream};
pub use request::{Authority, Patience, ReadRequest, RequestError, read};
pub use serve::{Served, serve};
pub use upstream::{Redial, Stream, Upstream, UpstreamFailure};

/// The most bytes of a request's or an answer's head, and of what is read or written of a connection at a time.
pub const MAX_HEAD: usize = 32 << 10;
