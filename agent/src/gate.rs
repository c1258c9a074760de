//! The gate: what happens to one exchange, top to bottom. A request of a terminated flow comes in; it is read,
//! each call in it gets an open record and a verdict, its intent is written, and then it is forwarded,
//! refused, or held for a human. The answer goes back as it comes.
//!
//! Nothing goes upstream without a [`Permit`], and only this module makes one.

mod answer;
mod call;
mod contents;
mod held;
mod hold;
mod marks;
mod mirror;
mod permit;
mod reply;
mod rewrite;
mod session;
mod told;
mod untrusted;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use weir_core::http1::Ambiguous;
use weir_core::ids::{FlowId, Origin};
use weir_core::mask::{Masked, Masker};
use weir_core::mcp::jsonrpc::{self, RequestId};
use weir_core::policy::{Action, Policy};
use weir_core::record::{self, CallResult, Caller, Direction, MessageLabel, Unread};

pub use held::HeldCalls;
pub use permit::{Clearance, NotCleared, Permit, Recorded};
pub use session::{MAX_SESSIONS, Session, Sessions, StreamGone, StreamWriter};
pub use untrusted::Refusal;

use crate::approval::Approvals;
use crate::config::{Approval, Limits};
use crate::http::{
    self as room, AnswerBody, Authority, Body, Outgoing, Patience, Read, ReadRequest, Received, RequestError,
    Served, StreamedRequest, Upgrade, Upstream, UpstreamFailure,
};
use crate::ledger::{Ledger, LedgerError};
use crate::share::{Share, Shares};
use crate::tasks::Tasks;
use call::{OpenCall, WaitingCall};
use contents::{Contents, NothingCalled};
use held::CallName;
use marks::{unread, unread_request};
use session::Exchange;

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
    /// What is known of the sessions that go through here.
    pub sessions: Sessions,
    /// What each job may take of all this.
    pub shares: Shares,
    /// Owns the tasks that serve connections.
    pub tasks: Tasks,
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
    pub share: Arc<Share>,
    /// What became of the connection when both sides agreed on another protocol.
    pub tunnels: TaskTracker,
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
    #[error("the client broke off: {0}")]
    Client(RequestError),
    #[error("the client left")]
    ClientLeft,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Its task was dropped: the agent is ending.
    #[error("the exchange was dropped")]
    Dropped,
}

type Answer = Result<Response<Body>, Broken>;
/// Where the client waits for the head of its answer; it has left when this is closed.
type Asker = oneshot::Sender<Answer>;

impl Gate {
    /// Takes one request to its answer. A client that leaves makes this future be dropped anywhere, and what has begun must
    /// be recorded to its end: then the work goes on as a task.
    pub async fn exchange(self: &Arc<Self>, flow: &Arc<Flow>, request: Request<Received>) -> Answer {
        let (mut asker, waits) = oneshot::channel();
        let (gate, flow) = (self.clone(), flow.clone());
        let work = self.tasks.here(async move { gate.answer(&flow, request, &mut asker).await });
        let answer = work.await.unwrap_or(Err(Broken::Dropped));
        // While this is there, the client is.
        drop(waits);
        answer
    }

    async fn answer(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: Request<Received>,
        asker: &mut Asker,
    ) -> Answer {
        let started = Instant::now();
        if let Some(reply) = self.refuse_misdirected(flow, &request).await? {
            return Ok(reply);
        }
        let Limits { request_body: bytes, client_timeout: pause, .. } = self.limits;
        let request = match room::read(request, Patience { bytes, pause, kept: flow.share.keep() }).await {
            Ok(Read::Whole(request)) => request,
            Ok(Read::Streamed(request)) => return self.stream_on(flow, request, asker).await,
            Err((_, broken @ RequestError::BrokenOff(_))) => return Err(Broken::Client(broken)),
            Err((parts, error)) => {
                let (status, why) = (error.status(), unread_request(&error));
                return self.refuse_unreadable(flow, &parts, (status, why), error).await;
            }
        };
        match Contents::of(&request) {
            Contents::Messages(messages) => {
                request.is_waited_for();
                self.messages(flow, request, messages, started, asker).await
            }
            Contents::Nothing(nothing) => self.pass_on(flow, request, nothing, asker).await,
            Contents::Unreadable(error) => {
                let why = Some(unread(&error));
                self.refuse_unreadable(flow, &request.parts, (400, why), error).await
            }
        }
    }

