//! HTTP/1.1's framing, sans I/O: where a message's head ends, how long its body is, and where the next message
//! begins. All bytes of one direction of a connection come in, in any pieces; out goes the place of the first byte
//! at which two readers might part ways.
//!
//! This reads no more than that, and acts on nothing. Another parser acts on what is let through here; this one
//! sees to it that there is one way alone to frame it. So it must never let through what it has not understood,
//! normalise anything, or keep a byte of a body. Limits: [`MAX_HEAD`], [`MAX_FIELDS`], [`MAX_EXPECTED`].

mod ambiguous;
mod chunks;
mod fields;
mod line;

use std::collections::VecDeque;

pub use ambiguous::{Ambiguous, Fault};
pub use fields::belongs_into_head;

use chunks::Chunks;
use fields::{Fields, Framed};
use line::{StartLine, Started};

/// The most bytes of a message's head, and of its trailers.
pub const MAX_HEAD: usize = 32 << 10;
/// The most fields of a message's head, and of its trailers.
pub const MAX_FIELDS: usize = 100;
/// The most requests whose responses may be expected at a time.
pub const MAX_EXPECTED: usize = 64;
/// The longest body: lengths past a signed number's range are read in different ways.
pub const MAX_LENGTH: u64 = i64::MAX as u64;
/// The bytes of an empty line.
const EMPTY_LINE: usize = 2;

/// What a response answers, as far as its framing depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Head,
    Connect,
    Other,
}

impl Asked {
    /// By the request's method.
    pub fn by(method: &str) -> Self {
        match method {
            "HEAD" => Asked::Head,
            "CONNECT" => Asked::Connect,
            _ => Asked::Other,
        }
    }
}

/// One direction of one connection. See the module.
#[derive(Debug)]
pub struct Framing {
    side: Side,
    at: At,
}

#[derive(Debug)]
enum Side {
    Requests,
    /// With what was asked, the oldest first.
    Responses(VecDeque<Asked>),
}

/// What the next byte is part of.
#[derive(Debug)]
enum At {
    /// The first byte of a message, or an empty line before it.
    Between(Between),
    StartLine(StartLine),
    Fields(Message, Fields),
    /// So many bytes of a body are still to come.
    Length(Ending, u64),
    Chunks(Ending, Chunks),
    /// Anything, up to the connection's end.
    Opaque,
    /// Nothing but a protocol that both sides have changed to.
    Switching,
    Ambiguous(Ambiguous),
}

#[derive(Debug, Clone, Copy, Default)]
struct Between {
    /// Part of an empty line: RFC 9112, 2.2 has a server ignore one before a request.
    empty: Empty,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, Default)]
enum Empty {
    #[default]
    None,
    Cr,
    Line,
}

/// Whether a message is its connection's last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Ending {
    #[default]
    GoesOn,
    Last,
}

/// A message whose start line was read.
#[derive(Debug, Clone, Copy)]
struct Message {
    started: Started,
    /// The head's bytes so far.
    bytes: usize,
}

impl Framing {
    /// Of what a client sends.
    pub fn of_requests() -> Self {
        Self { side: Side::Requests, at: At::Between(Between::default()) }
    }

    /// Of what a server sends. Each request's method is to be told by [`Framing::expect`].
    pub fn of_responses() -> Self {
        Self { side: Side::Responses(VecDeque::new()), at: At::Between(Between::default()) }
    }

    /// A request goes to the server, whose response comes in its turn. One past [`MAX_EXPECTED`] is not expected.
    pub fn expect(&mut self, asked: Asked) {
        if let Side::Responses(expected) = &mut self.side
            && expected.len() < MAX_EXPECTED
        {
            expected.push_back(asked);
        }
    }

    /// Both sides have changed to another protocol: what comes from now on is not HTTP/1.1.
    pub fn switch(&mut self) {
        if !matches!(self.at, At::Ambiguous(_)) {
            self.at = At::Opaque;
        }
    }

