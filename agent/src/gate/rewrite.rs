//! Which bytes on their way are not to stay what they are. Of each answer it is chosen by its request and its head, before
//! the first byte: either all of it goes on to the letter, which costs nothing, or it goes through a [`Rewriter`]. Of a
//! request, the arguments are masked before anything is decided on it, so that what an approver releases is what goes
//! upstream.
//!
//! Never touched: ids, states, event ids, sessions, HTTP errors and what they say.

mod request;

pub(super) use request::mask_repeated;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::Frame;
use serde_json::json;
use weir_core::ids::CallId;
use weir_core::mcp::TOOLS_CALL;
use weir_core::mcp::jsonrpc::Message;
use weir_core::mcp::rewrite::{Editor, Lists, Progress, Rewriter, Told};
use weir_core::policy::{Action, Call, InFlight};
use weir_core::record::{Direction, MessageLabel};

use super::call::WaitingCall;
use super::{Flow, Gate, Server};
use crate::http::{Decoder, MAX_HEAD, is_event_stream};
use crate::share::Kept;

/// What says something of a body's bytes, and would be wrong of others.
const OF_THE_BYTES: [&str; 7] =
    ["content-length", "etag", "digest", "content-digest", "repr-digest", "content-md5", "accept-ranges"];

/// What a call's request and answer are to be masked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants {
    pub in_flight: InFlight,
    /// The answer is a list of tools, of which some may have to go.
    lists_tools: bool,
}

/// What becomes of one answer's body.
pub(super) struct Rewriting(Option<Box<Running>>);

struct Running {
    gate: Arc<Gate>,
    flow: Arc<Flow>,
    call: Option<CallId>,
    rewriter: Rewriter,
    /// Of a body that is encoded though that was not asked for.
    decoder: Option<Decoder>,
    /// The body cannot be decoded: nothing more of it is read.
    lost: bool,
    kept: Kept,
}

impl Gate {
    /// What policy wants of a call besides its verdict.
    pub(super) fn wants(&self, flow: &Flow, message: &Message) -> Wants {
        let Server { name: server, also, .. } = &flow.server;
        let (method, tool) = (message.method().unwrap_or_default(), message.tool());
        let mut in_flight = self.policy.in_flight(Call { server, also, method, tool });
        // What a task gives is some call's result.
        in_flight.results |=
            matches!(method, "tasks/result" | "tasks/get") && self.policy.masks_results_of(server, also);
        Wants { in_flight, lists_tools: method == "tools/list" && self.policy.hides_tools() }
    }

    /// Before a request goes upstream: an answer that is to be rewritten must come in a form that can be read.
    pub(super) fn ask_plainly(&self, flow: &Flow, headers: &mut HeaderMap, calls: &[WaitingCall]) {
        let Server { name, also, .. } = &flow.server;
        let masks = match calls {
            [] => self.policy.masks_results_of(name, also) || self.policy.hides_tools(),
            calls => calls.iter().any(|call| call.wants.in_flight.results || call.wants.lists_tools),
        };
        if masks {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers.remove(header::RANGE);
        }
    }

    /// Chooses what becomes of an answer.
    pub(super) fn rewriting(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        status: u16,
        headers: &HeaderMap,
        calls: &[WaitingCall],
    ) -> Rewriting {
        let Server { name, also, .. } = &flow.server;
        let events = is_event_stream(headers);
        let masks = match calls {
            // A stream on which answers come that were asked for elsewhere.
            [] => events && self.policy.masks_results_of(name, also),
            calls => calls.iter().any(|call| call.wants.in_flight.results),
        };
        let listing = calls.iter().filter(|call| call.wants.lists_tools);
        let listing: Vec<_> = listing.filter_map(|call| call.request_id.clone()).collect();
        let lists = match calls {
            // A session's stream, the first transport's, or what is sent again of one that broke off.
            [] if events && self.policy.hides_tools() => Some(Lists::Any),
            _ => (!listing.is_empty()).then_some(Lists::Of(listing)),
        };
        let decoder = Decoder::of(headers);
        if !(200..300).contains(&status) || !(masks || (lists.is_some() && decoder.is_ok())) {
            return Rewriting(None);
        }
        let mut editor = self.editor(calls);
        if masks {
            editor = editor.masking(self.masker.clone());
        }
        if let Some(lists) = lists {
            let (gate, flow) = (self.clone(), flow.clone());
            editor = editor.hiding(lists, move |tool| gate.denies_tool(&flow, tool));
        }
        let mut rewriting = self.through(flow, calls, editor, events && decoder.is_ok());
        if let Some(running) = &mut rewriting.0 {
            match decoder {
                Ok(decoder) => running.decoder = decoder,
                Err(_) => running.lose(),
            }
        }
        rewriting
    }

    fn editor(&self, calls: &[WaitingCall]) -> Editor {
        Editor::new(calls.iter().filter_map(|call| call.request_id.clone()).collect())
    }

