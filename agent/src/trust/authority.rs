//! Weir's local CA: made once, opened ever after, checked each time. What it signs is the tls room's affair.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::disk::{Audience, Folder};
use super::{CA_VARIABLES, Roots, TrustError};

/// How long a new CA is valid. A single host renews it by a new one; jobs find that in the bundle.
pub const CA_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far a certificate's start lies in the past, against clocks that differ.
pub const CA_BACKDATED: Duration = Duration::from_secs(3600);

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const BUNDLE: &str = "bundle.pem";
/// RFC 5280, ub-common-name.
const MAX_COMMON_NAME: usize = 64;

/// The CA of this host, whose key it holds.
pub struct Authority {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    signer: Issuer<'static, KeyPair>,
    issuer: String,
    expires: SystemTime,
}

impl Authority {
    /// Opens the CA in the folder `dir`, or makes it: "Weir `host` CA". Any number of processes may do this
    /// at once. A CA that others may know the key of, that is damaged or out of date is refused, never
    /// replaced by itself.
    pub fn open_or_create(dir: &Path, host: &str) -> Result<Self, TrustError> {
        Self::open_or_create_at(dir, host, SystemTime::now())
    }

    pub(super) fn open_or_create_at(dir: &Path, host: &str, now: SystemTime) -> Result<Self, TrustError> {
        // The environment of jobs names these paths, and they run elsewhere.
        let dir = std::path::absolute(dir).map_err(|source| TrustError::Storage {
            action: "find",
            path: dir.to_owned(),
            source,
        })?;
        let folder = Folder::lock(&dir, Audience::Everybody)?;
        let certificate = folder.read(CERTIFICATE, Audience::Everybody)?;
        let key = match (folder.read(KEY, Audience::Owner)?, &certificate) {
            (Some(pem), _) => read_key(&folder, &pem)?,
            (None, None) => create_key(&folder)?,
            (None, Some(_)) => {
                let fault = "its key ca.key is missing".to_owned();
                return Err(TrustError::Unusable { path: folder.path(CERTIFICATE), fault });
            }
        };
        // A key alone is what a crash between the two writes leaves; nobody has trusted it yet.
        let certificate = match certificate {
            Some(pem) => CertificateDer::from_pem_slice(&pem)
                .map_err(|error| unusable(&folder, CERTIFICATE, error.to_string()))?,
            None => create_certificate(&folder, &key, host, now)?,
        };
        Self::check(&folder, dir, certificate, key, now)
    }

    fn check(
        folder: &Folder,
        dir: PathBuf,
        certificate: CertificateDer<'static>,
        key: KeyPair,
        now: SystemTime,
    ) -> Result<Self, TrustError> {
        let path = folder.path(CERTIFICATE);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| unusable(folder, CERTIFICATE, error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(TrustError::Mismatched { key: folder.path(KEY), certificate: path });
        }
        let signs = parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
        if !parsed.is_ca() || !signs {
            return Err(unusable(folder, CERTIFICATE, "it may not sign certificates".to_owned()));
        }
        let starts = moment(parsed.validity().not_before.timestamp());
        let expires = moment(parsed.validity().not_after.timestamp());
        let until = |fault: &str, at: x509_parser::time::ASN1Time| format!("{fault} {at}");
        if now >= expires {
            return Err(TrustError::OutOfDate {
                path,
                fault: until("expired on", parsed.validity().not_after),
                mend: "remove ca.pem and ca.key for a new CA, and let jobs read the new bundle.pem",
            });
        }
        if now < starts {
            return Err(TrustError::OutOfDate {
                path,
                fault: until("is not valid before", parsed.validity().not_before),
                mend: "set this host's clock",
            });
        }
        let issuer = parsed.subject().to_string();
        let signer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| unusable(folder, CERTIFICATE, error.to_string()))?;
        Ok(Self { folder: dir, certificate, signer, issuer, expires })
    }

    /// The CA's subject, as clients see it in the issuer of each leaf: `O=Weir, CN=Weir <host> CA`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// When the CA stops being valid; no leaf outlives it.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The file with the CA's certificate, PEM.
    pub fn certificate_path(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// The file that [`Authority::write_bundle`] writes.
    pub fn bundle_path(&self) -> PathBuf {
        self.folder.join(BUNDLE)
    }

    /// Writes the bundle: Weir's CA first, then the system's roots and those of the files `extra_roots`.
    pub fn write_bundle(&self, extra_roots: &[PathBuf]) -> Result<PathBuf, TrustError> {
        let roots = Roots::load(extra_roots)?;
        let mut text = to_pem("CERTIFICATE", &self.certificate);
        for root in roots.certificates().iter().filter(|root| **root != self.certificate) {
            text.push_str(&to_pem("CERTIFICATE", root));
        }
        Folder::lock(&self.folder, Audience::Everybody)?.write(
            BUNDLE,
            text.as_bytes(),
            Audience::Everybody,
        )?;
        Ok(self.bundle_path())
    }

    /// What a job's environment must say: each of [`CA_VARIABLES`] names the bundle.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let bundle = self.bundle_path().display().to_string();
        CA_VARIABLES.iter().map(|name| (*name, bundle.clone())).collect()
    }

    /// Signs a certificate over `key`.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        Ok(params.signed_by(key, &self.signer)?.into())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("folder", &self.folder)
            .field("issuer", &self.issuer)
            .field("expires", &self.expires)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}

/// A serial number of 127 random bits: clients may refuse two certificates of one issuer with the same.
pub(crate) fn random_serial() -> Result<SerialNumber, getrandom::Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    // A positive integer, of the same length each time.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn create_key(folder: &Folder) -> Result<KeyPair, TrustError> {
    let key = KeyPair::generate().map_err(|error| unusable(folder, KEY, error.to_string()))?;
    folder.write(KEY, to_pem("PRIVATE KEY", key.serialized_der()).as_bytes(), Audience::Owner)?;
    Ok(key)
}

fn read_key(folder: &Folder, pem: &[u8]) -> Result<KeyPair, TrustError> {
    let text = std::str::from_utf8(pem).map_err(|_| unusable(folder, KEY, "it is no PEM text".to_owned()))?;
    KeyPair::from_pem(text).map_err(|error| unusable(folder, KEY, error.to_string()))
}

fn create_certificate(
    folder: &Folder,
    key: &KeyPair,
    host: &str,
    now: SystemTime,
) -> Result<CertificateDer<'static>, TrustError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - CA_BACKDATED).into();
    params.not_after = (now + CA_LIFETIME).into();
    params.serial_number =
        Some(random_serial().map_err(|error| unusable(folder, CERTIFICATE, error.to_string()))?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Weir");
    params.distinguished_name.push(DnType::CommonName, common_name(host));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let certificate =
        params.self_signed(key).map_err(|error| unusable(folder, CERTIFICATE, error.to_string()))?;
    let der = CertificateDer::from(certificate);
    folder.write(CERTIFICATE, to_pem("CERTIFICATE", &der).as_bytes(), Audience::Everybody)?;
    Ok(der)
}

fn common_name(host: &str) -> String {
    let room = MAX_COMMON_NAME - "Weir  CA".len();
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(room).collect();
    format!("Weir {host} CA")
}

fn unusable(folder: &Folder, name: &str, fault: String) -> TrustError {
    TrustError::Unusable { path: folder.path(name), fault }
}

fn moment(unix: i64) -> SystemTime {
    // No certificate of ours starts before 1970.
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}

/// RFC 7468, section 2.
pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
