//! The gate: what happens to one exchange, top to bottom. A request of a terminated flow comes in; it is read,
//! each call in it gets an open record and a verdict, its intent is written, and then it is forwarded,
//! refused, or held for a human. The answer goes back as it comes.
//!
//! Nothing goes upstream without a [`Permit`], and only this module makes one.

mod answer;
mod call;
mod held;
mod hold;
mod permit;
mod reply;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header;
use http::request::Parts;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio_util::task::TaskTracker;
use weir_core::ids::{CallId, FlowId, Origin};
use weir_core::mask::{Masked, Masker};
use weir_core::mcp::jsonrpc::{self, Message, ParseError, RequestId};
use weir_core::policy::{Action, Policy};
use weir_core::record::{self, Caller, Direction, MessageLabel};

pub use held::HeldCalls;
pub use permit::{Clearance, NotCleared, Permit};

use crate::approval::Approvals;
use crate::config::{Approval, Limits};
use crate::http::{self as room, Authority, Body, ReadRequest, RequestError, Upstream, UpstreamFailure};
use crate::ledger::{Ledger, LedgerError};
use call::OpenCall;
use held::CallName;

/// What every exchange needs.
pub struct Gate {
    pub policy: Policy,
    pub ledger: Ledger,
    pub masker: Masker,
    pub approvals: Approvals,
    pub approval: Approval,
    pub limits: Limits,
    pub place: Place,
    /// The calls that wait for a human now.
    pub held: HeldCalls,
    /// Owns the tasks that carry answers back.
    pub tasks: TaskTracker,
}

/// Which log the gate writes to.
#[derive(Debug, Clone)]
pub struct Place {
    pub tenant: String,
    pub host: String,
    pub origin: Origin,
}

/// One terminated connection, as the gate sees it.
pub struct Flow {
    pub id: FlowId,
    pub caller: Arc<Caller<Masked<String>>>,
    pub server: Server,
    pub upstream: Upstream,
}

/// Where a flow's calls go.
#[derive(Debug, Clone)]
pub struct Server {
    /// What policy goes by: the proven name, or the address when nothing proves one.
    pub name: String,
    /// What else it is: the other names of its certificate, and its address.
    pub also: Vec<String>,
    pub record: record::Server<Masked<String>>,
}

