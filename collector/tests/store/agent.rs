//! An agent's side of the wire.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use weir_core::wire::{self, Reason, Refusal};

#[derive(Clone)]
pub struct Agent {
    socket: PathBuf,
}

/// No answer: the connection broke.
#[derive(Debug)]
pub struct Broken;

impl Agent {
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Sends one request on a connection of its own.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: impl Into<Bytes>) -> Result<T, Refusal> {
        self.try_post(path, body).await.expect("an answer")
    }

    /// The same, by one who expects that the collector may die meanwhile.
    pub async fn try_post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Result<T, Refusal>, Broken> {
        let request = Request::post(path).header(wire::VERSION_HEADER, wire::VERSION).header("host", "weir");
        self.send(request.body(Full::new(body.into())).expect("a request")).await
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Result<T, Refusal>, Broken> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|_| Broken)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| Broken)?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|_| Broken)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|_| Broken)?.to_bytes();
        drop(sender);
        let _ = driver.await;
        if status == 200 {
            return Ok(Ok(serde_json::from_slice(&body).expect("an answer's JSON")));
        }
        let refusal: Refusal = serde_json::from_slice(&body).expect("a refusal's JSON");
        assert_eq!(status, refusal.reason.status(), "{refusal}");
        Ok(Err(refusal))
    }
}

/// The reason of what must have been refused.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, Refusal>) -> Reason {
    answer.expect_err("a refusal").reason
}
