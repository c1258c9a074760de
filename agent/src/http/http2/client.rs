//! The server's side: one connection that carries exchanges beside each other, driven by a task of its own. An exchange is carried by
//! whoever waits for its answer; what is left of its request's body then is a task's.
//!
//! Enters: a connection, and requests. Leaves: their answers, and before each what the server says earlier (1xx). Must never: send more
//! streams than the server takes at a time, or say of a request that nothing of it went out when something may have.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::pump::Pump;
use super::refusals::Watched;
use super::stream::StreamBody;
use super::{CONNECTION_WINDOW, MAX_FAULTS, MAX_FRAME, STREAM_WINDOW, refused};
use crate::http::MAX_HEAD;
use crate::http::guarded::First;
use crate::http::head::{one_connections_alone, two_readings};
use crate::http::interim::Asking;
use crate::http::outgoing::Outgoing;
use crate::http::received::{Broke, Received};
use crate::tasks::Tasks;

/// How many streams there may be before the server has said how many it takes.
const STREAMS_AT_FIRST: usize = 100;
/// How many bytes of a request wait for one stream's server.
const SEND_BUFFER: usize = 1 << 20;
/// How many heads before the answer are taken before others may go on.
const HEADS_AT_ONCE: usize = 32;

/// A connection to a server. Clones share it; it ends with the last of them, and of its exchanges.
#[derive(Clone)]
pub struct Http2 {
    /// Whose turn it is to open a stream: until that is open, the next request is not sent, and can go elsewhere.
    turn: Arc<Mutex<SendRequest<Bytes>>>,
    tasks: Tasks,
    /// What the server sent that was refused, the first of all.
    first: First,
}

/// A request that got no answer.
pub struct Unsent {
    pub error: Broke,
    /// The request, if nothing of it went out.
    pub request: Option<Request<Outgoing>>,
}

impl Http2 {
    /// Begins to speak; `tasks` owns what drives the connection, and `first` is told of what the server sends that is refused.
    pub async fn begin<S>(server: S, tasks: Tasks, first: First) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (requests, connection) = Builder::new()
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_local_error_reset_streams(Some(MAX_FAULTS))
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake(Watched::to_server(server, first.clone()))
            .await?;
        let told = first.clone();
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                if let Some(what) = refused(&error) {
                    let _ = told.set(what);
                }
                tracing::debug!(error = %Broke::from(error), "upstream connection ended");
            }
        });
        Ok(Self { turn: Arc::new(Mutex::new(requests)), tasks, first })
    }

    /// Whether there can be another exchange, as far as is known by now.
    pub fn is_open(&self) -> bool {
        let Ok(mut requests) = self.turn.try_lock() else { return true };
        // Nobody waits for a stream to open, or they would have the turn.
        let ready = requests.poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Err(_)))
    }

    /// Sends a request, and tells the client what the server says before its answer.
    pub async fn send(&self, request: Request<Outgoing>) -> Result<Response<Received>, Unsent> {
        let mut turn = self.turn.clone().lock_owned().await;
        if let Err(error) = poll_fn(|context| turn.poll_ready(context)).await {
            return Err(Unsent { error: error.into(), request: Some(request) });
        }
        let client = Asking::of(request.extensions());
        let (mut parts, body) = request.into_parts();
        one_connections_alone(&mut parts.headers, false);
        if let Some(length) = body.size_hint().exact()
            && (length != 0 || has_body(&parts.method))
            && !parts.headers.contains_key(CONTENT_LENGTH)
        {
            parts.headers.insert(CONTENT_LENGTH, length.into());
        }
        let is_whole = body.is_end_stream();
        let sent = turn.send_request(Request::from_parts(parts, ()), is_whole);
        let (answer, stream) = sent.map_err(Unsent::in_part)?;
        self.opened(turn).await;
        let pump = (!is_whole).then(|| Pump::new(stream, body)).and_then(Pump::begun);
        let mut exchange = Exchange { answer, pump, client };
        let answer = poll_fn(|context| exchange.poll(context)).await.map_err(|error| self.failed(error))?;
        if let Some(what) = two_readings(answer.headers()) {
            // Dropped, the stream is reset.
            let _ = self.first.set(what);
            return Err(Unsent { error: what.into(), request: None });
        }
        if let Some(pump) = exchange.pump {
            self.tasks.spawn(pump);
        }
        let (head, body) = answer.into_parts();
        let body = StreamBody::new(body, &head.headers, None, self.first.clone());
        Ok(Response::from_parts(head, Received::Http2(body)))
    }

    /// There is no answer; if that is because of what the server sent, it is told.
    fn failed(&self, error: h2::Error) -> Unsent {
        let Some(what) = refused(&error) else { return Unsent::in_part(error) };
        let _ = self.first.set(what);
        Unsent { error: what.into(), request: None }
    }

    /// Waits until the server takes the stream that was sent last: until then no room for its body is asked for, of which the open
    /// ones would have the less, and the turn is kept, also if nobody waits for the answer any more.
    async fn opened(&self, mut turn: OwnedMutexGuard<SendRequest<Bytes>>) {
        let polled = poll_fn(|context| Poll::Ready(turn.poll_ready(context))).await;
        if polled.is_pending() {
            let opening = async move { drop(poll_fn(|context| turn.poll_ready(context)).await) };
            // What is wrong with the connection its answer will say.
            self.tasks.here(opening).await;
        }
    }
}

/// One request that goes out while its answer is waited for.
struct Exchange {
    answer: ResponseFuture,
    pump: Option<Pump<Outgoing>>,
    client: Option<Asking>,
}

impl Exchange {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<h2::RecvStream>, h2::Error>> {
        if let Some(pump) = &mut self.pump
            && Pin::new(pump).poll(context).is_ready()
        {
            self.pump = None;
        }
        for _ in 0..HEADS_AT_ONCE {
            match ready!(self.answer.poll_informational(context)) {
                Some(Ok(said)) => {
                    if let Some(client) = &self.client {
                        client.tell(said.status(), said.headers());
                    }
                }
                // The answer, or why there is none.
                Some(Err(_)) | None => return Pin::new(&mut self.answer).poll(context),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Unsent {
    fn in_part(error: h2::Error) -> Self {
        Self { error: error.into(), request: None }
    }
}

/// Whether a request without a length would be one whose body's is not known (RFC 9110, 8.6).
fn has_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}
