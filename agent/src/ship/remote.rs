//! To a collector on another host: one connection of HTTP/2 over TLS 1.3, on which all requests go, with their bodies in
//! zstd. It is made when it is needed, and again when it broke. Who this host is, its certificate says ([`Enrolment`]); the
//! collector's must come from the authority that it enrolled with, and no root of the system's counts.
//!
//! A request whose answer is lost is sent again by whoever asked: all of them can be. Where a kept connection turns out to be
//! dead before an answer began, that is done here, once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use weir_core::identity::AgentName;
use weir_core::wire::{CERTIFICATE, CertificateAck, CertificateRequest, VERSION, VERSION_HEADER};

use super::client::{PostError, collected, read_answer};
use super::fault;
use crate::config::CollectorUrl;
use crate::trust::{Enrolment, Identity, TrustError};

/// How long an address may take to answer, and the handshake.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// How often a silent collector is asked whether it is there, and how long that may take.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WAIT: Duration = Duration::from_secs(10);
/// How long what broke a connection may take to be told.
const FAULT_WAIT: Duration = Duration::from_secs(1);
/// How often the certificate's time is looked at, and how soon a renewal that failed is tried again.
const LOOK: Duration = Duration::from_secs(30);
const RENEW_AGAIN: Duration = Duration::from_secs(600);
/// Smaller bodies are sent as they are.
const WORTH_ENCODING: usize = 512;
/// The status of a refusal for want of the right identity.
const FORBIDDEN: u16 = 403;
/// How hard zstd tries.
const LEVEL: i32 = 3;

/// Marks a socket that the hooks are to leave alone, before it connects.
pub type Exempt = Arc<dyn Fn(BorrowedFd<'_>) -> std::io::Result<()> + Send + Sync>;

/// A collector on another host.
pub struct Remote {
    url: CollectorUrl,
    enrolment: Enrolment,
    exempt: Option<Exempt>,
    line: Mutex<Option<Line>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url.to_string()).finish_non_exhaustive()
    }
}

/// A connection. Dropping it ends it.
pub(crate) struct Line {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<Result<(), hyper::Error>>,
    /// What it was made with.
    identity: Option<Identity>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Remote {
    pub fn new(url: CollectorUrl, enrolment: Enrolment, exempt: Option<Exempt>) -> Self {
        Self { url, enrolment, exempt, line: Mutex::default() }
    }

    pub fn url(&self) -> &CollectorUrl {
        &self.url
    }

    /// Posts a body, and gives the status and the body of the answer.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), PostError> {
        let answer = self.posted(path, body).await?;
        if answer.0 == FORBIDDEN {
            // It may have been enrolled anew by now.
            self.take_up(&self.identity()?).await;
        }
        Ok(answer)
    }

    async fn posted(&self, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), PostError> {
        let body = Body::of(body).await;
        let (sender, was_kept) = self.sender().await?;
        match ask(&self.url, sender, path, &body).await {
            Ok(answer) => Ok(answer),
            Err(_) if was_kept => {
                self.hang_up().await;
                let (sender, _) = self.sender().await?;
                self.asked(sender, path, &body).await
            }
            Err(reason) => Err(self.broken(reason).await),
        }
    }

    async fn asked(
        &self,
        sender: SendRequest<Full<Bytes>>,
        path: &str,
        body: &Body,
    ) -> Result<(u16, Bytes), PostError> {
        match ask(&self.url, sender, path, body).await {
            Ok(answer) => Ok(answer),
            Err(reason) => Err(self.broken(reason).await),
        }
    }

    /// A clone of the connection's sender, and whether it was there before.
    async fn sender(&self) -> Result<(SendRequest<Full<Bytes>>, bool), PostError> {
        let mut line = self.line.lock().await;
        if let Some(kept) = line.as_ref().filter(|line| !line.sender.is_closed()) {
            return Ok((kept.sender.clone(), true));
        }
        let identity = self.identity()?;
        let tls = identified(&identity)?;
        let mut fresh = dial(&self.url, tls, self.exempt.as_ref()).await?;
        fresh.identity = Some(identity);
        let sender = fresh.sender.clone();
        *line = Some(fresh);
        Ok((sender, false))
    }

