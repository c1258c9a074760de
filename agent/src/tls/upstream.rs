//! The server's side: a connected stream and the name that the server must prove come in; the stream in clear
//! and the proof go out, or the reason why not. There is no way to switch verification off.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::{Resumption, Tls12Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weir_core::record::FlowReason;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::alpn::Protocol;
use super::client_auth::{Askers, NoCertificate, goes_on, noting};
use super::fault::CertificateFault;
use super::sessions::{MAX_CHAIN, OwnSessions, Proof, Scope, Sessions};
use super::verify::Verifier;
use crate::config::{ClientAuth, ClientCertificate, Upstream};
use crate::trust::{Roots, TrustError, client_identity, revocation_lists};

/// A server's name (or address) that a certificate was verified for, on the very connection that it came with, or on one
/// whose session this one takes up again ([`super::sessions`] says within what bounds). Only [`UpstreamTls::connect`] makes
/// one:
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

    /// One that nobody proved.
    #[cfg(test)]
    pub(crate) fn for_test(name: &'static str) -> Self {
        Self { name: name.try_into().unwrap(), also: Vec::new() }
    }
}

impl fmt::Display for ProvenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.to_str())
    }
}

/// Why there is no TLS with a server.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The server is not who it must be.
    #[error("the certificate of {name} is not trusted: {reason}{mend}", mend = fault.mend())]
    Untrusted { name: String, fault: CertificateFault, reason: String },
    /// The server's fault, or the network's.
    #[error("the TLS handshake with {name} broke: {source}")]
    Handshake { name: String, source: io::Error },
    /// It is who it must be, and needs to know who its client is.
    #[error(
        "{name} needs a certificate of its client, and Weir has none for it: add [[upstream.client_certificate]], or let \
         upstream.client_auth relay such connections"
    )]
    WantsCertificate { name: String },
    #[error("{name} did not finish its TLS handshake within {within:?}")]
    Timeout { name: String, within: Duration },
}

impl UpstreamError {
    /// One of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            UpstreamError::Untrusted { fault, .. } => fault.label(),
            UpstreamError::Handshake { .. } => "upstream_handshake_broken",
            UpstreamError::WantsCertificate { .. } => FlowReason::ClientCertificate.as_str(),
            UpstreamError::Timeout { .. } => "upstream_handshake_timeout",
        }
    }

    /// As a flow's record has it.
    pub fn reason(&self) -> FlowReason {
        match self {
            UpstreamError::Untrusted { fault, .. } => fault.reason(),
            UpstreamError::WantsCertificate { .. } => FlowReason::ClientCertificate,
            UpstreamError::Handshake { .. } | UpstreamError::Timeout { .. } => FlowReason::None,
        }
    }
}

/// A server that proved its name, and what it speaks.
#[derive(Debug)]
pub struct Connected<S> {
    pub stream: TlsStream<S>,
    pub proven: ProvenName,
    pub protocol: Protocol,
    /// Until when the proof may stand for another flow of the same job; nothing where each is to prove anew.
    pub until: Option<SystemTime>,
}

/// Which server is wanted, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What it must prove to be.
    pub name: &'a ServerName<'static>,
    /// What it is offered, the preferred one first.
    pub offer: &'a [Protocol],
    /// Whose connection it is.
    pub scope: Scope,
}

/// Does handshakes with servers, and verifies them.
#[derive(Debug)]
pub struct UpstreamTls {
    config: ClientConfig,
    /// Those with a certificate of Weir's own, and which servers may see it.
    identified: Vec<(ClientCertificate, ClientConfig)>,
    pub(super) sessions: Option<Arc<Sessions>>,
    client_auth: ClientAuth,
    askers: Askers,
}