/// The exchange cannot be answered: the client's connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error(transparent)]
    Upstream(#[from] UpstreamFailure),
    #[error(transparent)]
    NotCleared(#[from] NotCleared),
    #[error("the request cannot be passed on: {0}")]
    Request(#[from] http::Error),
    #[error("the client broke off: {0}")]
    Client(RequestError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Gate {
    /// Takes one request to its answer.
    pub async fn exchange(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Broken> {
        let started = Instant::now();
        if let Some(reply) = self.refuse_misdirected(flow, &request).await? {
            return Ok(reply);
        }
        let request = match room::read(request, self.limits.request_body).await {
            Ok(request) => request,
            Err((_, broken @ RequestError::BrokenOff(_))) => return Err(Broken::Client(broken)),
            Err((parts, error)) => return self.refuse_unreadable(flow, &parts, error).await,
        };
        if request.body.is_empty() {
            return self.pass_on(flow, request, started).await;
        }
        match jsonrpc::Body::parse(&request.body) {
            Ok(body) => self.messages(flow, request, &body, started).await,
            Err(ParseError::NotJsonRpc(_)) => self.pass_on(flow, request, started).await,
            Err(ParseError::NotJson(_)) if !claims_json(&request.parts) => {
                self.pass_on(flow, request, started).await
            }
            Err(error) => self.refuse_unreadable(flow, &request.parts, error).await,
        }
    }

    /// A body of MCP messages: each that asks for something is a call.
    async fn messages(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        body: &jsonrpc::Body,
        started: Instant,
    ) -> Result<Response<Body>, Broken> {
        let mut calls = Vec::new();
        for message in body.messages() {
            if message.method().is_none() {
                self.note_message(flow, None, Direction::ClientToServer, message).await?;
                continue;
            }
            if let Some(id) = message.cancels() {
                self.held.take_back(&self.name_of_call(flow, &request.parts, &id));
            }
            match self.open_call(flow, &request.parts, message, started).await {
                Ok(call) => calls.push(call),
                // The calls opened before this one are let go: their records end as aborted.
                Err(error) => return Ok(reply::unrecordable(body, &error)),
            }
        }
        match calls.iter().find(|call| call.verdict.action != Action::Allow) {
            None => self.forward(flow, request, calls).await,
            Some(call) if call.verdict.action == Action::Hold && body.messages().len() == 1 => {
                match calls.pop() {
                    Some(call) => self.hold(flow, request, call).await,
                    None => Err(NotCleared.into()),
                }
            }
            Some(_) => self.refuse(body, calls).await,
        }
    }

    /// What the client calls one of its calls.
    fn name_of_call(&self, flow: &Flow, parts: &Parts, id: &RequestId) -> CallName {
        let session = parts.headers.get("mcp-session-id").and_then(|value| value.to_str().ok());
        CallName::new(&flow.caller, session.map(|id| self.masker.pseudonym_of("session", id)), id)
    }

    /// All calls are allowed and recorded: they go upstream.
    async fn forward(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        calls: Vec<OpenCall>,
    ) -> Result<Response<Body>, Broken> {
        let mut permit = Permit::for_no_call();
        let mut waiting = Vec::with_capacity(calls.len());
        for call in calls {
            let (call, intent) = call.split();
            permit = permit.join(Permit::for_call(intent, Clearance::Policy(call.verdict.clone()))?);
            waiting.push(call);
        }
        let answer = match flow.upstream.send(outgoing(request)?, permit).await {
            Ok(answer) => answer,
            Err(failure) => {
                for call in waiting {
                    call.upstream_failed(self, &failure);
                }
                return Err(failure.into());
            }
        };
        Ok(self.carry_back(flow, answer, waiting))
    }

    /// A request that calls nothing: a stream's GET, the end of a session, an exchange that is not MCP.
    async fn pass_on(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        started: Instant,
    ) -> Result<Response<Body>, Broken> {
        let line = format!("{} {}", request.parts.method, request.parts.uri);
        let sent = request.body.len();
        let sent_to = flow.upstream.send(outgoing(request)?, Permit::for_no_call()).await;
        let status = sent_to.as_ref().map_or(0, |answer| answer.status().as_u16());
        let text = format!("{line} -> {status}");
        let payload = record::Payload {
            text: self.masker.text(&text),
            bytes: sent as u64,
            truncated: sent > 0,
            masked: vec![],
        };
        self.note(flow, None, Direction::ClientToServer, "", MessageLabel::Http, payload).await?;
        tracing::debug!(status, elapsed = ?started.elapsed(), "passed on an exchange that calls nothing");
        Ok(self.carry_back(flow, sent_to?, Vec::new()))
    }

    /// Under TLS, a request for another name than the proven one goes nowhere (RFC 9110, 15.5.20).
    async fn refuse_misdirected(
        &self,
        flow: &Flow,
        request: &Request<Incoming>,
    ) -> Result<Option<Response<Body>>, Broken> {
        if flow.server.record.proof == record::Proof::Unproven {
            return Ok(None);
        }
        let (line, headers) = (format!("{} {}", request.method(), request.uri()), request.headers());
        let authority = Authority::of(request.uri(), headers);
        if authority.as_ref().is_some_and(|authority| authority.as_str() == flow.server.name) {
            return Ok(None);
        }
        let asked = authority.map_or_else(|| "no one name".to_owned(), |a| format!("{:?}", a.as_str()));
        let text = format!("{line}: the request names {asked}, and the server is {:?}", flow.server.name);
        let payload = self.payload_of_text(&text);
        self.note(flow, None, Direction::ClientToServer, "", MessageLabel::Misdirected, payload).await?;
        Ok(Some(reply::plain(421, "Weir: this connection is to another server than the request names\n")))
    }

    /// What policy cannot read does not go upstream.
    async fn refuse_unreadable(
        &self,
        flow: &Flow,
        parts: &Parts,
        error: impl std::error::Error,
    ) -> Result<Response<Body>, Broken> {
        let text = format!("{} {}: {error}", parts.method, parts.uri);
        let payload = self.payload_of_text(&text);
        self.note(flow, None, Direction::ClientToServer, "", MessageLabel::Unreadable, payload).await?;
        Ok(reply::unreadable(&error))
    }

    /// Policy refuses: the client gets an error for each request, and its session lives on.
    async fn refuse(&self, body: &jsonrpc::Body, calls: Vec<OpenCall>) -> Result<Response<Body>, Broken> {
        let refusing = calls.iter().find(|call| call.verdict.action != Action::Allow);
        let rule = refusing.map_or_else(String::new, |call| call.verdict.rule.clone());
        let reason = format!("refused by Weir: rule {rule}");
        let reply = reply::refused(body, &reason);
        for call in calls {
            call.refused(self, &reason);
        }
        Ok(reply)
    }

    async fn note_message(
        &self,
        flow: &Flow,
        call: Option<&CallId>,
        direction: Direction,
        message: &Message,
    ) -> Result<(), LedgerError> {
        let label = match message {
            Message::Request { .. } => MessageLabel::Request,
            Message::Notification { .. } => MessageLabel::Notification,
            Message::Response { .. } => MessageLabel::Response,
        };
        let method = message.method().unwrap_or_default();
        self.note(flow, call, direction, method, label, self.payload_of_json(message.content())).await
    }

    async fn note(
        &self,
        flow: &Flow,
        call: Option<&CallId>,
        direction: Direction,
        method: &str,
        label: MessageLabel,
        payload: record::Payload<Masked<String>>,
    ) -> Result<(), LedgerError> {
        let method = self.masker.text(method).truncate(call::MAX_NAME);
        let (flow_id, call_id) = (flow.id.clone(), call.cloned());
        let message = record::Message { flow_id, call_id, direction, method, label, payload };
        self.ledger.note(message).await
    }

    fn payload_of_json(&self, text: &str) -> record::Payload<Masked<String>> {
        let kept = text.get(..text.floor_char_boundary(self.limits.record_payload)).unwrap_or_default();
        let (masked_text, masked) = self.masker.json(kept);
        let truncated = kept.len() < text.len();
        record::Payload { text: masked_text, bytes: text.len() as u64, truncated, masked }
    }

    fn payload_of_text(&self, text: &str) -> record::Payload<Masked<String>> {
        let (masked_text, masked) = self.masker.text_spans(text);
        let text_len = masked_text.as_str().len();
        let kept = masked_text.truncate(self.limits.record_payload);
        let truncated = kept.as_str().len() < text_len;
        record::Payload { text: kept, bytes: text.len() as u64, truncated, masked }
    }
}

/// The request as it goes upstream: its bytes as they came, its head without what concerns the client's
/// connection alone. An encoded answer could not be read, so none is asked for.
fn outgoing(request: ReadRequest) -> Result<Request<Full<Bytes>>, http::Error> {
    let ReadRequest { mut parts, body } = request;
    room::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::EXPECT);
    if parts.headers.contains_key(header::ACCEPT_ENCODING) {
        parts.headers.insert(header::ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
    }
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = http::Uri::from(path.clone());
    }
    parts.version = http::Version::HTTP_11;
    Ok(Request::from_parts(parts, Full::new(body)))
}

fn claims_json(parts: &Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    content_type
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"json"))
}
