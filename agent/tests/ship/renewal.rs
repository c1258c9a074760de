//! A host's certificate is renewed while everything else goes on.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::crypto::aws_lc_rs::default_provider;
use weir::ship::{PostError, Remote};
use weir::trust::Enrolment;
use weir_core::identity::AgentName;

/// A host that has enrolled.
fn enrolled(folder: &Path) -> Enrolment {
    let enrolment = Enrolment::at(folder);
    let pending = enrolment.pending().unwrap();
    let key = KeyPair::from_pem(&std::fs::read_to_string(folder.join("pending.key")).unwrap()).unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let authority = CertificateParams::default().self_signed(&authority_key).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.der(), authority_key).unwrap();
    let name = AgentName { tenant: "t".into(), host: "h".into(), enrolment: "e".repeat(32) };
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.uri().as_str().try_into().unwrap())];
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
    let pem = params.signed_by(&key, &issuer).unwrap().pem();
    let done = enrolment.complete(&pending, &pem, &[authority.into()], &default_provider(), |_| true);
    assert_eq!(done.unwrap(), Some(name));
    enrolment
}

#[tokio::test]
async fn a_renewal_waits_for_the_folder_and_its_disk_on_no_thread_of_the_runtime() {
    let place = tempfile::tempdir().unwrap();
    let enrolment = enrolled(place.path());
    let held = File::open(place.path()).unwrap();
    held.lock().unwrap();
    let remote = Remote::new("https://127.0.0.1:1".parse().unwrap(), enrolment, None);
    // Both are on the runtime's one thread: should the renewal wait there, nobody would let go of the lock.
    let (renewed, ()) = tokio::join!(remote.renew(), async { drop(held) });
    let error = renewed.unwrap_err();
    assert!(matches!(error, PostError::Unreachable { .. }), "it came as far as the collector: {error}");
    assert!(place.path().join("pending.key").exists(), "with the key of its request on disk");
}
