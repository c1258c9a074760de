//! Enrolment: a one-time token and whom to trust come in, this host's identity at a collector is on disk when it ends. The
//! token is sent only to a collector that has shown a certificate of the authority that the operator named, by its file or by
//! its fingerprint; and only if it is for this very host. The key is made here, and stays.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use weir_core::identity::{AgentName, EnrolToken};
use weir_core::ids::hex;
use weir_core::wire::{CERTIFICATE, CertificateAck, CertificateRequest};

use super::client::{PostError, read_answer};
use super::remote::{Body, Remote, ask, configuration, dial, in_folder, roots_verifier};
use crate::config::CollectorUrl;
use crate::trust::{Enrolment, Identity, TrustError, certificates};

/// Whom a host trusts before it has enrolled.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// The authority's certificate.
    Certificates(Vec<CertificateDer<'static>>),
    /// SHA-256 of it, hex: the collector shows the certificate itself.
    Fingerprint(String),
}

/// What is to be enrolled, and where.
#[derive(Debug)]
pub struct Enrol {
    pub url: CollectorUrl,
    pub anchor: Anchor,
    pub token: EnrolToken,
    /// What this host's records will say.
    pub tenant: String,
    pub host: String,
    pub enrolment: Enrolment,
}

/// Why a host did not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(
        "the token is for the host {token}, and this one is {own}: make a token for it with `weir-collector enrol-token`, or mend tenant or the host's name"
    )]
    AnotherHost { token: String, own: String },
    #[error("{0:?} is no fingerprint: 64 hex digits, as `weir-collector ca show` prints it")]
    Fingerprint(String),
    #[error(
        "the collector showed no certificate with the fingerprint {0}: is this the right collector? (If its certificate is of another authority, use --ca.)"
    )]
    OtherFingerprint(String),
    #[error("the collector certified this host as {0}, which it is not; nothing was kept")]
    WrongName(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Post(#[from] PostError),
}

impl Anchor {
    /// The certificates in a PEM file.
    pub fn file(path: &Path) -> Result<Self, TrustError> {
        let fault = |fault: String| TrustError::Roots { path: path.to_owned(), fault };
        Ok(Anchor::Certificates(certificates(path).map_err(fault)?))
    }

    /// A fingerprint as people write it: with colons or without, in capitals or not.
    pub fn fingerprint(text: &str) -> Result<Self, EnrolError> {
        let plain: String =
            text.trim().chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
        let fits = plain.len() == 64 && plain.bytes().all(|b| b.is_ascii_hexdigit());
        if fits { Ok(Anchor::Fingerprint(plain)) } else { Err(EnrolError::Fingerprint(text.to_owned())) }
    }
}

impl Enrol {
    /// Enrols this host. Called again after an answer that was lost, it gets the same certificate.
    pub async fn execute(self) -> Result<Identity, EnrolError> {
        let own = format!("{}/{}", self.tenant, self.host);
        let token = format!("{}/{}", self.token.tenant, self.token.host);
        if own != token {
            return Err(EnrolError::AnotherHost { token, own });
        }
        let key = in_folder(&self.enrolment, Enrolment::pending).await?;
        let request = CertificateRequest { token: Some(self.token.text()), csr: key.request()? };
        let (ack, authorities) = self.certified(&request).await?;
        let (tenant, host) = (self.tenant.clone(), self.host.clone());
        let name = in_folder(&self.enrolment, move |enrolment| {
            let is_own = |name: &AgentName| (&name.tenant, &name.host) == (&tenant, &host);
            enrolment.complete(&key, &ack.certificate, &authorities, &default_provider(), is_own)
        });
        let Some(_) = name.await? else { return Err(EnrolError::WrongName(own)) };
        let identity = self.enrolment.identity(&default_provider())?;
        Ok(identity.ok_or(PostError::NotEnrolled(self.url))?)
    }

    async fn certified(
        &self,
        request: &CertificateRequest,
    ) -> Result<(CertificateAck, Vec<CertificateDer<'static>>), EnrolError> {
        let pinned = match &self.anchor {
            Anchor::Certificates(_) => None,
            Anchor::Fingerprint(fingerprint) => Some(Arc::new(Pinned::new(fingerprint.clone()))),
        };
        let verifier: Arc<dyn ServerCertVerifier> = match (&self.anchor, &pinned) {
            (_, Some(pinned)) => pinned.clone(),
            (Anchor::Certificates(roots), None) => roots_verifier(roots)?,
            (Anchor::Fingerprint(text), None) => return Err(EnrolError::Fingerprint(text.clone())),
        };
        let line = match dial(&self.url, configuration(verifier, None)?, None).await {
            Ok(line) => line,
            Err(error) => {
                let unmet = pinned.filter(|pinned| pinned.was_not_shown());
                return Err(unmet.map_or(error.into(), |pinned| {
                    EnrolError::OtherFingerprint(pinned.fingerprint.clone())
                }));
            }
        };
        let body = serde_json::to_vec(request).map_err(|e| PostError::Unreadable(e.to_string()))?;
        let asked = ask(&self.url, line.sender(), CERTIFICATE, &Body::of(body).await).await;
        let (status, answer) = match asked {
            Ok(answer) => answer,
            Err(reason) => {
                let reason = line.end().await.unwrap_or(reason);
                return Err(PostError::Unreachable { collector: self.url.to_string(), reason }.into());
            }
        };
        let ack = read_answer(status, &answer)?;
        let authorities = match (&self.anchor, pinned.and_then(|pinned| pinned.shown())) {
            (Anchor::Certificates(roots), _) => roots.clone(),
            (_, Some(root)) => vec![root],
            (Anchor::Fingerprint(text), None) => return Err(EnrolError::OtherFingerprint(text.clone())),
        };
        Ok((ack, authorities))
    }
}

/// Has the certificate of an enrolled host renewed now, with a new key.
pub async fn renew(url: CollectorUrl, enrolment: Enrolment) -> Result<Identity, EnrolError> {
    Ok(Remote::new(url, enrolment, None).renew().await?)
}

/// Accepts a collector whose chain goes up to the certificate with this fingerprint, which it shows itself.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    /// What was shown: nothing yet, none such, or the authority.
    shown: Mutex<Option<Option<CertificateDer<'static>>>>,
}

