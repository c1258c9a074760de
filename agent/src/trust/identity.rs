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