    /// A body of MCP messages: each that asks for something is a call.
    async fn messages(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        body: jsonrpc::Body,
        started: Instant,
        asker: &mut Asker,
    ) -> Answer {
        if let Some(reply) = self.refuse_contradiction(flow, &request, &body).await? {
            return Ok(reply);
        }
        let request = match self.again(flow, request, &body, asker).await? {
            hold::Asked::New(request) => request,
            hold::Asked::Answered(answer) => return Ok(answer),
        };
        let (mut calls, session) = (Vec::new(), self.session_of(flow, &request.parts));
        let place = Self::place_of_answer(&session, &request.parts.headers);
        let batch = matches!(body, jsonrpc::Body::Batch(_));
        for message in body.messages() {
            if message.method().is_none() {
                self.note_response(flow, &session, message).await?;
                continue;
            }
            if let Some(id) = message.cancels() {
                self.held.take_back(&self.name_of_call(flow, &request.parts, &id));
            }
            match self.open_call(flow, &request.parts, (&session, message), batch, started).await {
                Ok(call) => calls.push(call),
                // The calls opened before this one are let go: their records end as aborted.
                Err(error) => return Ok(place.answer(reply::unrecordable(&body, &error)).await),
            }
        }
        let request = self.mask_arguments(flow, request, &calls).await;
        let exchange = |request: &ReadRequest| Exchange::of(session.clone(), &request.parts);
        if let Some(nothing) = NothingCalled::in_messages(&body) {
            let (permit, exchange) = (Permit::for_no_call(nothing), exchange(&request));
            return self.forward(flow, request, permit, (exchange, Vec::new()), asker).await;
        }
        if calls.iter().all(|call| call.verdict().action == Action::Allow) {
            let exchange = exchange(&request);
            return self.allow(flow, request, (exchange, calls), asker).await;
        }
        // A batch is answered at once or not at all; only a call by itself can wait.
        let asks = match calls.as_mut_slice() {
            [call] if body.messages().len() == 1 => call.asks.take(),
            _ => None,
        };
        match (asks, calls.pop()) {
            (Some(asks), Some(call)) => self.hold(flow, request, body, (call, asks), (place, asker)).await,
            (_, last) => {
                calls.extend(last);
                Ok(place.answer(self.refuse(&body, calls)).await)
            }
        }
    }

    /// What the client calls one of its calls.
    fn name_of_call(&self, flow: &Flow, parts: &Parts, id: &RequestId) -> CallName {
        CallName::new(&flow.caller, self.session(&parts.headers), id)
    }

    /// All calls are allowed and recorded: they go upstream.
    async fn allow(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        (exchange, calls): (Exchange, Vec<OpenCall>),
        asker: &mut Asker,
    ) -> Answer {
        let (mut permits, mut waiting) = (Vec::new(), Vec::new());
        for call in calls {
            let (call, intent) = call.split();
            permits.push(Permit::for_call(intent, Clearance::Policy(call.verdict.clone()))?);
            waiting.push(call);
        }
        let permit = Permit::join(permits).ok_or(NotCleared)?;
        self.forward(flow, request, permit, (exchange, waiting), asker).await
    }

    /// Sends on, and answers as the server does.
    async fn forward(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        permit: Permit,
        (exchange, calls): (Exchange, Vec<WaitingCall>),
        asker: &mut Asker,
    ) -> Answer {
        let (answer, calls) = self.send(flow, request, permit, calls, asker.closed()).await?;
        Ok(self.carry_back(flow, exchange, answer, calls))
    }

