//! What servers staple, and what comes of it.

use ::aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, Issuer, PublicKeyData, SigningKey};
use rustls::CertificateError;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::UnixTime;
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::CrlReason;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, ResponderId, ResponseData,
    RevokedInfo, SingleResponse, Version,
};

use super::super::verify::Verifier;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What a response says, and who says it.
struct Said<'a> {
    status: CertStatus,
    made: SystemTime,
    next: Option<SystemTime>,
    /// None: SHA-1, as most responders have it.
    sha256: bool,
    serial: Option<Vec<u8>>,
    signer: &'a KeyPair,
    delegates: Vec<Certificate>,
}

impl<'a> Said<'a> {
    fn by(company: &'a Company, status: CertStatus) -> Self {
        let now = SystemTime::now();
        let (made, next) = (now - HOUR, Some(now + HOUR));
        Self {
            status,
            made,
            next,
            sha256: false,
            serial: None,
            signer: company.issuer.key(),
            delegates: vec![],
        }
    }

    /// The response about a certificate of this company's.
    fn about(&self, company: &Company, leaf: &CertificateDer<'_>) -> Vec<u8> {
        let leaf = Certificate::from_der(leaf).unwrap();
        let issuer = Certificate::from_der(&company.root()).unwrap();
        let (hash, oid) = match self.sha256 {
            true => (&SHA256, "2.16.840.1.101.3.4.2.1"),
            false => (&SHA1_FOR_LEGACY_USE_ONLY, "1.3.14.3.2.26"),
        };
        let octets = |bytes: &[u8]| OctetString::new(digest(hash, bytes).as_ref()).unwrap();
        let key = issuer.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes().to_vec();
        let serial = self.serial.clone();
        let serial = serial.unwrap_or_else(|| leaf.tbs_certificate.serial_number.as_bytes().to_vec());
        let cert_id = CertId {
            hash_algorithm: algorithm(oid),
            issuer_name_hash: octets(&leaf.tbs_certificate.issuer.to_der().unwrap()),
            issuer_key_hash: octets(&key),
            serial_number: x509_cert::serial_number::SerialNumber::new(&serial).unwrap(),
        };
        let answer = SingleResponse {
            cert_id,
            cert_status: self.status,
            this_update: time(self.made),
            next_update: self.next.map(time),
            single_extensions: None,
        };
        let tbs_response_data = ResponseData {
            version: Version::V1,
            responder_id: ResponderId::ByKey(octets(&key)),
            produced_at: time(self.made),
            responses: vec![answer],
            response_extensions: None,
        };
        let signature = self.signer.sign(&tbs_response_data.to_der().unwrap()).unwrap();
        let basic = BasicOcspResponse {
            tbs_response_data,
            signature_algorithm: algorithm("1.2.840.10045.4.3.2"),
            signature: BitString::from_bytes(&signature).unwrap(),
            certs: (!self.delegates.is_empty()).then(|| self.delegates.clone()),
        };
        OcspResponse::successful(basic).unwrap().to_der().unwrap()
    }
}

fn algorithm(oid: &str) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ObjectIdentifier::new(oid).unwrap(), parameters: None }
}

fn time(at: SystemTime) -> OcspGeneralizedTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    OcspGeneralizedTime(GeneralizedTime::from_unix_duration(Duration::from_secs(since.as_secs())).unwrap())
}

fn good() -> CertStatus {
    CertStatus::Good(Null)
}

fn revoked(reason: Option<CrlReason>) -> CertStatus {
    CertStatus::Revoked(RevokedInfo {
        revocation_time: time(SystemTime::now() - DAY),
        revocation_reason: reason,
    })
}

/// A certificate for a.test; one that demands a staple, or not.
fn leaf(company: &Company, demands: bool) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
    if demands {
        // RFC 7633: a sequence of the one number 5.
        let feature =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]);
        params.custom_extensions.push(feature);
    }
    company.certified(params).0
}

/// A responder's certificate and key, from an issuer.
fn responder(issuer: &Issuer<'_, KeyPair>, purpose: ExtendedKeyUsagePurpose) -> (Certificate, KeyPair) {
    let mut params = CertificateParams::new(["ocsp.test".to_owned()]).unwrap();
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (Certificate::from_der(certificate.der()).unwrap(), key)
}

