//! One flow's connections to its server. They are dialled to the flow's own destination. Over HTTP/2 one carries all exchanges, and is the
//! flow's alone; over HTTP/1.1 one exchange at a time, and another is dialled when none is free, or when the server closed it between two
//! exchanges. Of HTTP/1.1 in TLS, those that wait may be used by other flows of the same job to the same proven server
//! ([`super::shelf`]), unless somebody authenticates for the connection (NTLM, Negotiate). A request is never sent twice.
//!
//! A connection of HTTP/2 is driven by a task of its own. One of HTTP/1.1 is driven by whoever waits for its answer or reads that, and
//! between exchanges by the flow ([`Upstream::idling`]), so that nobody must be woken for what comes: see [`super::idle`].

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::client::conn::{TrySendError, http1};
use hyper::ext::on_informational;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use weir_core::http1::Ambiguous;
use weir_core::ids::FlowId;

use super::MAX_HEAD;
use super::guarded::{First, Guarded};
use super::head::{request_to, wants_websocket};
use super::http2::{Http2, Unsent};
use super::idle::{AnswerBody, Http1, Idle};
use super::interim::Asking;
use super::outgoing::Outgoing;
use super::received::{Broke, Received};
use super::shelf::{Proven, Shelf, Spare};
use crate::gate::Permit;
use crate::tasks::Tasks;
use crate::tls::{Protocol, Spoken};

/// A connection that HTTP can be spoken over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens another connection to the same server, proven in the same way, that speaks what the first one does.
pub type Redial =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Dialled, String>> + Send>> + Send + Sync>;

/// A connection that was opened.
pub struct Dialled {
    pub stream: Box<dyn Stream>,
    /// What its server proved; nothing in plain text.
    pub proven: Option<Arc<Proven>>,
}

/// A flow's first connection.
pub enum Beginning {
    Dialled(Dialled),
    /// Another flow of the same job dialled it.
    Spare(Box<Spare>),
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamFailure {
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the server broke off: {0}")]
    BrokenOff(#[from] Broke),
    /// Two readers could take it for two answers.
    #[error("the server's answer is ambiguous ({}): {}", _0.label(), _0)]
    Ambiguous(Ambiguous),
    /// What follows could not be read.
    #[error("the server changed the protocol, which nobody asked for")]
    Upgraded,
}

/// See the module.
pub struct Upstream {
    idle: Arc<Idle>,
    shared: Mutex<Option<Http2>>,
    spoken: Spoken,
    redial: Redial,
    tasks: Tasks,
    ambiguous: First,
    flow: FlowId,
    /// A connection was used that another flow dialled.
    borrowed: AtomicBool,
}

/// Who carries one exchange.
enum Sender {
    Http1(Http1),
    Http2(Http2),
}

impl Upstream {
    /// Speaks HTTP over `first` for a flow, and over what waits on its shelf; `tasks` owns what drives the connections.
    pub async fn new(
        flow: FlowId,
        first: Beginning,
        spoken: Spoken,
        (redial, shelf): (Redial, Option<Arc<Shelf>>),
        tasks: Tasks,
    ) -> Result<Self, UpstreamFailure> {
        let (idle, shared) = (Arc::new(Idle::of(spoken.by_client, shelf)), Mutex::default());
        let (ambiguous, borrowed) = (First::default(), AtomicBool::new(false));
        let upstream = Self { idle, shared, spoken, redial, tasks, ambiguous, flow, borrowed };
        match first {
            Beginning::Spare(spare) => {
                let connection = upstream.lent(spare.connection);
                upstream.idle.put_own(connection);
            }
            Beginning::Dialled(first) => match upstream.handshake(first).await? {
                Sender::Http1(sender) => upstream.idle.put_own(sender),
                Sender::Http2(sender) => *upstream.shared() = Some(sender),
            },
        }
        Ok(upstream)
    }

    /// Whether it used a connection that another flow of its job had dialled.
    pub fn has_borrowed(&self) -> bool {
        self.borrowed.load(Ordering::Relaxed)
    }

    /// One from the shelf becomes this flow's for an exchange.
    fn lent(&self, connection: Http1) -> Http1 {
        connection.guard.tell_faults_to(self.ambiguous.clone());
        if connection.proven.as_ref().is_some_and(|proven| proven.by != self.flow) {
            self.borrowed.store(true, Ordering::Relaxed);
        }
        connection
    }

    /// Drives the connections that wait for their next exchange, for as long as the flow lives.
    pub async fn idling(&self) {
        self.idle.drive().await;
    }

    /// The first thing of all that the server sent that could be read in two ways.
    pub fn ambiguous(&self) -> Option<Ambiguous> {
        self.ambiguous.get().copied()
    }

    /// Sends one request. The permit says that it may go, and is used up.
    pub async fn send(
        &self,
        mut parts: Parts,
        mut body: Outgoing,
        _permit: Permit,
    ) -> Result<Response<AnswerBody>, UpstreamFailure> {
        let may_upgrade = wants_websocket(&parts);
        let is_personal = authenticates_connection(&parts.headers);
        if let Some(mut sender) = self.free().await {
            sender.is_personal(is_personal);
            match sender.send(parts, body).await {
                Ok(answer) => return self.answered(sender, answer, may_upgrade),
                // The server had closed the connection, and not a byte of the request went out.
                Err(Unsent { request: Some(unsent), .. }) => (parts, body) = unsent.into_parts(),
                Err(Unsent { error, .. }) => return Err(sender.failure(error)),
            }
        }
        let dialled = (self.redial)().await.map_err(UpstreamFailure::Unreachable)?;
        let mut sender = self.handshake(dialled).await?;
        sender.is_personal(is_personal);
        match sender.send(parts, body).await {
            Ok(answer) => self.answered(sender, answer, may_upgrade),
            Err(Unsent { error, .. }) => Err(sender.failure(error)),
        }
    }

    /// A connection that can carry an exchange now, or as soon as the one before it is over.
    async fn free(&self) -> Option<Sender> {
        if let Some(shared) = self.shared().as_ref().filter(|shared| shared.is_open()) {
            return Some(Sender::Http2(shared.clone()));
        }
        // Beside others nobody waits for one that is still busy, which it may be for a long time.
        let waits = self.spoken.by_client == Protocol::Http1;
        while let Some(mut idle) = self.idle.take() {
            if idle.is_ready(waits).await {
                return Some(Sender::Http1(idle));
            }
        }
        while let Some(mut kept) = self.idle.take_shared(&self.flow) {
            // Whatever it would wait for is not this flow's.
            if kept.is_ready(false).await {
                return Some(Sender::Http1(self.lent(kept)));
            }
        }
        None
    }

    fn answered(
        &self,
        mut sender: Sender,
        answer: Response<Received>,
        may_upgrade: bool,
    ) -> Result<Response<AnswerBody>, UpstreamFailure> {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let answer = answer.map(AnswerBody::of_a_task);
            return if may_upgrade { Ok(answer) } else { Err(UpstreamFailure::Upgraded) };
        }
        sender.is_personal(authenticates_connection(answer.headers()));
        Ok(answer.map(|body| match sender {
            Sender::Http1(sender) => AnswerBody::new(body, sender, self.idle.clone()),
            Sender::Http2(sender) => {
                let mut shared = self.shared();
                if !shared.as_ref().is_some_and(Http2::is_open) {
                    // One that its server closed must not take another's place.
                    *shared = Some(sender);
                }
                AnswerBody::of_a_task(body)
            }
        }))
    }

    fn shared(&self) -> MutexGuard<'_, Option<Http2>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handshake(&self, Dialled { stream, proven }: Dialled) -> Result<Sender, UpstreamFailure> {
        Ok(match self.spoken.by_server {
            Protocol::Http1 => {
                let (stream, guard) = Guarded::responses(stream, self.ambiguous.clone());
                let (sender, connection) = http1::Builder::new()
                    .preserve_header_case(true)
                    .max_buf_size(MAX_HEAD)
                    .max_header_size(MAX_HEAD)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(Broke::from)?;
                let mut connection = connection.with_upgrades();
                let driven = poll_fn(move |context| Pin::new(&mut connection).poll(context).map(ended));
                Sender::Http1(Http1::new(sender, guard, self.tasks.here(driven), proven))
            }
            Protocol::Http2 => {
                let begun = Http2::begin(stream, self.tasks.clone(), self.ambiguous.clone()).await;
                Sender::Http2(begun.map_err(Broke::from)?)
            }
        })
    }
}

