//! A stapled OCSP response (RFC 6960, RFC 6066) comes in with the certificate that it came with and the key that issued
//! that one; whether the certificate is revoked goes out. A response counts only if it is about this very
//! certificate and signed by its issuer, or by whom the issuer named for that.
//!
//! What cannot be read, is not signed so, or is out of date says nothing, and is not a fault by itself: the server chose
//! whether to staple, so refusing a bad staple would stop nobody who could leave it out. Only where the
//! certificate demands one (RFC 7633) must it be good. Nothing here fetches anything.

use std::time::Duration;

use aws_lc_rs::digest::{self, Algorithm, digest};
use rustls::pki_types::{SignatureVerificationAlgorithm, UnixTime};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{AnyRef, Decode, Encode, Header, Reader, SliceReader};
use x509_cert::ext::pkix::CrlReason;
use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{Certificate, time::Time};
use x509_ocsp::{BasicOcspResponse, CertId, CertStatus, OcspResponse, OcspResponseStatus, SingleResponse};
use x509_parser::prelude::X509Certificate;

/// How far a responder's clock may be ahead or behind.
const SKEW: Duration = Duration::from_secs(5 * 60);
/// How old a response may be that does not say when the next one comes.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many of the certificates in a response are looked at.
const MAX_RESPONDERS: usize = 4;

/// RFC 6960, section 4.2.1: id-pkix-ocsp-basic.
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// RFC 6960, section 4.2.2.2: id-kp-OCSPSigning.
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// RFC 7633, section 4.1: the TLS feature extension, and in it status_request.
const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";
const STATUS_REQUEST: u16 = 5;

/// What a staple says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stapled {
    Good,
    Revoked,
    /// Nothing that counts, and why.
    Nothing(&'static str),
}

/// The certificate that a response must be about.
pub struct Subject<'a> {
    pub certificate: &'a X509Certificate<'a>,
    /// The issuer's `SubjectPublicKeyInfo`, out of the verified chain.
    pub issuer_key: &'a [u8],
    pub algorithms: &'a [&'static dyn SignatureVerificationAlgorithm],
}

/// Whether a certificate demands that its server staples. One whose demands cannot be read does.
pub fn must_staple(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().filter(|extension| extension.oid.to_id_string() == TLS_FEATURE).any(
        |extension| {
            Vec::<u16>::from_der(extension.value).map_or(true, |features| features.contains(&STATUS_REQUEST))
        },
    )
}