    /// Whether nothing of a message is still to come: a connection that ends here has cut nothing off.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.at, At::Between(_) | At::Opaque | At::Switching)
    }

    /// Takes the next bytes. The bytes before a fault are good; nothing from the fault on may be handed on, now or
    /// later: from then on there is nothing but that fault.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut good = 0;
        while let Some(rest) = bytes.get(good..).filter(|rest| !rest.is_empty()) {
            match self.step(rest) {
                Ok(taken) => good += taken,
                Err(what) => {
                    self.at = At::Ambiguous(what);
                    return Err(Fault { good, what });
                }
            }
        }
        Ok(())
    }

    /// Takes some bytes, at least one of a piece that has any.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Ambiguous> {
        let Some(&byte) = bytes.first() else { return Ok(0) };
        match &mut self.at {
            At::Between(between) => {
                let between = *between;
                self.begin(between, byte)?;
                Ok(1)
            }
            At::StartLine(line) => {
                let taken = line.skip(bytes);
                if taken > 0 {
                    return Ok(taken);
                }
                if let Some(started) = line.step(byte)? {
                    let message = Message { started, bytes: line.bytes() };
                    self.at = At::Fields(message, Fields::of_head());
                }
                Ok(1)
            }
            At::Fields(message, fields) => {
                let taken = fields.skip(bytes).min(MAX_HEAD.saturating_sub(message.bytes)).max(1);
                message.bytes += taken;
                if message.bytes > MAX_HEAD {
                    return Err(Ambiguous::HeadTooLarge);
                }
                if taken == 1
                    && let Some(framed) = fields.step(byte)?
                {
                    let started = message.started;
                    self.at = self.body(started, &framed)?;
                }
                Ok(taken)
            }
            At::Length(ending, left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    self.at = At::Between(Between { empty: Empty::None, ending: *ending });
                }
                Ok(taken)
            }
            At::Chunks(ending, chunks) => {
                let (taken, is_over) = chunks.take(bytes)?;
                if is_over {
                    self.at = At::Between(Between { empty: Empty::None, ending: *ending });
                }
                Ok(taken)
            }
            At::Opaque => Ok(bytes.len()),
            At::Switching => Err(Ambiguous::BytesAfterConnect),
            At::Ambiguous(what) => Err(*what),
        }
    }

    /// The first byte of a message, or of the one empty line before it.
    fn begin(&mut self, between: Between, byte: u8) -> Result<(), Ambiguous> {
        let mut line = match (&self.side, between.empty) {
            (Side::Requests, Empty::None) if byte == b'\r' => {
                self.at = At::Between(Between { empty: Empty::Cr, ..between });
                return Ok(());
            }
            (Side::Requests, Empty::Cr) if byte == b'\n' => {
                self.at = At::Between(Between { empty: Empty::Line, ..between });
                return Ok(());
            }
            (Side::Requests, Empty::Cr) => return Err(Ambiguous::BareCr),
            _ if between.ending == Ending::Last => return Err(Ambiguous::BytesAfterClose),
            (Side::Requests, Empty::None) => StartLine::of_request(0),
            (Side::Requests, Empty::Line) => StartLine::of_request(EMPTY_LINE),
            (Side::Responses(expected), _) if expected.is_empty() => return Err(Ambiguous::Unasked),
            (Side::Responses(_), _) => StartLine::of_response(),
        };
        line.step(byte)?;
        self.at = At::StartLine(line);
        Ok(())
    }

    /// The head is whole: what follows it (RFC 9112, 6.3).
    fn body(&mut self, started: Started, framed: &Framed) -> Result<At, Ambiguous> {
        if framed.is_chunked && framed.length.is_some() {
            return Err(Ambiguous::LengthAndChunked);
        }
        let has_body = framed.is_chunked || framed.length.is_some_and(|length| length > 0);
        let asked = match &mut self.side {
            Side::Requests => return request_body(started, framed, has_body),
            Side::Responses(expected) if started.status == 101 || started.status >= 200 => {
                expected.pop_front()
            }
            Side::Responses(expected) => expected.front().copied(),
        };
        let is_chunked_in_old = framed.is_chunked && !started.is_http11;
        match (started.status, asked) {
            (101, _) if has_body => Err(Ambiguous::BodyWhereNone),
            (101, _) => Ok(At::Opaque),
            (100..200 | 204, _) if has_body => Err(Ambiguous::BodyWhereNone),
            (100..200, _) => Ok(At::Between(Between::default())),
            _ if is_chunked_in_old => Err(Ambiguous::ChunkedInHttp10),
            (204 | 304, _) | (_, Some(Asked::Head)) => Ok(between(ending(started, framed))),
            (200..300, Some(Asked::Connect)) if has_body => Err(Ambiguous::BodyWhereNone),
            (200..300, Some(Asked::Connect)) => Ok(At::Opaque),
            _ if framed.is_chunked => Ok(At::Chunks(ending(started, framed), Chunks::default())),
            _ => Ok(match framed.length {
                Some(0) => between(ending(started, framed)),
                Some(length) => At::Length(ending(started, framed), length),
                // It ends with the connection.
                None => At::Opaque,
            }),
        }
    }
}

fn request_body(started: Started, framed: &Framed, has_body: bool) -> Result<At, Ambiguous> {
    if framed.hosts > 1 {
        return Err(Ambiguous::TwoHosts);
    }
    if framed.is_chunked && !started.is_http11 {
        return Err(Ambiguous::ChunkedInHttp10);
    }
    if has_body && started.method.has_no_body() {
        return Err(Ambiguous::BodyWhereNone);
    }
    if started.method.is_connect() {
        return Ok(At::Switching);
    }
    let ending = ending(started, framed);
    Ok(match framed.length {
        _ if framed.is_chunked => At::Chunks(ending, Chunks::default()),
        None | Some(0) => between(ending),
        Some(length) => At::Length(ending, length),
    })
}

fn between(ending: Ending) -> At {
    At::Between(Between { empty: Empty::None, ending })
}

/// HTTP/1.1 goes on unless one says otherwise, and HTTP/1.0 only if one does.
fn ending(started: Started, framed: &Framed) -> Ending {
    match framed.close || !(started.is_http11 || framed.keep_alive) {
        true => Ending::Last,
        false => Ending::GoesOn,
    }
}

#[cfg(test)]
mod tests;
