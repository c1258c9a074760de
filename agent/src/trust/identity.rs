//! What the operator gave Weir for use with servers, out of files: certificates of its own, and lists of revoked ones. A key that
//! others may read is refused, as the CA's is.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::TrustError;
use super::roots::read_certificates;

/// The most bytes of a key's file.
const MAX_KEY_FILE: u64 = 64 << 10;
/// The most bytes of a file of revocation lists.
pub const MAX_CRL_FILE: u64 = 64 << 20;

/// A certificate, with those between it and its root, and its key.
pub fn client_identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TrustError> {
    let unusable = |path: &Path, fault: String| TrustError::Identity { path: path.to_owned(), fault };
    let chain = read_certificates(certificate).map_err(|fault| unusable(certificate, fault))?;
    let fail = |source| TrustError::Storage { action: "read", path: key.to_owned(), source };
    let file = File::open(key).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    let is_own = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    if mode & 0o077 != 0 || !is_own {
        let fault = if is_own { format!("mode {mode:04o}") } else { format!("it belongs to uid {uid}") };
        let mend =
            "give it to the agent's user with mode 0600, and replace the key if anybody may have read it";
        return Err(TrustError::Exposed { path: key.to_owned(), fault, mend });
    }
    let mut pem = Vec::new();
    file.take(MAX_KEY_FILE).read_to_end(&mut pem).map_err(fail)?;
    let der = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| unusable(key, "it holds no private key in PEM".to_owned()))?;
    let identity = CertifiedKey::from_der(chain, der, provider)
        .map_err(|error| unusable(key, format!("it does not belong to the certificate ({error})")))?;
    Ok(Arc::new(identity))
}

/// The lists in a file, PEM or DER.
pub fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TrustError> {
    let refuse = |fault: String| TrustError::Crls { path: path.to_owned(), fault };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_CRL_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(error.to_string()))?;
    if bytes.len() as u64 > MAX_CRL_FILE {
        return Err(refuse(format!("it is larger than {MAX_CRL_FILE} bytes")));
    }
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![bytes.into()]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err(refuse("it holds no list".to_owned())),
        Ok(lists) => Ok(lists),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// How a list in DER begins; PEM is text.
const DER_SEQUENCE: u8 = 0x30;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    struct Files {
        certificate: PathBuf,
        key: PathBuf,
        _place: tempfile::TempDir,
    }

    fn files(certified: &KeyPair, kept: &KeyPair) -> Files {
        let place = tempfile::tempdir().unwrap();
        let (certificate, key) = (place.path().join("c.pem"), place.path().join("c.key"));
        let params = CertificateParams::new(["job.test".to_owned()]).unwrap();
        std::fs::write(&certificate, params.self_signed(certified).unwrap().pem()).unwrap();
        std::fs::write(&key, kept.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        Files { certificate, key, _place: place }
    }

    fn read(files: &Files) -> Result<(), String> {
        let identity = client_identity(&files.certificate, &files.key, &default_provider());
        identity.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_anothers_is_refused() {
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let good = files(&own, &own);
        assert_eq!(read(&good), Ok(()));
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&good.key, PermissionsExt::from_mode(mode)).unwrap();
            let error = read(&good).unwrap_err();
            assert!(error.contains(&format!("mode {mode:04o}")) && error.contains("mode 0600"), "{error}");
        }
        let error = read(&files(&own, &other)).unwrap_err();
        assert!(error.contains("does not belong to the certificate"), "{error}");
        let empty = files(&own, &own);
        std::fs::write(&empty.key, "").unwrap();
        assert!(read(&empty).unwrap_err().contains("holds no private key"));
        std::fs::write(&empty.certificate, "").unwrap();
        assert!(read(&empty).unwrap_err().contains("holds no certificate"));
        std::fs::remove_file(&empty.key).unwrap();
        std::fs::write(&empty.certificate, std::fs::read(&good.certificate).unwrap()).unwrap();
        assert!(read(&empty).unwrap_err().contains("No such file"));
    }

    #[test]
    fn a_file_that_holds_no_list_is_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("revoked.crl");
        assert!(revocation_lists(&path).unwrap_err().to_string().contains("No such file"));
        std::fs::write(&path, "").unwrap();
        let error = revocation_lists(&path).unwrap_err().to_string();
        assert!(error.contains("holds no list") && error.contains("upstream.crls"), "{error}");
        std::fs::File::create(&path).unwrap().set_len(MAX_CRL_FILE + 1).unwrap();
        assert!(revocation_lists(&path).unwrap_err().to_string().contains("larger than"));
        // What begins as DER is taken as it is; the verifier reads it.
        std::fs::write(&path, b"\x30\x00").unwrap();
        assert_eq!(revocation_lists(&path).unwrap().len(), 1);
        let upstream = crate::config::Upstream { crls: vec![path], ..Default::default() };
        let error = crate::tls::UpstreamTls::new(&upstream).unwrap_err().to_string();
        assert!(error.contains("upstream.crls cannot be used"), "{error}");
    }
}
