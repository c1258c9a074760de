//! The way back: a server's answer is passed on as it comes, and read on the side. Each message in it is
//! recorded, and the answer to a call closes the call's record.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body as _, Frame, Incoming};
use weir_core::mcp::jsonrpc::{Body as Messages, Message};
use weir_core::mcp::sse;
use weir_core::record::{CallResult, Direction, MessageLabel};

use super::call::WaitingCall;
use super::rewrite::Rewriting;
use super::{Flow, Gate};
use crate::http::{self as room, Body, Decoder, Pieces, body_of_pieces, claims_json, is_event_stream};
use crate::share::Kept;

/// How an answer's bytes go on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// To the letter.
    AsIs,
    /// As events: the client has been given the head of an event stream already.
    AsEvents,
}

impl Gate {
    /// Answers the client with the server's head, and with its body as it comes.
    pub(super) fn carry_back(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        answer: Response<Incoming>,
        calls: Vec<WaitingCall>,
    ) -> Response<Body> {
        let (mut head, body) = answer.into_parts();
        let (pieces, client_body) = body_of_pieces();
        let reading = Reading::new(self.clone(), flow.clone(), head.status.as_u16(), &head.headers, calls);
        reading.rewriting.head(&mut head.headers);
        self.tasks.spawn(reading.carry(body, pieces, Framing::AsIs));
        room::answer(&mut head);
        Response::from_parts(head, client_body)
    }
}

/// How a body is read.
enum Kind {
    Events(sse::Parser),
    /// Whole, up to the limit of one message.
    Whole(Vec<u8>),
    /// Not at all; why.
    Unread(&'static str),
}

/// One answer being read.
pub(super) struct Reading {
    gate: Arc<Gate>,
    flow: Arc<Flow>,
    status: u16,
    kind: Kind,
    /// Of a body that is encoded: it is read decoded, and passed on as it came.
    decoder: Option<Decoder>,
    /// Bytes of the body so far, decoded.
    bytes: usize,
    kept: Kept,
    calls: Vec<WaitingCall>,
    /// What of it the client gets.
    pub rewriting: Rewriting,
}

impl Reading {
    pub fn new(
        gate: Arc<Gate>,
        flow: Arc<Flow>,
        status: u16,
        headers: &HeaderMap,
        calls: Vec<WaitingCall>,
    ) -> Self {
        let decoder = Decoder::of(headers);
        let kind = if decoder.is_err() {
            Kind::Unread("in a content encoding that was not asked for")
        } else if is_event_stream(headers) {
            Kind::Events(sse::Parser::new(gate.limits.message))
        } else if calls.is_empty() && !claims_json(headers) {
            Kind::Unread("no MCP")
        } else {
            Kind::Whole(Vec::new())
        };
        let kept = flow.share.keep();
        let rewriting = gate.rewriting(&flow, status, headers, &calls);
        let decoder = decoder.unwrap_or_default();
        Self { rewriting, gate, flow, status, kind, decoder, bytes: 0, kept, calls }
    }

