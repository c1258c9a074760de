//! HTTP on one connection, 1.1 or 2: requests come in, each is bounded in head, body and time, and led to the part
//! that answers it. Whoever is no agent gets the same refusal for everything, before a body is read; a stranger over TLS may
//! ask for a certificate, once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;
use weir_core::evidence::note::MAX_NOTE;
use weir_core::segment::{MAX_FRAME, MAX_SEGMENT};
use weir_core::wire::{self, CertificateRequest, Reason, Refusal};

use super::checkpoints::MAX_POST_BODY;
use super::coding::Coding;
use super::tls::Certified;
use super::{Ingest, now_us, refusal};
use crate::agent::Agent;
use crate::enrol;

/// A segment is sealed when it passes its limit: by at most one frame.
const MAX_SEGMENT_BODY: usize = MAX_SEGMENT + MAX_FRAME + (64 << 10);
/// The most bytes of a hold.
const MAX_HOLD_BODY: usize = MAX_FRAME;
/// The most bytes of a poll: [`wire::MAX_OPEN_HOLDS`] ids.
const MAX_POLL_BODY: usize = 512 << 10;
/// The most bytes of a request for a certificate.
const MAX_CERTIFICATE_BODY: usize = 16 << 10;
/// The most bytes of a key to enrol: a statement in it is a note.
const MAX_ENROL_BODY: usize = 2 * MAX_NOTE;
/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Requests at a time on a connection of HTTP/2.
const MAX_STREAMS: u32 = 16;
/// What a stream, and a connection, may send of HTTP/2 before it is read.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often a silent connection of HTTP/2 is asked whether anybody is there, and how long that may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);

/// How long a peer may take for what it sends.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// From a connection's first byte, or its last answer, to the end of a head.
    pub head: Duration,
    /// For a whole body.
    pub body: Duration,
    /// For all that one without a certificate has to say.
    pub stranger: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(60),
            body: Duration::from_secs(30),
            stranger: Duration::from_secs(30),
        }
    }
}

/// Who is at the other end, by what the connection proves.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// On the unix socket, by the kernel's word.
    Local(Agent),
    Enrolled(Certified),
    /// Over TLS, without a certificate.
    Stranger,
    /// A user of this host that is none of the agents'.
    Nobody,
}

type Answer = Response<Full<Bytes>>;

/// Spawns what hyper wants run on tasks that are waited for.
#[derive(Clone)]
struct Spawner(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, work: F) {
        self.0.spawn(work);
    }
}

