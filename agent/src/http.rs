//! The HTTP room: one exchange's request is read within limits, one upstream connection carries it on, and a
//! body of pieces goes back. It knows no policy and no spool; what may go upstream is the gate's to say.

mod body;
mod request;
mod upstream;

pub use body::{Body, BodyError, Pieces, ReaderGone, body_of_pieces, full};
pub use request::{Authority, ReadRequest, RequestError, read, strip_hop_by_hop};
pub use upstream::{Redial, Stream, Upstream, UpstreamFailure};
