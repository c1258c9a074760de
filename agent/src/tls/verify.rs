//! Whether a server's certificate stands: its chain, name, purpose and time (the library's own check), the configured
//! revocation lists, and what the server stapled. There is no way to switch any of it off.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::staple::{Stapled, Subject, must_staple};

/// See the module.
#[derive(Debug)]
pub struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// A certificate whose issuer has a list among `crls` must not be on it, and the list must be current.
    pub fn new(
        roots: RootCertStore,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, VerifierBuilderError> {
        let (roots, provider) = (Arc::new(roots), super::provider());
        let algorithms = provider.signature_verification_algorithms;
        let chain = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider)
            .with_crls(crls)
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()?;
        Ok(Self { chain, roots, algorithms })
    }

    /// What was stapled to a certificate whose chain was verified.
    fn check_staple(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        staple: &[u8],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let is_demanded = must_staple(&certificate);
        let stapled = match staple {
            [] => Stapled::Nothing("there is none"),
            _ => self.stapled(leaf, &certificate, intermediates, staple, now),
        };
        match stapled {
            Stapled::Revoked => Err(CertificateError::Revoked),
            Stapled::Good => Ok(()),
            Stapled::Nothing(why) if is_demanded => {
                tracing::debug!(why, "a certificate demands a staple, and its own does not count");
                Err(CertificateError::InvalidOcspResponse)
            }
            Stapled::Nothing(_) => Ok(()),
        }
    }

    /// The issuer's key is that of the verified path: any other certificate that a server may send along with the same name
    /// proves nothing.
    fn stapled(
        &self,
        leaf: &CertificateDer<'_>,
        certificate: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        staple: &[u8],
        now: UnixTime,
    ) -> Stapled {
        let nothing = Stapled::Nothing("its chain cannot be followed");
        let Ok(end) = EndEntityCert::try_from(leaf) else { return nothing };
        let (algorithms, usage) = (self.algorithms.all, KeyUsage::server_auth());
        let path = end.verify_for_usage(algorithms, &self.roots.roots, intermediates, now, usage, None, None);
        let Ok(path) = path else { return nothing };
        let issuer_key = path.issuer_spki();
        Subject { certificate, issuer_key: issuer_key.as_ref(), algorithms }.stapled(staple, now)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        staple: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chain.verify_server_cert(leaf, intermediates, name, staple, now)?;
        self.check_staple(leaf, intermediates, staple, now)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.chain.root_hint_subjects()
    }
}
