//! The way back: a server's answer is passed on as it comes, and read on the side. Each message in it is
//! recorded, and the answer to a call closes the call's record.

mod ends;
mod envelope;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body as _, Frame};
use tokio::sync::mpsc;
use weir_core::ids::CallId;
use weir_core::mask::{Digesting, Masked};
use weir_core::mcp::endpoint;
use weir_core::mcp::jsonrpc::{Body as Messages, Message, RequestId};
use weir_core::mcp::rewrite::Progress;
use weir_core::mcp::sse;
use weir_core::record::{CallResult, Direction, MessageLabel, Payload, Unread};

use super::call::WaitingCall;
use super::marks::unread;
use super::rewrite::Rewriting;
use super::session::{self, Exchange, Injected, Session, stream};
use super::{Flow, Gate};
use crate::http::{
    self as room, AnswerBody, Body, Decoder, Pieces, body_made_here, claims_json, is_event_stream,
};
use crate::ledger::LedgerError;
use crate::share::Kept;
use envelope::Envelope;

pub(super) use envelope::Framing;

impl Gate {
    /// Answers the client with the server's head, and with its body as it comes.
    pub(super) fn carry_back(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        exchange: Exchange,
        answer: Response<AnswerBody>,
        calls: Vec<WaitingCall>,
    ) -> Response<Body> {
        let (mut head, body) = answer.into_parts();
        let reading = Reading::new(self.clone(), flow.clone(), exchange, (head.status, &head.headers), calls);
        reading.rewriting.head(&mut head.headers);
        let client_body = body_made_here(&self.tasks, |pieces| reading.carry(body, pieces, Framing::AsIs));
        room::answer(&mut head);
        Response::from_parts(head, client_body)
    }
}

/// How a body is read.
enum Kind {
    Events(Box<sse::Parser>),
    /// Whole, up to the limit of one message.
    Whole(Vec<u8>),
    /// Not at all; why.
    Unread(&'static str),
}

/// One answer being read.
pub(super) struct Reading {
    gate: Arc<Gate>,
    flow: Arc<Flow>,
    exchange: Exchange,
    /// The session that the server began with this answer.
    begins: Option<Arc<Session>>,
    status: u16,
    kind: Kind,
    /// Of a body that is encoded: it is read decoded, and passed on as it came.
    decoder: Option<Decoder>,
    /// How much of that came, and its digest: all that can be told should it not be what it says.
    encoded: Option<Box<(usize, Digesting)>>,
    /// Bytes of the body so far, decoded.
    bytes: usize,
    /// Why the body is not, or no longer, kept whole; and then the digest of all of it.
    unread: Option<Unread>,
    digest: Option<Digesting>,
    /// The last event that was not read, and why.
    missed: Option<(Unread, Payload<Masked<String>>)>,
    kept: Kept,
    calls: Vec<WaitingCall>,
    /// The ids that were answered here, and whose they were.
    answered: Vec<(RequestId, CallId)>,
    /// An event had an id: the client may take up the stream where it broke off.
    resumable: bool,
    /// No event came yet.
    first: bool,
    injected: Option<mpsc::Receiver<Injected>>,
    /// This is the stream of a legacy session.
    legacy: bool,
    /// What of it the client gets.
    pub rewriting: Rewriting,
}

impl Reading {
    pub fn new(
        gate: Arc<Gate>,
        flow: Arc<Flow>,
        mut exchange: Exchange,
        (status, headers): (StatusCode, &HeaderMap),
        calls: Vec<WaitingCall>,
    ) -> Self {
        let decoder = Decoder::of(headers);
        let coded = decoder.is_err();
        let kind = if coded {
            Kind::Unread("in a content encoding that was not asked for")
        } else if is_event_stream(headers) {
            Kind::Events(Box::new(sse::Parser::new(gate.limits.message).digesting(gate.masker.digesting())))
        } else if calls.is_empty() && !claims_json(headers) {
            Kind::Unread("no MCP")
        } else {
            Kind::Whole(Vec::new())
        };
        let named = status.is_success().then(|| gate.session(headers)).flatten();
        let begins = named
            .filter(|name| exchange.session.name.as_ref() != Some(name))
            .map(|name| gate.sessions.named(&flow, name));
        if let Some(session) = &begins {
            exchange.session = session.clone();
        }
        let digest = (coded && !calls.is_empty()).then(|| gate.masker.digesting());
        let (kept, status) = (flow.share.keep(), status.as_u16());
        let rewriting = gate.rewriting(&flow, status, headers, &calls);
        let decoder = decoder.unwrap_or_default();
        let encoded = decoder.is_some().then(|| Box::new((0, gate.masker.digesting())));
        Self {
            gate,
            flow,
            exchange,
            begins,
            status,
            kind,
            decoder,
            encoded,
            bytes: 0,
            unread: coded.then_some(Unread::Encoded),
            digest,
            missed: None,
            kept,
            calls,
            answered: Vec::new(),
            resumable: false,
            first: true,
            injected: None,
            legacy: false,
            rewriting,
        }
    }

