//! Leaves: a server's name comes in, what is needed to stand for that server before a client goes out, signed
//! by the host's CA. Leaves and their one key live in memory alone.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{Ticketer, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};

use super::accept::AcceptError;
use super::alpn::Protocol;
use crate::trust::{Authority, CA_BACKDATED, random_serial};

/// How long a leaf is valid from its minting on, unless the CA ends earlier.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A leaf that has no more than this left is minted anew.
pub const LEAF_RENEWED_BEFORE: Duration = Duration::from_secs(6 * 3600);
/// The most leaves kept; past it the oldest goes.
pub const MAX_LEAVES: usize = 1024;

/// RFC 5280, ub-common-name.
const MAX_COMMON_NAME: usize = 64;

/// A certificate for one server's name, with all that its handshakes need.
pub struct Leaf {
    name: ServerName<'static>,
    certificate: CertificateDer<'static>,
    expires: SystemTime,
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Leaf {
    /// The name that it is for.
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// The certificate; clients get the CA's after it.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub(super) fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        Arc::clone(match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        })
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("name", &self.name)
            .field("expires", &self.expires)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}

/// Mints leaves and keeps them.
pub struct Minter {
    authority: Arc<Authority>,
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    tickets: Arc<dyn ProducesTickets>,
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    by_name: HashMap<ServerName<'static>, (u64, Arc<Leaf>)>,
    minted: u64,
}

impl Minter {
    pub fn new(authority: Arc<Authority>) -> Result<Self, AcceptError> {
        let key = KeyPair::generate().map_err(minting)?;
        let der = PrivatePkcs8KeyDer::from(key.serialized_der());
        let signing = any_supported_type(&der.into()).map_err(minting)?;
        let tickets = Ticketer::new().map_err(minting)?;
        Ok(Self { authority, key, signing, tickets, leaves: Mutex::default() })
    }

    /// The leaf for `name`, from memory or minted now (some tens of microseconds; nothing blocks).
    pub fn leaf(&self, name: &ServerName<'_>) -> Result<Arc<Leaf>, AcceptError> {
        self.leaf_at(name, SystemTime::now())
    }

    pub(super) fn leaf_at(&self, name: &ServerName<'_>, now: SystemTime) -> Result<Arc<Leaf>, AcceptError> {
        let name = canonical(name)?;
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, leaf)) = leaves.by_name.get(&name)
            && now + LEAF_RENEWED_BEFORE < leaf.expires
        {
            return Ok(Arc::clone(leaf));
        }
        let leaf = Arc::new(self.mint(name.clone(), now)?);
        leaves.keep(name, Arc::clone(&leaf));
        Ok(leaf)
    }

    fn mint(&self, name: ServerName<'static>, now: SystemTime) -> Result<Leaf, AcceptError> {
        if now >= self.authority.expires() {
            return Err(minting("the CA has expired; remove ca.pem and ca.key, and restart the agent"));
        }
        let expires = self.authority.expires().min(now + LEAF_LIFETIME);
        let mut params = CertificateParams::default();
        params.not_before = (now - CA_BACKDATED).into();
        params.not_after = expires.into();
        // All leaves have one key, of which rcgen would derive one serial for all.
        params.serial_number = Some(random_serial().map_err(minting)?);
        params.distinguished_name = subject(&name);
        params.subject_alt_names = vec![alternative(&name)?];
        // OpenSSL's strict mode (Python 3.13's default) wants the issuer's key identifier. rcgen gives the
        // subject's (RFC 5280, section 4.2.1.2) only to a certificate that says of itself that it is no CA.
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.authority.sign(&params, &self.key).map_err(minting)?;
        let mut http1 = self.config(&certificate)?;
        let mut http2 = http1.clone();
        http1.alpn_protocols = vec![Protocol::Http1.id().to_vec()];
        http2.alpn_protocols = vec![Protocol::Http2.id().to_vec()];
        Ok(Leaf { name, certificate, expires, http1: Arc::new(http1), http2: Arc::new(http2) })
    }

    fn config(&self, certificate: &CertificateDer<'static>) -> Result<ServerConfig, AcceptError> {
        let chain = vec![certificate.clone(), self.authority.certificate().clone()];
        let key = CertifiedKey::new(chain, Arc::clone(&self.signing));
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .map_err(minting)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        // Tickets keep nothing here; rustls takes one for no other name than it was given for.
        config.ticketer = Arc::clone(&self.tickets);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter")
            .field("authority", &self.authority)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}

impl Leaves {
    fn keep(&mut self, name: ServerName<'static>, leaf: Arc<Leaf>) {
        if self.by_name.len() >= MAX_LEAVES && !self.by_name.contains_key(&name) {
            let oldest =
                self.by_name.iter().min_by_key(|(_, (minted, _))| *minted).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.by_name.remove(&oldest);
            }
        }
        self.minted += 1;
        self.by_name.insert(name, (self.minted, leaf));
    }
}

/// One leaf for all spellings of a name.
fn canonical(name: &ServerName<'_>) -> Result<ServerName<'static>, AcceptError> {
    match name {
        ServerName::DnsName(dns) => {
            let dns = dns.as_ref().to_ascii_lowercase();
            ServerName::try_from(dns.trim_end_matches('.').to_owned()).map_err(minting)
        }
        address => Ok(address.to_owned()),
    }
}

fn subject(name: &ServerName<'_>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Weir");
    // For people who look; clients read the alternative name.
    let text = name.to_str();
    if text.len() <= MAX_COMMON_NAME {
        subject.push(DnType::CommonName, text.as_ref());
    }
    subject
}

fn alternative(name: &ServerName<'_>) -> Result<SanType, AcceptError> {
    match name {
        ServerName::DnsName(dns) => Ok(SanType::DnsName(dns.as_ref().try_into().map_err(minting)?)),
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(*address))),
        other => Err(minting(format!("{other:?} is neither a DNS name nor an address"))),
    }
}

fn minting(fault: impl ToString) -> AcceptError {
    AcceptError::Minting(fault.to_string())
}