    /// Sends on, unless the client leaves before: then nothing goes upstream any more, and a server that has the
    /// request already sees its client leave, too.
    async fn send(
        &self,
        flow: &Flow,
        mut request: ReadRequest,
        permit: Permit,
        calls: Vec<WaitingCall>,
        client_left: impl Future<Output = ()>,
    ) -> Result<(Response<AnswerBody>, Vec<WaitingCall>), Broken> {
        self.ask_plainly(flow, &mut request.parts.headers, &calls);
        let (parts, body) = request.into_outgoing();
        match self.send_parts(flow, parts, body, permit, client_left).await {
            Ok(answer) => Ok((answer, calls)),
            Err(broken) => {
                let result = match broken {
                    Broken::ClientLeft => CallResult::ClientGone,
                    _ => CallResult::UpstreamFailed,
                };
                for call in calls {
                    call.close(result, None, None, self.payload_of_text(&broken.to_string()));
                }
                Err(broken)
            }
        }
    }

    async fn send_parts(
        &self,
        flow: &Flow,
        mut parts: Parts,
        body: Outgoing,
        permit: Permit,
        client_left: impl Future<Output = ()>,
    ) -> Result<Response<AnswerBody>, Broken> {
        // An answer in another encoding could not be read.
        room::only_known(&mut parts.headers);
        tokio::select! {
            biased;
            () = client_left => Err(Broken::ClientLeft),
            sent = flow.upstream.send(parts, body, permit) => sent.map_err(Broken::Upstream),
        }
    }