impl UpstreamTls {
    /// Trusts the system's roots (see [`Roots`] for what the agent's own environment does to them) and those
    /// of the configured files.
    pub fn new(upstream: &Upstream) -> Result<Self, TrustError> {
        let roots = Roots::load(&upstream.roots)?;
        let mut crls = Vec::new();
        for file in &upstream.crls {
            crls.extend(revocation_lists(file)?);
        }
        let verifier = Verifier::new(roots.into_store(), crls)
            .map_err(|error| TrustError::UnusableCrl(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(NoCertificate));
        config.resumption = Resumption::disabled();
        let mut identified = Vec::new();
        for one in upstream.client_certificates() {
            let identity = client_identity(&one.certificate, &one.key, &super::provider())?;
            let mut config = config.clone();
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity));
            identified.push((one.clone(), config));
        }
        let sessions = upstream.resumption.then(Arc::default);
        Ok(Self {
            config,
            identified,
            sessions,
            client_auth: upstream.client_auth,
            askers: Askers::default(),
        })
    }

    /// Whether a connection is to be relayed untouched, since its server is known to need the client's own certificate.
    pub fn relays(&self, name: &ServerName<'static>, scope: Scope) -> bool {
        self.client_auth == ClientAuth::Relay && self.askers.knows(scope, name)
    }

    /// Whether connections to servers that need their client's own certificate are relayed at all.
    pub fn may_relay(&self) -> bool {
        self.client_auth == ClientAuth::Relay
    }

    /// Does the handshake with the server that `stream` leads to. The server has been verified when the answer is
    /// [`UpstreamError::WantsCertificate`], too.
    pub async fn connect<S>(
        &self,
        stream: S,
        wanted: Wanted<'_>,
        within: Duration,
    ) -> Result<Connected<S>, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match tokio::time::timeout(within, self.handshake(stream, wanted, SystemTime::now())).await {
            Ok(connected) => connected,
            Err(_) => Err(UpstreamError::Timeout { name: wanted.name.to_str().into_owned(), within }),
        }
    }

    pub(super) async fn handshake<S>(
        &self,
        stream: S,
        wanted: Wanted<'_>,
        now: SystemTime,
    ) -> Result<Connected<S>, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Wanted { name, offer, scope } = wanted;
        let text = name.to_str();
        let own = self.identified.iter().find(|(certificate, _)| certificate.is_for(&text));
        let mut config = own.map_or(&self.config, |(_, config)| config).clone();
        config.alpn_protocols = offer.iter().map(|protocol| protocol.id().to_vec()).collect();
        let sessions = self.sessions.clone().map(|all| Arc::new(OwnSessions::new(all, scope, now)));
        if let Some(sessions) = &sessions {
            config.resumption =
                Resumption::store(sessions.clone()).tls12_resumption(Tls12Resumption::Disabled);
        }
        let handshake = TlsConnector::from(Arc::new(config)).connect(name.clone(), stream);
        let (connected, asked) = noting(handshake).await;
        let wants_certificate = || {
            self.askers.remember(scope, name.clone());
            UpstreamError::WantsCertificate { name: text.clone().into_owned() }
        };
        let mut stream = connected.map_err(|error| match broken(name, error) {
            UpstreamError::Handshake { .. } if asked => wants_certificate(),
            error => error,
        })?;
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let (also, ends) = chain.first().map(names_and_end).unwrap_or_default();
        let protocol = Protocol::negotiated(session.alpn_protocol());
        let mut until = None;
        if let Some(sessions) = sessions {
            let is_small = chain.iter().map(|one| one.len()).sum::<usize>() <= MAX_CHAIN;
            let proof = match session.handshake_kind() {
                Some(HandshakeKind::Resumed) => sessions.taken(),
                _ => ends.map(|ends| Proof::new(now, ends)),
            };
            until = proof.map(|proof| proof.until);
            if let Some(proof) = proof.filter(|_| is_small) {
                sessions.rest_on(proof);
            }
        }
        // In TLS 1.3 a client is done before the server has looked at its certificate.
        let may_refuse = asked && session.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        if may_refuse && !goes_on(&mut stream).await {
            return Err(wants_certificate());
        }
        Ok(Connected { stream, proven: ProvenName { name: name.clone(), also }, protocol, until })
    }
}

/// What a certificate is for, and when it ends.
fn names_and_end(leaf: &CertificateDer<'_>) -> (Vec<String>, Option<SystemTime>) {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Default::default() };
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).ok();
    let ends = ends.and_then(|ends| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(ends)));
    (names_of(&certificate), ends)
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
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
            let fault = CertificateFault::of(reason);
            UpstreamError::Untrusted { name, fault, reason: format!("{} ({reason})", fault.words()) }
        }
        _ => UpstreamError::Handshake { name, source: error },
    }
}
