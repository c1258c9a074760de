//! The envelope: a body comes in piece by piece, and goes out as it is, or as one event of a stream that its client has the
//! head of. It reads nothing of it.

use bytes::Bytes;
use hyper::body::Frame;

use super::Kind;

/// How an answer's bytes go on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Framing {
    /// To the letter.
    AsIs,
    /// As events: the client has been given the head of an event stream already.
    AsEvents,
}

/// Wraps a JSON body into one event, piece by piece.
pub(super) struct Envelope {
    wraps: bool,
    begun: bool,
}

impl Envelope {
    pub(super) fn new(framing: Framing, kind: &Kind) -> Self {
        Self { wraps: framing == Framing::AsEvents && !matches!(kind, Kind::Events(_)), begun: false }
    }

    pub(super) fn wrap(&mut self, frame: Frame<Bytes>) -> Vec<Frame<Bytes>> {
        if !self.wraps {
            return vec![frame];
        }
        let Ok(data) = frame.into_data() else { return Vec::new() };
        let mut out = Vec::with_capacity(data.len() + 32);
        if !std::mem::replace(&mut self.begun, true) {
            out.extend_from_slice(b"event: message\ndata: ");
        }
        for byte in data {
            match byte {
                b'\n' => out.extend_from_slice(b"\ndata: "),
                b'\r' => {}
                _ => out.push(byte),
            }
        }
        vec![Frame::data(out.into())]
    }

    pub(super) fn end(&self) -> Option<Frame<Bytes>> {
        (self.wraps && self.begun).then(|| Frame::data(Bytes::from_static(b"\n\n")))
    }
}