impl Subject<'_> {
    pub fn stapled(&self, staple: &[u8], now: UnixTime) -> Stapled {
        self.read(staple, now.as_secs()).unwrap_or_else(Stapled::Nothing)
    }

    fn read(&self, staple: &[u8], now: u64) -> Result<Stapled, &'static str> {
        let response = OcspResponse::from_der(staple).map_err(|_| "it cannot be read")?;
        let bytes = match (response.response_status, response.response_bytes) {
            (OcspResponseStatus::Successful, Some(bytes)) if bytes.response_type == BASIC => bytes,
            _ => return Err("it answers nothing"),
        };
        let bytes = bytes.response.as_bytes();
        let basic = BasicOcspResponse::from_der(bytes).map_err(|_| "it cannot be read")?;
        let answer = basic.tbs_response_data.responses.iter().find(|answer| self.is_about(&answer.cert_id));
        let answer = answer.ok_or("it is about another certificate")?;
        let signed = signed_part(bytes).ok_or("it cannot be read")?;
        if !self.is_signed(&basic, signed, now) {
            return Err("neither the issuer nor whom it named has signed it");
        }
        match &answer.cert_status {
            // A revocation does not end, however old its statement; a hold may.
            CertStatus::Revoked(revoked)
                if revoked.revocation_reason != Some(CrlReason::CertificateHold)
                    || is_current(answer, now) =>
            {
                Ok(Stapled::Revoked)
            }
            CertStatus::Good(_) if is_current(answer, now) => Ok(Stapled::Good),
            CertStatus::Unknown(_) => Err("its responder does not know the certificate"),
            CertStatus::Good(_) | CertStatus::Revoked(_) => Err("it is out of date"),
        }
    }

    fn is_about(&self, id: &CertId) -> bool {
        let algorithm = match id.hash_algorithm.oid {
            SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            SHA256 => &digest::SHA256,
            _ => return false,
        };
        let Ok(key) = SubjectPublicKeyInfoOwned::from_der(self.issuer_key) else { return false };
        let hashed = |algorithm: &'static Algorithm, bytes: &[u8], hash: &[u8]| {
            digest(algorithm, bytes).as_ref() == hash
        };
        let serial = self.certificate.raw_serial();
        trimmed(id.serial_number.as_bytes()) == trimmed(serial)
            && hashed(algorithm, self.certificate.issuer().as_raw(), id.issuer_name_hash.as_bytes())
            && hashed(algorithm, key.subject_public_key.raw_bytes(), id.issuer_key_hash.as_bytes())
    }

    fn is_signed(&self, basic: &BasicOcspResponse, signed: &[u8], now: u64) -> bool {
        let by = |key: &[u8]| {
            self.verifies(key, &basic.signature_algorithm, signed, basic.signature.raw_bytes()).is_some()
        };
        let delegates = basic.certs.iter().flatten().take(MAX_RESPONDERS);
        by(self.issuer_key) || delegates.filter_map(|one| self.delegate(one, now)).any(|key| by(&key))
    }

    /// The key of a certificate that the issuer gave to a responder.
    fn delegate(&self, certificate: &Certificate, now: u64) -> Option<Vec<u8>> {
        let tbs = &certificate.tbs_certificate;
        let (_, ExtendedKeyUsage(purposes)) = tbs.get::<ExtendedKeyUsage>().ok()??;
        let seconds = |time: &Time| time.to_unix_duration().as_secs();
        let lasts = seconds(&tbs.validity.not_before) <= now && now <= seconds(&tbs.validity.not_after);
        if !purposes.contains(&OCSP_SIGNING) || !lasts {
            return None;
        }
        let signature = certificate.signature.raw_bytes();
        self.verifies(self.issuer_key, &certificate.signature_algorithm, &tbs.to_der().ok()?, signature)?;
        tbs.subject_public_key_info.to_der().ok()
    }

    /// Whether the key (a `SubjectPublicKeyInfo`) has signed the message.
    fn verifies(
        &self,
        key: &[u8],
        algorithm: &AlgorithmIdentifierOwned,
        message: &[u8],
        signature: &[u8],
    ) -> Option<()> {
        let key = SubjectPublicKeyInfoOwned::from_der(key).ok()?;
        let (key_algorithm, algorithm) = (inner(&key.algorithm)?, inner(algorithm)?);
        let mut fitting = self.algorithms.iter().filter(|one| {
            one.public_key_alg_id().as_ref() == key_algorithm && one.signature_alg_id().as_ref() == algorithm
        });
        let key = key.subject_public_key.raw_bytes();
        fitting.find(|one| one.verify_signature(key, message, signature).is_ok()).map(|_| ())
    }
}

fn is_current(answer: &SingleResponse, now: u64) -> bool {
    let made = answer.this_update.0.to_unix_duration().as_secs();
    let ends = match &answer.next_update {
        Some(next) => next.0.to_unix_duration().as_secs(),
        None => made.saturating_add(LONGEST.as_secs()),
    };
    made <= now.saturating_add(SKEW.as_secs()) && now <= ends.saturating_add(SKEW.as_secs())
}

/// The bytes of `tbsResponseData`, as they were signed.
fn signed_part(basic: &[u8]) -> Option<&[u8]> {
    let mut reader = SliceReader::new(basic).ok()?;
    Header::decode(&mut reader).ok()?;
    reader.tlv_bytes().ok()
}

/// An algorithm's identifier without the tag and length around it.
fn inner(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    Some(AnyRef::from_der(&der).ok()?.value().to_vec())
}

/// A positive number without what stands before it.
fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}
