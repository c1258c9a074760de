//! The HTTP side: connections, their limits, and who may pass.
//!
//! In: a bound listener, an open engine, the secret. Out: served requests, until told to stop. Credentials are checked
//! before a body is read. Engine calls run on blocking threads, never here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ask::Ask;
use crate::engine::Engine;
use crate::fault::{Fault, code};
use crate::job::{self, Answers, MAX_BODY_BYTES};
use crate::reply::{self, Reply, Server};
use crate::secret::{Presented, Secret};

/// Requests that are past their credentials: bodies in memory, queries in the engine.
pub const MAX_QUERIES: usize = 16;
/// More connections wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 256;
/// How long a request waits for one of `MAX_QUERIES`.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// From a connection's first byte, or the end of its last answer, to the end of a request's head. ClickHouse's
/// `keep_alive_timeout` is the same.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// The longest silence within a body.
const BODY_WAIT: Duration = Duration::from_secs(60);
/// The longest URL and headers; queries in a URL are short ones.
const MAX_HEAD_BYTES: usize = 1 << 20;
/// A body past its limit is read on to this many times the limit, so that its sender gets to see the answer.
const OVERRUN_FACTOR: usize = 4;
/// After `accept` has failed (too many open files), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
pub struct Store {
    engine: Arc<Engine>,
    secret: Secret,
    server: Server,
    queries: Arc<Semaphore>,
    answers: Arc<Answers>,
}

impl Store {
    pub fn new(engine: Arc<Engine>, secret: Secret, server: Server) -> Self {
        Self {
            engine,
            secret,
            server,
            queries: Arc::new(Semaphore::new(MAX_QUERIES)),
            answers: Arc::new(Answers::new()),
        }
    }
}

/// Serves until `stop`, and waits for running requests as long as `patience`; says whether all of them ended.
pub async fn serve(
    listener: TcpListener,
    store: Arc<Store>,
    stop: CancellationToken,
    patience: Duration,
) -> bool {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = connection(stream, store.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    timeout(patience, connections.wait()).await.is_ok()
}

async fn connection(stream: TcpStream, store: Arc<Store>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let store = store.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&store, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(store: &Store, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let raw_url = head.uri.query().unwrap_or_default();
    match (&head.method, head.uri.path()) {
        (&Method::GET | &Method::HEAD, "/ping" | "/replicas_status") => {
            return reply::plain(StatusCode::OK, "Ok.\n");
        }
        (&Method::GET | &Method::HEAD, "/") if raw_url.is_empty() => {
            return reply::plain(StatusCode::OK, "Ok.\n");
        }
        (&Method::GET | &Method::POST, "/") => {}
        (_, "/") => return reply::plain(StatusCode::METHOD_NOT_ALLOWED, "the store takes GET and POST\n"),
        _ => {
            return reply::plain(
                StatusCode::NOT_FOUND,
                "there is nothing here: queries go to /, and /ping answers\n",
            );
        }
    }
    let url: Vec<(String, String)> = form_urlencoded::parse(raw_url.as_bytes()).into_owned().collect();
    let presented = Presented::of(&head.headers, &url);
    if !presented.as_ref().is_some_and(|presented| store.secret.admits(presented)) {
        tracing::warn!(presented = presented.is_some(), "refused a request without the secret");
        let fault = Fault::new(
            code::AUTHENTICATION_FAILED,
            "AUTHENTICATION_FAILED",
            "default: Authentication failed: send user `default` and the content of the secret file as its password",
        );
        return reply::unauthenticated(&store.server, &fault, presented.is_some());
    }
    let started = Instant::now();
    let ask = match Ask::of(&head, url) {
        Ok(ask) => ask,
        Err(fault) => return reply::fault(&store.server, None, &fault),
    };
    let query_id = ask.query_id.clone();
    match admitted(store, ask, body).await {
        Ok(done) => reply::done(&store.server, query_id.as_deref(), done, started.elapsed().as_nanos()),
        Err(fault) => {
            tracing::debug!(code = fault.code(), "query failed");
            reply::fault(&store.server, query_id.as_deref(), &fault)
        }
    }
}

/// A request past its credentials. Once the body is here, the job runs to its end even if the peer goes away.
async fn admitted(store: &Store, ask: Ask, body: Incoming) -> Result<job::Done, Fault> {
    let slot = match timeout(QUEUE_WAIT, store.queries.clone().acquire_owned()).await {
        Ok(Ok(slot)) => slot,
        _ => {
            return Err(Fault::new(
                code::TOO_MANY_SIMULTANEOUS_QUERIES,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                format!("Too many simultaneous queries. Maximum: {MAX_QUERIES}"),
            ));
        }
    };
    let body = whole(body).await?;
    let (engine, answers) = (store.engine.clone(), store.answers.clone());
    let job = tokio::task::spawn_blocking(move || {
        let done = job::run(&engine, ask, body, &answers);
        drop(slot);
        done
    });
    job.await.unwrap_or_else(|error| Err(Fault::from_engine(format!("the query's thread broke: {error}"))))
}

/// The whole body, or a fault that says why there is none.
async fn whole(mut body: Incoming) -> Result<Bytes, Fault> {
    let mut whole = BytesMut::new();
    let mut length = 0_usize;
    loop {
        let frame = match timeout(BODY_WAIT, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(Fault::new(
                    code::NETWORK_ERROR,
                    "NETWORK_ERROR",
                    format!("the body broke off: {error}"),
                ));
            }
            Ok(None) => break,
            Err(_) => {
                let what = format!("no byte of the body for {} seconds", BODY_WAIT.as_secs());
                return Err(Fault::new(code::SOCKET_TIMEOUT, "SOCKET_TIMEOUT", what));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= MAX_BODY_BYTES {
            whole.extend_from_slice(&data);
        } else {
            whole = BytesMut::new();
        }
        if length > OVERRUN_FACTOR * MAX_BODY_BYTES {
            break;
        }
    }
    if length > MAX_BODY_BYTES {
        return Err(Fault::new(
            code::QUERY_IS_TOO_LARGE,
            "QUERY_IS_TOO_LARGE",
            format!("the body is larger than {MAX_BODY_BYTES} bytes: send it in parts"),
        ));
    }
    Ok(whole.freeze())
}
