//! HTTP/1.1 on one connection: requests come in, each is bounded in head, body and time, and led to the part
//! that answers it. Whoever is no agent gets the same refusal for everything, before a body is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixStream;
use weir_core::segment::{MAX_FRAME, MAX_SEGMENT};
use weir_core::wire::{self, Reason, Refusal};

use super::{Ingest, refusal};
use crate::agent::Agent;

/// A segment is sealed when it passes its limit: by at most one frame.
const MAX_SEGMENT_BODY: usize = MAX_SEGMENT + MAX_FRAME + (64 << 10);
/// The most bytes of a hold.
const MAX_HOLD_BODY: usize = MAX_FRAME;
/// The most bytes of a poll: [`wire::MAX_OPEN_HOLDS`] ids.
const MAX_POLL_BODY: usize = 512 << 10;
/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// From a connection's first byte, or its last answer, to the end of a head.
const HEAD_WAIT: Duration = Duration::from_secs(60);
/// How long a whole body may take.
const BODY_WAIT: Duration = Duration::from_secs(30);

type Answer = Response<Full<Bytes>>;

/// Serves one connection to its end. `agent` is absent for a peer that is none.
pub(super) async fn connection(stream: UnixStream, ingest: Arc<Ingest>, agent: Option<Agent>) {
    let stop = ingest.stop.clone();
    let service = service_fn(move |request| {
        let (ingest, agent) = (ingest.clone(), agent.clone());
        async move { Ok::<_, Infallible>(answer(ingest, agent, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(MAX_HEAD)
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
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer(ingest: Arc<Ingest>, agent: Option<Agent>, request: Request<Incoming>) -> Answer {
    match led(ingest, agent, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::info!(reason = %refusal.reason, message = refusal.message, "refused");
            let mut answer = json(&refusal);
            *answer.status_mut() =
                StatusCode::from_u16(refusal.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            // What is left of a body is not read.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            answer
        }
    }
}

async fn led(
    ingest: Arc<Ingest>,
    agent: Option<Agent>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let Some(agent) = agent else {
        return Err(refusal(
            Reason::Forbidden,
            "this user is no agent; name it in [listen] agent_uids if it should be",
        ));
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
    match request.uri().path() {
        wire::SEGMENTS => {
            // Taken before the body: so many are in memory, and no more.
            let Ok(_slot) = ingest.segments.acquire().await else {
                return Err(refusal(Reason::Unavailable, "the collector is stopping"));
            };
            let body = body(request, MAX_SEGMENT_BODY).await?;
            to_its_end(&ingest, ingest.clone().put_segment(body, agent)).await.map(|ack| json(&ack))
        }
        wire::HOLDS => {
            let body = body(request, MAX_HOLD_BODY).await?;
            to_its_end(&ingest, ingest.clone().put_hold(body, agent)).await.map(|ack| json(&ack))
        }
        wire::POLL => {
            let body = body(request, MAX_POLL_BODY).await?;
            ingest.poll(&body, &agent).await.map(|found| json(&found))
        }
        _ => Err(refusal(Reason::Malformed, "there is no such request")),
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

/// The whole body, at most `limit` bytes of it.
async fn body(request: Request<Incoming>, limit: usize) -> Result<Bytes, Refusal> {
    let too_large = || refusal(Reason::Malformed, format!("the body is larger than {limit} bytes"));
    if request.body().size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_WAIT, Limited::new(request.into_body(), limit).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(refusal(Reason::Malformed, format!("the body broke off: {error}"))),
        Err(_) => Err(refusal(Reason::Unavailable, "the body did not come in time; send it again")),
    }
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
