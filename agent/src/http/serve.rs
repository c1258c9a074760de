//! The client's side: exchanges of one connection, one after the other (HTTP/1.1) or beside each other (HTTP/2), until either side closes
//! it.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use weir_core::http1::Ambiguous;

use super::MAX_HEAD;
use super::body::{Body, BodyError, full};
use super::guarded::{Guard, Guarded};
use super::head::takes_events;
use super::http2::{Accepting, Asked, answer, is_flood};
use super::received::Received;
use crate::tasks::Tasks;
use crate::tls::Protocol;

/// The most exchanges that a client may have open on one HTTP/2 connection.
pub const MAX_STREAMS: u32 = 128;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Either side closed it, or the time for the next request was over.
    Closed,
    /// What came was no HTTP.
    Unreadable,
    /// What came could be read in two ways, and was refused. Over HTTP/1.1 nothing came behind it; over HTTP/2 it is the first of what
    /// was refused, and other streams may have gone on.
    Ambiguous(Ambiguous),
    /// The client was thrown out, since it sent a flood of what costs it nothing; and what before could be read in two ways.
    Flooded(Option<Ambiguous>),
    Broken,
}

impl Served {
    /// What could be read in two ways, if anything could.
    pub fn ambiguous(self) -> Option<Ambiguous> {
        match self {
            Served::Ambiguous(what) => Some(what),
            Served::Flooded(what) => what,
            Served::Closed | Served::Unreadable | Served::Broken => None,
        }
    }
}

/// What a client has to keep to.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    pub protocol: Protocol,
    /// The time that it has to send a request's whole head, and may let pass between two requests.
    pub idle: Duration,
    /// How long it may take to answer when the connection is to end, and to wait for its answer with half a connection.
    pub farewell: Duration,
}

/// Speaks HTTP with a client. When the agent ends, the connection may finish its exchanges, as long as tasks may. When another agent takes
/// new connections, a client of HTTP/1.1 is told with each answer that it is the connection's last (one that is idle is left to its client,
/// who may be about to use it), and one of HTTP/2 at once.
pub async fn serve<S, A, E>(
    client: S,
    manners: Manners,
    tasks: &Tasks,
    exchange: impl Fn(Request<Received>) -> A + Send,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Result<Response<Body>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    match manners.protocol {
        Protocol::Http1 => serve_http1(client, manners, tasks, exchange).await,
        // Larger than the other, which most connections are.
        Protocol::Http2 => Box::pin(serve_http2(client, manners, tasks, exchange)).await,
    }
}

async fn serve_http1<S, A, E>(
    client: S,
    manners: Manners,
    tasks: &Tasks,
    exchange: impl Fn(Request<Received>) -> A,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Result<Response<Body>, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let (client, guard) = Guarded::requests(client, manners.farewell);
    let service = service_fn(|mut request: Request<Incoming>| {
        // An answer that may be a stream of events is ended by its client's leaving.
        guard.begin(!takes_events(request.headers()), request.version());
        request.extensions_mut().insert(guard.clone());
        let (answer, open) = (exchange(request.map(Received::Http1)), Open::OfGuard(guard.clone()));
        async {
            let answered = answer.await;
            guard.answered();
            let mut answer = match answered {
                // Its body was heard no further.
                Err(_) if guard.fault().is_some() => ambiguous(),
                answered => answered?,
            };
            if tasks.is_retiring() && !answer.headers().contains_key(http::header::UPGRADE) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, E>(answer.map(|body| Tracked { body, open }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(manners.idle)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .preserve_header_case(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = tasks.ending() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                served = connection => served,
                () = tasks.over() => return Served::Broken,
            }
        }
    };
    guard.fault().map_or_else(|| ended(served), Served::Ambiguous)
}

async fn serve_http2<S, A, E>(
    client: S,
    manners: Manners,
    tasks: &Tasks,
    exchange: impl Fn(Request<Received>) -> A,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Result<Response<Body>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut connection = Accepting::new(client);
    let served = exchanges_beside(&mut connection, manners, tasks, exchange).await;
    match (served, connection.ambiguous()) {
        (Served::Flooded(_), what) => Served::Flooded(what),
        (served, what) => what.map_or(served, Served::Ambiguous),
    }
}

async fn exchanges_beside<S, A, E>(
    connection: &mut Accepting<S>,
    manners: Manners,
    tasks: &Tasks,
    exchange: impl Fn(Request<Received>) -> A,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Future<Output = Result<Response<Body>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let open = watch::Sender::new(0_usize);
    let begin = |asked: Asked| {
        let Asked { request, reply } = asked;
        let (exchange, open) = (exchange(request), Open::one_of(&open));
        tasks.spawn(answer(
            reply,
            async move { Ok::<_, E>(exchange.await?.map(|body| Tracked { body, open })) },
        ));
    };
    let (mut idle, mut retiring) = (pin!(quiet(open.subscribe(), manners.idle)), pin!(tasks.retiring()));
    loop {
        tokio::select! {
            asked = connection.next() => match asked {
                Some(Ok(asked)) => begin(asked),
                Some(Err(error)) if is_flood(&error) => return Served::Flooded(None),
                Some(Err(_)) => return Served::Broken,
                None => return Served::Closed,
            },
            () = &mut idle => break,
            () = &mut retiring => break,
        }
    }
    connection.leave();
    // A client that has nothing open, and does not say goodbye.
    let (mut silent, mut over) = (pin!(quiet(open.subscribe(), manners.farewell)), pin!(tasks.over()));
    loop {
        tokio::select! {
            asked = connection.next() => match asked {
                Some(Ok(asked)) => begin(asked),
                // However the client takes it.
                Some(Err(_)) | None => return Served::Closed,
            },
            () = &mut silent => return Served::Closed,
            () = &mut over => return Served::Broken,
        }
    }
}

/// What the parser itself says to a head that is no HTTP.
fn ambiguous() -> Response<Body> {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = http::StatusCode::BAD_REQUEST;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn ended(served: hyper::Result<()>) -> Served {
    match served {
        Ok(()) => Served::Closed,
        Err(error) if error.is_timeout() => Served::Closed,
        Err(error) if error.is_parse() => Served::Unreadable,
        Err(_) => Served::Broken,
    }
}

/// Resolves when nothing has been open for so long.
async fn quiet(mut open: watch::Receiver<usize>, within: Duration) {
    loop {
        let _ = open.wait_for(|open| *open == 0).await;
        let opened = tokio::time::timeout(within, open.wait_for(|open| *open > 0)).await;
        if opened.is_err() {
            return;
        }
    }
}

/// One exchange that is open, from its request's head to its answer's end.
enum Open {
    /// One of those that a connection has.
    OneOf(watch::Sender<usize>),
    /// The only one.
    OfGuard(Guard),
}

impl Open {
    fn one_of(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self::OneOf(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        match self {
            Open::OneOf(open) => open.send_modify(|open| *open -= 1),
            Open::OfGuard(guard) => guard.strict(),
        }
    }
}

/// An answer's body, whose exchange is open for as long as it is there.
struct Tracked {
    body: Body,
    #[expect(dead_code, reason = "held for its drop")]
    open: Open,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