fn ended(connection: hyper::Result<()>) {
    if let Err(error) = connection {
        tracing::debug!(%error, "upstream connection ended");
    }
}

/// Whether what is said authenticates a connection and not an exchange (RFC 4559, and NTLM over HTTP).
fn authenticates_connection(headers: &HeaderMap) -> bool {
    const SCHEMES: [&[u8]; 2] = [b"negotiate", b"ntlm"];
    let says = |value: &HeaderValue| {
        // A challenge may come after others, in the same line.
        let mut words = value.as_bytes().split(|byte| matches!(byte, b' ' | b',' | b'\t'));
        words.any(|word| SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)))
    };
    headers.get_all(AUTHORIZATION).iter().chain(headers.get_all(WWW_AUTHENTICATE)).any(says)
}

impl Sender {
    async fn send(&mut self, mut parts: Parts, body: Outgoing) -> Result<Response<Received>, Unsent> {
        match self {
            Sender::Http1(http1) => {
                request_to(&mut parts, Protocol::Http1);
                http1.guard.expect(&parts.method);
                let client = Asking::of(&parts.extensions);
                let mut request = Request::from_parts(parts, body);
                if let Some(client) = client {
                    on_informational(&mut request, move |said| client.tell(said.status(), said.headers()));
                }
                http1.send(request).await.map_err(Unsent::from)
            }
            Sender::Http2(http2) => {
                request_to(&mut parts, Protocol::Http2);
                http2.send(Request::from_parts(parts, body)).await
            }
        }
    }

    /// Whether somebody authenticates for the whole connection; once is enough.
    fn is_personal(&mut self, is_personal: bool) {
        if let Sender::Http1(http1) = self {
            http1.is_personal |= is_personal;
        }
    }

    fn failure(&self, error: Broke) -> UpstreamFailure {
        match self {
            Sender::Http1(Http1 { guard, .. }) => {
                guard.fault().map_or_else(|| error.into(), UpstreamFailure::Ambiguous)
            }
            Sender::Http2(_) => match error {
                Broke::Ambiguous(what) => UpstreamFailure::Ambiguous(what),
                error => error.into(),
            },
        }
    }
}

impl From<TrySendError<Request<Outgoing>>> for Unsent {
    fn from(mut error: TrySendError<Request<Outgoing>>) -> Self {
        Self { request: error.take_message(), error: error.into_error().into() }
    }
}