    fn identity(&self) -> Result<Identity, PostError> {
        let identity = self.enrolment.identity(&default_provider())?;
        let identity = identity.ok_or_else(|| PostError::NotEnrolled(self.url.clone()))?;
        let now = SystemTime::now();
        let unusable = |fault: &str| PostError::Unreachable {
            collector: self.url.to_string(),
            reason: fault.to_owned(),
        };
        if now >= identity.expires {
            return Err(unusable(
                "this host's certificate has expired (or its clock is fast); enrol it again with `weir enrol`",
            ));
        }
        if now < identity.not_before {
            return Err(unusable("this host's certificate is not valid yet: set this host's clock"));
        }
        Ok(identity)
    }

    async fn hang_up(&self) {
        *self.line.lock().await = None;
    }

    /// What broke the connection says more than what the request saw of it.
    async fn broken(&self, reason: String) -> PostError {
        let line = self.line.lock().await.take();
        let reason = match line {
            Some(mut line) => match tokio::time::timeout(FAULT_WAIT, &mut line.driver).await {
                Ok(Ok(Err(error))) => fault::told(&error),
                _ => reason,
            },
            None => reason,
        };
        PostError::Unreachable { collector: self.url.to_string(), reason }
    }

    /// Renews the certificate when a third of its time is left, and takes up one that another process renewed.
    pub async fn keep_certified(&self) {
        let mut not_before = tokio::time::Instant::now();
        loop {
            tokio::time::sleep_until(not_before).await;
            not_before = tokio::time::Instant::now() + LOOK;
            match self.enrolment.identity(&default_provider()) {
                Ok(Some(identity)) if identity.is_due(SystemTime::now()) => {
                    if let Err(error) = self.renew().await {
                        tracing::warn!(%error, expires = ?identity.expires, "this host's certificate was not renewed; trying again");
                        not_before = tokio::time::Instant::now() + RENEW_AGAIN;
                    }
                }
                Ok(Some(identity)) => self.take_up(&identity).await,
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "this host's identity"),
            }
        }
    }

    /// Ends a connection that was made with another identity than this host has now.
    async fn take_up(&self, identity: &Identity) {
        let mut line = self.line.lock().await;
        let is_other = |line: &Line| line.identity.as_ref().is_some_and(|own| own.differs(identity));
        if line.as_ref().is_some_and(is_other) {
            *line = None;
        }
    }

    /// Has a new key certified over the connection that the old certificate made.
    pub async fn renew(&self) -> Result<Identity, PostError> {
        let old = self.identity()?;
        let key = in_folder(&self.enrolment, Enrolment::pending).await?;
        let request = CertificateRequest { token: None, csr: key.request()? };
        let body = serde_json::to_vec(&request).map_err(|e| PostError::Unreadable(e.to_string()))?;
        let (status, answer) = self.post(CERTIFICATE, body).await?;
        let ack: CertificateAck = read_answer(status, &answer)?;
        let renewed = in_folder(&self.enrolment, move |enrolment| {
            let is_same = |name: &AgentName| *name == old.name;
            enrolment.complete(&key, &ack.certificate, &old.authorities, &default_provider(), is_same)
        });
        let renewed = renewed.await?;
        if renewed.is_none() {
            return Err(PostError::Unreadable("the collector renewed another host's certificate".into()));
        }
        self.hang_up().await;
        tracing::info!("this host's certificate was renewed");
        self.identity()
    }
}

/// Work in the folder, which waits for its lock and for the disk: on a thread that serves nobody else.
pub(super) async fn in_folder<T: Send + 'static>(
    enrolment: &Enrolment,
    work: impl FnOnce(&Enrolment) -> Result<T, TrustError> + Send + 'static,
) -> Result<T, TrustError> {
    let own = enrolment.clone();
    let done = tokio::task::spawn_blocking(move || work(&own)).await;
    let ended = |gone| TrustError::Storage {
        action: "work on",
        path: enrolment.path(),
        source: std::io::Error::other(gone),
    };
    done.unwrap_or_else(|gone| Err(ended(gone)))
}

/// A body as it goes out.
pub(super) struct Body {
    bytes: Bytes,
    is_encoded: bool,
}