/// What comes of a staple.
fn verified(
    company: &Company,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    staple: &[u8],
) -> Result<(), CertificateError> {
    let mut roots = RootCertStore::empty();
    roots.add(company.root()).unwrap();
    let verifier = Verifier::new(roots, vec![]).unwrap();
    match verifier.verify_server_cert(leaf, others, &name("a.test"), staple, UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(fault)) => Err(fault),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_staple_counts_if_its_issuer_signed_it_for_this_certificate_in_time() {
    let (company, stranger) = (Company::new("ours"), Company::new("theirs"));
    let now = SystemTime::now();
    let (delegate, key) = responder(&company.issuer, ExtendedKeyUsagePurpose::OcspSigning);
    let (server, server_key) = responder(&company.issuer, ExtendedKeyUsagePurpose::ServerAuth);
    let (foreign, foreign_key) = responder(&stranger.issuer, ExtendedKeyUsagePurpose::OcspSigning);
    let by = |signer, delegates| Said { signer, delegates, ..Said::by(&company, good()) };
    let said = |made, next| Said { made, next, ..Said::by(&company, good()) };
    // Whether a certificate that demands a good staple is content.
    for (what, said, counts) in [
        ("by the issuer", Said::by(&company, good()), true),
        ("with SHA-256", Said { sha256: true, ..Said::by(&company, good()) }, true),
        ("by a delegate", by(&key, vec![delegate.clone()]), true),
        (
            "by the last delegate that is looked at",
            by(&key, [vec![server.clone(); 3], vec![delegate.clone()]].concat()),
            true,
        ),
        (
            "by a delegate behind too many",
            by(&key, [vec![server.clone(); 4], vec![delegate]].concat()),
            false,
        ),
        ("by one who is no responder", by(&server_key, vec![server]), false),
        ("by a delegate of somebody else", by(&foreign_key, vec![foreign]), false),
        ("by somebody else", by(stranger.issuer.key(), vec![]), false),
        ("about another", Said { serial: Some(vec![7; 9]), ..Said::by(&company, good()) }, false),
        ("that has ended", said(now - DAY, Some(now - HOUR)), false),
        ("a little late", said(now - DAY, Some(now - Duration::from_secs(60))), true),
        ("of tomorrow", said(now + HOUR, Some(now + DAY)), false),
        ("of an hour ago without an end", said(now - HOUR, None), true),
        ("of long ago without an end", said(now - 8 * DAY, None), false),
        ("that knows nothing", Said::by(&company, CertStatus::Unknown(Null)), false),
    ] {
        let demanding = leaf(&company, true);
        let staple = said.about(&company, &demanding);
        let expected = if counts { Ok(()) } else { Err(CertificateError::InvalidOcspResponse) };
        assert_eq!(verified(&company, &demanding, &[], &staple), expected, "{what}");
        // One that demands nothing does without.
        let plain = leaf(&company, false);
        assert_eq!(verified(&company, &plain, &[], &said.about(&company, &plain)), Ok(()), "{what}");
    }
}

#[test]
fn a_revoked_certificate_is_refused_whether_it_demands_a_staple_or_not() {
    let (company, stranger) = (Company::new("ours"), Company::new("theirs"));
    let now = SystemTime::now();
    for demands in [false, true] {
        let leaf = leaf(&company, demands);
        let nothing = if demands { Err(CertificateError::InvalidOcspResponse) } else { Ok(()) };
        let old = |reason| Said { next: Some(now - HOUR), ..Said::by(&company, revoked(reason)) };
        for (said, expected) in [
            (Said::by(&company, revoked(None)), Err(CertificateError::Revoked)),
            // A revocation stays; a hold may have been taken back.
            (old(Some(CrlReason::KeyCompromise)), Err(CertificateError::Revoked)),
            (old(Some(CrlReason::CertificateHold)), nothing.clone()),
            (Said::by(&company, revoked(Some(CrlReason::CertificateHold))), Err(CertificateError::Revoked)),
            // Nobody can revoke a stranger's certificate.
            (Said { signer: stranger.issuer.key(), ..Said::by(&company, revoked(None)) }, nothing.clone()),
        ] {
            assert_eq!(verified(&company, &leaf, &[], &said.about(&company, &leaf)), expected);
        }
        for unreadable in [&b""[..], b"\x30", b"no staple", &[0x30, 3, 10, 1, 1], &[0x30; 4096]] {
            assert_eq!(verified(&company, &leaf, &[], unreadable), nothing, "{unreadable:?}");
        }
    }
}

#[test]
fn an_issuer_that_only_has_the_name_staples_nothing() {
    let (company, impostor) = (Company::new("ours"), Company::new("ours"));
    assert_ne!(company.issuer.key().der_bytes(), impostor.issuer.key().der_bytes());
    let leaf = leaf(&company, true);
    // The impostor's certificate comes along, and its hash stands in the staple.
    let staple = Said::by(&impostor, good()).about(&impostor, &leaf);
    let outcome = verified(&company, &leaf, &[impostor.root()], &staple);
    assert_eq!(outcome, Err(CertificateError::InvalidOcspResponse));
    assert_eq!(
        verified(&company, &leaf, &[impostor.root()], &Said::by(&company, good()).about(&company, &leaf)),
        Ok(())
    );
}

#[test]
fn no_bytes_make_it_panic() {
    let company = Company::new("ours");
    let leaf = leaf(&company, false);
    let whole = Said::by(&company, good()).about(&company, &leaf);
    for at in 0..whole.len() {
        assert_eq!(verified(&company, &leaf, &[], &whole[..at]), Ok(()));
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        assert_eq!(verified(&company, &leaf, &[], &bytes), Ok(()), "{at}");
    }
}
