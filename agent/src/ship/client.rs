//! The agent's side of [`weir_core::wire`]: requests go out, answers and refusals come back. Over the collector's unix
//! socket in HTTP/1.1, a connection a request; to a collector on another host as [`remote`](super::remote) says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use weir_core::wire::{Refusal, VERSION, VERSION_HEADER};

use super::remote::{Exempt, Remote};
use crate::config::{CollectorPlace, CollectorUrl};
use crate::trust::{Enrolment, TrustError};

/// The most bytes of an answer.
const MAX_ANSWER: usize = 16 << 20;
/// The longest that any request may take: longer than the longest poll.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the collector listens.
#[derive(Debug, Clone)]
pub struct Collector(Way);

#[derive(Debug, Clone)]
enum Way {
    Socket(PathBuf),
    Remote(Arc<Remote>),
}

/// Why a request to the collector failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("cannot reach the collector at {collector}: {reason}")]
    Unreachable { collector: String, reason: String },
    #[error("the collector refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the collector's answer cannot be read: {0}")]
    Unreadable(String),
    /// Of a collector on another host: what this host would be known by is not there, or cannot be used.
    #[error("this host is not enrolled at the collector {0}; do so with `weir enrol`")]
    NotEnrolled(CollectorUrl),
    #[error(transparent)]
    Identity(#[from] TrustError),
}

impl PostError {
    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            PostError::Unreachable { .. } => true,
            PostError::Refused(refusal) => refusal.reason.is_passing(),
            PostError::Unreadable(_) => true,
            PostError::NotEnrolled(_) | PostError::Identity(_) => true,
        }
    }
}

impl Collector {
    /// On this host.
    pub fn new(socket: PathBuf) -> Self {
        Self(Way::Socket(socket))
    }

    /// On another, known there by what the folder `identity` holds.
    pub fn remote(url: CollectorUrl, identity: Enrolment, exempt: Option<Exempt>) -> Self {
        Self(Way::Remote(Arc::new(Remote::new(url, identity, exempt))))
    }

    /// As configured. Its connections are marked by `exempt`, so that the hooks leave them alone.
    pub fn of(place: &CollectorPlace, exempt: Option<Exempt>) -> Self {
        match place {
            CollectorPlace::Socket(socket) => Self::new(socket.clone()),
            CollectorPlace::Remote { url, identity } => {
                Self::remote(url.clone(), Enrolment::at(identity), exempt)
            }
        }
    }

    /// Keeps this host's certificate in time, until it is dropped; of a collector on this host there is none.
    pub async fn keep_certified(&self) {
        match &self.0 {
            Way::Socket(_) => std::future::pending().await,
            Way::Remote(remote) => remote.keep_certified().await,
        }
    }

    /// Posts bytes to one of the contract's paths and reads the answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, PostError> {
        match &self.0 {
            Way::Socket(socket) => {
                let unreachable = |reason: String| PostError::Unreachable {
                    collector: socket.display().to_string(),
                    reason,
                };
                let answer = tokio::time::timeout(TIMEOUT, exchange(socket, path, body));
                let (status, bytes) = answer
                    .await
                    .map_err(|_| unreachable("no answer in time".into()))?
                    .map_err(unreachable)?;
                read_answer(status, &bytes)
            }
            Way::Remote(remote) => {
                let timed_out = || PostError::Unreachable {
                    collector: remote.url().to_string(),
                    reason: "no answer in time".into(),
                };
                let answer = tokio::time::timeout(TIMEOUT, remote.post(path, body));
                let (status, bytes) = answer.await.map_err(|_| timed_out())??;
                read_answer(status, &bytes)
            }
        }
    }
}

/// What an answer says, or the refusal in its place.
pub(super) fn read_answer<T: DeserializeOwned>(status: u16, bytes: &[u8]) -> Result<T, PostError> {
    let unreadable = |e: serde_json::Error| PostError::Unreadable(format!("status {status}: {e}"));
    if status == 200 {
        return serde_json::from_slice(bytes).map_err(unreadable);
    }
    Err(serde_json::from_slice::<Refusal>(bytes).map_err(unreadable)?.into())
}

/// An answer's status and whole body.
pub(super) async fn collected(answer: Response<Incoming>) -> Result<(u16, Bytes), String> {
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
    Ok((status, body.to_bytes()))
}

async fn exchange(socket: &PathBuf, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), String> {
    let stream = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let request = Request::post(path)
        .header("host", "weir-collector")
        .header(VERSION_HEADER, VERSION)
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let answer = async { collected(sender.send_request(request).await.map_err(|e| e.to_string())?).await };
    // The connection is driven here, so nothing outlives the request.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}