impl Body {
    pub(super) async fn of(body: Vec<u8>) -> Self {
        if body.len() < WORTH_ENCODING {
            return Self { bytes: body.into(), is_encoded: false };
        }
        let encode = move || match zstd::bulk::compress(&body, LEVEL) {
            Ok(encoded) => Self { bytes: encoded.into(), is_encoded: true },
            Err(error) => {
                tracing::warn!(%error, "a body is sent as it is");
                Self { bytes: body.into(), is_encoded: false }
            }
        };
        tokio::task::spawn_blocking(encode).await.unwrap_or_else(|error| {
            tracing::error!(%error, "encoding a body broke");
            Self { bytes: Bytes::new(), is_encoded: false }
        })
    }
}

impl Line {
    pub(super) fn sender(&self) -> SendRequest<Full<Bytes>> {
        self.sender.clone()
    }

    /// Why it ended, where that is known by now.
    pub(super) async fn end(mut self) -> Option<String> {
        match tokio::time::timeout(FAULT_WAIT, &mut self.driver).await {
            Ok(Ok(Err(error))) => Some(fault::told(&error)),
            _ => None,
        }
    }
}

/// One request and its answer.
pub(super) async fn ask(
    url: &CollectorUrl,
    mut sender: SendRequest<Full<Bytes>>,
    path: &str,
    body: &Body,
) -> Result<(u16, Bytes), String> {
    sender.ready().await.map_err(|e| fault::told(&e))?;
    let mut request = Request::post(format!("{url}{path}")).header(VERSION_HEADER, VERSION);
    if body.is_encoded {
        request = request.header("content-encoding", "zstd");
    }
    let request = request.body(Full::new(body.bytes.clone())).map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| fault::told(&e))?;
    collected(answer).await
}

/// TLS for a host that enrolled.
fn identified(identity: &Identity) -> Result<ClientConfig, TrustError> {
    configuration(roots_verifier(&identity.authorities)?, Some(identity.certified.clone()))
}

fn unfit(fault: String) -> TrustError {
    TrustError::Enrolment { path: "the collector's authority".into(), fault }
}

/// TLS to a collector that `verifier` accepts, with or without a certificate of one's own.
pub(super) fn configuration(
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TrustError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unfit(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection shows certificates on both sides.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts a collector whose certificate comes from one of these.
pub(super) fn roots_verifier(
    roots: &[CertificateDer<'static>],
) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| unfit(error.to_string()))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::new(default_provider()))
        .build()
        .map_err(|error| unfit(error.to_string()))
}

/// Connects, shakes hands, and has the connection driven.
pub(super) async fn dial(
    url: &CollectorUrl,
    tls: ClientConfig,
    exempt: Option<&Exempt>,
) -> Result<Line, PostError> {
    let unreachable = |reason: String| PostError::Unreachable { collector: url.to_string(), reason };
    let stream = connect(url, exempt).await.map_err(unreachable)?;
    let name = ServerName::try_from(url.host.clone()).map_err(|error| unreachable(error.to_string()))?;
    let shaken = TlsConnector::from(Arc::new(tls)).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE_WAIT, shaken)
        .await
        .map_err(|_| unreachable("the handshake took too long".into()))?
        .map_err(|error| unreachable(fault::told(&error)))?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(unreachable("it speaks TLS and no HTTP/2; is this a collector?".into()));
    }
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(fault::told(&error)))?;
    Ok(Line { sender, driver: tokio::spawn(connection), identity: None })
}

/// To the first of the host's addresses that answers.
async fn connect(url: &CollectorUrl, exempt: Option<&Exempt>) -> Result<TcpStream, String> {
    let looked_up = tokio::net::lookup_host((url.host.as_str(), url.port));
    let addresses = tokio::time::timeout(CONNECT_WAIT, looked_up)
        .await
        .map_err(|_| "its name was not resolved in time".to_owned())?
        .map_err(|error| format!("its name cannot be resolved ({error})"))?;
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        let connected = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Before it connects: these connections are the agent's own, whoever selected its cgroup.
            if let Some(exempt) = exempt {
                exempt(socket.as_fd())?;
            }
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            std::io::Result::Ok(stream)
        };
        match tokio::time::timeout(CONNECT_WAIT, connected).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address} did not answer within {CONNECT_WAIT:?}"),
        }
    }
    Err(last)
}