    fn through(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        calls: &[WaitingCall],
        editor: Editor,
        events: bool,
    ) -> Rewriting {
        let limit = self.limits.message;
        let rewriter = match events {
            true => Rewriter::of_events(editor, limit),
            false => Rewriter::of_whole(editor, limit),
        };
        let call = match calls {
            [call] => Some(call.call_id.clone()),
            _ => None,
        };
        let (gate, kept) = (self.clone(), flow.share.keep());
        let (flow, decoder) = (flow.clone(), None);
        Rewriting(Some(Box::new(Running { gate, flow, call, rewriter, decoder, lost: false, kept })))
    }

    fn denies_tool(&self, flow: &Flow, tool: &str) -> bool {
        let Server { name: server, also, .. } = &flow.server;
        let call = Call { server, also, method: TOOLS_CALL, tool: Some(tool) };
        self.policy.verdict(call).action == Action::Deny
    }

    async fn note_rewritten(&self, flow: &Flow, call: Option<&CallId>, direction: Direction, told: &Told) {
        let label = if told.withheld > 0 { MessageLabel::Withheld } else { MessageLabel::Rewritten };
        let masked: Vec<_> = told.masked.iter().map(|span| &span.pointer).collect();
        let text = json!({
            "hidden_tools": told.hidden, "masked": masked, "withheld": told.withheld, "renumbered": told.renumbered,
        });
        let payload = self.payload_of_json(&text.to_string());
        if let Err(error) = self.note(flow, call, direction, "", label, payload).await {
            tracing::error!(%error, "what was rewritten is not recorded");
        }
    }
}

impl Rewriting {
    /// For a client that has the head of an event stream already: what is encoded is decoded, and the server's own
    /// progress rises above what the client was told before. `headers` are the answer's.
    pub fn follow(
        &mut self,
        (gate, flow): (&Arc<Gate>, &Arc<Flow>),
        headers: &HeaderMap,
        calls: &[WaitingCall],
        progress: Option<Progress>,
    ) {
        let (events, decoder) = (is_event_stream(headers), Decoder::of(headers));
        let needed = (events && progress.is_some()) || !matches!(decoder, Ok(None));
        if self.0.is_none() && needed {
            *self = gate.through(flow, calls, gate.editor(calls), events);
            match (&mut self.0, decoder) {
                (Some(running), Ok(decoder)) => running.decoder = decoder,
                (Some(running), Err(_)) => running.lose(),
                (None, _) => {}
            }
        }
        if let (Some(running), Some(progress)) = (&mut self.0, progress) {
            running.rewriter.renumber(progress);
        }
    }

    /// Makes an answer's head fit what its body becomes.
    pub fn head(&self, headers: &mut HeaderMap) {
        if self.0.is_some() {
            for name in OF_THE_BYTES {
                headers.remove(HeaderName::from_static(name));
            }
            headers.remove(header::CONTENT_ENCODING);
        }
    }

    /// What goes on of a frame.
    pub fn turn(&mut self, frame: Frame<Bytes>) -> Vec<Frame<Bytes>> {
        let Some(running) = &mut self.0 else { return vec![frame] };
        // Trailers speak of the bytes as they were.
        let Ok(data) = frame.into_data() else { return Vec::new() };
        frames(running.turn(&data))
    }

    /// What is left when the body is over.
    pub fn rest(&mut self) -> Vec<Frame<Bytes>> {
        self.0.as_mut().map_or_else(Vec::new, |running| frames(running.rewriter.finish()))
    }
}

impl Running {
    fn turn(&mut self, data: &[u8]) -> Vec<u8> {
        let limit = self.gate.limits.message;
        let decoded = self.decoder.as_mut().map(|decoder| decoder.push(data, limit));
        let mut out = match decoded {
            _ if self.lost => return Vec::new(),
            None => self.rewriter.feed(data),
            Some(Ok(decoded)) => self.rewriter.feed(&decoded),
            Some(Err(_)) => {
                self.lose();
                return Vec::new();
            }
        };
        if !self.kept.resize(self.rewriter.kept()) {
            out.extend(self.rewriter.give_up());
            let _ = self.kept.resize(0);
        }
        out
    }

    /// It cannot be decoded: none of the rest goes on.
    fn lose(&mut self) {
        self.lost = true;
        self.rewriter.give_up();
        let _ = self.kept.resize(0);
    }
}

/// However an answer ends, what became of it is told.
impl Drop for Running {
    fn drop(&mut self) {
        let told = self.rewriter.told().clone();
        if told.is_nothing() {
            return;
        }
        let (gate, flow, call) = (self.gate.clone(), self.flow.clone(), self.call.take());
        self.gate.tasks.spawn(async move {
            gate.note_rewritten(&flow, call.as_ref(), Direction::ServerToClient, &told).await;
        });
    }
}

/// In pieces of the size that a body's pieces have.
fn frames(bytes: Vec<u8>) -> Vec<Frame<Bytes>> {
    let mut rest = Bytes::from(bytes);
    let mut out = Vec::new();
    while !rest.is_empty() {
        out.push(Frame::data(rest.split_to(rest.len().min(MAX_HEAD))));
    }
    out
}
