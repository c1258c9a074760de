//! One flow's connection to its server. It is dialled to the flow's own destination, belongs to the flow
//! alone, and is dialled again when the server closed it between two exchanges. A request is never sent twice.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::MAX_HEAD;
use crate::gate::Permit;
use crate::tasks::Tasks;

/// A connection that HTTP can be spoken over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens another connection to the same server, proven in the same way.
pub type Redial =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, String>> + Send>> + Send + Sync>;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamFailure {
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the server broke off: {0}")]
    BrokenOff(#[from] hyper::Error),
    /// What follows could not be read.
    #[error("the server changed the protocol, which nobody asked for")]
    Upgraded,
}

/// See the module.
pub struct Upstream {
    /// Absent while an exchange has it: HTTP/1.1 carries one at a time.
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
    redial: Redial,
    tasks: Tasks,
}

impl Upstream {
    /// Speaks HTTP/1.1 over `first`; `tasks` owns what drives the connection.
    pub async fn new(first: Box<dyn Stream>, redial: Redial, tasks: Tasks) -> Result<Self, UpstreamFailure> {
        let upstream = Self { idle: Mutex::new(None), redial, tasks };
        let sender = upstream.handshake(first).await?;
        upstream.put_back(sender);
        Ok(upstream)
    }

    /// Sends one request. The permit says that it may go, and is used up.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        _permit: Permit,
    ) -> Result<Response<Incoming>, UpstreamFailure> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(answer) => return self.answered(sender, answer),
                // The server had closed the connection, and not a byte of the request went out.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let stream = (self.redial)().await.map_err(UpstreamFailure::Unreachable)?;
        let mut sender = self.handshake(stream).await?;
        let answer = sender.send_request(request).await?;
        self.answered(sender, answer)
    }

    fn answered(
        &self,
        sender: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
    ) -> Result<Response<Incoming>, UpstreamFailure> {
        if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamFailure::Upgraded);
        }
        self.put_back(sender);
        Ok(answer)
    }

    fn put_back(&self, sender: SendRequest<Full<Bytes>>) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    async fn handshake(&self, stream: Box<dyn Stream>) -> Result<SendRequest<Full<Bytes>>, UpstreamFailure> {
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(MAX_HEAD)
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Ok(sender)
    }
}