    /// This answer follows on a stream that its client reads already, perhaps with progress in it.
    pub fn follow(&mut self, headers: &HeaderMap, progress: Option<Progress>) {
        self.rewriting.follow((&self.gate, &self.flow), headers, &self.calls, progress);
    }

    /// Passes on each frame, reads it, and closes the calls. Ends when the body or the client does.
    pub async fn carry(mut self, mut body: AnswerBody, pieces: Pieces, framing: Framing) {
        let mut envelope = Envelope::new(framing, &self.kind);
        // A client's reader also leaves when it has all that was announced; that is the end, and no departure.
        while !body.is_end_stream() {
            let between = self.between_events();
            let frame = tokio::select! {
                biased;
                injected = next(&mut self.injected), if between => {
                    let Injected { text, done } = injected;
                    if pieces.send(Frame::data(text.into())).await.is_err() {
                        return self.ended(CallResult::ClientGone, "the client left");
                    }
                    let _ = done.send(());
                    continue;
                }
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
    pub async fn read_out(mut self, mut body: AnswerBody) {
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

    fn between_events(&self) -> bool {
        matches!(&self.kind, Kind::Events(parser) if parser.between_events())
    }

    /// Reads what came, decoded.
    async fn read(&mut self, data: &Bytes) {
        let Some(decoder) = &mut self.decoder else { return self.read_decoded(data).await };
        if let Some((bytes, digest)) = self.encoded.as_deref_mut() {
            *bytes = bytes.saturating_add(data.len());
            digest.update(data);
        }
        match decoder.push(data, self.gate.limits.message) {
            Ok(decoded) => self.read_decoded(&decoded).await,
            Err(_) => {
                self.kind = Kind::Unread("not what its Content-Encoding says, or far more than its size");
                self.not_decoded();
            }
        }
    }

    /// The body is told as it came, since it cannot be read.
    fn not_decoded(&mut self) {
        self.decoder = None;
        self.unread = Some(Unread::Encoded);
        if let Some((bytes, digest)) = self.encoded.take().map(|encoded| *encoded) {
            (self.bytes, self.digest) = (bytes, Some(digest));
        }
    }

    async fn read_decoded(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(data.len());
        if let Some(digest) = &mut self.digest {
            return digest.update(data);
        }
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
                let room = self.kept.grow(part);
                if part < data.len() || !room {
                    self.unread = Some(if room { Unread::TooLarge } else { Unread::NoRoom });
                    let mut digest = self.gate.masker.digesting();
                    digest.update(whole);
                    digest.update(data);
                    self.digest = Some(digest);
                }
                if room {
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
        let first = std::mem::take(&mut self.first);
        let (event, too_large) = match event {
            Ok(event) => (event, None),
            Err(sse::TooLarge { event, bytes, digest, given_up }) => {
                let why = if given_up { Unread::NoRoom } else { Unread::TooLarge };
                let payload = self.gate.payload_of_part(&event.data, bytes, digest);
                (event, Some((why, payload)))
            }
        };
        if event.id.is_some() && !self.resumable {
            self.resumable = true;
            self.calls.iter().for_each(|call| call.open.may_move());
        }
        if let Some((why, payload)) = too_large {
            return self.miss(why, payload).await;
        }
        if event.data.is_empty() {
            return;
        }
        if first && event.name == "endpoint" && self.announced(&event.data).await {
            return;
        }
        match Messages::parse(event.data.as_bytes()) {
            Ok(messages) => self.messages(&messages).await,
            Err(error) => self.miss(unread(&error), self.gate.payload_of_json(&event.data)).await,
        }
    }

    /// A legacy server says where to post: what is posted there is answered on this stream.
    async fn announced(&mut self, endpoint: &str) -> bool {
        let target = self.exchange.get.as_deref().and_then(|base| endpoint::resolve(base, endpoint));
        let Some(target) = target else { return false };
        let text = Masked::literal("event: endpoint ").then(&self.gate.masker.target(&target));
        let session = self.gate.endpoint(&self.flow, target);
        // Into an encoded stream nothing can be put.
        if self.decoder.is_none() {
            let (writer, injected) = stream();
            session.open_stream(writer);
            self.injected = Some(injected);
        }
        self.legacy = true;
        self.exchange.session = session;
        self.note_unread(MessageLabel::Http, None, self.gate.payload_of_masked(text)).await;
        true
    }

    async fn messages(&mut self, messages: &Messages) {
        for message in messages.messages() {
            match message {
                Message::Response { id, .. } => self.response(id.as_ref(), message).await,
                _ => self.told(message).await,
            }
        }
    }

    async fn response(&mut self, id: Option<&RequestId>, message: &Message) {
        if let Some(at) = self.own(id, message) {
            let call = self.calls.swap_remove(at);
            call.open.answered(&self.gate, self.status, message, self.begins.as_ref());
            self.answered.extend(call.request_id.map(|id| (id, call.call_id)));
            return;
        }
        let session = &self.exchange.session;
        let before = id.and_then(|id| self.answered.iter().find(|(own, _)| own.means(id)));
        let (label, call) = match (before, id.map(|id| session.response(id))) {
            (Some((_, call)), _) => (MessageLabel::RepeatedResponse, Some(call.clone())),
            (None, Some(session::Response::To(open))) => {
                return open.answered(&self.gate, self.status, message, None);
            }
            (None, Some(session::Response::Repeated(call))) => (MessageLabel::RepeatedResponse, Some(call)),
            (None, Some(session::Response::Late(call))) => (MessageLabel::LateResponse, Some(call)),
            (None, Some(session::Response::Unasked) | None) => (MessageLabel::UnaskedResponse, None),
        };
        let noted = self.gate.note_stray(&self.flow, session, (label, call), message).await;
        not_recorded(noted);
    }

    /// Which of the exchange's own calls a response answers.
    fn own(&self, id: Option<&RequestId>, message: &Message) -> Option<usize> {
        match (id, message) {
            (Some(id), _) => self.calls.iter().position(|call| {
                call.request_id.as_ref().is_some_and(|own| own.means(id)) && call.open.is_open()
            }),
            // An error of a request whose id the server could not read: of the only one that there is.
            (None, Message::Response { result: Err(_), .. }) if self.calls.len() == 1 => Some(0),
            _ => None,
        }
    }

    async fn told(&self, message: &Message) {
        let noted = self.gate.note_told(&self.flow, &self.exchange.session, self.only_call(), message);
        not_recorded(noted.await);
    }

    /// While a single call waits, what comes in its answer belongs to it.
    fn only_call(&self) -> Option<&CallId> {
        match self.calls.as_slice() {
            [call] => Some(&call.call_id),
            _ => None,
        }
    }

    /// An event passes that was not read. It may have been the answer to what waits.
    async fn miss(&mut self, why: Unread, payload: Payload<Masked<String>>) {
        self.note_unread(MessageLabel::Unparsed, Some(why), payload.clone()).await;
        self.missed = Some((why, payload));
    }

    async fn note_unread(&self, label: MessageLabel, why: Option<Unread>, payload: Payload<Masked<String>>) {
        let about = (&*self.exchange.session, Direction::ServerToClient, self.only_call());
        not_recorded(self.gate.note_unread(&self.flow, about, label, why, payload).await);
    }
}

/// The next event that is to be put into a stream, if it takes any.
async fn next(injected: &mut Option<mpsc::Receiver<Injected>>) -> Injected {
    match injected {
        Some(receiver) => match receiver.recv().await {
            Some(injected) => injected,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn not_recorded(noted: Result<(), LedgerError>) {
    if let Err(error) = noted {
        tracing::error!(%error, "a server's message was not recorded");
    }
}
