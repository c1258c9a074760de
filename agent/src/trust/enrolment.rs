//! Who this host is at a collector on another host: the certificate that it enrolled for, its key, and whom it trusts to be
//! the collector. One file that is replaced as a whole, so that key and certificate always belong together:
//!
//! ```text
//! <dir>/            0700
//!   identity.pem    0600   this host's certificate, the collector's authority behind it, and the key
//!   pending.key     0600   a key that was sent to be certified, until it is: the same request can be sent again
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use weir_core::identity::AgentName;
use x509_parser::extensions::GeneralName;

use super::TrustError;
use super::authority::to_pem;
use super::disk::{Audience, Folder};

/// The most bytes of either file.
const MAX_FILE: u64 = 64 << 10;
const IDENTITY: &str = "identity.pem";
const PENDING: &str = "pending.key";

/// The folder.
#[derive(Debug, Clone)]
pub struct Enrolment {
    folder: PathBuf,
}

/// What an enrolled host has.
#[derive(Debug, Clone)]
pub struct Identity {
    pub name: AgentName,
    /// Its certificate and key.
    pub certified: Arc<CertifiedKey>,
    /// Whom the collector's certificate must come from.
    pub authorities: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub expires: SystemTime,
}

/// A key on its way to be certified. It never leaves the host.
pub struct PendingKey(KeyPair);

impl Enrolment {
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where the identity lies.
    pub fn path(&self) -> PathBuf {
        self.folder.join(IDENTITY)
    }

    /// This host's identity; none if it never enrolled. A file that others may read is refused.
    pub fn identity(&self, provider: &CryptoProvider) -> Result<Option<Identity>, TrustError> {
        let path = self.path();
        let Some(pem) = read_own(&path)? else { return Ok(None) };
        let unusable = |fault: String| TrustError::Enrolment { path: path.clone(), fault };
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let Some((own, authorities)) = certificates.split_first() else {
            return Err(unusable("it holds no certificate".into()));
        };
        if authorities.is_empty() {
            return Err(unusable("it names no authority".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable("it holds no key".into()))?;
        let certified = CertifiedKey::from_der(vec![own.clone()], key, provider)
            .map_err(|error| unusable(error.to_string()))?;
        let (name, not_before, expires) =
            about(own).ok_or_else(|| unusable("its certificate names no agent".into()))?;
        let authorities = authorities.to_vec();
        Ok(Some(Identity { name, certified: Arc::new(certified), authorities, not_before, expires }))
    }

    /// The key of a request that was not answered, or a new one, kept until it is.
    pub fn pending(&self) -> Result<PendingKey, TrustError> {
        let folder = Folder::lock(&self.folder, Audience::Owner)?;
        let path = folder.path(PENDING);
        let unusable = |fault: String| TrustError::Enrolment { path: path.clone(), fault };
        if let Some(pem) = read_own(&path)? {
            let text = std::str::from_utf8(&pem).map_err(|error| unusable(error.to_string()))?;
            return KeyPair::from_pem(text).map(PendingKey).map_err(|error| unusable(error.to_string()));
        }
        let key = KeyPair::generate().map_err(|error| unusable(error.to_string()))?;
        folder.write(PENDING, key.serialize_pem().as_bytes(), Audience::Owner)?;
        Ok(PendingKey(key))
    }

    /// Puts what the collector certified in force, if it is for whom it should be; else nothing is kept. The certificate must
    /// be of this very key.
    pub fn complete(
        &self,
        key: &PendingKey,
        certificate_pem: &str,
        authorities: &[CertificateDer<'static>],
        provider: &CryptoProvider,
        is_expected: impl FnOnce(&AgentName) -> bool,
    ) -> Result<Option<AgentName>, TrustError> {
        let unusable = |fault: String| TrustError::Enrolment { path: self.path(), fault };
        let own = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| unusable(format!("what the collector sent is no certificate ({error})")))?;
        let private =
            PrivateKeyDer::try_from(key.0.serialize_der()).map_err(|error| unusable(error.to_owned()))?;
        CertifiedKey::from_der(vec![own.clone()], private, provider)
            .map_err(|error| unusable(format!("the collector certified another key ({error})")))?;
        let (name, ..) =
            about(&own).ok_or_else(|| unusable("the collector's certificate names no agent".into()))?;
        if !is_expected(&name) {
            return Ok(None);
        }
        let mut text = to_pem("CERTIFICATE", &own);
        for authority in authorities {
            text.push_str(&to_pem("CERTIFICATE", authority));
        }
        text.push_str(&key.0.serialize_pem());
        let folder = Folder::lock(&self.folder, Audience::Owner)?;
        folder.write(IDENTITY, text.as_bytes(), Audience::Owner)?;
        // The key is in the identity now. Left behind, it would be certified a second time by the next request.
        match std::fs::remove_file(folder.path(PENDING)) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(TrustError::Storage { action: "remove", path: folder.path(PENDING), source })
            }
            _ => Ok(Some(name)),
        }
    }
}

