//! The server's side: a connected stream and the name that the server must prove come in; the stream in clear
//! and the proof go out, or the reason why not. There is no way to switch verification off.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::alpn::Protocol;
use crate::trust::{Roots, TrustError};

/// A server's name (or address) that a certificate was verified for, on the very connection that it came
/// with. Only [`UpstreamTls::connect`] makes one:
///
/// ```compile_fail,E0451
/// use rustls::pki_types::ServerName;
/// let name = ServerName::try_from("mcp.example.test").unwrap();
/// let proven = weir::tls::ProvenName { name, also: vec![] };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenName {
    name: ServerName<'static>,
    also: Vec<String>,
}

impl ProvenName {
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// All names and addresses that the certificate is for, lower-case; a name may begin with `*.`.
    pub fn also(&self) -> &[String] {
        &self.also
    }
}

impl fmt::Display for ProvenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.to_str())
    }
}

/// What is wrong with a server's certificate: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    Expired,
    NotYetValid,
    WrongName,
    UnknownIssuer,
    /// Not by the key of the root that it names (a renewed CA looks so), or the server does not hold its key.
    BadSignature,
    /// Reserved: no revocation lists are configured yet.
    Revoked,
    /// Any other; the reason says which.
    Invalid,
}

impl CertificateFault {
    pub fn label(self) -> &'static str {
        match self {
            CertificateFault::Expired => "certificate_expired",
            CertificateFault::NotYetValid => "certificate_not_yet_valid",
            CertificateFault::WrongName => "certificate_wrong_name",
            CertificateFault::UnknownIssuer => "certificate_unknown_issuer",
            CertificateFault::BadSignature => "certificate_bad_signature",
            CertificateFault::Revoked => "certificate_revoked",
            CertificateFault::Invalid => "certificate_invalid",
        }
    }

    fn of(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } => CertificateFault::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFault::WrongName,
            E::UnknownIssuer => CertificateFault::UnknownIssuer,
            E::BadSignature => CertificateFault::BadSignature,
            E::Revoked => CertificateFault::Revoked,
            _ => CertificateFault::Invalid,
        }
    }

    fn mend(self) -> &'static str {
        match self {
            CertificateFault::UnknownIssuer => "; if its CA is to be trusted, add it to upstream.roots",
            CertificateFault::BadSignature => "; if its CA was renewed, put the new one in upstream.roots",
            _ => "",
        }
    }
}

/// Why there is no TLS with a server.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The server is not who it must be. `reason` is the library's.
    #[error("the certificate of {name} is not trusted: {reason}{mend}", mend = fault.mend())]
    Untrusted { name: String, fault: CertificateFault, reason: String },
    /// The server's fault, or the network's.
    #[error("the TLS handshake with {name} broke: {source}")]
    Handshake { name: String, source: io::Error },
    #[error("{name} did not finish its TLS handshake within {within:?}")]
    Timeout { name: String, within: Duration },
}

impl UpstreamError {
    /// One of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            UpstreamError::Untrusted { fault, .. } => fault.label(),
            UpstreamError::Handshake { .. } => "upstream_handshake_broken",
            UpstreamError::Timeout { .. } => "upstream_handshake_timeout",
        }
    }
}

/// A server that proved its name, and what it speaks.
#[derive(Debug)]
pub struct Connected<S> {
    pub stream: TlsStream<S>,
    pub proven: ProvenName,
    pub protocol: Protocol,
}

/// Does handshakes with servers, and verifies them.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    config: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// Trusts the system's roots (see [`Roots`] for what the agent's own environment does to them) and those
    /// of the files `extra_roots`.
    pub fn new(extra_roots: &[PathBuf]) -> Result<Self, TrustError> {
        let roots = Roots::load(extra_roots)?;
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots.into_store())
            .with_no_client_auth();
        // A resumed session shows no certificate. Each connection is to prove its server anew, and nothing
        // is to tie one job's connections to another's.
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// Does the handshake with the server that `stream` leads to, which must prove to be `name`. It is offered the protocols
    /// `offer`, the preferred one first.
    pub async fn connect<S>(
        &self,
        stream: S,
        name: &ServerName<'_>,
        within: Duration,
        offer: &[Protocol],
    ) -> Result<Connected<S>, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = name.to_owned();
        let offered = offer.iter().map(|protocol| protocol.id().to_vec()).collect();
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let handshake = connector.with_alpn(offered).connect(name.clone(), stream);
        match tokio::time::timeout(within, handshake).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let leaf = session.peer_certificates().and_then(<[_]>::first);
                let also = leaf.map(|leaf| names_of(leaf)).unwrap_or_default();
                let protocol = Protocol::negotiated(session.alpn_protocol());
                Ok(Connected { stream, proven: ProvenName { name, also }, protocol })
            }
            Ok(Err(error)) => Err(broken(&name, error)),
            Err(_) => Err(UpstreamError::Timeout { name: name.to_str().into_owned(), within }),
        }
    }
}

fn names_of(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    });
    names.collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn broken(name: &ServerName<'_>, error: io::Error) -> UpstreamError {
    let name = name.to_str().into_owned();
    match super::reason(&error) {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            UpstreamError::Untrusted { name, fault: CertificateFault::of(reason), reason: reason.to_string() }
        }
        _ => UpstreamError::Handshake { name, source: error },
    }
}