    /// Passes on each frame, reads it, and closes the calls. Ends when the body or the client does.
    pub async fn carry(mut self, mut body: Incoming, pieces: Pieces, framing: Framing) {
        let mut envelope = Envelope::new(framing, &self.kind);
        // A client's reader also leaves when it has all that was announced; that is the end, and no departure.
        while !body.is_end_stream() {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = pieces.reader_gone() => return self.ended(CallResult::ClientGone, "the client left"),
            };
            let frame = match frame {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    // First, since a client that takes nothing may let the other wait.
                    self.ended(CallResult::UpstreamFailed, "the server broke off");
                    return pieces.break_off(error.to_string()).await;
                }
            };
            if let Some(data) = frame.data_ref() {
                self.read(data).await;
            }
            for frame in self.rewriting.turn(frame).into_iter().flat_map(|frame| envelope.wrap(frame)) {
                if pieces.send(frame).await.is_err() {
                    return self.ended(CallResult::ClientGone, "the client left");
                }
            }
        }
        for frame in self.rewriting.rest().into_iter().flat_map(|frame| envelope.wrap(frame)) {
            let _ = pieces.send(frame).await;
        }
        if let Some(last) = envelope.end() {
            let _ = pieces.send(last).await;
        }
        self.finish().await;
        pieces.end().await;
    }

    /// Reads the body for the record alone, as far as one message may go.
    pub async fn read_out(mut self, mut body: Incoming) {
        while self.bytes <= self.gate.limits.message {
            match body.frame().await {
                None => break,
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read(data).await;
                    }
                }
                Some(Err(_)) => return self.ended(CallResult::UpstreamFailed, "the server broke off"),
            }
        }
        self.finish().await;
    }

    /// Reads what came, decoded.
    async fn read(&mut self, data: &Bytes) {
        let Some(decoder) = &mut self.decoder else { return self.read_decoded(data).await };
        match decoder.push(data, self.gate.limits.message) {
            Ok(decoded) => self.read_decoded(&decoded).await,
            Err(_) => {
                self.bytes = self.bytes.saturating_add(data.len());
                self.kind = Kind::Unread("not what its Content-Encoding says, or far more than its size");
            }
        }
    }

    async fn read_decoded(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(data.len());
        let mut events = Vec::new();
        match &mut self.kind {
            Kind::Events(parser) => {
                parser.feed(data, |event| events.push(event));
                if !self.kept.resize(parser.kept()) {
                    parser.give_up();
                    let _ = self.kept.resize(0);
                }
            }
            Kind::Whole(whole) => {
                let part = data.len().min(self.gate.limits.message.saturating_sub(whole.len()));
                // What does not follow what is there would be another text.
                if whole.len() + data.len() == self.bytes && self.kept.grow(part) {
                    whole.extend_from_slice(data.get(..part).unwrap_or_default());
                }
            }
            Kind::Unread(_) => {}
        }
        for event in events {
            self.event(event).await;
        }
    }

    async fn event(&mut self, event: Result<sse::Event, sse::TooLarge>) {
        match event {
            Ok(event) if event.data.is_empty() => {}
            Ok(event) => match Messages::parse(event.data.as_bytes()) {
                Ok(messages) => self.messages(&messages).await,
                Err(_) => self.unparsed(&event.data).await,
            },
            Err(too_large) => self.unparsed(&too_large.to_string()).await,
        }
    }

    async fn messages(&mut self, messages: &Messages) {
        for message in messages.messages() {
            match self.answered_by(message) {
                Some(at) => self.calls.swap_remove(at).answered(&self.gate, self.status, message),
                None => self.note(message).await,
            }
        }
    }

    /// Which of the waiting calls a message answers.
    fn answered_by(&self, message: &Message) -> Option<usize> {
        match message {
            Message::Response { id: Some(id), .. } => {
                self.calls.iter().position(|call| call.request_id.as_ref().is_some_and(|own| own.means(id)))
            }
            // An error of a request whose id the server could not read: of the only one that there is.
            Message::Response { id: None, result: Err(_) } if self.calls.len() == 1 => Some(0),
            _ => None,
        }
    }

    async fn note(&self, message: &Message) {
        // While a single call waits, what comes in its answer belongs to it.
        let call = match self.calls.as_slice() {
            [call] => Some(&call.call_id),
            _ => None,
        };
        let noted = self.gate.note_message(&self.flow, call, Direction::ServerToClient, message).await;
        if let Err(error) = noted {
            tracing::error!(%error, "a server's message was not recorded");
        }
    }

    async fn unparsed(&self, text: &str) {
        let payload = self.gate.payload_of_json(text);
        let direction = Direction::ServerToClient;
        let noted = self.gate.note(&self.flow, None, direction, "", MessageLabel::Unparsed, payload).await;
        if let Err(error) = noted {
            tracing::error!(%error, "a server's message was not recorded");
        }
    }

    /// The body is over: what is still open gets its outcome.
    async fn finish(mut self) {
        let text = match std::mem::replace(&mut self.kind, Kind::Unread("")) {
            Kind::Events(parser) => {
                let mut events = Vec::new();
                parser.finish(|event| events.push(event));
                for event in events {
                    self.event(event).await;
                }
                String::new()
            }
            Kind::Whole(whole) => {
                if whole.len() == self.bytes
                    && let Ok(messages) = Messages::parse(&whole)
                {
                    self.messages(&messages).await;
                }
                String::from_utf8_lossy(&whole).into_owned()
            }
            Kind::Unread(why) => format!("not read: {why}"),
        };
        for call in std::mem::take(&mut self.calls) {
            let result = match (self.status, &call.request_id) {
                (400.., _) => CallResult::Error,
                // A notification gets no answer but 202.
                (_, None) => CallResult::Ok,
                (_, Some(_)) => CallResult::Unparsed,
            };
            call.close(result, Some(self.status), None, self.gate.payload_of_part(&text, self.bytes));
        }
    }

    fn ended(&mut self, result: CallResult, reason: &str) {
        for call in std::mem::take(&mut self.calls) {
            call.close(result, Some(self.status), None, self.gate.payload_of_text(reason));
        }
    }
}

/// Wraps a JSON body into one event, piece by piece.
struct Envelope {
    wraps: bool,
    begun: bool,
}

impl Envelope {
    fn new(framing: Framing, kind: &Kind) -> Self {
        Self { wraps: framing == Framing::AsEvents && !matches!(kind, Kind::Events(_)), begun: false }
    }

    fn wrap(&mut self, frame: Frame<Bytes>) -> Vec<Frame<Bytes>> {
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

    fn end(&self) -> Option<Frame<Bytes>> {
        (self.wraps && self.begun).then(|| Frame::data(Bytes::from_static(b"\n\n")))
    }
}
