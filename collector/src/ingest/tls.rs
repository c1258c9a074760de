//! The listener for agents on other hosts: TLS 1.3 over TCP. A peer shows a certificate of the agents' CA and is the agent that
//! it names; one that shows none is a stranger, who may ask for a certificate and nothing else; one that shows a bad one is not
//! spoken to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weir_core::identity::AgentName;

use crate::agent::Enrolled;
use crate::authority::{Authority, AuthorityError, agent_of, fingerprint, microseconds, secret_file};

/// From a connection's first byte to the end of its handshake.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// Before this the collector says that its own certificate ends soon.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The protocols, the better first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where agents on other hosts come in.
#[derive(Debug)]
pub struct Tls {
    listener: TcpListener,
    acceptor: Acceptor,
    authority: Arc<Authority>,
}

/// Makes a stream of a connection.
#[derive(Clone)]
pub(super) struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor(..)")
    }
}

/// Why there is no listener; the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("{path} cannot serve as the collector's certificate: {fault}; see [listen] certificate and key", path = path.display())]
    Certificate { path: PathBuf, fault: String },
    #[error("cannot listen on {address}: {source}; mend [listen] tls")]
    Listen { address: SocketAddr, source: io::Error },
}

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Shown {
    /// No certificate.
    Nothing,
    /// A certificate that was verified.
    Certificate(Certified),
}

/// An agent, until its certificate ends.
#[derive(Debug, Clone)]
pub(super) struct Certified {
    pub agent: Enrolled,
    /// Microseconds since 1970.
    pub expires_us: i64,
}

impl Tls {
    /// Binds the address. Must be called within a runtime.
    pub async fn bind(
        address: SocketAddr,
        authority: Arc<Authority>,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, TlsError> {
        let config = configuration(&authority, certificate, key)?;
        let listener =
            TcpListener::bind(address).await.map_err(|source| TlsError::Listen { address, source })?;
        let acceptor = Acceptor(TlsAcceptor::from(Arc::new(config)));
        Ok(Self { listener, acceptor, authority })
    }

    /// Where it listens: the port that was free, where port 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) fn authority(&self) -> Arc<Authority> {
        self.authority.clone()
    }

    pub(super) fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        Ok((stream, peer.ip().to_canonical()))
    }
}

impl Acceptor {
    /// The handshake, in time, and what the peer showed in it.
    pub async fn shake_hands(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Shown)> {
        // Answers are small, and each is waited for.
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE_WAIT, self.0.accept(stream))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))??;
        let shown = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            None => Shown::Nothing,
            Some(certificate) => Shown::Certificate(Certified::of(certificate).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a certificate of the agents' CA that names no agent",
                )
            })?),
        };
        Ok((stream, shown))
    }
}

impl Certified {
    /// Of a certificate that was verified.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let AgentName { tenant, host, enrolment } = agent_of(certificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let expires_us = parsed.validity().not_after.timestamp().saturating_mul(1_000_000);
        let agent = Enrolled { tenant, host, enrolment, fingerprint: fingerprint(certificate) };
        Some(Self { agent, expires_us })
    }
}

fn configuration(authority: &Authority, certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let unusable = |path: &Path, fault: String| TlsError::Certificate { path: path.to_owned(), fault };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(certificate, e.to_string()))?;
    if let Some(leaf) = chain.first() {
        warn_of_its_end(certificate, leaf);
    }
    let key_pem = secret_file(key)?;
    let private =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| unusable(key, e.to_string()))?;
    let mut roots = RootCertStore::empty();
    let unfit = |e: &dyn std::error::Error| unusable(&authority.certificate_path(), e.to_string());
    roots.add(authority.certificate().clone()).map_err(|e| unfit(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| unfit(&e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(certificate, e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private)
        .map_err(|e| unusable(certificate, e.to_string()))?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    // A session that is taken up again shows no certificate: each connection is to.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn warn_of_its_end(path: &Path, leaf: &CertificateDer<'_>) {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return };
    let ends = parsed.validity().not_after;
    if ends.timestamp().saturating_mul(1_000_000) < microseconds(SystemTime::now() + WARN_BEFORE) {
        let path = path.display();
        tracing::warn!(%path, %ends, "the collector's certificate ends soon: `weir-collector ca server --name NAME`, and start again");
    }
}
