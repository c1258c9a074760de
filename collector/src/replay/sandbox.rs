//! The client's side of streamable HTTP: a message goes to the target, its answer comes back, as JSON or out of an event
//! stream. Redirects are not followed: nothing goes anywhere else. What the server asks meanwhile is declined.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weir_core::mcp::sse::{self, Event};

use super::Target;

/// The most bytes of an answer.
pub const MAX_ANSWER: usize = 16 << 20;
/// The session's id, both ways.
pub const SESSION: &str = "mcp-session-id";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    #[error("the sandbox cannot be reached: {0}")]
    Unreachable(String),
    #[error("the sandbox did not answer within {0:?}")]
    Late(Duration),
    #[error("the sandbox's answer has more than {} MiB", MAX_ANSWER >> 20)]
    TooLarge,
    #[error("the sandbox's answer is no JSON-RPC: {0}")]
    Malformed(String),
    #[error("cannot use the CA: {0}")]
    Ca(String),
}

/// A header to send, and its value, which is not shown.
#[derive(Clone)]
pub struct Header {
    pub name: String,
    pub value: String,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Header({}: ..)", self.name)
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The session that it began.
    pub session: Option<String>,
    /// The response to the message, if it was a request.
    pub message: Option<Value>,
    /// Methods that the server asked for meanwhile.
    pub asked: Vec<String>,
}

/// A server to play against.
#[derive(Clone)]
pub struct Sandbox {
    target: Target,
    tls: Option<TlsConnector>,
    headers: Vec<Header>,
    wait: Duration,
}

impl Sandbox {
    /// `ca`: PEM of what to trust for https; without it, nothing is trusted.
    pub fn new(
        target: Target,
        ca: Option<&[u8]>,
        headers: Vec<Header>,
        wait: Duration,
    ) -> Result<Self, PlayError> {
        let tls = if target.is_tls { Some(connector(ca)?) } else { None };
        Ok(Self { target, tls, headers, wait })
    }

    /// Sends one message; `id` is its id if it is a request.
    pub async fn send(
        &self,
        body: String,
        id: Option<u64>,
        headers: &[(&'static str, String)],
    ) -> Result<Answer, PlayError> {
        let exchange = self.exchange(body, id, headers);
        tokio::time::timeout(self.wait, exchange).await.map_err(|_| PlayError::Late(self.wait))?
    }

    async fn exchange(
        &self,
        body: String,
        id: Option<u64>,
        headers: &[(&'static str, String)],
    ) -> Result<Answer, PlayError> {
        let response = self.post(body, headers).await?;
        let status = response.status().as_u16();
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let session = text(SESSION);
        let is_stream = text("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        let mut answer = Answer { status, session, message: None, asked: Vec::new() };
        if is_stream {
            self.stream(response.into_body(), id, headers, &mut answer).await?;
        } else {
            let whole = whole(response.into_body()).await?;
            let read = serde_json::from_slice::<Value>(&whole);
            match (id, read) {
                (Some(_), Ok(message)) => answer.message = Some(message),
                (Some(_), Err(error)) if status == StatusCode::OK.as_u16() => {
                    return Err(PlayError::Malformed(error.to_string()));
                }
                _ => {}
            }
        }
        Ok(answer)
    }

    /// Reads events until the response is there.
    async fn stream(
        &self,
        mut body: Incoming,
        id: Option<u64>,
        headers: &[(&'static str, String)],
        answer: &mut Answer,
    ) -> Result<(), PlayError> {
        let (mut parser, mut taken) = (sse::Parser::new(MAX_ANSWER), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| PlayError::Unreachable(e.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            taken += data.len();
            if taken > MAX_ANSWER {
                return Err(PlayError::TooLarge);
            }
            let mut events: Vec<Event> = Vec::new();
            parser.feed(&data, |event| events.extend(event.ok()));
            for event in events.into_iter().filter(|event| !event.data.is_empty()) {
                let message: Value =
                    serde_json::from_str(&event.data).map_err(|e| PlayError::Malformed(e.to_string()))?;
                match (message.get("method").and_then(Value::as_str), message.get("id")) {
                    (Some(method), Some(asked)) => {
                        answer.asked.push(method.to_owned());
                        self.decline(asked, headers).await?;
                    }
                    (None, Some(own)) if own.as_u64() == id => {
                        answer.message = Some(message);
                        return Ok(());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A replay is nobody who could answer.
    async fn decline(&self, id: &Value, headers: &[(&'static str, String)]) -> Result<(), PlayError> {
        let error = json!({ "code": -32601, "message": "a replay answers nothing" });
        let body = json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string();
        whole(self.post(body, headers).await?.into_body()).await.map(drop)
    }

    async fn post(
        &self,
        body: String,
        headers: &[(&'static str, String)],
    ) -> Result<Response<Incoming>, PlayError> {
        let unreachable = |e: &dyn std::fmt::Display| PlayError::Unreachable(e.to_string());
        let uri = &self.target.uri;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map_or(self.target.host.as_str(), |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        for Header { name, value } in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| unreachable(&e))?;
        let stream = TcpStream::connect(self.target.address).await.map_err(|e| unreachable(&e))?;
        match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let name = ServerName::try_from(self.target.host.clone()).map_err(|e| unreachable(&e))?;
                exchange(tls.connect(name, stream).await.map_err(|e| unreachable(&e))?, request).await
            }
        }
    }
}

/// One request on a connection of its own.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, PlayError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let unreachable = |e: hyper::Error| PlayError::Unreachable(e.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    // Ends with the answer's body, or with this program.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(unreachable)
}

async fn whole(body: Incoming) -> Result<Bytes, PlayError> {
    let limited = http_body_util::Limited::new(body, MAX_ANSWER);
    limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(|e| {
        if e.is::<http_body_util::LengthLimitError>() {
            PlayError::TooLarge
        } else {
            PlayError::Unreachable(e.to_string())
        }
    })
}

fn connector(ca: Option<&[u8]>) -> Result<TlsConnector, PlayError> {
    let wrong = |e: &dyn std::fmt::Display| PlayError::Ca(e.to_string());
    let mut roots = rustls::RootCertStore::empty();
    let pem = ca.ok_or_else(|| wrong(&"https needs --ca FILE, the PEM of the sandbox's CA"))?;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
