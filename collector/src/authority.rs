//! The agents' CA: a folder of this operator's comes in (or is made), signed certificates go out: the collector's own
//! for the names that agents call it by, and each agent's for its host. Any number of collectors use copies of one folder.
//!
//! ```text
//! <dir>/          0700
//!   ca.pem        the CA's certificate: what agents trust, by itself or by its fingerprint
//!   ca.key        0600, never shown
//!   server.pem    the collector's certificate, and the CA's behind it
//!   server.key    0600
//!   token.key     0600: what tokens are hashed with, so that the store's reader cannot try guesses
//! ```
//!
//! A server's certificate is good for serving alone, and an agent's for being a client alone: neither can pass for the other.

mod disk;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use weir_core::identity::AgentName;
use weir_core::ids::hex;
use x509_parser::extensions::GeneralName;

use self::disk::Folder;

/// How long the CA is valid.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY);
/// How long the collector's own certificate is; `weir-collector ca server` makes the next.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(397 * DAY);
/// How long an agent's is. It renews by itself when a third is left.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(30 * DAY);
/// How far a certificate's start lies in the past, against clocks that differ.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: u64 = 24 * 3600;

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SERVER_CERTIFICATE: &str = "server.pem";
const SERVER_KEY: &str = "server.key";
const TOKEN_KEY: &str = "token.key";

/// Why there is no CA to work with; the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Storage { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is open to others (mode {mode:04o}); close it with chmod, and make a new CA if anybody may have read it", path = path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("there is no CA in {dir}; make one: `weir-collector ca init --name NAME-OF-THIS-HOST`", dir = .0.display())]
    Missing(PathBuf),
    #[error("there is a CA in {dir} already; `weir-collector ca server --name NAME` makes its server's certificate anew", dir = .0.display())]
    Present(PathBuf),
    #[error("{path} cannot be used: {fault}; restore it", path = path.display())]
    Unusable { path: PathBuf, fault: String },
    #[error("{0:?} is neither a host's name nor an address")]
    Name(String),
    #[error("cannot sign: {0}")]
    Signing(#[from] rcgen::Error),
}

/// Why a request for a certificate was not signed; the agent is at fault.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the signing request cannot be read, or its signature is wrong: {0}")]
    Unreadable(rcgen::Error),
    #[error("the signing request is over another kind of key than P-256")]
    Key,
}

/// The CA, whose key it holds.
pub struct Authority {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    token_key: [u8; 32],
}

/// A key that asked for a certificate, and proved that it is the asker's.
pub struct AskedKey(CertificateSigningRequestParams);

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: CertificateDer<'static>,
    pub not_before: SystemTime,
    pub expires: SystemTime,
}

impl Authority {
    /// Makes a CA and a certificate for a collector that agents call by `names`.
    pub fn init(dir: &Path, names: &[String], now: SystemTime) -> Result<Self, AuthorityError> {
        let params = server_params(names, now)?;
        let folder = Folder::make(dir)?;
        if folder.path(CA_CERTIFICATE).exists() {
            return Err(AuthorityError::Present(dir.to_owned()));
        }
        let key = KeyPair::generate()?;
        let certificate = ca_params(now)?.self_signed(&key)?;
        folder.write_secret(CA_KEY, key.serialize_pem().as_bytes())?;
        folder.write_secret(TOKEN_KEY, hex(&random::<32>()?).as_bytes())?;
        // The last of the CA's own: what is there without it was left by one that was cut off, and is made anew.
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)?;
        write_server(&folder, &params, &issuer, certificate.der())?;
        folder.write(CA_CERTIFICATE, certificate.pem().as_bytes())?;
        Self::open(dir)
    }

    /// Opens what [`Authority::init`] made.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let folder = Folder::at(dir);
        let Some(pem) = folder.read(CA_CERTIFICATE)? else {
            return Err(AuthorityError::Missing(dir.to_owned()));
        };
        let unusable =
            |name: &str, fault: String| AuthorityError::Unusable { path: folder.path(name), fault };
        let certificate =
            CertificateDer::from_pem_slice(&pem).map_err(|e| unusable(CA_CERTIFICATE, e.to_string()))?;
        let key = folder.read_secret(CA_KEY)?;
        let key = KeyPair::from_pem(&key).map_err(|e| unusable(CA_KEY, e.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|e| unusable(CA_CERTIFICATE, e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(CA_KEY, "it is not the key of ca.pem".into()));
        }
        let token_key = folder.read_secret(TOKEN_KEY)?;
        let token_key =
            unhex(token_key.trim()).ok_or_else(|| unusable(TOKEN_KEY, "it is not 64 hex digits".into()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { dir: dir.to_owned(), certificate, issuer, token_key })
    }

    /// Makes the collector's own key and certificate anew. A collector that runs takes them at its next start.
    pub fn renew_server(&self, names: &[String], now: SystemTime) -> Result<(), AuthorityError> {
        write_server(&Folder::at(&self.dir), &server_params(names, now)?, &self.issuer, &self.certificate)
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_path(&self) -> PathBuf {
        self.dir.join(CA_CERTIFICATE)
    }

    /// SHA-256 of the CA's certificate, hex: what `weir enrol --ca-fingerprint` compares.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// What the store keeps in a token's place.
    pub fn hash_of(&self, token: &str) -> String {
        // Any length is a key to HMAC.
        let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(&self.token_key) else {
            return String::new();
        };
        mac.update(token.as_bytes());
        hex(&mac.finalize().into_bytes())
    }

    /// Signs an agent's key for its host.
    pub fn sign_agent(
        &self,
        key: &AskedKey,
        agent: &AgentName,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let mut params = leaf_params(now, lifetime)?;
        let uri = agent.uri();
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        // For people who look at a certificate; only the URI is read.
        params.distinguished_name = subject("agent");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key.0.public_key, &self.issuer)?;
        let (not_before, expires) = (now - BACKDATED, now + lifetime);
        Ok(Issued { certificate: certificate.into(), not_before, expires })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl AskedKey {
    /// Reads a signing request. Nothing but its key is used: names are the token's affair.
    pub fn read(csr_pem: &str) -> Result<Self, CsrError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CsrError::Unreadable)?;
        if csr.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::Key);
        }
        Ok(Self(csr))
    }

    /// SHA-256 of the key, hex.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.0.public_key.subject_public_key_info()))
    }
}