impl Pinned {
    fn new(fingerprint: String) -> Self {
        Self { fingerprint, shown: Mutex::default() }
    }

    fn was_not_shown(&self) -> bool {
        matches!(*self.shown.lock().unwrap_or_else(PoisonError::into_inner), Some(None))
    }

    fn shown(&self) -> Option<CertificateDer<'static>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone().flatten()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned =
            |certificate: &&CertificateDer<'_>| hex(&Sha256::digest(certificate)) == self.fingerprint;
        let authority = intermediates.iter().find(is_pinned).map(|found| found.clone().into_owned());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.clone());
        let Some(authority) = authority else {
            return Err(rustls::CertificateError::UnknownIssuer.into());
        };
        let verifier: Arc<WebPkiServerVerifier> =
            roots_verifier(&[authority]).map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Not offered.
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A name as people read it.
pub fn shown(name: &AgentName) -> String {
    weir_core::visible::line(&format!("{}/{}", name.tenant, name.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_write_it() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        for text in [plain.clone(), colons, format!(" {plain}\n")] {
            let Anchor::Fingerprint(read) = Anchor::fingerprint(&text).unwrap() else { panic!() };
            assert_eq!(read, plain);
        }
        for bad in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
            assert!(Anchor::fingerprint(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_token_for_another_host_is_not_sent() {
        let place = tempfile::tempdir().unwrap();
        let enrol = Enrol {
            url: "https://127.0.0.1:1".parse().unwrap(),
            anchor: Anchor::fingerprint(&"a".repeat(64)).unwrap(),
            token: EnrolToken::from_random([1; 32], "t", "other"),
            tenant: "t".into(),
            host: "h".into(),
            enrolment: Enrolment::at(place.path()),
        };
        let error = enrol.execute().await.unwrap_err().to_string();
        assert!(error.contains("for the host t/other, and this one is t/h"), "{error}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "no key was made either");
    }
}
