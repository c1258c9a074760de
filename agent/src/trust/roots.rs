//! The roots that a server's certificate may chain to: the system's and the configured ones.
//!
//! The system's are found as OpenSSL would find them. `SSL_CERT_FILE` and `SSL_CERT_DIR` in the agent's *own* environment
//! replace them, as they do for any other program: an operator can use that, and should know of it (an agent started with a
//! job's CA variables would trust its own CA). A damaged certificate among the system's is passed over with a warning
//! (distributions ship odd ones); a configured file must be whole, or the agent does not start.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::TrustError;

/// The most bytes of one configured file of roots. (All of Mozilla's are 220 KiB.)
pub const MAX_ROOTS_FILE: u64 = 8 << 20;

/// Roots, each once, each readable as a trust anchor.
#[derive(Debug, Clone)]
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: RootCertStore,
}

impl Roots {
    /// The system's roots and those of the files `configured`.
    pub fn load(configured: &[PathBuf]) -> Result<Self, TrustError> {
        let mut roots = Self { certificates: Vec::new(), store: RootCertStore::empty() };
        let mut seen = HashSet::new();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "a root of the system's could not be read");
        }
        let mut damaged = 0_usize;
        for certificate in system.certs {
            if roots.add(certificate, &mut seen).is_err() {
                damaged += 1;
            }
        }
        if damaged > 0 {
            tracing::warn!(damaged, "roots of the system's are no trust anchors and were passed over");
        }
        for path in configured {
            let refuse = |fault| TrustError::Roots { path: path.clone(), fault };
            for certificate in read_certificates(path).map_err(refuse)? {
                roots.add(certificate, &mut seen).map_err(|error| refuse(error.to_string()))?;
            }
        }
        if roots.store.is_empty() { Err(TrustError::NoRoots) } else { Ok(roots) }
    }

    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub fn into_store(self) -> RootCertStore {
        self.store
    }

    fn add(
        &mut self,
        certificate: CertificateDer<'static>,
        seen: &mut HashSet<CertificateDer<'static>>,
    ) -> Result<(), rustls::Error> {
        if !seen.contains(&certificate) {
            self.store.add(certificate.clone())?;
            seen.insert(certificate.clone());
            self.certificates.push(certificate);
        }
        Ok(())
    }
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_ROOTS_FILE + 1).read_to_end(&mut pem))
        .map_err(|error| error.to_string())?;
    if pem.len() as u64 > MAX_ROOTS_FILE {
        return Err(format!("it is larger than {MAX_ROOTS_FILE} bytes"));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("it holds no certificate".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}