/// The agent that a certificate names; none where it names none, or anything besides. Of certificates that were verified.
pub fn agent_of(certificate: &CertificateDer<'_>) -> Option<AgentName> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return None };
    AgentName::read(uri)
}

/// SHA-256 of a certificate, hex.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(certificate))
}

/// The collector's certificate and key in a CA's folder.
pub fn server_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join(SERVER_CERTIFICATE), dir.join(SERVER_KEY))
}

/// The text of a file that its owner alone may read.
pub(crate) fn secret_file(path: &Path) -> Result<String, AuthorityError> {
    disk::secret(path)
}

/// Bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], AuthorityError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| AuthorityError::Storage {
        action: "read random bytes from",
        path: "the kernel".into(),
        source: std::io::Error::other(e),
    })?;
    Ok(bytes)
}

fn write_server(
    folder: &Folder,
    params: &CertificateParams,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'_>,
) -> Result<(), AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    folder.write_secret(SERVER_KEY, key.serialize_pem().as_bytes())?;
    let chain = format!("{}{}", certificate.pem(), to_pem(ca));
    folder.write(SERVER_CERTIFICATE, chain.as_bytes())
}

fn server_params(names: &[String], now: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let mut params = leaf_params(now, SERVER_LIFETIME)?;
    for name in names {
        let is_address = name.parse::<IpAddr>().is_ok();
        let is_name = rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
        if !is_address && !is_name {
            return Err(AuthorityError::Name(name.clone()));
        }
    }
    let named = CertificateParams::new(names.to_vec())?;
    params.subject_alt_names = named.subject_alt_names;
    params.distinguished_name = subject("collector");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn ca_params(now: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let mut params = leaf_params(now, CA_LIFETIME)?;
    params.distinguished_name = subject("agents' CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn leaf_params(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    let mut serial = random::<16>()?;
    // A positive integer, of the same length each time.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn subject(what: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Weir");
    name.push(DnType::CommonName, format!("Weir {what}"));
    name
}

/// A certificate in PEM.
pub fn to_pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Microseconds since 1970.
pub(crate) fn microseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn csr(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_ca_is_made_once_and_its_keys_are_closed_to_others() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("ca");
        assert!(matches!(Authority::open(&dir), Err(AuthorityError::Missing(_))));
        let names = ["collector.test".to_owned(), "127.0.0.1".to_owned()];
        let made = Authority::init(&dir, &names, SystemTime::now()).unwrap();
        assert!(matches!(Authority::init(&dir, &names, SystemTime::now()), Err(AuthorityError::Present(_))));
        for name in [CA_KEY, SERVER_KEY, TOKEN_KEY] {
            let mode = std::fs::metadata(dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let opened = Authority::open(&dir).unwrap();
        assert_eq!(opened.fingerprint(), made.fingerprint());
        assert_eq!(opened.hash_of("t"), made.hash_of("t"));
        assert_ne!(opened.hash_of("t"), hex(&Sha256::digest("t")));

        std::fs::set_permissions(dir.join(CA_KEY), PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(Authority::open(&dir), Err(AuthorityError::Exposed { .. })));
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_name_that_is_none_is_refused_before_anything_is_made() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("ca");
        let error = Authority::init(&dir, &["not a name".to_owned()], SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("not a name") && !dir.exists());
    }

    #[test]
    fn only_the_key_of_a_request_is_signed_and_only_for_what_the_collector_says() {
        let place = tempfile::tempdir().unwrap();
        let authority = Authority::init(place.path(), &["c.test".to_owned()], SystemTime::now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::new(["evil.test".to_owned()]).unwrap();
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = asked.serialize_request(&key).unwrap().pem().unwrap();
        let name = AgentName { tenant: "t".into(), host: "h".into(), enrolment: "e".repeat(32) };
        let now = SystemTime::now();
        let issued =
            authority.sign_agent(&AskedKey::read(&pem).unwrap(), &name, AGENT_LIFETIME, now).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(agent_of(&issued.certificate), Some(name));
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1, "nothing of what was asked for");
    }

    #[test]
    fn a_request_that_proves_no_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        assert!(AskedKey::read(&csr(&key)).is_ok());
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(AskedKey::read(&csr(&other)), Err(CsrError::Key)));
        let whole = csr(&key);
        // One bit of the key, in the middle of the second line.
        let broken: String = whole
            .char_indices()
            .map(|(at, c)| if at == 150 { if c == 'A' { 'B' } else { 'A' } } else { c })
            .collect();
        for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----", &broken] {
            assert!(matches!(AskedKey::read(bad), Err(CsrError::Unreadable(_))), "{bad}");
        }
    }
}