    /// A request that calls nothing: a stream's GET, the end of a session, an exchange that is not MCP.
    async fn pass_on(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        mut request: ReadRequest,
        nothing: NothingCalled,
        asker: &mut Asker,
    ) -> Answer {
        let (line, sent) = (self.line(&request.parts.method, &request.parts.uri), request.body.len());
        let upgrade = request.upgrade.take();
        let permit = Permit::for_no_call(nothing);
        let exchange = self.exchange_of(flow, &request.parts);
        let ends = request.parts.method == Method::DELETE && exchange.session.name.is_some();
        let digest = (sent > 0).then(|| self.masker.digest(&request.body));
        let answer =
            self.send(flow, request, permit, Vec::new(), asker.closed()).await.map(|(answer, _)| answer);
        if ends && answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            self.sessions.end(&exchange.session);
            exchange.session.parked().iter().for_each(|open| open.give_up());
        }
        self.note_exchange(flow, &exchange, line, Some((sent, digest)), &answer).await?;
        match (answer?, upgrade) {
            (answer, Some(client)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Ok(self.tunnel(flow, client, answer))
            }
            (answer, _) => Ok(self.carry_back(flow, exchange, answer, Vec::new())),
        }
    }

    /// A request in whose body nobody finds a message, and which goes on as it comes.
    async fn stream_on(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: StreamedRequest,
        asker: &mut Asker,
    ) -> Answer {
        let permit = Permit::for_no_call(NothingCalled::in_stream(&request));
        let StreamedRequest { parts, body } = request;
        let line = self.line(&parts.method, &parts.uri);
        let exchange = self.exchange_of(flow, &parts);
        let answer = self.send_parts(flow, parts, body, permit, asker.closed()).await;
        self.note_exchange(flow, &exchange, line, None, &answer).await?;
        Ok(self.carry_back(flow, exchange, answer?, Vec::new()))
    }

    /// Records an exchange that is no MCP. `sent` are the bytes of its request's body and their digest, if it was read.
    async fn note_exchange(
        &self,
        flow: &Flow,
        exchange: &Exchange,
        line: Masked<String>,
        sent: Option<(usize, Option<String>)>,
        answer: &Result<Response<AnswerBody>, Broken>,
    ) -> Result<(), LedgerError> {
        let (label, end) = match answer {
            Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                (MessageLabel::Upgraded, " -> 101".to_owned())
            }
            Ok(answer) => (MessageLabel::Http, format!(" -> {}", answer.status().as_u16())),
            Err(broken) => (MessageLabel::Http, format!(" -> {broken}")),
        };
        let payload = record::Payload {
            text: line.then(&self.masker.text(&end)),
            truncated: sent.as_ref().is_none_or(|(bytes, _)| *bytes > 0),
            bytes: sent.as_ref().map_or(0, |(bytes, _)| *bytes as u64),
            digest: sent.and_then(|(_, digest)| digest),
            ..record::Payload::default()
        };
        let about = (&*exchange.session, Direction::ClientToServer, None);
        self.note_unread(flow, about, label, None, payload).await
    }

    /// Both sides have agreed on a web socket: its bytes are passed on unread until one side ends it.
    fn tunnel(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        client: Upgrade,
        mut answer: Response<AnswerBody>,
    ) -> Response<Body> {
        let (client, server) = (client.agreed(), hyper::upgrade::on(&mut answer));
        let tasks = self.tasks.clone();
        flow.tunnels.spawn(async move {
            let joined = async {
                let (client, server) = tokio::try_join!(client, server)?;
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                Ok::<_, hyper::Error>(tokio::io::copy_bidirectional(&mut client, &mut server).await)
            };
            tokio::select! {
                _ = joined => {}
                () = tasks.ending() => {}
            }
        });
        let (mut head, _) = answer.into_parts();
        room::answer(&mut head);
        Response::from_parts(head, room::full(Bytes::new()))
    }

    /// Under TLS, a request for another name than the proven one goes nowhere (RFC 9110, 15.5.20).
    async fn refuse_misdirected(
        &self,
        flow: &Flow,
        request: &Request<Received>,
    ) -> Result<Option<Response<Body>>, Broken> {
        if flow.server.record.proof == record::Proof::Unproven {
            return Ok(None);
        }
        let authority = Authority::of(request.version(), request.uri(), request.headers());
        if authority.as_ref().is_some_and(|authority| authority.as_str() == flow.server.name) {
            return Ok(None);
        }
        let asked = authority.map_or_else(|| "no one name".to_owned(), |a| format!("{:?}", a.as_str()));
        let why = format!(": the request names {asked}, and the server is {:?}", flow.server.name);
        let line = self.line(request.method(), request.uri());
        self.note_refused(flow, MessageLabel::Misdirected, line.then(&self.masker.text(&why))).await?;
        Ok(Some(reply::plain(421, "Weir: this connection is to another server than the request names\n")))
    }

    /// What a flow's client or its server sent that could be read in two ways, now that the flow is over: of each the first such thing.
    pub async fn note_framing(&self, flow: &Flow, served: Served) {
        // In boxes: a connection idles with all the place that its end needs, and there is nearly never anything to say.
        if let Some(what) = served.ambiguous() {
            Box::pin(self.note_ambiguous(flow, Direction::ClientToServer, what)).await;
        }
        if let Some(what) = flow.upstream.ambiguous() {
            Box::pin(self.note_ambiguous(flow, Direction::ServerToClient, what)).await;
        }
    }

    /// What one of a flow's two sides sent could be read in two ways, and was refused.
    async fn note_ambiguous(&self, flow: &Flow, direction: Direction, what: Ambiguous) {
        let payload = self.payload_of_text(&format!("{}: {what}", what.label()));
        if let Err(error) = self.note(flow, None, direction, "", MessageLabel::Ambiguous, payload).await {
            tracing::error!(%error, "an ambiguous message was not recorded");
        }
    }

    /// What policy cannot read does not go upstream.
    async fn refuse_unreadable(
        &self,
        flow: &Flow,
        parts: &Parts,
        (status, why): (u16, Option<Unread>),
        error: impl std::error::Error,
    ) -> Answer {
        let line = self.line(&parts.method, &parts.uri);
        let text = line.then(&self.masker.text(&format!(": {error}")));
        self.note_unreadable(flow, &self.session_of(flow, parts), why, text).await?;
        Ok(reply::unreadable(status, &error))
    }

    /// Policy refuses: the client gets an error for each request, and its session lives on.
    fn refuse(&self, body: &jsonrpc::Body, calls: Vec<OpenCall>) -> Option<String> {
        let refusing = calls.iter().find(|call| call.verdict().action != Action::Allow);
        let rule = refusing.map_or_else(String::new, |call| call.verdict().rule.clone());
        let reason = format!("refused by Weir: rule {rule}");
        for call in calls {
            call.refused(self, &reason);
        }
        reply::refusal(body, &reason)
    }
}