impl Identity {
    /// Whether a third of the certificate's time is left, or less.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let whole = self.expires.duration_since(self.not_before).unwrap_or_default();
        self.expires.duration_since(now).unwrap_or_default() <= whole / 3
    }

    /// Whether it is another certificate than this one.
    pub fn differs(&self, other: &Identity) -> bool {
        self.certified.cert != other.certified.cert
    }
}

impl PendingKey {
    /// A signing request, PEM. Names are the token's affair.
    pub fn request(&self) -> Result<String, TrustError> {
        CertificateParams::default()
            .serialize_request(&self.0)
            .and_then(|request| request.pem())
            .map_err(|error| TrustError::Enrolment { path: PENDING.into(), fault: error.to_string() })
    }
}

fn about(certificate: &CertificateDer<'_>) -> Option<(AgentName, SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return None };
    let moment = |unix: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    let validity = parsed.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Some((AgentName::read(uri)?, moment(from), moment(to)))
}

/// A file of the owner's alone; none if there is no such file.
fn read_own(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    let fail = |source| TrustError::Storage { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let metadata = file.metadata().map_err(fail)?;
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    let is_own = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    if mode & 0o077 != 0 || !is_own {
        let fault = if is_own { format!("mode {mode:04o}") } else { format!("it belongs to uid {uid}") };
        let mend = "give it to the agent's user with mode 0600; if anybody may have read it, revoke the host's enrolment and \
                    enrol it again";
        return Err(TrustError::Exposed { path: path.to_owned(), fault, mend });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        let fault = format!("it is larger than {MAX_FILE} bytes");
        return Err(TrustError::Enrolment { path: path.to_owned(), fault });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{Issuer, SanType};
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    fn ca() -> (Issuer<'static, KeyPair>, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::default();
        let certificate = params.self_signed(&key).unwrap();
        (Issuer::from_ca_cert_der(certificate.der(), key).unwrap(), certificate.into())
    }

    fn certificate(issuer: &Issuer<'static, KeyPair>, key: &KeyPair, days: u64) -> String {
        let mut params = CertificateParams::default();
        let name = AgentName { tenant: "t".into(), host: "h".into(), enrolment: "e".repeat(32) };
        params.subject_alt_names = vec![SanType::URI(name.uri().as_str().try_into().unwrap())];
        let now = SystemTime::now();
        params.not_before = now.into();
        params.not_after = (now + Duration::from_secs(days * 86400)).into();
        params.signed_by(key, issuer).unwrap().pem()
    }

    #[test]
    fn a_key_waits_for_its_certificate_and_then_both_lie_in_one_closed_file() {
        let place = tempfile::tempdir().unwrap();
        let enrolment = Enrolment::at(&place.path().join("collector"));
        let provider = default_provider();
        assert!(enrolment.identity(&provider).unwrap().is_none());
        let (first, again) = (enrolment.pending().unwrap(), enrolment.pending().unwrap());
        assert_eq!(first.0.serialized_der(), again.0.serialized_der(), "the same request can be sent again");
        assert!(first.request().unwrap().contains("CERTIFICATE REQUEST"));

        let (issuer, root) = ca();
        let other = KeyPair::generate().unwrap();
        let roots = [root];
        let error =
            enrolment.complete(&first, &certificate(&issuer, &other, 30), &roots, &provider, |_| true);
        assert!(error.unwrap_err().to_string().contains("another key"));
        assert!(enrolment.identity(&provider).unwrap().is_none());

        let pem = certificate(&issuer, &first.0, 30);
        let refused = enrolment.complete(&first, &pem, &roots, &provider, |name| name.host != "h").unwrap();
        assert!(refused.is_none() && enrolment.identity(&provider).unwrap().is_none());
        let name =
            enrolment.complete(&first, &pem, &roots, &provider, |name| name.host == "h").unwrap().unwrap();
        let identity = enrolment.identity(&provider).unwrap().unwrap();
        assert_eq!((&identity.name, &identity.authorities[..]), (&name, &roots[..]));
        let mode = std::fs::metadata(enrolment.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!place.path().join("collector").join(PENDING).exists());
        assert!(!format!("{identity:?}").contains("PRIVATE"));

        std::fs::set_permissions(enrolment.path(), PermissionsExt::from_mode(0o640)).unwrap();
        assert!(enrolment.identity(&provider).unwrap_err().to_string().contains("mode 0640"));
    }

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        let place = tempfile::tempdir().unwrap();
        let enrolment = Enrolment::at(place.path());
        let (issuer, root) = ca();
        let key = enrolment.pending().unwrap();
        let provider = default_provider();
        let pem = certificate(&issuer, &key.0, 30);
        enrolment.complete(&key, &pem, &[root], &provider, |_| true).unwrap().unwrap();
        let identity = enrolment.identity(&provider).unwrap().unwrap();
        let after = |days: u64| identity.not_before + Duration::from_secs(days * 86400);
        assert!(!identity.is_due(after(19)) && identity.is_due(after(21)) && identity.is_due(after(40)));
    }
}
