//! The agent's side of [`weir_core::wire`]: HTTP/1.1 over the collector's unix socket, a connection a request.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use weir_core::wire::{Refusal, VERSION, VERSION_HEADER};

/// The most bytes of an answer.
const MAX_ANSWER: usize = 16 << 20;
/// The longest that any request may take: longer than the longest poll.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the collector listens.
#[derive(Debug, Clone)]
pub struct Collector {
    socket: PathBuf,
}

/// Why a request to the collector failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("cannot reach the collector at {socket}: {reason}", socket = socket.display())]
    Unreachable { socket: PathBuf, reason: String },
    #[error("the collector refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the collector's answer cannot be read: {0}")]
    Unreadable(String),
}

impl PostError {
    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            PostError::Unreachable { .. } => true,
            PostError::Refused(refusal) => refusal.reason.is_passing(),
            PostError::Unreadable(_) => true,
        }
    }
}

impl Collector {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Posts bytes to one of the contract's paths and reads the answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, PostError> {
        let unreachable = |reason: String| PostError::Unreachable { socket: self.socket.clone(), reason };
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(path, body));
        let (status, bytes) =
            answer.await.map_err(|_| unreachable("no answer in time".into()))?.map_err(unreachable)?;
        let unreadable = |e: serde_json::Error| PostError::Unreadable(format!("status {status}: {e}"));
        if status == 200 {
            return serde_json::from_slice(&bytes).map_err(unreadable);
        }
        Err(serde_json::from_slice::<Refusal>(&bytes).map_err(unreadable)?.into())
    }

    async fn exchange(&self, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), String> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| e.to_string())?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
        let request = Request::post(path)
            .header("host", "weir-collector")
            .header(VERSION_HEADER, VERSION)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status().as_u16();
            let body =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            Ok((status, body.to_bytes()))
        };
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
}