/// Serves one connection to its end.
pub(super) async fn connection<S>(stream: S, ingest: Arc<Ingest>, peer: Peer, version: Version)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stop = ingest.stop.clone();
    let (waits, tasks) = (ingest.waits, ingest.work.clone());
    let is_stranger = matches!(peer, Peer::Stranger);
    let service = service_fn(move |request| {
        let (ingest, peer) = (ingest.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(ingest, peer, request).await) }
    });
    let io = TokioIo::new(stream);
    // One of them: the two kinds of connection end alike, and have no type in common.
    let (mut one, mut two) = (None, None);
    if version == Version::HTTP_2 {
        let mut builder = http2::Builder::new(Spawner(tasks));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT);
        two = Some(Box::pin(builder.serve_connection(io, service)));
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(waits.head).max_buf_size(MAX_HEAD);
        one = Some(Box::pin(builder.serve_connection(io, service)));
    }
    let served = async {
        tokio::select! {
            ended = ended(&mut one, &mut two) => return ended,
            () = stop.cancelled() => {}
        }
        if let Some(connection) = &mut one {
            connection.as_mut().graceful_shutdown();
        }
        if let Some(connection) = &mut two {
            connection.as_mut().graceful_shutdown();
        }
        ended(&mut one, &mut two).await
    };
    let ended = match is_stranger {
        true => tokio::time::timeout(waits.stranger, served).await.unwrap_or(Ok(())),
        false => served.await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn ended<A, B>(one: &mut Option<A>, two: &mut Option<B>) -> hyper::Result<()>
where
    A: Future<Output = hyper::Result<()>> + Unpin,
    B: Future<Output = hyper::Result<()>> + Unpin,
{
    match (one, two) {
        (Some(connection), _) => connection.await,
        (None, Some(connection)) => connection.await,
        (None, None) => Ok(()),
    }
}

async fn answer(ingest: Arc<Ingest>, peer: Peer, request: Request<Incoming>) -> Answer {
    let version = request.version();
    match led(ingest, peer, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::info!(reason = %refusal.reason, message = refusal.message, "refused");
            let mut answer = json(&refusal);
            *answer.status_mut() =
                StatusCode::from_u16(refusal.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            // What is left of a body is not read. (HTTP/2 resets the one request.)
            if version != Version::HTTP_2 {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    }
}

async fn led(ingest: Arc<Ingest>, peer: Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let agent = match peer {
        Peer::Nobody => {
            return Err(refusal(
                Reason::Forbidden,
                "this user is no agent; name it in [listen] agent_uids if it should be",
            ));
        }
        Peer::Stranger if request.uri().path() != wire::CERTIFICATE => {
            return Err(refusal(
                Reason::Forbidden,
                "this connection shows no certificate; enrol the host first: `weir enrol`",
            ));
        }
        Peer::Stranger => None,
        Peer::Enrolled(certified) => Some(ingest.admitted(certified).await?),
        Peer::Local(agent) => Some(agent),
    };
    let version = request.headers().get(wire::VERSION_HEADER).map(HeaderValue::as_bytes);
    if version != Some(wire::VERSION.as_bytes()) {
        let theirs = version.map_or("none".into(), String::from_utf8_lossy);
        let message =
            format!("the request has wire version {theirs}, and this collector speaks {}", wire::VERSION);
        return Err(refusal(Reason::Version, crate::visible::line(&message)));
    }
    if request.method() != Method::POST {
        return Err(refusal(Reason::Malformed, "the wire knows POST alone"));
    }
    let Some(agent) = agent else { return certified(&ingest, None, request).await };
    let _share = ingest.share(&ingest.requests, &agent)?;
    match request.uri().path() {
        wire::SEGMENTS => {
            let body = {
                // Taken before the body: so many are in memory, and no more; of one agent's, a part of them.
                let _share = ingest.share(&ingest.bodies, &agent)?;
                let Ok(_slot) = ingest.receiving.acquire().await else { return Err(stopping()) };
                body(request, MAX_SEGMENT_BODY, &ingest).await?
            };
            let Ok(_slot) = ingest.segments.acquire().await else { return Err(stopping()) };
            to_its_end(&ingest, ingest.clone().put_segment(body, agent)).await.map(|ack| json(&ack))
        }
        wire::CHECKPOINTS => {
            let body = body(request, MAX_POST_BODY, &ingest).await?;
            ingest.put_checkpoint(body, agent).await.map(|ack| json(&ack))
        }
        wire::ENROL => {
            let body = body(request, MAX_ENROL_BODY, &ingest).await?;
            to_its_end(&ingest, ingest.clone().put_key(body, agent)).await.map(|ack| json(&ack))
        }
        wire::HOLDS => {
            let body = body(request, MAX_HOLD_BODY, &ingest).await?;
            to_its_end(&ingest, ingest.clone().put_hold(body, agent)).await.map(|ack| json(&ack))
        }
        wire::POLL => {
            let body = body(request, MAX_POLL_BODY, &ingest).await?;
            ingest.poll(&body, &agent).await.map(|found| json(&found))
        }
        wire::CERTIFICATE => certified(&ingest, Some(agent), request).await,
        _ => Err(refusal(Reason::Malformed, "there is no such request")),
    }
}

fn stopping() -> Refusal {
    refusal(Reason::Unavailable, "the collector is stopping")
}

/// A first certificate for a stranger's token, or the next one for an agent that showed its own.
async fn certified(
    ingest: &Arc<Ingest>,
    agent: Option<Agent>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let Some(enrolment) = ingest.enrolment.clone() else {
        return Err(refusal(Reason::Malformed, "this collector certifies nobody: it has no [listen] tls"));
    };
    let body = body(request, MAX_CERTIFICATE_BODY, ingest).await?;
    let asked: CertificateRequest = serde_json::from_slice(&body)
        .map_err(|e| refusal(Reason::Malformed, format!("not a request for a certificate: {e}")))?;
    let Ok(_slot) = ingest.certificates.acquire().await else { return Err(stopping()) };
    let work = async move {
        match agent {
            None => enrolment.redeem(&asked, SystemTime::now()).await,
            Some(Agent::Enrolled(own)) => enrolment.renew(&own, &asked, SystemTime::now()).await,
            Some(Agent::Local { .. }) => {
                Err(refusal(Reason::Forbidden, "an agent of this host needs no certificate"))
            }
        }
    };
    to_its_end(ingest, work).await.map(|ack| json(&ack))
}

impl Ingest {
    /// The agent, unless its certificate has ended since the connection began, or its enrolment was revoked.
    async fn admitted(&self, certified: Certified) -> Result<Agent, Refusal> {
        if certified.expires_us <= now_us() {
            return Err(refusal(Reason::Forbidden, "this host's certificate has expired; enrol it again"));
        }
        let Some(revoked) = &self.revoked else { return Err(enrol::revoked()) };
        if revoked.has(&certified.agent.enrolment).await.map_err(super::unavailable)? {
            return Err(enrol::revoked());
        }
        Ok(Agent::Enrolled(certified.agent))
    }
}

/// Runs `work` on, even if the peer goes away meanwhile: an insert that has begun ends under its log's lock.
async fn to_its_end<T: Send + 'static>(
    ingest: &Ingest,
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    ingest.work.spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a task broke");
        Err(refusal(Reason::Unavailable, "the collector failed at this; its log says more"))
    })
}

/// The whole body, at most `limit` bytes of it, encoded or not.
async fn body(request: Request<Incoming>, limit: usize, ingest: &Ingest) -> Result<Bytes, Refusal> {
    let coding = Coding::of(request.headers())?;
    let room = coding.room(limit);
    let too_large = || refusal(Reason::Malformed, format!("the body is larger than {limit} bytes"));
    if request.body().size_hint().lower() > room as u64 {
        return Err(too_large());
    }
    let read = Limited::new(request.into_body(), room).collect();
    let read = match tokio::time::timeout(ingest.waits.body, read).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => return Err(refusal(Reason::Malformed, format!("the body broke off: {error}"))),
        Err(_) => {
            return Err(refusal(Reason::Unavailable, "the body did not come in time; send it again"));
        }
    };
    if coding == Coding::Plain {
        return Ok(read);
    }
    tokio::task::spawn_blocking(move || coding.decoded(read, limit)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "decoding a body broke");
        Err(refusal(Reason::Malformed, "the collector cannot decode this body; its log says more"))
    })
}

fn json(value: &impl Serialize) -> Answer {
    let mut answer = match serde_json::to_vec(value) {
        Ok(body) => Response::new(Full::new(body.into())),
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            answer
        }
    };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
